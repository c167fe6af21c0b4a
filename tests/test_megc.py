"The flows of MEGC 2019: a made-up folder in the same layout with every oddity, and the real ones where they are."
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from mellm import megc
from mellm.megc import CorpusError, aspect, clip_name, color_flow, find_megc, mean_flow, read_flow, read_flows, read_megc, window_motion, write_example

COLUMNS = ["corpus", "subject", "clip", "onset", "apex", "offset", "apex_source", "fps", "aus", "emotion", "emotion3", "emotion5", "emotion7", "frames", "source_row", "onset_path", "apex_path", "flow_path"]


@pytest.fixture
def root(tmp_path):
    return write_example(tmp_path / "flows")


def real():
    "The real clips, or a skip that says how to get them."
    try: return read_megc()
    except CorpusError as missing: pytest.skip(str(missing))


def test_the_real_flows_are_complete():
    clips = real()
    assert len(clips) == 442 and clips.groupby(["corpus", "subject"]).ngroups == 68 and (clips.flow_path != "").all()
    assert clips.emotion3.value_counts().to_dict() == {"negative": 250, "positive": 109, "surprise": 83}
    assert {c: tuple((clips[clips.corpus == c].emotion3 == e).sum() for e in ("negative", "positive", "surprise")) for c in ("casme2", "samm", "smic")} == megc.COUNTS
    assert clips.groupby("corpus").subject.nunique().to_dict() == {"casme2": 24, "samm": 28, "smic": 16}
    assert [r["problem"] for r in clips.attrs["report"]] == ["93 clips of SMIC are spelt otherwise in the sheet (`s3`) than in the file (`s03`)"]


def test_the_real_flows_show_what_their_classes_promise():
    clips = real()
    moved = window_motion(read_flows(clips)[0]).groupby(clips.emotion3).mean()
    assert moved["brows up"].idxmax() == "surprise" and moved["brows up"].idxmin() == "negative" and moved["mouth corners up"].idxmax() == "positive"


def test_rows_have_the_columns_of_all_corpora(root):
    clips = read_megc(root)
    assert list(clips.columns) == COLUMNS and len(clips) == 27 and set(clips.corpus) == {"casme2", "samm", "smic"}
    assert set(clips.subject[clips.corpus == "samm"]) == {"006", "007", "008"} and not clips.duplicated(["corpus", "clip"]).any()
    assert (clips.apex_source == "missing").all() and clips[["onset", "apex", "offset"]].isna().all(axis=None) and (clips[["aus", "emotion", "frames", "onset_path", "apex_path"]] == "").all(axis=None)
    assert list(clips.source_row) == list(range(2, 29))


@pytest.mark.parametrize("image, name", [("sub01_EP02_01f.jpg", "sub01_EP02_01f"), ("s03_s3_ne_05.jpg", "s03_s03_ne_05"), ("s11_s11_ne_05.jpg", "s11_s11_ne_05"), ("006_006_1_2.jpg", "006_006_1_2"),
                                         (" s03_s03_ne_05 .png", "s03_s03_ne_05"), ("s03_s4_ne_05.jpg", "s03_s4_ne_05")])
def test_names(image, name):
    assert clip_name(image) == name


def test_files_without_the_blank_are_found_too(root):
    for path in (root / megc.FLOWS).iterdir(): path.rename(path.with_name(path.name.replace(" .png", ".png")))
    assert (read_megc(root).flow_path != "").all()


def test_the_clone_of_htnet_keeps_them_a_folder_apart(root, tmp_path):
    clone = tmp_path / "HTNet"
    (clone / "datasets").mkdir(parents=True)
    shutil.move(root / megc.FLOWS, clone / "datasets" / megc.FLOWS)
    shutil.move(root / megc.SHEET, clone / megc.SHEET)
    for named in (clone, clone / "datasets", clone / "datasets" / megc.FLOWS): assert len(read_megc(named)) == 27


def test_the_environment_names_the_folder(root, monkeypatch):
    monkeypatch.setenv("MELLM_MEGC", str(root))
    assert len(read_megc()) == 27


def test_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("MELLM_MEGC", raising=False)
    monkeypatch.chdir(tmp_path)
    for root in (None, tmp_path):
        with pytest.raises(CorpusError, match="git clone https://github.com/wangzhifengharrison/HTNet"): find_megc(root)
    with pytest.raises(CorpusError, match="does not exist.*git clone"): read_megc(tmp_path / "none")


