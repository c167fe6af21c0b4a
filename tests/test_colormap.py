"The motion of a clip: crop, color map, legend, the way back into the frame, and the job that makes thousands of them."
import os
import subprocess
import sys
import types
import warnings

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from skimage import data

import mellm
from mellm import colormap
from mellm import motion, portrait
from mellm.colormap import clip_map, crop_pair, explain_map, flow_to_frame, make_maps, picture_to_frame
from mellm.faces import FaceNotFound, ImageError, crop_face, crop_transform, landmarks, transform_points
from mellm.study import Study, read_table, write_table
from mellm.styles import STYLES

@pytest.fixture(scope="module")
def face(): return crop_face(data.astronaut(), landmarks(data.astronaut()))[0]


@pytest.fixture(scope="module")
def lm(face): return landmarks(face)


@pytest.fixture(scope="module")
def drawn(): return portrait.draw(portrait.sample_identity(20), 160)


# ---- a clip
def test_clip_map_of_identical_frames_is_the_grey_face(face):
    done = clip_map(face, face.copy())
    assert (done.regions.strength == "none").all() and not done.flow.any()
    assert np.array_equal(done.color_map, np.repeat(cv2.cvtColor(done.onset, cv2.COLOR_RGB2GRAY)[..., None], 3, 2))
    assert done._repr_png_()[:4] == b"\x89PNG"


def test_clip_map_takes_grey_frames_and_given_landmarks(face, lm):
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    done = clip_map(grey, np.roll(grey, 1, 0), flow="dis", head_motion="none", style="white", size=128, lm=lm)
    assert done.color_map.shape == done.onset.shape == (128, 128, 3) and done.flow.shape == (128, 128, 2)


def test_clip_map_refuses_frames_that_do_not_belong_together(face):
    with pytest.raises(ImageError, match="224×224 and 100×224"): clip_map(face, face[:, :100])
    with pytest.raises(ImageError, match="the apex frame must be uint8"): clip_map(face, face / 255)
    with pytest.raises(ImageError, match="must be uint8"): clip_map("onset.png", face)
    with pytest.raises(FaceNotFound, match="frame 7"): clip_map(np.zeros_like(face), face, name="frame 7")


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_explained(style, drawn):
    flow = motion.expression_flow(drawn.landmarks, {12: 1.}, (160, 160))
    clip = clip_map(drawn.image, np.roll(drawn.image, 1, 0), flow="dis", style=style, size=96, lm=drawn.landmarks)
    labels = {t for ax in explain_map(clip).axes for t in [ax.get_xlabel(), *(c.get_xlabel() for c in ax.child_axes)]}
    assert any("px" in t for t in labels) and any("inter-ocular" in t for t in labels)
    still = clip_map(drawn.image, drawn.image.copy(), flow="dis", style=style, size=96, lm=drawn.landmarks)
    explain_map(still).canvas.draw()


# ---- there and back
def test_onset_and_apex_are_cut_by_the_same_transform(face, lm):
    rng = np.random.default_rng(0)
    apex = rng.integers(0, 256, face.shape, dtype=np.uint8) # an apex without any face in it
    pair = crop_pair(face, apex, 128, lm)
    assert np.array_equal(pair.transform, crop_transform(lm, 128)) and np.allclose(pair.landmarks, transform_points(lm, pair.transform))
    assert np.array_equal(pair.apex, crop_face(apex, lm, 128)[0]) and np.array_equal(pair.onset, crop_face(face, lm, 128)[0])
    same = crop_pair(face, face.copy(), 128, lm)
    assert np.array_equal(same.onset, same.apex)


