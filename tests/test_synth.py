"The synthesizer: anatomy, portraits, exact flow, cameras, plans, resumed writing, bad input."
import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mellm import anatomy, capture, facs, faces, motion, portrait, synth

STILL = capture.Capture(shift=0, roll=0, scale=0, noise=0)
doses = st.dictionaries(st.sampled_from(sorted(anatomy.ACTIONS)), st.floats(.2, 2), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def face(): return portrait.draw(portrait.sample_identity(11), 160)


# Anatomy

def test_mean_face_is_symmetric():
    mean = anatomy.mean_face()
    for p in mean * (-1, 1): assert np.linalg.norm(mean - p, axis=1).min() < 1e-9


@settings(max_examples=30, deadline=None)
@given(st.floats(-25, 25), st.floats(20, 200), st.floats(-50, 300), st.integers(0, 100))
def test_places_follow_a_similarity(degrees, scale, x, seed):
    "Rotating, scaling and shifting a face moves the places on it likewise."
    lm, a = portrait.sample_identity(seed).shape * 60 + 100, np.deg2rad(degrees)
    R = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) * scale / 60
    points = [(0, 0), (.5, 1), (-.4, 1.5)]
    assert np.allclose(anatomy.place(points, lm @ R + x), anatomy.place(points, lm) @ R + x, atol=1e-6)


def test_lids_of_a_closed_eye_meet(face):
    for eye in anatomy.eyes(face.landmarks):
        p = eye.outline(close=eye.up + eye.low)
        (dx, dy), (x, y) = (np.roll(p, -1, 0) - p).T, p.T
        assert abs((dx * y - dy * x).sum()) < 1 and anatomy.eyes(face.landmarks)[0].half > 5


def test_shading_of_a_plane_is_one():
    assert np.allclose(anatomy.shade(np.zeros((9, 9), np.float32), 60, (.4, -.2, 1)), 1)


def test_landmarks_that_make_no_face():
    with pytest.raises(ValueError, match="both eyes in one place"): anatomy.axes(np.ones((68, 2)))


# Portraits

def test_same_seed_same_person(face):
    again = portrait.draw(portrait.sample_identity(11), 160)
    assert (again.image == face.image).all() and (again.landmarks == face.landmarks).all() and (again.height == face.height).all()
    assert (portrait.draw(portrait.sample_identity(12), 160).image != face.image).any()


@pytest.mark.parametrize("size", [64, 97, 320])
def test_any_size(size):
    p = portrait.draw(portrait.sample_identity(3), size)
    assert p.image.shape == p.bare.shape == (size, size, 3) and p.image.dtype == np.uint8 and p.height.shape == p.skin.shape == (size, size)
    assert abs(p.iod - .28 * size) < .1 * size and 0 <= p.skin.min() and p.skin.max() <= 1


def test_faces_are_found_where_they_were_drawn():
    checked = [synth.face_quality(s) for s in range(123_000, 123_012)]
    assert all(c["found"] for c in checked) and np.mean([c["error"] for c in checked]) < 5


def test_photograph_becomes_a_subject():
    p = portrait.real_face(200)
    assert np.linalg.norm(faces.landmarks(p.image) - p.landmarks, axis=1).mean() < .06 * p.iod
    moved = motion.animate(p, {12: 1.})
    assert moved.image.shape == (200, 200, 3) and np.isfinite(moved.flow).all()


def test_photograph_without_a_face():
    with pytest.raises(faces.FaceNotFound): portrait.from_photo(np.full((100, 100, 3), 128, np.uint8))
    with pytest.raises(ValueError, match="RGB picture"): portrait.from_photo(np.full((100, 100), 128, np.uint8), anatomy.mean_face() * 25 + 50)
    with pytest.raises(ValueError, match="both eyes"): portrait.from_photo(np.full((100, 100, 3), 128, np.uint8), np.ones((68, 2)))


# Motion

@settings(max_examples=25, deadline=None)
@given(doses, st.integers(0, 1000))
def test_flow_is_exact(face, aus, seed):
    "Without noise, what the apex shows, pulled back along the flow, is the onset wherever it is not hidden."
    pair = capture.make_pair(face, aus, np.random.default_rng(seed), capture.Capture(noise=0, turn=.5))
    back = motion.pull(pair.apex.astype(np.float32), pair.flow)
    inner = np.s_[8:-8, 8:-8]
    seen = ~pair.occluded[inner]
    before, after = (np.abs(x[inner].astype(float) - pair.onset[inner])[seen].mean() for x in (pair.apex, back))
    assert after < 2.2 and after < .5 * before + .6


@settings(max_examples=25, deadline=None)
@given(doses)
def test_parts_of_the_flow_add_up(face, aus):
    moved = capture.take(face, aus, capture.Pose(shift=(.02, -.01), roll=.5, yaw=1.))
    assert np.allclose(moved.flow, motion.compose(moved.expression, moved.head), atol=1e-5)
    assert moved.flow.dtype == np.float32 and moved.occluded.dtype == bool and moved.occluded.mean() < .1


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.sampled_from([1, 2, 4, 6, 9, 12, 15, 17, 20]), st.floats(.1, .6), min_size=1, max_size=3))
def test_inverse_undoes_the_flow(face, aus):
    flow = motion.expression_flow(face.landmarks, aus, (160, 160))
    assert np.abs(motion.compose(motion.invert(flow), flow)).max() < .02


