"The competition of strategies with small stand-ins for the language model: what is shared, asked, judged, drawn and shown."
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import finetune, instructions, predict, strategies
from mellm.baselines import LeakError
from mellm.finetune import STRATEGIES
from mellm.strategies import cost, draw, examples, frequent_answers, marks, motion_questions, motion_table, plot_examples, run, strategy_study, strategy_table, trained_parameters
from mellm.study import Study, StudyError, read_jsonl, stage, write_jsonl, write_table
from mellm.words import conversation

RECIPE = [("1+2", "surprise", "surprise", "up"), ("4", "negative", "anger", "down"), ("12", "positive", "happiness", "out")]
LOOK, ALL = "Look: It moves {}, strongly.\nReason: It fits.\nConclude: AU{}; {}, {}.", tuple(STRATEGIES)


def record(clip, subject, part, turns, family):
    return dict(id=f"{clip}/{family}", clip=clip, corpus="synthetic", subject=subject, split=part, tasks=[t for t, _, _ in turns], aus="", emotion="", fine="", marked=False, images=[],
                messages=conversation([(q, a) for _, q, a in turns]))


def save_adapter(folder, size):
    from safetensors.numpy import save_file
    folder.mkdir(parents=True)
    save_file({"a": np.zeros((size, 2), np.float32), "b": np.zeros(3, np.float32)}, folder / "adapter_model.safetensors")


@pytest.fixture
def made(tmp_path, monkeypatch):
    "A study with 6 + 6 subjects of three clips; `calls` lists trainings and what models were asked. A strategy is right about motion and units; the base about motion alone."
    study, calls, clips, records = Study(name="made", runs=str(tmp_path), strategy="lora-all"), [], [], []
    for s in range(12):
        for n, (aus, emotion, fine, way) in enumerate(RECIPE):
            clip, subject, part = f"p{s:02d}_{n}", f"p{s:02d}", "test" if s >= 6 else "train"
            clips.append(dict(corpus="synthetic", subject=subject, clip=clip, aus=aus, emotion=fine, emotion3=emotion, split=part, color_map=f"colormap/maps/{clip}.png", flow="", onset_path="", apex_path=""))
            records.append(record(clip, subject, part, [("describe", "Read this.", LOOK.format(way, aus, emotion, fine))], "describe"))
            records.append(record(clip, subject, part, [("how", "How does the chin move?", f"{way.capitalize()}, strongly."), ("does", "Does it move up?", "Yes." if way == "up" else "No."),
                                                        ("legend", "What is red?", "Right."), ("au", "Is AU12 there?", "No.")], "questions"))
    (study.folder / "colormap" / "maps").mkdir(parents=True)
    for c in clips: cv2.imwrite(str(study.folder / c["color_map"]), np.full((16, 16, 3), 90, np.uint8))

    def lessons(s):
        def make(folder):
            calls.append(("instructions", s.name))
            write_table(folder / "clips.csv", pd.DataFrame(clips))
            for part in ("train", "test"): write_jsonl(folder / f"{part}.jsonl", [r for r in records if r["split"] == part])
        return stage(s, "instructions", make)

    def tune(s):
        def make(folder):
            calls.append(("train", s.strategy))
            save_adapter(folder / "adapter", 5 + ALL.index(s.strategy))
        return stage(s, "finetune", make, needs=[instructions.build(s)], keys=["strategy"])

    def say(s, table, adapter=None, questions=None):
        calls.append(("ask", s.name, Path(adapter).parent.parent.name if adapter else "base", len(table)))
        facts = {c: RECIPE[int(c[-1])] for c in table["clip"]}
        if questions is not None: return [{"H": f"{facts[c][3].capitalize()}, strongly.", "D": "Yes, it does." if facts[c][3] == "up" else "no"}[q[0]] for c, q in zip(table["clip"], questions)]
        return [LOOK.format(f[3], *f[:3]) if adapter else "Something moves." for f in map(facts.get, table["clip"])]

    monkeypatch.setattr(instructions, "build", lessons)
    monkeypatch.setattr(finetune, "build", tune)
    monkeypatch.setattr(predict, "predict", say)
    monkeypatch.setattr(predict, "tuned_folder", lambda s: finetune.build(s) / "adapter")
    return study, calls, clips, records


