"Synthetic motion in the benchmark's form, the motion reader, the real table, the leak, the cross-corpus matrix: on made-up flows."
import numpy as np
import pandas as pd
import pytest
import torch

from mellm import crosscorpus, motionllm, nano, real, transfer
from mellm.labels import EMOTIONS3
from mellm.megc import read_megc, write_example
from mellm.methods import METHODS
from mellm.networks import Recipe, mirrored_samples
from mellm.protocols import kfold
from mellm.samples import Samples, megc_samples, planes
from mellm.sheets import CorpusError


@pytest.fixture(scope="module")
def samples(tmp_path_factory): return megc_samples(read_megc(write_example(tmp_path_factory.mktemp("megc"), people=3)))


# --- transfer --------------------------------------------------------------------------------------------------------

def test_units_belong_to_their_class():
    rng = np.random.default_rng(0)
    quiet = transfer.Dials(extra=0, blink=0)
    for label, some in ((1, {6, 7, 12, 14, 25}), (2, {1, 2, 5, 25, 26})):
        for _ in range(60): assert set(transfer.sample_units(label, rng, quiet)) <= some


def test_smiles_push_the_mouth_corners_up_and_out():
    rng, still = np.random.default_rng(0), transfer.Dials(0, 0, 0, 0)
    flow = np.mean([transfer.sample_flow({12: (1, 1)}, rng, still)[0] for _ in range(20)], 0)
    left, right = flow[15:20, 4:9].mean((0, 1)), flow[15:20, 19:24].mean((0, 1))
    assert left[1] < 0 and right[1] < 0 and left[0] < 0 < right[0]


def test_motion_is_made_by_the_portion_and_repeats():
    with pytest.raises(ValueError, match="by the 500"): transfer.make_motion(501)
    a, b = transfer._clips(3, 4, transfer.Dials()), transfer._clips(3, 4, transfer.Dials())
    assert all(np.array_equal(x[0], y[0]) and x[3] == y[3] for x, y in zip(a, b))


def test_curve_never_trains_on_who_is_tested(samples):
    who = samples.who
    for k in (1, 2, None):
        for fold in transfer.curve_folds(samples.clips, k, groups=3): assert not set(who[fold.train]) & set(who[fold.test])


def test_tuning_begins_at_the_start_and_repeats(samples, tmp_path):
    from safetensors.torch import save_file
    torch.manual_seed(3)
    net = transfer.motion_net()
    save_file(net.state_dict(), tmp_path / "s.safetensors")
    x, twin = planes(samples), planes(mirrored_samples(samples))
    y = np.array([EMOTIONS3.index(e) for e in samples.labels])
    only = transfer.fit_synthetic_only(str(tmp_path / "s.safetensors"), x, twin, y)(x, twin)
    unmoved = transfer.fit_tuned(str(tmp_path / "s.safetensors"), 1, 1e-9, x, twin, y)(x, twin)
    assert only.shape == (len(y), 3) and np.abs(only - unmoved).max() < .2
    again = [transfer.fit_tuned(None, 2, 1e-3, x, twin, y, seed=5)(x, twin) for _ in range(2)]
    assert np.array_equal(*again)


# --- the motion reader -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    nano.save_model(folder, nano.load_model(), nano.load_processor().tokenizer)
    return folder


def test_the_ground_is_even_where_nothing_moves():
    still = Samples(pd.DataFrame(dict(corpus=["c"], subject=["s"], clip=["1"], emotion3=["positive"])), np.zeros((1, 28, 28, 2), np.float32), np.zeros((1, 28, 28), np.float32))
    assert (motionllm.motion_maps(still) == motionllm.GROUND).all()


def test_talks_are_open_or_answered():
    assert [m["role"] for m in motionllm.talk()] == ["user"] and [m["role"] for m in motionllm.talk("positive", "12")] == ["user", "assistant"] * 2
    assert motionllm.talk("positive", "")[-1]["content"][0]["text"] == "None."


def test_one_word_is_judged_by_its_first_token():
    assert len(set(motionllm._first_tokens())) == 3


def test_fine_tuning_learns_what_it_is_told(samples, start):
    maps, twin = motionllm.motion_maps(samples), motionllm.motion_maps(mirrored_samples(samples))
    rows = np.arange(0, len(samples), 2)
    y = np.array([EMOTIONS3.index(e) for e in samples.labels[rows]])
    judge = motionllm.fit_mellm(str(start), 12, 5e-3, 4, maps[rows], twin[rows], y)
    said = judge(maps[rows], twin[rows])
    assert said.shape == (len(rows), 3) and np.allclose(said.sum(1), 1, atol=1e-4) and (said.argmax(1) == y).mean() > .5
    fresh = nano.load_model(start)
    assert torch.equal(next(fresh.parameters()), next(motionllm._start(str(start)).parameters()))   # the start itself is not changed


