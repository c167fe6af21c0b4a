"""The training of our flow network: pairs, batches, loss, resume."""
import json
from dataclasses import replace

import numpy as np
import pytest

from mellm import flowtrain
from mellm.flowtrain import Plan, Run, Window

torch = pytest.importorskip("torch")
PLAN = Plan(budget=.03, shards=1, pairs=8, batch=2, coarse=8, wide=(8, 8, 8))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return flowtrain.make_shard(tmp_path_factory.mktemp("pairs"), 3, n=8)


def arrays(path):
    with np.load(path) as z: return dict(z)


def test_a_shard_holds_what_it_says(shard):
    z = arrays(shard)
    assert {k: (v.shape, str(v.dtype)) for k, v in z.items()} == {
        "onset": ((8, 224, 224), "uint8"), "apex": ((8, 224, 224), "uint8"), "expression": ((8, 112, 112, 2), "float16"), "head": ((8, 56, 56, 2), "float16"), "seen": ((8, 112, 112), "bool")}
    assert all(np.isfinite(z[k]).all() for k in ("expression", "head"))


def test_the_same_shard_is_the_same_pairs(shard, tmp_path):
    again = arrays(flowtrain.make_shard(tmp_path, 3, n=8))
    assert all(np.array_equal(v, again[k]) for k, v in arrays(shard).items())
    assert not list(tmp_path.glob(".*"))


def test_training_subjects_are_nobody_elses():
    from mellm import flowbench, pictures
    low, high = flowtrain.SEEDS, flowtrain.SEEDS + flowtrain.HELD * 1000 + 999
    assert pictures.SEEDS + 1000 * (pictures.HELD_OUT + 1000) < low and high < flowbench.BENCH


def test_a_mirrored_pair_is_a_mirrored_world(shard):
    z = arrays(shard)
    m = flowtrain._mirror({k: v.copy() for k, v in z.items()}, np.ones(8, bool))
    assert np.array_equal(m["onset"][:, :, ::-1], z["onset"])
    assert np.array_equal(m["expression"][:, :, ::-1] * [-1, 1], z["expression"]) and np.array_equal(m["head"][:, :, ::-1] * [-1, 1], z["head"])


def test_the_window_goes_through_all_shards(tmp_path):
    paths = [tmp_path / f"{i}.npz" for i in range(5)]
    for i, p in enumerate(paths): np.savez(p, onset=np.full((4, 2, 2), i, np.uint8), expression=np.zeros((4, 1, 1, 2)), head=np.zeros((4, 1, 1, 2)))
    window, seen = Window(paths, np.random.default_rng(0), held=2), set()
    for _ in range(60): seen |= set(window.batch(2)["onset"][:, 0, 0].tolist())
    assert seen == set(range(5))


def test_the_truth_costs_nothing_and_a_mistake_costs_its_length(shard):
    t = flowtrain.tensors(arrays(shard))
    true = torch.cat([t["expression"], t["head"]], 1)
    loss, error = flowtrain.flow_loss([true], t)
    assert loss < .03 and error < .011
    wrong = true.clone()
    wrong[:, 0] += 1
    assert flowtrain.flow_loss([wrong], t)[1] == pytest.approx(1, abs=.01)


def test_a_stopped_training_goes_on_and_a_changed_plan_is_refused(shard, tmp_path):
    held = arrays(shard)
    run = Run(PLAN, tmp_path, "cpu")
    flowtrain.train(run, [shard], held, log_every=1, held_every=10**6)
    steps, spent = run.step, run.spent
    assert steps > 0 and spent >= PLAN.budget * 60
    longer = Run(replace(PLAN, budget=.05), tmp_path, "cpu")
    assert (longer.step, longer.spent) == (steps, spent)
    assert all(torch.equal(a, b) for a, b in zip(run.model.state_dict().values(), longer.model.state_dict().values()))
    flowtrain.train(longer, [shard], held, log_every=1, held_every=10**6)
    assert longer.step > steps and [row["step"] for row in longer.log] == list(range(1, longer.step + 1))
    with pytest.raises(ValueError, match="another plan"): Run(replace(PLAN, lr=.5), tmp_path, "cpu")


def test_the_command_leaves_weights_and_a_card(tmp_path):
    flowtrain.main(["--out", str(tmp_path), "--budget", ".02", "--shards", "1", "--pairs", "8", "--batch", "2", "--coarse", "8", "--wide", "8", "8", "8", "--threads", "1", "--device", "cpu"])
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["steps"] > 0 and card["pairs"] == 8 and card["subjects"] == 1 and card["plan"]["wide"] == [8, 8, 8] and set(card["held"]) == {"moving", "all", "expression", "head"}
    assert (tmp_path / "model.safetensors").is_file() and "synthetic" in (tmp_path / "README.md").read_text()