# --- shared stages ---------------------------------------------------------------------------------------------------

def test_a_strategy_shares_what_does_not_depend_on_it(made):
    study, calls, *_ = made
    assert strategy_study(study, "lora-all") is study
    own = strategy_study(study, "full")
    assert (own.name, own.strategy) == ("made-full", "full") and own.folder.parent == study.folder.parent
    assert sorted(p.name for p in own.folder.iterdir()) == ["colormap", "instructions"]  # there is no stage `data` in this study
    assert os.readlink(own.folder / "instructions") == os.path.join("..", "made", "instructions")
    assert strategy_study(study, "full") == own and instructions.build(own).resolve() == instructions.build(study).resolve()
    assert calls == [("instructions", "made")]
    trained = finetune.build(own)
    assert not trained.is_symlink() and not (study.folder / "finetune").exists()


def test_a_folder_that_is_there_is_left_alone(made):
    study = made[0]
    mine = study.folder.parent / "made-full" / "colormap"
    mine.mkdir(parents=True)
    own = strategy_study(study, "full")
    assert not mine.is_symlink() and (own.folder / "instructions").is_symlink()


def test_where_links_cannot_be_made_the_error_says_so(made, monkeypatch):
    def refuse(*args, **kwargs): raise OSError(1, "not permitted")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(StudyError, match="colormap of made cannot be linked into made-full .not permitted."): strategy_study(made[0], "full")


# --- questions -------------------------------------------------------------------------------------------------------

def turns(rows): return pd.DataFrame(rows, columns=["clip", "task", "question", "answer"])


def test_motion_questions_stand_alone():
    clips = pd.DataFrame([dict(clip="a", subject="1"), dict(clip="b", subject="2")])
    rows = [("a", "how", '{"region": "chin"}\n{"region": "left_cheek"}\nHow does it move?', "Up."), ("a", "does", "Does it?", "No."), ("a", "does", "Does it?", "No."), ("a", "legend", "Red?", "Right."),
            ("a", "emotion", "Which?", "Positive."), ("b", "color", "Which color?", "Red."), ("gone", "how", "How?", "Up.")]
    asked = motion_questions(turns(rows), clips)
    assert asked.task.tolist() == ["how", "does", "color"] and asked.question.iloc[0] == "How does it move?" and asked.subject.tolist() == ["1", "1", "2"]
    with pytest.raises(ValueError, match="no question about motion"): motion_questions(turns(rows[3:5]), clips)


def test_frequent_answers():
    rows = [("a", "does", "", "No."), ("b", "does", "", "Yes."), ("c", "does", "", "No."), ("a", "describe", "", "Look: x.\nConclude: AU4."), ("b", "describe", "", "Look: y.\nConclude: AU12."),
            ("c", "describe", "", "Look: z.\nConclude: AU12.")]
    assert frequent_answers(turns(rows)) == {"does": "No.", "describe": "Look: y.\nConclude: AU12."}
    assert frequent_answers(turns([])) == {}


# --- the competition -------------------------------------------------------------------------------------------------

