"Packing an adapter: what the card says, what it must not say, and what is sent."
import dataclasses
import json
import os

import pandas as pd
import pytest
from hypothesis import example, given, settings, strategies as st

from mellm import explainer, push as P
from mellm.bases import ModelError
from mellm.study import Study, read_table, write_json, write_table

SCORES = {s: dict(value=.5, low=.4, high=.6, n=6, subjects=6) for s in P.SHOWN}
SECRET = "hf_notARealTokenAtAll"


@pytest.fixture
def home(tmp_path):
    "The folder of a study whose fine-tuning has left the shipped adapter."
    folder = tmp_path / "runs" / "mine" / "finetune"
    (folder / "adapter").mkdir(parents=True)
    for file in explainer.shipped_adapter().iterdir(): (folder / "adapter" / file.name).write_bytes(file.read_bytes())
    (folder / "adapter" / "checkpoints").mkdir()
    (folder / "adapter" / "optimizer.pt").write_bytes(b"pickle")
    config = Study(name="mine", root="/data/somebody/CASME2", runs=str(tmp_path / "runs"), epochs=3, seed=5)
    write_json(folder / "stage.json", dict(stage="finetune", fingerprint="f1", finished=True, config=config, seconds=90, commit="abc", versions=dict(torch="2.13", numpy="2"), needs={}))
    write_table(folder / "log.csv", pd.DataFrame(dict(step=[1, 2], loss=[2., 1.], eval_loss=[None, 1.5])))
    rows = [dict(clip=f"c{i}", corpus="synthetic", subject=f"s{i}", emotion3=e, aus=a, split="train" if i < 2 else "test") for i, (e, a) in enumerate([("positive", "6+12"), ("negative", "4"), ("", "R14+?2")])]
    write_table(folder / "clips.csv", pd.DataFrame(rows))
    return folder.parent


def evaluate(home, fingerprint="f1", methods=("majority", "base", "finetuned")):
    conditions = dict(corpora=["synthetic"], protocol="hold-out of subjects, one split", train_clips=2, train_subjects=2, test_clips=1, test_subjects=1, interval="95 %", resamples=10)
    write_json(home / "eval" / "metrics.json", dict(conditions=conditions, methods={m: dict(scores=SCORES) for m in methods}))
    write_json(home / "eval" / "stage.json", dict(finished=True, needs=dict(finetune=fingerprint)))


def change(home, **record):
    file = home / "finetune" / "stage.json"
    write_json(file, json.loads(file.read_text()) | record)


# --- the folder ------------------------------------------------------------------------------------------------------

def test_the_folder_is_complete_and_holds_nothing_else(home, tmp_path):
    evaluate(home)
    out = P.pack(home, tmp_path / "hub")
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "curve.png", "log.csv", "metrics.json", "study.toml"]
    assert (out / "adapter_model.safetensors").read_bytes() == (home / "finetune" / "adapter" / "adapter_model.safetensors").read_bytes()
    for file in out.iterdir():
        if file.suffix not in (".png", ".safetensors"): assert str(tmp_path) not in file.read_text() and "somebody" not in file.read_text(), f"{file.name} names a place on this machine"


def test_the_packed_adapter_loads_in_plain_peft(home, tmp_path):
    from peft import PeftModel
    from mellm import nano
    out = P.pack(home, tmp_path / "hub")
    assert PeftModel.from_pretrained(nano.load_model(), str(out)).peft_config["default"].base_model_name_or_path == "nano"


def test_packing_again_renews(home, tmp_path):
    evaluate(home)
    out = P.pack(home, tmp_path / "hub")
    evaluate(home, "another training")
    assert P.pack(home, out) == out and not (out / "metrics.json").exists() and "not been evaluated" in (out / "README.md").read_text()


