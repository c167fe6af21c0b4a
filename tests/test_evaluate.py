"The commands for evaluation: what they print, and how mistakes end."
import json

import pytest
from typer.testing import CliRunner

from mellm.evaluate import app
from mellm.megc import write_example


@pytest.fixture(scope="module")
def flows(tmp_path_factory): return write_example(tmp_path_factory.mktemp("megc"), people=2)


def call(*words, env=None): return CliRunner().invoke(app, [str(w) for w in words], env=env)


def test_every_command_explains_itself():
    for words in (["real"], ["transfer"], ["crosscorpus"], ["zeroshot"], ["probe"], ["vqa"], ["vqa", "answer"], ["vqa", "score"], ["finetune"], ["explain"]):
        done = call(*words, "--help")
        assert done.exit_code == 0 and "Usage" in done.stdout, words


def test_the_table_goes_on_where_it_stopped(flows, tmp_path):
    words = ("real", "--methods", "majority,bi_woof,lbp_top", "--root", flows, "--out", tmp_path, "--workers", 1)
    first = call(*words)
    assert first.exit_code == 0 and "not run: needs frames" in first.stdout and "Bi-WOOF" in first.stdout, first.output
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "folds").rglob("*.json")}
    assert times and call(*words).exit_code == 0 and {f: f.stat().st_mtime_ns for f in (tmp_path / "folds").rglob("*.json")} == times
    compared = call("real", "--compare", "majority:bi_woof", "--root", flows, "--out", tmp_path)
    assert compared.exit_code == 0 and "McNemar" in compared.stdout, compared.output


@pytest.mark.parametrize("words, said", [
    (("real", "--methods", "alexnet"), "There is no row 'alexnet'"), (("real", "--compare", "a:b:c"), "--compare a:b:c"),
    (("real", "--root", "nowhere"), "nowhere"), (("zeroshot", "gpt-7"), "there is no row 'gpt-7'"),
    (("zeroshot", "gpt-4o", "--prices", "cheap"), "--prices cheap"), (("vqa", "score", "--truth", "no.jsonl", "--pred", "no.jsonl"), "no.jsonl"),
    (("vqa", "answer", "--questions", "no.jsonl", "--frames", ".", "--out", "x.jsonl"), "no.jsonl")])
def test_mistakes_end_in_a_sentence(words, said, flows, tmp_path, monkeypatch):
    monkeypatch.delenv("MELLM_CONFIG", raising=False) # relative to the clone
    monkeypatch.chdir(tmp_path)
    extra = ("--root", flows, "--out", tmp_path) if words[0] == "real" and "--root" not in words else ()
    done = call(*words, *extra, env={"MELLM_RUNS": str(tmp_path / "runs")})
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr, done.output


def test_missing_flows_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv("MELLM_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    done = call("real", "--root", tmp_path)
    assert done.exit_code == 2 and "git clone https://github.com/wangzhifengharrison/HTNet" in done.stderr


def test_scores_of_a_small_file(tmp_path):
    rows = [dict(video_id=f"v{i}", video=f"v{i}.mp4", question="What is the coarse expression class?", answer=a, subject=f"s{i}") for i, a in enumerate(("positive", "negative", "surprise"))]
    truth, pred = tmp_path / "truth.jsonl", tmp_path / "pred.jsonl"
    truth.write_text("".join(json.dumps(r) + "\n" for r in rows))
    pred.write_text("".join(json.dumps(r) + "\n" for r in rows[:2]))
    done = call("vqa", "score", "--truth", truth, "--pred", pred)
    assert done.exit_code == 0 and "1 without an answer" in done.stdout, done.output
