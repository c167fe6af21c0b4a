"The protocols: over random tables no person is on both sides, every clip is tested as often as promised, and nothing depends on the order of rows."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm.protocols import Fold, check_folds, composite, cross, fold_table, holdout, kfold, loso, people

CLASSES = ["negative", "positive", "surprise"]
rows = st.tuples(st.sampled_from(["a", "b", "c/x"]), st.sampled_from(["s1", "s2", "01", "1", "s3", "x/s1"]), st.sampled_from([*CLASSES, ""]))
tables = st.lists(rows, min_size=1, max_size=40).map(lambda r: pd.DataFrame(r, columns=["corpus", "subject", "emotion3"]).assign(clip=[f"c{i}" for i in range(len(r))]))


def persons(clips):
    return list(zip(clips.corpus, clips.subject))


def check(clips, folds):
    "No clip and no person on both sides, no empty part."
    for fold in folds:
        assert len(fold.train) and len(fold.test) and not set(fold.train) & set(fold.test)
        assert not set(persons(clips.iloc[fold.train])) & set(persons(clips.iloc[fold.test]))


def by_clip(clips, folds):
    "Folds as sets of clip names, without the order of rows."
    return {f.name: (frozenset(clips["clip"].iloc[f.train]), frozenset(clips["clip"].iloc[f.test])) for f in folds}


def ambiguous(clips):
    "Whether two persons share the text `corpus/subject`: names with a slash may do so."
    return clips.groupby(["corpus", "subject"]).ngroups != len(set(people(clips)))


def groups(clips):
    return len(set(people(clips)))


def shuffled(clips, seed):
    return clips.iloc[np.random.default_rng(seed).permutation(len(clips))]


@settings(deadline=None, max_examples=60)
@given(tables, st.integers(0, 2**31))
def test_loso_tests_every_person_once(clips, seed):
    if groups(clips) < 2:
        with pytest.raises(ValueError, match="at least two subjects"): loso(clips)
        return
    folds = loso(clips)
    check(clips, folds)
    assert len(folds) == groups(clips) and sorted(np.concatenate([f.test for f in folds])) == list(range(len(clips)))
    assert all(len(f.train) + len(f.test) == len(clips) for f in folds)
    other = shuffled(clips, seed)
    assert by_clip(other, loso(other)) == by_clip(clips, folds)


@settings(deadline=None, max_examples=60)
@given(tables, st.integers(0, 12), st.integers(0, 2**31))
def test_kfold_tests_every_clip_once(clips, k, seed):
    if not 2 <= k <= groups(clips):
        with pytest.raises(ValueError, match="k must be|at least two subjects"): kfold(clips, k, seed)
        return
    folds = kfold(clips, k, seed)
    check(clips, folds)
    assert len(folds) == k and sorted(np.concatenate([f.test for f in folds])) == list(range(len(clips)))
    assert by_clip(clips, kfold(clips, k, seed)) == by_clip(clips, folds), "the same seed, the same folds"
    other = shuffled(clips, seed)
    assert by_clip(other, kfold(other, k, seed)) == by_clip(clips, folds)


@settings(deadline=None, max_examples=60)
@given(tables, st.floats(.01, .99), st.integers(0, 2**31), st.lists(st.sampled_from(["s1", "01"]), max_size=2))
def test_holdout(clips, share, seed, held):
    free = clips[~clips.subject.isin(held)]
    if free.empty or groups(free) < 2:
        with pytest.raises(ValueError, match="at least two subjects"): holdout(clips, share, seed, held)
        return
    (fold,) = holdout(clips, share, seed, held)
    check(clips, [fold])
    assert len(fold.train) + len(fold.test) == len(clips) and not clips.subject.iloc[fold.train].isin(held).any()
    other = shuffled(clips, seed)
    assert by_clip(other, holdout(other, share, seed, held)) == by_clip(clips, [fold])


@settings(deadline=None, max_examples=60)
@given(tables, st.integers(0, 2**31))
def test_composite_tests_every_clip_with_a_class_once(clips, seed):
    inside = clips[clips.emotion3.isin(CLASSES)]
    if inside.empty or inside.corpus.nunique() < 2 or groups(inside) < 2:
        with pytest.raises(ValueError): composite(clips)
        return
    folds = composite(clips)
    check(clips, folds)
    assert sorted(np.concatenate([f.test for f in folds])) == list(np.flatnonzero(clips.emotion3 != ""))
    assert all(set(f.train) | set(f.test) <= set(np.flatnonzero(clips.emotion3 != "")) for f in folds)
    other = shuffled(clips, seed)
    assert by_clip(other, composite(other)) == by_clip(clips, folds)