def test_a_preset_is_named_as_the_hub_does(home, tmp_path):
    config = json.loads((home / "finetune" / "stage.json").read_text())["config"]
    change(home, config=config | dict(model="qwen2.5-vl-7b", revision="abc123"))
    out = P.pack(home, tmp_path / "hub")
    adapter, text = json.loads((out / "adapter_config.json").read_text()), (out / "README.md").read_text()
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("Qwen/Qwen2.5-VL-7B-Instruct", "abc123")
    assert "base_model: Qwen/Qwen2.5-VL-7B-Instruct" in text and 'revision="abc123"' in text and 'model="qwen2.5-vl-7b"' in text


def test_a_base_from_a_folder_does_not_tell_the_path(home, tmp_path):
    config = json.loads((home / "finetune" / "stage.json").read_text())["config"]
    change(home, config=config | dict(model=str(tmp_path / "secret" / "my-qwen")))
    out = P.pack(home, tmp_path / "hub")
    assert "secret" not in "".join((out / n).read_text() for n in ("README.md", "study.toml", "adapter_config.json")) and "my-qwen" in (out / "README.md").read_text()


def test_a_whole_model_is_packed_too(home, tmp_path):
    os.rename(home / "finetune" / "adapter", home / "finetune" / "model")
    (home / "finetune" / "model" / "config.json").write_text("{}")
    out = P.pack(home, tmp_path / "hub")
    assert (out / "config.json").exists() and "all weights of the model" in (out / "README.md").read_text() and "library_name: transformers" in (out / "README.md").read_text()


@pytest.mark.parametrize("kind", ["file", "diary"])
def test_a_folder_of_something_else_is_left_alone(home, tmp_path, kind):
    if kind == "file": (tmp_path / "hub").write_text("mine")
    else: (tmp_path / "hub").mkdir(), (tmp_path / "hub" / "diary.txt").write_text("mine")
    with pytest.raises(ModelError, match="no folder of an earlier pack"): P.pack(home, tmp_path / "hub")


@pytest.mark.parametrize("damage", ["nothing", "unfinished", "broken record", "no weights", "pickled weights"])
def test_without_finished_weights_there_is_nothing_to_pack(home, tmp_path, damage):
    folder = home / "finetune"
    if damage == "nothing": home = tmp_path / "nobody"
    if damage == "unfinished": change(home, finished=False)
    if damage == "broken record": (folder / "stage.json").write_text("{")
    if damage in ("no weights", "pickled weights"): (folder / "adapter" / "adapter_model.safetensors").unlink()
    if damage == "pickled weights": (folder / "adapter" / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="no finished fine-tuning"): P.pack(home, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


# --- the card --------------------------------------------------------------------------------------------------------

def test_the_card_says_what_was_trained_not_what_is_set_now(home):
    mine = P.trained(home)
    text = P.card(mine, read_table(home / "finetune" / "clips.csv"), None)
    assert "3 epochs" in text and "seed 5" in text and "1.5 minutes" in text and "torch 2.13" in text and "numpy" not in text and mine.study.epochs == 3
    assert "| synthetic | learned from | 2 | 2 |" in text and "| synthetic | held out | 1 | 1 | none annotated |" in text


def test_scores_of_another_training_are_not_shown(home):
    evaluate(home, "f0")
    assert P.own_metrics(P.trained(home)) is None
    evaluate(home, "f1", methods=("majority",))
    assert P.own_metrics(P.trained(home)) is None
    evaluate(home)
    metrics = P.own_metrics(P.trained(home))
    assert list(P.score_table(metrics)) == ["majority", "base, untuned", "these weights"]
    text = P.card(P.trained(home), read_table(home / "finetune" / "clips.csv"), metrics)
    assert "0.50 [0.40, 0.60]" in text and "model-index:" in text and "1 clips of 1 subjects" in text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"finished": true}'])
def test_a_damaged_evaluation_is_none(home, text):
    evaluate(home)
    (home / "eval" / "stage.json").write_text(text)
    assert P.own_metrics(P.trained(home)) is None


def test_scores_may_be_missing():
    table = P.score_table(dict(methods=dict(finetuned=dict(scores=dict(uf1=dict(value=None, low=None, high=None), uar=dict(value=.25, low=None, high=None))))))
    assert table["these weights"].tolist()[:2] == ["–", "0.25"]


