"The words, colors and styles of the color map, and its legend."
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from mellm import motion, portrait
from mellm.faces import inter_ocular, polygon_masks, transform_points
from mellm.measures import COLORS, DIRECTIONS, color_word, direction_word
from mellm.styles import FULL, NEED_LANDMARKS, STYLES, color_map, face_outline, flow_only, legend

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
def face(): return portrait.draw(portrait.sample_identity(4), 224).image


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
def test_every_style_has_a_legend(style): assert legend(100, style).shape == (100, 100, 3)


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


def test_importing_loads_nothing_heavy():
    code = "import sys, mellm.styles; print([m for m in ('torch', 'skimage', 'matplotlib', 'dlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
