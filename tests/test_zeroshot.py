"The zero-shot table: three prompts, a score only where every clip is answered, and no number that nobody computed."
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mellm import endpoints, models as M, zeroshot as Z
from mellm.answers import Answer, parse_answer
from mellm.endpoints import Budget, Reply
from mellm.study import Study, StudyError, read_jsonl, write_table

EMOTIONS = ("negative", "positive", "surprise")


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A study of six test subjects with three clips each, whose stage `colormap` is done."
    study, rng, rows, fine = Study.load(env={}, runs=str(tmp_path), name="z"), np.random.default_rng(0), [], []
    (study.folder / "colormap").mkdir(parents=True)
    for s in range(6):
        for e, emotion in enumerate(EMOTIONS):
            name, paths = f"s{s}_{e}", {}
            for kind in ("onset_path", "apex_path", "color_map"):
                paths[kind] = f"colormap/{name}_{kind}.png"
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(study.folder / paths[kind])
            rows.append(dict(corpus="synthetic", subject=f"s{s}", clip=name, aus="6+12" if e else "4", emotion=emotion, emotion3=emotion, split="test", **paths))
            fine += [dict(clip=name, region=r, magnitude=.5, maximum=1., direction="up", angle=90.) for r in ("left_cheek", "chin")]
    rows.append(rows[0] | dict(clip="other", subject="t", split="train"))
    write_table(study.folder / "colormap" / "clips.csv", pd.DataFrame(rows))
    write_table(study.folder / "colormap" / "fine_regions.csv", pd.DataFrame(fine))
    monkeypatch.setattr(Z.colormap, "build", lambda study: study.folder / "colormap")
    return study


@pytest.fixture
def said(monkeypatch):
    "A server in the place of all models: what it was asked, and what it says."
    state = dict(asked=[], says=lambda body: "Conclude: AU6+12; positive.")
    def deliver(line, body, guess=0.):
        aside, why = line.budget.book(guess)
        if why: return Reply(error=f"not asked: {why}")
        state["asked"].append(body)
        text = state["says"](body)
        line.budget.settle(aside)
        return text if isinstance(text, Reply) else Reply(text, tries=1, finish="stop")
    monkeypatch.setattr(M, "deliver", deliver)
    monkeypatch.setattr(endpoints, "make_client", lambda model: (None, ()))
    return state


def test_the_form_is_read_and_its_repetition_is_not():
    assert parse_answer(Z.QUESTION) == Answer() == parse_answer(Z.QUESTION.splitlines()[-1])
    for units, emotion in (((4,), "negative"), ((1, 2, 5), "surprise"), ((6, 12), "positive")):
        said = parse_answer(f"I see motion. It might be AU9.\nConclude: AU{'+'.join(map(str, units))}; {emotion}.")
        assert said.aus == units and said.emotion == emotion


def test_three_prompts_show_three_things(study):
    clips = Z.test_clips(study)
    assert len(clips) == 18 and "other" not in set(clips["clip"])
    kinds = {p: [[part["type"] for part in m["content"]] for m in Z.conversations(study, clips, p)[0]] for p in Z.PROMPTS}
    assert kinds == {"frames": [["text"], ["image", "image", "text"]], "colormap": [["text"], ["image", "text"]], "regions": [["text"], ["text", "text"]]}
    lines = Z.conversations(study, clips, "regions")[0][1]["content"][0]["text"].splitlines()
    assert [json.loads(line)["region"] for line in lines] == ["left_cheek", "chin"]
    texts = {p: [m["content"][-1]["text"] for m in Z.conversations(study, clips, p)[0]] for p in Z.PROMPTS}
    assert {t[1] for t in texts.values()} == {Z.QUESTION} and len({t[0] for t in texts.values()}) == 3 and "red right" in texts["colormap"][0]
    own = Z.conversations(study, clips, "colormap", own=True)[0]
    assert own[1]["content"][-1]["text"] != Z.QUESTION and Z.conversations(study, clips, "frames", own=True) == Z.conversations(study, clips, "frames")
    with pytest.raises(StudyError, match="no prompt 'video'"): Z.conversations(study, clips, "video")


def test_nothing_run_is_a_table_without_a_number(study):
    table = Z.zeroshot_table(study)
    assert (table[list(Z.PROMPTS)] == "not run").all(axis=None) and len(table) == len(Z.ROWS)
    assert list(table["filled by"]) == [f"mellm zeroshot {row}" for row in Z.ROWS]
    note = table.attrs["note"]
    assert "synthetic" in note and "18 test clips of 6 subjects" in note and "95 %" in note and "UF1" in note


def test_part_of_the_clips_is_progress_and_all_are_a_score(study, said):
    done = Z.zeroshot(study, "sphinx", ("frames",), limit=5)
    assert done.loc["frames", "answered"] == 5 and len(said["asked"]) == 5
    rows = read_jsonl(Z.predictions_file(study, "sphinx", "frames"))
    assert len(rows) == 18 and sum(r["text"] is not None for r in rows) == 5 and rows[0]["aus_pred"] == [6, 12] and rows[0]["emotion_pred"] == "positive"
    assert Z.zeroshot_table(study).loc["SPHINX"].tolist()[:3] == ["5 of 18 answered", "not run", "not run"]
    Z.zeroshot(study, "sphinx", ("frames",), limit=2)
    assert len(said["asked"]) == 5 and Z.zeroshot_table(study).loc["SPHINX", "frames"] == "5 of 18 answered"  # fewer take nothing back
    Z.zeroshot(study, "sphinx", ("frames",))
    cell = Z.zeroshot_table(study).loc["SPHINX", "frames"]
    assert len(said["asked"]) == 18 and cell.startswith("0.17 [")  # one answer for all of three equal classes: (0 + 0 + 1/2) / 3
    assert Z.zeroshot_table(study, "accuracy").loc["SPHINX", "frames"].startswith("0.33")


