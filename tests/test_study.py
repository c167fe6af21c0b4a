"The configuration and the stages: what is refused, who wins, and that a result is whole or not there."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mellm import study as study_module

from mellm.study import (Study, StudyError, fingerprint, home, read_jsonl, read_table, resolve, stage, write_json, write_jsonl,
                         write_table)


@pytest.fixture
def study(tmp_path):
    return Study(name="s", runs=str(tmp_path))


@pytest.fixture
def away(tmp_path, monkeypatch):
    "A folder outside of any clone, as the current one."
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Configuration

@pytest.mark.parametrize("key, value, allowed", [
    ("flow", "sift", "tvl1, dis, farneback"), ("style", "", "v1, white"), ("head_motion", "eyes", "nose, rigid, learned, none"),
    ("percentile", 100, "99.9"), ("percentile", -1, "at least 0"), ("size", 8, "at least 64"), ("subjects", 1, "at least 2"),
    ("epochs", 0, "at least 1"), ("batch_size", 0, "at least 1"), ("learning_rate", -1, "at least 0"), ("learning_rate", float("nan"), "at least 0"),
    ("learning_rate", float("inf"), "at most 1"), ("test_share", 1.0, "below 1"), ("test_share", 0, "above 0"), ("seed", -1, "at least 0"),
    ("seed", 2**32, "at most"), ("workers", -2, "at least 0"), ("name", "../up", "letters"), ("name", "", "letters"), ("name", "a/b", "letters"),
    ("name", ".", "letters"), ("model", " ", "must not be empty"), ("corpus", "casme9", "one of synthetic, table, casme, casme2, casme_sq, casme3, samm, smic, mmew, 4dme, dfme"),
    ("corpus", "megc2019_flow", "mellm.megc.read_megc"), ("manner", "fer2013", "one of balanced, casme2, samm, smic, casme3"), ("strategy", "magic", "one of lora-llm, lora-all"), ("model", "", "must not be empty"),
])
def test_impossible_values_name_the_key_the_value_and_what_is_allowed(key, value, allowed):
    for make in (lambda: Study(**{key: value}), lambda: Study.load(env={}, **{key: value})):
        with pytest.raises(StudyError) as caught: make()
        assert f"{key} must" in str(caught.value) and allowed in str(caught.value)


@pytest.mark.parametrize("key, value", [("epochs", "3"), ("epochs", 2.0), ("epochs", True), ("seed", None), ("learning_rate", "fast"),
                                        ("name", 3), ("root", 3), ("corpus", ["casme2"]), ("size", float("nan"))])
def test_wrong_types_are_refused(key, value):
    with pytest.raises(StudyError, match=f"{key} must be .*, not "): Study(**{key: value})


def test_numbers_of_numpy_and_paths_are_welcome():
    study = Study(seed=np.int64(3), learning_rate=np.float32(0.5), root=Path("/data"))
    assert (study.seed, study.learning_rate, study.root) == (3, 0.5, "/data") and type(study.seed) is int


def test_a_whole_number_is_a_number():
    assert Study(percentile=80).percentile == 80.0


@pytest.mark.parametrize("values, said", [
    ({"MELLM_EPOCS": "2"}, "MELLM_EPOCS is not a setting of a study. Did you mean MELLM_EPOCHS?"),
    ({"MELLM_XYZZY": "2"}, "MELLM_XYZZY is not a setting of a study. The settings are"),
    ({"MELLM_EPOCHS": "two"}, "MELLM_EPOCHS): epochs must be a whole number, not 'two'"),
    ({"MELLM_EPOCHS": "2.5"}, "epochs must be a whole number"),
    ({"MELLM_FLOW": "sift"}, "flow must be one of tvl1"),
    ({"MELLM_STUDY": "a", "MELLM_NAME": "b"}, "MELLM_STUDY and MELLM_NAME"),
])
def test_environment_mistakes(values, said):
    with pytest.raises(StudyError) as caught: Study.load(env=values)
    assert said in str(caught.value)


def test_environment_values(away):
    study = Study.load(env={"MELLM_STUDY": "big", "MELLM_CORPUS": "casme2", "MELLM_MEGC": "flows", "MELLM_ROOT": "/data/CASME2", "MELLM_LEARNING_RATE": "2e-4",
                            "MELLM_MODEL": "Qwen/Qwen2.5-VL-7B-Instruct", "MELLM_SEED": "", "HOME": "/nowhere"})
    assert (study.name, study.corpus, study.root, study.learning_rate, study.seed) == ("big", "casme2", "/data/CASME2", 2e-4, 0)


