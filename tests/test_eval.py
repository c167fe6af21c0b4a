"The evaluation and analysis stages on hand-made predictions and with small stand-ins for the language model."
import json

import cv2
import numpy as np
import pandas as pd
import pytest

from mellm import analysis, colormap, finetune
from mellm import eval as evaluation
from mellm.baselines import LeakError
from mellm.facs import REGIONS
from mellm.words import QUESTIONS
from mellm.metrics import MIN_SUBJECTS
from mellm.study import Study, read_jsonl, read_table, stage, write_jsonl, write_table

CONDITIONS = dict(corpora=["casme2"], protocol="hold-out of subjects, one split", train_clips=30, train_subjects=10, test_clips=6, test_subjects=6, model="hub/small-model", strategy="lora-all",
                  seed=3, resamples=1000, interval="95 % percentile bootstrap over test subjects")


def row(method, i, emotion, said, aus, aus_said, text=None):
    return dict(clip=f"c{i}", corpus="casme2", subject=f"s{i}", method=method, aus=aus, emotion=emotion, aus_pred=aus_said, emotion_pred=said, text=text, question=None,
                color_map="", flow="", onset_path="", apex_path="")


@pytest.fixture
def handmade(tmp_path):
    "Six clips of six subjects; `majority` says negative, `finetuned` is right four times, silent once, wrong once."
    truth = [("negative", [4]), ("negative", [4]), ("negative", [9]), ("positive", [12]), ("positive", [6, 12]), ("surprise", [1, 2])]
    said = [("negative", [4]), ("negative", [4]), (None, None), ("positive", [12]), ("positive", [12]), ("negative", [1, 2])]
    write_jsonl(tmp_path / "predictions" / "finetuned.jsonl", [row("finetuned", i, e, s, a, b, "text") for i, ((e, a), (s, b)) in enumerate(zip(truth, said))])
    write_jsonl(tmp_path / "predictions" / "majority.jsonl", [row("majority", i, e, "negative", a, [4]) for i, (e, a) in enumerate(truth)])
    return tmp_path


# --- scores and table ------------------------------------------------------------------------------------------------

def test_result_table(handmade):
    evaluation.score(handmade, CONDITIONS)
    table = evaluation.result_table(handmade)
    assert table.index.tolist() == ["majority", "small-model, fine-tuned"]
    assert table.columns.tolist() == ["UF1", "UAR", "accuracy", "AU F1 macro", "AU exact", "unparsable"]
    # fine-tuned: negative TP 2, FP 1, FN 1; positive TP 2; surprise FN 1
    value = table.loc["small-model, fine-tuned"]
    assert value.UF1.startswith(f"{(4 / 6 + 1 + 0) / 3:.2f} [") and value.UAR.startswith(f"{(2 / 3 + 1 + 0) / 3:.2f} [") and value.accuracy.startswith("0.67 [")
    assert value["AU exact"].startswith("0.67 [") and value.unparsable == "17 %"
    assert table.loc["majority"].UAR.startswith("0.33") and table.loc["majority"].unparsable == "0 %"


def test_the_note_states_the_conditions(handmade):
    evaluation.score(handmade, CONDITIONS)
    note = evaluation.result_table(handmade).attrs["note"]
    for part in ("casme2", "hold-out of subjects", "6 test clips of 6 subjects", "30 clips of 10 others", "seed 3", "95 %", "1000 resamples", "counts as wrong"): assert part in note
    assert "synthetic" not in note


@pytest.mark.parametrize("corpora,said", [(["synthetic"], "synthetic results, not comparable"), (["casme2", "synthetic"], "in part synthetic")])
def test_synthetic_results_are_called_synthetic(handmade, corpora, said):
    evaluation.score(handmade, CONDITIONS | dict(corpora=corpora))
    assert said in evaluation.result_table(handmade).attrs["note"]
    title = evaluation.plot_scores(handmade)._suptitle.get_text()
    assert "synthetic" in title