def test_a_right_model_scores_one_and_an_unreadable_one_nothing(study, said):
    clips = Z.test_clips(study)
    truth = iter([f"Conclude: AU{c.aus}; {c.emotion3}." for c in clips.itertuples()])
    said["says"] = lambda body: next(truth)
    Z.zeroshot(study, "sphinx", ("colormap",), workers=1)
    said["says"] = lambda body: "I cannot tell."
    Z.zeroshot(study, "sphinx", ("regions",))
    row = Z.zeroshot_table(study).loc["SPHINX"]
    assert row["colormap"] == "1.00 [1.00, 1.00]" and row["regions"].startswith("0.00") and Z.zeroshot_table(study, "unparsable").loc["SPHINX", "regions"] == "100 %"


def test_a_clip_without_an_answer_keeps_the_score_back(study, said):
    said["says"] = lambda body: Reply(error="no answer in 6 tries", tries=6) if len(said["asked"]) == 7 else "Conclude: AU4; negative."
    done = Z.zeroshot(study, "sphinx", ("frames",), workers=1)
    assert done.loc["frames", "failed"] == 1 and Z.zeroshot_table(study).loc["SPHINX", "frames"] == "17 of 18 answered"
    assert sum(r["error"] is not None for r in read_jsonl(Z.predictions_file(study, "sphinx", "frames"))) == 1
    Z.zeroshot(study, "sphinx", ("frames",))
    assert len(said["asked"]) == 19 and re.match(r"0\.\d\d \[", Z.zeroshot_table(study).loc["SPHINX", "frames"])


def test_old_answers_do_not_pass_for_new_ones(study, said):
    Z.zeroshot(study, "sphinx", ("colormap",))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(study.folder / "colormap" / "s0_0_color_map.png")
    assert Z.zeroshot_table(study).loc["SPHINX", "colormap"] == "17 of 18 answered"
    file = Z.predictions_file(study, "sphinx", "colormap")
    file.write_text(file.read_text().replace(M.model_print(Z.model_of(study, "sphinx")), "of another model"))
    assert Z.zeroshot_table(study).loc["SPHINX", "colormap"] == "not run"


def test_what_was_answered_before_the_batch_stopped_is_kept(study, said):
    def says(body):
        if len(said["asked"]) > 4: raise endpoints.EndpointError("the key is refused")
        return "Conclude: AU4; negative."
    said["says"] = says
    with pytest.raises(endpoints.EndpointError, match="refused"): Z.zeroshot(study, "sphinx", workers=1)
    assert Z.zeroshot_table(study).loc["SPHINX"].tolist()[:3] == ["4 of 18 answered", "not run", "not run"]


def test_a_budget_and_a_row_of_ones_own(study, said):
    row = Z.Row("mine", "Mine", "m", "http://localhost:1/v1", temperature=None)
    done = Z.zeroshot(study, row, budget=Budget(requests=20))
    assert done["answered"].tolist() == [18, 2, 0] and done["not asked"].tolist() == [0, 16, 18]
    table = Z.zeroshot_table(study, rows=(row,))
    assert table.index.tolist() == ["Mine"] and table.iloc[0].tolist()[1:3] == ["2 of 18 answered", "not run"]
    assert "temperature" not in said["asked"][0] and "mine" in table["filled by"].iloc[0]


def test_rows_say_what_they_need(study, monkeypatch):
    assert {"gpt-4o", "gemini-pro", "sphinx", "qwen2.5-vl", "internvl", "llava", "base", "tuned"} <= set(Z.ROWS)
    assert "OPENAI_API_KEY" in Z.needs("gpt-4o") and "GEMINI_API_KEY" in Z.needs("gemini-pro") and Z.needs("base") == "nothing"
    assert Z.command("llava", "frames") == "mellm zeroshot llava --prompt frames"
    with pytest.raises(StudyError, match="no row 'gpt-9'"): Z.zeroshot(study, "gpt-9")
    with pytest.raises(StudyError, match="no score"): Z.zeroshot_table(study, "beauty")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    pytest.importorskip("openai")
    with pytest.raises(endpoints.EndpointError, match="OPENAI_API_KEY"): Z.zeroshot(study, "gpt-4o", ("frames",), limit=1)


def test_the_command(study, said, monkeypatch, capsys):
    monkeypatch.setattr(Z.Study, "load", classmethod(lambda cls, path=None: study))
    Z.main(["sphinx", "--prompt", "frames", "--limit", "3", "--budget", "9"])
    out = capsys.readouterr().out
    assert "3 of 18 answered" in out and "not run" in out and "Protocol" in out and len(said["asked"]) == 3
    Z.main([])
    assert len(said["asked"]) == 3
