"The commands `instructions`, `finetune` and `push`: what they ask for, what they print, how they end. Stages and trainings are replaced."
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from mellm import finetune, formats, tools
from mellm.bases import ModelError
from mellm.study import Study, read_table, write_jsonl, write_table

runner = CliRunner()
run = lambda *words: runner.invoke(tools.app, [str(w) for w in words])


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for key in list(os.environ):
        if key.startswith("MELLM_"): monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)


def test_the_program_has_six_commands():
    said = run("--help").output
    assert all(f"  {name} " in said for name in ("study", "colormap", "explain", "instructions", "finetune", "push"))


@pytest.mark.parametrize("command", ["instructions", "finetune", "push"])
def test_help_loads_no_model(command):
    code = f"import sys\nfrom mellm.tools import app\ntry: app(['{command}', '--help'])\nexcept SystemExit: pass\nassert not {{'torch', 'transformers', 'cv2', 'dlib', 'datasets'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# --- instructions ----------------------------------------------------------------------------------------------------

@pytest.fixture
def exported(monkeypatch):
    "The export is replaced; the list holds what it was asked."
    calls = []
    def export_dataset(study, out, kinds, copy_images=True):
        calls.append((study, kinds, copy_images))
        write_jsonl(out / "chat" / "train.jsonl", [{"id": "a"}, {"id": "b"}])
        (out / "llava").mkdir()
        (out / "llava" / "train.json").write_text('[\n{"id": "a"}\n]\n')
        return out
    monkeypatch.setattr(formats, "export_dataset", export_dataset)
    return calls


def test_a_corpus_becomes_a_study(exported, tmp_path):
    result = run("instructions", "casme2", "--root", "corpus", "--out", "data", "--language", "zh", "--seed", 3, "--method", "dis", "--test-share", .5, "--no-copy", "--format", "chat", "--format", "chat")
    assert result.exit_code == 0, result.output
    (study, kinds, copied), = exported
    assert (study.corpus, study.root, study.language, study.seed, study.flow, study.test_share) == ("casme2", str(tmp_path / "corpus"), "zh", 3, "dis", .5)
    assert study.name == "dataset-casme2" and kinds == ("chat",) and not copied
    assert result.stdout.splitlines()[:2] == ["chat/train.jsonl  2 lines", "llava/train.json  1 lines"] and "README.md" in result.stdout


def test_a_table_becomes_a_study(exported, tmp_path):
    (tmp_path / "my clips.csv").write_text("subject,onset_path,apex_path\n")
    assert run("instructions", "my clips.csv", "--out", "data").exit_code == 0
    study = exported[0][0]
    assert (study.corpus, study.annotation, study.root, study.name) == ("table", str(tmp_path / "my clips.csv"), str(tmp_path), "dataset-my-clips") and exported[0][1] == ("chat", "llava", "swift", "mevqa")


def test_a_study_file_becomes_a_dataset(exported, tmp_path):
    (tmp_path / "my.toml").write_text('name = "mine"\nsubjects = 4\nview = "text"\n')
    assert run("instructions", "--study", "my.toml", "--out", "data").exit_code == 0
    assert (exported[0][0].name, exported[0][0].subjects, exported[0][0].view) == ("mine", 4, "text")


@pytest.mark.parametrize("words, said", [
    (["casme9"], "no corpus of that name. The corpora are synthetic"), (["synthetic", "--language", "fr"], "language must be one of en, zh"), (["synthetic", "--view", "sound"], "view must be one of"),
    (["--study", "gone.toml"], "gone.toml cannot be read"), (["synthetic", "--test-share", "2"], "test_share must be")])
def test_wrong_requests_for_a_dataset(exported, words, said):
    result = run("instructions", *words, "--out", "data")
    assert result.exit_code == 2 and said in result.stderr and not exported and "Traceback" not in result.output


@pytest.mark.parametrize("error, code", [(ValueError("There is no clip to compare."), 2), (RuntimeError("No clip of 3 could be made into a color map."), 1), (ModelError("too little memory"), 1), (FileNotFoundError("gone"), 2)])
def test_errors_are_sentences(monkeypatch, error, code):
    def export_dataset(*a, **k): raise error
    monkeypatch.setattr(formats, "export_dataset", export_dataset)
    result = run("instructions", "synthetic", "--out", "data")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"mellm: {error}\n")


