"Closer looks at flow: the DIS sweep, head motion alone, a real video, and pairs per second."
import cv2
import numpy as np
import pytest
from skimage import data

from mellm.flow import estimate_flow
from mellm.flowbench import BENCH, STILL, TUNE, bench_pairs
from mellm.flowchecks import DIS_DEFAULT, DIS_SWEEP, HEADS_MOVE, dis_flow, head_table, sweep_dis, throughput, video_residuals


@pytest.fixture(scope="module")
def cases(): return list(bench_pairs(2, first=TUNE))


def test_the_default_of_the_sweep_is_the_method_of_the_package(cases):
    assert np.array_equal(dis_flow(cases[0].onset, cases[0].apex, **DIS_DEFAULT), estimate_flow(cases[0].onset, cases[0].apex, "dis"))
    assert DIS_SWEEP[0] == {}


def test_the_sweep_measures_what_it_says(cases):
    table = sweep_dis(cases, [{}, dict(finest=2), dict(preset="fast")])
    assert list(table.index) == ["default", "finest 2", "fast"] and (table["ms a pair"] > 0).all()
    truth = np.mean([np.hypot(*np.moveaxis(estimate_flow(c.onset, c.apex, "dis") - c.flow, 2, 0))[c.moving].mean() for c in cases])
    assert np.isclose(table.loc["default", "all [px]"], truth, rtol=1e-5)


def test_tuning_uses_other_people(cases): assert not {c.subject for c in cases} & {str(BENCH + i) for i in range(1000)}


def test_head_table_knows_what_nothing_leaves():
    table = head_table(1)
    assert table.columns.get_level_values(1).nunique() == len(HEADS_MOVE) and not table.isna().any(axis=None)
    off = table["off, over the face"]
    assert (off.loc[("rigid, similarity", "dis")] < off.loc[("none", "dis")]).mean() >= .5


def test_video_residuals(tmp_path):
    face = cv2.cvtColor(data.astronaut(), cv2.COLOR_RGB2BGR)
    film = cv2.VideoWriter(str(tmp_path/"film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (512, 512))
    for n in range(5): film.write(np.roll(face, 2*n, 1)) # the picture slides to the right
    film.release()
    rows = video_residuals(tmp_path/"film.avi", ["dis"], gaps=(1, 3), starts=2)
    table = rows.pivot_table(index="gap", columns="method", values="residual")
    assert len(rows) == 8 and (table["dis"] < .7*table[STILL]).all() and table.loc[3, STILL] > table.loc[1, STILL]
    with pytest.raises(ValueError, match="film.avi has 5 frames; pairs 10 frames apart need more"): video_residuals(tmp_path/"film.avi", ["dis"])
    with pytest.raises(ValueError, match="none.mp4 has 0 frames"): video_residuals(tmp_path/"none.mp4")


def test_throughput_counts_pairs(cases): assert throughput(cases, "farneback", workers=1) > .5
