"Optical flow and head motion at their edges: bad input, missing weights, exact motions, and the old result to the bit."
import subprocess
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage import data

from mellm import flow as flow_module
from mellm.faces import crop_face, landmarks
from mellm.flow import (HEAD_MOTION, METHODS, Motion, available_methods, estimate_flow, face_motion, head_motion, remove_head_motion, rigid_motion,
                        stable_points)

CLASSICAL = ["tvl1", "dis", "farneback", "deepflow", "pcaflow"]


@pytest.fixture(scope="module")
def face(): return crop_face(data.astronaut(), landmarks(data.astronaut()))[0]


@pytest.fixture(scope="module")
def lm(face): return landmarks(face)


@pytest.fixture
def network(monkeypatch):
    "A stand-in for our own network that finds one pixel of expression to the right and two of the head down; counts its calls."
    calls = []
    def separate(a, b, device="cpu"):
        calls.append(device)
        return np.full((*a.shape, 2), (1, 0), np.float32), np.full((*a.shape, 2), (0, 2), np.float32)
    import mellm
    module = types.SimpleNamespace(separate=separate, available=lambda: True)
    monkeypatch.setitem(sys.modules, "mellm.meflow", module)
    monkeypatch.setattr(mellm, "meflow", module, raising=False)
    return calls


def linear(lm, shift, turn, grow, shape=(224, 224)):
    "The exact field of a similarity around the middle of the landmarks."
    y, x = np.mgrid[:shape[0], :shape[1]] - lm.mean(0)[::-1, None, None]
    return np.stack([shift[0] + grow * x - turn * y, shift[1] + grow * y + turn * x], -1).astype(np.float32)


# Estimation

def test_flow_errors(face):
    with pytest.raises(ValueError, match="224×224 and 100×50"): estimate_flow(face, face[:50, :100])
    with pytest.raises(ValueError, match="'sift' is unknown. Choose one of tvl1"): estimate_flow(face, face, "sift")
    with pytest.raises(ValueError, match="at least 16×16"): estimate_flow(face[:9], face[:9])
    with pytest.raises(ValueError, match="apex frame must be uint8"): estimate_flow(face, face / 255)
    with pytest.raises(ValueError, match="onset frame must be uint8"): estimate_flow(None, face)


@pytest.mark.parametrize("method", CLASSICAL)
def test_flow_points_from_onset_to_apex(face, method):
    apex = np.roll(face, (0, 2), (0, 1)) # everything moves 2 px to the right
    flow = estimate_flow(face, apex, method)
    assert np.abs(np.median(flow, (0, 1)) - [2, 0]).max() < .15
    assert flow.dtype == np.float32 and flow.shape == (224, 224, 2)


@pytest.mark.parametrize("method", CLASSICAL)
def test_grey_and_color_of_odd_size_are_taken(face, method):
    part = face[40:137, 50:161] # 97×111
    assert estimate_flow(part, part[..., 1].copy() * 0 + part[..., 0], method).shape == (97, 111, 2)


def test_pcaflow_refuses_what_would_stop_the_program(face):
    flat = np.full((64, 64), 100, np.uint8)
    with pytest.raises(ValueError, match="no corner to follow in the onset"): estimate_flow(flat, flat, "pcaflow")
    with pytest.raises(ValueError, match="no corner to follow in the apex"): estimate_flow(face[:64, :64], flat, "pcaflow")
    with pytest.raises(ValueError, match="at least 32×32"): estimate_flow(face[:20, :20], face[:20, :20], "pcaflow")


def test_raft_says_what_is_missing(face, monkeypatch, tmp_path):
    flow_module._raft_net.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    with pytest.raises(RuntimeError, match="pip install torchvision"): estimate_flow(face, face, "raft")
    fake = types.ModuleType("torchvision.models.optical_flow")
    fake.raft_small = lambda weights=None: None
    for name in ("torchvision", "torchvision.models"): monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", fake)
    monkeypatch.setattr(flow_module, "_raft_file", lambda: tmp_path / "raft.pth")
    with pytest.raises(RuntimeError, match="needs its weights: download https://download.pytorch.org"): estimate_flow(face, face, "raft")


def test_raft_pads_and_cuts(face, monkeypatch):
    import torch
    seen = []
    def net(a, b):
        seen.append((tuple(a.shape), float(a.min()), float(a.max())))
        return [None, torch.ones(1, 2, *a.shape[2:])]
    monkeypatch.setattr(flow_module, "_raft_net", lambda device: net)
    assert estimate_flow(face[:97, :203], face[:97, :203], "raft").shape == (97, 203, 2)
    assert seen[0][0] == (1, 3, 128, 208) and -1 <= seen[0][1] < seen[0][2] <= 1


def test_available_methods_are_known_and_hold_the_classical_ones(network):
    assert set(CLASSICAL) <= set(available_methods()) <= set(METHODS) and "meflow" in available_methods()


def test_import_is_light():
    code = "import sys, mellm.flow; print([m for m in ('torch', 'torchvision', 'skimage', 'matplotlib', 'dlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# Head motion

