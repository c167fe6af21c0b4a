"Instruction data: grounded sentences, balanced questions, answers that read back, and a dataset that says what it is."
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import chinese, facs, instructions as I, measures, words
from mellm.answers import Answer, parse_answer
from mellm.labels import EMOTIONS, emotion3
from mellm.measures import FINE_REGIONS, SPOKEN


def regions(keys=SPOKEN, **vectors):
    "A region table with the given (dx, dy) and stillness elsewhere."
    rows = []
    for key in keys:
        dx, dy = vectors.get(key, (0., 0.))
        m = float(np.hypot(dx, dy))
        rows.append(dict(region=key, dx=dx, dy=dy, magnitude=m, maximum=2 * m, percent=100 * m / 72, direction=measures.direction_word(dx, dy), angle=measures.direction_angle(dx, dy),
                         color=measures.color_word(dx, dy), concentration=1. if m else 0.))
    return pd.DataFrame(rows)


def a_clip(aus="6+12", emotion="happiness", name="s01_00", split="train", corpus="synthetic"):
    return SimpleNamespace(clip=name, corpus=corpus, subject=name[:3], split=split, aus=aus, emotion=emotion, emotion3=emotion3(emotion) or "", color_map=f"colormap/maps/{name}.png")


SMILE = regions(left_mouth_corner=(1.5, -1.5), right_mouth_corner=(-1.4, -1.6), left_cheek=(0., -.9))
text_of = lambda message: "".join(p.get("text", "") for p in message["content"])
vectors = st.dictionaries(st.sampled_from(SPOKEN), st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=5)
some_units = st.sets(st.sampled_from(sorted(facs.ACTION_UNITS)), max_size=4).map(lambda s: tuple(sorted(s)))


@settings(max_examples=60, deadline=None)
@given(vectors, some_units, st.sampled_from(["", *EMOTIONS]), st.sampled_from(["en", "zh"]), st.integers(0, 10**6))
def test_every_sentence_is_backed(vec, aus, emotion, language, seed):
    "Regions and directions spoken of are measured; units and emotion are the annotation's; the description reads back."
    facts = I.known(a_clip(facs.format_aus(aus), emotion), regions(**vec))
    ((_, _, text),) = I.describe_questions(facts, np.random.default_rng(seed), language)
    read = parse_answer(text)
    assert (read.aus or (), read.fine) == (aus, emotion if emotion not in ("", "positive", "negative") else None)
    assert read.emotion == (emotion3(emotion) if emotion else None)
    speak = I.TONGUES[language]
    moving = {(r.region, speak.face_direction(r.region, r.direction)) for r in facts.seen.itertuples()}
    for sentence in text.split("\n")[0].split("." if language == "en" else "。")[:-1]:
        if "Nothing" in sentence or "没有" in sentence: assert not moving
        else: assert any(way in sentence for _, way in moving), sentence


@pytest.mark.parametrize("speak,yes", [(words, "Yes."), (chinese, "是。")])
def test_answers_on_motion_are_true(speak, yes):
    seen, rng = words.moves(SMILE), np.random.default_rng(0)
    ways = {(facs.region_name(r.region) if speak is words else chinese.region_name(r.region)): speak.face_direction(r.region, r.direction) for r in seen.itertuples()}
    for task, question, answer in speak.motion_turns(seen, rng, 300):
        named = next((name for name in ways if name in question), None)
        if task == "moves": assert (answer == yes) == (named is not None), question
        if task == "how" and named: assert answer.lower().startswith(ways[named])
        if task == "does" and answer == yes: assert ways[named] in question


def test_chinese_and_english_say_the_same():
    seen = words.moves(SMILE)
    assert words.look(seen) == ["Both mouth corners move up and out, strongly.", "The left cheek moves up, moderately."]
    assert chinese.look(seen) == ["双侧嘴角向上向外移动，强烈。", "左侧脸颊向上移动，中等。"]
    for region in SPOKEN:
        for direction in facs.DIRECTIONS: assert chinese.face_direction(region, direction) and chinese.region_name(region)
    assert chinese.look(words.moves(regions())) == [chinese.STILL]
    assert all(len(set(phrases)) >= 8 for tongue in (words, chinese) for phrases in tongue.QUESTIONS.values())
    assert all("AU7" in tongue.describe(seen, (7,), None) for tongue in (words, chinese))


def test_no_units_are_invented():
    "A corpus without action units gets none, whatever its emotion."
    facts = I.known(a_clip("", "positive"), SMILE)
    assert facts.fine is None and facts.emotion == "positive"
    for language in ("en", "zh"):
        made = I.records(a_clip("", "positive"), SMILE, language=language)
        assert not any("AU" in text_of(m) for r in made for m in r["messages"][2::2])
        assert not {"au", "aus", "fine"} & {t for r in made for t in r["tasks"]}
        assert parse_answer(text_of(made[0]["messages"][-1])) == Answer(None, "positive")
    assert not I.compare(facts).marked and I.compare(facts).unexplained == ()