def test_a_table_for_real(tmp_path):
    "From a CSV of six clips of three people to files that `datasets` reads."
    from mellm.corpora import read_corpus
    clips = read_corpus("synthetic", tmp_path / "corpus", study=Study(subjects=3, clips_per_subject=2, workers=1))
    write_table(tmp_path / "t.csv", clips[clips.subject != "astronaut"][["subject", "clip", "onset_path", "apex_path", "aus", "emotion"]].assign(**{
        c: clips[c].map(lambda p: str(os.path.relpath(p, tmp_path))) for c in ("onset_path", "apex_path")}))
    result = run("instructions", "t.csv", "--out", "data", "--method", "dis", "--jobs", 1, "--test-share", .34, "--augment", "none")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "data" / "chat" / "train.jsonl").read_text().splitlines()]
    assert {r["split"] for r in rows} == {"train"} and len({r["subject"] for r in rows}) == 2 and all((tmp_path / "data" / p).is_file() for r in rows for p in r["images"])
    assert len(rows) == 4 * 3 and len(tools.read_records(tmp_path / "data" / "chat" / "train.jsonl")) == len(rows)


# --- finetune --------------------------------------------------------------------------------------------------------

@pytest.fixture
def data(tmp_path):
    "Three conversations in the layout of `mellm instructions`, the last without the keys of ours."
    (tmp_path / "d" / "images").mkdir(parents=True)
    say = lambda role, *parts: {"role": role, "content": [*parts]}
    rows = []
    for i in range(3):
        Image.fromarray(np.full((224, 224, 3), i, np.uint8)).save(tmp_path / "d" / "images" / f"{i}.png")
        rows.append({"id": f"c{i}/describe", "clip": f"c{i}", "corpus": "synthetic", "subject": f"s{i}", "split": "train", "aus": "12", "emotion": "positive", "tasks": ["what"], "images": [f"images/{i}.png"],
                     "messages": [say("user", {"type": "image"}, {"type": "text", "text": "What moves?"}), say("assistant", {"type": "text", "text": "Nothing."})]})
    rows[2] = {k: rows[2][k] for k in ("id", "images", "messages")}
    return write_jsonl(tmp_path / "d" / "chat" / "train.jsonl", rows)


@pytest.fixture
def trainings(monkeypatch):
    "The training is replaced; the list holds what it was asked."
    calls = []
    def train(study, folder, records):
        calls.append((study, records))
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
        return pd.DataFrame({"step": [1, 2, 2], "loss": [2., 1., None], "eval_loss": [None, None, 1.25]})
    monkeypatch.setattr(finetune, "finetune", train)
    return calls


def test_records_are_filled_and_their_pictures_found(data):
    records = tools.read_records(data)
    assert all(os.path.isabs(p) and os.path.exists(p) for r in records for p in r["images"])
    assert records[0]["subject"] == "s0" and (records[2]["clip"], records[2]["subject"], records[2]["tasks"], records[2]["aus"]) == ("c2/describe", "", ["describe"], "")


def test_training_on_a_file(data, trainings, tmp_path):
    words = ["finetune", "--data", data, "--out", "mine", "--epochs", 2, "--strategy", "lora-llm", "--rank", 4]
    result = run(*words)
    assert result.exit_code == 0, result.output
    study, records = trainings[0]
    assert (study.folder, study.epochs, study.strategy, study.lora_rank, study.view) == (tmp_path / "mine", 2, "lora-llm", 4, "picture") and len(records) == 3
    assert result.stdout.startswith("loss 2.000 → 1.000, on held-out training subjects 1.250; ") and result.stdout.splitlines()[-1] == f"The adapter is in {tmp_path / 'mine' / 'finetune' / 'adapter'}"
    clips = read_table(tmp_path / "mine" / "finetune" / "clips.csv")
    assert clips.corpus.tolist() == ["synthetic", "synthetic", "own data"] and set(clips.split) == {"train"}
    assert run(*words).exit_code == 0 and len(trainings) == 1, "a finished training is not repeated"
    data.write_text(data.read_text() + " \n")
    assert run(*words).exit_code == 0 and len(trainings) == 2, "another file is another training"


