"Scores of ME-VQA and MME: degenerate cases, files that are wrong, and what must hold for any answers."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import vqascores as vqa
from mellm.metrics import rouge_l, uar, uf1
from mellm.words import MEVQA

COARSE, FINE, AUS, AU, OPEN = MEVQA["coarse"], MEVQA["fine_grained"], MEVQA["au_list"], MEVQA["au_yesno"].format(name="dimpler"), "Please analyse the micro-expression shown in this video in detail."


def lines(rows, file):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def table(truth, said, who=None):
    "A table of `matched` from (question, answer) pairs."
    n = len(truth)
    rows = [(i + 1, f"v{i}", (f"v{i}", "", q.lower()), vqa.question_kind(q), q, a, w) for i, ((q, a), w) in enumerate(zip(truth, who or [""] * n))]
    return pd.DataFrame(rows, columns=vqa.COLUMNS).assign(said=pd.Series(list(said), dtype=object))


# Kinds

@pytest.mark.parametrize("question, kind", [
    ("WHAT IS THE COARSE EXPRESSION CLASS", "coarse"), (" What is  the coarse expression class ? ", "coarse"), ("What is the fine-grained expression class?", "fine"),
    ("What is the finegrained expression class?", "fine"), ("What are the action units?", "au_list"), ("what is the action unit", "au_one"), ("Which action units are active?", "au_list"),
    ("Is the action unit brow lowerer shown on the face?", "au_present"), ("Is AU12 shown?", "au_present"), ("Is the action unit dimpler located on the left or right face?", "au_side"),
    ("What are the action units present, and based on them, what is the fine-grained expression and the coarse expression class?", "joint"), (OPEN, "open"),
    ("Provide a comprehensive analysis of the facial micro-expression shown in this clip.", "open"), ("Explain the coarse expression class.", "open"), ("", "open"), ("???", "open"), ("你好", "open")])
def test_kind_of_a_question(question, kind): assert vqa.question_kind(question) == kind


@given(st.text())
def test_any_text_has_a_kind(text): assert vqa.question_kind(text) in vqa.KINDS


def test_questions_of_the_study_have_their_kinds():
    assert [vqa.question_kind(MEVQA[k].format(name="chin raiser")) for k in ("coarse", "fine_grained", "au_one", "au_list", "au_yesno")] == ["coarse", "fine", "au_one", "au_list", "au_present"]


# Texts

TEXT = st.lists(st.sampled_from("the left brow moves up and down , . yes NO".split()), max_size=12).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXT, st.one_of(st.none(), TEXT)), min_size=1, max_size=5))
def test_scores_of_texts_are_within_bounds_and_identical_texts_are_perfect(pairs):
    truth, said = zip(*pairs)
    for score in (vqa.bleu, vqa.rouge_1):
        values = score(truth, said)
        assert ((0 <= values) & (values <= 1)).all()
        assert all(v == 0 for v, s in zip(values, said) if not (s or "").strip())
        assert all(np.isclose(v, 1) for v, t in zip(score(truth, truth), truth) if vqa.words(t))
    assert 0 <= vqa.corpus_bleu(truth, said) <= 1
    assert (vqa.rouge_1(truth, said) >= rouge_l(truth, said) - 1e-12).all()  # a common subsequence is made of common words


def test_texts_of_different_number_or_none_are_errors():
    for score in (vqa.bleu, vqa.rouge_1, vqa.corpus_bleu):
        with pytest.raises(ValueError, match="2 reference texts but 1"): score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="nothing to score"): vqa.corpus_bleu([], [])
    assert vqa.bleu([], []).shape == (0,)


def test_nothing_said_counts_zero():
    assert vqa.bleu(["yes"] * 4, [None, "", " ", float("nan")]).tolist() == vqa.rouge_1(["yes"] * 4, [None, "", " ", float("nan")]).tolist() == [0] * 4


# Files

def row(n, question=COARSE, answer="positive", **more): return dict(video_id=f"v{n}", video=f"SAMM-{n}", question=question, answer=answer, **more)