@pytest.mark.parametrize("au", sorted(anatomy.ACTIONS))
def test_directions_are_those_of_the_table(au):
    "In each of the fifteen regions that the table lists for a unit, the skin moves into the table's octant."
    lm = anatomy.mean_face() * 62 + (112, 90)
    flow, masks = motion.expression_flow(lm, {au: 1.}, (240, 224)), faces.region_masks(lm, (240, 224))
    for eye in anatomy.eyes(lm):
        hole = np.zeros((240, 224), np.uint8)
        cv2.fillPoly(hole, [np.round(eye.outline()).astype(np.int32)], 1)
        masks = {k: m & (hole == 0) for k, m in masks.items()}
    for region, said in facs.ACTION_UNITS[au].directions.items():
        if region not in masks: continue
        dx, dy = flow[masks[region]].sum(0)
        assert facs.DIRECTIONS[round(np.degrees(np.arctan2(dy, dx)) / 45) % 8] == said, region


@pytest.mark.parametrize("au", [a for a, act in anatomy.ACTIONS.items() if act.bumps and not any(act.lips)])
def test_one_sided_motion_stays_on_its_side(au):
    lm = anatomy.mean_face() * 62 + (112, 90)
    left = motion.expression_flow(lm, {au: 1.}, (240, 224), {au: (1, 0)})   # the subject's left is on the image's right
    if all(b.at[0] > .3 for b in anatomy.ACTIONS[au].bumps): assert np.abs(left[:, 140:]).max() > 3 * np.abs(left[:, :85]).max()
    mirrored = motion.expression_flow(lm, {au: 1.}, (240, 225), {au: (0, 1)})[:, ::-1] * (-1, 1)
    assert np.allclose(mirrored, motion.expression_flow(lm, {au: 1.}, (240, 225), {au: (1, 0)}), atol=1e-3)


def test_a_blink_hides_the_eyeballs_and_nothing_else(face):
    moved, eyes = motion.animate(face, {45: 3.}), np.zeros((160, 160), np.uint8)
    for e in anatomy.eyes(face.landmarks): cv2.fillPoly(eyes, [np.round(e.outline(grow=1.15)).astype(np.int32)], 1)
    assert moved.occluded.sum() > 60 and not moved.occluded[eyes == 0].any()
    assert not motion.animate(face, {1: 1.}).occluded[:50].any()


def test_eyeballs_do_not_follow_the_brow(face):
    centre = np.round(anatomy.eyes(face.landmarks)[0].centre).astype(int)
    assert not motion.animate(face, {4: 3.}).expression[centre[1], centre[0]].any()
    assert np.allclose(motion.animate(face, {4: 1.}, gaze=(2., 0.)).expression[centre[1], centre[0]], (2, 0))


def test_lips_part_and_press(face):
    x, y = np.round(face.landmarks[62]).astype(int)
    flow = motion.animate(face, {25: 2.}).expression[:, x, 1]
    assert flow[y - 4] < -.2 and flow[y + 5] > .8
    assert motion.animate(face, {28: 3.}).occluded[y - 12:y + 12].any()


def test_nothing_moves_when_nothing_acts(face):
    moved = motion.animate(face, {})
    assert not moved.flow.any() and not moved.occluded.any() and np.abs(moved.image - face.image).mean() < .5


def test_head_motion_spares_the_background(face):
    head = motion.head_flow(face.landmarks, (160, 160), (2., 0.))
    assert np.allclose(head[80, 80], (2, 0), atol=.05) and np.allclose(head[1, 1], 0)
    turned = motion.head_flow(face.landmarks, (160, 160), yaw=3, height=face.height)
    nose, jaw = (np.round(face.landmarks[i]).astype(int) for i in (30, 3))
    assert turned[nose[1], nose[0], 0] > turned[jaw[1], jaw[0], 0] + .5


def test_bad_motion(face):
    with pytest.raises(ValueError, match=r"AU \[99\]"): motion.expression_flow(face.landmarks, {99: 1.}, (160, 160))
    with pytest.raises(ValueError, match="need the relief"): motion.head_flow(face.landmarks, (160, 160), yaw=2)


# Capture

@pytest.mark.parametrize("dial, value", [("jpeg", 101), ("jpeg", -3), ("resolution", 0), ("resolution", 1.5), ("noise", -1), ("shift", -.1)])
def test_impossible_dials(dial, value):
    with pytest.raises(ValueError, match=dial): capture.Capture(**{dial: value})


