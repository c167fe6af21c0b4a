"The estimated apex: found under head motion and blinks, from files with gaps, without a face; and the interval over people."
import cv2
import numpy as np
import pytest

from mellm.apex import apex_curve, estimate_apex, face_view, fit_head, frame_paths, head_field, pick_apex, smooth, subject_interval
from mellm.faces import landmarks

SHAPE = (256, 256)


@pytest.fixture(scope="module")
def face():
    "A photograph of a face and its landmarks."
    from skimage import data
    photo = cv2.resize(data.astronaut()[:256, 96:352], SHAPE[::-1])
    return photo, landmarks(photo)


def bump(center, push, sigma):
    y, x = np.mgrid[:SHAPE[0], :SHAPE[1]].astype(np.float32)
    return np.exp(-.5 * (((x - center[0]) / sigma)**2 + ((y - center[1]) / sigma)**2))[..., None] * np.float32(push)


def move(image, flow):
    y, x = np.mgrid[:SHAPE[0], :SHAPE[1]].astype(np.float32)
    flow = np.float32(flow)
    return cv2.remap(image, x - flow[..., 0], y - flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def turn(a, b, x, y):
    "A head that zooms by a, turns by b and shifts, about the middle of the picture."
    yy, xx = np.mgrid[:SHAPE[0], :SHAPE[1]] - np.float32(128)
    return np.stack([a * xx - b * yy + x, b * xx + a * yy + y], -1)


def clip(face, n=24, apex=9, head=0., blink=None, noise=1.5, seed=0):
    "A smile that peaks at `apex`, on a head that drifts, with an optional blink."
    (photo, lm), rng = face, np.random.default_rng(seed)
    smile = sum(bump(lm[p], (s * 1.6, -1.6), 9) for p, s in ((48, -1), (54, 1)))
    frames = []
    for i in range(n):
        strength = (1 - np.cos(np.pi * i / apex)) / 2 if i <= apex else (1 + np.cos(np.pi * (i - apex) / (n - 1 - apex))) / 2
        flow = smile * np.float32(strength) + turn(0, .012, 2.5, -1.5) * (head * i / n)
        if blink is not None and abs(i - blink) < 2: flow = flow + sum(bump(lm[e].mean(0) - (0, 2), (0, 4), 5) for e in (slice(36, 42), slice(42, 48)))
        frames.append(np.clip(move(photo, flow) + rng.normal(0, noise, photo.shape), 0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize("apex, settings", [(9, {}), (15, {}), (9, dict(head=1.)), (15, dict(head=1.)), (9, dict(blink=19)), (9, dict(head=1., blink=18))])
def test_the_apex_is_found(face, apex, settings):
    found = pick_apex(list(range(24)), apex_curve(clip(face, apex=apex, **settings), face[1]))
    assert abs(found - apex) <= 1


def test_head_motion_alone_moves_nothing(face):
    frames = [move(face[0], turn(0, .01, 2., -1.) * (i / 5)) for i in range(6)]
    curve = apex_curve(frames, face[1])
    assert curve[0] == 0 and curve.max() < .6 < apex_curve(clip(face), face[1]).max(), "percent of the inter-ocular distance"


def test_landmarks_are_looked_for(face):
    frames = clip(face, n=5, apex=3)
    assert face_view(frames[0]).mask.mean() < .5 and np.allclose(apex_curve(frames)[1:], apex_curve(frames, face[1])[1:], rtol=.3)
    assert apex_curve([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]).shape == (5,), "grey frames"


def test_without_a_face_the_whole_picture_is_measured():
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, SHAPE, dtype=np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    frames = [move(texture, bump((180, 60), (2.5 * s, 0), 25) + np.float32([.4 * i, 0])) for i, s in enumerate((0, .3, .7, 1, .6, .2))]
    view = face_view(frames[0])
    assert view.mask.all() and pick_apex(list(range(6)), apex_curve(frames)) == 3


@pytest.mark.parametrize("frames, said", [([], "no frames to measure"), ([np.zeros((8, 8), np.uint8)], "at least 16×16"), ([np.zeros((32, 32), float)], "not float64"), ([None], "must be uint8"),
                                          ([np.zeros((32, 32), np.uint8), np.zeros((32, 40), np.uint8)], "Frame 1 has another size"), ([np.zeros((32, 32, 4), np.uint8)], "must be uint8")])
def test_bad_frames(frames, said):
    with pytest.raises(ValueError, match=said): apex_curve(frames)


def write(folder, frames, first=1, pattern="img{n}.jpg"):
    folder.mkdir(exist_ok=True)
    for n, f in enumerate(frames, first): cv2.imwrite(str(folder / pattern.format(n=n)), f[..., ::-1])
    return str(folder / pattern)


@pytest.mark.parametrize("pattern", ["img{n}.jpg", "006_{n:05d}.png"])
def test_from_files(face, tmp_path, pattern):
    where = write(tmp_path / "EP01", clip(face, apex=9, head=.5), 100, pattern)
    assert abs(estimate_apex(where, 100, 123) - 109) <= 1


def test_gaps_damage_and_other_sizes_are_skipped(face, tmp_path):
    where = write(tmp_path / "a", clip(face, apex=9), 1)
    for n in (1, 4, 5, 20): (tmp_path / "a" / f"img{n}.jpg").unlink()
    (tmp_path / "a" / "img2.jpg").write_bytes(b"")
    (tmp_path / "a" / "img12.jpg").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "a" / "img13.jpg"), np.zeros((40, 40), np.uint8))
    assert abs(estimate_apex(where, 1, 24) - 10) <= 1


def test_a_long_clip_is_measured_in_two_passes(face, tmp_path, monkeypatch):
    from mellm import apex
    frames = clip(face, n=120, apex=70, head=.5)
    where, measured = write(tmp_path / "long", frames, 1), []
    real = apex._strength
    monkeypatch.setattr(apex, "_strength", lambda view, frame: measured.append(1) or real(view, frame))
    found = estimate_apex(where, 1, 120)
    assert len(measured) < 60 and abs(found - 71) <= 4


def test_nothing_to_estimate_from(face, tmp_path):
    where = write(tmp_path / "a", clip(face, n=2, apex=1))
    assert estimate_apex(where, 1, 2) is None and estimate_apex(str(tmp_path / "none{n}.jpg"), 1, 9) is None
    assert estimate_apex(where, None, 9) is None and estimate_apex(where, 1, float("nan")) is None and estimate_apex(where, 9, 1) is None
    with pytest.raises(ValueError, match="no place for the frame number"): estimate_apex(str(tmp_path / "img.jpg"), 1, 9)


def test_braces_in_folder_names_are_doubled(tmp_path):
    (tmp_path / "s{1}").mkdir()
    (tmp_path / "s{1}" / "img3.jpg").touch()
    assert list(frame_paths(str(tmp_path / "s{{1}}" / "img{n}.jpg"), 1, 5)) == [3]


def test_the_fit_forgives_a_moving_mouth(face):
    view, rng = face_view(*face), np.random.default_rng(0)
    true = np.array([[1., -.5], [.2, .4], [-.4, .2], [.1, 0], [0, .1], [.1, -.1]])
    x, y = np.round(view.points).astype(int).T
    moved = head_field(true, view)[y, x] + rng.normal(0, .02, view.points.shape)
    moved[(np.abs(view.points - (112, 150)) < (30, 12)).all(1)] += (.5, -2)
    assert np.abs(head_field(fit_head(view, moved), view) - head_field(true, view))[view.mask].max() < .3


def test_smoothing_of_uneven_frames():
    assert np.allclose(smooth([1, 2, 9], [3, 3, 3], 2), 3)
    curve = np.zeros(40); curve[5] = 2; curve[18:24] = 1.5
    assert pick_apex(list(range(40)), curve) in range(18, 24), "one wrong frame is no apex"
    assert pick_apex([4, 5], [9, 1]) == 5, "never the onset"


def test_interval_over_people():
    mean, low, high = subject_interval(np.r_[np.zeros(50), np.ones(50)], np.repeat(np.arange(10), 10))
    assert mean == .5 and low <= .2 and high >= .8, "ten people are ten observations, however many clips they have"
    assert subject_interval([2, 4], ["a", "b"])[0] == 3 and np.isnan(subject_interval([2, 4], ["a", "b"])[1:]).all()
    for values, subjects in (([], []), ([1, 2], ["a"])):
        with pytest.raises(ValueError, match="as many subjects as values"): subject_interval(values, subjects)
