"The command line: what it prints where, and how it ends. The model itself is replaced; tests of real explanations are with the explainer."
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

import mellm
from mellm import cli
from mellm.faces import FaceNotFound, ImageError
from mellm.study import Study

runner = CliRunner()


def mellm_command(*words, **kwargs):
    return subprocess.run([sys.executable, "-c", "from mellm.cli import app; app(prog_name='mellm')", *map(str, words)], capture_output=True, text=True, **kwargs)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    "No settings of the machine, and a folder outside of the clone."
    import os
    for key in list(os.environ):
        if key.startswith("MELLM_"): monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)


# Help and version

def test_help_is_quick_and_names_the_commands():
    start = time.time()
    done = mellm_command("--help")
    assert done.returncode == 0 and done.stderr == "" and time.time() - start < 10
    assert all(re.search(rf"^  {name} ", done.stdout, re.M) for name in ("study", "colormap", "explain")) and done.stdout.count("...") == 1


def test_no_words_show_the_help():
    assert "Usage: mellm" in runner.invoke(cli.app, [], prog_name="mellm").output


def test_version():
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"mellm {mellm.__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["study", "--help"], ["explain", "--help"], ["colormap", "--help"]])
def test_help_loads_no_model(words):
    code = f"import sys\nfrom mellm.cli import app\ntry: app({words!r})\nexcept SystemExit: pass\nassert not {{'torch', 'transformers', 'cv2', 'dlib'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_installed_command_is_there():
    command = Path(sys.executable).parent / "mellm"
    assert subprocess.run([command, "--version"], capture_output=True, text=True).stdout == f"mellm {mellm.__version__}\n"


# explain

class Answer:
    "What an explainer returns."
    text, aus, emotion, moved = "The inner brows move up.", (1, 2), "surprise", True
    color_map, motion = np.zeros((4, 4, 3), np.uint8), ()

    def to_dict(self): return {"text": self.text, "aus": list(self.aus), "emotion": self.emotion}

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ("color_map.png", "explanation.json"): (Path(folder) / name).write_text("x")


@pytest.fixture
def explained(monkeypatch):
    "Let `explain` return what the test wants, or raise it."
    def let(outcome=None, chatter=False):
        def explain(onset, apex):
            if chatter:
                print("Loading weights: 100%")
                warnings.warn("2 faces were found in onset.png; the larger one is used.", UserWarning)
                warnings.warn("2 faces were found in onset.png; the larger one is used.", UserWarning)
                warnings.warn("this will change in version 9", FutureWarning)
            if isinstance(outcome, BaseException): raise outcome
            return outcome or Answer()
        monkeypatch.setitem(sys.modules, "mellm.explainer", type(sys)("mellm.explainer"))
        sys.modules["mellm.explainer"].explain = explain
    return let


def test_explain_says_the_sentences_and_the_facts(explained):
    explained()
    result = runner.invoke(cli.app, ["explain", "a.png", "b.png"])
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == "The inner brows move up.\n\nAction units: AU 1 (inner brow raiser), AU 2 (outer brow raiser)\nEmotion: surprise\n"\
                            "Measured: Nothing moves clearly.\nColor map: add --out DIR to keep it\n"


def test_explain_when_nothing_moved(explained):
    still = Answer()
    still.text, still.aus, still.emotion, still.moved = "Nothing moved between the two pictures.", (), None, False
    explained(still)
    assert runner.invoke(cli.app, ["explain", "a.png", "a.png"]).stdout == "Nothing moved between the two pictures.\n"


def test_json_is_alone_on_stdout_and_several_faces_are_noted_once(explained):
    explained(chatter=True)
    result = runner.invoke(cli.app, ["explain", "a.png", "b.png", "--json"])
    assert json.loads(result.stdout) == Answer().to_dict()
    assert result.stderr.count("note: 2 faces were found in onset.png") == 1 and "version 9" not in result.stderr


