"Batch jobs: order, progress, what happens when a process is killed, and a cluster."
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest

from mellm import batch
from mellm.batch import WorkerKilled, keep_settings, run, run_on_device
from mellm.study import read_table, write_table


def double(x): return dict(x=2*x, pid=os.getpid())


def slow_first(i):
    time.sleep(.3 if i == 0 else 0)
    return i


def threads(i):
    import torch
    return cv2.getNumThreads(), torch.get_num_threads()


def fails(i):
    if i == 3: raise KeyError("three")
    return i


def dies(i):
    if i == 3: os.kill(os.getpid(), signal.SIGKILL)
    return i


# ---- in order, whatever happens

@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_those_of_a_loop_in_the_order_of_the_jobs(workers):
    results = run([(i,) for i in range(20)], double, workers)
    assert [r["x"] for r in results] == [2*i for i in range(20)]
    assert (os.getpid() in {r["pid"] for r in results}) == (workers == 1)


def test_the_slowest_job_does_not_change_the_order():
    assert run([(i,) for i in range(6)], slow_first, 2) == list(range(6))


def test_nothing_and_one_job_need_no_process():
    assert run([], double) == [] and run([(1,)], double)[0]["pid"] == os.getpid()


def test_threads_are_a_backend_too():
    assert {r["pid"] for r in run([(i,) for i in range(6)], double, 2, backend="threading")} == {os.getpid()}


def test_a_worker_keeps_to_one_thread_and_this_process_keeps_its_own():
    before = cv2.getNumThreads()
    assert set(run([(i,) for i in range(6)], threads, 2)[2:]) == {(1, 1)}
    assert cv2.getNumThreads() == before
    assert run([(0,), (1,)], threads, 1)[0][0] == before


def test_errors_of_the_work_pass_through_and_the_next_job_runs():
    for workers in (1, 2):
        with pytest.raises(KeyError, match="three"): run([(i,) for i in range(8)], fails, workers)
    assert run([(i,) for i in range(4)], slow_first, 2) == list(range(4))


def test_a_killed_worker_is_told_in_a_sentence_and_the_next_job_runs():
    with pytest.raises(WorkerKilled, match="run again with fewer workers; what is finished is kept"): run([(i,) for i in range(8)], dies, 2)
    assert run([(i,) for i in range(4)], slow_first, 2) == list(range(4))


def test_patience_ends():
    with pytest.raises(WorkerKilled): run([(60,), (60,)], time.sleep, 2, patience=.5)


def test_progress_goes_to_stderr_for_more_than_a_handful(capsys):
    run([(i,) for i in range(8)], double, 1)
    assert capsys.readouterr() == ("", "")
    run([(i,) for i in range(9)], double, 1, "maps")
    said = capsys.readouterr()
    assert said.out == "" and "9/9" in said.err and "maps/s" in said.err


# ---- a device in the middle

def opened(i): return dict(i=i, skipped=True) if i % 3 == 0 else (i, np.full((4, 4), i))
def closed(got, result): return dict(i=got[0], result=result, pid=os.getpid())


@pytest.mark.parametrize("workers, chunk", [(1, 4), (2, 4), (2, 100)])
def test_a_device_sees_batches_and_rows_come_back_in_order(workers, chunk):
    seen = []

    def compute(gots):
        seen.append((len(gots), os.getpid()))
        return [int(g[1].sum()) for g in gots]
    rows = run_on_device([(i,) for i in range(10)], opened, compute, closed, workers, chunk)
    assert [r["i"] for r in rows] == list(range(10)) and all(r.get("result", 16*r["i"]) == 16*r["i"] and ("skipped" in r) == (r["i"] % 3 == 0) for r in rows)
    assert {pid for _, pid in seen} == {os.getpid()} and max(n for n, _ in seen) <= chunk and sum(n for n, _ in seen) == 6


def test_a_device_that_answers_too_little_is_an_error():
    with pytest.raises(ValueError): run_on_device([(1,), (2,)], opened, lambda gots: [0], closed, 1)
    assert run_on_device([(0,), (3,)], opened, lambda gots: pytest.fail("nothing to compute"), closed, 1) == [opened(0), opened(3)]


# ---- what a folder is made with

def test_a_folder_keeps_its_settings(tmp_path):
    keep_settings(tmp_path/"out", dict(flow="dis", size=np.int64(96), where=tmp_path))
    keep_settings(tmp_path/"out", dict(flow="dis", size=96, where=str(tmp_path)))
    with pytest.raises(ValueError, match="flow = 'dis', not 'tvl1'. Choose another folder"): keep_settings(tmp_path/"out", dict(flow="tvl1", size=96, where=str(tmp_path)))
    with pytest.raises(ValueError, match="style = None, not 'v1'"): keep_settings(tmp_path/"out", dict(flow="dis", size=96, where=str(tmp_path), style="v1"))
    assert json.loads((tmp_path/"out"/"settings.json").read_text())["flow"] == "dis"


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_damaged_settings_are_told(tmp_path, text):
    (tmp_path/"settings.json").write_text(text)
    with pytest.raises(ValueError, match="settings.json is damaged"): keep_settings(tmp_path, dict(flow="dis"))