def test_head_motion_errors(lm):
    flow = np.zeros((9, 9, 2), np.float32)
    with pytest.raises(ValueError, match="'neck' is unknown"): remove_head_motion(flow, np.zeros((68, 2)), "neck")
    with pytest.raises(ValueError, match=r"not \(5, 2\)"): head_motion(flow, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="outside the 9×9 flow"): head_motion(flow, np.full((68, 2), 50.))
    with pytest.raises(ValueError, match="of the points that tell the head's motion lie in the 9×9"): rigid_motion(flow, lm)
    with pytest.raises(ValueError, match="'helix' is unknown. Choose similarity or affine"): rigid_motion(np.zeros((224, 224, 2), np.float32), lm, "helix")
    with pytest.raises(ValueError, match="NaN"): rigid_motion(np.full((224, 224, 2), np.nan, np.float32), lm)
    with pytest.raises(ValueError, match="needs head, the head flow"): remove_head_motion(flow, lm, "learned")
    with pytest.raises(ValueError, match=r"\(9, 9, 2\) and \(9, 8, 2\)|\(9, 8, 2\) and \(9, 9, 2\)"): remove_head_motion(flow, lm, "learned", flow[:, :8])


def test_head_motion_window_is_clipped_at_the_border():
    flow = np.random.default_rng(0).normal(size=(20, 20, 2)).astype(np.float32)
    at = lambda x, y: np.full((68, 2), (x, y), float)
    assert np.array_equal(head_motion(flow, at(2.9, 19)), flow[14:20, 0:8].mean((0, 1)))
    assert np.array_equal(head_motion(flow, at(10, 10)), flow[5:16, 5:16].mean((0, 1)))


@given(st.tuples(*[st.floats(-5, 5)] * 2), st.floats(-.05, .05), st.floats(-.05, .05), st.sampled_from(["similarity", "affine"]))
@settings(max_examples=20, deadline=None)
def test_rigid_motion_is_exact_on_a_similarity(lm, shift, turn, grow, model):
    field = linear(lm, shift, turn, grow)
    assert np.abs(rigid_motion(field, lm, model) - field).max() < .03


def test_rigid_motion_is_not_spoilt_by_some_moving_points(lm):
    field = linear(lm, (1, -.5), .01, 0)
    brows = field.copy()
    x, y = np.round(stable_points(lm)[7:12]).astype(int).T
    for i, j in zip(x, y): brows[max(j - 4, 0):j + 5, i - 4:i + 5] += (0, -3) # the forehead is pulled up by three pixels
    assert np.abs(rigid_motion(brows, lm) - field).max() < .2


def test_rigid_motion_works_with_points_outside_of_the_picture(lm):
    low = lm - (0, 60) # the forehead is cut off
    field = linear(low, (.7, .2), .02, .01)
    assert np.abs(rigid_motion(field, low) - field).max() < .03


def test_none_changes_nothing_and_nothing_changes_its_input(lm):
    flow = linear(lm, (1, 2), .01, .01)
    kept = flow.copy()
    for method in ("nose", "rigid", "none"): assert remove_head_motion(flow, lm, method) is not flow
    assert np.array_equal(flow, kept) and np.array_equal(remove_head_motion(flow, lm, "none"), flow)
    assert np.abs(remove_head_motion(flow, lm, "learned", flow)).max() == 0


# Both

@pytest.mark.parametrize("head", ["nose", "rigid", "none"])
def test_face_motion_is_the_two_steps(face, lm, head):
    apex = np.roll(face, 1, 1)
    motion = face_motion(face, apex, lm, "dis", head)
    assert np.array_equal(motion.expression, remove_head_motion(estimate_flow(face, apex, "dis"), lm, head))
    assert motion.head.shape == motion.flow.shape == (224, 224, 2) and motion.head.dtype == motion.flow.dtype == np.float32


def test_face_motion_runs_the_network_once(face, lm, network):
    motion = face_motion(face, face, lm, "meflow", "learned", device="there")
    assert network == ["there"] and (motion.expression == (1, 0)).all() and (motion.flow == (1, 2)).all() and (motion.head == (0, 2)).all()
    assert isinstance(motion, Motion)


def test_face_motion_mixes_networks_and_classics(face, lm, network):
    assert (face_motion(face, face, lm, "dis", "learned").head == (0, 2)).all()
    assert (face_motion(face, face, lm, "meflow", "none").expression == (1, 2)).all()
    assert np.abs(face_motion(face, face, lm, "meflow", "nose").expression).max() == 0
    assert len(network) == 3


def test_face_motion_errors(face, lm, network):
    with pytest.raises(ValueError, match="'neck' is unknown"): face_motion(face, face, lm, head_motion="neck")
    with pytest.raises(ValueError, match="'sift' is unknown"): face_motion(face, face, lm, "sift", "learned")
    with pytest.raises(ValueError, match="same size"): face_motion(face, face[:100], lm, "meflow", "learned")
    assert set(HEAD_MOTION) == {"nose", "rigid", "learned", "none"}
