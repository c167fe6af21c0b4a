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
from mellm import motion, portrait
from mellm.colormap import (FULL, NEED_LANDMARKS, STYLES, clip_map, color_map, crop_pair, explain_map, face_outline, flow_only, flow_to_frame, legend, make_maps,
                            picture_to_frame)
from mellm.faces import FaceNotFound, ImageError, crop_face, crop_transform, inter_ocular, landmarks, polygon_masks, transform_points
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


# ---- the other styles
@pytest.fixture(scope="module")
def drawn(): return portrait.draw(portrait.sample_identity(20), 160)


def lab(picture): return cv2.cvtColor(np.float32(picture) / 255, cv2.COLOR_RGB2Lab)


def test_every_style_paints_every_size_and_leaves_its_inputs_alone(drawn):
    rng = np.random.default_rng(0)
    for style in STYLES:
        for flow in (rng.normal(size=(160, 160, 2)).astype(np.float32), np.zeros((160, 160, 2)), np.full((160, 160, 2), .7, np.float32)):
            before = flow.copy(), drawn.image.copy(), drawn.landmarks.copy()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for p in (0, 80, 100): picture = color_map(drawn.image, flow, style, p, drawn.landmarks)
            assert picture.dtype == np.uint8 and picture.shape == (160, 320 if style == "side" else 160, 3)
            assert np.array_equal(flow, before[0]) and np.array_equal(drawn.image, before[1]) and np.array_equal(drawn.landmarks, before[2])


@pytest.mark.parametrize("style", NEED_LANDMARKS)
def test_styles_that_need_landmarks_say_so(style):
    grey, flow = np.zeros((20, 20), np.uint8), np.zeros((20, 20, 2))
    with pytest.raises(ValueError, match=f"'{style}' needs lm, the \\(68, 2\\) landmarks"): color_map(grey, flow, style)
    with pytest.raises(ValueError, match=r"not \(5, 2\)"): color_map(grey, flow, style, lm=np.zeros((5, 2)))
    with pytest.raises(ValueError, match="finite"): color_map(grey, flow, style, lm=np.full((68, 2), np.inf))
    with pytest.raises(ValueError, match="both eyes in one place"): color_map(grey, np.ones((20, 20, 2)), "face", lm=np.zeros((68, 2)))


@settings(deadline=None, max_examples=20)
@given(st.floats(.05, 2.), st.floats(.2, 3.))
def test_physical_brightness_means_the_same_in_every_clip(share, other):
    lm = portrait.sample_identity(20).shape * 45 + (80, 70)
    px, black = share * FULL / 100 * inter_ocular(lm), np.zeros((160, 160), np.uint8)
    flow = np.zeros((160, 160, 2), np.float32)
    flow[40:60, 40:60, 0] = px
    flow[100:120, 40:60, 0] = other # whatever else moves in the clip
    assert abs(int(color_map(black, flow, "physical", lm=lm)[50, 50, 0]) - min(255, 255 * share)) <= 1
    grown = color_map(np.zeros((320, 320), np.uint8), cv2.resize(flow, (320, 320), interpolation=cv2.INTER_NEAREST) * 2, "physical", lm=lm * 2) # a face twice as large
    assert abs(int(grown[100, 100, 0]) - int(color_map(black, flow, "physical", lm=lm)[50, 50, 0])) <= 1