@pytest.mark.parametrize("dials", [dict(blur=2), dict(noise=9), dict(resolution=.3), dict(jpeg=20), dict(flicker=.1), dict(light=.5), dict(gaze=.08), dict(blink=1), dict(turn=4), dict(roll=4), dict(shift=.1), dict(scale=.05)])
def test_each_dial_changes_the_apex(face, dials):
    from dataclasses import replace
    plain, turned = (capture.make_pair(face, {12: .5}, np.random.default_rng(3), c, {}) for c in (STILL, replace(STILL, **dials)))
    assert np.abs(plain.apex.astype(int) - turned.apex).mean() > .05


def test_grey_camera_and_repeatable(face):
    a, b = (capture.make_pair(face, {12: 1.}, np.random.default_rng(5), capture.Capture(grey=True, jpeg=90)) for _ in range(2))
    assert a.onset.ndim == a.apex.ndim == 2 and (a.apex == b.apex).all() and (a.flow == b.flow).all()


# Corpora

@pytest.mark.parametrize("manner", list(synth.MANNERS))
def test_plans_hold_the_published_counts(manner):
    m, table = synth.MANNERS[manner], synth.plan(manner)
    assert table.emotion.value_counts().to_dict() == m.emotions and table.subject.nunique() == m.subjects
    assert ((table.onset < table.apex) & (table.apex < table.offset)).all() and synth.plan(manner).equals(table)
    assert all(set(g) <= set(anatomy.ACTIONS) for g in table.gains) and not table.duplicated(["subject", "filename", "onset"]).any()


def test_events_of_one_video_do_not_overlap():
    for _, events in synth.plan("casme3").sort_values("onset").groupby(["subject", "filename"]): assert (events.onset.to_numpy()[1:] > events.offset.to_numpy()[:-1]).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(synth.MANNERS)), st.integers(1, 9), st.integers(0, 40), st.integers(0, 10**6))
def test_plans_of_any_size(manner, subjects, more, seed):
    table = synth.plan(manner, seed, subjects, subjects + more)
    assert len(table) == subjects + more and table.person.nunique() == subjects


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 10**6))
def test_profiles_peak_at_the_apex(rise, fall, seed):
    p = synth.profile(10, 10 + rise, 10 + rise + fall, np.random.default_rng(seed))
    assert len(p) == rise + fall + 1 and p[0] == 0 and p.argmax() == rise and p[rise] == 1 and p.min() >= 0


def test_a_frame_can_be_drawn_alone():
    row = synth.plan("smic", 2, 2, 4).iloc[1]
    (n, alone), = synth.clip_frames(row, [row.apex])
    frames = dict(synth.clip_frames(row, range(row.apex - 2, row.apex + 1)))
    assert n == row.apex and (frames[n] == alone).all() and alone.shape == (192, 192, 3)
    with pytest.raises(ValueError, match="not in the clip"): list(synth.clip_frames(row, [row.offset + 1]))

    slow = [n for n, _ in synth.clip_frames(row, fps=25)]
    assert slow[0] == row.onset and set(np.diff(slow)) == {4} and slow[-1] <= row.offset
    with pytest.raises(ValueError, match="cannot take"): list(synth.clip_frames(row, fps=500))


def test_a_pair_is_made_of_the_clips_frames():
    row = next(synth.plan("samm", 4, 1, 2).itertuples())
    pair, frames = synth.clip_pair(row), dict(synth.clip_frames(row, [row.onset, row.apex]))
    assert (pair.onset == frames[row.onset]).all() and (pair.apex == frames[row.apex]).all() and pair.onset.ndim == 2


def test_corpus_resumes_and_repeats(tmp_path):
    table = synth.make_corpus(tmp_path, 2, 3, workers=1, real_face=False)
    assert len(table) == 6 and table["clip"].is_unique and {"positive", "surprise", "negative"} <= set(table.emotion3) <= {"positive", "surprise", "negative", ""}
    victim, kept = tmp_path / "truth" / "s01_01.npz", next((tmp_path / "frames" / "s02_00").glob("*.png"))
    apex = tmp_path / table.frames[1].format(n=table.apex[1])
    before, stamp = apex.read_bytes(), kept.stat().st_mtime_ns
    victim.unlink()
    assert synth.make_corpus(tmp_path, 2, 3, workers=1, real_face=False).equals(table)
    assert victim.exists() and kept.stat().st_mtime_ns == stamp and apex.read_bytes() == before


def test_processes_do_not_change_the_corpus(tmp_path):
    one, two = (synth.make_corpus(tmp_path / str(w), 2, 1, workers=w, real_face=False) for w in (1, 2))
    assert one.equals(two)
    for frames, n in zip(one.frames, one.apex): assert (tmp_path / "1" / frames.format(n=n)).read_bytes() == (tmp_path / "2" / frames.format(n=n)).read_bytes()


def test_bad_corpora(tmp_path):
    with pytest.raises(ValueError, match="at least one"): synth.make_corpus(tmp_path, 0, 4)
    with pytest.raises(ValueError, match="no manner 'casme'"): synth.plan("casme")
    with pytest.raises(ValueError, match="at least one subject"): synth.plan("casme2", subjects=5, clips=3)
    with pytest.raises(ValueError, match="imitates none"): synth.write_corpus("balanced", tmp_path)
