"Dataset files: converted without loss, checked line by line, read back by the library that trainers use."
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from mellm import facs, formats as F, instructions, measures
from mellm.labels import emotion3
from mellm.measures import FINE_REGIONS, SPOKEN
from mellm.study import Study, write_json, write_jsonl, write_table


def regions(keys):
    moving = {"left_mouth_corner": (1.5, -1.5), "right_mouth_corner": (-1.4, -1.6), "left_cheek": (0., -.9)}
    rows = []
    for key in keys:
        dx, dy = moving.get(key, (0., 0.))
        m = float(np.hypot(dx, dy))
        rows.append(dict(region=key, dx=dx, dy=dy, magnitude=m, maximum=m, percent=m, direction=measures.direction_word(dx, dy), angle=measures.direction_angle(dx, dy), color=measures.color_word(dx, dy), concentration=1.))
    return pd.DataFrame(rows)


def make(view="picture", language="en"):
    out = []
    for name, split, aus, emotion in (("s01_00", "train", "6+12", "happiness"), ("s01_01", "train", "", "positive"), ("s02_00", "test", "4", "anger")):
        clip = SimpleNamespace(clip=name, corpus="synthetic", subject=name[:3], split=split, aus=aus, emotion=emotion, emotion3=emotion3(emotion), color_map=f"colormap/maps/{name}.png")
        out += instructions.records(clip, regions(SPOKEN), regions(FINE_REGIONS), 0, language, view)
    return out


RECORDS = make()
WRITE = {"chat": F.write_chat, "llava": F.write_llava, "swift": F.write_swift, "mevqa": F.write_mevqa}


def without_none(value):
    if isinstance(value, dict): return {k: without_none(v) for k, v in value.items() if v is not None}
    return [without_none(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("view,language", [("picture", "en"), ("text", "zh")])
@pytest.mark.parametrize("name", F.FORMATS)
def test_written_files_are_sound_and_come_back(name, view, language, tmp_path):
    records = make(view, language)
    files = WRITE[name](records, tmp_path)
    assert [f.stem for f in files] == ["train", "test"]
    for file in files:
        assert F.validate(file, name).empty
        expected = [row for r in records if r["split"] == file.stem for row in F.FORMATS[name].convert(r)]
        assert without_none(F.read_back(file).to_list()) == expected


def test_nothing_is_lost_on_the_way():
    for r in RECORDS:
        said = [F._text(m, "") for m in r["messages"]]
        llava, swift = F.to_llava(r), F.to_swift(r)
        assert [llava["system"], *(t["value"].replace("<image>\n", "") for t in llava["conversations"])] == said
        assert [m["content"].replace("<image>", "") for m in swift["messages"]] == said
        assert llava["image"] == swift["images"][0] == r["images"][0]
        assert len(F.to_mevqa(r)) == sum(t == "mevqa" for t in r["tasks"])


def test_two_pictures_have_no_place_in_llava():
    with pytest.raises(ValueError, match="2 pictures"): F.to_llava({**RECORDS[0], "images": ["a.png", "b.png"]})


def test_pictures_are_looked_for_and_opened(tmp_path):
    (file, _) = F.write_chat(RECORDS, tmp_path)
    missing = F.validate(file, "chat", tmp_path)
    assert len(missing) == 6 and missing.problem.str.startswith("there is no picture colormap/maps/s01_0").all()
    (tmp_path / "colormap/maps").mkdir(parents=True)
    for name in ("s01_00", "s01_01"): Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / f"colormap/maps/{name}.png")
    assert F.validate(file, "chat", tmp_path).empty
    assert F.read_back(file, tmp_path)[0]["images"][0].size == (8, 6)


def test_a_subject_in_two_parts_is_an_error(tmp_path):
    mixed = [{**r, "subject": "s01"} for r in RECORDS]
    with pytest.raises(ValueError, match="Subject s01.*another"): F.write_chat(mixed, tmp_path)


def test_the_same_name_in_two_corpora_is_two_people(tmp_path):
    F.write_chat([{**r, "subject": "01", "corpus": r["split"]} for r in RECORDS], tmp_path)


@pytest.mark.parametrize("name", F.FORMATS)
def test_a_broken_line_is_named(name, tmp_path):
    file = WRITE[name](RECORDS, tmp_path)[0]
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:-9]
    file.write_text("\n".join(lines))
    table = F.validate(file, name)
    assert table.line.iloc[0] in (3, 4) and "not valid JSON" in table.problem.iloc[0]
    with pytest.raises(ValueError, match=rf"train.*line [34]: not valid JSON"): F.read_back(file)


def change(name, edit):
    "The problems of one row after a change."
    row = json.loads(json.dumps(F.FORMATS[name].convert(RECORDS[0] if name != "mevqa" else RECORDS[2])[0]))
    edit(row)
    return F._row_problems(F.FORMATS[name], row, None)


