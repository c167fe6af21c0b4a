"Comparisons of methods: class tables, habits of averaging, paired bootstrap, McNemar."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mellm.compare import SCORERS, class_table, fold_scores, mcnemar, paired_bootstrap
from mellm.metrics import au_scores, summary, uar, uf1, weighted_f1

CLASSES = ["negative", "positive", "surprise"]
ANSWERS = st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from([*CLASSES, None]), st.integers(0, 6)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(ANSWERS)
def test_the_mean_of_the_class_table_is_uf1_and_uar(answers):
    truth, said, who = zip(*answers)
    table = class_table(truth, said, [str(w) for w in who], n=20)
    assert table.f1.mean() == pytest.approx(uf1(truth, said)) and table.recall.mean() == pytest.approx(uar(truth, said))
    assert table.clips.sum() == len(truth) and (table.low.isna() == (table.subjects < 5)).all()


@settings(deadline=None, max_examples=40)
@given(ANSWERS)
def test_one_fold_is_the_pool(answers):
    truth, said, _ = zip(*answers)
    rows = fold_scores(truth, said, [0] * len(truth))
    assert rows.UF1.nunique() == 1 or np.ptp(rows.UF1) < 1e-12


def test_absent_classes_lower_only_the_third_habit():
    rows = fold_scores(["negative", "positive"], ["negative", "positive"], ["a", "b"])
    assert rows.UF1.tolist() == [1, 1, .5]


def test_all_wrong_is_zero_everywhere():
    truth = CLASSES * 3
    wrong = CLASSES[1:] * 3 + CLASSES[:1] * 3
    said = [CLASSES[(CLASSES.index(t) + 1) % 3] for t in truth]
    assert fold_scores(truth, said, list("aaabbbccc")).to_numpy().max() == 0 and class_table(truth, said, list("abcdefghi")).f1.max() == 0
    assert weighted_f1(truth, said) == 0 and len(wrong) == len(truth)


def test_jaccard_by_hand_and_silence():
    assert au_scores([(12,), (6, 12)], [None, (12,)])["jaccard"] == pytest.approx((0 + 1 / 2) / 2)
    row = dict(corpus="c", emotion="positive", emotion_pred="positive")
    result = summary([row | dict(subject=s, aus=(6, 12), aus_pred=(12,)) for s in "abcdef"])
    assert result["au_jaccard"]["value"] == .5 == result["au_jaccard"]["low"] and result["weighted_f1"]["value"] == 1


@pytest.mark.parametrize("score", SCORERS)
def test_a_method_does_not_differ_from_itself(score):
    truth = CLASSES * 10
    result = paired_bootstrap(truth, truth, truth, [str(i % 6) for i in range(30)], score)
    assert result["difference"] == result["low"] == result["high"] == 0 and result["p"] == 1


def test_the_sign_follows_the_order():
    truth, worse, who = CLASSES * 10, ["negative"] * 30, [str(i % 7) for i in range(30)]
    a, b = paired_bootstrap(truth, worse, truth, who), paired_bootstrap(truth, truth, worse, who)
    assert a["difference"] == pytest.approx(-b["difference"]) and a["low"] > 0 > b["high"] and a["p"] < .01


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="4 subjects are too few"): paired_bootstrap("abcd", "abcd", "abcd", "wxyz")
    with pytest.raises(ValueError, match="no score 'f7'"): paired_bootstrap("abcde", "abcde", "abcde", "vwxyz", "f7")
    with pytest.raises(ValueError): mcnemar("ab", "ab", "a")


def test_mcnemar_is_the_sign_test():
    from scipy.stats import binomtest
    result = mcnemar("a" * 12, "a" * 3 + "b" * 9, "b" * 3 + "a" * 9)
    assert (result["only_first"], result["only_second"]) == (3, 9) and result["p"] == pytest.approx(binomtest(3, 12).pvalue)
