"Entering a challenge: clips that are hard to find or damaged, answers in the words that are scored, a job that is interrupted; and paired questions."
import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import challenge, facs, findclips, pairs, predict, words
from mellm.findclips import ClipError
from mellm.measures import SPOKEN
from mellm.study import StudyError, read_jsonl, read_table, write_jsonl

QUICK = dict(flow="dis", workers=1)


def picture(value=90, side=64): return np.full((side, side, 3), value, np.uint8) + np.arange(side, dtype=np.uint8)[:, None, None] // 4


def save(*paths):
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(90 + i))


# Finding clips

@given(st.lists(st.integers(0, 10**6), unique=True, max_size=8))
def test_frames_are_in_the_order_of_their_numbers(numbers):
    assert list(findclips.number_frames([f"img{n}.jpg" for n in numbers])) == sorted(numbers)


@settings(deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=6))
def test_any_names_are_numbered_in_rising_order(names):
    got = findclips.number_frames(names)
    assert sorted(got.values()) == sorted(names) and list(got) == sorted(got)


def test_a_clip_is_found_by_any_of_its_names(tmp_path):
    save(tmp_path / "CAS" / "Sub01" / "EP02" / "1.png", tmp_path / "CAS" / "sub02" / "EP02" / "1.png", tmp_path / "samm" / "SAMM-3" / "a.JPG", tmp_path / "._x" / "._1.png")
    (tmp_path / "samm" / "SAMM-4.MP4").write_bytes(b"")
    places = findclips.clip_places(tmp_path)
    name = lambda **row: findclips.find_clip(row, places).relative_to(tmp_path).as_posix()
    assert name(video="samm-3") == name(video_id="SAMM-3", video="else") == name(video="./samm/SAMM-3/") == "samm/SAMM-3"
    assert name(video="SAMM-4") == name(video="samm-4.mp4") == "samm/SAMM-4.MP4"
    assert name(subject="sub02", filename="EP02") == name(video="CAS\\sub02\\EP02") == "CAS/sub02/EP02"
    with pytest.raises(ClipError, match="2 clips have the name"): name(filename="EP02")
    for row in ({"video": "../samm/SAMM-3"}, {"video": ""}, {"video": None}, {"video": "/etc"}, {"video": "CAS"}, {"video": "._x"}):
        with pytest.raises(ClipError, match="no folder with pictures and no video is named"): name(**row)
    save(tmp_path / "other" / "SAMM-4" / "1.png")
    assert findclips.find_clip({"video": "SAMM-4"}, findclips.clip_places(tmp_path)).is_dir()