@settings(deadline=None, max_examples=10)
@given(st.floats(-40, 40), st.floats(.6, 1.6), st.floats(-20, 20))
def test_the_inverse_leads_back_to_the_frame(degrees, scale, shift):
    lm = transform_points(portrait.sample_identity(20).shape * 45 + (80, 70), cv2.getRotationMatrix2D((80, 80), degrees, scale)) + (shift, -shift)
    frame = np.zeros((200, 220), np.uint8)
    clip = clip_map(frame, frame, "dis", "none", size=96, lm=lm)
    assert np.allclose(transform_points(transform_points(lm, clip.transform), clip.inverse), lm)
    turn = clip.inverse[:, :2]
    back = flow_to_frame(np.full((96, 96, 2), (3, -1), np.float32), clip.transform, frame.shape)
    moved = np.hypot(*back.transpose(2, 0, 1)) > 0
    assert back.shape == (200, 220, 2) and back.dtype == np.float32 and np.allclose(back[moved], turn @ (3, -1), atol=1e-4)
    x, y = np.round(lm[30]).astype(int)
    if 0 <= x < 220 and 0 <= y < 200: assert moved[y, x]


def test_a_crop_laid_back_is_the_frame(face, lm):
    frame = cv2.warpAffine(face, cv2.getRotationMatrix2D((112, 112), 20, .7), (224, 224))
    points = transform_points(lm, cv2.getRotationMatrix2D((112, 112), 20, .7))
    crop, M = crop_face(frame, points, 224)
    back = picture_to_frame(crop, M, frame)
    assert back.shape == frame.shape and np.abs(back.astype(int) - frame).mean() < 3 and back is not frame
    away = picture_to_frame(crop, crop_transform(points + 9000, 224), frame) # a crop that lies outside
    assert np.array_equal(away, frame)


def test_flow_in_the_frame_is_the_motion_of_the_frame():
    person = portrait.draw(portrait.sample_identity(20), 240, 50)
    tilt = cv2.getRotationMatrix2D((120, 110), -25, 1)
    cut = lambda image: cv2.warpAffine(np.round(image).astype(np.uint8), tilt, (240, 240))
    true = motion.animate(person, {1: 1.})
    clip = clip_map(cut(person.image), cut(true.image), "dis", lm=transform_points(person.landmarks, tilt))
    truth = cv2.warpAffine(true.flow, tilt, (240, 240)) @ tilt[:, :2].T
    moving = np.linalg.norm(truth, axis=-1) > .5
    back = flow_to_frame(clip.flow, clip.transform, (240, 240))
    assert moving.sum() > 100 and np.linalg.norm(back - truth, axis=-1)[moving].mean() < .35 * np.linalg.norm(truth, axis=-1)[moving].mean()


def test_clip_map_knows_its_fine_regions_and_style(drawn):
    clip = clip_map(drawn.image, np.roll(drawn.image, 1, 1), "dis", style="side", size=96, lm=drawn.landmarks)
    assert len(clip.regions) == 17 and len(clip.fine_regions) == 29 and clip.style == "side" and clip.color_map.shape == (96, 192, 3)
    assert clip._repr_png_()[:4] == b"\x89PNG"


# ---- the batch job
@pytest.fixture
def study(tmp_path, face, monkeypatch):
    "A study whose clips are: two good ones, a missing apex, a faceless onset, two sizes; keys with awkward characters."
    frames = tmp_path / "frames"; frames.mkdir()
    write = lambda name, image: cv2.imwrite(str(frames / name), image[..., ::-1])
    moved = np.roll(face, 1, 0)
    write("a.png", face), write("b.png", moved), write("grey.png", np.full_like(face, 99)), write("small.png", face[:200])
    pairs = {"s1/EP 01": ("a.png", "b.png"), "missing": ("a.png", "no.png"), "faceless": ("grey.png", "b.png"), "sizes": ("a.png", "small.png"), "s1_EP_01": ("a.png", "a.png")}
    rows = [dict(corpus="test", subject="01", clip=k, aus="1+2", emotion="surprise", emotion3="surprise", onset_path=str(frames / o), apex_path=str(frames / a), split="train")
            for k, (o, a) in pairs.items()]
    study = Study(name="batch", runs=str(tmp_path / "runs"), workers=1, flow="dis", size=96)

    def fake(study):
        from mellm.study import stage
        return stage(study, "data", lambda folder: write_table(folder / "clips.csv", pd.DataFrame(rows)))
    monkeypatch.setattr(mellm, "data", types.SimpleNamespace(build=fake), raising=False)
    return study