def test_out_is_filled(explained, tmp_path):
    explained()
    result = runner.invoke(cli.app, ["explain", "a.png", "b.png", "--out", "deep/er", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["color_map.png", "explanation.json"] and "deep/er" in result.stderr


@pytest.mark.parametrize("error", [FaceNotFound("No face was found in b.png."), ImageError("b.png is cut off.")], ids=["no face", "bad image"])
def test_bad_pictures_end_in_a_sentence_and_code_2(explained, error, tmp_path):
    explained(error)
    result = runner.invoke(cli.app, ["explain", "a.png", "b.png", "--out", "out", "--json"])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"mellm: {error}\n") and not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused_before_the_work(explained, tmp_path):
    explained(AssertionError("worked in vain"))
    (tmp_path / "out").write_text("mine")
    result = runner.invoke(cli.app, ["explain", "a.png", "b.png", "--out", "out"])
    assert result.exit_code == 2 and "is a file, not a folder" in result.stderr and (tmp_path / "out").read_text() == "mine"


def test_a_missing_picture_for_real(tmp_path):
    done = mellm_command("explain", "nobody.png", "nobody.png", "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert re.fullmatch(r"mellm: .*nobody\.png.*\n", done.stderr)


def test_one_picture_is_not_enough():
    result = runner.invoke(cli.app, ["explain", "a.png"])
    assert result.exit_code == 2 and "APEX" in result.stderr


# study

@pytest.fixture
def clone(tmp_path, monkeypatch):
    "Six small notebooks in the place of the real ones, and a table in the place of the result."
    (tmp_path / "nbs").mkdir()
    def write(**cells):
        for name in ("00_data", "01_flow_colormap", "02_instructions", "03_finetune", "04_eval", "05_analysis"):
            code = cells.get(name[3:], "from mellm.study import Study\nprint(Study.load())")
            nbformat.write(new_notebook(cells=[new_code_cell("x = []"), new_code_cell(code)]), tmp_path / "nbs" / f"{name}.ipynb")
    write()
    monkeypatch.setattr(cli, "find_notebooks", lambda folder=None, real=cli.find_notebooks: real(tmp_path / "nbs"))
    monkeypatch.setattr(cli, "_table", lambda folder: f"the table of {folder.name}")
    return write


def test_study_runs_the_notebooks_in_order_and_ends_with_the_table(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("MELLM_STUDY", "mine")
    monkeypatch.setenv("MELLM_EPOCHS", "2")
    result = runner.invoke(cli.app, ["study"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"\[1/6\] 00_data +\d+\.\d s", lines[1]) and lines[6].startswith("[6/6] 05_analysis") and lines[-1] == "the table of eval"
    copies = sorted(p.name for p in (tmp_path / "runs" / "mine" / "notebooks").iterdir())
    assert copies == sorted(p.name for p in (tmp_path / "nbs").iterdir())
    said = nbformat.read(tmp_path / "runs" / "mine" / "notebooks" / "05_analysis.ipynb", as_version=4).cells[1].outputs[0].text
    assert "name='mine'" in said and "epochs=2" in said and repr(str(tmp_path / "runs")) in said
    assert not nbformat.read(tmp_path / "nbs" / "05_analysis.ipynb", as_version=4).cells[1].outputs, "the notebooks themselves stay as they are"


def test_study_takes_a_part_and_a_file(clone, tmp_path):
    (tmp_path / "my.toml").write_text('name = "toml"\nseed = 7\n')
    result = runner.invoke(cli.app, ["study", "--config", "my.toml", "--from", "colormap", "--to", "02"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "runs" / "toml" / "notebooks"
    assert sorted(p.stem for p in folder.iterdir()) == ["01_flow_colormap", "02_instructions"] and "table" not in result.stdout
    assert "seed=7" in nbformat.read(folder / "02_instructions.ipynb", as_version=4).cells[1].outputs[0].text


def test_a_failing_cell_is_told_and_kept(clone, tmp_path):
    clone(flow_colormap="x[0]")
    result = runner.invoke(cli.app, ["study", "--to", "finetune"])
    assert result.exit_code == 1 and "Traceback (most" not in result.output
    assert result.stderr.startswith("mellm: 01_flow_colormap stopped at cell 2 of 2. IndexError: list index out of range\n")
    folder = tmp_path / "runs" / "default" / "notebooks"
    assert sorted(p.name for p in folder.iterdir()) == ["00_data.ipynb", "01_flow_colormap.failed.ipynb"]
    clone()
    assert runner.invoke(cli.app, ["study", "--only", "colormap"]).exit_code == 0
    assert sorted(p.name for p in folder.iterdir()) == ["00_data.ipynb", "01_flow_colormap.ipynb"], "the failed copy is gone"


def test_a_kernel_that_dies_is_told(clone):
    clone(data="import os; os._exit(1)")
    result = runner.invoke(cli.app, ["study", "--only", "data"])
    assert result.exit_code == 1 and "00_data stopped" in result.stderr and "died" in result.stderr.lower()


@pytest.mark.parametrize("words, said", [
    (["--only", "training"], "There is no stage 'training'. The stages are data, colormap"),
    (["--only", "eval", "--from", "data"], "does not go with"),
    (["--from", "eval", "--to", "data"], "comes after"),
    (["--config", "nowhere.toml"], "nowhere.toml cannot be read"),
])
def test_wrong_requests_of_a_study(clone, words, said, tmp_path):
    result = runner.invoke(cli.app, ["study", *words])
    assert result.exit_code == 2 and said in result.stderr and result.stdout == "" and not (tmp_path / "runs").exists()


def test_wrong_settings_of_the_environment(clone, monkeypatch):
    monkeypatch.setenv("MELLM_EPOCS", "2")
    result = runner.invoke(cli.app, ["study"])
    assert result.exit_code == 2 and "Did you mean MELLM_EPOCHS?" in result.stderr


def test_without_notebooks_the_stages_run_all_the_same(clone, monkeypatch):
    built = []
    monkeypatch.setattr(cli, "find_notebooks", lambda: [])
    for name in ("analysis", "colormap"):
        monkeypatch.setitem(sys.modules, f"mellm.{name}", type(sys)(f"mellm.{name}"))
        sys.modules[f"mellm.{name}"].build = lambda study, name=name: built.append((name, study))
    result = runner.invoke(cli.app, ["study"])
    assert result.exit_code == 0 and built == [("analysis", Study())] and result.stdout.endswith("the table of eval\n")
    assert runner.invoke(cli.app, ["study", "--to", "colormap"]).exit_code == 0 and built[1][0] == "colormap"


# colormap

@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    "A folder of frames: good ones, one cut off, one without a face, one of another size."
    import cv2
    from skimage import data
    from mellm.faces import crop_face, landmarks
    folder = tmp_path_factory.mktemp("frames")
    face = crop_face(data.astronaut(), landmarks(data.astronaut()))[0]
    for name, image in dict(onset=face, apex=np.roll(face, 1, 0), grey=np.full_like(face, 128), small=face[:200]).items():
        cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])
    (folder / "cut.png").write_bytes((folder / "apex.png").read_bytes()[:9000])
    return folder


@pytest.fixture
def maps(frames, tmp_path):
    "Run `mellm colormap` on clips given as name=(onset, apex); the result."
    def make(*words, table="clips.csv", out="out", **clips):
        path = frames / f"{tmp_path.name}_{table}"
        lines = [f"{name},{onset},{apex}" for name, (onset, apex) in clips.items()]
        path.write_text("\n".join(["clip,onset_path,apex_path", *lines]) + "\n")
        return runner.invoke(cli.app, ["colormap", str(path), "--out", str(tmp_path / out), "--size", "64", "--jobs", "1", *(words or ["--method", "dis"])])
    return make


GOOD = ("onset.png", "apex.png")


def report_of(tmp_path):
    from mellm.study import read_table
    return read_table(tmp_path / "out" / "report.csv").set_index("clip")


def test_colormap_makes_every_map_and_ends_with_0(maps, tmp_path):
    result = maps(one=GOOD, two=("apex.png", "onset.png"))
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout == f"2 of 2 color maps are in {tmp_path / 'out' / 'maps'}; {tmp_path / 'out' / 'report.csv'} has a row for each.\n"
    assert sorted(p.name for p in (tmp_path / "out" / "maps").iterdir()) == ["one.npz", "one.png", "two.npz", "two.png"]
    report = report_of(tmp_path)
    assert report["ok"].all() and (report[["seconds", "width", "height"]] > 0).all(axis=None) and set(report) >= {"x", "y", "reason", "note"}


def test_colormap_goes_on_past_bad_clips_tells_them_and_ends_with_1(maps, tmp_path):
    bad = dict(missing=("onset.png", "no.png"), faceless=("grey.png", "apex.png"), sizes=("onset.png", "small.png"), cut=("onset.png", "cut.png"), empty=("onset.png", ""))
    result = maps(good=GOOD, **bad)
    report = report_of(tmp_path)
    assert result.exit_code == 1 and result.stdout.startswith("1 of 6 color maps") and report["ok"].sum() == 1
    for clip, said in dict(missing="does not exist", faceless="No face was found", sizes="same size", cut="cut off or damaged", empty="no picture of the apex").items():
        assert said in report.loc[clip, "reason"], clip
    assert result.stderr.count("mellm: clip ") == 3 and "mellm: 2 more clips failed" in result.stderr and "Traceback" not in result.stderr


def test_colormap_goes_on_where_it_stopped(maps, tmp_path):
    first = maps(one=GOOD, two=("onset.png", "later.png"))
    made = (tmp_path / "out" / "maps" / "one.npz").stat().st_mtime_ns
    again = maps(one=GOOD, two=("onset.png", "small.png"))
    assert first.exit_code == again.exit_code == 1 and "same size" in report_of(tmp_path).loc["two", "reason"]
    done = maps(one=GOOD, two=("onset.png", "apex.png"))
    assert done.exit_code == 0 and report_of(tmp_path)["ok"].all() and (tmp_path / "out" / "maps" / "one.npz").stat().st_mtime_ns == made


def test_colormap_does_not_mix_methods_in_a_folder(maps, tmp_path):
    assert maps(one=GOOD).exit_code == 0
    before = (tmp_path / "out" / "maps" / "one.png").read_bytes()
    for words, said in ((["--method", "farneback"], "flow = 'dis', not 'farneback'"), (["--method", "dis", "--style", "white"], "style = 'v1', not 'white'")):
        result = maps(*words, one=GOOD)
        assert result.exit_code == 2 and said in result.stderr and "Choose another folder" in result.stderr
    assert (tmp_path / "out" / "maps" / "one.png").read_bytes() == before


@pytest.mark.parametrize("words, said", [
    (["--method", "dsi"], "'dsi' is unknown. Choose one of tvl1, dis"),
    (["--head-motion", "neck"], "'neck' is unknown. Choose one of nose"),
    (["--style", "v9"], "'v9' is unknown. Choose one of v1"),
    (["--method", "dis", "--device", "cuda"], "--device cuda is for the networks"),
    (["--percentile", "101"], "99.9"), (["--size", "1"], "64"), (["--jobs", "-1"], "equal to 0")])
def test_colormap_refuses_settings_before_any_work(maps, tmp_path, words, said):
    result = maps(*words, one=GOOD)
    assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, said", [
    ("clip,onset\na,b\n", "lacks the column onset_path, apex_path"), ("clip,onset_path,apex_path\n", "holds no clip"), ("", "cannot be read as a table"),
    ("clip,onset_path,apex_path\na,x.png,y.png\n,x.png,y.png\n", "line 3: the clip has no name"), ("clip,onset_path,apex_path\na,x,y\na,x,z\n", "'a' stands more than once"),
    ("clip,onset_path,apex_path\na,,\nb,x.png,\n", "Not one clip of"), (b"\x89PNG\r\n\xff\xfe\x00", "cannot be read as a table")], ids=range(7))
def test_colormap_refuses_a_table_that_cannot_be_used(tmp_path, text, said):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = runner.invoke(cli.app, ["colormap", "t.csv", "--out", "out"])
    assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, said", [
    (["nowhere.csv"], "There is no file nowhere.csv"), (["casme9"], "The corpora are synthetic, casme"), (["casme2"], "root"), (["casme2", "--root", "gone"], "does not exist")])
def test_colormap_refuses_a_corpus_that_is_not_there(tmp_path, words, said):
    result = runner.invoke(cli.app, ["colormap", *words, "--out", "out"])
    assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "out").exists()


def test_colormap_takes_no_file_for_a_folder(maps, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "is a file, not a folder" in maps(one=GOOD).stderr and (tmp_path / "out").read_text() == "mine"


def test_colormap_reads_a_corpus(monkeypatch, frames, tmp_path):
    import pandas as pd
    from mellm import corpora

    def read(name, root, annotation, study):
        assert (name, root, study.workers) == ("synthetic", tmp_path / "out" / "corpus", 1)
        return pd.DataFrame([dict(clip="a b/1", onset_path=str(frames / "onset.png"), apex_path=str(frames / "apex.png"), aus="12")])
    monkeypatch.setattr(corpora, "read_corpus", read)
    result = runner.invoke(cli.app, ["colormap", "synthetic", "--out", str(tmp_path / "out"), "--method", "dis", "--size", "64", "--jobs", "1"])
    assert result.exit_code == 0 and report_of(tmp_path).index.tolist() == ["a b/1"], result.output
