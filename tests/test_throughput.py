"The measuring of the color-map job: its clips, its meter, and what it says of a leak."
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from mellm import throughput


def test_clips_repeat_under_other_names(tmp_path, monkeypatch):
    from mellm import synth
    made = pd.DataFrame([dict(frames=f"s/{i}_{{n:02d}}.png", onset=0, apex=9) for i in range(6)])
    monkeypatch.setattr(synth, "make_corpus", lambda folder, **words: made)
    table = throughput.bench_clips(tmp_path, 8)
    assert table["clip"].is_unique and len(table) == 8
    assert table["onset_path"][0] == table["onset_path"][6] == str(tmp_path/"s"/"0_00.png") and table["apex_path"][7] == str(tmp_path/"s"/"1_09.png")


def test_meter_sees_time_memory_and_processes():
    code = "import time; keep = bytearray(80_000_000); keep[::4096] = b'x'*len(keep[::4096]); time.sleep(1.5)"
    with throughput.Meter() as alone: time.sleep(.5)
    with throughput.Meter() as both: subprocess.run([sys.executable, "-c", code], check=True)
    assert .5 <= alone.seconds < 5 and alone.cpu < .5 and both.peak > alone.peak + 70


@pytest.mark.parametrize("slope", [0, 3])
def test_growth_tells_a_leak(slope):
    rows = pd.concat([pd.DataFrame(dict(process=p, nth=np.arange(500), mb=200 + slope*np.arange(500)/1000 + (np.arange(500) < 50)*-80.)) for p in (1, 2)])
    table = throughput.growth(rows, 100)
    assert table["MB for 1,000 clips"].tolist() == [slope, slope] and table["clips"].tolist() == [500, 500] and len(throughput.growth(rows, 600)) == 0


def test_a_way_that_fails_is_told_with_its_reason(tmp_path):
    table = pd.DataFrame([dict(clip="a", onset_path=str(tmp_path/"no.png"), apex_path=str(tmp_path/"no.png"))])
    with pytest.raises(RuntimeError, match="The way 'dis' failed: .*no.png does not exist"): throughput.measure("dis", table, 1)


def test_the_comparison_is_with_the_first_way(monkeypatch):
    costs = {"naive": dict(seconds=20., cpu=30., peak_mb=300.), "dis": dict(seconds=2., cpu=3., peak_mb=600.)}
    monkeypatch.setattr(throughput, "measure", lambda way, table, workers, device: dict(way=way, clips=len(table)) | costs[way])
    table = throughput.compare(pd.DataFrame({"clip": range(10)}), ("naive", "dis"))
    assert table["clips/s"].tolist() == [.5, 5] and table["ratio"].tolist() == [1, 10] and table["CPU ratio"].tolist() == [1, 10] and table["CPU ms a clip"].tolist() == [3000, 300]


def test_the_command_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "bench_clips", lambda folder, n: pd.DataFrame({"clip": range(n)}))
    monkeypatch.setattr(throughput, "measure", lambda way, table, workers, device: dict(way=way, clips=len(table), seconds=1., cpu=1., peak_mb=1.))
    throughput.main(["--clips", "4", "--ways", "naive", "dis", "--csv", str(tmp_path/"t.csv")])
    assert "naive" in capsys.readouterr().out and pd.read_csv(tmp_path/"t.csv")["clips/s"].tolist() == [4, 4]
    monkeypatch.setattr(throughput, "memory", lambda table, out, workers: pd.DataFrame(dict(process=1, nth=range(len(table)), mb=5.)))
    throughput.main(["--memory", "40", "--csv", str(tmp_path/"m.csv")])
    assert pd.read_csv(tmp_path/"m.csv").columns[0] == "clips"


def test_memory_of_a_job_that_fails_is_not_measured(tmp_path):
    table = pd.DataFrame([dict(clip=c, onset_path="no.png", apex_path="no.png") for c in "ab"])
    with pytest.raises(RuntimeError, match="A clip failed, so nothing is measured: no.png does not exist"): throughput.memory(table, tmp_path, workers=1)


def test_naive_ways_load_their_models_anew(tmp_path, monkeypatch):
    from mellm import colormap, faces
    loads, clip = [], pd.DataFrame([dict(clip=c, onset_path="a", apex_path="b") for c in "xy"])
    class Done: color_map = np.zeros((4, 4, 3), np.uint8)
    monkeypatch.setattr(faces, "read_image", lambda path: path)
    monkeypatch.setattr(colormap, "clip_map", lambda *pair, flow: (loads.append(id(faces._models())), Done)[1])
    throughput.naive_maps(clip, tmp_path)
    assert faces._models.cache_info().misses == 1 and len(loads) == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["x.png", "y.png"]