# ---- the command, killed

CLIPS = 9


@pytest.fixture
def table(tmp_path):
    "A table of clips of one face."
    from skimage import data
    from mellm.faces import crop_face, landmarks
    face = crop_face(data.astronaut(), landmarks(data.astronaut()))[0]
    for i in range(CLIPS + 1): cv2.imwrite(str(tmp_path/f"{i}.png"), np.roll(face, i, 0)[..., ::-1])
    write_table(tmp_path/"clips.csv", pd.DataFrame([dict(clip=f"c{i:02d}", onset_path="0.png", apex_path=f"{i + 1}.png") for i in range(CLIPS)]))
    return tmp_path/"clips.csv"


def command(table, **kwargs):
    words = ["colormap", str(table), "--out", str(table.parent/"out"), "--method", "tvl1", "--size", "112", "--jobs", "2"]
    return subprocess.Popen([sys.executable, "-c", f"from mellm.cli import app; app({words!r})"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs)


def wait_for(true, seconds=300):
    end = time.time() + seconds
    while not true():
        assert time.time() < end, "waited in vain"
        time.sleep(.01)


def test_kill_9_leaves_no_half_file_and_only_the_clips_in_flight_are_made_again(table):
    maps, process = table.parent/"out"/"maps", command(table)
    wait_for(lambda: len(list(maps.glob("c*.npz"))) >= 3)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 20) # no process is left behind
    kept = {p: p.stat().st_mtime_ns for p in maps.glob("c*.npz")}
    assert 3 <= len(kept) < CLIPS
    for file in kept:
        with np.load(file) as z: assert all(np.isfinite(z[k]).all() for k in ("flow", "landmarks"))
    for file in maps.glob("c*.png"): assert cv2.imread(str(file)).shape == (112, 112, 3)
    assert not (table.parent/"out"/"report.csv").exists()
    again = command(table)
    said = again.communicate(timeout=400)
    assert again.returncode == 0, said
    report = read_table(table.parent/"out"/"report.csv")
    assert report["ok"].all() and report["clip"].tolist() == read_table(table)["clip"].tolist()
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "a finished clip was made again"
    assert sorted(p.name for p in maps.iterdir()) == sorted(f"c{i:02d}.{kind}" for i in range(CLIPS) for kind in ("npz", "png"))


def test_a_killed_worker_ends_the_command_with_a_sentence(table):
    maps, process = table.parent/"out"/"maps", command(table)
    wait_for(lambda: len(list(maps.glob("c*.npz"))) >= 1)
    loky = [p for p in psutil.Process(process.pid).children() if any("popen_loky" in word for word in p.cmdline())]
    loky[0].kill()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1 and "Traceback" not in err and err.splitlines()[-1].startswith("mellm: A worker process was killed")


# ---- a cluster

def test_a_cluster_is_one_line_away():
    distributed = pytest.importorskip("distributed")
    import joblib
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster):
        with joblib.parallel_config(backend="dask"):
            results = run([(i,) for i in range(24)], double)
            assert [r["x"] for r in results] == [2*i for i in range(24)] and os.getpid() not in {r["pid"] for r in results}
            with pytest.raises(KeyError, match="three"): run([(i,) for i in range(8)], fails)
            assert batch.run_on_device([(i,) for i in range(4)], opened, lambda gots: [0 for _ in gots], closed)[1]["i"] == 1


# ---- the way of a GPU, on the processor ("cpu:0" is a device like "cuda:0")

def test_maps_made_in_batches_on_a_device_are_those_made_one_by_one(table):
    from mellm import meflow
    if not meflow.available(): pytest.skip("the weights of meflow are not there")
    from mellm.colormap import make_maps
    clips = read_table(table).head(4)
    clips = clips.assign(**{c: [str(table.parent/p) for p in clips[c]] for c in ("onset_path", "apex_path")})
    clips.loc[1, "apex_path"] = str(table.parent/"gone.png")
    reports = {d: make_maps(clips, table.parent/d.replace(":", ""), flow="meflow", head_motion="learned", workers=1, device=d) for d in ("cpu", "cpu:0")}
    assert reports["cpu:0"]["ok"].tolist() == reports["cpu"]["ok"].tolist() == [True, False, True, True]
    for clip in ("c00", "c02", "c03"):
        one, many = (np.load(table.parent/d/"maps"/f"{clip}.npz")["flow"].astype(float) for d in ("cpu", "cpu0"))
        assert np.abs(one - many).max() < .01 # pixels; batches add up in another order
