"Words, angles and the measures of the fifteen and the twenty-nine regions."
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage import data

from mellm import faces, motion, portrait
from mellm.facs import REGIONS
from mellm.faces import crop_face, inter_ocular, landmarks, polygon_masks, region_masks
from mellm.measures import (DIRECTIONS, FINE_REGIONS, NO_DIRECTION, UNCLEAR, _cut_band, direction_angle, direction_word, fine_regions, region_chart, region_motion,
                            strength_word)


@pytest.fixture(scope="module")
def face(): return crop_face(data.astronaut(), landmarks(data.astronaut()))[0]


@pytest.fixture(scope="module")
def lm(face): return landmarks(face)


def turned(lm, degrees, scale=1., shift=(0, 0)):
    "Landmarks in a picture that is turned about (112, 112), scaled and shifted."
    M = cv2.getRotationMatrix2D((112, 112), degrees, scale)
    return faces.transform_points(lm, M) + shift


# ---- words and angles
@pytest.mark.parametrize("percent,word", [(0, "none"), (.299, "none"), (.3, "weak"), (.99, "weak"), (1, "moderate"), (2.19, "moderate"), (2.2, "strong"), (9, "strong")])
def test_strength_words(percent, word): assert strength_word(percent) == word


@given(st.floats(-180, 180), st.floats(1e-6, 1e3))
def test_angle_counts_against_the_words_clockwise_order(angle, length):
    dx, dy = length * np.cos(np.radians(angle)), length * np.sin(np.radians(angle))
    up = direction_angle(dx, dy)
    assert 0 <= up < 360 and abs((up + angle + 180) % 360 - 180) < 1e-6
    if abs((angle / 45) % 1 - .5) > .01: assert direction_word(dx, dy) == DIRECTIONS[-round(up / 45) % 8]


def test_no_motion_has_no_angle():
    assert np.isnan(direction_angle(0, 0)) and direction_angle(1, 1e-20) == 0 and direction_angle(1, -0.) == 0


# ---- the outlines
def test_fine_regions_are_those_of_the_method(lm):
    polygons = fine_regions(lm)
    assert tuple(polygons) == FINE_REGIONS and len(set(FINE_REGIONS)) == 29
    count = lambda *words: sum(all(w in k for w in words) for k in FINE_REGIONS)
    assert [count("upper_eyelid"), count("lower_eyelid"), count("brow"), count("nostril"), count("mouth_corner"), count("upper_lip"), count("lower_lip"), count("chin"), count("cheek")] == [6, 6, 4, 2, 2, 3, 3, 1, 2]
    for k, p in faces.regions(lm).items():
        if k in polygons: assert np.array_equal(p, polygons[k]) # the same name, the same outline


def test_fine_regions_lie_where_their_names_say(lm):
    at = {k: p.mean(0) for k, p in fine_regions(lm).items()}
    for k, (x, y) in at.items():
        if k.startswith("left_"): assert x > lm[27, 0]  # the subject's left is on the right of the picture
        if k.startswith("right_"): assert x < lm[27, 0]
    for side, sign in (("left", 1), ("right", -1)):
        for lid in ("upper", "lower"):
            x = [sign * at[f"{side}_{part}_{lid}_eyelid"][0] for part in ("inner", "middle", "outer")]
            assert x == sorted(x)
        assert at[f"{side}_inner_brow"][1] < at[f"{side}_middle_upper_eyelid"][1] < at[f"{side}_middle_lower_eyelid"][1] < at[f"{side}_cheek"][1]
    for lip in ("upper", "lower"): assert at[f"right_{lip}_lip"][0] < at[f"middle_{lip}_lip"][0] < at[f"left_{lip}_lip"][0]
    assert at["middle_upper_lip"][1] < at["middle_lower_lip"][1] < at["chin"][1]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(-40, 40), st.floats(.3, 2.))
def test_fine_regions_are_never_empty_and_hardly_overlap(seed, degrees, scale):
    lm = turned(portrait.sample_identity(seed).shape * 60 + (112, 95), degrees, scale, (112, 112))
    masks = polygon_masks(fine_regions(lm), (460, 460))
    assert all(m.sum() >= 4 for m in masks.values())
    area, union = sum(m.sum() for m in masks.values()), np.any(list(masks.values()), 0).sum()
    assert area < 1.45 * union


@settings(deadline=None, max_examples=15)
@given(st.floats(-60, 60), st.floats(.5, 3), st.floats(-50, 50))
def test_outlines_turn_and_grow_with_the_face(degrees, scale, shift):
    base = portrait.sample_identity(4).shape * 60 + (112, 95)
    M = cv2.getRotationMatrix2D((112, 112), degrees, scale)
    there = fine_regions(turned(base, degrees, scale, (shift, -shift)))
    for k, p in fine_regions(base).items(): assert np.allclose(faces.transform_points(p, M) + (shift, -shift), there[k], atol=1e-6)


def test_bands_are_cut_fairly():
    line = np.c_[[0, 1, 7, 9], np.zeros(4)] # uneven corners
    parts = _cut_band(line, line + (0, 2))
    assert [np.ptp(p[:, 0]) for p in parts] == pytest.approx([3, 3, 3]) and [p[:, 0].min() for p in parts] == pytest.approx([0, 3, 6])
    assert all(np.isfinite(p).all() for p in _cut_band(np.zeros((3, 2)), np.ones((3, 2)))) # a band without length


