"Scores against hand-worked examples, degenerate cases, and properties that hold for all answers."
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import metrics
from mellm.metrics import (MIN_SUBJECTS, accuracy, au_scores, au_table, bootstrap_ci, count, hit_rate, macro_f1, macro_recall, mean_score, micro_f1, resample,
                           right_answer, rouge_l, summary, uar, uf1, words)

CLASSES = ("negative", "positive", "surprise")


def rows(emotion, emotion_pred, aus=None, aus_pred=None, subject=None, corpus="made up"):
    "Prediction rows; one subject a clip unless said otherwise."
    n = len(emotion)
    return [dict(corpus=corpus, subject=s, emotion=e, emotion_pred=p, aus=a, aus_pred=b)
            for s, e, p, a, b in zip(subject or [f"s{i}" for i in range(n)], emotion, emotion_pred, aus or [[]] * n, aus_pred or [None] * n)]


# --- hand-worked -----------------------------------------------------------------------------------------------------

def test_confusion_by_hand():
    truth = ["negative"] * 6 + ["positive"] * 3 + ["surprise"] * 1
    predicted = ["negative"] * 4 + ["positive", "surprise"] + ["positive", "positive", "negative"] + ["surprise"]
    # negative: TP 4, FP 1, FN 2; positive: TP 2, FP 1, FN 1; surprise: TP 1, FP 1, FN 0
    assert uf1(truth, predicted) == pytest.approx((8 / 11 + 4 / 6 + 2 / 3) / 3)
    assert uar(truth, predicted) == pytest.approx((4 / 6 + 2 / 3 + 1) / 3)
    assert accuracy(truth, predicted) == pytest.approx(7 / 10)


def test_action_units_by_hand():
    truth = [(4,), (4, 9), (12,), (6, 12)]
    predicted = [(4,), (9,), (12, 25), (6, 12)]
    s = au_scores(truth, predicted)
    assert s["f1"] == pytest.approx({4: 2 / 3, 6: 1, 9: 1, 12: 1})
    assert s["macro"] == pytest.approx((2 / 3 + 3) / 4)
    assert s["micro"] == pytest.approx(2 * 5 / (2 * 5 + 1 + 1))  # AU 25 is one false alarm, AU 4 missed once
    assert s["exact"] == 2 / 4


def test_pooling_sums_counts_before_dividing():
    folds = count([{"negative"}] * 3, [{"negative"}, {"negative"}, {"positive"}], CLASSES), count([{"positive"}, {"surprise"}], [{"positive"}] * 2, CLASSES)
    pooled = folds[0].sum(0) + folds[1].sum(0)
    assert macro_f1(pooled) == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert np.mean([macro_f1(f.sum(0)) for f in folds]) == pytest.approx((4 / 5 + 1 / 3) / 2)


# --- degenerate ------------------------------------------------------------------------------------------------------

def test_absent_class_does_not_count_but_calling_it_is_wrong():
    assert uf1(["negative", "positive"], ["negative", "positive"], CLASSES) == 1
    assert uar(["negative", "negative"], ["negative", "surprise"], CLASSES) == .5
    assert uf1(["negative", "negative"], ["negative", "surprise"], CLASSES) == pytest.approx(2 / 3)


@pytest.mark.parametrize("silent", [None, "", float("nan"), "no idea"])
def test_unparsable_is_wrong_and_no_false_alarm(silent):
    truth, predicted = ["negative", "negative", "positive"], ["negative", silent, "positive"]
    assert accuracy(truth, predicted) == pytest.approx(2 / 3)
    assert uf1(truth, predicted) == pytest.approx((2 / 3 + 1) / 2)
    assert uar(truth, predicted) == pytest.approx((1 / 2 + 1) / 2)


def test_all_wrong_is_zero():
    truth, wrong = ["negative", "positive", "surprise"], ["positive", "surprise", "negative"]
    assert uf1(truth, wrong) == uar(truth, wrong) == accuracy(truth, wrong) == 0
    s = au_scores([(1,), (4,)], [(4,), (1,)])
    assert (s["macro"], s["micro"], s["exact"]) == (0, 0, 0)