@pytest.mark.parametrize("name,edit,problem", [
    ("chat", lambda r: r["images"].append("x.png"), "2 pictures listed, but 1 place"),
    ("chat", lambda r: r["messages"].pop(), "speakers should be"),
    ("chat", lambda r: r["messages"][2]["content"][0].update(text=" "), "message 3 is empty"),
    ("chat", lambda r: r["images"].__setitem__(0, "../x.png"), "leads out of the folder"),
    ("chat", lambda r: r["tasks"].append("aus"), "2 tasks are named for 1 answers"),
    ("chat", lambda r: r["messages"][1]["content"][0].update(type="video"), "neither text nor image"),
    ("chat", lambda r: r.pop("messages"), "it lacks messages"),
    ("chat", lambda r: r.update(messages=3), "not built as this format wants"),
    ("chat", lambda r: r.update(messages=[]), "there is no question"),
    ("llava", lambda r: r.pop("image"), "0 pictures listed, but 1 place"),
    ("llava", lambda r: r["conversations"][1].update({"from": "human"}), "speakers should be"),
    ("llava", lambda r: r["conversations"][1].pop("value"), "KeyError"),
    ("swift", lambda r: r["messages"][1].update(content="no mark"), "1 picture listed, but 0 places"),
    ("swift", lambda r: r["images"].__setitem__(0, ""), "path of a picture is empty"),
    ("mevqa", lambda r: r.update(answer="happy"), "coarse class 'happy'"),
    ("mevqa", lambda r: r.update(question="What are the action units?", answer="AU12"), "no FACS name"),
    ("mevqa", lambda r: r.update(question="Is the action unit dimpler shown on the face?", answer="Yes."), "yes or no"),
    ("mevqa", lambda r: r.update(question="What is the fine-grained expression class?", answer="boredom"), "no emotion"),
    ("mevqa", lambda r: r.update(subject=""), "subject is empty")])
def test_faults_are_found(name, edit, problem):
    assert any(problem in p for p in change(name, edit)), change(name, edit)


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda kids: st.lists(kids, max_size=3) | st.dictionaries(st.sampled_from(
    ["id", "images", "image", "messages", "role", "content", "type", "text", "conversations", "from", "value", "question", "answer", "video", "dataset", "subject", "tasks"]), kids, max_size=8), max_leaves=20)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(anything, max_size=4), st.sampled_from(list(F.FORMATS)))
def test_any_json_gets_a_verdict(tmp_path, rows, name):
    file = tmp_path / f"x{F.FORMATS[name].suffix}"
    file.write_text(json.dumps(rows) if file.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    table = F.validate(file, name, tmp_path)
    assert len(table) >= (1 if not rows else sum(not isinstance(r, dict) for r in rows))


def test_a_file_that_is_not_there_and_a_format_that_is_not_there(tmp_path):
    assert "there is no file" in F.validate(tmp_path / "no.jsonl", "chat").problem[0]
    with pytest.raises(ValueError, match="no.jsonl, line 0: there is no file"): F.read_back(tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert F.validate(tmp_path / "empty.jsonl", "chat").problem[0] == "the file is empty"
    with pytest.raises(ValueError, match="is empty"): F.read_back(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="'coco' is unknown.*chat"): F.validate(tmp_path / "empty.jsonl", "coco")


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A study whose instructions are there already."
    study = Study(name="small", runs=str(tmp_path / "runs"))
    made = study.folder / "instructions"
    made.mkdir(parents=True)
    for part in ("train", "test"): write_jsonl(made / f"{part}.jsonl", [r for r in RECORDS if r["split"] == part])
    write_table(made / "disagreement.csv", pd.DataFrame([{"corpus": "synthetic", "clips": 3}]))
    (study.folder / "colormap/maps").mkdir(parents=True)
    for name in ("s01_00", "s01_01", "s02_00"): Image.new("RGB", (8, 8)).save(study.folder / f"colormap/maps/{name}.png")
    monkeypatch.setattr(instructions, "build", lambda study: made)
    return study


def test_export(study, tmp_path):
    out = F.export_dataset(study, tmp_path / "export")
    assert sorted(p.name for p in out.iterdir()) == sorted(["README.md", "images", *F.FORMATS]) and len(list((out / "images").iterdir())) == 3
    for name in F.FORMATS:
        for file in (out / name).iterdir(): assert F.validate(file, name, out).empty
    assert "config_name: swift" in (out / "README.md").read_text()
    import datasets
    loaded = datasets.load_dataset(str(out), "chat", cache_dir=str(tmp_path / "cache"))
    assert {part: len(rows) for part, rows in loaded.items()} == {"train": 6, "test": 3}
    assert F.export_dataset(study, out, ("chat",)) == out # an earlier export may be written over


def test_export_without_copies(study, tmp_path):
    out = F.export_dataset(study, tmp_path / "export", ("swift",), copy_images=False)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "swift"] and F.validate(out / "swift/train.jsonl", "swift", study.folder).empty


def test_export_refuses(study, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no earlier export"): F.export_dataset(study, tmp_path / "mine")
    with pytest.raises(ValueError, match="'coco' is unknown"): F.export_dataset(study, tmp_path / "export", ("coco",))
    (study.folder / "colormap/maps/s01_01.png").unlink()
    with pytest.raises(ValueError, match="Clip s01_01: there is no picture"): F.export_dataset(study, tmp_path / "export")


def test_pictures_of_one_name_stay_apart(study, tmp_path):
    (study.folder / "instructions/mirror").mkdir()
    Image.new("RGB", (8, 8), (0, 9, 0)).save(study.folder / "instructions/mirror/s01_00.png")
    records = [RECORDS[0], {**RECORDS[0], "id": "m", "images": ["instructions/mirror/s01_00.png"]}]
    moved = F._copy_pictures(study, records, tmp_path / "out")
    assert moved[0]["images"] != moved[1]["images"] and all((tmp_path / "out" / r["images"][0]).is_file() for r in moved)