def test_few_subjects_have_no_intervals(handmade):
    rows = [r | dict(subject=f"s{i % (MIN_SUBJECTS - 1)}") for i, r in enumerate(read_jsonl(handmade / "predictions" / "majority.jsonl"))]
    write_jsonl(handmade / "predictions" / "majority.jsonl", rows)
    (handmade / "predictions" / "finetuned.jsonl").unlink()
    evaluation.score(handmade, CONDITIONS | dict(test_subjects=MIN_SUBJECTS - 1))
    table = evaluation.result_table(handmade)
    assert "[" not in "".join(table.loc["majority"]) and "No intervals" in table.attrs["note"]


def test_a_corpus_without_action_units_has_dashes(handmade):
    for file in (handmade / "predictions").iterdir(): write_jsonl(file, [r | dict(aus=[]) for r in read_jsonl(file)])
    evaluation.score(handmade, CONDITIONS)
    table = evaluation.result_table(handmade)
    assert (table[["AU F1 macro", "AU exact"]] == "–").all(axis=None) and table.UF1.str.contains("0.").all()
    assert evaluation.au_result_table(handmade).empty
    evaluation.plot_scores(handmade).canvas.draw()


def test_files_hold_the_same_numbers(handmade):
    evaluation.score(handmade, CONDITIONS)
    metrics, table = json.loads((handmade / "metrics.json").read_text(encoding="utf-8")), pd.read_csv(handmade / "table.csv").set_index(["method", "score"])
    for method, result in metrics["methods"].items():
        for score, entry in result["scores"].items(): assert table.value[method, score] == pytest.approx(entry["value"])
    assert {r["au"]: r["clips"] for r in metrics["methods"]["majority"]["aus"]} == {1: 1, 2: 1, 4: 2, 6: 1, 9: 1, 12: 2}
    units = evaluation.au_result_table(handmade)
    assert units.index[2] == "AU4 brow lowerer (2 clips, 2 subjects)" and units["small-model, fine-tuned"].iloc[2] == "1.00"


def test_errors_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="no predictions to score"): evaluation.score(tmp_path, CONDITIONS)
    with pytest.raises(ValueError, match="Run the stage `eval` first"): evaluation.result_table(tmp_path)
    clips = pd.DataFrame([dict(clip="a", corpus="c", subject="s", aus="", emotion3="", **dict.fromkeys(evaluation.PATHS, ""))])
    with pytest.raises(ValueError, match="2 answers for 1 clips"): evaluation.to_rows(clips, "svm", pd.DataFrame({"aus_pred": [None] * 2, "emotion_pred": [None] * 2}))


@pytest.mark.parametrize("label,fine", [("Happy", "happiness"), ("surprise", "surprise"), ("negative", None), ("positive", None), ("", None), (None, None), (float("nan"), None), ("unheard of", None)])
def test_fine_emotions(label, fine): assert evaluation.fine_emotion(label) == fine


def test_texts_are_read_one_by_one():
    read = evaluation.read_texts(["Conclude: AU6+12; positive, happiness.", "", "Conclude: AU4."])
    assert read.values.tolist() == [[(6, 12), "positive", "happiness"], [None] * 3, [(4,), None, None]] and evaluation.read_texts([]).empty


# --- the stages ------------------------------------------------------------------------------------------------------

RECIPE = [("1+2", "surprise", (0, -1), "up"), ("4", "negative", (0, 1), "down"), ("12", "positive", (1, 0), "right")]


