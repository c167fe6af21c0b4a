"Sampling: what a step of training sees."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from mellm import sampling as S, words
from mellm.bases import ModelError
from mellm.study import Study

FACES = [("6+12", "positive"), ("4", "negative"), ("1+2", "surprise")]


@pytest.fixture
def study(tmp_path): return Study.load(env={}, runs=str(tmp_path), name="t")


def make_records(study, n=4):
    "One record a clip: a question about motion, one about action units, one about the emotion."
    study.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        aus, emotion = FACES[i % 3]
        Image.new("RGB", (8, 8)).save(study.folder / f"{i}.png")
        turns = [("What moves?", "Nothing moves clearly."), ("Which action units are active?", f"AU{aus}."), ("Which emotion is it?", f"{emotion.capitalize()}.")]
        rows.append(dict(id=str(i), clip=str(i), corpus="c", subject=f"s{i % 2}", tasks=["what", "aus", "emotion"], aus=aus, emotion=emotion, images=[f"{i}.png"], messages=words.conversation(turns)))
    return rows


# What is drawn

def test_only_keeps_turns_and_their_picture(study):
    records = make_records(study, 2)
    kept = S.only(records, ("aus", "emotion"))
    assert [r["tasks"] for r in kept] == [["aus", "emotion"]] * 2 and S.only(records, None) is records and S.only(records, ("how",)) == []
    kinds = [[p["type"] for p in m["content"]] for m in kept[0]["messages"]]
    assert kinds == [["text"], ["image", "text"], ["text"], ["text"], ["text"]]
    assert [m["content"][-1]["text"] for m in kept[0]["messages"][1:3]] == ["Which action units are active?", "AU6+12."]
    assert records[0]["tasks"] == ["what", "aus", "emotion"] and len(records[0]["messages"]) == 7


def test_only_keeps_the_lines_of_the_text_view():
    turns = [("line 1\nline 2\nWhat moves?", "Nothing."), ("Which emotion is it?", "Positive.")]
    record = dict(tasks=["what", "emotion"], images=[], messages=words.conversation(turns, picture=False))
    asked = S.only([record], ("emotion",))[0]["messages"][1]
    assert asked["content"] == [{"type": "text", "text": "line 1\nline 2\nWhich emotion is it?"}] and S.only([record], ("what", "emotion"))[0]["messages"] == record["messages"]


labels = st.lists(st.tuples(st.sampled_from(["", "4", "6+12", "12", "1+2+5", "20"]), st.sampled_from(["", "positive", "negative"])), min_size=1, max_size=40)


def powers(p): return dict.fromkeys(S.BALANCE, p)


@settings(max_examples=25, deadline=None)
@given(labels, st.floats(0, 1))
def test_weights_raise_the_rare(given_labels, power):
    records = [dict(tasks=["describe"], aus=a, emotion=e) for a, e in given_labels]
    w = S.sample_weights(records, powers(power))
    assert w.shape == (len(records),) and (w > 0).all() and w.sum() == pytest.approx(1)
    assert np.allclose(S.sample_weights(records, powers(0)), 1 / len(records))
    counts = {l: given_labels.count(l) for l in given_labels}
    for e in ("positive", "negative"):  # the same action units and emotion weigh the same
        for a in ("4", "20"):
            same = {round(x, 9) for x, l in zip(w, given_labels) if l == (a, e)}
            assert len(same) <= 1, counts


def test_a_rare_unit_is_drawn_more_often():
    records = [dict(tasks=["describe"], aus="4" if i else "20", emotion="negative") for i in range(16)]
    assert S.sample_weights(records, powers(.5))[0] == pytest.approx(4 / (4 + 15 * (16 / 15) ** .5)) and S.sample_weights(records, powers(1))[0] == pytest.approx(.5)


@settings(max_examples=25, deadline=None)
@given(labels, st.floats(0, 1), st.floats(0, 1))
def test_no_emotion_comes_more_often_for_its_units(given_labels, units, power):
    records = [dict(tasks=["describe"], aus=a, emotion=e) for a, e in given_labels]
    w, found = S.sample_weights(records, {"tasks": .5, "aus": units, "emotions": power}), [e for _, e in given_labels]
    share = {e: (found.count(e) / len(found)) ** (1 - power) for e in set(found)}
    for e in share: assert sum(x for x, f in zip(w, found) if f == e) == pytest.approx(share[e] / sum(share.values()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(.01, 10), min_size=1, max_size=50), st.integers(1, 120), st.integers(0, 5), st.integers(0, 5))
def test_sampler_draws_what_weights_ask(weights, length, seed, epoch):
    w = np.array(weights)
    s = S.BalancedSampler(w, length, seed)
    s.set_epoch(epoch)
    drawn = list(s)
    assert len(drawn) == len(s) == length and list(s) == drawn
    expected, counts = w / w.sum() * length, np.bincount(drawn, minlength=len(w))
    assert (np.abs(counts - expected) < 1 + 1e-6).all()  # each as often as asked for, rounded up or down


def test_epochs_differ_and_even_weights_shuffle():
    s = S.BalancedSampler(np.ones(20), 20, 3)
    first = list(s)
    s.set_epoch(1)
    assert sorted(first) == sorted(s) == list(range(20)) and first != list(s) and first != list(S.BalancedSampler(np.ones(20), 20, 4))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.floats(0, .5), st.integers(0, 9))
def test_inner_split_is_by_subject(subjects, share, seed):
    records = [dict(corpus="c", subject=f"s{i % subjects}", id=i) for i in range(3 * subjects)]
    learn, watched = S.inner_split(records, share, seed)
    assert learn and not {r["subject"] for r in learn} & {r["subject"] for r in watched} and len(learn) + len(watched) == len(records)
    if share and subjects >= 3: assert watched
    if subjects <= 2 or not share: assert not watched
    assert S.inner_split(records, share, seed) == (learn, watched)


def test_subjects_of_two_corpora_are_two_people():
    records = [dict(corpus=c, subject="1", id=i) for i, c in enumerate("abcd")]
    learn, watched = S.inner_split(records, .25)
    assert len(watched) == 1 and len(learn) == 3


# Bad input

def test_records_that_cannot_be_learned_from(study):
    records = make_records(study)
    with pytest.raises(ModelError, match="nothing to train on"): S.check_records(study, [])
    with pytest.raises(ModelError, match=r"training clips .2. all carry the same label .AU6.12, positive."): S.check_records(study, [records[0], records[3]])
    with pytest.warns(UserWarning, match="same emotion"): S.check_records(study, [{**r, "emotion": "positive"} for r in records])
    S.check_records(study, [{**r, "emotion": "", "aus": ""} for r in records])  # motion alone can be learned
    with pytest.raises(ModelError, match=r"color map of clip 2 is missing \(gone.png"): S.check_records(study, [{**r, "images": ["gone.png"]} if r["id"] == "2" else r for r in records])