@pytest.mark.parametrize("predicted,f1", [((12,), 1), ((4,), 0), ((), 0), (None, 0)])
def test_a_single_action_unit_is_no_yes_no_problem(predicted, f1):
    s = au_scores([(12,)], [predicted])
    assert (s["macro"], s["micro"], s["exact"], s["f1"]) == (f1, f1, f1, {12: f1})


def test_none_and_the_empty_set_are_both_wrong_where_units_are_annotated():
    assert au_scores([(1,), (2,)], [None, ()])["exact"] == 0
    table = pd.DataFrame(rows(["negative"] * 2, ["negative"] * 2, [[1], [2]], [None, []]))
    assert summary(table)["unparsable"]["value"] == .5


@pytest.mark.parametrize("subjects", [1, 2, MIN_SUBJECTS - 1])
def test_too_few_subjects_have_no_interval(subjects):
    counts = count([{"negative"}] * 12, [{"negative"}, {"positive"}] * 6, CLASSES)
    assert bootstrap_ci(macro_f1, counts, [f"s{i % subjects}" for i in range(12)]) == (None, None)


def test_corpora_may_share_names_of_subjects():
    data = rows(["negative"] * 3, ["negative"] * 3, subject=["01"] * 3, corpus="a") + rows(["negative"] * 3, [None] * 3, subject=["01", "02", "03"], corpus="b")
    assert summary(data)["uf1"]["subjects"] == 4


def test_nothing_annotated():
    s = summary(rows(["", None], ["negative", None]))
    assert all(v["value"] is None and v["low"] is None and v["n"] == 0 for v in s.values())
    assert au_table(rows(["negative"], ["negative"])).empty


def test_each_score_counts_the_clips_with_its_annotation():
    s = summary(rows(["negative", "", "positive"], ["negative", None, None], [[4], [4], []], [[4], None, None]))
    assert s["uf1"]["n"] == 2 and s["au_macro"]["n"] == 2 and s["unparsable"]["n"] == 3
    assert s["unparsable"]["value"] == pytest.approx(2 / 3) and s["accuracy"]["value"] == .5


def test_repeated_index_labels_do_not_merge_clips():
    table = pd.DataFrame(rows(["negative", "positive"], ["negative", None]), index=[0, 0])
    assert summary(table)["unparsable"]["n"] == 2


@pytest.mark.parametrize("call,said", [
    (lambda: uf1(["negative"], []), "1 true labels but 0 predictions"),
    (lambda: uf1([], []), "nothing to score"),
    (lambda: uar(["negative", None], ["negative"] * 2), "position 1 has no true label"),
    (lambda: uf1(["happy"], ["negative"], CLASSES), "'happy', which is not one of"),
    (lambda: au_scores([(1,)], []), "1 true AU sets but 0 predictions"),
    (lambda: au_scores([(1,), ()], [(1,), (1,)]), "position 1 has no annotated action units"),
    (lambda: summary([{"clip": "c"}]), "lack the columns aus"),
    (lambda: rouge_l(["a"], []), "1 reference texts but 0 texts"),
    (lambda: mean_score([1, 2], ["a"]), "2 numbers but 1 subjects"),
    (lambda: resample(macro_f1, np.zeros((2, 3, 1), int), ["a"]), "counts of 2 clips but subjects of 1"),
])
def test_errors_are_sentences(call, said):
    with pytest.raises(ValueError, match=said): call()


# --- what only a language model says --------------------------------------------------------------------------------

@pytest.mark.parametrize("truth,said,right", [
    ("Yes.", "yes", True), ("Yes.", "Yes, the chin moves up.", True), ("No.", "No, it does not.", True), ("Yes.", "No.", False), ("No.", "It may.", False), ("No.", "", False), ("Yes.", None, False),
    ("Up and out, strongly.", " up AND out strongly ", True), ("Up and out, strongly.", "Out and up, strongly.", False), ("Up.", "Up and out.", False), ("Violet.", None, False),
    ("It does not move clearly.", "No.", False), ("是。", "是的。", True), ("否。", "是。", False), ("否。", "嗯", False), ("向上，强烈。", "向上 强烈", True)])
