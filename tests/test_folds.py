"Samples, descriptors, methods and folds: what a protocol run must never do."
import json

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from mellm import networks
from mellm.baselines import LeakError
from mellm.descriptors import bi_woof, clip_frames, grid_histogram, lbp_top, main_directions, two_grids
from mellm.folds import decide, guarded_fit, method_print, prediction_rows, run_method
from mellm.labels import EMOTIONS3
from mellm.methods import METHODS, Method, fit_majority, fit_svm
from mellm.networks import Recipe, mirrored_samples, train
from mellm.protocols import Fold, composite, kfold, loso
from mellm.samples import Samples, corpus_samples, into_window, mirrored, planes, strain, window_face, window_of
from mellm.anatomy import mean_face
from mellm.study import Study


def made(people=6, each=3, seed=0, corpus="c"):
    rng, n = np.random.default_rng(seed), people * each
    labels = np.array(EMOTIONS3)[np.arange(n) % 3]
    flow = rng.normal(0, .2, (n, 28, 28, 2)).astype(np.float32)
    for i, name in enumerate(labels):
        flow[i, {"negative": slice(2, 7), "positive": slice(16, 21), "surprise": slice(2, 7)}[name], :, 1] += 1 if name == "negative" else -1
    return Samples(pd.DataFrame(dict(corpus=corpus, subject=[f"p{i // each}" for i in range(n)], clip=[str(i) for i in range(n)], emotion3=labels)), flow, strain(flow))


# --- samples ---------------------------------------------------------------------------------------------------------

def test_lengths_and_finite_numbers_are_checked():
    s = made()
    with pytest.raises(ValueError, match="18 clips, but 17 flows"): Samples(s.clips, s.flow[1:], s.strain)
    broken = s.flow.copy(); broken[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"): Samples(s.clips, broken, s.strain)


def test_take_by_rows_and_by_mask():
    s = made()
    assert s.take([4, 1]).clips["clip"].tolist() == ["4", "1"] and len(s.take(s.labels == "positive")) == 6


def test_window_puts_landmarks_of_any_crop_at_one_place():
    for scale, at in ((72, (112, 90)), (50, (90, 100))):
        lm = mean_face() * scale + at
        M = window_of(lm)
        assert np.allclose(lm @ M[:, :2].T + M[:, 2], window_face(), atol=.2)


def test_constant_fields_stay_constant():
    lm = mean_face() * 72 + (112, 90)
    assert np.allclose(into_window(np.full((224, 224, 2), 3.), lm), 3)


def test_a_corpus_clip_without_flow_is_named(tmp_path):
    study = Study.load(env={}, runs=str(tmp_path), name="t")
    clips = pd.DataFrame(dict(corpus=["c"], subject=["s"], clip=["k1"], emotion3=["positive"], flow=["colormap/flow/k1.npz"]))
    with pytest.raises(ValueError, match="k1 does not exist"): corpus_samples(clips, study)
    file = tmp_path / "t" / "colormap" / "flow" / "k1.npz"
    file.parent.mkdir(parents=True); file.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="k1 cannot be read"): corpus_samples(clips, study)
    with pytest.raises(ValueError, match="nothing to recognize"): corpus_samples(clips.assign(emotion3=""), study)


def test_corpus_flow_is_seen_through_the_window(tmp_path):
    study = Study.load(env={}, runs=str(tmp_path), name="t")
    lm, flow = mean_face() * 72 + (112, 90), np.zeros((224, 224, 2), np.float32)
    y, x = np.mgrid[:224, :224]
    flow[..., 1] = -np.exp(-.5 * ((x - lm[19][0])**2 + (y - lm[19][1])**2) / 8**2)     # one brow rises
    file = tmp_path / "t" / "k.npz"; file.parent.mkdir(parents=True)
    np.savez_compressed(file, flow=flow, landmarks=lm)
    s = corpus_samples(pd.DataFrame(dict(corpus=["c"], subject=["s"], clip=["k"], emotion3=["surprise"], flow=[str(file)])), study)
    row, column = np.unravel_index(s.flow[0, ..., 1].argmin(), (28, 28))
    assert np.hypot(*(np.array([column, row]) - window_face()[19])) < 1.2


