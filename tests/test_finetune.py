"Fine-tuning: what is adapted, what is drawn, what is kept; on models small enough to build in a test."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mellm import bases, finetune as F, words
from mellm.study import Study

torch.set_num_threads(1)
LAYERS = {"language": 2 * 7, "vision": 2 * 5, "merger": 2}  # of the tiny model
FACES = [("6+12", "positive"), ("4", "negative"), ("1+2", "surprise")]


@pytest.fixture
def study(tmp_path, qwen_folder, monkeypatch):
    monkeypatch.setattr(F, "MICRO", 16)  # no gradient accumulation, for speed
    return Study.load(env={}, runs=str(tmp_path), name="t", model=str(qwen_folder), epochs=2, batch_size=2, lora_rank=4, learning_rate=5e-3, inner_share=0., report_to="none")


def make_records(study, n=4, subjects=2, size=56):
    "One record a clip: a question about motion, one about action units, one about the emotion."
    rng = np.random.default_rng(0)
    study.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        aus, emotion = FACES[i % 3]
        Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(study.folder / f"{i}.png")
        turns = [("What moves?", "Nothing moves clearly."), ("Which action units are active?", f"AU{aus}."), ("Which emotion is it?", f"{emotion.capitalize()}.")]
        rows.append(dict(id=str(i), clip=str(i), corpus="c", subject=f"s{i % subjects}", tasks=["what", "aus", "emotion"], aus=aus, emotion=emotion, images=[f"{i}.png"], messages=words.conversation(turns)))
    return rows


def tune(study, records, folder="ft"):
    (study.folder / folder).mkdir(parents=True, exist_ok=True)
    return F.finetune(study, study.folder / folder, records), study.folder / folder


def tensors(folder):
    from safetensors.torch import load_file
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def adapted(model):
    return {n.removesuffix(".lora_A.default").removeprefix("base_model.model.") for n, _ in model.named_modules() if n.endswith(".lora_A.default")}


# What is adapted

@pytest.mark.parametrize("strategy,parts", [("lora-llm", ["language"]), ("lora-all", LAYERS), ("perception-first", LAYERS)])
def test_adapters_sit_where_the_strategy_says(study, strategy, parts):
    base, _ = bases.load_base(study.model)
    where = bases.parts(base)
    found = adapted(F.add_adapters(base, strategy, 4))
    assert found == {name for p in parts for name in where[p]} and len(found) == sum(LAYERS[p] for p in parts)


@pytest.mark.parametrize("kind,scale,dora", [("lora", 2, False), ("rslora", 8 / 2, False), ("dora", 2, True), ("dora+rslora", 8 / 2, True)])
def test_kinds_of_adapter(study, kind, scale, dora):
    tuned = F.add_adapters(bases.load_base(study.model)[0], "lora-llm", 4, kind)
    layer = next(m for n, m in tuned.named_modules() if n.endswith("q_proj"))
    assert layer.scaling["default"] == pytest.approx(scale) and bool(layer.lora_magnitude_vector) == dora


def test_a_stage_opens_its_parts_only(study):
    base, _ = bases.load_base(study.model)
    layers = F.adapter_layers(base, "perception-first")
    model = F.add_adapters(base, "perception-first", 4)
    F.open_parts(model, layers, ("vision", "merger"))
    opened = {n for n, p in model.named_parameters() if p.requires_grad}
    assert opened and all("visual" in n for n in opened)
    assert F.open_parts(model, layers, ("language", "vision", "merger")) == sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)


def test_full_opens_everything_and_text_leaves_the_eyes_alone(study):
    base, _ = bases.load_base(study.model)
    assert {n.split(".")[1] for n in adapted(F.add_adapters(base, "lora-all", 4, view="text"))} == {"language_model"}
    whole = F.add_adapters(bases.load_base(study.model)[0].half(), "full")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in whole.parameters())


def test_strategies_that_cannot_be(study):
    base, _ = bases.load_base(study.model)
    with pytest.raises(F.ModelError, match="'all' is unknown. There are lora-llm, lora-all, perception-first, full"): F.add_adapters(base, "all")
    with pytest.raises(F.ModelError, match="view 'text' has no pictures. Take 'lora-llm'"): F.add_adapters(base, "perception-first", view="text")
    base.is_loaded_in_4bit = True
    with pytest.raises(F.ModelError, match='Set quantize = "none"'): F.add_adapters(base, "full")


