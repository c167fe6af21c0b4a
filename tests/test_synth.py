"The synthesizer: exact flow, determinism, resume, bad input."
import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mellm import faces, synth


@pytest.fixture(scope="module")
def neutral(): return synth.render(synth.sample_identity(11))


def test_mean_face_is_symmetric():
    face = synth.mean_face()
    mirrored = face * (-1, 1)
    for p in face: assert np.linalg.norm(mirrored - p, axis=1).min() < 1e-9


def test_same_seed_same_person(neutral):
    again = synth.render(synth.sample_identity(11))
    assert (again[0] == neutral[0]).all() and (again[1] == neutral[1]).all()
    assert (synth.render(synth.sample_identity(12))[0] != neutral[0]).any()


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(synth.MOTION)), st.floats(.2, 1), min_size=1, max_size=4), st.integers(0, 1000))
def test_flow_is_exact(neutral, aus, seed):
    "Without noise, the apex pulled back along the flow is the onset."
    img, lm = neutral
    pair = synth.make_pair(img, lm, aus, np.random.default_rng(seed), noise=0)
    yy, xx = np.mgrid[:256, :256].astype(np.float32)
    back = cv2.remap(pair.apex.astype(np.float32), xx + pair.flow[..., 0], yy + pair.flow[..., 1], cv2.INTER_CUBIC)
    error = np.abs(back - img)[10:-10, 10:-10]
    assert error.mean() < 1.0
    assert error.mean() < .35 * np.abs(pair.apex.astype(float) - img)[10:-10, 10:-10].mean() + .4


@pytest.mark.parametrize("au,region,direction", [(1, "left_inner_brow", "up"), (2, "right_outer_brow", "up"), (4, "left_inner_brow", "down-left"), (4, "right_inner_brow", "down-right"),
                                                 (6, "left_cheek", "up"), (9, "right_nostril", "up"), (12, "left_mouth_corner", "up-right"), (12, "right_mouth_corner", "up-left"),
                                                 (15, "left_mouth_corner", "down"), (17, "chin", "up")])
def test_direction_of_each_unit(neutral, au, region, direction):
    from mellm.colormap import region_motion
    img, lm = neutral
    motion = region_motion(synth.expression_flow(lm, {au: 1.}, img.shape[:2]), lm).set_index("region")
    assert motion.direction[region] == direction


def test_head_motion_spares_the_background(neutral):
    head = synth.head_flow(neutral[1], (256, 256), (2., 0.))
    assert np.allclose(head[128, 128], (2, 0), atol=.05) and np.allclose(head[2, 2], 0)


def test_unknown_unit(neutral):
    with pytest.raises(ValueError, match=r"AU \[99\]"): synth.expression_flow(neutral[1], {99: 1.}, (256, 256))


def test_corpus_resumes_and_repeats(tmp_path):
    table = synth.make_corpus(tmp_path, 2, 4, workers=1, real_face=False)
    assert len(table) == 8 and table["clip"].is_unique and set(table.emotion3) == {"positive", "surprise", "negative"}
    victim, kept = tmp_path / "truth" / "s01_01.npz", tmp_path / "frames" / "s02_00_apex.png"
    before, stamp = (tmp_path / "frames" / "s01_01_apex.png").read_bytes(), kept.stat().st_mtime_ns
    victim.unlink()
    assert synth.make_corpus(tmp_path, 2, 4, workers=1, real_face=False).equals(table)
    assert victim.exists() and kept.stat().st_mtime_ns == stamp
    assert (tmp_path / "frames" / "s01_01_apex.png").read_bytes() == before


def test_corpus_needs_subjects(tmp_path):
    with pytest.raises(ValueError, match="at least one"): synth.make_corpus(tmp_path, 0, 4)


def test_portrait_is_found_by_dlib():
    img, lm = synth.real_face()
    assert np.linalg.norm(faces.landmarks(img) - lm, axis=1).mean() < .05 * faces.inter_ocular(lm)