@pytest.mark.parametrize("corpora, name, said", [(["synthetic"], "apache-2.0", "free under"), (["casme2"], "other", "derived works"), (["casme2", "synthetic"], "other", "from casme2. ")])
def test_the_licence_follows_the_data(corpora, name, said): assert P.licence(corpora)[0] == name and said in P.licence(corpora)[1]


def test_synthetic_scores_are_called_so():
    assert any("synthetic" in s for s in P.limits(Study(), ["synthetic"])) and not any("synthetic" in s for s in P.limits(Study(), ["casme2"]))
    assert any("region lines" in s for s in P.limits(Study(view="text"), ["casme2"]))


# --- the settings ----------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(epochs=st.integers(1, 99), rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1), revision=st.none() | st.text(min_size=1).filter(str.strip))
@example(epochs=1, rate=0., seed=0, revision="\x7f")
def test_settings_are_read_back(tmp_path_factory, epochs, rate, seed, revision):
    study, file = Study(epochs=epochs, learning_rate=rate, seed=seed, revision=revision), tmp_path_factory.mktemp("toml") / "study.toml"
    file.write_text(P.study_toml(study), encoding="utf-8")
    again = Study.load(file, env={})
    assert {f.name: getattr(again, f.name) for f in dataclasses.fields(Study)} == {f.name: getattr(study, f.name) for f in dataclasses.fields(Study)}


# --- sending ---------------------------------------------------------------------------------------------------------

class Hub:
    "A stand-in for the Hub: it keeps what it is told, or fails as it is told."
    endpoint, said, fail = "https://hub.example", [], None
    def __init__(self, token): assert token == SECRET
    def create_repo(self, repo, private, exist_ok): self.said.append((repo, private))
    def upload_folder(self, repo_id, folder_path, commit_message):
        if self.fail: raise self.fail
        self.said.append(sorted(p.name for p in folder_path.iterdir()))


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(Hub, "said", [])
    monkeypatch.setattr(Hub, "fail", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return Hub


def test_a_folder_is_sent_in_private(home, tmp_path, hub):
    out = P.pack(home, tmp_path / "hub")
    assert P.upload(out, "me/mine") == "https://hub.example/me/mine" and hub.said[0] == ("me/mine", True) and "README.md" in hub.said[1]
    P.upload(out, "me/mine", private=False)
    assert hub.said[2] == ("me/mine", False)


def test_packing_alone_sends_nothing(home, tmp_path, hub):
    P.pack(home, tmp_path / "hub")
    assert not hub.said


@pytest.mark.parametrize("error", [OSError(f"401 for {SECRET}"), ValueError(""), RuntimeError(f"line one {SECRET}\nline two")], ids=["refused", "silent", "long"])
def test_a_failed_upload_does_not_tell_the_token(home, tmp_path, hub, error, monkeypatch):
    out = P.pack(home, tmp_path / "hub")
    monkeypatch.setattr(Hub, "fail", error)
    with pytest.raises(ModelError, match="the upload to me/mine failed") as told: P.upload(out, "me/mine")
    assert SECRET not in str(told.value) and told.value.__context__ is None and told.value.__cause__ is None


@pytest.mark.parametrize("repo", ["mine", "me/mine/more", "me/", "/mine", "me/mi ne", "../x", ""])
def test_names_that_are_none(home, tmp_path, hub, repo):
    with pytest.raises(ModelError, match="is no name on the Hub"): P.upload(tmp_path, repo)


def test_without_token_or_card_nothing_is_sent(home, tmp_path, hub, monkeypatch):
    with pytest.raises(ModelError, match="it has no card"): P.upload(tmp_path, "me/mine")
    out = P.pack(home, tmp_path / "hub")
    monkeypatch.setenv("HF_TOKEN", " ")
    with pytest.raises(ModelError, match="HF_TOKEN"): P.upload(out, "me/mine")
    assert not hub.said