# Bad input

def test_nothing_to_train_on(study):
    with pytest.raises(F.ModelError, match="nothing to train on"): tune(study, [])


def test_stage_without_questions(study):
    records = F.only(make_records(study), ("aus",))
    with pytest.raises(F.ModelError, match="Stage 1 of the strategy 'perception-first'"): tune(replace(study, strategy="perception-first"), records)


def test_batches_that_processes_cannot_share(study):
    with pytest.raises(F.ModelError, match="8 conversations cannot be shared evenly by 3 processes"): F.schedule(replace(study, batch_size=8), F.Stage(), 100, 3)


def test_loss_that_is_no_number(study, monkeypatch):
    from transformers import Trainer
    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *a, **k: step(self, *a, **k) * float("nan"))
    with pytest.raises(F.ModelError, match="no number any more at step 1. Lower the learning rate"): tune(study, make_records(study))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_too_little_memory(study, monkeypatch, error):
    from transformers import Trainer
    def fails(*a, **k): raise error
    monkeypatch.setattr(Trainer, "training_step", fails)
    with pytest.raises(F.ModelError, match=r"too little memory .* Lower batch_size \(now 2\).*4bit"): tune(study, make_records(study))


def test_other_errors_pass_through(study, monkeypatch):
    from transformers import Trainer
    def fails(*a, **k): raise RuntimeError("shapes do not match")
    monkeypatch.setattr(Trainer, "training_step", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"): tune(study, make_records(study))


def test_reporters(study, tmp_path):
    assert F.reporters(replace(study, report_to="none"), tmp_path) == []
    with pytest.raises(F.ModelError, match="cannot be sent to 'nowhere'"): F.reporters(replace(study, report_to="nowhere"), tmp_path)


# The loop

@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(F.STRATEGIES)), st.integers(1, 9), st.integers(1, 300), st.sampled_from([1, 2, 4]), st.sampled_from([4, 8, 16]))
def test_schedules_keep_the_budget(strategy, epochs, records, processes, batch):
    study = Study.load(env={}, strategy=strategy, epochs=epochs, batch_size=batch)
    plans = [F.schedule(study, s, records, processes) for s in F.STRATEGIES[strategy].stages]
    assert all(p["micro"] * p["accumulate"] * processes == batch for p in plans)
    steps, asked = sum(p["epochs"] * p["steps"] for p in plans), epochs * -(-records // batch)
    assert abs(steps - asked) <= sum(p["epochs"] for p in plans)


def test_large_models_take_few_at_once_and_accumulate(study, monkeypatch):
    "Two conversations one by one make the same steps as two at once."
    records = make_records(study, 2)
    at_once = tune(study, records, "a")[0]
    monkeypatch.setattr(F, "MICRO", 1)
    assert np.allclose(at_once.loss, tune(study, records, "b")[0].loss, atol=1e-3)
    plan = lambda model: F.schedule(Study.load(env={}, model=model, batch_size=8), F.Stage(), 80)
    assert plan("qwen2.5-vl-3b")["micro"] == 2 and plan("some/model")["micro"] == 1 and plan("nano")["micro"] == 8


def test_log_joins_loss_and_watched_loss():
    log = F.read_log([{"step": 2, "epoch": 1., "loss": 3., "learning_rate": .1}, {"step": 2, "epoch": 1., "eval_loss": 4.}, {"step": 4, "epoch": 2., "loss": 1., "learning_rate": 0.}], 2, (10, 5.))
    assert list(log.columns) == F.LOG and log.step.tolist() == [12, 14] and log.epoch.tolist() == [6, 7] and log.eval_loss.tolist()[0] == 4. and (log.stage == 2).all()


def test_finetune_lowers_the_loss_and_the_adapter_merges(study):
    study = replace(study, epochs=4, report_to="tensorboard", inner_share=.34)
    records = make_records(study, 9, 3)
    log, folder = tune(study, records)
    assert log.loss.dropna().iloc[-1] < log.loss.iloc[0] and not (folder / "checkpoints").exists() and log.eval_loss.notna().sum() == 4
    assert {p.name for p in (folder / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert list((folder / "tensorboard").rglob("events*"))
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == study.model
    base, processor = bases.load_base(study.model)
    batch = bases.Collator(study, processor)(records[:1])
    from peft import PeftModel
    plain = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    with torch.no_grad():
        untuned = bases.load_base(study.model)[0](**batch).logits
        a, b = plain(**batch).logits, plain.merge_and_unload()(**batch).logits
    assert torch.allclose(a, b, atol=1e-4) and not torch.allclose(a, untuned, atol=1e-2)


def test_full_saves_a_whole_model(study):
    study = replace(study, strategy="full", epochs=1, inner_share=0.)
    records = make_records(study)
    log, folder = tune(study, records)
    assert not (folder / "adapter").exists() and not list(folder.rglob("*.bin"))
    base, processor = bases.load_base(study.model)
    again, processor = bases.load_base(str(folder / "model"))
    batch = bases.Collator(study, processor)(records[:1])
    with torch.no_grad(): assert not torch.allclose(base(**batch).logits, again(**batch).logits, atol=1e-3)
    assert log.learning_rate.max() <= study.learning_rate


def cut(monkeypatch, after):
    "The power cut: nothing is learned after so many steps."
    from transformers import Trainer
    step, done = Trainer.training_step, []
    def dying(self, *a, **k):
        if len(done) == after: raise KeyboardInterrupt
        done.append(1)
        return step(self, *a, **k)
    monkeypatch.setattr(Trainer, "training_step", dying)
    return done


@pytest.mark.parametrize("strategy,after,left", [("lora-all", 5, 6), ("perception-first", 4, 6), ("perception-first", 8, 3)])
def test_interrupted_training_ends_with_the_same_weights(study, monkeypatch, strategy, after, left):
    "Killed in the middle of an epoch, in the first or second stage, training goes on from its last checkpoint and ends bit for bit where it would have."
    study = replace(study, strategy=strategy, epochs=3, inner_share=.34)
    records = make_records(study, 9, 3)
    log, folder = tune(study, records)
    with monkeypatch.context() as m:
        cut(m, after)
        with pytest.raises(KeyboardInterrupt): tune(study, records, "cut")
    with monkeypatch.context() as m:
        done = cut(m, -1)
        again, other = tune(study, records, "cut")
    assert len(done) == left < 9
    a, b = tensors(folder), tensors(other)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert log.equals(again)


def test_checkpoint_of_another_base_is_refused(study, monkeypatch):
    records = make_records(study)
    cut(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt): tune(study, records)
    with pytest.raises(F.ModelError, match="cannot be continued.*results for model"): tune(replace(study, model="nano"), records)
    with pytest.raises(F.ModelError, match="results for strategy = 'lora-all', not 'lora-llm'"): tune(replace(study, strategy="lora-llm"), records)


def test_seeds_decide(study):
    study = replace(study, epochs=1)
    records = make_records(study)
    a, b, c = (tensors(tune(replace(study, seed=s), records, f)[1]) for s, f in ((1, "a"), (1, "b"), (2, "c")))
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


# The stage in several processes

@pytest.mark.parametrize("main,finished", [(True, False), (True, True), (False, False), (False, True)])
def test_processes_agree_on_the_folder(study, tmp_path, monkeypatch, main, finished):
    "The first process says where to train, or that there is nothing to do; the others follow, and only the first writes tables."
    import accelerate, accelerate.utils
    from types import SimpleNamespace
    from mellm.study import write_jsonl, write_table
    import pandas as pd
    made, partial, trained, said = tmp_path / "instructions", tmp_path / "partial", [], []
    write_jsonl(made / "train.jsonl", []), write_table(made / "clips.csv", pd.DataFrame({"clip": ["a"]}))
    partial.mkdir()

    def tell(what):
        said.append(what[0])
        return [None if finished else str(partial)] if what == [None] and not main else what

    def run(study, made, make):
        if not finished: make(partial)
        return study.folder / "finetune"

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", lambda cpu: SimpleNamespace(is_main_process=main, wait_for_everyone=lambda: None))
    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", tell)
    monkeypatch.setattr(F.instructions, "build", lambda study: made)
    monkeypatch.setattr(F, "_stage", run)
    monkeypatch.setattr(F, "finetune", lambda study, folder, records: trained.append(folder) or pd.DataFrame(columns=F.LOG))
    study = replace(study, runs=str(tmp_path.parent), name=tmp_path.name)  # where the others look for the instructions
    assert F.build(study) == study.folder / "finetune"
    assert trained == ([] if finished else [partial]) and len(said) == 1
    assert (partial / "log.csv").exists() == (main and not finished)
