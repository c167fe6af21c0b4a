"""The table of clips: checks find what is wrong, no person is in two parts, the stage writes what it promises."""
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mellm import data
from mellm.corpora import CorpusError
from mellm.study import Study, read_table, resolve

people = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["s1", "s2", "01", "1", "s3"]), st.sampled_from(["negative", "positive", "surprise", ""]))


@settings(deadline=None, max_examples=60)
@given(st.lists(people, min_size=1, max_size=40), st.floats(.01, .99), st.integers(0, 2**31))
def test_no_person_is_in_two_parts(rows, share, seed):
    clips = pd.DataFrame(rows, columns=["corpus", "subject", "emotion3"])
    if clips.groupby(["corpus", "subject"]).ngroups < 2:
        with pytest.raises(ValueError, match="at least two subjects"): data.split_subjects(clips, share, seed)
        return
    parts = data.split_subjects(clips, share, seed)
    assert parts.groupby(["corpus", "subject"]).split.nunique().max() == 1 and set(parts.split) == {"train", "test"}
    assert parts.drop(columns="split").equals(clips) and data.split_subjects(clips, share, seed).equals(parts)
    order = np.random.default_rng(seed).permutation(len(clips))
    assert data.split_subjects(clips.iloc[order], share, seed).sort_index().equals(parts)


@settings(deadline=None, max_examples=30)
@given(st.lists(people, min_size=1, max_size=30), st.integers(0, 1000))
def test_held_out_subjects_are_never_trained_on(rows, seed):
    clips = pd.DataFrame([*rows, ("a", "x", ""), ("a", "y", ""), ("a", "held", "")], columns=["corpus", "subject", "emotion3"])
    parts = data.split_subjects(clips, .3, seed, always_test=("held",))
    assert set(parts.split[parts.subject == "held"]) == {"test"} and (parts.split == "train").any()


def test_split_is_even_where_it_can_be():
    clips = pd.DataFrame([("c", f"s{i}", e) for i in range(12) for e in (["negative", "positive"] if i % 3 else ["surprise", "negative"])], columns=["corpus", "subject", "emotion3"])
    for seed in range(5):
        parts = data.split_subjects(clips, .34, seed)
        assert parts.groupby("split").emotion3.nunique().eq(3).all() and parts.subject[parts.split == "test"].nunique() == 4


@pytest.mark.parametrize("share", [0, 1, -1, 2])
def test_impossible_share(share):
    with pytest.raises(ValueError, match="between 0 and 1"): data.split_subjects(pd.DataFrame({"corpus": ["a"], "subject": ["b"], "emotion3": [""]}), share, 0)


@pytest.fixture
def clips(tmp_path):
    rows = []
    for n in range(6):
        for part in ("onset", "apex"): Image.fromarray(np.full((8, 8), 20 * n, np.uint8)).save(tmp_path / f"{n}_{part}.png")
        rows.append(dict(corpus="toy", subject=f"s{n // 2}", clip=f"c{n}", onset=10, apex=15, offset=30, apex_source="annotated", fps=200, aus="12", emotion="happiness", emotion3="positive",
                         onset_path=f"{n}_onset.png", apex_path=f"{n}_apex.png", source_row=n + 2))
    return pd.DataFrame(rows)


def test_a_good_table_has_an_empty_report(clips, tmp_path):
    report = data.validate_clips(clips, tmp_path)
    assert report.empty and list(report.columns) == ["file", "row", "clip", "problem", "done"]
    assert len(data.usable(clips, report)) == 6


@pytest.mark.parametrize("column, value, said, done", [
    ("apex", 9, "apex 9 is not after onset 10", "left out"), ("apex", 10, "not after onset", "left out"), ("apex", 31, "apex 31 is after offset 30", "kept"), ("offset", 5, "after offset 5", "kept"),
    ("apex_path", "no.png", "no file 'no.png'", "left out"), ("onset_path", "", "no picture of the onset", "left out"), ("onset_path", None, "no picture of the onset", "left out"), ("apex_path", "2_onset.png", "same file", "left out"),
    ("apex_path", "", "no picture of the apex", "left out"),
    ("subject", " ", "subject is empty", "left out"), ("clip", "c0", "'c0' is there already", "left out")])