@pytest.mark.parametrize("line, said", [
    ('{"id": "x"', "train.jsonl, line 2: not valid JSON"), ("[]", "line 2"), ('{"id": "x", "images": []}', "line 2: it lacks messages"),
    ('{"id": "x", "images": ["images/9.png"], "messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}', "line 2"),
    ('{"id": "x", "images": [], "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}', "line 2: the speakers")])
def test_a_broken_line_is_named(data, trainings, line, said):
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0], line, *lines[2:]]))
    result = run("finetune", "--data", data, "--out", "mine")
    assert result.exit_code == 2 and said in result.stderr and not trainings


@pytest.mark.parametrize("words, said", [
    (["--data", "gone.jsonl", "--out", "mine"], "There is no file"), (["--out", "mine"], "go together"), (["--data", "x.jsonl"], "go together"), (["--epochs", "0"], "epochs must be at least 1"),
    (["--strategy", "magic"], "strategy must be one of"), (["--study", "gone.toml"], "cannot be read")])
def test_wrong_requests_for_a_training(trainings, words, said):
    result = run("finetune", *words)
    assert result.exit_code == 2 and said in result.stderr and not trainings


def test_out_must_be_a_folder_with_a_plain_name(data, trainings, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, said in (("file", "is a file, not a folder"), ("my model", "letters, digits")):
        result = run("finetune", "--data", data, "--out", out)
        assert result.exit_code == 2 and said in result.stderr and not trainings


def test_an_empty_file_is_no_data(tmp_path, trainings):
    (tmp_path / "e.jsonl").write_text("\n")
    result = run("finetune", "--data", "e.jsonl", "--out", "mine")
    assert result.exit_code == 2 and "empty" in result.stderr and not trainings


def test_training_of_a_study(monkeypatch, tmp_path):
    built = []
    def build(study):
        built.append(study)
        (tmp_path / "f" / "model").mkdir(parents=True)
        write_table(tmp_path / "f" / "log.csv", pd.DataFrame({"step": [1], "loss": [.5]}))
        return tmp_path / "f"
    monkeypatch.setattr(finetune, "build", build)
    (tmp_path / "my.toml").write_text('name = "mine"\nepochs = 2\n')
    result = run("finetune", "--study", "my.toml", "--strategy", "full", "--learning-rate", "1e-4")
    assert result.exit_code == 0 and (built[0].name, built[0].epochs, built[0].strategy, built[0].learning_rate) == ("mine", 2, "full", 1e-4)
    assert result.stdout.startswith("loss 0.500 → 0.500; ") and "The model is in" in result.stdout


# --- push ------------------------------------------------------------------------------------------------------------

def test_a_training_on_a_file_can_be_packed(data, trainings, tmp_path):
    run("finetune", "--data", data, "--out", "mine")
    result = run("push", "mine", "--out", "hub")
    assert result.exit_code == 0, result.output
    assert "README.md" in result.stdout and "not been evaluated" in result.stderr and (tmp_path / "hub" / "study.toml").is_file()


def test_a_study_file_names_the_folder(data, trainings, tmp_path):
    run("finetune", "--data", data, "--out", "runs/mine")
    (tmp_path / "my.toml").write_text('name = "mine"\n')
    assert run("push", "--study", "my.toml", "--out", "hub").exit_code == 0


def test_uploads_only_when_asked(data, trainings, monkeypatch):
    from mellm import push
    sent = []
    monkeypatch.setattr(push, "upload", lambda folder, repo, private: sent.append((repo, private)) or f"https://hub.example/{repo}")
    run("finetune", "--data", data, "--out", "mine")
    assert run("push", "mine", "--out", "hub").exit_code == 0 and not sent
    assert "Sent to https://hub.example/me/mine" in run("push", "mine", "--out", "hub", "--upload", "me/mine").stdout
    run("push", "mine", "--out", "hub", "--upload", "me/mine", "--public")
    assert sent == [("me/mine", True), ("me/mine", False)]


@pytest.mark.parametrize("words, code, said", [
    (["gone", "--out", "hub"], 1, "no finished fine-tuning"), (["a", "--study", "b.toml", "--out", "hub"], 2, "not both"), (["a", "--out", "hub", "--public"], 2, "goes with --upload"), (["a"], 2, "--out")])
def test_wrong_requests_for_a_pack(words, code, said):
    result = run("push", *words)
    assert result.exit_code == code and said in result.stderr
