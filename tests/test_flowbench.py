"FlowBench: cases as promised, scores that mean what they say, tables, the command, and bad input."
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from skimage import data

from mellm import flowbench
from mellm.capture import Capture
from mellm.faces import mirror_landmarks, landmarks
from mellm.flowbench import (BENCH, CODINGS, COLUMNS, CONDITIONS, PER_PERSON, STILL, bench, bench_case, bench_pairs, breakdown, estimate, face_area, length, main, make_case,
                             moving_region, photo_case, photo_faces, plot_cost, read_frames, score, summary)
from mellm.portrait import draw, sample_identity

CHEAP = ("dis", "farneback")


@pytest.fixture(scope="module")
def case(): return bench_case(3)


@pytest.fixture(scope="module")
def astronaut(): return [("astronaut", data.astronaut(), landmarks(data.astronaut()))]


@pytest.fixture(scope="module")
def rows(astronaut): return bench(4, 2, astronaut, CHEAP, workers=1)


# Cases

def test_the_same_number_gives_the_same_case(case):
    again = bench_case(3)
    assert all(np.array_equal(getattr(case, k), getattr(again, k)) for k in ("onset", "apex", "flow", "moving", "landmarks"))
    assert not np.array_equal(case.onset, bench_case(3, seed=1).apex)


def test_cases_have_the_size_that_was_asked_for():
    sizes = [c.size for c in bench_pairs(6)]
    asked = [.1*30**((.5 + i*.6180339887) % 1) for i in range(6)]
    assert np.allclose(sizes, asked, rtol=.1)


def test_sizes_of_many_cases_are_even_on_a_logarithmic_scale():
    targets = np.array([flowbench._mixed(i, 0)[2] for i in range(300)])
    assert targets.min() > .0999 and targets.max() < 3.001
    assert np.ptp(np.histogram(np.log(targets), 5)[0]) <= 4


def test_conditions_and_codings_mix():
    mixed = [flowbench._mixed(i, 0)[:2] for i in range(300)]
    assert {condition for condition, _ in mixed} == set(CONDITIONS) and {coding for _, coding in mixed} == set(CODINGS)
    assert len(set(mixed)) > 200


