"""Clips written in the layouts of the real corpora: the cells, the files, and what a second run leaves alone."""
import cv2
import numpy as np
import openpyxl
import pandas as pd
import pytest

from mellm.layouts import LAYOUTS, SAMM_PROSE, write_layout

COLUMNS = ["subject", "filename", "onset", "apex", "offset", "aus", "emotion"]


def clips(*rows): return pd.DataFrame(list(rows), columns=COLUMNS).astype({"apex": "Int64"})


def pictures(row):
    for n in range(row.onset, row.offset + 1): yield n, np.full((8, 8, 3), (250, 120, 0), np.uint8)


def cells(path, sheet=0): return [list(row) for row in openpyxl.load_workbook(path).worksheets[sheet].iter_rows(values_only=True)]


def files(root): return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix in (".jpg", ".bmp"))


def test_casme2_has_nameless_columns_numbers_and_slashes(tmp_path):
    path = write_layout("casme2", clips(("sub01", "EP02_01f", 46, 47, 48, "12", "happiness"), ("sub17", "EP12_01f", 5, None, 6, "4+L10", "others")), tmp_path, pictures)
    assert path.name == "CASME2-coding-20190701.xlsx"
    assert cells(path) == [["Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units", "Estimated Emotion", "Objective Classes"],
                           [1, "EP02_01f", None, 46, 47, 48, None, 12, "happiness", None], [17, "EP12_01f", None, 5, "/", 6, None, "4+L10", "others", None]]
    assert files(tmp_path) == [f"sub01/EP02_01f/img{n}.jpg" for n in (46, 47, 48)] + ["sub17/EP12_01f/img5.jpg", "sub17/EP12_01f/img6.jpg"]
    assert np.abs(cv2.imread(str(tmp_path / "sub01/EP02_01f/img46.jpg"))[4, 4].astype(int) - (0, 120, 250)).max() < 8, "RGB in, BGR at OpenCV's door"


def test_samm_has_thirteen_rows_of_prose_and_subjects_with_zeros(tmp_path):
    path = write_layout("samm", clips(("006", "006_1_2", 5562, 5563, 5564, "A1B+A2C", "Anger")), tmp_path, pictures)
    rows = cells(path)
    assert len(SAMM_PROSE) == 13 and [r[0] for r in rows[:13]] == [line or None for line in SAMM_PROSE] and rows[13][:5] == ["Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame"]
    assert rows[14][0] == "006" and rows[14][3:6] == [5562, 5563, 5564] and files(tmp_path)[0] == "006/006_1_2/006_05562.jpg"


def test_casme_sq_has_no_header_and_two_naming_sheets(tmp_path):
    path = write_layout("casme_sq", clips(("s15", "disgust1_2", 7, None, 8, "4+7", "disgust"), ("s40", "anger1_1", 1, 2, 3, "14", "helpless")), tmp_path, pictures)
    assert openpyxl.load_workbook(path).sheetnames == ["CASFEcode_final", "naming rule1", "naming rule2"]
    assert cells(path)[0] == [1, "disgust1_2", 7, 0, 8, "4+7", "negative", "micro-expression", "disgust"]
    assert cells(path, 1) == [["15", "s15", 1], ["40", "s40", 2]] and cells(path, 2) == [["0101", "anger1"], ["0201", "disgust1"]]
    assert files(tmp_path)[:2] == ["rawpic/s15/15_0201disgust1/img7.jpg", "rawpic/s15/15_0201disgust1/img8.jpg"]