def test_short_answers(truth, said, right): assert right_answer(truth, said) is right


def test_words_of_every_kind_of_text():
    assert words("AU6+12; yellow-green.") == ["au6", "12", "yellow", "green"] and words("嘴角AU12") == ["嘴", "角", "au12"]
    assert words(None) == words("") == words(" .,;—") == [] == words(float("nan"))


def test_rouge_by_hand():
    assert rouge_l(["a b c d"], ["a x c"])[0] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert rouge_l(["a b", "a b", "a b", "嘴角向上"], ["b a", "", None, "嘴角向下"]).tolist() == pytest.approx([.5, 0, 0, .75])
    assert len(rouge_l([], [])) == 0


def test_mean_score_leaves_missing_numbers_out():
    s = mean_score([1, 0, float("nan"), 1], list("abcd"))
    assert s["value"] == pytest.approx(2 / 3) and s["n"] == s["subjects"] == 3 and s["low"] is None
    assert mean_score([], []) == dict(value=None, low=None, high=None, n=0, subjects=0) == mean_score([float("nan")], ["a"])
    s = mean_score([.5] * 10, [f"s{i % MIN_SUBJECTS}" for i in range(10)])
    assert (s["value"], s["low"], s["high"]) == (.5, .5, .5)


def test_mean_score_redraws_by_subject():
    values, people = [.9, .8, .7, .1, .2, .3, .4, .5], list("aabbccde")
    draws = [np.mean([v for n, k in zip("abcde", times) for _ in range(k) for v, who in zip(values, people) if who == n])
             for times in np.random.default_rng(2).multinomial(5, np.full(5, 1 / 5), 1000)]
    s = mean_score(values, people, seed=2)
    assert (s["low"], s["high"]) == pytest.approx(np.quantile(draws, [.025, .975]))


def test_summary_scores_the_columns_that_are_there():
    plain = rows(["negative", "positive"], ["negative", None], [[4], [12]], [[4], None])
    assert {"fine_uf1", "rouge_l"}.isdisjoint(summary(plain))
    told = [r | dict(fine=f, fine_pred=p, reference=a, text=b) for r, f, p, a, b in zip(plain, ("disgust", "happiness"), ("disgust", float("nan")), ("one two", ""), ("one two", None))]
    s = summary(told)
    assert s["fine_uf1"] == dict(value=.5, low=None, high=None, n=2, subjects=2) and s["rouge_l"]["value"] == 1 and s["rouge_l"]["n"] == 1
    assert summary([r | dict(fine="") for r in told])["fine_uf1"]["value"] is None


# --- bootstrap -------------------------------------------------------------------------------------------------------

def test_resampling_equals_redrawing_rows():
    "The fast way by counts gives what scikit-learn gives on the redrawn rows themselves."
    rng = np.random.default_rng(0)
    truth, said, who = rng.choice(CLASSES, 60), rng.choice(CLASSES, 60), rng.integers(0, 6, 60).astype(str)
    draws = resample(macro_f1, count([{t} for t in truth], [{p} for p in said], CLASSES), who, n=5, seed=4)
    names = np.unique(who)
    for times, draw in zip(np.random.default_rng(4).multinomial(6, np.full(6, 1 / 6), 5), draws):
        index = np.concatenate([np.flatnonzero(who == n) for n, k in zip(names, times) for _ in range(k)])
        assert draw == pytest.approx(uf1(truth[index], said[index]))


def test_fast_and_repeatable():
    rng = np.random.default_rng(1)
    data = rows(rng.choice(CLASSES, 150).tolist(), rng.choice(CLASSES, 150).tolist(), [[int(a)] for a in rng.choice([1, 4, 12], 150)],
                [[int(a)] for a in rng.choice([1, 4, 12], 150)], [f"s{i % 15}" for i in range(150)])
    start = time.perf_counter()
    first = summary(data, n=1000)
    assert time.perf_counter() - start < 1
    assert first == summary(data, n=1000)
    assert first["uf1"] != summary(data, n=1000, seed=1)["uf1"]