def test_reads_what_the_challenge_writes(tmp_path):
    got = vqa.read_vqa(lines([row(1), dict(image_id="a", question=AU, answer="yes", dataset="casme2", subject="01")], tmp_path / "t.jsonl"))
    assert got["clip"].tolist() == ["SAMM-1", "a"] and got.kind.tolist() == ["coarse", "au_present"] and got.who.tolist() == ["", "casme2/01"]


@pytest.mark.parametrize("text, message", [
    ("{", "t.jsonl, line 1: not valid JSON"), ("\n\n[1]", "t.jsonl, line 3: expected an object in braces, found list"), ('{"question": "Who?"}', "line 1: no clip is named"),
    ('{"video": "a"}', "line 1: there is no question"), ('{"video": "a", "question": "?"}', "there is no question"), ("", "is empty"),
    ('{"video": "a", "question": "What?"}\n{"video": "b", "question": "What?"}\n{"video": "a", "question": "what"}', "line 3: the question 'what' on clip a stands in line 1 already")])
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message): vqa.read_vqa(tmp_path / "t.jsonl")


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="there is no file"): vqa.read_vqa(tmp_path / "none.jsonl")


def test_missing_answers_are_wrong_unknown_ones_stop(tmp_path):
    truth = vqa.read_vqa(lines([row(1), row(2), row(3)], tmp_path / "t.jsonl"))
    said = vqa.read_vqa(lines([row(3), row(1, answer="")], tmp_path / "p.jsonl"))
    got = vqa.matched(truth, said)
    assert got.said.tolist() == [None, None, "positive"] and vqa.kind_table(got).unanswered.item() == 2
    assert np.isclose(vqa.vqa_scores(got).value["coarse UAR"], 1 / 3)
    with pytest.raises(ValueError, match="p.jsonl, line 1: t.jsonl has no question .* on clip SAMM-4"): vqa.matched(truth, vqa.read_vqa(lines([row(4)], tmp_path / "p.jsonl")), ("t.jsonl", "p.jsonl"))
    with pytest.raises(ValueError, match="line 1: the true answer to .* is not given"): vqa.matched(vqa.read_vqa(lines([row(1, answer=None)], tmp_path / "t.jsonl")), said)


# ME-VQA

def test_agrees_with_the_scores_of_metrics():
    rng = np.random.default_rng(0)
    truth, said = rng.choice(["negative", "positive", "surprise"], 60), rng.choice(["negative", "positive", "surprise", "nonsense", ""], 60)
    got = vqa.vqa_scores(table([(COARSE, t) for t in truth], said))
    assert np.isclose(got.value["coarse UF1"], uf1(truth, said)) and np.isclose(got.value["coarse UAR"], uar(truth, said))


def test_a_part_without_questions_is_left_out_of_the_average():
    got = vqa.vqa_scores(table([(COARSE, "positive"), (COARSE, "negative")], ["positive", "negative"]))
    assert got.value[["fine UF1", "fine UAR", "BLEU", "ROUGE-1"]].isna().all() and got.value["average"] == 1 and got.questions.tolist() == [2, 2, 0, 0, 0, 0, 2]


def test_an_absent_class_takes_nothing_and_calling_it_is_an_error():
    got = vqa.vqa_scores(table([(COARSE, "negative")] * 2, ["negative", "surprise"]))
    assert np.isclose(got.value["coarse UF1"], 2 / 3) and got.value["coarse UAR"] == .5


def test_a_sentence_around_the_class_is_wrong_and_case_is_not():
    got = vqa.kind_table(table([(COARSE, "positive")] * 2, ["It is positive.", "POSITIVE."]))
    assert got.right.item() == .5


def test_action_units_in_any_order_are_right():
    got = vqa.kind_table(table([(AUS, "cheek raiser, lip corner puller")] * 3, ["Lip corner puller, cheek raiser", "cheek raiser", None]))
    assert np.isclose(got.right.item(), 1 / 3) and got.unanswered.item() == 1