def test_batch_goes_on_past_bad_clips_and_reports_them(study):
    with pytest.warns(UserWarning, match="3 of 5 clips failed"): folder = colormap.build(study)
    report = read_table(folder / "report.csv").set_index("clip")
    assert report.ok.tolist() == [True, False, False, False, True]
    for clip, says in {"missing": "does not exist", "faceless": "No face", "sizes": "224×224 and 224×200"}.items(): assert says in report.reason[clip]
    clips, regions = read_table(folder / "clips.csv"), read_table(folder / "regions.csv")
    assert clips["clip"].tolist() == ["s1/EP 01", "s1_EP_01"] and clips.subject.tolist() == ["01", "01"] and len(regions) == 34
    assert clips.color_map.is_unique and all((study.folder / p).is_file() for p in (*clips.color_map, *clips.flow))
    assert len(read_table(folder / "fine_regions.csv")) == 58 and list(report.reset_index().columns) == ["clip", "ok", "seconds", "x", "y", "width", "height", "reason", "note"]
    with np.load(study.folder / clips.flow[0]) as z: assert np.allclose(z["inverse"], cv2.invertAffineTransform(z["transform"]))
    with np.load(study.folder / clips.flow[0]) as z: assert z["flow"].shape == (96, 96, 2) and z["flow"].dtype == np.float16 and z["landmarks"].shape == (68, 2)
    assert (regions[regions["clip"] == "s1_EP_01"].strength == "none").all() and report.width["s1/EP 01"] > 50
    assert not list(folder.rglob("*.part"))


def test_interrupted_batch_resumes(study, monkeypatch):
    made, real = [], colormap.face_motion

    def once(*args, **kwargs):
        if len(made) == 1: raise KeyboardInterrupt
        made.append(1)
        return real(*args, **kwargs)
    monkeypatch.setattr(colormap, "face_motion", once)
    with pytest.raises(KeyboardInterrupt): colormap.build(study)
    kept = {p: p.stat().st_mtime_ns for p in study.folder.rglob("maps/*.npz")}
    assert len(kept) == 1 and "colormap.partial" in str(next(iter(kept))) and not (study.folder / "colormap").exists()
    monkeypatch.setattr(colormap, "face_motion", real)
    with pytest.warns(UserWarning): folder = colormap.build(study)
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("maps/*.npz")}.items() >= {p.name: t for p, t in kept.items()}.items()
    assert colormap.build(study) == folder # and a finished stage returns at once


def test_two_processes_make_the_same_files_as_one(study, tmp_path):
    import dataclasses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = colormap.build(study)
        two = colormap.build(dataclasses.replace(study, name="two", workers=2))
    for table in ("clips.csv", "regions.csv"): assert (one / table).read_bytes() == (two / table).read_bytes()
    for picture in one.glob("maps/*.png"): assert picture.read_bytes() == (two / "maps" / picture.name).read_bytes()


def test_no_usable_clip_is_an_error(study):
    clips = pd.DataFrame([dict(clip="a", onset_path="nowhere.png", apex_path="nowhere.png")])
    folder = study.folder / "x"; folder.mkdir(parents=True)
    with pytest.raises(RuntimeError, match="No clip of 1 could be made.*nowhere.png does not exist"): colormap._fill(study, folder, clips)


@pytest.fixture
def table(tmp_path, face):
    "Two clips, one without motion, as a table with absolute paths."
    for name, image in (("a", face), ("b", np.roll(face, 1, 0))): cv2.imwrite(str(tmp_path / f"{name}.png"), image[..., ::-1])
    path = lambda name: str(tmp_path / f"{name}.png")
    return pd.DataFrame([dict(clip="one", onset_path=path("a"), apex_path=path("b")), dict(clip="two", onset_path=path("a"), apex_path=path("a"))])


FAST = dict(flow="dis", size=64, workers=1)


