"""Readers: miniature corpora in their documented layouts, and input that is wrong in the ways users' files are wrong."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mellm.corpora import CLIP_COLUMNS, CorpusError, file_name, frame_number, left_out, read_corpus, read_sheet
from mellm.study import Study

HEADER = ["Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units", "Estimated Emotion", "Objective Classes"]
ROWS = [[1, "EP02_01f", None, 46, 59, 86, None, 12, "happiness", 1],
        [1, "EP19_05f", None, 11, 46, 76, None, "4+L10", "Disgust", 4],
        [4, "EP12_01f", None, 5, "/", 44, None, "R12 or R14", "others", 7],
        ["17", "EP05_02", None, 3, 21, 60, None, "R12 or R14", "others", 7],
        [26, "EP03_10", None, 7, 20, 40, None, "1+2", "surprise", 2]]


def picture(path, shade=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), shade, np.uint8)).save(path)


@pytest.fixture
def casme2(tmp_path):
    root = tmp_path / "CASME2"
    for row in ROWS:
        for n in (row[3], row[4]):
            if n != "/" and row[0] != 26: picture(root / f"sub{int(row[0]):02d}" / row[1] / (f"img{n}.jpg" if row[0] == 1 else f"reg_img{n}.jpg"))
    pd.DataFrame(ROWS, columns=HEADER).to_excel(root / "CASME2-coding-20140508.xlsx", index=False)
    return root


def test_casme2_reads_its_layout(casme2):
    clips = read_corpus("casme2", casme2)
    assert list(clips.columns) == list(CLIP_COLUMNS)
    assert list(clips["clip"]) == ["sub01_EP02_01f", "sub01_EP19_05f", "sub17_EP05_02"]
    assert list(clips.subject) == ["sub01", "sub01", "sub17"] and list(clips.aus) == ["12", "4+10", ""]
    assert list(clips.emotion) == ["happiness", "disgust", "others"] and list(clips.emotion3) == ["positive", "negative", ""]
    assert clips.apex.tolist() == [59, 46, 21] and clips.source_row.tolist() == [2, 3, 5] and set(clips.fps) == {200}
    assert clips.apex_path[0].endswith("img59.jpg") and clips.onset_path[2].endswith("reg_img3.jpg")


def test_casme2_reports_every_row_it_cannot_use(casme2):
    report = left_out(read_corpus("casme2", casme2)).set_index("row")
    assert "apex frame '/' is not annotated" in report.problem[4] and report.done[4] == "left out"
    assert "R12 or R14" in report.problem[5] and report.done[5].startswith("kept")
    assert "frame 7 is not in" in report.problem[6] and report.done[6] == "left out"


def test_casme2_finds_frames_one_folder_down_and_the_newest_codes(casme2, tmp_path):
    pd.DataFrame(ROWS[:1], columns=HEADER).to_excel(casme2 / "CASME2-coding-20190701.xlsx", index=False)
    assert len(read_corpus("casme2", casme2)) == 1
    (tmp_path / "all").mkdir()
    casme2.rename(tmp_path / "all" / "Cropped")
    assert len(read_corpus("casme2", tmp_path / "all", tmp_path / "all" / "Cropped" / "CASME2-coding-20140508.xlsx")) == 3


def test_casme2_without_folder_codes_or_columns(casme2, tmp_path):
    with pytest.raises(CorpusError, match="MELLM_ROOT"): read_corpus("casme2")
    with pytest.raises(CorpusError, match="nowhere does not exist"): read_corpus("casme2", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no folder sub01"): read_corpus("casme2", tmp_path / "empty")
    codes = casme2 / "CASME2-coding-20140508.xlsx"
    pd.read_excel(codes).rename(columns={"ApexFrame": "Peak"}).to_excel(codes, index=False)
    with pytest.raises(CorpusError, match=r"lacks the column apex .*Found.*Subject, Filename, OnsetFrame, Peak"): read_corpus("casme2", casme2)
    codes.unlink()
    with pytest.raises(CorpusError, match="CASME2-coding"): read_corpus("casme2", casme2)


def test_casme2_in_which_nothing_is_usable(casme2):
    pd.DataFrame(ROWS[2:3], columns=HEADER).to_excel(casme2 / "CASME2-coding-20140508.xlsx", index=False)
    with pytest.raises(CorpusError, match=r"no usable clip.*row 2.*not annotated"): read_corpus("casme2", casme2)


@pytest.fixture
def table(tmp_path):
    for name in "abcd": picture(tmp_path / "frames" / f"{name}.png")

    def write(text, name="list.csv", encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name
    return write


def test_table_keeps_zeros_and_reads_labels(table):
    clips = read_corpus("table", annotation=table("Subject;Onset_Path;apex path;AUs;emotion;onset;fps\n006;frames/a.png;frames/b.png;6+12;Happy;0;200\n\n007;frames/c.png;frames/d.png;4;angry;;\n"))
    assert list(clips.subject) == ["006", "007"] and list(clips.emotion3) == ["positive", "negative"] and clips.source_row.tolist() == [2, 4]
    assert clips.onset[0] == 0 and pd.isna(clips.onset[1]) and clips.fps[0] == 200 and list(clips["clip"]) == ["006_2", "007_4"]
    assert all(map(pd.io.common.file_exists, clips.apex_path))


def test_table_from_excel_with_bom_and_other_root(table, tmp_path):
    table("subject,onset_path,apex_path\nrenée,a.png,b.png\n", encoding="utf-8-sig")
    assert read_corpus("table", tmp_path / "frames", tmp_path / "list.csv").subject[0] == "renée"
    pd.DataFrame({"subject": [1], "onset_path": ["a.png"], "apex_path": ["b.png"]}).to_excel(tmp_path / "list.xlsx", index=False)
    assert read_corpus("table", tmp_path / "frames", tmp_path / "list.xlsx").subject[0] == "1"


def test_table_reports_missing_frames_and_subjects_by_row(table):
    clips = read_corpus("table", annotation=table("subject,onset_path,apex_path\n1,frames/a.png,frames/b.png\n1,frames/a.png,no.png\n,frames/a.png,frames/b.png\n2,,frames/b.png\n"))
    report = left_out(clips)
    assert len(clips) == 1 and list(report.row) == [3, 4, 5]
    assert "no.png" in report.problem[0] and "subject is empty" in report.problem[1] and "onset_path is empty" in report.problem[2]


@pytest.mark.parametrize("text, name, encoding, said", [
    ("subject,onset_path\n1,a\n", "x.csv", "utf-8", "lacks the column apex_path.*Found.*subject, onset_path"),
    ("subject,onset_path,apex_path\nRenée,a,b\n", "x.csv", "latin-1", "not UTF-8.*CSV UTF-8"),
    ("subject,onset_path,apex_path\n1,a,b\n", "x.csv", "utf-16", "not UTF-8"),
    ("subject,onset_path,apex_path\n1,a,b,c\n", "x.csv", "utf-8", "row 2: more cells"),
    ("", "x.csv", "utf-8", "it is empty"),
    ("subject,onset_path,apex_path\n", "x.csv", "utf-8", "It has no rows"),
    ("subject,onset_path,apex_path\n1,a,b\n", "x.csv", "utf-8", "row 2: onset_path: there is no file"),
    ("not a workbook", "x.xlsx", "utf-8", "cannot be opened as an XLSX"),
    ("{}", "x.json", "utf-8", "neither CSV nor XLSX")])
def test_bad_tables_say_what_to_do(table, text, name, encoding, said):
    with pytest.raises(CorpusError, match=f"(?s)x[.].*{said}"): read_corpus("table", annotation=table(text, name, encoding))


def test_no_annotation_and_unknown_corpus(tmp_path):
    with pytest.raises(CorpusError, match="MELLM_ANNOTATION"): read_corpus("table")
    with pytest.raises(CorpusError, match="does not exist"): read_corpus("table", annotation=tmp_path / "no.csv")
    with pytest.raises(CorpusError, match="is a folder"): read_corpus("table", annotation=tmp_path)
    with pytest.raises(CorpusError, match="synthetic, table, casme2"): read_corpus("casme9")
    with pytest.raises(CorpusError, match="needs a folder"): read_corpus("synthetic")


def test_synthetic_comes_through_the_same_door(tmp_path):
    clips = read_corpus("synthetic", tmp_path, study=Study(subjects=2, clips_per_subject=3, workers=1))
    assert list(clips.columns) == list(CLIP_COLUMNS) and len(clips) == 9 and "astronaut" in set(clips.subject) and left_out(clips).empty
    assert all(map(pd.io.common.file_exists, [*clips.onset_path, *clips.apex_path]))


def test_cells():
    assert [frame_number(c) for c in (" 7 ", "7.0", "7.5", "0", "/", "", "x", "1e3", None, float("nan"))] == [7, 7, None, None, None, None, None, None, None, None]
    assert frame_number("0", 0) == 0
    assert file_name("../../etc/passwd") == "etc_passwd" and file_name("///") == "_" and file_name("EP02_01f") == "EP02_01f"


def test_read_sheet_keeps_text_as_text(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n006,"NA"\n,\n4,"two\nlines"\n', encoding="utf-8")
    sheet = read_sheet(tmp_path / "x.csv")
    assert sheet.a.tolist() == ["006", "4"] and sheet.b.tolist() == ["NA", "two\nlines"] and sheet.index.tolist() == [2, 4]