# --- the table -------------------------------------------------------------------------------------------------------

def test_table_runs_what_it_can_and_names_what_it_cannot(samples, tmp_path):
    table = real.run_table(samples, tmp_path, {k: (k, False) for k in ("majority", "lbp_top", "histogram")}, workers=1)
    shown = real.show_table(table)
    assert shown.loc["LBP-TOP + SVM", "UF1 [95 %]"] == "not run: needs frames" and shown.loc["majority", "UAR"] == "0.333"
    assert shown.loc["LBP-TOP + SVM", "published UF1 / UAR"] == "0.588 / 0.578" or shown.loc["LBP-TOP + SVM", "published UF1 / UAR"].startswith("0.588")
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert {"majority", "histogram"} <= set(answers) and "lbp_top" not in answers
    assert real.compare_pairs(tmp_path, [("majority", "histogram")]).difference.iloc[0] > 0
    with pytest.raises(ValueError, match="no answers of 'gpt'"): real.compare_pairs(tmp_path, [("gpt", "majority")])


def test_grouped_rows_say_so(samples, tmp_path):
    table = real.run_table(samples, tmp_path, {"mine": ([METHODS["histogram"]], True)}, workers=1) if real.GROUPS <= len(set(samples.who)) else None
    assert table is None or table.protocol[0] == f"{real.GROUPS} groups"


def test_seeds_are_told_apart(samples):
    scores = np.stack([np.eye(3)[np.arange(len(samples)) % 3], np.eye(3)[(np.arange(len(samples)) + (np.arange(len(samples)) < 5)) % 3]])
    row = real.score_row(samples, scores)
    assert row["seeds"] == 2 and row["uf1_sd"] > 0


def test_halves_share_nobody(samples):
    fresh = real.unseen_half(samples.clips)
    assert fresh.any() and (~fresh).any() and not set(samples.who[fresh]) & set(samples.who[~fresh])
    assert real.unseen_half(samples.clips[samples.clips.subject.isin(samples.clips.subject[:1])]).all()      # too few people to halve


def test_words_and_eyes_are_averaged_where_both_are_there(samples, tmp_path):
    both = {"eyes": ([METHODS["histogram"]], False), "mellm": ([METHODS["majority"]], False)}
    table = real.run_table(samples, tmp_path, both, workers=1)
    assert table.method.tolist() == ["eyes", "mellm", "together"] and table.seconds.iloc[-1] == 0


def test_choosing_on_the_test_people_never_lowers_a_score(samples):
    rng = np.random.default_rng(1)
    table = real.leak_table(samples, rng.random((20, len(samples), 3)))
    assert len(table) == 3 and table.UF1.iloc[0] <= table.UF1.iloc[1] <= 1 and table.UF1.iloc[2] > table.UF1.iloc[0]
    one = real.leak_table(samples, rng.random((1, len(samples), 3)))
    assert one.UF1.nunique() == 1                                      # one epoch: nothing to choose


def test_watched_run_ends_where_the_honest_one_does(samples, tmp_path, monkeypatch):
    some = samples.take(samples.clips.subject.isin(samples.clips.subject.unique()[:4]).to_numpy())
    monkeypatch.setitem(real.NETS, "ststnet", Recipe(epochs=2, batch=8))
    said = real.watch_epochs(some, tmp_path, workers=1)
    assert said.shape == (2, len(some), 3) and not np.isnan(said).any()
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.json")}
    real.watch_epochs(some, tmp_path, workers=1)
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.json")} == files


# --- from corpus to corpus -------------------------------------------------------------------------------------------

def test_matrix_has_every_pair(samples, tmp_path):
    matrix = crosscorpus.cross_matrix(samples, tmp_path, workers=1)
    assert matrix.shape == (3, 3) and matrix.notna().all().all() and ((0 <= matrix) & (matrix <= 1)).all().all()
    ax = crosscorpus.plot_matrix(matrix, "t")
    assert "t" in (ax.get_title(), ax.get_title(loc="left"))


def test_joined_samples_keep_their_order(samples):
    parts = [samples.take(samples.clips.corpus.to_numpy() == c) for c in ("smic", "samm")]
    both = crosscorpus.join(parts)
    assert len(both) == sum(map(len, parts)) and both.clips["clip"].tolist() == [*parts[0].clips["clip"], *parts[1].clips["clip"]]


# --- the real flows, where they are ----------------------------------------------------------------------------------

def test_histogram_on_the_real_flows_is_as_good_as_was_measured(tmp_path):
    try: clips = read_megc()
    except CorpusError as error: pytest.skip(str(error))
    s = megc_samples(clips)
    row = real.score_row(s, real.run_seeds("histogram", s, tmp_path, workers=1))
    assert len(s) == 442 and len(set(s.who)) == 68 and row["uf1"] == pytest.approx(.741, abs=.005) and row["uar"] == pytest.approx(.747, abs=.005)