def test_interval_is_wider_where_subjects_differ():
    truth = [{"negative"}] * 200
    said = [{"negative"} if i < 100 else {"positive"} for i in range(200)]
    counts, person = count(truth, said, CLASSES), [i // 20 for i in range(200)]
    (a, b), (c, d) = bootstrap_ci(hit_rate, counts, person), bootstrap_ci(hit_rate, counts, range(200))
    assert b - a > 2 * (d - c)


def test_action_unit_of_few_subjects_has_no_interval():
    data = rows(["negative"] * 12, ["negative"] * 12, [[4]] * 11 + [[4, 9]], [[4]] * 6 + [[9]] * 6)
    table = au_table(data).set_index("au")
    assert table.loc[4, ["clips", "subjects"]].tolist() == [12, 12] and table.low[4] < table.f1[4] < table.high[4]
    assert pd.isna(table.low[9]) and table.subjects[9] == 1 and table.name[9] == "nose wrinkler"


# --- properties ------------------------------------------------------------------------------------------------------

answers = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from((*CLASSES, None)), st.sampled_from("abcdefg")), min_size=1, max_size=25)
units = st.sets(st.sampled_from((1, 2, 4, 12)), min_size=1)
unit_answers = st.lists(st.tuples(units, st.none() | st.sets(st.sampled_from((1, 2, 4, 12, 17)))), min_size=1, max_size=20)


@given(answers, st.randoms())
@settings(max_examples=50, deadline=None)
def test_scores_lie_in_range_and_ignore_order(data, random):
    shuffled = random.sample(data, len(data))
    for score in (uf1, uar, accuracy):
        value = score([d[0] for d in data], [d[1] for d in data])
        assert 0 <= value <= 1
        assert value == pytest.approx(score([d[0] for d in shuffled], [d[1] for d in shuffled]))


@given(answers)
@settings(max_examples=50, deadline=None)
def test_perfect_is_one_and_counts_agree_with_scikit_learn(data):
    truth, said = [d[0] for d in data], [d[1] for d in data]
    assert uf1(truth, truth) == uar(truth, truth) == accuracy(truth, truth) == 1
    pooled = count([{t} for t in truth], [{p} for p in said], CLASSES).sum(0)
    assert (macro_f1(pooled), macro_recall(pooled), hit_rate(pooled)) == pytest.approx((uf1(truth, said), uar(truth, said), accuracy(truth, said)))


@given(unit_answers)
@settings(max_examples=50, deadline=None)
def test_action_unit_counts_agree_with_scikit_learn(data):
    truth, said = [d[0] for d in data], [d[1] for d in data]
    s, pooled = au_scores(truth, said), count(truth, said, (1, 2, 4, 12, 17)).sum(0)
    assert 0 <= s["exact"] <= 1
    assert (s["macro"], s["micro"]) == pytest.approx((macro_f1(pooled), micro_f1(pooled)))
    assert au_scores(truth, truth)["exact"] == au_scores(truth, truth)["macro"] == 1


@given(answers)
@settings(max_examples=25, deadline=None)
def test_intervals_lie_in_range(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = summary([dict(corpus="c", subject=who, emotion=t, emotion_pred=p, aus=[], aus_pred=None) for t, p, who in data], n=50)["uf1"]
    assert (s["low"] is None) == (s["subjects"] < MIN_SUBJECTS)
    if s["low"] is not None: assert 0 <= s["low"] <= s["high"] <= 1


@given(st.lists(st.tuples(st.text("ab 嘴,", max_size=12), st.text("ab 嘴,", max_size=12)), max_size=6))
@settings(max_examples=30, deadline=None)
def test_rouge_lies_in_range_and_the_truth_is_one(pairs):
    for (truth, said), score in zip(pairs, rouge_l([a for a, _ in pairs], [b for _, b in pairs])):
        assert 0 <= score <= 1 and rouge_l([said], [truth])[0] == pytest.approx(score)   # F1 is symmetric
        assert rouge_l([truth], [truth])[0] == (1 if words(truth) else 0)


def test_import_stays_light():
    code = "import sys, mellm.metrics; print([m for m in ('sklearn', 'torch', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
