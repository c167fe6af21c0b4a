"Strings of action units: reading never fails, never guesses, loses nothing, and what is written is read back as the same object."
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, strategies as st

from mellm.aucode import CODES, DEEPEST, Alternatives, AUs, Unit, format_aus, parse_aus

formulas = st.text(alphabet="0123456789+LRABTCDEref() /,，；（）?k.-orAU", max_size=40)
units = st.builds("".join, st.tuples(st.sampled_from(["", "L", "R", "A", "T", "B", "A/L", "AU", "l"]), st.integers(0, 70).map(str), st.sampled_from(["", "A", "c", "A/B", "D-E", "(k)", "?"])))
words = st.one_of(units, st.sampled_from(["soft focus", "or", "ref", "x", "(", ")", "/"]))


@st.composite
def trees(draw, depth=3):
    if not depth or draw(st.booleans()): return draw(words)
    parts = draw(st.lists(trees(depth - 1), max_size=3))
    return draw(st.sampled_from(["{}", "({})", "ref ({})", "（{}）"])).format(draw(st.sampled_from(["+", " or ", ", ", " "])).join(parts))


cells = st.one_of(st.text(), formulas, trees())


@given(st.one_of(cells, st.floats(), st.integers(), st.none(), st.booleans(), st.binary(), st.complex_numbers(), st.dates(), st.lists(cells, max_size=4), st.sets(cells, max_size=4),
                 st.tuples(st.integers(), cells), st.dictionaries(st.text(), cells, max_size=2)))
def test_never_raises_and_numbers_are_known_and_sorted(cell):
    aus = parse_aus(cell)
    assert isinstance(aus, AUs) and list(aus.numbers) == sorted(set(aus.numbers)) and set(aus.numbers) <= CODES
    assert all(isinstance(text, str) and text for text in aus.unread) and all(u.number in CODES for u in aus.mentioned)
    assert parse_aus(str(aus)) == aus and hash(parse_aus(str(aus))) == hash(aus) and parse_aus(aus) is aus


class Rude:
    def __str__(self): raise RuntimeError("no")
    __repr__ = __str__


class Vain:
    def __getattr__(self, name): raise KeyError(name)


def test_objects_that_refuse_to_be_written_are_named():
    loop = []
    loop.append(loop)
    deep = []
    for _ in range(100_000): deep = [deep]
    for cell in (Rude(), [Rude()], Vain(), loop, deep, object(), int, 10**5000, np.array([[1], [2]]), pd.DataFrame({"a": [1]}), np.datetime64("2020-01-01"), b"4", {4: 7}):
        aus = parse_aus(cell)
        assert aus.numbers == () and aus.unread and parse_aus(str(aus)) == aus
    while deep: deep = deep.pop()  # Python cannot free so deep a list by itself
    assert parse_aus(Rude()).unread == ("<Rude>",)


tokens = st.lists(st.sampled_from(["1", "4", "12", "99", "L", "R", "B", "T", "A", "C", "k", "x", "soft", "?", "(k)", "AU4", "+", ",", "，", " ", "(", ")", "（", "）", " or ", "ref("]), max_size=25).map("".join)


def squash(text):
    "The characters of a formula that carry meaning, in their order."
    return re.sub(r"[\s+,，()（）]", "", text.replace("ref(", "").replace("AU", "")).upper()


@given(tokens)
def test_no_character_is_lost_or_invented(text):
    assert squash(str(parse_aus(text))) == squash(text)


@given(st.text())
def test_any_other_text_is_kept_word_by_word(text):
    assume(not re.search("(?i)[0-9]|au|or|ref", text) and parse_aus(text).items)  # an empty cell may also be written "/" or "n/a"
    assert re.findall(r"[^\s+＋,;，；、()（）]+", str(parse_aus(text))) == re.findall(r"[^\s+＋,;，；、()（）]+", text) == re.findall(r"[^\s+＋,;，；、()（）]+", " ".join(parse_aus(text).unread))


@given(st.sets(st.sampled_from(sorted(CODES))))
def test_writing_and_reading_numbers_are_inverse(numbers):
    for cell in (format_aus(numbers), tuple(numbers), numbers, ["AU" + str(n) for n in numbers], np.array(sorted(numbers)), pd.Series(sorted(numbers), dtype=float)):
        assert parse_aus(cell).numbers == tuple(sorted(numbers)) and not parse_aus(cell).unread


@given(st.sampled_from(sorted(CODES)), st.sampled_from(["", "L", "R"]), st.booleans(), st.sampled_from(["", "A", "E", "A/B"]), st.booleans(), st.sampled_from(["", "k"]))
def test_units_are_read_as_they_are_written(number, side, asymmetric, intensity, reference, mark):
    unit = Unit(number, side, asymmetric, "", intensity, reference, mark)
    assert parse_aus(str(unit)) == AUs((unit,)) and parse_aus(f" {str(unit).lower()} ").units[0].number == number
    assert parse_aus(str(unit)).numbers == ((number,) if unit.certain else ())