def test_no_folder_of_clips(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"): findclips.clip_places(tmp_path / "none")


@pytest.fixture
def clip(tmp_path):
    save(*(tmp_path / "clip" / f"img{n}.png" for n in (2, 9, 10, 11)))
    return tmp_path / "clip"


def prepared(place, onset=None, apex=None): return findclips.prepare("x", str(place), onset, apex, str(place.parent / "frames"))


@pytest.mark.parametrize("onset, apex, wanted, note", [(None, 10, (2, 10, "given"), ""), (9, 11, (9, 11, "given"), ""), (None, 3, (2, None, "estimated"), "apex is given as frame 3"),
                                                       (99, 10, (2, 10, "given"), "onset is given as frame 99"), (10, 9, (10, 11, "estimated"), "")])
def test_onset_and_apex_that_are_given(clip, onset, apex, wanted, note):
    got = prepared(clip, onset, apex)
    assert got["onset"] == wanted[0] and wanted[1] in (None, got["apex"]) and got["apex_source"] == wanted[2] and note in got["note"] and not got["reason"]


def test_damaged_frames_are_passed_over(clip):
    (clip / "img2.png").write_bytes(b"no picture")
    (clip / "img11.png").write_bytes(b"")
    got = prepared(clip)
    assert got["onset"] == 9 and got["apex"] == 10 and "its first frame cannot be read" in got["note"] and got["frames"] == 4


@pytest.mark.parametrize("make, reason", [
    (lambda d: save(d / "1.png"), "one frame that can be read"), (lambda d: (d / "1.png").write_bytes(b"x"), "none of its frames can be read"), (lambda d: None, "none of its frames can be read")])
def test_a_clip_without_two_frames_is_a_sentence(tmp_path, make, reason):
    (tmp_path / "c").mkdir()
    make(tmp_path / "c")
    assert reason in prepared(tmp_path / "c")["reason"]


def test_a_broken_video_is_a_sentence(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"\0" * 999)
    assert "v.mp4 cannot be read" in prepared(tmp_path / "v.mp4")["reason"]
    assert prepared(tmp_path / "gone.mp4")["reason"]


def test_a_video_has_frames_from_zero(tmp_path):
    findclips._film([picture(90 + 10 * i) for i in range(5)], tmp_path / "v.avi")
    got = prepared(tmp_path / "v.avi", None, 3)
    assert (got["frames"], got["onset"], got["apex"]) == (5, 0, 3)


def test_a_clip_is_looked_at_once_and_again_when_it_changes(clip, monkeypatch):
    first = prepared(clip)
    with monkeypatch.context() as m:
        m.setattr(findclips, "lay_out", lambda *a: pytest.fail("looked again"))
        assert prepared(clip) == first
    save(clip / "img10.png")
    assert prepared(clip)["apex_path"] != first["apex_path"]
    for file in clip.parent.glob("frames/*.json"): file.write_text("{")
    assert not prepared(clip)["reason"]


def test_equal_pictures_are_noted(tmp_path):
    save(tmp_path / "c" / "1.png")
    shutil.copy(tmp_path / "c" / "1.png", tmp_path / "c" / "2.png")
    assert prepared(tmp_path / "c")["note"] == "onset and apex are the same picture"


# Questions and answers

def test_what_is_asked():
    assert challenge.asks("au_present", "is the action unit LIP  PRESSOR shown on the face") == ["Is the action unit lip pressor shown on the face?"]
    assert challenge.asks("au_present", "Is AU12 there?") == ["Is AU12 there?"] and challenge.asks("au_side", "") == []
    assert [len(challenge.asks(kind, "What is the action unit present, and …?")) for kind in ("joint", "coarse", "open")] == [3, 1, 1]


@pytest.mark.parametrize("kind, text, unit, described, wanted", [
    ("coarse", "negative", "", False, "negative"), ("coarse", "pegative", "", False, None), ("coarse", "happiness", "", False, "positive"), ("fine", "Sad.", "", False, "sadness"), ("fine", "positive", "", False, None),
    ("au_list", "AU1+2.", "", False, "inner brow raiser, outer brow raiser"), ("au_list", "no action unit", "", False, None), ("au_one", "AU6+12", "", False, "cheek raiser"),
    ("au_present", "Yes.", "dimpler", False, "yes"), ("au_present", "AU14.", "dimpler", False, None), ("au_present", "Conclude: AU14; positive.", "dimpler", True, "yes"),
    ("au_present", "Conclude: positive.", "dimpler", True, None), ("coarse", "", "", False, None), ("au_present", "Conclude: AU14.", "eyes left of it", True, None)])
def test_answers_are_read_in_the_words_that_are_scored(kind, text, unit, described, wanted): assert challenge.read_answer(kind, text, unit, described) == wanted


def test_the_side_is_measured():
    regions = pd.DataFrame(dict(region=SPOKEN, magnitude=[1. if r == "left_mouth_corner" else .1 for r in SPOKEN]))
    assert challenge.measured_side("dimpler", regions) == "left" and challenge.measured_side("chin raiser", regions) is None and challenge.measured_side("tail wag", regions) is None
    question = "Is the action unit lip corner puller located on the left or right face?"
    assert challenge.resolve_answer("au_side", question, {}, regions, challenge.FIXED) == ("left", "measured")
    assert challenge.resolve_answer("au_side", question, {}, None, challenge.FIXED) == ("left", "default")


def test_the_joint_answer_is_put_together():
    question = "What are the action units present, and based on them, what is the fine-grained expression and the coarse expression class?"
    said = {challenge.DESCRIBE: "Look: … Conclude: AU6+12.", words.MEVQA["fine_grained"]: "happiness"}
    habit = challenge.Habits(challenge.FIXED.usual, {"happiness": "happy"})
    assert challenge.resolve_answer("joint", question, said, None, habit) == (
        "The action units present are: cheek raiser, lip corner puller. Therefore, the fine-grained expression class is happy, and the coarse expression class is negative.", "default")
    assert challenge.resolve_answer("joint", question, {}, None, habit) == (habit.usual["joint"], "default")


def test_habits_are_those_of_the_training_file(tmp_path):
    ask = words.MEVQA
    rows = [dict(video=str(i), question=q, answer=a) for i, (q, a) in enumerate([(ask["fine_grained"], "happy"), (ask["fine_grained"], "happy"), (ask["fine_grained"], "happiness"), (ask["coarse"], "surprise"), (ask["coarse"], ""),
                                                                                 (ask["coarse"], None)])]
    got = challenge.habits(write_jsonl(tmp_path / "t.jsonl", rows))
    assert got.usual["fine"] == "happy" and got.spelling == {"happiness": "happy"} and got.usual["coarse"] == "surprise" and got.usual["open"] == challenge.FIXED.usual["open"]
    assert challenge.resolve_answer("fine", ask["fine_grained"], {challenge.DESCRIBE: "Conclude: AU12; positive, happiness."}, None, got) == ("happy", "description")
    with pytest.raises(ValueError, match="line 1"):
        (tmp_path / "bad.jsonl").write_text("{")
        challenge.habits(tmp_path / "bad.jsonl")


# The whole of it

@pytest.fixture(scope="module")
def mini(tmp_path_factory): return findclips.mini_challenge(tmp_path_factory.mktemp("mini"), 2, 4)


@pytest.fixture(scope="module")
def entry(mini, tmp_path_factory):
    "The shipped model's answers; the first call is interrupted after a batch."
    out, asked = tmp_path_factory.mktemp("out") / "pred.jsonl", []
    whole = predict.complete
    def complete(model, processor, talks, *rest):
        if asked: raise KeyboardInterrupt
        asked.extend(talks)
        return whole(model, processor, talks, *rest)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(predict, "complete", complete)
        with pytest.raises(KeyboardInterrupt): challenge.answer(mini / "questions.jsonl", mini / "frames", out, batch_size=4, **QUICK)
    assert not out.exists() and len(asked) == 4
    with pytest.MonkeyPatch.context() as m:
        m.setattr(predict, "complete", lambda model, processor, talks, *rest: asked.extend(talks) or whole(model, processor, talks, *rest))
        report = challenge.answer(mini / "questions.jsonl", mini / "frames", out, batch_size=4, **QUICK)
    assert len(read_jsonl(next((out.parent / "pred.work" / "answers").iterdir()))) == len(asked) > 4, "nothing is asked twice"
    return out, report


def test_a_submission_is_complete_and_in_order(mini, entry):
    out, report = entry
    asked, got = read_jsonl(mini / "questions.jsonl"), read_jsonl(out)
    assert [{**g, "answer": ""} for g in got] == asked and all(isinstance(g["answer"], str) and g["answer"].strip() for g in got)
    closed = {"coarse": ("negative", "positive", "surprise"), "au_present": ("yes", "no")}
    assert all(g["answer"] in closed[kind] for g, kind in zip(got, report.kind) if kind in closed)
    names = {u.name for u in facs.ACTION_UNITS.values()}
    assert all(set(g["answer"].split(", ")) <= names for g, kind in zip(got, report.kind) if kind in ("au_list", "au_one"))


def test_the_report_says_what_could_not_be_used(entry):
    out, report = entry
    kept = read_table(out.with_suffix(".report.csv"))
    assert kept.line.tolist() == report.line.tolist() == list(range(1, len(report) + 1)) and list(kept.columns) == challenge.REPORT
    by = report.drop_duplicates("clip").set_index("clip")
    assert by.reason["SYN-1"] == by.reason["SYN-2"] == "" and "No face was found in its onset" in by.reason["SYN-3"] and "named SYN-4" in by.reason["SYN-4"]
    assert (report.source == "default").equals(report["clip"].isin(["SYN-3", "SYN-4"]))


def test_a_second_call_asks_nothing_and_writes_the_same(mini, entry, monkeypatch):
    out, _ = entry
    before = out.read_bytes()
    monkeypatch.setattr(predict, "load_tuned", lambda *a: pytest.fail("loaded the model"))
    monkeypatch.setattr(findclips, "lay_out", lambda *a: pytest.fail("looked at frames again"))
    challenge.answer(mini / "questions.jsonl", mini / "frames", out, **QUICK)
    assert out.read_bytes() == before


def test_it_can_be_scored(mini, entry):
    got = challenge.score(mini / "truth.jsonl", entry[0])
    assert got.value.between(0, 1).all() and got.low.isna().all() and got.attrs["kinds"].unanswered.sum() == 0 and "2 people; 0 without an answer" in got.attrs["note"]
    assert (challenge.score(mini / "truth.jsonl", mini / "truth.jsonl").value == 1).all()
    with pytest.raises(ValueError, match="questions.jsonl, line 1: the true answer"): challenge.score(mini / "questions.jsonl", entry[0])


def test_without_any_clip_all_answers_are_habits(mini, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(predict, "load_tuned", lambda *a: pytest.fail("loaded the model"))
    report = challenge.answer(mini / "questions.jsonl", tmp_path / "none", tmp_path / "my answers.jsonl", **QUICK)
    assert (report.source == "default").all() and report.reason.str.len().gt(0).all()
    assert {g["answer"] for g, kind in zip(read_jsonl(tmp_path / "my answers.jsonl"), report.kind) if kind == "coarse"} == {"negative"}


def test_fields_of_a_line_are_kept(tmp_path):
    (tmp_path / "none").mkdir()
    rows = [{"video_id": "ü", "extra": [1, {"a": None}], "answer": None, "question": "what is the coarse expression class", "onset": "x", "apex": float("inf")}, {"image_id": 7, "question": "你好?"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    challenge.answer(tmp_path / "q.jsonl", tmp_path / "none", tmp_path / "p.jsonl", **QUICK)
    first, second = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert list(first) == list(rows[0]) and first["extra"] == [1, {"a": None}] and first["answer"] == "negative" and second == {**rows[1], "answer": challenge.FIXED.usual["open"]}


def test_clips_of_one_name_are_kept_apart(tmp_path):
    rows = [dict(image_id=f"{s}-{q}", video="EP02", question=q, dataset="casme2", subject=s, filename="EP02") for s in ("sub01", "sub02") for q in ("What?", "What is the coarse expression class?")]
    save(*(tmp_path / "clips" / s / "EP02" / f"{n}.png" for s in ("sub01", "sub02") for n in (1, 2)))
    report = challenge.answer(write_jsonl(tmp_path / "q.jsonl", rows), tmp_path / "clips", tmp_path / "p.jsonl", **QUICK)
    assert report["clip"].tolist() == ["casme2/sub01/EP02"] * 2 + ["casme2/sub02/EP02"] * 2 and report.frames.tolist() == [2] * 4 and report.reason.str.contains("No face").all()


def test_what_stops_at_once(mini, tmp_path):
    ask = lambda questions=mini / "questions.jsonl", frames=mini / "frames", out=tmp_path / "p.jsonl", **more: challenge.answer(questions, frames, out, **QUICK | more)
    (tmp_path / "bad.jsonl").write_text('{"video": "a", "question": "What?"}\n{')
    for call, error, message in ((lambda: ask(tmp_path / "bad.jsonl"), ValueError, "bad.jsonl, line 2: not valid JSON"), (lambda: ask(frames=tmp_path / "no"), ValueError, "There is no folder"),
                                 (lambda: ask(out=tmp_path), ValueError, "is a folder"), (lambda: ask(out=mini / "questions.jsonl"), ValueError, "is an input as well"),
                                 (lambda: ask(flow="magic"), StudyError, "flow must be one of"), (lambda: ask(colour=3), StudyError, "colour is not a setting"), (lambda: ask(adapter=str(tmp_path / "no")), ValueError, "no folder .*adapter"),
                                 (lambda: ask(first="luck"), ValueError, "first must be"), (lambda: ask(train=tmp_path / "no.jsonl"), ValueError, "there is no file")):
        with pytest.raises(error, match=message): call()
    assert not (tmp_path / "p.jsonl").exists()


# Paired questions

def moving(**how): # region -> (direction, relative)
    "Region motion in which some regions move and all others rest."
    rows = [dict(region=r, direction=how.get(r, ("up", 0))[0], color="violet", magnitude=4. * how.get(r, ("", .01))[1], percent=5. * how.get(r, ("", .01))[1], concentration=.95) for r in SPOKEN]
    return pd.DataFrame(rows)


def test_pairs_flip_one_thing_only():
    asked = {(row["family"], row["answer"]): row["question"] for row in pairs.clip_pairs("c", (12,), moving(left_mouth_corner=("up-right", 1.)), [12, 4])}
    assert asked["up or down", "yes"] == "Does the left mouth corner move up and out?" and asked["up or down", "no"] == "Does the left mouth corner move down and out?"
    assert asked["left or right", "no"] == "Does the left mouth corner move up and in?" and asked["moves or rests", "yes"] == "Does the left mouth corner move?"
    assert asked["action unit", "yes"] == "Is the action unit lip corner puller shown on the face?" and asked["action unit", "no"] == "Is the action unit brow lowerer shown on the face?"


def test_nothing_is_asked_where_nothing_is_clear():
    assert pairs.clip_pairs("c", (), moving(), [4]) == [] and pairs.clip_pairs("c", (4,), moving(), [4]) == []
    assert {r["family"] for r in pairs.clip_pairs("c", (), moving(chin=("down", 1.)).assign(concentration=.5), [4])} == set()
    assert {r["family"] for r in pairs.clip_pairs("c", (), moving(chin=("left", 1.)), [4])} == {"left or right", "moves or rests"}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.sets(st.sampled_from([1, 2, 4, 6, 12, 17]), max_size=3), st.dictionaries(st.sampled_from(SPOKEN), st.tuples(st.sampled_from(facs.DIRECTIONS), st.floats(.05, 1.)), max_size=5))
def test_every_pair_has_one_yes_and_one_no(seed, aus, how):
    rows = pd.DataFrame(pairs.clip_pairs("c", tuple(sorted(aus)), moving(**how), [1, 2, 4, 6, 12, 17], seed), columns=["clip", "family", "pair", "question", "answer"])
    assert all(sorted(part.answer) == ["no", "yes"] and part.question.nunique() == 2 for _, part in rows.groupby("family"))
    assert rows.equals(pd.DataFrame(pairs.clip_pairs("c", tuple(sorted(aus)), moving(**how), [1, 2, 4, 6, 12, 17], seed), columns=rows.columns))


def test_a_table_of_pairs():
    clips = pd.DataFrame(dict(clip=list("abcdef"), corpus="c", subject=list("uvwxyz"), aus=["12", "4", "12", "4", "1+2", ""], color_map=""))
    regions = pd.concat([moving(chin=("down", 1.), left_mouth_corner=("up-right", .9)).assign(clip=c) for c in clips["clip"]])
    asked = pairs.probe_questions(clips, regions)
    assert asked.groupby("family").size().to_dict() == {"action unit": 10, "up or down": 12, "left or right": 12, "moves or rests": 12}
    table = pairs.probe_table({"right": asked.assign(said=asked.answer), "by heart": pairs.by_heart(asked, asked), "yes": asked.assign(said="yes")}, n=50)
    assert table.score["all", "right"] == "200.0" and table.score["all", "yes"] == "50.0" and table.score["left or right", "by heart"] == "200.0" and table.score["chance", "coin"] == "75"
    assert table["95 %"]["all", "right"] == "200–200"
    assert set(pairs.against_habit(asked, pairs.by_heart(asked, asked)).family) <= {"action unit"} and len(pairs.against_habit(asked, asked.assign(said="yes"))) == len(asked)
    with pytest.raises(ValueError, match="There is nothing to ask"): pairs.probe_questions(clips.assign(aus=""), moving().assign(clip="a"))