def test_a_clip_of_which_nothing_is_known_but_motion():
    made = I.records(a_clip("", ""), SMILE)
    assert [r["id"].split("/")[1] for r in made] == list(I.FAMILIES)
    assert made[2]["tasks"] == ["mevqa"] and "nothing is annotated" in text_of(made[2]["messages"][-1])


def test_uncertain_units_are_not_taught():
    assert I.known(a_clip("12 or 14"), SMILE).aus == () and I.known(a_clip("R12A+ref(4)"), SMILE).aus == (12,)


@settings(max_examples=100)
@given(some_units, st.integers(0, 10**6), st.lists(st.sampled_from(sorted(facs.ACTION_UNITS)), max_size=30))
def test_as_many_units_are_there_as_not(aus, seed, pool):
    asked = I.asked_units(aus, np.random.default_rng(seed), pool=tuple(pool))
    assert all((a in aus) == there for a, there in asked) and len({a for a, _ in asked}) == len(asked)
    absent = set(pool) - set(aus)
    present = [a for a, there in asked if there]
    assert len(present) == min(2, len(aus)) and len(asked) - len(present) == min(len(present), len(absent))


def test_each_unit_is_asked_with_yes_and_with_no():
    rng = np.random.default_rng(0)
    clips = [((6, 12), 60), ((1, 2), 30), ((4,), 60), ((9, 10), 6)]
    pool = tuple(a for aus, n in clips for a in aus * n)
    asked = pd.DataFrame([q for aus, n in clips for _ in range(n * 10) for q in I.asked_units(aus, rng, pool=pool)], columns=["unit", "there"])
    share = asked.groupby("unit").there.mean()
    assert abs(asked.there.mean() - .5) < .01 and share.between(.3, .7).all(), share


def test_questions_of_the_challenge_stand_word_for_word():
    facts = I.known(a_clip(), SMILE)
    turns = {q: a for _, q, a in I.mevqa_questions(facts, np.random.default_rng(0))}
    assert turns["What is the coarse expression class?"] == "positive" and turns["What is the fine-grained expression class?"] == "happiness"
    assert turns["What are the action units?"] == "cheek raiser, lip corner puller"
    (question,) = [q for q in turns if q.startswith("Is the action unit ")]
    assert question.endswith(" shown on the face?") and turns[question] == ("yes" if any(n in question for n in ("cheek raiser", "lip corner puller")) else "no")
    one = {q: a for _, q, a in I.mevqa_questions(I.known(a_clip("4", "anger"), SMILE), np.random.default_rng(0))}
    assert one["What is the action unit?"] == "brow lowerer"


def test_disagreement_by_hand():
    brows_up = regions(left_inner_brow=(0., -2.), right_inner_brow=(0., -2.), chin=(0., -.8))
    table = {"a": (a_clip("1", "surprise", "a"), brows_up), "b": (a_clip("1+4", "sadness", "b"), brows_up), "c": (a_clip("17", "others", "c"), brows_up),
             "d": (a_clip("61", "others", "d"), brows_up), "e": (a_clip("", "positive", "e"), brows_up), "f": (a_clip("12", "happiness", "f"), regions())}
    marked = {name: I.compare(I.known(clip, r)) for name, (clip, r) in table.items()}
    assert {n: c.marked for n, c in marked.items()} == dict(a=False, b=True, c=True, d=False, e=False, f=True)
    assert marked["a"].unexplained == ("chin",) and marked["b"].hidden == (4,) and marked["c"].seen == (17,) and marked["d"].elsewhere == (61,)
    clips = pd.DataFrame([vars(c) for c, _ in table.values()])
    (row,) = I.disagreement(clips, pd.concat([r.assign(clip=n) for n, (_, r) in table.items()])).to_dict("records")
    assert row == {"corpus": "synthetic", "clips": 6, "without AUs": 1, "nothing moves": 1, "AUs annotated": 6, "seen": 3, "not visible": 2, "not measurable": 1, "moving regions": 12,
                   "unexplained": 7, "marked": 3, "marked, %": 50.0}


def test_disagreement_of_nothing_is_a_sentence():
    with pytest.raises(ValueError, match="no clip to compare"): I.disagreement(pd.DataFrame(columns=["clip", "corpus", "aus", "emotion", "emotion3"]), SMILE.assign(clip="a"))


