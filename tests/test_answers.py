"What a text claims: never more, never an error."
import time

import pytest
from hypothesis import given, settings, strategies as st

from mellm import facs
from mellm.answers import AU_CHINESE, EMOTION_CHINESE, Answer, parse_answer
from mellm.labels import EMOTIONS, EMOTIONS3, emotion3

FINE = [e for e in EMOTIONS if e not in ("positive", "negative")]
units = st.sets(st.sampled_from(sorted(facs.ACTION_UNITS)), min_size=1, max_size=5).map(lambda s: tuple(sorted(s)))


@given(st.text(max_size=300))
def test_never_raises(text):
    answer = parse_answer(text)
    assert answer.aus is None or all(a in facs.ACTION_UNITS for a in answer.aus)
    assert answer.emotion in (None, *EMOTIONS3) and answer.fine in (None, *EMOTIONS) and answer.yes in (None, True, False)


words = st.sampled_from([*"AU AUs action unit units 6 12 99 + , and or not no yes ? . ; : ( ) conclude conclusion answer \n positive negative surprise happy sad others".split(" "),
                         "cheek raiser", "dimpler", "<think>", "</think>", "没有", "结论：", "嘴角上扬", "积极", "不", "是。"])


@settings(max_examples=300)
@given(st.lists(words, max_size=25).map(" ".join))
def test_never_raises_on_the_words_it_looks_for(text):
    answer = parse_answer(text)
    if answer.emotion and answer.fine: assert emotion3(answer.fine) in (None, answer.emotion)
    if answer.aus: assert set(answer.aus) <= {6, 12, 14} | {n for n in facs.ACTION_UNITS if str(n) in text}


@pytest.mark.parametrize("thing", [None, 7, float("nan"), b"AU12", ["AU12"], object()])
def test_takes_anything(thing): assert isinstance(parse_answer(thing), Answer)


def test_an_object_that_fails_when_asked_for_its_text():
    class Bad:
        def __str__(self): raise RuntimeError
    assert parse_answer(Bad()) == Answer()


SPELLINGS = [lambda a: f"AU{facs.format_aus(a)}", lambda a: ", ".join(f"AU{n}" for n in a), lambda a: "AUs: " + " ".join(map(str, a)), lambda a: "AU" + " + AU".join(map(str, a)),
             lambda a: "Action units " + " and ".join(map(str, a)), lambda a: "; ".join(f"**AU {n}** ({facs.au_name(n)})" for n in a), lambda a: ", ".join(map(facs.au_name, a)),
             lambda a: "The action units are " + " and the ".join(facs.au_name(n).title() for n in a), lambda a: f'{{"aus": {list(a)}}}', lambda a: " ".join(f"au_{n:02d}" for n in a),
             lambda a: "AU" + "、".join(map(str, a)), lambda a: "、".join(AU_CHINESE.get(n) or facs.au_name(n) for n in a), lambda a: "AU " + "+".join(f"L{n}C" for n in a)]


@settings(max_examples=150)
@given(units, st.sampled_from(SPELLINGS), st.sampled_from(FINE))
def test_units_and_emotions_in_every_spelling(aus, spell, fine):
    assert parse_answer(f"{spell(aus)}; {fine}.") == Answer(aus, emotion3(fine), fine)
    assert parse_answer(f"It may be AU45, or disgust.\nConclusion: {fine}; {spell(aus)}") == Answer(aus, emotion3(fine), fine)


@settings(max_examples=60)
@given(units, units, st.sampled_from(SPELLINGS))
def test_what_is_denied_is_never_claimed(aus, others, spell):
    answer = parse_answer(f"{spell(aus)} can be seen. There is no {spell(others).replace(';', ',')}.")
    assert answer.aus is None or not set(answer.aus) & set(others)


@given(st.sampled_from(FINE), st.sampled_from(FINE))
def test_two_emotions_are_undecided(a, b):
    answer = parse_answer(f"It is {a} or {b}.")
    if a != b: assert answer.fine is None
    classes = {emotion3(a), emotion3(b)} - {None}
    assert answer.emotion == (classes.pop() if len(classes) == 1 else None)


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_every_emotion_has_a_chinese_word(emotion):
    answer = parse_answer(f"结论：{EMOTION_CHINESE[emotion]}。")
    assert answer == Answer(None, emotion3(emotion), emotion if emotion in FINE else None)


def test_chinese_names_are_read_back():
    assert len(set(AU_CHINESE.values())) == len(AU_CHINESE)
    for number, name in AU_CHINESE.items(): assert parse_answer(f"动作单元是{name}。").aus == (number,)


@pytest.mark.parametrize("text,aus,emotion", [
    ("Conclude: AU1+2; surprise.", (1, 2), "surprise"), ("AUs: 4, 9 and 17. Negative!", (4, 9, 17), "negative"), ("**AU 12** (Lip Corner Puller); emotion: **positive**", (12,), "positive"),
    ("positive? no. Conclusion: AU4, negative", (4,), "negative"), ("Nothing to see", None, None), ("positive or surprise", None, None), ("", None, None), ("AU99; negative", None, "negative"),
    ("No action units are active. Negative.", (), "negative"), ("AU12 or AU14", None, None), ("AU6 and (AU12 or AU14)", (6,), None), ("The cheek raiser, dimpler and lid tightener are not shown; AU4 is", (4,), None), ("AU4; AU4 is not visible", None, None), ("AU6 (chin raiser)", None, None), ("AU12 (lip corner puller); AU6 (cheek raiser) is not visible", (12,), None),
    ("AUs 4; 7", (4, 7), None),
    ("<think>AU4, negative</think>AU12, positive", (12,), "positive"), ("### Conclusion\n- AU1\n- AU2\n- fear", (1, 2), "negative"), ("AU4, 3 regions move", (4,), None),
    ("It's 12% stronger than AU5", (5,), None), ("The unit AU12, not AU14, in a happy face", (12,), "positive"), ("There is another reason", None, None),
    ("Conclude: positive.", None, "positive"), ("Conclude: nothing is annotated.", None, None), ("no surprise, but anger", None, "negative")])
def test_examples(text, aus, emotion):
    answer = parse_answer(text)
    assert (answer.aus, answer.emotion) == (aus, emotion)


@pytest.mark.parametrize("text,yes", [("Yes.", True), ("**No**", False), ("no, it is not", False), ("Yes. No.", None), ("No action units are active", None), ("yes or no", None), ("Maybe", None),
                                      ("Does it move? Yes!", True), ("The answer is no.", False), ("Answer: Yes", True), ("是。", True), ("否。", False), ("没有。", False), ("No doubt", None), ("Noyes", None)])
def test_yes_and_no(text, yes): assert parse_answer(text).yes is yes


@pytest.mark.parametrize("text", ["a " * 20_000, "au1 " * 10_000, "\n" * 40_000, "not " * 10_000, "(" * 40_000, "au1. " * 8_000, "cheek raiser or " * 2_500])
def test_long_nonsense_takes_no_time(text):
    start = time.process_time()
    parse_answer(text)
    assert time.process_time() - start < 4