@given(cells, st.sampled_from(sorted(CODES)))
def test_uncertain_units_are_never_counted(text, number):
    assert parse_aus(f"ref({number})").numbers == () == parse_aus(f"{number} or").numbers == parse_aus(f"{number}(k)").numbers == parse_aus(f"{number} or soft").numbers
    inside = parse_aus(f"ref({text.translate({ord(c): ' ' for c in '()（）'})})")
    assert inside.numbers == () and (all(u.reference for u in inside.mentioned) or not inside.items)


@given(cells, cells)
def test_alternatives_count_what_both_readings_contain(a, b):
    assume(not set("()（）") & set(a + b) and all(re.search(r"[^\s+＋,;，；、]", part) for part in re.split(r"(?i)(?<![^\W\d_])or(?![^\W\d_])", f"{a} or {b}")))
    assert set(parse_aus(f"{a} or {b}")) == set(parse_aus(a)) & set(parse_aus(b))


@pytest.mark.parametrize("cell, numbers, unread, text", [
    ("12", (12,), (), "12"), ("4+7+L10", (4, 7, 10), (), "4+7+L10"), ("R2+15", (2, 15), (), "R2+15"), ("A1B+A2C", (1, 2), (), "A1B+A2C"), ("15A+17", (15, 17), (), "15A+17"),
    ("7B", (7,), (), "7B"), ("10A/B", (10,), (), "10A/B"), ("A/L12", (12,), (), "A12 or L12"), ("R12 or R14", (), (), "R12 or R14"), ("(R6 or R12) + R15", (15,), (), "(R6 or R12)+R15"),
    ("R14A or 17A or 24A", (), (), "R14A or 17A or 24A"), ("ref(7B)+43C", (43,), (), "ref(7B)+43C"), ("ref(L10)+A12B", (12,), (), "ref(L10)+A12B"),
    ("ref(5)+20C+25+26", (20, 25, 26), (), "ref(5)+20C+25+26"), ("7B+ ref(43)", (7,), (), "7B+ref(43)"), ("12+15 ", (12, 15), (), "12+15"), ("L12 + 61", (12, 61), (), "L12+61"),
    ("T18+39", (18, 39), (), "T18+39"), ("4+13+T18+39", (4, 13, 18, 39), (), "4+13+T18+39"), ("B18+25", (18, 25), (), "B18+25"), ("R14+17+soft focus", (14, 17), ("soft focus",), "R14+17+soft focus"),
    ("A9E+ref(10)", (9,), (), "A9E+ref(10)"), ("8+25", (8, 25), (), "8+25"), ("7B+56", (7, 56), (), "7B+56"), ("26+25", (25, 26), (), "26+25"), ("AU4", (4,), (), "4"), ("AU4+au7", (4, 7), (), "4+7"),
    ("AU4(k)", (), (), "4(k)"), ("AU4（k）+AU7", (7,), (), "4(k)+7"), ("1，2", (1, 2), (), "1+2"), ("1、2；4", (1, 2, 4), (), "1+2+4"), ("1,2;4", (1, 2, 4), (), "1+2+4"), ("（1 or 2）＋4", (4,), (), "(1 or 2)+4"),
    ("a9e + REF(L10)", (9,), (), "A9E+ref(L10)"), ("AU 4 + L 12 b", (4, 12), (), "4+L12B"), ("4 7", (4, 7), (), "4+7"), ("4\n7", (4, 7), (), "4+7"), ("AU04+AU4", (4,), (), "4+4"),
    (4, (4,), (), "4"), (4.0, (4,), (), "4"), ("4.0", (4,), (), "4"), (np.int64(4), (4,), (), "4"), (np.float32(4), (4,), (), "4"), (np.str_("4+7"), (4, 7), (), "4+7"), ("412", (), ("412",), "412"),
    (4.5, (), ("4.5",), "4.5"), (0, (), ("0",), "0"), (-4, (), ("-4",), "-4"), (float("inf"), (), ("inf",), "inf"), (True, (), ("True",), "True"), (np.bool_(False), (), ("False",), "False"),
    (float("nan"), (), (), ""), (None, (), (), ""), (pd.NA, (), (), ""), (pd.NaT, (), (), ""), (np.float64("nan"), (), (), ""), ("", (), (), ""), ("  ", (), (), ""), ("/", (), (), ""), ("+", (), (), ""),
    ("NaN", (), (), ""), ((1, 2), (1, 2), (), "1+2"), ([], (), (), ""), ([4, None, "7B"], (4, 7), (), "4+7B"), (["1 or 2", 4], (4,), (), "(1 or 2)+4"), ([[4]], (), ("[4]",), "[4]"),
    ("12 or 12+25", (12,), (), "12 or 12+25"), ("4+7 or 12", (), (), "4+7 or 12"), ("((1+2))", (1, 2), (), "1+2"), ("((1 or 2) or 4)", (), (), "1 or 2 or 4"), ("ref(5+7)", (), (), "ref(5)+ref(7)"),
    ("ref(5 or 7)+4", (4,), (), "(ref(5) or ref(7))+4"), ("ref(4(k))", (), (), "ref(4(k))"), ("7B ref(43)", (), ("7B ref(43)",), "7B ref(43)"), ("12or14", (), (), "12 or 14"), ("4+A/L12", (4, 12), (), "4+(A12 or L12)"),
    ("14 or A/L12", (), (), "14 or A12 or L12"), ("A/L12(k)", (), (), "A12(k) or L12(k)"), ("(4", (), ("(4",), "(4"), ("4)", (), ("4)",), "4)"), ("(4+7", (7,), ("(4",), "(4+7"), ("4? + 7", (7,), ("4?",), "4?+7"),
    ("3", (), ("3",), "3"), ("12+99", (12,), ("99",), "12+99"), ("T4", (), ("T4",), "T4"), ("B4", (4,), (), "B4"), ("12 ?", (), ("12 ?",), "12 ?"), ("soft (focus + 4)+7", (7,), ("soft (focus + 4)",), "soft (focus + 4)+7"),
    ("(R12 or)+15", (15,), ("(R12 or)",), "(R12 or)+15"), ("R12 or", (), ("R12 or",), "R12 or"), ("()", (), ("()",), "()"), ("ref()+4", (4,), ("ref()",), "ref()+4"), ("4+nan", (4,), ("nan",), "4+nan"),
    ("4 or order", (), ("order",), "4 or order"), ("4(7)", (), ("4(7)",), "4(7)"), ("１２", (), ("１２",), "１２")])
