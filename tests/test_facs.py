"""Action units: reading never fails or guesses, writing and reading are inverse, and the tables agree with each other."""
import numpy as np
import pytest
from hypothesis import given, strategies as st

from mellm import facs

formulas = st.text(alphabet="0123456789+LRABTCDEref() or/,，?k\ue000\ue001", max_size=40)


@given(st.one_of(st.text(), formulas, st.floats(), st.integers(), st.none(), st.booleans(), st.binary()))
def test_parse_never_raises_and_returns_known_units(cell):
    aus = facs.parse_aus(cell)
    assert isinstance(aus, tuple) and list(aus) == sorted(set(aus)) and set(aus) <= set(facs.ACTION_UNITS)


@given(st.sets(st.sampled_from(sorted(facs.ACTION_UNITS))))
def test_format_and_parse_are_inverse(aus):
    assert facs.parse_aus(facs.format_aus(aus)) == tuple(sorted(aus))


@given(formulas)
def test_parse_is_stable_under_its_own_writing(text):
    aus = facs.parse_aus(text)
    assert facs.parse_aus(facs.format_aus(aus)) == aus


@given(formulas, st.sampled_from(sorted(facs.ACTION_UNITS)))
def test_a_reference_is_never_certain(text, number):
    assert facs.parse_aus(f"ref({number})") == () and facs.parse_aus(f"{number} or") == ()


@pytest.mark.parametrize("cell, aus", [
    ("12", (12,)), ("4+7+L10", (4, 7, 10)), ("R2+15", (2, 15)), ("A1B+A2C", (1, 2)), ("15A+17", (15, 17)), ("7B", (7,)), ("10A/B", (10,)), ("A/L12", (12,)),
    ("R12 or R14", ()), ("(R6 or R12) + R15", (15,)), ("R14A or 17A or 24A", ()), ("ref(7B)+43C", (43,)), ("ref(L10)+A12B", (12,)), ("ref(5)+20C+25+26", (20, 25, 26)),
    ("7B+ ref(43)", (7,)), ("12+15 ", (12, 15)), ("L12 + 61", (12, 61)), ("T18+39", (18, 39)), ("4+13+T18+39", (4, 13, 18, 39)), ("B18+25", (18, 25)),
    ("R14+17+soft focus", (14, 17)), ("A9E+ref(10)", (9,)), ("8+25", (8, 25)), ("7B+56", (7, 56)), ("26+25", (25, 26)), ("AU4", (4,)), ("AU4+au7", (4, 7)),
    ("1，2", (1, 2)), (4, (4,)), (4.0, (4,)), (np.int64(4), (4,)), (np.float64(4), (4,)), (4.5, ()), (float("nan"), ()), (float("inf"), ()), (None, ()), ("", ()), ("/", ()),
    ("12 or 12+25", (12,)), ("((1+2))", (1, 2)), ("4(k)", ()), ("(4", ()), ("4)", ()), ("3", ()), ("99", ()), ("412", ()), ("4?", ()), ((1, 2), (1, 2)), ([], ())])
def test_strings_of_real_files(cell, aus):
    assert facs.parse_aus(cell) == aus


def test_many_parentheses_end():
    assert facs.parse_aus("(" * 5000 + "4" + ")" * 5000) == ()


def test_table_is_consistent():
    for number, unit in facs.ACTION_UNITS.items():
        assert unit.number == number and unit.name == unit.name.lower() and unit.face in ("upper", "lower", "other")
        assert set(unit.directions) <= set(facs.REGIONS + facs.EXTRA_REGIONS) and set(unit.directions.values()) <= set(facs.DIRECTIONS)
        for region, word in unit.directions.items():
            other = region.replace("left_", "#").replace("right_", "left_").replace("#", "right_")
            assert unit.directions[other] == (facs.mirror(word) if other != region and not 61 <= number <= 64 else word)
    assert {1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 24, 25, 26} <= {n for n, a in facs.ACTION_UNITS.items() if a.muscles}
    names = [a.name for a in facs.ACTION_UNITS.values()]
    assert len(set(names)) == len(names)


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match="AU 3 is not a code"): facs.au_name(3)
    with pytest.raises(ValueError, match="left_inner_brow"): facs.region_name("nose")


@given(st.one_of(st.text(), st.none(), st.floats()))
def test_emotions_never_raise(label):
    assert facs.emotion_name(label) in (None, *facs.EMOTIONS) and facs.emotion3(label) in (None, *facs.EMOTIONS3)


@pytest.mark.parametrize("label, one, three", [("Happy", "happiness", "positive"), ("Happiness ", "happiness", "positive"), ("sad", "sadness", "negative"),
                                               ("Other", "others", None), ("Repression", "repression", "negative"), ("surprise", "surprise", "surprise")])
def test_emotion_spellings(label, one, three):
    assert facs.emotion_name(label) == one and facs.emotion3(label) == three
