"Instruction data: grounded sentences, balanced questions, answers that read back."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import facs, measures
from mellm.labels import EMOTIONS3
from mellm import instructions as I


def regions(**vectors):
    "A region table with the given (dx, dy) and stillness elsewhere."
    rows = []
    for key in facs.REGIONS:
        dx, dy = vectors.get(key, (0., 0.))
        m = float(np.hypot(dx, dy))
        rows.append(dict(region=key, dx=dx, dy=dy, magnitude=m, percent=100 * m / 72, direction=measures.direction_word(dx, dy), color=measures.color_word(dx, dy), concentration=1. if m else 0.))
    return pd.DataFrame(rows)


SMILE = regions(left_mouth_corner=(1.5, -1.5), right_mouth_corner=(-1.4, -1.6), left_cheek=(0., -.9))


def test_symmetric_motion_is_said_once():
    assert I.look(I.moves(SMILE)) == ["Both mouth corners move up and out, strongly.", "The left cheek moves up, moderately."]


def test_nothing_moves():
    assert I.look(I.moves(regions())) == ["Nothing moves clearly."]
    assert I.look(I.moves(regions(chin=(0., -.1)))) == ["Nothing moves clearly."]


def test_no_units_are_invented():
    "A corpus without action units gets none, whatever its emotion."
    text = I.describe(I.moves(SMILE), (), "positive")
    assert "AU" not in text and I.parse_answer(text) == I.Answer((), "positive")
    assert I.au_turns((), np.random.default_rng(0)) == [] and I.emotion_turns(None, np.random.default_rng(0)) == []


vectors = st.dictionaries(st.sampled_from(facs.REGIONS), st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(vectors, st.sets(st.sampled_from(sorted(facs.ACTION_UNITS)), max_size=4), st.sampled_from([None, *EMOTIONS3]), st.integers(0, 10**6))
def test_every_sentence_is_backed(vec, aus, emotion, seed):
    "Regions and directions spoken of are measured; units and emotion are the annotation's; the description reads back."
    table, aus = regions(**vec), tuple(sorted(aus))
    seen, rng = I.moves(table), np.random.default_rng(seed)
    read = I.parse_answer(I.describe(seen, aus, emotion))
    assert read.emotion == emotion and read.aus == aus
    ways = {(r.region, I.face_direction(r.region, r.direction)) for r in seen.itertuples()}
    for task, question, answer in I.motion_turns(seen, rng, 12):
        if task == "does" and answer == "Yes.":
            hit = [r for r, w in ways if facs.region_name(r) in question and f" {w}?" in question.replace("moving", "move")]
            assert hit, question
        if task == "how" and "not move" not in answer:
            assert any(facs.region_name(r) in question and answer.lower().startswith(w) for r, w in ways), (question, answer)


def test_yes_and_no_are_balanced():
    rng, seen = np.random.default_rng(0), I.moves(SMILE)
    au = [a for _ in range(400) for t, _, a in I.au_turns((6, 12), rng) if t == "au"]
    assert .42 < np.mean([a == "Yes." for a in au]) < .58
    does = [a for _ in range(900) for t, _, a in I.motion_turns(seen, rng) if t == "does"]
    assert .2 < np.mean([a == "Yes." for a in does]) < .5


@given(st.text(max_size=300))
def test_parse_never_raises(text):
    answer = I.parse_answer(text)
    assert answer.aus is None or all(a in facs.ACTION_UNITS for a in answer.aus)


@pytest.mark.parametrize("text,aus,emotion", [
    ("Conclude: AU1+2; surprise.", (1, 2), "surprise"), ("AUs: 4, 9 and 17. Negative!", (4, 9, 17), "negative"), ("**AU 12** (Lip Corner Puller); emotion: **positive**", (12,), "positive"),
    ("positive? no. Conclusion: AU4, negative", (4,), "negative"), ("Nothing to see", None, None), ("positive or surprise", None, None), ("", None, None), (None, None, None),
    ("AU99; negative", None, "negative"), ("No action units are active. Negative.", (), "negative")])
def test_parse_examples(text, aus, emotion): assert I.parse_answer(text) == I.Answer(aus, emotion)


def test_answer_mask_needs_an_answer():
    with pytest.raises(ValueError, match="no answer"): I.answer_mask([1, 2, 3], [9], 3)


def test_records_are_chat_messages():
    clip = next(pd.DataFrame([dict(clip="s01_00", subject="s01", split="train", aus="6+12", emotion3="positive", color_map="colormap/maps/s01_00.png")]).itertuples())
    a, b = I.records(clip, SMILE)
    assert json.loads(json.dumps(a)) == a and I.records(clip, SMILE)[1] == b      # plain JSON, and the same every time
    for r in (a, b):
        roles = [m["role"] for m in r["messages"]]
        assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)
        assert sum(c["type"] == "image" for m in r["messages"] for c in m["content"]) == len(r["images"]) == 1
        assert len(r["tasks"]) == len(roles) // 2
