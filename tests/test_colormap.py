"Colors, words and measures of the color map, and the batch job that makes thousands of them."
import os
import subprocess
import sys
import types
import warnings

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from skimage import data

import mellm
from mellm import colormap
from mellm.colormap import clip_map, color_map, flow_only, legend
from mellm.faces import FaceNotFound, ImageError, crop_face, landmarks
from mellm.measures import COLORS, DIRECTIONS, color_word, direction_word
from mellm.study import Study, read_table, write_table

# A color is named by its hue, in degrees of the HSV circle.
HUES = dict(zip(COLORS, range(0, 360, 30)))


def uniform(dx, dy, shape=(8, 8)):
    "A flow of one vector, with one still pixel so that the scale starts at zero."
    flow = np.full((*shape, 2), (dx, dy), np.float32)
    flow[0, 0] = 0
    return flow


def hue(rgb):
    "Hue in degrees, computed without OpenCV."
    import colorsys
    return colorsys.rgb_to_hsv(*(np.asarray(rgb) / 255.))[0] * 360


@pytest.fixture(scope="module")
def face(): return crop_face(data.astronaut(), landmarks(data.astronaut()))[0]


@pytest.fixture(scope="module")
def lm(face): return landmarks(face)


# ---- words and colors
@pytest.mark.parametrize("step", range(12))
def test_each_of_twelve_directions_has_the_color_its_word_says(step):
    a = np.radians(30 * step)
    dx, dy = np.cos(a), np.sin(a)
    word, painted = color_word(dx, dy), flow_only(uniform(dx, dy))
    assert word == COLORS[step] and abs((hue(painted[4, 4]) - HUES[word] + 180) % 360 - 180) < 2
    assert painted[4, 4].max() == 255 and not painted[0, 0].any()


def test_directions_are_those_of_the_image_and_agree_with_the_method():
    says = {"right": "red", "down-right": "yellow", "down": "yellow-green", "down-left": "green", "left": "cyan", "up-left": "blue", "up": "violet", "up-right": "magenta"}
    for i, word in enumerate(DIRECTIONS):
        dx, dy = np.round(np.cos(np.radians(45 * i)), 9), np.round(np.sin(np.radians(45 * i)), 9) # y grows downwards
        assert direction_word(dx, dy) == word and color_word(dx, dy) == says[word]
    assert direction_word(0, 0) == color_word(0, 0) == "none"


@given(st.floats(-180, 180), st.floats(.01, 100))
def test_painted_colors_are_the_named_ones(angle, length):
    dx, dy = np.float32(length * np.cos(np.radians(angle))), np.float32(length * np.sin(np.radians(angle)))
    if abs((angle / 30) % 1 - .5) < .02: return # on the border between two colors either is right
    assert abs((hue(flow_only(uniform(dx, dy))[4, 4]) - HUES[color_word(dx, dy)] + 180) % 360 - 180) < 2


def test_brightness_grows_with_magnitude():
    flow = np.zeros((1, 11, 2), np.float32)
    flow[0, :, 0] = np.arange(11)
    red = flow_only(flow)[0, :, 0].astype(int)
    assert red[0] == 0 and red[-1] == 255 and (np.diff(red) > 20).all()
    white = color_map(np.zeros((1, 11), np.uint8), flow, "white")[0]
    assert (white[0] == 255).all() and (np.diff(white[:, 1].astype(int)) < 0).all() and (white[:, 0] == 255).all()


# ---- the map
flows = arrays(np.float32, (12, 9, 2), elements=st.floats(-5, 5, width=32))


@settings(deadline=None)
@given(flows, st.floats(0, 100), st.floats(0, 100))
def test_percentile_keeps_the_fastest_share_and_masks_are_nested(flow, p, q):
    black = np.zeros(flow.shape[:2], np.uint8)
    low, high = (color_map(black, flow, percentile=x).any(-1) for x in sorted((p, q)))
    assert (low | ~high).all() # what survives the higher percentile survives the lower one
    assert high.mean() <= 1 - max(p, q) / 100 + 1.5 / high.size
    magnitude, _ = cv2.cartToPolar(flow[..., 0], flow[..., 1])
    kept = color_map(black, flow, percentile=p)
    assert np.array_equal(kept[kept.any(-1)], flow_only(flow)[kept.any(-1)]) and (magnitude[kept.any(-1)] > np.percentile(magnitude, p)).all()


@settings(deadline=None)
@given(flows, st.floats(0, 100))
def test_white_style_is_white_below_the_percentile(flow, p):
    magnitude = np.sqrt(flow[..., 0] * flow[..., 0] + flow[..., 1] * flow[..., 1])
    slow = magnitude < np.percentile(magnitude, p)
    assert (color_map(np.zeros(flow.shape[:2], np.uint8), flow, "white", p)[slow] == 255).all()