def test_the_report_finds_it(clips, tmp_path, column, value, said, done):
    clips.loc[2, column] = value
    report = data.validate_clips(clips, tmp_path)
    assert list(report.row) == [4] and said in report.problem[0] and report.done[0].startswith(done)
    kept = data.usable(clips, report)
    assert len(kept) == (5 if done == "left out" else 6) and (column == "clip") == (done == "left out" and "c2" not in set(clips["clip"]))


@pytest.mark.parametrize("emotion, said", [("hapiness", "unknown emotion 'hapiness'"), ("", "no emotion"), (None, "no emotion")])
def test_labels_are_looked_at_where_no_class_is_known(clips, tmp_path, emotion, said):
    clips.loc[2, ["emotion", "emotion3"]] = emotion, ""
    report = data.validate_clips(clips, tmp_path, "codes.xlsx")
    assert list(report.row) == [4] and said in report.problem[0] and report.done[0].startswith("kept") and report.file[0] == "codes.xlsx"
    assert data.validate_clips(clips.assign(emotion3="negative"), tmp_path).empty, "SMIC has classes and no emotions"


def test_a_missing_apex_is_named_as_such(clips, tmp_path):
    clips.loc[2, ["apex_path", "apex_source"]] = "", "missing"
    report = data.validate_clips(clips, tmp_path)
    assert list(report.problem) == ["the apex is not annotated, and there are no frames to estimate it from"] and len(data.usable(clips, report)) == 5


def test_reports_are_joined_without_saying_things_twice(clips, tmp_path):
    clips.loc[1, "offset"] = 3
    clips.loc[2, "apex_path"] = "no.png"
    own = data.validate_clips(clips, tmp_path)
    reader = pd.DataFrame([dict(file="a.xlsx", row=3, clip="c1", problem="offset 3 is before the apex", done="kept")], columns=list(data.REPORT))
    assert list(data.join_reports(reader, own).problem.str[:6]) == ["offset", "apex_p"]
    assert list(data.join_reports(reader.iloc[:0], own)["clip"]) == ["c1", "c2"] and data.join_reports(reader.iloc[:0], own.iloc[:0]).empty


def test_unknown_frame_numbers_are_fine(clips, tmp_path):
    clips[["onset", "apex", "offset"]] = pd.NA
    assert data.validate_clips(clips, tmp_path).empty


def test_not_a_table_of_clips(clips, tmp_path):
    with pytest.raises(ValueError, match="lacks aus, emotion"): data.validate_clips(clips.drop(columns=["aus", "emotion"]))
    clips["onset_path"] = "gone.png"
    with pytest.raises(ValueError, match="No usable clip remains of 6.*row 2.*gone.png"): data.usable(clips, data.validate_clips(clips, tmp_path))


def test_stage_on_the_synthetic_corpus(tmp_path):
    study = Study(name="t", subjects=3, clips_per_subject=3, workers=1, runs=str(tmp_path))
    folder = data.build(study)
    made = read_table(folder / "clips.csv")
    assert list(made.columns) == list(data.COLUMNS) and len(made) == 12 and made["clip"].is_unique
    assert all(resolve(study, p).is_file() and p.startswith("data/") for p in [*made.onset_path, *made.apex_path])
    assert set(made.split[made.subject == "astronaut"]) == {"test"} and made.groupby("subject").split.nunique().max() == 1
    truth = data.truth_of(study, made["clip"][0])
    assert truth["flow"].shape == truth["head"].shape and truth["flow"].shape[2] == 2 and data.truth_of(study, "no such clip") is None
    table = data.count_table(made)
    assert table.loc["all", "clips"].sum() == 12 and table.loc["all", "subjects"].sum() == 4
    before = (folder / "clips.csv").stat().st_mtime_ns
    assert data.build(study) == folder and (folder / "clips.csv").stat().st_mtime_ns == before