def test_everybody_is_asked_the_same(made):
    study, calls, clips, _ = made
    folder = run(study)
    assert folder == study.folder / "strategies" and sorted(p.name for p in folder.iterdir()) == ["metrics.json", "predictions", "questions", "table.csv"]
    assert [c for c in calls if c[0] == "train"] == [("train", s) for s in ALL]
    asked = [c[2:] for c in calls if c[0] == "ask"]
    names = ["base", *(study.name if s == study.strategy else f"made-{s}" for s in ALL)]
    assert asked == [(name, size) for name in names for size in (18, 36)] and {c[1] for c in calls if c[0] == "ask"} == {"made"}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["methods"]) == ["frequent", "base", *ALL] and metrics["conditions"]["questions"] == 36
    value = {m: {s: e["value"] for s, e in r["scores"].items()} for m, r in metrics["methods"].items()}
    for s in ALL: assert all(value[s][k] == 1 for k in ("au_macro", "au_exact", "uf1", "uar", "fine_uf1", "motion", "rouge_l")) and value[s]["unparsable"] == 0
    assert value["base"]["motion"] == 1 and value["base"]["au_macro"] == value["base"]["fine_uf1"] == 0 and value["base"]["unparsable"] == 1
    assert value["frequent"]["motion"] == pytest.approx((1 / 3 + 2 / 3) / 2) and value["frequent"]["uar"] == pytest.approx(1 / 3) and .5 < value["frequent"]["rouge_l"] < 1
    assert {t: e["size"] for t, e in metrics["methods"]["base"]["tasks"].items()} == {"does": 18, "how": 18}
    row = read_jsonl(folder / "predictions" / "full.jsonl")[0]
    assert row["text"] == row["reference"] and (row["fine"], row["fine_pred"]) == ("surprise", "surprise")
    assert read_jsonl(folder / "questions" / "base.jsonl")[1].items() >= dict(task="does", answer="Yes.", said="Yes, it does.", right=True).items()


def test_table(made):
    folder = run(made[0], ["full", "lora-all"])
    table = strategy_table(folder)
    assert table.index.tolist() == ["most frequent answer", "nano, untuned", "full", "lora-all"]
    assert table.columns.tolist() == ["AU F1 macro", "AU exact", "UF1", "UAR", "fine UF1", "motion questions", "ROUGE-L", "unparsable", "minutes", "trained parameters"]
    assert table.loc["full", "UF1"] == "1.00 [1.00, 1.00]" and table.loc["nano, untuned", "unparsable"] == "100 %"
    assert table["trained parameters"].tolist() == ["–", "–", f"{2 * (5 + ALL.index('full')) + 3}", f"{2 * (5 + ALL.index('lora-all')) + 3}"] and table["minutes"].iloc[0] == "–" != table["minutes"].iloc[2]
    for part in ("synthetic results", "18 test clips of 6 subjects", "Motion questions: 36"): assert part in table.attrs["note"]
    assert motion_table(folder).loc["does (18)"].tolist() == ["0.67", "1.00", "1.00", "1.00"]


def test_an_interrupted_competition_goes_on(made, monkeypatch):
    study, calls, *_ = made
    whole = predict.predict

    def breaks(s, table, adapter=None, questions=None):
        if adapter and Path(adapter).parent.parent.name == "made": raise KeyboardInterrupt
        return whole(s, table, adapter, questions)
    monkeypatch.setattr(predict, "predict", breaks)
    with pytest.raises(KeyboardInterrupt): run(study, ["lora-llm", "lora-all"])
    assert strategy_table(study.folder / "strategies").index.tolist() == ["most frequent answer", "nano, untuned", "lora-llm"]
    monkeypatch.setattr(predict, "predict", whole)
    run(study, ["lora-llm", "lora-all"])
    assert [c for c in calls if c[0] in ("train", "instructions")] == [("instructions", "made"), ("train", "lora-llm"), ("train", "lora-all")]  # nothing was made twice


def test_bad_input(made, monkeypatch):
    study, calls, clips, _ = made
    with pytest.raises(StudyError, match="no strategy magic; there are lora-llm"): run(study, ["lora-all", "magic"])
    assert not calls
    with pytest.raises(ValueError, match="'full' has not been asked in the study made"): examples(study, "full")
    monkeypatch.setattr(predict, "predict", lambda *a, **k: ["one"])
    with pytest.raises(ValueError, match="The model gave 1 answers to 18 questions"): run(study, [])