def test_people_are_not_those_of_the_training_or_of_the_corpora(case):
    assert BENCH >= 900_000_000 and case.subject == str(BENCH + 3//PER_PERSON)
    assert flowbench.TUNE < BENCH - 1_000_000


def test_all_conditions_move_the_head(): assert all(c.shift > 0 and c.roll > 0 for c in CONDITIONS.values())


def test_a_case_is_whole(case):
    h, w = case.onset.shape
    assert case.onset.dtype == case.apex.dtype == np.uint8 and case.flow.shape == case.head.shape == case.expression.shape == (h, w, 2) == (224, 224, 2)
    assert case.moving.any() and not (case.moving & ~case.seen).any() and case.landmarks.shape == (68, 2)
    assert np.isclose(case.size, length(case.flow)[case.moving].mean())


def test_the_truth_explains_the_apex():
    from mellm.motion import pull
    face = draw(sample_identity(BENCH), 224)
    still = Capture(shift=.01, noise=0.)
    c = make_case(face, "one", "12", still, np.random.default_rng(0), target=1.)
    left = np.abs(pull(c.apex.astype(np.float32), c.flow) - c.onset)[c.moving].mean()
    assert left < .35 * np.abs(c.apex.astype(float) - c.onset)[c.moving].mean()


def test_a_monochrome_camera_gives_grey(): assert bench_case(list(CONDITIONS).index("samm")).onset.ndim == 2


def test_one_sided_codings_move_one_side():
    face = draw(sample_identity(BENCH), 224)
    c = make_case(face, "one", "L12", Capture(shift=0, roll=0, scale=0), np.random.default_rng(0), target=1.)
    left = c.moving[:, 112:].sum() # the subject's left is on the image's right
    assert left > 3*c.moving[:, :112].sum()


# Photographs

def test_mirroring_landmarks_twice_changes_nothing(astronaut):
    image, lm = astronaut[0][1:]
    mirrored = mirror_landmarks(lm, image.shape[1])
    assert np.allclose(mirror_landmarks(mirrored, image.shape[1]), lm)
    assert np.abs(mirrored - landmarks(np.ascontiguousarray(image[:, ::-1]))).mean() < 4


def test_photographs_are_moved_with_known_motion(astronaut):
    c = photo_case(4, *astronaut[0])
    assert c.subject == "astronaut" and c.onset.shape == (224, 224) and .09 < c.size < 3.3 and c.moving.any()
    assert np.array_equal(c.apex, photo_case(4, *astronaut[0]).apex)


def test_a_folder_of_photographs(tmp_path, astronaut, capsys):
    face = cv2.cvtColor(astronaut[0][1], cv2.COLOR_RGB2BGR)
    for name in ("ann1.png", "ann_2.png", "7.png"): cv2.imwrite(str(tmp_path/name), face)
    cv2.imwrite(str(tmp_path/"wall.png"), np.full((90, 90), 200, np.uint8))
    (tmp_path/"notes.txt").write_text("no picture")
    assert [name for name, *_ in photo_faces(tmp_path)] == ["astronaut", "7", "ann", "ann"]
    assert "wall: no face" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no folder of photographs"): photo_faces(tmp_path/"none")


def test_frames_of_a_video(tmp_path):
    film = cv2.VideoWriter(str(tmp_path/"film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for n in range(10): film.write(np.full((48, 64, 3), (0, 0, 20*n), np.uint8)) # redder and redder
    film.release()
    frames = read_frames(tmp_path/"film.avi", [0, 9, 40], parts=[.5])
    assert sorted(frames) == [0, 5, 9] and frames[9].shape == (48, 64, 3)
    assert abs(int(frames[9][0, 0, 0]) - 180) < 12 and frames[9][0, 0, 2] < 12 # red is the first channel
    (tmp_path/"not.mp4").write_text("no film")
    with pytest.raises(ValueError, match="not.mp4 cannot be read as a video"): read_frames(tmp_path/"not.mp4", [0])


# Scores

def test_a_perfect_estimate_has_no_error(case):
    found = score(case, case.flow, case.head)
    assert max(found[k] for k in ("epe", "moving", "off", "head")) < 1e-5 and found["angle"] < .1
    assert found["expression"] < .01 # the head moves the expression along: their sum is the flow but for a thousandth of a pixel


@given(st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=15, deadline=None)
def test_a_shift_of_the_estimate_is_its_error(case, dx, dy):
    found, far = score(case, case.flow + np.float32([dx, dy]), case.head), np.hypot(dx, dy)
    assert np.isclose(found["epe"], far, atol=1e-4) and np.isclose(found["moving"], far, atol=1e-4)
    if abs(far - .3) > .01: assert found["off"] == (100 if far > .3 else 0)


def test_angles_are_between_vectors(case):
    assert np.isclose(score(case, -case.flow, case.head)["angle"], 180, atol=.1)
    assert np.isclose(score(case, case.flow[..., ::-1]*np.float32([1, -1]), case.head)["angle"], 90, atol=.1)
    assert np.isnan(score(case, 0*case.flow, case.head)["angle"]) # no direction, no angle


def test_moving_region_leaves_out_what_is_hidden():
    field, hidden = np.zeros((20, 20, 2), np.float32), np.zeros((20, 20), bool)
    field[5:10, 5:10], field[15, 15], hidden[5] = (0, 2), (.1, 0), True
    assert moving_region(field, hidden).sum() == 20 and not moving_region(0*field, hidden).any()


def test_face_area_holds_the_nose(case):
    x, y = case.landmarks[30].astype(int)
    assert face_area(case.landmarks, (224, 224))[y, x] and not face_area(case.landmarks, (224, 224))[0, 0]


# Tables

def test_rows_are_complete(rows):
    assert len(rows) == 6*3 and list(rows["method"].unique()) == [STILL, *CHEAP] and set(rows["source"]) == {"drawn", "photo"}
    assert np.isfinite(rows[["epe", "moving", "off", "head", "expression", "size"]].to_numpy()).all() and (rows.loc[rows["method"] != STILL, "ms"] > 0).all()


def test_workers_do_not_change_the_result(rows, astronaut):
    two = bench(4, 2, astronaut, CHEAP, workers=2)
    assert two.drop(columns="ms").equals(rows.drop(columns="ms"))


def test_summary_is_a_mean_over_pairs(rows):
    table = summary(rows)
    assert np.isclose(table.loc["dis", COLUMNS["moving"]], rows.loc[rows["method"] == "dis", "moving"].mean())
    assert (table[COLUMNS["low"]] <= table[COLUMNS["moving"]]).all() and (table[COLUMNS["moving"]] <= table[COLUMNS["high"]]).all()
    assert COLUMNS["ratio"] not in table # TV-L1 was not asked for
    fake = pd.concat([rows, rows[rows["method"] == "dis"].assign(method="tvl1", ms=1e4, moving=1.)])
    assert np.isclose(summary(fake).loc["dis", COLUMNS["ratio"]], table.loc["dis", COLUMNS["moving"]]) and summary(fake).loc["dis", COLUMNS["faster"]] > 10


def test_an_interval_needs_three_people(rows):
    assert summary(rows[rows["source"] == "photo"])[COLUMNS["low"]].isna().all()


def test_breakdowns_count_pairs(rows):
    assert breakdown(rows, "size")["pairs"].sum() == breakdown(rows, "condition")["pairs"].sum() == 6
    aus = breakdown(rows, "aus")
    assert aus.index.is_monotonic_increasing and aus["pairs"].sum() == rows.loc[rows["method"] == "dis", "aus"].str.split("+").str.len().sum()
    with pytest.raises(ValueError, match="by 'moon' is unknown"): breakdown(rows, "moon")


def test_plot_of_cost(rows):
    fig = plot_cost({"all": summary(rows), "photographs": summary(rows[rows["source"] == "photo"])})
    assert len(fig.axes) == 2 and {t.get_text() for t in fig.axes[0].texts} == set(CHEAP)


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="at least one pair"): bench(0, 0)


# The command

def test_command_prints_tables_and_writes_rows(tmp_path, capsys):
    assert main(["--pairs", "2", "--photo-pairs", "0", "--methods", "farneback", "--workers", "1", "--out", str(tmp_path/"rows.csv")]) == 0
    out = capsys.readouterr().out
    assert "drawn: 2 pairs, 1 people" in out and "farneback" in out and "by size" in out
    assert len(pd.read_csv(tmp_path/"rows.csv")) == 4


def test_command_says_what_is_wrong(capsys, tmp_path):
    assert main(["--pairs", "1", "--photo-pairs", "0", "--methods", "sift", "--workers", "1"]) == 2 and "'sift' is unknown" in capsys.readouterr().err
    assert main(["--pairs", "0", "--photo-pairs", "1", "--photos", str(tmp_path/"none")]) == 2 and "no folder of photographs" in capsys.readouterr().err
    assert main(["--pairs", "0", "--photo-pairs", "0"]) == 2


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "mellm.flowbench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--photos" in done.stdout