@pytest.mark.parametrize("bad,says", [(np.zeros((5, 2)), r"\(68, 2\), not \(5, 2\)"), (np.full((68, 2), np.nan), "finite"), (np.zeros((68, 2)), "both eyes in one place")])
def test_bad_landmarks_are_named(bad, says):
    with pytest.raises(ValueError, match=says): fine_regions(bad)
    for regions in ("facs", "fine"):
        with pytest.raises(ValueError, match=says): region_motion(np.zeros((9, 9, 2)), bad, regions)


# ---- the table
def test_region_motion_measures_what_was_put_in(face, lm):
    masks, flow = region_masks(lm, face.shape), np.zeros((224, 224, 2), np.float32)
    flow[masks["chin"]] = (0, -3)
    yes = masks["left_cheek"] & (np.arange(224) % 2 == 0)
    flow[yes], flow[masks["left_cheek"] & ~yes] = (2, 0), (-2, 0)
    table = region_motion(flow, lm).set_index("region")
    chin, cheek, brow = table.loc["chin"], table.loc["left_cheek"], table.loc["left_inner_brow"]
    assert (chin.direction, chin.color, chin.strength, chin.angle) == ("up", "violet", "strong", 90) and np.allclose([chin.dx, chin.dy, chin.magnitude, chin.maximum, chin.concentration], [0, -3, 3, 3, 1])
    assert np.isclose(chin.percent, 100 * 3 / 71.68, rtol=.05) and chin.percent == chin.maximum_percent
    assert (cheek.direction, cheek.color, cheek.strength) == (NO_DIRECTION, "mixed", "strong") and np.isclose(cheek.magnitude, 2) and cheek.concentration < UNCLEAR
    assert (brow.direction, brow.color, brow.strength, brow.magnitude) == (NO_DIRECTION, "mixed", "none", 0) and np.isnan(brow.angle)


@pytest.mark.parametrize("regions,keys", [("facs", REGIONS), ("fine", FINE_REGIONS)])
def test_every_region_has_a_row_in_order(lm, regions, keys):
    table = region_motion(np.full((224, 224, 2), (1., -1.), np.float32), lm, regions)
    assert tuple(table.region) == keys and (table.direction == "up-right").all() and np.allclose(table.angle, 45) and np.allclose(table.magnitude, 2 ** .5)
    assert np.allclose(table.percent, 100 * 2 ** .5 / inter_ocular(lm)) and np.allclose(table.maximum_percent, table.percent) and np.allclose(table.concentration, 1)


def test_the_fine_set_measures_a_shared_region_as_the_coarse_one(lm):
    flow = np.random.default_rng(0).normal(size=(224, 224, 2))
    coarse, fine = (region_motion(flow, lm, r).set_index("region") for r in ("facs", "fine"))
    both = [k for k in REGIONS if k in FINE_REGIONS]
    assert len(both) == 11 and coarse.loc[both].equals(fine.loc[both])


def test_unknown_sets_and_bad_flows_are_named(lm):
    with pytest.raises(ValueError, match="'all' is unknown. Choose one of facs, spoken, fine"): region_motion(np.zeros((9, 9, 2)), lm, "all")
    with pytest.raises(ValueError, match="NaN"): region_motion(np.full((9, 9, 2), np.nan), lm, "fine")
    with pytest.raises(ValueError, match=r"\(H, W, 2\)"): region_motion(np.zeros((9, 9)), lm)


@pytest.mark.parametrize("regions", ["facs", "fine"])
def test_regions_outside_of_the_picture_are_still(lm, regions):
    table = region_motion(np.ones((100, 224, 2), np.float32), lm, regions).set_index("region")
    assert table.magnitude["chin"] == 0 and table.strength["chin"] == "none" and np.isfinite(table.drop(columns="angle").select_dtypes("number")).all(axis=None)


@pytest.mark.parametrize("au,region,word", [(1, "left_inner_brow", "up"), (2, "right_outer_brow", "up"), (5, "left_middle_upper_eyelid", "up"), (43, "right_middle_upper_eyelid", "down"),
                                            (12, "left_mouth_corner", "up-right"), (12, "right_mouth_corner", "up-left"), (15, "left_mouth_corner", "down"), (17, "chin", "up")])
def test_the_fine_regions_read_action_units(au, region, word):
    lm = portrait.sample_identity(4).shape * 70 + (112, 95)
    table = region_motion(motion.expression_flow(lm, {au: 1.}, (256, 224)), lm, "fine").set_index("region")
    assert word in table.direction[region] and table.strength[region] in ("moderate", "strong")


def test_chart_names_every_region_once(face, lm):
    for regions, keys in (("facs", REGIONS), ("fine", FINE_REGIONS)):
        (ax,) = region_chart(face, lm, regions).axes
        assert sorted(t.get_text() for t in ax.texts) == sorted(k.replace("_", " ") for k in keys)
    assert region_chart(face[..., 0], lm, "facs").axes # grey


def test_importing_loads_nothing_heavy():
    code = "import sys, mellm.measures; print([m for m in ('torch', 'skimage', 'matplotlib', 'dlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