def test_a_leak_stops_it(made):
    study, calls, clips, _ = made
    clips[0]["subject"] = "p07"
    with pytest.raises(LeakError, match="synthetic/p07"): run(study)
    assert not [c for c in calls if c[0] != "instructions"]


def test_cost(made, tmp_path):
    study = made[0]
    assert cost(None) == dict(minutes=None, parameters=None)
    paid = cost(predict.tuned_folder(strategy_study(study, "perception-first")))
    assert paid["parameters"] == 2 * (5 + ALL.index("perception-first")) + 3 and 0 <= paid["minutes"] < 1
    with pytest.raises(ValueError, match="no safetensors file"): trained_parameters(tmp_path)


def test_command_line(made, monkeypatch, capsys):
    monkeypatch.setattr(Study, "load", lambda path=None: made[0])
    strategies.main(["--only", "lora-llm"])
    said = capsys.readouterr().out
    assert "most frequent answer" in said and "lora-llm" in said and "does (18)" in said and "Corpus: synthetic" in said
    with pytest.raises(SystemExit): strategies.main(["--only", "magic"])


# --- examples --------------------------------------------------------------------------------------------------------

def row(clip, aus, said, emotion, emotion_said, text="a b"): return dict(clip=clip, aus=aus, aus_pred=said, emotion=emotion, emotion_pred=emotion_said, text=text, reference="a b", color_map="")


def test_marks_by_hand():
    rows = [row("a", [6, 12], [12], "positive", "positive"), row("b", [4], None, "negative", None, None), row("c", [], [4], None, "negative"), row("d", [], None, "positive", "negative", "a")]
    assert marks(rows).tolist() == pytest.approx([(2 / 3 + 1 + 1) / 3, 0, 1, (2 / 3) / 2])


def test_examples_follow_the_rule():
    rows = [row(f"c{i}", [4], [4] if i > 3 else None, "negative", "negative" if i % 2 else None, "a b" if i > 1 else "") for i in range(8)]
    drawn = draw(rows, seed=3)
    assert list(drawn) == ["best", "middle", "worst"] and drawn == draw(rows, seed=3)
    assert drawn["best"]["clip"] in ("c5", "c7") and drawn["worst"]["clip"] == "c0" and drawn["middle"]["mark"] in (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert {draw(rows, seed=s)["best"]["clip"] for s in range(20)} == {"c5", "c7"}
    assert list(draw(rows[:2])) == ["best", "worst"] and list(draw(rows[:1])) == ["best"]


@given(st.lists(st.tuples(st.sets(st.sampled_from([1, 4, 12])), st.none() | st.sets(st.sampled_from([1, 4, 12])), st.sampled_from(["", "positive"]), st.sampled_from([None, "positive", "negative"]),
                          st.sampled_from([None, "", "a", "a b"])), min_size=1, max_size=8), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_marks_lie_in_range_and_order_the_examples(data, seed):
    rows = [row(f"c{i}", sorted(a), None if b is None else sorted(b), e, f, t) for i, (a, b, e, f, t) in enumerate(data)]
    assert ((0 <= marks(rows)) & (marks(rows) <= 1)).all()
    drawn = draw(rows, seed)
    assert len(drawn) == min(3, len(rows)) == len({r["clip"] for r in drawn.values()})
    assert [r["mark"] for r in drawn.values()] == sorted((r["mark"] for r in drawn.values()), reverse=True)


def test_examples_are_shown(made):
    study = made[0]
    run(study, ["lora-all"])
    shown = examples(study, "lora-all")
    assert [e["title"].split(":")[0] for e in shown] == ["best", "middle", "worst"] and all(e["truth"] == e["said"] and e["picture"].shape == (16, 16, 3) for e in shown)
    fig = plot_examples([*shown, dict(title="odd", picture=np.zeros((4, 4, 3), np.uint8), truth="", said="")])
    fig.canvas.draw()
    assert len(fig.axes) == 12 and "(nothing)" in [t.get_text() for t in fig.axes[-1].texts]
    with pytest.raises(ValueError, match="no example"): plot_examples([])