@pytest.fixture
def made(tmp_path, monkeypatch):
    "A study whose stages up to `finetune` are stand-ins; `calls` lists what the language model was asked."
    study, calls = Study(name="made", runs=str(tmp_path)), []
    folder = study.folder / "colormap"
    (folder / "maps").mkdir(parents=True)
    rows, regions = [], []
    for s in range(12):
        for n, (aus, emotion, push, word) in enumerate(RECIPE):
            clip = f"p{s:02d}_{n}"
            flow = np.random.default_rng(s).normal(0, .05, (16, 16, 2))
            flow[:8] += push
            np.savez_compressed(folder / "maps" / f"{clip}.npz", flow=flow.astype(np.float16), transform=np.array([[1., 0, 0], [0, 1, 0]]))
            for name in ("", "_onset", "_apex"): cv2.imwrite(str(folder / "maps" / f"{clip}{name}.png"), np.full((16, 16, 3), 20 * s, np.uint8))
            rows.append(dict(corpus="synthetic", subject="astronaut" if s == 11 else f"p{s:02d}", clip=clip, aus=aus, emotion3=emotion, emotion={"negative": "anger", "positive": "positive"}.get(emotion, emotion), split="test" if s >= 6 else "train", color_map=f"colormap/maps/{clip}.png",
                             flow=f"colormap/maps/{clip}.npz", onset_path=f"colormap/maps/{clip}_onset.png", apex_path=f"colormap/maps/{clip}_apex.png"))
            regions += [dict(clip=clip, region=r, percent=.2 + .3 * s) for r in REGIONS]
    write_table(folder / "regions.csv", pd.DataFrame(regions))

    def base_stage(name):
        return lambda _: stage(study, name, lambda f: write_table(f / "clips.csv", pd.DataFrame(rows)))

    def predict(_, clips, adapter=None, **kwargs):
        calls.append((adapter, clips["clip"].tolist()))
        if adapter is None: return ["Something moves."] * len(clips)
        return [f"Look: it moves.\nConclude: AU{c.aus if not c.clip.endswith('_2') else '15'}; {c.emotion3}." for c in clips.itertuples()]

    monkeypatch.setattr(finetune, "build", base_stage("finetune"))
    monkeypatch.setattr(evaluation, "predict", predict)

    def maps(_):
        (folder / "stage.json").write_text('{"fingerprint": "made"}', encoding="utf-8")
        return folder
    monkeypatch.setattr(colormap, "build", maps)
    return study, calls, rows


def test_the_stage_asks_everybody_about_all_test_clips(made):
    study, calls, rows = made
    folder, test = evaluation.build(study), [r["clip"] for r in rows if r["split"] == "test"]
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "predictions", "stage.json", "table.csv"]
    assert [adapter for adapter, _ in calls] == [None, "stage"] and all(asked == test for _, asked in calls)
    for method in evaluation.METHODS:
        said = read_jsonl(folder / "predictions" / f"{method}.jsonl")
        assert [r["clip"] for r in said] == test
        told = {"fine", "fine_pred"} if method in evaluation.ADAPTERS else set()
        assert set(said[0]) == {"clip", "corpus", "subject", "method", "aus", "emotion", "aus_pred", "emotion_pred", "text", "question", *evaluation.PATHS} | told
        assert (said[0]["question"] == QUESTIONS["describe"][0]) == (method in ("base", "finetuned"))
    said = read_jsonl(folder / "predictions" / "base.jsonl")[0]
    assert said["aus_pred"] is None and said["emotion_pred"] is None and said["text"] == "Something moves."
    table = evaluation.result_table(folder)
    assert table.UF1["nano, fine-tuned"] == "1.00 [1.00, 1.00]" and table.unparsable["nano, untuned"] == "100 %" and table.UF1["flow histogram + SVM"].startswith("1.00")
    fine = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["methods"]["finetuned"]["scores"]["fine_uf1"]
    assert fine["n"] == 12 and fine["value"] == .5  # of anger and surprise, the latter is named; a label that is itself coarse does not count
    shown = evaluation.result_table(folder, ("fine_uf1",))["fine UF1"]
    assert shown["majority"] == "–" and shown["nano, fine-tuned"].startswith("0.50")
    evaluation.build(study)
    assert len(calls) == 2  # a finished stage is not run again


def test_an_interrupted_evaluation_goes_on(made, monkeypatch):
    study, calls, rows = made
    whole = evaluation.predict

    def breaks(*args, **kwargs):
        if len(calls) == 1: raise KeyboardInterrupt
        return whole(*args, **kwargs)
    monkeypatch.setattr(evaluation, "predict", breaks)
    with pytest.raises(KeyboardInterrupt): evaluation.build(study)
    assert not (study.folder / "eval").exists() and (study.folder / "eval.partial" / "predictions" / "base.jsonl").exists()
    monkeypatch.setattr(evaluation, "predict", whole)
    evaluation.build(study)
    assert [adapter for adapter, _ in calls] == [None, "stage"]  # nobody was asked twice


def test_a_model_that_loses_answers_is_an_error(made, monkeypatch):
    monkeypatch.setattr(evaluation, "predict", lambda *args, **kwargs: ["one"])
    with pytest.raises(ValueError, match="base gave 1 answers for 18 clips"): evaluation.build(made[0])