@settings(deadline=None, max_examples=60)
@given(tables)
def test_cross_keeps_corpora_apart(clips):
    there = sorted(set(clips.corpus))
    if len(there) < 2:
        with pytest.raises(ValueError, match="at least two corpora"): cross(clips)
        return
    if ambiguous(clips):
        return
    folds = cross(clips)
    check(clips, folds)
    assert len(folds) == len(there) and sorted(np.concatenate([f.test for f in folds])) == list(range(len(clips)))
    for fold in folds: assert not set(clips.corpus.iloc[fold.train]) & set(clips.corpus.iloc[fold.test])
    (one,) = cross(clips, train=there[:1])
    assert set(clips.corpus.iloc[one.train]) == {there[0]} and set(clips.corpus.iloc[one.test]) == set(there[1:])


def table(text):
    return pd.DataFrame([line.split() for line in text.strip().splitlines()], columns=["corpus", "subject", "emotion3"])


def test_the_same_name_in_two_corpora_is_two_people():
    clips = table("a s1 positive\nb s1 negative\nb s2 surprise")
    assert [f.name for f in loso(clips)] == ["a/s1", "b/s1", "b/s2"]


def test_positions_are_positions_whatever_the_index():
    clips = table("a s1 positive\na s2 negative\na s3 surprise").set_index(pd.Index([7, 7, 7]))
    assert [list(f.test) for f in loso(clips)] == [[0], [1], [2]]


def test_kfold_is_as_even_as_people_allow():
    clips = pd.DataFrame([("c", f"s{i:02d}", e) for i in range(30) for e in CLASSES[: 1 + i % 3]], columns=["corpus", "subject", "emotion3"])
    counts = fold_table(clips, kfold(clips, 5))["test"]
    assert (counts.max() - counts.min()).max() <= 1, counts


def test_a_person_with_most_clips_does_not_empty_a_fold():
    clips = pd.DataFrame([("c", "big", "positive")] * 50 + [("c", f"s{i}", "negative") for i in range(3)], columns=["corpus", "subject", "emotion3"])
    assert all(len(f.test) for f in kfold(clips, 4)) and len(kfold(clips, 4)) == 4


def test_numbers_and_missing_classes_are_welcome():
    clips = pd.DataFrame({"corpus": ["a"] * 4, "subject": [1, 2, 3, 4], "emotion3": ["positive", None, np.nan, ""]})
    assert len(loso(clips)) == 4 and len(kfold(clips, 2)) == 2
    assert fold_table(clips, holdout(clips, .5))["train"]["no class"].iloc[0] + fold_table(clips, holdout(clips, .5))["test"]["no class"].iloc[0] == 3


@pytest.mark.parametrize("change, said", [
    (lambda t: t.iloc[:0], "no clips to divide"), (lambda t: t.drop(columns="subject"), "lacks subject"), (lambda t: t[["emotion3"]], "lacks corpus and subject"),
    (lambda t: t.assign(subject=["s1", "", "s2"]), "Row 1 has no subject"), (lambda t: t.assign(subject=["s1", "s2", None]), "Row 2 has no subject"),
    (lambda t: t.assign(corpus=["", "a", "a"]), "Row 0 has no corpus"), (lambda t: t.assign(subject="s1", corpus="a"), r"there is one \(a/s1\)")])
@pytest.mark.parametrize("protocol", [loso, lambda t: kfold(t, 2), holdout, composite])
def test_degenerate_tables(change, said, protocol):
    with pytest.raises(ValueError, match=said if protocol is not composite or "there is one" not in said else "only 'a'"): protocol(change(table("a s1 positive\nb s1 negative\nb s2 surprise")))


@pytest.mark.parametrize("call, said", [
    (lambda t: kfold(t, 1), "k must be at least 2"), (lambda t: kfold(t, 4), "number of people, 3; it is 4"), (lambda t: holdout(t, 1), "between 0 and 1"),
    (lambda t: cross(t, test=["z"]), "no clip of the corpus 'z' in this table; there are a, b"), (lambda t: cross(t, train="a", test="a"), "a would be trained on and tested"),
    (lambda t: cross(t, train=["a", "b"]), "test part of the fold .* is empty"), (lambda t: composite(t.assign(emotion3="")), "No clip has one of the classes"),
    (lambda t: composite(t.drop(columns="emotion3")), "needs the column emotion3"), (lambda t: composite(t[t.corpus == "b"]), "there is only 'b'. Use loso"),
    (lambda t: check_folds(t, [Fold("mine", np.array([0, 1]), np.array([2]))]), r"'mine' has 1 people in training and test \(b/s1\)")])
def test_impossible_wishes(call, said):
    with pytest.raises(ValueError, match=said): call(table("a s1 positive\nb s1 negative\nb s1 surprise\nb s2 surprise").iloc[[0, 1, 2]] if "mine" in said else table("a s1 positive\nb s1 negative\nb s2 surprise"))


def test_fold_table_counts_everything():
    clips = table("a s1 positive\na s1 negative\nb s1 surprise\nb s2 positive")
    counts = fold_table(clips, loso(clips))
    assert list(counts.index) == ["a/s1", "b/s1", "b/s2"] and counts.loc["a/s1", ("test", "clips")] == 2 and counts.loc["a/s1", ("train", "positive")] == 1
    assert (counts["train"].clips + counts["test"].clips == 4).all() and (counts["test"].subjects == 1).all()
