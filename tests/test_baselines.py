"Histograms of known flows, majority and SVM on separable flows, and the check that keeps test subjects out of training."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm.baselines import BASELINES, LeakError, check_leak, flow_histogram, histograms, load_flow, majority, svm
from mellm.facs import DIRECTIONS
from mellm.study import Study

STUDY = Study(name="test")


def table(folder, subjects, recipe, split="train", corpus="made up"):
    "Clips of subjects whose motion is `recipe`: rows of (aus, emotion3, direction word)."
    rows = []
    for subject in subjects:
        for n, (aus, emotion, word) in enumerate(recipe):
            turn = np.radians(45 * DIRECTIONS.index(word))
            flow = np.random.default_rng(len(rows)).normal(0, .02, (16, 16, 2))
            flow[:8] += np.cos(turn), np.sin(turn)
            path = folder / f"{corpus}_{subject}_{n}.npz"
            np.savez_compressed(path, flow=flow.astype(np.float16))
            rows.append(dict(corpus=corpus, subject=subject, clip=path.stem, aus=aus, emotion3=emotion, flow=str(path), split=split))
    return pd.DataFrame(rows)


RECIPE = [("1+2", "surprise", "up"), ("4", "negative", "down"), ("4+9", "negative", "down-right"), ("12", "positive", "up-right")]


@pytest.fixture
def clips(tmp_path): return table(tmp_path, ["a", "b", "c", "d"], RECIPE), table(tmp_path, ["y", "z"], RECIPE, "test")


# --- histogram -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("word", DIRECTIONS)
def test_every_direction_has_its_bin(word):
    turn = np.radians(45 * DIRECTIONS.index(word))
    flow = np.zeros((20, 20, 2))
    flow[5:10, 15:] = 2.5 * np.cos(turn), 2.5 * np.sin(turn)      # the second row of cells, the last column
    shares = flow_histogram(flow).reshape(4, 4, 8)
    assert shares[1, 3, DIRECTIONS.index(word)] == pytest.approx(1)


def test_longer_motion_weighs_more():
    flow = np.zeros((8, 8, 2))
    flow[:4], flow[4:] = (3, 0), (0, 1)
    shares = flow_histogram(flow, grid=1)
    assert shares[DIRECTIONS.index("right")] == pytest.approx(.75) and shares[DIRECTIONS.index("down")] == pytest.approx(.25)


def test_still_flow_is_zero_and_sizes_follow():
    assert not flow_histogram(np.zeros((9, 7, 2))).any()
    assert flow_histogram(np.ones((30, 31, 2)), grid=5, bins=12).shape == (300,)


@pytest.mark.parametrize("flow,said", [(np.zeros((8, 8)), "shape"), (np.zeros((8, 8, 3)), "shape"), (np.full((8, 8, 2), np.nan), "not finite")])
def test_what_is_no_flow_is_refused(flow, said):
    with pytest.raises(ValueError, match=said): flow_histogram(flow)


@given(st.integers(0, 2**32 - 1), st.floats(.01, 100), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_shares_add_up_and_ignore_strength(seed, factor, grid):
    flow = np.random.default_rng(seed).normal(0, 1, (17, 13, 2))
    shares = flow_histogram(flow, grid)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    assert shares == pytest.approx(flow_histogram(flow * factor, grid))


# --- leaks -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", BASELINES)
def test_a_test_subject_in_training_stops_every_baseline(clips, method):
    train, test = clips
    with pytest.raises(LeakError, match="1 of the 2 test subjects.*made up/z"): BASELINES[method](pd.concat([train, test[test.subject == "z"].iloc[:1]]), test, STUDY)


def test_rows_of_the_test_split_are_refused_for_training(clips):
    train, test = clips
    with pytest.raises(LeakError, match="4 clips of the test split"): check_leak(pd.concat([train, test[test.subject == "z"]]), test[test.subject == "y"])


def test_one_name_in_two_corpora_is_two_people(tmp_path):
    check_leak(table(tmp_path, ["01"], RECIPE, corpus="a"), table(tmp_path, ["01"], RECIPE, "test", corpus="b"))
    with pytest.raises(LeakError): check_leak(table(tmp_path, ["01"], RECIPE), table(tmp_path, ["01"], RECIPE, "test"))


# --- baselines -------------------------------------------------------------------------------------------------------

def test_majority(clips):
    train, test = clips
    said = majority(train, test)
    assert said.index.equals(test.index)
    assert set(said.emotion_pred) == {"negative"} and set(said.aus_pred) == {(1, 2)}  # four sets are equally frequent: the first in order


def test_svm_learns_what_is_there(clips):
    train, test = clips
    said = svm(train, test, STUDY)
    assert said.emotion_pred.tolist() == test.emotion3.tolist()
    assert said.aus_pred.tolist() == [(1, 2), (4,), (4, 9), (12,)] * 2


@pytest.mark.parametrize("method", BASELINES)
def test_clips_without_annotation_teach_nothing(clips, method):
    train, test = clips
    odd = train.assign(aus="", emotion3="", corpus="odd", clip=train["clip"] + "_odd")
    first, second = BASELINES[method](train, test, STUDY), BASELINES[method](pd.concat([train, odd], ignore_index=True), test, STUDY)
    assert first.equals(second)


@pytest.mark.parametrize("method", BASELINES)
def test_nothing_annotated_means_no_answer(clips, method):
    train, test = clips
    said = BASELINES[method](train.assign(aus="", emotion3=""), test, STUDY)
    assert said.emotion_pred.tolist() == said.aus_pred.tolist() == [None] * len(test)


def test_a_single_class_needs_no_svm(clips):
    train, test = clips
    said = svm(train.assign(aus="12", emotion3="positive"), test, STUDY)
    assert set(said.emotion_pred) == {"positive"} and set(said.aus_pred) == {(12,)}


def test_flow_files(tmp_path, clips):
    assert histograms(clips[0].iloc[:3], STUDY).shape == (3, 128)
    with pytest.raises(ValueError, match="does not exist"): load_flow(STUDY, str(tmp_path / "none.npz"))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="cut.npz cannot be read"): load_flow(STUDY, str(tmp_path / "cut.npz"))
    np.savez(tmp_path / "other.npz", motion=np.zeros(3))
    with pytest.raises(ValueError, match="other.npz cannot be read"): load_flow(STUDY, str(tmp_path / "other.npz"))


def test_relative_flow_paths_start_at_the_study(tmp_path):
    study = Study(name="here", runs=str(tmp_path))
    (tmp_path / "here").mkdir()
    np.savez(tmp_path / "here" / "f.npz", flow=np.ones((4, 4, 2), np.float16))
    assert load_flow(study, "f.npz").dtype == np.float32


def test_import_stays_light():
    code = "import sys, mellm.baselines; print([m for m in ('sklearn', 'torch', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
