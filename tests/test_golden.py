"The published pre-processing, bit for bit: tests/golden holds a pair, its flow and what MELLM makes of them."
from pathlib import Path

import numpy as np
import pytest

from mellm.colormap import clip_map
from mellm.faces import landmarks, read_image
from mellm.flow import estimate_flow, head_motion, remove_head_motion
from mellm.styles import color_map, flow_only

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "golden.npz") as z: arrays = {k: z[k] for k in z.files}
    pair = {k: read_image(GOLDEN / f"{k}.png") for k in ("onset", "apex")}
    return arrays | pair | {"flow": remove_head_motion(arrays["flow_tvl1"], arrays["landmarks"])}


def same(image, name):
    expected = read_image(GOLDEN / name)
    assert image.shape == expected.shape and image.dtype == np.uint8
    different = int((image != expected).any(-1).sum())
    assert different == 0, f"{different} pixels differ from {name}"


def test_landmarks_are_those_of_the_published_code(golden):
    assert np.array_equal(landmarks(golden["onset"]), golden["landmarks"])


def test_nose_motion_is_exact(golden):
    assert np.array_equal(head_motion(golden["flow_tvl1"], golden["landmarks"]), golden["nose_mean"])


@pytest.mark.parametrize("percentile", [0, 80, 95])
def test_v1_color_map_is_exact(golden, percentile):
    same(color_map(golden["onset"], golden["flow"], "v1", percentile), f"v1_colormap_p{percentile}.png")


def test_v1_flow_only_is_exact(golden):
    same(flow_only(golden["flow"]), "v1_flow_only.png")


def test_white_style_is_exact(golden):
    same(color_map(golden["onset"], golden["flow"], "white"), "v3_flow_white.png")


def test_tvl1_estimates_the_published_flow(golden):
    "Another processor may round the iterations of TV-L1 differently, so the estimate is held to a thousandth of a pixel at the 99th percentile."
    error = np.linalg.norm(estimate_flow(golden["onset"], golden["apex"]) - golden["flow_tvl1"], axis=-1)
    assert np.percentile(error, 99) < 1e-3 and error.max() < .1


@pytest.mark.parametrize("method,limit", [("tvl1", .15), ("dis", .15), ("farneback", .45)])
def test_methods_find_the_true_motion(golden, method, limit):
    "The error in the moving region is far below the motion itself, in pixels with x right and y down."
    moving = np.linalg.norm(golden["flow_true"], axis=-1) > .5
    size = np.linalg.norm(golden["flow_true"][moving], axis=-1).mean()
    error = np.linalg.norm(estimate_flow(golden["onset"], golden["apex"], method) - golden["flow_true"], axis=-1)[moving].mean()
    assert error < limit * size


def test_clip_map_reads_the_golden_expression(golden):
    "The truth of the pair: inner brows up, lip corners up and out."
    table = clip_map(golden["onset"], golden["apex"]).regions.set_index("region")
    assert set(table.direction[["left_inner_brow", "right_inner_brow"]]) == {"up"}
    assert table.direction["left_mouth_corner"] == "up-right" and table.direction["right_mouth_corner"] == "up-left"
    assert (table.strength[["left_inner_brow", "right_inner_brow", "left_mouth_corner", "right_mouth_corner"]] == "strong").all()
    assert table.strength["left_outer_brow"] == "none"
