"explain, from Python and from the command line, on good and on bad pictures."
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mellm import capture, faces, portrait

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def pair():
    return capture.make_pair(portrait.draw(portrait.sample_identity(5)), {12: 1.}, np.random.default_rng(0))


@pytest.fixture
def pictures(tmp_path, pair):
    cv2.imwrite(str(tmp_path / "onset.png"), pair.onset[..., ::-1])
    cv2.imwrite(str(tmp_path / "apex.png"), pair.apex[..., ::-1])
    return tmp_path


def run(*args):
    return subprocess.run([sys.executable, "-c", "from mellm.cli import app; app()", "explain", *map(str, args)], capture_output=True, text=True)


def test_explain_arrays_and_save(pair, tmp_path):
    from mellm import explain
    e = explain(pair.onset, pair.apex)
    assert e.moved and e.text and e.color_map.shape == (224, 224, 3) and e.color_map.dtype == np.uint8
    assert isinstance(e.aus, tuple) and e.emotion in (None, "negative", "positive", "surprise")
    assert {"left_mouth_corner", "right_mouth_corner"} <= set(e.motion.region)
    assert e.text[:20] in e._repr_html_()
    e.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "explanation.json").read_text()) == e.to_dict()
    assert (cv2.imread(str(tmp_path / "out" / "color_map.png"))[..., ::-1] == e.color_map).all()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["color_map.png", "explanation.json"]


def test_command_line(pictures):
    done = run(pictures / "onset.png", pictures / "apex.png", "--json", "--out", pictures / "out")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["moved"] and said["text"] and (pictures / "out" / "color_map.png").exists()


@pytest.mark.parametrize("kind", ["grey", "16-bit", "rgba"])
def test_other_pixel_formats(pair, kind):
    from mellm import explain
    def as_kind(x, path):
        grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)
        cv2.imwrite(str(path), {"grey": grey, "16-bit": grey.astype(np.uint16) * 257, "rgba": np.dstack([x[..., ::-1], np.full(x.shape[:2], 255, np.uint8)])}[kind])
        return path
    import tempfile
    with tempfile.TemporaryDirectory() as tmp:
        e = explain(as_kind(pair.onset, Path(tmp) / "a.png"), as_kind(pair.apex, Path(tmp) / "b.png"))
    assert e.moved and e.motion.region.iloc[0].endswith("mouth_corner")


def test_identical_pictures_need_no_model(pair, monkeypatch):
    from mellm import explainer
    monkeypatch.setattr(explainer, "_loaded", lambda *a: pytest.fail("the model was asked"))
    e = explainer.explain(pair.onset, pair.onset)
    assert not e.moved and e.aus == () and e.emotion is None and "identical" in e.text


def test_no_face_in_the_apex(pair):
    from mellm import explain
    with pytest.raises(faces.FaceNotFound, match="apex"): explain(pair.onset, np.full_like(pair.onset, 128))


def damage(folder, kind):
    "A picture that cannot be used, and what the sentence about it must hold."
    path = folder / "bad.png"
    good = (folder / "apex.png").read_bytes()
    if kind == "missing": return folder / "nowhere.png", "nowhere.png"
    if kind == "folder": path.mkdir()
    elif kind == "empty": path.write_bytes(b"")
    elif kind == "text": path.write_text("not a picture")
    elif kind == "cut": path.write_bytes(good[:len(good) // 2])
    elif kind == "corrupt": path.write_bytes(good[:200] + b"\0" * 400 + good[600:])
    elif kind == "size": cv2.imwrite(str(path), cv2.imread(str(folder / "apex.png"))[:200])
    elif kind == "no face": cv2.imwrite(str(path), np.full((256, 256, 3), 120, np.uint8))
    return path, "bad.png"


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "cut", "corrupt", "size", "no face"])
@pytest.mark.parametrize("place", ["onset", "apex"])
def test_bad_pictures_get_a_sentence(pictures, kind, place):
    path, name = damage(pictures, kind)
    pair = (path, pictures / "apex.png") if place == "onset" else (pictures / "onset.png", path)
    done = run(*pair, "--out", pictures / "out")
    assert done.returncode == 2, done.stderr
    assert name in done.stderr.replace("\n", "") and "Traceback" not in done.stderr and not done.stdout
    assert not (pictures / "out").exists()


def test_several_faces_are_noted(pair, tmp_path):
    small = lambda x: cv2.copyMakeBorder(cv2.resize(x, (160, 160)), 48, 48, 0, 0, cv2.BORDER_REPLICATE)
    for name, x in (("onset", pair.onset), ("apex", pair.apex)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.hstack([x, small(x)])[..., ::-1])
    done = run(tmp_path / "onset.png", tmp_path / "apex.png")
    assert done.returncode == 0, done.stderr
    assert "largest" in done.stderr and len(done.stderr.strip().splitlines()) <= 2