def test_what_is_missing_is_reported_and_kept(root):
    gone = sorted((root / megc.FLOWS).iterdir())[0]
    gone.unlink()
    clips = read_megc(root)
    report = pd.DataFrame(clips.attrs["report"])
    assert list(report.columns) == ["file", "row", "clip", "problem", "done"] and len(clips) == 27 and (clips.flow_path == "").sum() == 1
    assert report.problem.str.contains("is not in STSNet").sum() == 1 and report.problem.str.contains("casme2: 3/3/3 flows.*published are 88/32/25|samm: 3/3/2|samm: 2/3/3").any()
    with pytest.raises(CorpusError, match="There is no flow"): read_flows(clips)


def test_doubtful_rows(root):
    sheet = pd.read_csv(root / megc.SHEET, dtype=str, keep_default_na=False)
    sheet.loc[1, "label"] = "7"
    pd.concat([sheet, sheet.iloc[[0]]]).to_csv(root / megc.SHEET, index=False)
    clips = read_megc(root)
    report = pd.DataFrame(clips.attrs["report"])
    assert len(clips) == 27 and clips.emotion3[1] == "" and {"the label is none of 0, 1, 2", "the clip is there already"} <= set(report.problem)


@pytest.mark.parametrize("text, said", [("", "is no table in CSV format"), ("a,b\n1,2\n", "lacks the column dataset, sub, label, imagename; found: a, b"), ("dataset,sub,label,imagename\n", "has no rows"), ("dataset\n\xe9".encode("latin-1"), "no table")])
def test_a_damaged_sheet(root, text, said):
    (root / megc.SHEET).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CorpusError, match=said): read_megc(root)


@pytest.mark.parametrize("content", [b"", b"not a picture", cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()])
def test_a_damaged_flow(tmp_path, content):
    (tmp_path / "a .png").write_bytes(content)
    with pytest.raises(CorpusError, match="three channels"): read_flow(tmp_path / "a .png")
    with pytest.raises(CorpusError, match="There is no flow ''"): read_flow("")


def test_channels_and_background(tmp_path):
    picture = np.full((28, 28, 3), (10, 60, 200), np.uint8)  # strain, v, u
    picture[:5, :5] = (255, 9, 255)
    cv2.imwrite(str(tmp_path / "a .png"), picture)
    flow, strain = read_flow(tmp_path / "a .png")
    assert flow.dtype == np.float32 and flow.shape == (28, 28, 2) and np.allclose(flow[0, 0], (55 / 255, -51 / 255)) and (flow[9, 9] == 0).all()
    assert strain[0, 0] == 1 and np.isclose(strain[9, 9], 10 / 255)


@pytest.mark.parametrize("ratio", [.4, 1, 2.5])
def test_the_ratio_of_the_scales_comes_back(ratio):
    rng, (y, x) = np.random.default_rng(1), np.mgrid[:28, :28]
    true = sum(rng.normal(0, 1, 2) * np.exp(-((x - rng.uniform(4, 24)) / 4)**2 - ((y - rng.uniform(4, 24)) / 4)**2)[..., None] for _ in range(5))
    (uy, ux), (vy, vx) = np.gradient(true[..., 0]), np.gradient(true[..., 1])
    found, alike = aspect(true / (ratio, 1), np.sqrt(ux**2 + vy**2 + .5 * (uy + vx)**2))
    assert abs(found / ratio - 1) < .05 and alike > .99
    assert aspect(np.zeros((28, 28, 2)), np.zeros((28, 28))) == (1, 0)


def test_every_clip_counts_the_same(root):
    flows, strain = read_flows(read_megc(root))
    assert flows.shape == (27, 28, 28, 2) and strain.shape == (27, 28, 28) and np.allclose(np.quantile(np.linalg.norm(flows, axis=3), .95, axis=(1, 2)), 1, atol=1e-3)


def test_mean_over_people_not_over_clips():
    flows = np.stack([np.full((2, 2, 2), v, np.float32) for v in (0, 0, 0, 4)])
    assert (mean_flow(flows, ["a", "a", "a", "b"]) == 2).all()


def test_windows_on_both_sides():
    flow = np.zeros((1, 28, 28, 2), np.float32)
    flow[0, 16:21, 4:9] = (-1, -2)    # the image-left mouth corner: outwards and up
    flow[0, 16:21, 19:24] = (1, -2)
    moved = window_motion(flow).iloc[0]
    assert moved["mouth corners up"] == 2 and moved["mouth corners outwards"] == 1 and moved["brows up"] == 0


def test_colors_of_directions():
    colors = {name: tuple(color_flow(np.full((1, 1, 2), d, np.float32))[0, 0]) for name, d in dict(still=(0, 0), right=(9, 0), left=(-9, 0)).items()}
    assert colors == {"still": (255, 255, 255), "right": (255, 0, 0), "left": (0, 255, 255)}