def test_intervals_need_known_people_and_enough_of_them():
    truth, said = [(COARSE, c) for c in ("negative", "positive") * 6], ["negative"] * 12
    for who in ([""] * 12, ["a"] * 12, list("abcd") * 3, list("abcde") * 2 + ["", "a"]): assert vqa.vqa_scores(table(truth, said, who)).low.isna().all()
    got = vqa.vqa_scores(table(truth, said, list("abcdef") * 2))
    assert (got.low[["coarse UF1", "average"]] <= got.value[["coarse UF1", "average"]]).all() and got.subjects.eq(6).all() and got.low["BLEU"] != got.low["BLEU"]


ROW = st.tuples(st.sampled_from([(COARSE, "negative"), (COARSE, "surprise"), (FINE, "disgust"), (FINE, "happiness"), (AUS, "chin raiser, dimpler"), (AU, "yes"), (OPEN, "The chin moves up.")]),
                st.sampled_from([None, "", "negative", "surprise", "Disgust.", "yes", "The chin moves up.", "chin raiser"]), st.sampled_from("abcdef"))


@settings(max_examples=40, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_everything_is_within_bounds(rows, chance):
    mixed = chance.sample(rows, len(rows))
    one, other = (vqa.vqa_scores(table(*zip(*((r[0], r[1]) for r in part)), [r[2] for r in part]), n=20) for part in (rows, mixed))
    assert np.allclose(one.value, other.value, equal_nan=True)
    values = one[["value", "low", "high"]].to_numpy(float)
    assert np.all(np.isnan(values) | (-1e-12 <= values) & (values <= 1 + 1e-12))
    assert np.allclose(vqa.vqa_scores(table([r[0] for r in rows], [r[0][1] for r in rows]), n=20).value.dropna(), 1)


# MME

def pairs(*said, family="f", who=None):
    return pd.DataFrame([dict(family=family, pair=i, answer=a, said=s, who=(who or [""] * len(said))[i]) for i, two in enumerate(said) for a, s in zip(("yes", "no"), two)])


@pytest.mark.parametrize("said, wanted", [(("yes", "no"), (100, 100, 200)), (("no", "yes"), (0, 0, 0)), (("yes", "yes"), (50, 0, 50)), (("", ""), (0, 0, 0)), ((None, "No."), (50, 0, 50)),
                                          (("Yes, it does.", "No, it does not."), (100, 100, 200)), (("yes or no", "no"), (50, 0, 50))])
def test_mme_of_one_pair(said, wanted): assert vqa.mme_scores(pairs(said)).loc["all", ["accuracy", "accuracy+", "score"]].tolist() == list(wanted)


def test_mme_needs_true_pairs():
    for broken in (pairs(("yes", "no")).head(1), pairs(("yes", "no")).assign(answer="no"), pairs(("yes", "no")).assign(answer="perhaps"), pd.concat([pairs(("yes", "no"))] * 2)):
        with pytest.raises(ValueError, match="the pair 0 of the family 'f' has not one question"): vqa.mme_scores(broken)
    with pytest.raises(ValueError, match="lack the column said"): vqa.mme_scores(pairs(("yes", "no")).drop(columns="said"))
    with pytest.raises(ValueError, match="nothing to score"): vqa.mme_scores(pairs(("yes", "no")).head(0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(["yes", "no", "perhaps", None])] * 2), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_mme_is_bounded_and_does_not_depend_on_order(said, chance):
    rows = pairs(*said, who=[f"p{i % 6}" for i in range(len(said))])
    got, other = vqa.mme_scores(rows, n=20), vqa.mme_scores(rows.sample(frac=1, random_state=chance.randrange(99)), n=20)
    assert np.allclose(got[["accuracy", "accuracy+", "score"]].astype(float), other[["accuracy", "accuracy+", "score"]].astype(float))
    s = got.loc["all"]
    assert 0 <= s["accuracy+"] <= s.accuracy <= 100 and np.isclose(s.score, s.accuracy + s["accuracy+"]) and s.unreadable == sum(a not in ("yes", "no") for two in said for a in two)
    assert (s.low != s.low) == (s.subjects < 5)