# --- descriptors -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("see", [bi_woof, main_directions, grid_histogram, two_grids])
def test_descriptors_do_not_feel_the_strength(see):
    s = made(2)
    half = Samples(s.clips, s.flow / 2, s.strain / 2)
    a, b = see(s), see(half)
    assert np.allclose(a, b * (2 if see is main_directions else 1), atol=1e-6)


@pytest.mark.parametrize("see", [bi_woof, main_directions, grid_histogram, two_grids])
def test_stillness_is_zeros(see):
    s = made(1)
    still = see(Samples(s.clips, s.flow * 0, s.strain * 0))
    assert np.isfinite(still).all() and not still.any()


def test_main_direction_ignores_stray_vectors():
    s = made(1, 1)
    flow = np.zeros((1, 28, 28, 2), np.float32); flow[..., 1] = -1
    flow[:, ::4, ::3] = (3, 0)                                            # a twelfth of the vectors points elsewhere, and is long
    vectors = main_directions(Samples(s.clips, flow, strain(flow))).reshape(-1, 2)
    assert np.allclose(vectors[np.abs(vectors).sum(1) > 0], (0, -1), atol=1e-5)


def test_lbp_top_wants_three_frames():
    with pytest.raises(ValueError, match="at least three frames"): lbp_top(np.zeros((2, 20, 20), np.uint8))
    assert lbp_top(np.zeros((5, 20, 20), np.uint8), 2).shape == (3 * 4 * 59,)


def test_frames_of_a_clip_are_read_where_they_are(tmp_path):
    from mellm.portrait import draw, sample_identity
    face = draw(sample_identity(3), 200).image
    for n in (4, 5, 6, 7): cv2.imwrite(str(tmp_path / f"{n:03d}.png"), np.clip(face.astype(int) + n, 0, 255).astype(np.uint8)[..., ::-1])
    row = dict(onset=4, offset=7, frames=str(tmp_path / "{n:03d}.png"), onset_path=str(tmp_path / "004.png"), apex_path=str(tmp_path / "006.png"))
    frames = clip_frames(row, 7, 60)
    assert frames.shape == (7, 60, 60) and frames.mean((1, 2))[-1] > frames.mean((1, 2))[0]
    two = clip_frames(row | dict(frames=""), 5, 60)
    assert two.shape == (5, 60, 60) and abs(float(two[2].mean()) - (float(two[0].mean()) + float(two[-1].mean())) / 2) < 1