def test_face_style_is_blind_beside_the_face(drawn):
    lm, grey = drawn.landmarks, np.repeat(cv2.cvtColor(drawn.image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    inside = polygon_masks({"face": face_outline(lm)}, grey.shape)["face"]
    flow = motion.expression_flow(lm, {12: 1.}, (160, 160)) * inside[..., None]
    noisy = flow + 9 * ~inside[..., None]
    alone, both = (color_map(drawn.image, f.astype(np.float32), "face", 50, lm) for f in (flow, noisy))
    assert np.array_equal(alone, both) and np.array_equal(both[~inside], grey[~inside]) and (both[inside] != grey[inside]).any()
    far = lm + 1000 # a face that is not in the picture
    assert np.array_equal(color_map(drawn.image, noisy.astype(np.float32), "face", 50, far), grey)


def test_face_outline_holds_the_landmarks_and_turns_with_them():
    lm = portrait.sample_identity(3).shape * 50 + (100, 90)
    outline = face_outline(lm).astype(np.float32)
    assert all(cv2.pointPolygonTest(outline, tuple(map(float, p)), True) >= -1e-3 for p in lm)
    M = cv2.getRotationMatrix2D((90, 90), 33, 1.4)
    assert np.allclose(face_outline(transform_points(lm, M)), transform_points(outline, M), atol=1e-3)


def test_side_by_side_holds_the_grey_onset_and_the_flow(face):
    flow = np.random.default_rng(0).normal(size=(224, 224, 2)).astype(np.float32)
    picture = color_map(face, flow, "side")
    assert np.array_equal(picture[:, :224], np.repeat(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None], 3, 2))
    assert np.array_equal(picture[:, 224:], color_map(np.zeros((224, 224), np.uint8), flow))


def test_safe_style_needs_neither_red_nor_green():
    a = np.radians(45 * np.arange(8))
    flow = np.zeros((1, 9, 2), np.float32); flow[0, :8] = np.stack([np.cos(a), np.sin(a)], -1)
    L, red_green, blue_yellow = lab(color_map(np.zeros((1, 9), np.uint8), flow, "safe"))[0].T
    assert np.abs(red_green).max() < 3 # nothing that needs a red or a green receptor
    assert L[6] > L[7] > L[0] > L[1] > L[2] and blue_yellow[0] > blue_yellow[1] > blue_yellow[2] > blue_yellow[3] > blue_yellow[4] # up is light, right is yellow
    seen = np.stack([L, blue_yellow], -1)
    assert min(np.linalg.norm(seen[i] - seen[j]) for i in range(9) for j in range(i)) > 25
    assert np.linalg.norm(seen[:8] - seen[8], axis=1) == pytest.approx(38, abs=2.5) # all directions are equally far from no motion


def test_arrows_lie_where_something_moves():
    flow = np.zeros((160, 160, 2), np.float32); flow[:60, :60, 0] = 2
    grey = np.full((160, 160), 90, np.uint8)
    drawn_on = (color_map(grey, flow, "arrows") != 90).any(-1)
    assert drawn_on[:60, :60].any() and not drawn_on[80:].any() and not drawn_on[:, 80:].any()
    assert (color_map(np.full((4, 4), 9, np.uint8), np.ones((4, 4, 2)), "arrows").shape) == (4, 4, 3) # smaller than a cell


@pytest.mark.parametrize("style", STYLES)
def test_every_style_has_a_legend(style, drawn):
    assert legend(100, style).shape == (100, 100, 3)
    flow = motion.expression_flow(drawn.landmarks, {12: 1.}, (160, 160))
    clip = clip_map(drawn.image, np.roll(drawn.image, 1, 0), flow="dis", style=style, size=96, lm=drawn.landmarks)
    labels = {t for ax in explain_map(clip).axes for t in [ax.get_xlabel(), *(c.get_xlabel() for c in ax.child_axes)]}
    assert any("px" in t for t in labels) and any("inter-ocular" in t for t in labels)
    still = clip_map(drawn.image, drawn.image.copy(), flow="dis", style=style, size=96, lm=drawn.landmarks)
    explain_map(still).canvas.draw()


def test_unknown_styles_have_no_legend():
    with pytest.raises(ValueError, match="'v9' is unknown"): legend(100, "v9")


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


# ---- there and back
def test_onset_and_apex_are_cut_by_the_same_transform(face, lm):
    rng = np.random.default_rng(0)
    apex = rng.integers(0, 256, face.shape, dtype=np.uint8) # an apex without any face in it
    pair = crop_pair(face, apex, 128, lm)
    assert np.array_equal(pair.transform, crop_transform(lm, 128)) and np.allclose(pair.landmarks, transform_points(lm, pair.transform))
    assert np.array_equal(pair.apex, crop_face(apex, lm, 128)[0]) and np.array_equal(pair.onset, crop_face(face, lm, 128)[0])
    same = crop_pair(face, face.copy(), 128, lm)
    assert np.array_equal(same.onset, same.apex)


@settings(deadline=None, max_examples=10)
@given(st.floats(-40, 40), st.floats(.6, 1.6), st.floats(-20, 20))
def test_the_inverse_leads_back_to_the_frame(degrees, scale, shift):
    lm = transform_points(portrait.sample_identity(20).shape * 45 + (80, 70), cv2.getRotationMatrix2D((80, 80), degrees, scale)) + (shift, -shift)
    frame = np.zeros((200, 220), np.uint8)
    clip = clip_map(frame, frame, "dis", "none", size=96, lm=lm)
    assert np.allclose(transform_points(transform_points(lm, clip.transform), clip.inverse), lm)
    turn = clip.inverse[:, :2]
    back = flow_to_frame(np.full((96, 96, 2), (3, -1), np.float32), clip.transform, frame.shape)
    moved = np.hypot(*back.transpose(2, 0, 1)) > 0
    assert back.shape == (200, 220, 2) and back.dtype == np.float32 and np.allclose(back[moved], turn @ (3, -1), atol=1e-4)
    x, y = np.round(lm[30]).astype(int)
    if 0 <= x < 220 and 0 <= y < 200: assert moved[y, x]


def test_a_crop_laid_back_is_the_frame(face, lm):
    frame = cv2.warpAffine(face, cv2.getRotationMatrix2D((112, 112), 20, .7), (224, 224))
    points = transform_points(lm, cv2.getRotationMatrix2D((112, 112), 20, .7))
    crop, M = crop_face(frame, points, 224)
    back = picture_to_frame(crop, M, frame)
    assert back.shape == frame.shape and np.abs(back.astype(int) - frame).mean() < 3 and back is not frame
    away = picture_to_frame(crop, crop_transform(points + 9000, 224), frame) # a crop that lies outside
    assert np.array_equal(away, frame)


def test_flow_in_the_frame_is_the_motion_of_the_frame():
    person = portrait.draw(portrait.sample_identity(20), 240, 50)
    tilt = cv2.getRotationMatrix2D((120, 110), -25, 1)
    cut = lambda image: cv2.warpAffine(np.round(image).astype(np.uint8), tilt, (240, 240))
    true = motion.animate(person, {1: 1.})
    clip = clip_map(cut(person.image), cut(true.image), "dis", lm=transform_points(person.landmarks, tilt))
    truth = cv2.warpAffine(true.flow, tilt, (240, 240)) @ tilt[:, :2].T
    moving = np.linalg.norm(truth, axis=-1) > .5
    back = flow_to_frame(clip.flow, clip.transform, (240, 240))
    assert moving.sum() > 100 and np.linalg.norm(back - truth, axis=-1)[moving].mean() < .35 * np.linalg.norm(truth, axis=-1)[moving].mean()


def test_clip_map_knows_its_fine_regions_and_style(drawn):
    clip = clip_map(drawn.image, np.roll(drawn.image, 1, 1), "dis", style="side", size=96, lm=drawn.landmarks)
    assert len(clip.regions) == 15 and len(clip.fine_regions) == 29 and clip.style == "side" and clip.color_map.shape == (96, 192, 3)
    assert clip._repr_png_()[:4] == b"\x89PNG"


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
    assert len(read_table(folder / "fine_regions.csv")) == 58 and list(report.reset_index().columns) == ["clip", "ok", "seconds", "x", "y", "width", "height", "reason", "note"]
    with np.load(study.folder / clips.flow[0]) as z: assert np.allclose(z["inverse"], cv2.invertAffineTransform(z["transform"]))
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


@pytest.fixture
def table(tmp_path, face):
    "Two clips, one without motion, as a table with absolute paths."
    for name, image in (("a", face), ("b", np.roll(face, 1, 0))): cv2.imwrite(str(tmp_path / f"{name}.png"), image[..., ::-1])
    path = lambda name: str(tmp_path / f"{name}.png")
    return pd.DataFrame([dict(clip="one", onset_path=path("a"), apex_path=path("b")), dict(clip="two", onset_path=path("a"), apex_path=path("a"))])


FAST = dict(flow="dis", size=64, workers=1)


def test_make_maps_keeps_what_is_done_and_makes_anew_what_changed(table, tmp_path):
    out = tmp_path / "maps"
    first = make_maps(table, out, **FAST)
    files = lambda: {p.name: p.stat().st_mtime_ns for p in (out / "maps").glob("*.npz")}
    before = files()
    assert first.ok.all() and make_maps(table, out, **FAST).equals(first) and files() == before
    make_maps(table, out, **FAST, style="physical")
    assert all(files()[k] != v for k, v in before.items()) # another style
    before = files()
    make_maps(table.assign(apex_path=table.apex_path.iloc[0]), out, **FAST, style="physical")
    assert files()["one.npz"] == before["one.npz"] and files()["two.npz"] != before["two.npz"] # another frame
    (out / "maps" / "one.npz").write_bytes(b"PK damaged")
    assert make_maps(table, out, **FAST).ok.all()
    assert not [p for p in out.rglob("*") if p.name.startswith(".")] and {p.name for p in out.iterdir()} == {"maps", "report.csv", "regions.csv", "fine_regions.csv"}


def test_make_maps_removes_the_halves_of_a_killed_run(table, tmp_path):
    half = tmp_path / "maps" / "maps" / ".one.123.png"; half.parent.mkdir(parents=True); half.write_bytes(b"half")
    make_maps(table, tmp_path / "maps", **FAST)
    assert not half.exists()


@pytest.mark.parametrize("change,says", [(dict(style="v9"), "'v9' is unknown"), (dict(flow="lk"), "flow method 'lk' is unknown"), (dict(head_motion="neck"), "head-motion method 'neck'"), (dict(percentile=-1), "between 0 and 100")])
def test_make_maps_checks_its_settings_before_the_first_clip(table, tmp_path, change, says):
    with pytest.raises(ValueError, match=says): make_maps(table, tmp_path / "out", **FAST | change)
    assert not (tmp_path / "out").exists()


def test_make_maps_checks_its_table(table, tmp_path):
    with pytest.raises(ValueError, match="lacks the column apex_path"): make_maps(table.drop(columns="apex_path"), tmp_path / "out")
    with pytest.raises(ValueError, match="'one' stands more than once"): make_maps(pd.concat([table, table]), tmp_path / "out")
    assert len(make_maps(table.head(0), tmp_path / "out", **FAST)) == 0 # no clips, no files but an empty report
    bad = make_maps(table.assign(apex_path="nowhere.png"), tmp_path / "bad", **FAST)
    assert not bad.ok.any() and bad.reason.str.contains("does not exist").all() and not (tmp_path / "bad" / "regions.csv").exists()


def test_a_device_gives_what_the_processor_gives(table, tmp_path, monkeypatch):
    "The way through `run_on_device`, with a network of a few additions in the place of ours; an error stays with its clip."
    seen = []

    def separate(onsets, apexes, device="cpu"):
        seen.append((onsets.shape, device))
        shift = (apexes.astype(np.float32) - onsets)[..., None] * np.float32([.01, .02])
        return shift, np.ones_like(shift)
    monkeypatch.setitem(sys.modules, "mellm.meflow", types.SimpleNamespace(separate=separate, available=lambda: True))
    monkeypatch.setattr(mellm, "meflow", sys.modules["mellm.meflow"], raising=False)
    table = pd.concat([table, table.tail(1).assign(clip="gone", apex_path="nowhere.png")])
    settings = dict(flow="meflow", head_motion="learned", size=64, workers=1)
    cpu, cuda = make_maps(table, tmp_path / "cpu", **settings), make_maps(table, tmp_path / "cuda", device="cuda:0", **settings)
    assert cpu.ok.tolist() == cuda.ok.tolist() == [True, True, False]
    assert seen[-1] == ((2, 64, 64), "cuda:0") and seen[0] == ((64, 64), "cpu")
    for picture in (tmp_path / "cpu" / "maps").glob("*.png"): assert picture.read_bytes() == (tmp_path / "cuda" / "maps" / picture.name).read_bytes()


def test_importing_loads_nothing_heavy():
    code = "import sys, mellm.colormap, mellm.flow, mellm.faces; print([m for m in ('torch', 'transformers', 'sklearn', 'skimage', 'matplotlib', 'dlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout.strip() == "[]"