def test_a_leak_stops_the_evaluation(made):
    study, calls, rows = made
    rows[0]["subject"] = "p07"
    with pytest.raises(LeakError, match="synthetic/p07"): evaluation.build(study)
    assert not calls


def test_without_test_clips_the_stage_says_so(made):
    for r in made[2]: r["split"] = "train"
    with pytest.raises(ValueError, match="no test clip is left"): evaluation.build(made[0])


def test_analysis(made):
    study = made[0]
    folder = analysis.build(study)
    assert {p.stem for p in (folder / "figures").iterdir()} == set(analysis.ALT)
    for name in analysis.ALT: assert cv2.imread(str(folder / "figures" / f"{name}.png")).shape[1] > 300
    subjects = read_table(folder / "by_subject.csv").set_index("subject")
    assert subjects.finetuned.to_numpy() == pytest.approx(2 / 3) and subjects.face["astronaut"] == "photograph, animated" and (subjects.svm == 1).all()
    by_au = read_table(folder / "by_au.csv").set_index("au")
    assert by_au.finetuned.to_dict() == {1: 1, 2: 1, 4: 1, 12: 0} and (by_au.base == 0).all()
    strength = read_table(folder / "by_strength.csv").set_index("strength")
    assert strength.index.tolist() == ["moderate", "strong"] and strength.cases.sum() == 6 * 4
    assert set(read_table(folder / "by_face.csv").face) == {"photograph, animated", "rendered face, animated"}
    assert analysis.show(folder, "wrong").alt == analysis.ALT["wrong"]


def test_examples_are_drawn_by_lot_and_differ(made):
    table = analysis.read_predictions(evaluation.build(made[0]))["finetuned"]
    right, wrong = analysis.draw_examples(table, True, 4), analysis.draw_examples(table, False, 4)
    assert set(right.right) == {True} and set(wrong.right) == {False} and right.emotion.nunique() == 2 and right.subject.nunique() == 4
    assert analysis.draw_examples(table, True, 4).equals(right) and len(analysis.draw_examples(table, True, 99)) == 12
    assert analysis.draw_examples(table.assign(right=True), False).empty


# --- judging ---------------------------------------------------------------------------------------------------------

def test_judging():
    judged = analysis.judge([row("m", 0, "negative", "negative", [4], [4]), row("m", 1, "negative", "positive", [4], [4]), row("m", 2, "negative", None, [], None), row("m", 3, None, "positive", [4], [4, 9]),
                             row("m", 4, None, "positive", [], None)])
    assert judged.emotion_right.tolist() == [True, False, False, None, None]
    assert judged.aus_right.tolist() == [True, True, None, False, None]
    assert judged.right.tolist() == [True, False, False, False, None]


def test_confusion_keeps_silence_apart():
    counts = analysis.confusion(analysis.judge([row("m", 0, "negative", None, [], None), row("m", 1, "negative", "positive", [], None), row("m", 2, "positive", "positive", [], None), row("m", 3, None, "positive", [], None)]))
    assert counts.index.tolist() == ["negative", "positive"]
    assert counts.loc["negative"].tolist() == [0, 1, 0, 1] and counts.loc["positive"].tolist() == [0, 1, 0, 0]


def test_figures_of_a_corpus_without_units_or_classes(handmade):
    for file in (handmade / "predictions").iterdir(): write_jsonl(file, [r | dict(aus=[], emotion=None) for r in read_jsonl(file)])
    evaluation.score(handmade, CONDITIONS)
    predictions, metrics = analysis.read_predictions(handmade), analysis.read_metrics(handmade)
    hits = analysis.au_hits(predictions, pd.DataFrame(columns=["clip", "region", "percent"]))
    assert hits.empty and analysis.by_strength(hits, list(predictions)).empty
    for fig in (analysis.plot_confusions(predictions), analysis.plot_aus(metrics), analysis.plot_strength(hits), analysis.plot_subjects(analysis.by_subject(predictions), methods=("majority", "finetuned"))):
        fig.canvas.draw()
    assert analysis.findings(metrics, analysis.by_strength(hits, list(predictions)), analysis.by_subject(predictions)) == []