def test_unknown_override_is_refused():
    with pytest.raises(StudyError, match="epoch is not a setting of a study. Did you mean epochs"): Study.load(env={}, epoch=2)


def test_later_layers_win(away):
    (away / "mine.toml").write_text('epochs = 2\nseed = 2\nsize = 128\n')
    study = Study.load("mine.toml", env={"MELLM_SEED": "3", "MELLM_SIZE": "256"}, size=96)
    assert (study.batch_size, study.epochs, study.seed, study.size) == (4, 2, 3, 96)


def test_toml_by_environment_and_by_place(away):
    (away / "mellm.toml").write_text("epochs = 2\n")
    (away / "other.toml").write_text("epochs = 3\n")
    assert Study.load(env={}).epochs == 2
    assert Study.load(env={"MELLM_CONFIG": "other.toml"}).epochs == 3
    assert Study.load("mellm.toml", env={"MELLM_CONFIG": "other.toml"}).epochs == 2


@pytest.mark.parametrize("text, said", [
    ("epocs = 2", "bad.toml: epocs is not a setting of a study. Did you mean epochs?"), ("epochs = '2'", "bad.toml: epochs must be a whole number"),
    ("epochs = ", "is not valid TOML"), ("epochs = 2.0", "whole number"), ("epochs = true", "whole number"), ("[study]\nepochs = 2", "study is not a setting"),
    ("flow = 'sift'", "bad.toml: flow must be one of"),
])
def test_toml_mistakes(away, text, said):
    (away / "bad.toml").write_text(text)
    with pytest.raises(StudyError) as caught: Study.load("bad.toml", env={})
    assert said in str(caught.value)


def test_toml_that_cannot_be_read(away):
    with pytest.raises(StudyError, match="nowhere.toml cannot be read"): Study.load("nowhere.toml", env={})
    with pytest.raises(StudyError, match="cannot be read"): Study.load(env={"MELLM_CONFIG": "nowhere.toml"})
    (away / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(StudyError, match="cannot be read"): Study.load("latin.toml", env={})


def test_relative_folders(away):
    (away / "conf").mkdir()
    (away / "conf" / "my.toml").write_text("root = 'corpora/x'\n")
    assert Study.load("conf/my.toml", env={}).root == str(away / "conf" / "corpora" / "x"), "from the TOML file"
    assert Study.load(env={"MELLM_ROOT": "corpora/x"}).root == str(away / "corpora" / "x"), "from the home"


def test_home_is_the_clone_or_the_current_folder(away):
    assert home() == away and Study().folder == away / "runs" / "default"
    (away / "settings.ini").touch()
    (away / "nbs").mkdir()
    os.chdir(away / "nbs")
    assert home() == away and Study(name="x").folder == away / "runs" / "x", "the same folder from nbs/"


def test_study_is_frozen_and_shows_itself():
    study = Study(seed=1)
    with pytest.raises(AttributeError): study.seed = 2
    table = study._repr_markdown_()
    assert "| seed | **1** |" in table and "| epochs | 3 |" in table and "| root | – |" in table


# Files

def test_files_are_atomic(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError): write_json(tmp_path / "a.json", {"new": object()})
    with pytest.raises(TypeError): write_jsonl(tmp_path / "b.jsonl", [{"fine": 1}, {"bad": object()}])
    class Breaks:
        def to_csv(self, path, index): Path(path).write_text("half"); raise OSError("disk full")
    with pytest.raises(OSError): write_table(tmp_path / "c.csv", Breaks())
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_json_takes_what_science_makes(tmp_path):
    path = write_json(tmp_path / "deep" / "x.json", {1: np.arange(2), "nan": [float("nan"), np.float64("inf")], "path": tmp_path, "set": {3}, "é": np.bool_(True)})
    assert json.loads(path.read_text(encoding="utf-8")) == {"1": [0, 1], "nan": [None, None], "path": str(tmp_path), "set": [3], "é": True}


@pytest.mark.parametrize("text, said", [('{"a": 1}\n\n{"b"\n', "line 3: not valid JSON"), ("[1]\n", "line 1: expected an object in braces, found list")])
def test_broken_jsonl_names_the_line(tmp_path, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError) as caught: read_jsonl(tmp_path / "x.jsonl")
    assert "x.jsonl, " + said in str(caught.value)


def test_jsonl_keeps_separators_inside_texts(tmp_path):
    rows = [{"text": "one\u2028two\x85three\nfour"}]
    assert read_jsonl(write_jsonl(tmp_path / "x.jsonl", rows)) == rows


def test_tables_keep_texts(tmp_path):
    df = pd.DataFrame({"subject": ["007", "NA"], "clip": ["1e5", "null"], "aus": ["", "12"], "emotion": [None, "x"], "apex": [1.5, np.nan], "n": [1, 2], "ok": [True, False]})
    back = read_table(write_table(tmp_path / "t.csv", df))
    assert back.subject.tolist() == ["007", "NA"] and back["clip"].tolist() == ["1e5", "null"]
    assert back.aus.tolist() == ["", "12"] and back.emotion.tolist() == ["", "x"]
    assert np.isnan(back.apex[1]) and back.n.dtype.kind == "i" and back.ok.dtype.kind == "b"


def test_broken_table_names_the_file(tmp_path):
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ValueError, match="t.csv is not a readable CSV table"): read_table(tmp_path / "t.csv")