def test_strings_of_real_files_and_their_like(cell, numbers, unread, text):
    aus = parse_aus(cell)
    assert aus.numbers == numbers and aus.unread == unread and str(aus) == text and parse_aus(text) == aus


def test_what_a_unit_carries():
    def one(text): return parse_aus(text).units[0]
    assert one("L10") == Unit(10, side="L") and one("A1B") == Unit(1, asymmetric=True, intensity="B") and one("10A-B") == Unit(10, intensity="A/B") and one("B6") == Unit(6, side="B")
    assert one("T18") == Unit(18, lip="T") and one("B18") == Unit(18, lip="B") and one("ref(7B)") == Unit(7, intensity="B", reference=True) and one("AU4(k)") == Unit(4, mark="k")
    assert one("AL12") == Unit(12, side="L", asymmetric=True) and one("A/L12") == Alternatives(((Unit(12, asymmetric=True),), (Unit(12, side="L"),)))
    assert parse_aus("(R6 or R12) + R15").units == (Alternatives(((Unit(6, "R"),), (Unit(12, "R"),))), Unit(15, "R")) and parse_aus("soft or hard").units == ()
    assert [u.number for u in parse_aus("(R6 or R12+x) + R15").mentioned] == [6, 12, 15] and repr(one("L12B")) == "Unit(12, side='L', intensity='B')"


def test_aus_behave_like_the_tuple_of_their_numbers():
    aus = parse_aus("26+25+ref(5)")
    assert list(aus) == [25, 26] and len(aus) == 2 and 25 in aus and 5 not in aus and bool(aus) and not parse_aus("ref(5)") and set(aus) == {25, 26} and [*aus] == [25, 26]
    assert aus == parse_aus(" 26 + 25+ref( 5 )") != parse_aus("25+26+ref(5)") and len({aus, parse_aus(str(aus))}) == 1 and eval(repr(aus)) == aus
    assert parse_aus([aus, 4]) == parse_aus("26+25+ref(5)+4") and parse_aus([Unit(12, "L"), 4]) == parse_aus("L12+4")


@pytest.mark.parametrize("text", [
    "4+", "(", ")", "()", "4 or ", "ref(", "ref(4+", "x ", "4(k)", "A/L12 ", "(4 or ", " ", "+", "(4)", "or", "，", "1 (", "9" * 7, "A/", "L"])
def test_long_nonsense_ends_soon(text):
    start = time.perf_counter()
    aus = parse_aus(text * (100_000 // len(text)))
    assert parse_aus(str(aus)) == aus and time.perf_counter() - start < 20


@pytest.mark.parametrize("opening, inside, closing", [("(", "4", ")"), ("(4 or ", "7", ")"), ("ref(", "4", ")"), ("(1+", "4", ")"), ("(4 or ", "7", " or 9)"), ("12+(4 or ", "7", ")"), ("(12+(4 or ", "7", "))"), ("((4 or)+", "7", ")")])
def test_deep_nesting_ends_soon_and_stays_readable(opening, inside, closing):
    for n in (DEEPEST - 1, DEEPEST, DEEPEST + 1, 12_000):
        start = time.perf_counter()
        aus = parse_aus(opening * n + inside + closing * n)
        assert parse_aus(str(aus)) == aus and hash(aus) and aus.mentioned is not None and time.perf_counter() - start < 20
    assert parse_aus("(" * 50_000 + "4" + ")" * 50_000).numbers == (4,)


def test_format():
    assert format_aus((2, 1, 1)) == "1+2" and format_aus([]) == "" and format_aus(parse_aus("L12+ref(4)+2")) == "2+12"