# --- networks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("build", [networks.ststnet, networks.off_apexnet, networks.rcn_like, networks.resnet])
def test_networks_learn_and_repeat(build):
    s = made(4)
    x, twin, y = planes(s), planes(mirrored_samples(s)), np.array([EMOTIONS3.index(e) for e in s.labels])
    (a, log), (b, _) = (train(build, x, twin, y, Recipe(epochs=2, batch=5), seed=1, watch=(x, twin)) for _ in range(2))
    assert log.shape == (2, 12, 3) and np.allclose(log.sum(2), 1, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_watching_changes_nothing():
    s = made(4)
    x, twin, y = planes(s), planes(mirrored_samples(s)), np.array([EMOTIONS3.index(e) for e in s.labels])
    a, b = (train(networks.ststnet, x, twin, y, Recipe(epochs=3, batch=5), watch=w)[0] for w in (None, (x, twin)))
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


def test_mirror_is_its_own_inverse():
    x = planes(made(2))
    assert np.array_equal(mirrored(mirrored(x)), x) and torch.equal(mirrored(torch.tensor(x)), torch.tensor(mirrored(x)))


# --- methods and folds -----------------------------------------------------------------------------------------------

def test_every_method_tells_source_and_settings():
    assert all(m.source and m.settings and m.needs in ("flow", "frames") for m in METHODS.values())
    assert len({method_print(m) for m in METHODS.values()}) == len(METHODS)


def test_svm_of_one_and_of_two_classes():
    x = np.random.default_rng(0).normal(size=(12, 4))
    assert (fit_svm(x, x, np.full(12, 2))(x, x).argmax(1) == 2).all()
    two = fit_svm(x, x.copy(), np.arange(12) % 2)(x, x)
    assert set(two.argmax(1)) <= {0, 1} and two.shape == (12, 3)


def test_a_leaking_fold_stops_the_run_and_leaves_nothing(tmp_path):
    s = made()
    leaking = Fold("by hand", np.arange(0, 16), np.arange(15, 18))
    for method in ("majority", "histogram"):
        with pytest.raises(LeakError, match="c/p5"): run_method(method, s, [*loso(s.clips)[:2], leaking], tmp_path, workers=1)
    assert not [f for f in tmp_path.rglob("*.json") if json.loads(f.read_text())["fold"] == "by hand"]


def test_same_name_in_another_corpus_is_another_person():
    a, b = made(2, corpus="a"), made(2, corpus="b")
    both = Samples(pd.concat([a.clips, b.clips], ignore_index=True), np.r_[a.flow, b.flow], np.r_[a.strain, b.strain])
    method = METHODS["histogram"]
    assert guarded_fit(method, method.arrays(both), both, np.arange(6), np.arange(6, 12)) is not None


def test_the_test_people_never_reach_fit():
    s, seen = made(), []
    def spy(x, twin, y, seed): seen.append(x[:, 0].tolist()); return fit_majority(x, twin, y, seed)
    method = Method("spy", lambda t: t.clips["clip"].astype(float).to_numpy()[:, None], spy, "–", "–", mirror=False)
    for fold in loso(s.clips):
        guarded_fit(method, method.arrays(s), s, fold.train, fold.test)
        assert not set(seen[-1]) & set(s.clips["clip"].astype(float).iloc[fold.test])


def test_runs_resume_and_notice_changes(tmp_path):
    s = made()
    folds = kfold(s.clips, 3)
    first = run_method("histogram", s, folds, tmp_path, workers=1)
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "folds").rglob("*.json")}
    damaged = next(iter(files)); damaged.write_text('{"key": "cut o')
    assert np.array_equal(run_method("histogram", s, folds, tmp_path, workers=1), first)
    assert all(f.stat().st_mtime_ns == t for f, t in files.items() if f != damaged) and json.loads(damaged.read_text())["fold"]
    other = Samples(s.clips.assign(emotion3="positive"), s.flow, s.strain)
    assert (decide(run_method("histogram", other, folds, tmp_path, workers=1)) == "positive").all()


def test_clips_outside_of_the_protocol_are_nan(tmp_path):
    s = made()
    scores = run_method("majority", s, loso(s.clips)[:1], tmp_path, workers=1)
    assert np.isnan(scores[3:]).all() and not np.isnan(scores[:3]).any()


def test_seeds_vote_with_their_scores():
    votes = np.array([[[.6, .4, 0]], [[.0, .9, .1]]])
    assert decide(votes[0])[0] == "negative" and decide(votes)[0] == "positive"
    rows = prediction_rows(made(1), np.array(EMOTIONS3))
    assert (rows.emotion == rows.emotion_pred).all()


def test_composite_over_two_corpora_runs(tmp_path):
    a, b = made(3, corpus="a"), made(3, corpus="b", seed=1)
    both = Samples(pd.concat([a.clips, b.clips], ignore_index=True), np.r_[a.flow, b.flow], np.r_[a.strain, b.strain])
    scores = run_method("two_grids", both, composite(both.clips), tmp_path, workers=1)
    assert (decide(scores) == both.labels).mean() > .8