def test_lines_for_a_model_without_eyes():
    fine = regions(FINE_REGIONS, left_cheek=(1., -1.), chin=(0., 1e-5)).assign(direction=lambda t: t.direction.where(t.region != "right_cheek", measures.NO_DIRECTION))
    fine.loc[fine.region == "right_cheek", "magnitude"] = .5
    lines = [json.loads(line) for line in I.text_lines(fine).splitlines()]
    assert len(lines) == 29 and [line["region"] for line in lines] == list(FINE_REGIONS)
    said = {line["region"]: line["direction"] for line in lines}
    assert said["left_cheek"] == "up-right (45°)" and said["chin"] == "no significant motion" and said["right_cheek"] == "no clear dominant direction"


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("view", ["picture", "text"])
def test_records_are_chat_messages(language, view):
    fine = regions(FINE_REGIONS, left_cheek=(1., -1.))
    made = I.records(a_clip(), SMILE, fine, 0, language, view)
    assert json.loads(json.dumps(made)) == made and I.records(a_clip(), SMILE, fine, 0, language, view) == made  # plain JSON, and the same every time
    for r in made:
        roles = [m["role"] for m in r["messages"]]
        assert roles == ["system"] + ["user", "assistant"] * len(r["tasks"])
        pictures = sum(c["type"] == "image" for m in r["messages"] for c in m["content"])
        assert pictures == len(r["images"]) == (view == "picture")
        assert r["language"] == language and r["view"] == view and r["aus"] == "6+12" and r["emotion"] == "positive" and r["fine"] == "happiness"
        if view == "text":
            assert text_of(r["messages"][1]).startswith('{"region"') and not {"color", "legend"} & set(r["tasks"])
            assert not any(w in text_of(m).split("}")[-1] for m in r["messages"][1:] for w in ("color", "bright", "颜色", "亮"))
        assert text_of(r["messages"][0]) == I.prompt("en" if r["id"].endswith("mevqa") else language, view)


def test_another_seed_another_phrasing():
    texts = {text_of(I.records(a_clip(), SMILE, seed=s)[0]["messages"][1]) for s in range(20)}
    assert len(texts) >= 5


def test_the_text_view_needs_fine_regions():
    with pytest.raises(ValueError, match="s01_00.*fine regions"): I.records(a_clip(), SMILE, None, view="text")


def clips_table(): return pd.DataFrame([vars(a_clip(name="s01_00")), vars(a_clip("4", "anger", "s02_00")), vars(a_clip("1+2", "surprise", "s03_00", "test"))])


def test_a_clip_without_measurements_is_left_out_with_a_warning():
    measured = pd.concat([SMILE.assign(clip=c) for c in ("s01_00", "s03_00")])
    with pytest.warns(UserWarning, match="1 of 3 clips have no region motion.*s02_00"): made = I.make_records(clips_table(), measured, measured)
    assert {r["clip"] for r in made} == {"s01_00", "s03_00"}
    with pytest.raises(ValueError, match="None of 3 clips"): I.make_records(clips_table(), SMILE.assign(clip="other"), SMILE.assign(clip="other"))


def test_units_to_deny_come_from_the_training_part():
    measured = pd.concat([SMILE.assign(clip=c) for c in clips_table()["clip"]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = I.make_records(clips_table(), measured, measured)
    denied = {q for q in I.turns_of(made).query("task == 'au' and answer == 'No.'").question}
    assert not any(text in q for q in denied for text in ("AU1 ", "AU2 ", "inner brow raiser"))


def test_a_corpus_of_three_classes_is_asked_for_no_finer_emotion():
    clips = pd.DataFrame([vars(a_clip("", e, f"s0{i}_00", corpus=c)) for i, (e, c) in enumerate([("positive", "smic"), ("surprise", "smic"), ("", "smic"), ("surprise", "casme2"), ("disgust", "casme2")])])
    made = I.make_records(clips, pd.concat([SMILE.assign(clip=c) for c in clips["clip"]]), SMILE.assign(clip="s00_00"))
    assert {r["clip"]: r["fine"] for r in made} == {"s00_00": "", "s01_00": "", "s02_00": "", "s03_00": "surprise", "s04_00": "disgust"}
    assert {r["clip"]: r["emotion"] for r in made}["s01_00"] == "surprise"


def test_card():
    measured = pd.concat([SMILE.assign(clip=c) for c in clips_table()["clip"]])
    made = I.make_records(clips_table(), measured, measured)
    card = I.dataset_card(made, I.disagreement(clips_table(), measured), "license: other\n")
    assert card.startswith("---\nlanguage: en\n") and "license: other\n---\n" in card
    for part in ("| records | 6 | 3 |", "| clips | 2 | 1 |", "| positive | 1 | 0 |", "| AU4 brow lowerer | 1 | 0 |", "| marked | ", "## One example of each task", "## Licence", "do not allow"): assert part in card, part
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    assert "empty" in I.dataset_card([], pd.DataFrame())


def test_card_without_units_and_emotions():
    clips = pd.DataFrame([vars(a_clip("", "", "s01_00"))])
    card = I.dataset_card(I.make_records(clips, SMILE.assign(clip="s01_00"), SMILE.assign(clip="s01_00")), I.disagreement(clips, SMILE.assign(clip="s01_00")))
    assert "| not annotated | 1 | 0 |" in card and "Clips by action unit" not in card