@settings(deadline=None)
@given(flows)
def test_addition_saturates_and_keeps_the_face(flow):
    grey = np.arange(108, dtype=np.uint8).reshape(12, 9) * 2
    expected = np.minimum(grey[..., None].astype(int) + flow_only(flow), 255)
    assert np.array_equal(color_map(grey, flow), expected)


def test_rgb_in_rgb_out_and_grey_in():
    flow = uniform(3, 0)
    red = color_map(np.zeros((8, 8, 3), np.uint8), flow)[4, 4]
    assert red.tolist() == [255, 0, 0] # right is red, and red is the first channel
    rgb = np.zeros((8, 8, 3), np.uint8); rgb[..., 0] = 200 # a red picture is darker in grey than a green one
    assert np.array_equal(color_map(rgb, flow), color_map(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), flow))


@pytest.mark.parametrize("value", [0., 2.5])
def test_flow_without_contrast_divides_by_nothing(value):
    flow, grey = np.full((8, 8, 2), value, np.float32), np.full((8, 8), 90, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        v1, white = color_map(grey, flow), color_map(grey, flow, "white")
    assert (v1 == 90).all()
    if value == 0: assert (white == 255).all()


@pytest.mark.parametrize("onset,flow,options,says", [
    (np.zeros((8, 9), np.uint8), np.zeros((8, 8, 2)), {}, r"\(8, 9\) and \(8, 8, 2\)"),
    (np.zeros((8, 8), np.uint8), np.zeros((8, 8)), {}, r"\(H, W, 2\), not \(8, 8\)"),
    (np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8)), {}, r"\(H, W, 2\), not \(2, 8, 8\)"),
    (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 2), int), {}, "floating-point"),
    (np.zeros((8, 8), np.uint8), np.full((8, 8, 2), np.nan), {}, "NaN"),
    (np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 2)), {}, r"not uint8 of shape \(8, 8, 4\)"),
    (np.zeros((8, 8)), np.zeros((8, 8, 2)), {}, "not float64"),
    (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 2)), {"style": "v9"}, "'v9' is unknown. Choose one of v1, white"),
    (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 2)), {"percentile": 101}, "between 0 and 100; it is 101")])
def test_bad_arguments_are_named(onset, flow, options, says):
    with pytest.raises(ValueError, match=says): color_map(onset, flow, **options)


def test_inputs_are_not_changed(face):
    flow = np.random.default_rng(0).normal(size=(224, 224, 2)).astype(np.float32)
    before = face.copy(), flow.copy()
    for style in ("v1", "white"): color_map(face, flow, style, 50)
    assert np.array_equal(face, before[0]) and np.array_equal(flow, before[1])


