"The table of action units: complete, consistent with itself and with what can be parsed, drawn and outlined."
import numpy as np
import pytest
from hypothesis import given, strategies as st

from mellm import aucode, facs, faces

WANTED = {1, 2, 4, 5, 6, 7, *range(9, 29), 31, 38, 39, *range(41, 47), *range(51, 59), *range(61, 65)}


def test_table_is_complete():
    assert set(facs.ACTION_UNITS) == aucode.CODES >= WANTED and list(facs.ACTION_UNITS) == sorted(facs.ACTION_UNITS)
    for number in WANTED:
        unit = facs.ACTION_UNITS[number]
        assert unit.name and unit.muscles and unit.directions and unit.regions == tuple(unit.directions), unit
    assert all(unit.description.endswith(".") and "2002" in unit.source for unit in facs.ACTION_UNITS.values())


def test_table_is_consistent():
    names = [unit.name for unit in facs.ACTION_UNITS.values()]
    assert len(set(names)) == len(names) == 57
    for number, unit in facs.ACTION_UNITS.items():
        assert unit.number == number and unit.name == unit.name.lower() and unit.face in ("upper", "lower", "other") and str(unit) == f"AU{number} ({unit.name})"
        assert set(unit.directions) <= set(facs.REGIONS + facs.EXTRA_REGIONS) and set(unit.directions.values()) <= set(facs.DIRECTIONS)
        for region, word in unit.directions.items():
            other = region.replace("left_", "#").replace("right_", "left_").replace("#", "right_")
            assert unit.directions[other] == (facs.mirror(word) if other != region and not 61 <= number <= 64 else word), (unit, region)


def test_names_of_a_shipped_vocabulary_do_not_change():
    "The tokenizer of the embedded model was made from names and order: see mellm.nano.vocabulary_text."
    assert facs.REGIONS == ("left_inner_brow", "right_inner_brow", "left_outer_brow", "right_outer_brow", "left_lower_eyelid", "right_lower_eyelid", "left_cheek", "right_cheek", "left_nostril",
                            "right_nostril", "left_mouth_corner", "right_mouth_corner", "upper_lip", "lower_lip", "chin")
    assert [facs.au_name(n) for n in (1, 8, 11, 13, 22, 24, 31, 43, 46, 51, 64)] == [
        "inner brow raiser", "lips toward each other", "nasolabial deepener", "sharp lip puller", "lip funneler", "lip pressor", "jaw clencher", "eye closure", "wink", "head turn left", "eyes down"]


@pytest.mark.parametrize("number, region, word", [
    (1, "left_inner_brow", "up"), (4, "left_inner_brow", "down-left"), (4, "right_inner_brow", "down-right"), (5, "left_upper_eyelid", "up"), (6, "right_cheek", "up"), (9, "glabella", "down"),
    (12, "left_mouth_corner", "up-right"), (12, "right_mouth_corner", "up-left"), (15, "left_mouth_corner", "down"), (18, "left_mouth_corner", "left"), (20, "left_mouth_corner", "right"), (26, "chin", "down"),
    (38, "left_nostril", "right"), (45, "right_upper_eyelid", "down"), (51, "head", "right"), (55, "forehead", "right"), (57, "chin", "down"), (61, "right_eye", "right"), (63, "left_eye", "up")])
def test_skin_moves_where_anatomy_pulls_it(number, region, word):
    assert facs.ACTION_UNITS[number].directions[region] == word


def test_opposites_move_against_each_other():
    for one, other in ((51, 52), (53, 54), (55, 56), (57, 58), (61, 62), (63, 64), (38, 39)):
        a, b = (facs.ACTION_UNITS[n].directions for n in (one, other))
        assert set(a) == set(b) and all(facs.DIRECTIONS.index(a[r]) == (facs.DIRECTIONS.index(b[r]) + 4) % 8 for r in a)


def test_regions_can_be_named_and_outlined():
    lm = np.array([(30 + 2 * i, 40 + i % 7) for i in range(68)], float)
    assert tuple(faces.regions(lm)) == facs.REGIONS and tuple(faces.regions(lm, extra=True)) == facs.REGIONS + facs.EXTRA_REGIONS
    assert len({facs.region_name(r) for r in facs.REGIONS + facs.EXTRA_REGIONS}) == 25 and facs.region_name("left_eye") == "left eye"


@given(st.sampled_from(facs.DIRECTIONS))
def test_mirror_keeps_the_vertical_part_and_is_its_own_inverse(word):
    assert facs.mirror(facs.mirror(word)) == word and [w for w in facs.mirror(word).split("-") if w in ("up", "down")] == [w for w in word.split("-") if w in ("up", "down")]
    assert facs.mirror(word) in facs.DIRECTIONS


@given(st.lists(st.sampled_from(sorted(facs.ACTION_UNITS)), unique=True, max_size=5))
def test_pulls_add_up(aus):
    pulls = facs._pulls(aus)
    assert set(pulls) <= {r for n in aus for r in facs.ACTION_UNITS[n].directions}
    assert all(np.hypot(*pull) <= len(aus) + 1e-9 for pull in pulls.values())


def test_chart_draws_one_face_a_combination():
    fig = facs.chart([(1,), (6, 12), (51,), (29,)], cols=3)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[:4] == ["AU1\ninner brow raiser", "AU6+12", "AU51\nhead turn left", "AU29\njaw thrust"] and len(fig.axes) == 6
    assert [len(ax.texts) for ax in fig.axes[:4]] == [4, 6, 1, 0]  # arrows: where skin moves


def test_parsing_and_writing_are_at_home_here_too():
    assert facs.parse_aus is aucode.parse_aus and facs.format_aus is aucode.format_aus and {"parse_aus", "format_aus"} <= set(facs.__all__)


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match="AU 3 is not a code"): facs.au_name(3)
    with pytest.raises(ValueError, match="left_inner_brow.*glabella"): facs.region_name("nose")