@pytest.mark.parametrize("name, options, row, first, header", [
    ("casme", {}, ("sub01", "EP01_5", 3, 4, 5, "4", "tense"), "sub01/EP01_5/EP01_5-003.jpg", ["Subject", "Filename", None, "OnsetF", "ApexF1", "ApexF2", "OffsetF", None, "AU", "Emotion"]),
    ("casme3", {}, ("spNO.1", "a", 3, 4, 5, "4", "others"), "spNO.1/a/color/3.jpg", ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"]),
    ("casme3", {"part": "C"}, ("1", "2", 3, None, 5, "4，7", "others"), "01/2/color/3.jpg", ["sub", "count", "onset", "offset", "au", "emotion"]),
    ("smic", {}, ("s3", "s3_ne_05", 3, None, 5, "", "negative"), "HS/s3/micro/negative/s3_ne_05/image000003.bmp", ["Subject", "Filename", "OnsetF", "OffsetF", "Emotion"]),
    ("smic", {"variant": "NIR"}, ("s3", "s3_ne_05", 3, None, 5, "", "negative"), "NIR/s3/micro/negative/s3_ne_05/image000003.bmp", ["Subject", "Filename", "OnsetF", "OffsetF", "Emotion"]),
    ("mmew", {}, ("1", "S01-003-01", 3, 4, 5, "4", "disgust"), "Micro_Expression/disgust/S01-003-01/3.jpg", ["Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units", "Estimated Emotion", "remarks"]),
    ("4dme", {}, ("S1", "S1_01", 3, 4, 5, "AU4(k)", "negative+surprise"), "S1/S1_01/3.jpg", ["sub_ID", "fold_name", "Onset", "Apex", "Offset", "AUs", "Emotion", "Positive", "Negative", "Surprise", "Repression", "Others"]),
    ("dfme", {}, ("12", "0007", 3, 4, 5, "4", "disgust"), "12/0007/00003.jpg", ["subject", "filename", "onset", "apex", "offset", "AUs", "emotion", "fps"])])
def test_first_frame_and_header(tmp_path, name, options, row, first, header):
    path = write_layout(name, clips(row), tmp_path, pictures, **options)
    assert cells(path)[0] == header and files(tmp_path)[0] == first and len(files(tmp_path)) == 3


def test_several_emotions_are_flags(tmp_path):
    assert cells(write_layout("4dme", clips(("S1", "S1_01", 3, 4, 5, "4", "negative+surprise")), tmp_path))[1][7:] == [0, 1, 1, 0, 0]


def test_a_second_run_leaves_everything_alone(tmp_path):
    table = clips(("sub01", "EP02_01f", 46, 47, 48, "12", "happiness"))
    path = write_layout("casme2", table, tmp_path, pictures)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    def never(row): raise AssertionError("all frames are there")
    assert write_layout("casme2", table, tmp_path, never) == path and before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "sub01/EP02_01f/img47.jpg").unlink()
    write_layout("casme2", table, tmp_path, pictures)
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {tmp_path / "sub01/EP02_01f/img47.jpg"}, "only what was missing"
    write_layout("casme2", table.assign(emotion="others"), tmp_path)
    assert cells(path)[1][8] == "others" and not [p for p in tmp_path.rglob(".*")], "a changed sheet is written, and no temporary file stays"


def test_without_pictures_only_the_sheet(tmp_path):
    write_layout("samm", clips(("006", "006_1_2", 1, 2, 3, "4", "Anger")), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["SAMM_Micro_FACS_Codes_v2.xlsx"]


def test_a_text_is_never_a_formula(tmp_path):
    path = write_layout("casme3", clips(("spNO.1", "=1+1", 1, 2, 3, "4", "others")), tmp_path)
    assert openpyxl.load_workbook(path).active["B2"].data_type == "s" and cells(path)[1][1] == "=1+1"


def test_extra_columns_of_any_kind_do_no_harm(tmp_path):
    table = clips(("sub01", "EP02_01f", 46, 47, 48, "12", "happiness")).assign(gains=[{12: [1., 1.]}], objective="I", note=[[1, 2]])
    assert cells(write_layout("casme2", table, tmp_path))[1][9] == "I"


def test_processes_write_the_same(tmp_path):
    table = clips(("sub01", "a", 1, 2, 3, "12", "happiness"), ("sub02", "b", 1, 2, 3, "4", "others"))
    write_layout("casme2", table, tmp_path / "one", pictures)
    write_layout("casme2", table, tmp_path / "two", pictures, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two") and all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files(tmp_path / "one"))


@pytest.mark.parametrize("row, said", [
    (("../x", "a", 1, 2, 3, "4", "e"), "subject '../x' cannot be the name of a folder"), (("s1", "..", 1, 2, 3, "4", "e"), "file name '..' cannot"),
    (("s1", "a/b", 1, 2, 3, "4", "e"), "cannot"), (("s1", "", 1, 2, 3, "4", "e"), "cannot"), (("nobody", "a", 1, 2, 3, "4", "e"), "needs a number in the name of each subject")])
def test_names_that_lead_out_are_refused(tmp_path, row, said):
    with pytest.raises(ValueError, match=f"Row 0.*{said}"): write_layout("casme2", clips(row), tmp_path)


def test_an_emotion_that_is_a_folder_cannot_lead_out(tmp_path):
    with pytest.raises(ValueError, match="emotion '../x' cannot be the name of a folder"): write_layout("smic", clips(("s1", "a", 1, None, 3, "", "../x")), tmp_path)


def test_other_bad_input(tmp_path):
    with pytest.raises(ValueError, match="no layout 'casme9'. Known are casme, casme2"): write_layout("casme9", clips(), tmp_path)
    with pytest.raises(ValueError, match="lacks apex"): write_layout("casme2", clips().drop(columns="apex"), tmp_path)
    with pytest.raises(ValueError, match="uint8 of shape"): write_layout("casme2", clips(("s1", "a", 1, 2, 3, "4", "e")), tmp_path, lambda row: [(1, np.zeros((4, 4)))])
    assert set(LAYOUTS) == {"casme", "casme2", "casme_sq", "casme3", "casme3 C", "samm", "smic", "mmew", "4dme", "dfme"}