def test_stage_on_a_users_table(clips, tmp_path):
    clips.loc[5, "apex_path"] = "gone.png"
    clips[["subject", "onset_path", "apex_path", "aus", "emotion"]].to_csv(tmp_path / "mine.csv", index=False)
    study = Study(name="t", corpus="table", annotation=str(tmp_path / "mine.csv"), runs=str(tmp_path / "runs"))
    folder = data.build(study)
    made, report = read_table(folder / "clips.csv"), read_table(folder / "report.csv")
    assert len(made) == 5 and set(report.row) == {7} and report.done.iloc[-1] == data.LEFT_OUT and all(resolve(study, p).is_file() for p in made.apex_path)


@pytest.mark.parametrize("name, source", [("smic", "estimated"), ("casme3", "annotated")])
def test_stage_on_a_licensed_layout(tmp_path, name, source):
    from mellm.synth import write_corpus
    write_corpus(name, tmp_path / name, seed=1, subjects=2, clips=4, workers=1)
    study = Study(name="t", corpus=name, root=str(tmp_path / name), workers=1, runs=str(tmp_path / "runs"))
    made = read_table(data.build(study) / "clips.csv")
    assert list(made.columns) == list(data.COLUMNS) and len(made) == 4 and set(made.apex_source) == {source} and set(made.split) == {"train", "test"}
    assert all(resolve(study, p).is_file() for p in [*made.onset_path, *made.apex_path]) and (made.apex > made.onset).all()
    assert all(resolve(study, c.frames.format(n=c.onset)) == resolve(study, c.onset_path) for c in made.itertuples())


def test_codes_without_frames_are_no_study(tmp_path):
    from mellm.synth import write_corpus
    sheet = write_corpus("casme3", tmp_path / "casme3", seed=1, subjects=2, clips=2, workers=1)
    study = Study(name="t", corpus="casme3", annotation=str(sheet), runs=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match="No usable clip remains of 2.*there is no picture of the onset"): data.build(study)


def test_a_failed_stage_leaves_no_result(tmp_path):
    study = Study(name="t", corpus="casme2", root=str(tmp_path / "none"), runs=str(tmp_path / "runs"))
    with pytest.raises(CorpusError, match="does not exist"): data.build(study)
    assert not (tmp_path / "runs" / "t" / "data").exists()


def test_flipbook_is_a_small_looping_gif():
    frames = [np.full((40, 60, 3), 40 * i, np.uint8) for i in range(5)]
    with Image.open(io.BytesIO(data.flipbook(frames))) as gif: assert gif.format == "GIF" and gif.n_frames == 5 and gif.size == (60, 40) and gif.info["loop"] == 0


def test_one_of_each_takes_different_people(clips):
    clips["emotion3"] = ["negative", "positive", "surprise"] * 2
    assert set(data.one_of_each(clips).emotion3) == {"negative", "positive", "surprise"}
    assert len(data.one_of_each(clips.assign(emotion3=""))) == 1


def test_a_corrected_annotation_file_is_read_again(clips, tmp_path):
    write = lambda c: c[["subject", "onset_path", "apex_path", "aus", "emotion"]].to_csv(tmp_path / "mine.csv", index=False)
    study = Study(name="t", corpus="table", annotation=str(tmp_path / "mine.csv"), runs=str(tmp_path / "runs"))
    write(clips)
    first = read_table(data.build(study) / "clips.csv")
    write(clips.assign(emotion="surprise"))
    second = read_table(data.build(study) / "clips.csv")
    assert set(first.emotion3) == {"positive"} and set(second.emotion3) == {"surprise"}