def test_resolve(study, tmp_path):
    assert resolve(study, "data/a.png") == tmp_path / "s" / "data" / "a.png" and resolve(study, "/x/a.png") == Path("/x/a.png")


# Stages

class Builder:
    "Makes three items, dies before item `dies`, and remembers what it made."
    def __init__(self, dies=None): self.dies, self.made = dies, []

    def __call__(self, folder):
        for i in range(3):
            if (folder / f"{i}.txt").exists(): continue
            if i == self.dies: raise RuntimeError("out of power")
            (folder / f"{i}.txt").write_text(str(i))
            self.made.append(i)

    __qualname__ = "Builder"


def build_of(builder):
    def build(folder): builder(folder)
    return build


def test_a_builder_that_dies_half_way_leaves_nothing_that_looks_finished_and_continues(study):
    builder = Builder(dies=2)
    with pytest.raises(RuntimeError, match="out of power"): stage(study, "data", build_of(builder))
    assert [p.name for p in study.folder.iterdir()] == ["data.partial"]
    assert json.loads((study.folder / "data.partial" / "stage.json").read_text())["finished"] is False
    builder.dies = None
    folder = stage(study, "data", build_of(builder))
    assert builder.made == [0, 1, 2] and [p.name for p in study.folder.iterdir()] == ["data"] and folder == study.folder / "data"


def test_a_process_that_is_killed_half_way_continues(tmp_path):
    code = ("import os, sys; from mellm.study import Study, stage\n"
            "def build(folder):\n"
            "    for i in range(3):\n"
            "        if not (folder / f'{i}.txt').exists():\n"
            "            if i == int(sys.argv[1]): os._exit(9)\n"
            "            (folder / f'{i}.txt').write_text(sys.argv[1])\n"
            f"stage(Study(name='s', runs={str(tmp_path)!r}), 'data', build)\n")
    assert subprocess.run([sys.executable, "-c", code, "2"]).returncode == 9
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["data.partial"]
    assert subprocess.run([sys.executable, "-c", code, "7"]).returncode == 0
    assert [(tmp_path / "s" / "data" / f"{i}.txt").read_text() for i in range(3)] == ["2", "2", "7"]


def test_finished_stages_are_not_run_again(study):
    builder = Builder()
    first = stage(study, "data", build_of(builder), keys=["seed"])
    assert stage(study, "data", build_of(builder), keys=["seed"]) == first and builder.made == [0, 1, 2]


def test_record_tells_how_a_result_came_about(study):
    folder = stage(study, "data", build_of(Builder()), keys=["seed"])
    record = json.loads((folder / "stage.json").read_text())
    assert record["stage"] == "data" and record["finished"] and record["seed"] == 0 and record["config"]["corpus"] == "synthetic"
    assert record["versions"]["numpy"] == np.__version__ and record["seconds"] >= 0 and "commit" in record and len(record["fingerprint"]) == 16


def test_only_the_named_settings_matter(study, tmp_path):
    builder = Builder()
    stage(study, "data", build_of(builder), keys=["seed"])
    stage(Study(name="s", runs=str(tmp_path), epochs=99), "data", build_of(builder), keys=["seed"])
    assert builder.made == [0, 1, 2]
    with pytest.raises(StudyError, match="stage data: sede is not a setting"): stage(study, "data", build_of(builder), keys=["sede"])


def test_a_different_result_is_set_aside_and_comes_back(study, tmp_path):
    other, builder = Study(name="s", runs=str(tmp_path), seed=1), Builder()
    old = json.loads((stage(study, "data", build_of(builder), keys=["seed"]) / "stage.json").read_text())["fingerprint"]
    stage(other, "data", build_of(builder), keys=["seed"])
    assert sorted(p.name for p in study.folder.iterdir()) == ["data", f"data.{old[:8]}"] and len(builder.made) == 6
    assert json.loads((study.folder / f"data.{old[:8]}" / "stage.json").read_text())["fingerprint"] == old
    folder = stage(study, "data", build_of(builder), keys=["seed"])
    assert len(builder.made) == 6 and json.loads((folder / "stage.json").read_text())["fingerprint"] == old