@pytest.mark.parametrize("size", [64, 224, 500])
def test_legend_shows_the_colors_of_the_maps(size):
    image = legend(size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    for i, word in enumerate(DIRECTIONS):
        a = np.radians(45 * i + 4)
        x, y = (int(round((size - 1) / 2 + f(a) * .28 * size)) for f in (np.cos, np.sin))
        assert abs((hue(image[y, x]) - HUES[color_word(np.cos(a), np.sin(a))] + 180) % 360 - 180) < 4, word


# ---- a clip
def test_clip_map_of_identical_frames_is_the_grey_face(face):
    done = clip_map(face, face.copy())
    assert (done.regions.strength == "none").all() and not done.flow.any()
    assert np.array_equal(done.color_map, np.repeat(cv2.cvtColor(done.onset, cv2.COLOR_RGB2GRAY)[..., None], 3, 2))
    assert done._repr_png_()[:4] == b"\x89PNG"


def test_clip_map_takes_grey_frames_and_given_landmarks(face, lm):
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    done = clip_map(grey, np.roll(grey, 1, 0), flow="dis", head_motion="none", style="white", size=128, lm=lm)
    assert done.color_map.shape == done.onset.shape == (128, 128, 3) and done.flow.shape == (128, 128, 2)


def test_clip_map_refuses_frames_that_do_not_belong_together(face):
    with pytest.raises(ImageError, match="224×224 and 100×224"): clip_map(face, face[:, :100])
    with pytest.raises(ImageError, match="the apex frame must be uint8"): clip_map(face, face / 255)
    with pytest.raises(ImageError, match="must be uint8"): clip_map("onset.png", face)
    with pytest.raises(FaceNotFound, match="frame 7"): clip_map(np.zeros_like(face), face, name="frame 7")


# ---- the batch job
@pytest.fixture
def study(tmp_path, face, monkeypatch):
    "A study whose clips are: two good ones, a missing apex, a faceless onset, two sizes; keys with awkward characters."
    frames = tmp_path / "frames"; frames.mkdir()
    write = lambda name, image: cv2.imwrite(str(frames / name), image[..., ::-1])
    moved = np.roll(face, 1, 0)
    write("a.png", face), write("b.png", moved), write("grey.png", np.full_like(face, 99)), write("small.png", face[:200])
    pairs = {"s1/EP 01": ("a.png", "b.png"), "missing": ("a.png", "no.png"), "faceless": ("grey.png", "b.png"), "sizes": ("a.png", "small.png"), "s1_EP_01": ("a.png", "a.png")}
    rows = [dict(corpus="test", subject="01", clip=k, aus="1+2", emotion="surprise", emotion3="surprise", onset_path=str(frames / o), apex_path=str(frames / a), split="train")
            for k, (o, a) in pairs.items()]
    study = Study(name="batch", runs=str(tmp_path / "runs"), workers=1, flow="dis", size=96)

    def fake(study):
        from mellm.study import stage
        return stage(study, "data", lambda folder: write_table(folder / "clips.csv", pd.DataFrame(rows)))
    monkeypatch.setattr(mellm, "data", types.SimpleNamespace(build=fake), raising=False)
    return study


def test_batch_goes_on_past_bad_clips_and_reports_them(study):
    with pytest.warns(UserWarning, match="3 of 5 clips failed"): folder = colormap.build(study)
    report = read_table(folder / "report.csv").set_index("clip")
    assert report.ok.tolist() == [True, False, False, False, True]
    for clip, says in {"missing": "does not exist", "faceless": "No face", "sizes": "224×224 and 224×200"}.items(): assert says in report.reason[clip]
    clips, regions = read_table(folder / "clips.csv"), read_table(folder / "regions.csv")
    assert clips["clip"].tolist() == ["s1/EP 01", "s1_EP_01"] and clips.subject.tolist() == ["01", "01"] and len(regions) == 30
    assert clips.color_map.is_unique and all((study.folder / p).is_file() for p in (*clips.color_map, *clips.flow))
    with np.load(study.folder / clips.flow[0]) as z: assert z["flow"].shape == (96, 96, 2) and z["flow"].dtype == np.float16 and z["landmarks"].shape == (68, 2)
    assert (regions[regions["clip"] == "s1_EP_01"].strength == "none").all() and report.width["s1/EP 01"] > 50
    assert not list(folder.rglob("*.part"))


def test_interrupted_batch_resumes(study, monkeypatch):
    made, real = [], colormap.face_motion

    def once(*args, **kwargs):
        if len(made) == 1: raise KeyboardInterrupt
        made.append(1)
        return real(*args, **kwargs)
    monkeypatch.setattr(colormap, "face_motion", once)
    with pytest.raises(KeyboardInterrupt): colormap.build(study)
    kept = {p: p.stat().st_mtime_ns for p in study.folder.rglob("maps/*.npz")}
    assert len(kept) == 1 and "colormap.partial" in str(next(iter(kept))) and not (study.folder / "colormap").exists()
    monkeypatch.setattr(colormap, "face_motion", real)
    with pytest.warns(UserWarning): folder = colormap.build(study)
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("maps/*.npz")}.items() >= {p.name: t for p, t in kept.items()}.items()
    assert colormap.build(study) == folder # and a finished stage returns at once


def test_two_processes_make_the_same_files_as_one(study, tmp_path):
    import dataclasses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = colormap.build(study)
        two = colormap.build(dataclasses.replace(study, name="two", workers=2))
    for table in ("clips.csv", "regions.csv"): assert (one / table).read_bytes() == (two / table).read_bytes()
    for picture in one.glob("maps/*.png"): assert picture.read_bytes() == (two / "maps" / picture.name).read_bytes()


def test_no_usable_clip_is_an_error(study):
    clips = pd.DataFrame([dict(clip="a", onset_path="nowhere.png", apex_path="nowhere.png")])
    folder = study.folder / "x"; folder.mkdir(parents=True)
    with pytest.raises(RuntimeError, match="No clip of 1 could be made.*nowhere.png does not exist"): colormap._fill(study, folder, clips)


def test_importing_loads_nothing_heavy():
    code = "import sys, mellm.colormap, mellm.flow, mellm.faces; print([m for m in ('torch', 'transformers', 'sklearn', 'skimage', 'matplotlib', 'dlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout.strip() == "[]"