def test_make_maps_keeps_what_is_done_and_makes_anew_what_changed(table, tmp_path):
    out = tmp_path / "maps"
    first = make_maps(table, out, **FAST)
    files = lambda: {p.name: p.stat().st_mtime_ns for p in (out / "maps").glob("*.npz")}
    before = files()
    assert first.ok.all() and make_maps(table, out, **FAST).equals(first) and files() == before
    make_maps(table, out, **FAST, style="physical")
    assert all(files()[k] != v for k, v in before.items()) # another style
    before = files()
    make_maps(table.assign(apex_path=table.apex_path.iloc[0]), out, **FAST, style="physical")
    assert files()["one.npz"] == before["one.npz"] and files()["two.npz"] != before["two.npz"] # another frame
    (out / "maps" / "one.npz").write_bytes(b"PK damaged")
    assert make_maps(table, out, **FAST).ok.all()
    assert not [p for p in out.rglob("*") if p.name.startswith(".")] and {p.name for p in out.iterdir()} == {"maps", "report.csv", "regions.csv", "fine_regions.csv"}


def test_make_maps_removes_the_halves_of_a_killed_run(table, tmp_path):
    half = tmp_path / "maps" / "maps" / ".one.123.png"; half.parent.mkdir(parents=True); half.write_bytes(b"half")
    make_maps(table, tmp_path / "maps", **FAST)
    assert not half.exists()


@pytest.mark.parametrize("change,says", [(dict(style="v9"), "'v9' is unknown"), (dict(flow="lk"), "flow method 'lk' is unknown"), (dict(head_motion="neck"), "head-motion method 'neck'"), (dict(percentile=-1), "between 0 and 100")])
def test_make_maps_checks_its_settings_before_the_first_clip(table, tmp_path, change, says):
    with pytest.raises(ValueError, match=says): make_maps(table, tmp_path / "out", **FAST | change)
    assert not (tmp_path / "out").exists()


def test_make_maps_checks_its_table(table, tmp_path):
    with pytest.raises(ValueError, match="lacks the column apex_path"): make_maps(table.drop(columns="apex_path"), tmp_path / "out")
    with pytest.raises(ValueError, match="'one' stands more than once"): make_maps(pd.concat([table, table]), tmp_path / "out")
    assert len(make_maps(table.head(0), tmp_path / "out", **FAST)) == 0 # no clips, no files but an empty report
    bad = make_maps(table.assign(apex_path="nowhere.png"), tmp_path / "bad", **FAST)
    assert not bad.ok.any() and bad.reason.str.contains("does not exist").all() and not (tmp_path / "bad" / "regions.csv").exists()


def test_a_device_gives_what_the_processor_gives(table, tmp_path, monkeypatch):
    "The way through `run_on_device`, with a network of a few additions in the place of ours; an error stays with its clip."
    seen = []

    def separate(onsets, apexes, device="cpu"):
        seen.append((onsets.shape, device))
        shift = (apexes.astype(np.float32) - onsets)[..., None] * np.float32([.01, .02])
        return shift, np.ones_like(shift)
    monkeypatch.setitem(sys.modules, "mellm.meflow", types.SimpleNamespace(separate=separate, available=lambda: True))
    monkeypatch.setattr(mellm, "meflow", sys.modules["mellm.meflow"], raising=False)
    table = pd.concat([table, table.tail(1).assign(clip="gone", apex_path="nowhere.png")])
    settings = dict(flow="meflow", head_motion="learned", size=64, workers=1)
    cpu, cuda = make_maps(table, tmp_path / "cpu", **settings), make_maps(table, tmp_path / "cuda", device="cuda:0", **settings)
    assert cpu.ok.tolist() == cuda.ok.tolist() == [True, True, False]
    assert seen[-1] == ((2, 64, 64), "cuda:0") and seen[0] == ((64, 64), "cpu")
    for picture in (tmp_path / "cpu" / "maps").glob("*.png"): assert picture.read_bytes() == (tmp_path / "cuda" / "maps" / picture.name).read_bytes()


def test_importing_loads_nothing_heavy():
    code = "import sys, mellm.colormap, mellm.flow, mellm.faces; print([m for m in ('torch', 'transformers', 'sklearn', 'skimage', 'matplotlib', 'dlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout.strip() == "[]"