def test_an_interrupted_result_of_other_settings_is_kept(study, tmp_path):
    other, builder = Study(name="s", runs=str(tmp_path), seed=1), Builder(dies=1)
    with pytest.raises(RuntimeError): stage(study, "data", build_of(builder), keys=["seed"])
    builder.dies = None
    stage(other, "data", build_of(builder), keys=["seed"])
    assert builder.made == [0, 0, 1, 2], "the half result of seed 0 was not used for seed 1"
    stage(study, "data", build_of(builder), keys=["seed"])
    assert builder.made == [0, 0, 1, 2, 1, 2], "but seed 0 went on from its own half"


def test_a_folder_without_record_is_set_aside_not_overwritten(study):
    (study.folder / "data").mkdir(parents=True)
    (study.folder / "data" / "precious.txt").write_text("by hand")
    stage(study, "data", build_of(Builder()))
    assert (study.folder / "data.unknown" / "precious.txt").exists() and (study.folder / "data" / "2.txt").exists()


def test_a_change_at_the_start_is_felt_at_the_end(study, tmp_path):
    def nothing(folder): pass
    first = stage(study, "data", build_of(Builder()), keys=["seed"])
    before = fingerprint(study, "colormap", nothing, needs=[first])
    first = stage(Study(name="s", runs=str(tmp_path), seed=1), "data", build_of(Builder()), keys=["seed"])
    assert fingerprint(study, "colormap", nothing, needs=[first]) != before


def test_an_unfinished_need_is_an_error(study, tmp_path):
    with pytest.raises(StudyError, match="not a finished stage"): stage(study, "colormap", build_of(Builder()), needs=[tmp_path / "data"])


def test_code_is_part_of_the_fingerprint(study, tmp_path, monkeypatch):
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("def two(): return 2\n")
    (package / "work.py").write_text("from .helper import two\n# a comment\ndef build(folder): (folder / 'x').write_text(str(two()))\n")
    monkeypatch.syspath_prepend(tmp_path)
    from toy.work import build
    before = fingerprint(study, "work", build)
    (package / "work.py").write_text("from .helper import two\n\n# another comment\ndef build(folder): (folder / 'x').write_text(str(two()))\n")
    assert fingerprint(study, "work", build) == before, "comments do not count"
    (package / "helper.py").write_text("def two(): return 3\n")
    assert fingerprint(study, "work", build) != before, "the code it imports counts"


def test_a_notebook_and_its_module_make_the_same_fingerprint(tmp_path):
    "A stage that was made in its notebook is found finished by the module, and the other way round."
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook
    source = Path(sys.modules["mellm.study"].__file__).parent / "facs.py"
    text = source.read_text()
    name = next(line.split("(")[0].removeprefix("def ") for line in text.splitlines() if line.startswith("def "))
    block = text[text.index(f"def {name}("):].split("\n\n# %%")[0].split("\n\ndef ")[0]
    code = f"from mellm import study; fingerprint = study.fingerprint; study = study.Study(runs={str(tmp_path)!r})"
    pre = text.split("# %% ")[0:3]
    cell = "\n".join(line.replace("from .", "from mellm.") for part in pre for line in part.splitlines() if line.startswith(("import ", "from ")))
    nb = new_notebook(cells=[new_code_cell(cell), new_code_cell(block), new_code_cell(code), new_code_cell(f"print(fingerprint(study, 'facs', {name}))")])
    NotebookClient(nb, kernel_name="python3").execute()
    from mellm import facs
    assert nb.cells[-1].outputs[0].text.strip() == fingerprint(Study(runs=str(tmp_path)), "facs", getattr(facs, name))


def test_new_weights_make_a_stage_anew(tmp_path):
    (tmp_path / "net.py").write_text("from .study import stage\n")
    before = study_module._sources(tmp_path / "net.py", {})
    weights = tmp_path / "weights" / "net" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1")
    first, _ = study_module._sources(tmp_path / "net.py", {}), weights.write_bytes(b"2")
    assert before != first != study_module._sources(tmp_path / "net.py", {})


def test_variables_that_are_no_settings_are_left_alone():
    assert Study.load(env={"MELLM_VIDEO": "face.mp4", "MELLM_FULL": "1", "MELLM_MEGC": "flows"}) == Study.load(env={})
