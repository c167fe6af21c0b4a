"""Our flow network: shapes, sizes, light, bad input, weights."""
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mellm import meflow
from mellm.capture import Pose, take
from mellm.portrait import draw, sample_identity

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pair():
    face = draw(sample_identity(850), 224)
    moved = take(face, {1: 1., 2: 1., 12: 1.}, Pose(shift=(.01, .01), roll=.4))
    grey = lambda image: cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    return grey(face.image), grey(moved.image), moved


def error(guess, truth, where=...): return float(np.hypot(*(guess - truth).transpose(2, 0, 1))[where].mean())


def moving(flow):
    length = np.hypot(*flow.transpose(2, 0, 1))
    return length > .1 * length.max()


def test_expression_and_head_are_told_apart(pair):
    onset, apex, moved = pair
    expression, head = meflow.separate(onset, apex)
    assert expression.shape == head.shape == (224, 224, 2) and expression.dtype == head.dtype == np.float32
    still, where = np.zeros_like(moved.flow), moving(moved.expression)
    assert error(expression, moved.expression, where) < .5 * error(still, moved.expression, where)
    assert error(head, moved.head, where) < .5 * error(still, moved.head, where)
    assert error(expression + head, moved.flow, where) < .25 * error(still, moved.flow, where)


def test_a_still_face_stays_still(pair):
    expression, head = meflow.separate(pair[0], pair[0])
    assert np.abs(expression).mean() < .05 and np.abs(head).mean() < .05


def test_a_change_of_brightness_is_no_motion(pair):
    onset, apex, moved = pair
    plain = sum(meflow.separate(onset, apex))
    darker = sum(meflow.separate(onset, np.uint8(apex * .85)))
    assert error(plain, darker) < .05


def test_a_stack_gives_what_its_pairs_give(pair):
    onset, apex, _ = pair
    many = meflow.separate(np.stack([onset, apex, onset]), np.stack([apex, onset, onset]), batch=2)
    one = meflow.separate(onset, apex)
    for a, b in zip(many, one): assert a.shape == (3, 224, 224, 2) and np.allclose(a[0], b, atol=2e-3)


@pytest.mark.parametrize("size", [(448, 448), (150, 112), (240, 320), (96, 96)])
def test_other_sizes_are_brought_near_and_scaled_back(pair, size):
    onset, apex, moved = pair
    pictures = [cv2.resize(i, size[::-1], interpolation=cv2.INTER_AREA if size[0] < 224 else cv2.INTER_CUBIC) for i in (onset, apex)]
    flow = sum(meflow.separate(*pictures))
    scale = np.float32([size[1] / 224, size[0] / 224])
    truth = cv2.resize(moved.flow, size[::-1], interpolation=cv2.INTER_AREA) * scale
    assert flow.shape == truth.shape
    assert error(flow / scale, truth / scale, moving(truth)) < .6 * error(0 * truth, truth / scale, moving(truth))


@settings(max_examples=12, deadline=None)
@given(st.integers(16, 70), st.integers(16, 70), st.integers(0, 2**32 - 1))
def test_any_picture_gives_finite_numbers(height, width, seed):
    a, b = np.random.default_rng(seed).integers(0, 256, (2, height, width), dtype=np.uint8)
    for flow in meflow.separate(a, b): assert flow.shape == (height, width, 2) and np.isfinite(flow).all()


@pytest.mark.parametrize("value", [0, 255])
def test_an_empty_picture_gives_finite_numbers(value):
    flat = np.full((64, 64), value, np.uint8)
    for flow in meflow.separate(flat, flat): assert np.isfinite(flow).all()


@pytest.mark.parametrize("onset, apex", [(np.zeros((64, 64)), np.zeros((64, 64))), (np.zeros((64, 64), np.uint8), np.zeros((64, 60), np.uint8)), (np.zeros((8, 64), np.uint8),) * 2,
                                         (np.zeros((2, 64, 64, 3), np.uint8),) * 2, (np.zeros(64, np.uint8),) * 2])
def test_pictures_that_do_not_fit_are_refused(onset, apex):
    with pytest.raises(ValueError, match="two grey uint8 pictures"): meflow.separate(onset, apex)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="mellm.flowtrain"): meflow.load("cpu", str(tmp_path))


def test_weights_survive_saving(tmp_path):
    model = meflow.load()
    again = meflow.load("cpu", str(meflow.save(model, tmp_path)))
    assert again.rounds == model.rounds
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_shipped_weights_are_small_and_have_a_card():
    folder = meflow.weights_folder()
    assert meflow.available() and (folder / "model.safetensors").stat().st_size <= 8e6
    card = json.loads((folder / "card.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in meflow.load().parameters())
    assert {"plan", "curve", "minutes", "device", "pairs", "held"} <= set(card)


def test_importing_does_not_load_torch():
    code = "import sys, mellm.meflow, mellm.flowtrain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
