"""Readers: miniature corpora written by hand in their documented layouts, and input that is wrong in the ways users' files are wrong."""
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mellm import codes, corpora, rows
from mellm.aucode import parse_aus
from mellm.corpora import CLIP_COLUMNS, CorpusError, annotation_files, corpus_table, read_corpus, report
from mellm.labels import emotion3, emotion5, emotion7
from mellm.layouts import write_layout
from mellm.study import Study


def book(path, sheet="Sheet1", *lines, **more):
    "A workbook, cell by cell."
    path.parent.mkdir(parents=True, exist_ok=True)
    made = openpyxl.Workbook()
    made.active.title = sheet
    for row in lines: made.active.append(row)
    for title, rows_ in more.items():
        page = made.create_sheet(title.replace("_", " "))
        for row in rows_: page.append(row)
    made.save(path)
    return path


def frames(folder, names):
    "Small pictures: a disk that grows towards the middle of the clip."
    folder.mkdir(parents=True, exist_ok=True)
    names = list(names)
    for i, name in enumerate(names):
        image = np.full((48, 48), 128, np.uint8)
        cv2.circle(image, (24, 24), 4 + min(i, len(names) - i), 255, -1)
        cv2.imwrite(str(folder / name), image)


def problems(clips): return {int(n["row"]) if n["row"] is not None else None: n for n in clips.attrs["report"]}


def relative(path, root): return Path(path).relative_to(root).as_posix() if path else ""


# One miniature a corpus, typed as in the original files

CASME2 = ["Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None, "Action Units", "Estimated Emotion", "Objective Classes"]


@pytest.fixture
def casme2(tmp_path):
    root = tmp_path / "CASME2"
    frames(root / "sub01" / "EP02_01f", [f"img{n}.jpg" for n in range(46, 60)])
    frames(root / "sub04" / "EP12_01f", [f"reg_img{n}.jpg" for n in range(5, 30)])
    book(root / "CASME2-coding-20140508.xlsx", "Sheet1", CASME2, [1, "EP02_01f", None, 46, 52, 59, None, 12, "happiness", 1], [4, "EP12_01f", None, 5, "/", 29, None, "4+L10", "Disgust", 4],
         [4, "EP19_05f", None, 11, 46, 76, None, "R12 or R14", "others", 7], ["sub26", "EP03_10", None, 7, 20, 40, None, "1+2", "Surprise", 2])
    return root


def test_casme2(casme2):
    clips = read_corpus("casme2", casme2, workers=1)
    assert list(clips.columns) == list(CLIP_COLUMNS) and set(clips.corpus) == {"casme2"} and set(clips.fps) == {200}
    assert list(clips.subject) == ["sub01", "sub04", "sub04", "sub26"] and list(clips["clip"]) == ["sub01_EP02_01f", "sub04_EP12_01f", "sub04_EP19_05f", "sub26_EP03_10"]
    assert list(clips.apex_source) == ["annotated", "estimated", "annotated", "annotated"] and clips.onset.tolist() == [46, 5, 11, 7] and 5 < clips.apex[1] <= 29
    assert list(clips.aus) == ["12", "4+L10", "R12 or R14", "1+2"] and list(clips.emotion) == ["happiness", "disgust", "others", "surprise"]
    assert list(clips.emotion3) == ["positive", "negative", "", "surprise"] and list(clips.emotion5) == ["happiness", "disgust", "others", "surprise"] and clips.source_row.tolist() == [2, 3, 4, 5]
    assert relative(clips.frames[0], casme2) == "sub01/EP02_01f/img{n}.jpg" and relative(clips.apex_path[0], casme2) == "sub01/EP02_01f/img52.jpg"
    assert relative(clips.onset_path[1], casme2) == "sub04/EP12_01f/reg_img5.jpg" and clips.frames[2] == clips.onset_path[2] == ""


def test_casme2_reports_every_doubt(casme2):
    lines = report(read_corpus("casme2", casme2, workers=1))
    assert list(lines.columns) == ["file", "row", "clip", "problem", "done"] and set(lines.file) == {"CASME2-coding-20140508.xlsx"}
    at = lambda row: " | ".join(lines[lines.row == row].problem + ": " + lines[lines.row == row].done)
    assert "the apex is not annotated ('/'): estimated: frame" in at(3) and at(2) == ""
    assert "no action unit is certain in 'R12 or R14'" in at(4) and "there is no folder sub04/EP19_05f: kept, without frames" in at(4)
    assert "there is no folder sub26/EP03_10" in at(5)


def test_casme2_reads_the_later_codes_and_says_so(casme2):
    shutil.copy(casme2 / "CASME2-coding-20140508.xlsx", casme2.parent / "CASME2-coding-20190701.xlsx")
    (casme2 / "~$CASME2-coding-20300101.xlsx").touch()
    assert annotation_files("casme2", casme2)[0].name == "CASME2-coding-20190701.xlsx"
    lines = report(read_corpus("casme2", casme2, workers=1))
    assert "later version" in lines.problem[0] and "annotation=…CASME2-coding-20140508.xlsx" in lines.done[0]


def test_casme2_frames_one_folder_down_or_twice(casme2, tmp_path):
    (tmp_path / "all").mkdir()
    casme2.rename(tmp_path / "all" / "Cropped")
    assert read_corpus("casme2", tmp_path / "all", workers=1).frames[0] != ""
    frames(tmp_path / "all" / "RAW" / "sub01" / "EP02_01f", ["img46.jpg"])
    with pytest.raises(CorpusError, match="several folders of frames: Cropped, RAW. Choose one"): read_corpus("casme2", tmp_path / "all")


def test_casme_has_two_apex_columns(tmp_path):
    header = ["Subject", "Filename", None, "OnsetF", "ApexF1", "ApexF2", "OffsetF", None, "AU", "Emotion"]
    book(tmp_path / "CASME.xlsx", "Sheet1", header, [1, "EP01_5", None, 3, 8, 10, 20, None, 4, "tense"], [19, "EP11_1", None, 3, "/", 9, 20, None, "15+17", "repression"])
    frames(tmp_path / "Cropped" / "sub19" / "EP11_1", [f"EP11_1-{n:03d}.jpg" for n in range(1, 21)])
    clips = read_corpus("casme", tmp_path)
    assert list(clips.subject) == ["sub01", "sub19"] and clips.apex.tolist() == [8, 9] and set(clips.apex_source) == {"annotated"} and set(clips.fps) == {60}
    assert relative(clips.apex_path[1], tmp_path) == "Cropped/sub19/EP11_1/EP11_1-009.jpg" and "the second is taken: 9" in problems(clips)[3]["done"]


@pytest.fixture
def casme_sq(tmp_path):
    frames(tmp_path / "rawpic" / "s15" / "15_0101disgustingteeth", [f"img{n}.jpg" for n in range(1, 40)])
    frames(tmp_path / "rawpic" / "s40" / "40_0503unnamed", [f"img{n}.jpg" for n in range(1, 12)])
    book(tmp_path / "CAS(ME)^2code_final.xlsx", "CASFEcode_final", [1, "disgust1_1", 3, 6, 12, "4+7", "negative", "micro-expression", "disgust"], [1, "disgust1_2", 20, 0, 30, "14", "negative", "micro-expression", "helpless"],
         [1, "disgust1_3", 50, 60, 90, "6+12", "positive", "macro-expression", "happiness"], [22, "happy3_10", 1, 5, 0, 12, "positive", "micro-expression", "happiness"],
         naming_rule1=[["15", "s15", 1], ["40", "s40", 22]], naming_rule2=[[101, "disgust1"], ["0503", "happy3"]])
    return tmp_path


def test_casme_sq(casme_sq):
    clips = read_corpus("casme_sq", casme_sq, workers=1)
    assert list(clips.subject) == ["s15", "s15", "s40"] and list(clips["clip"]) == ["s15_disgust1_1_3", "s15_disgust1_2_20", "s40_happy3_10_1"]
    assert list(clips.emotion3) == ["negative", "negative", "positive"] and list(clips.apex_source) == ["annotated", "estimated", "annotated"] and clips.source_row.tolist() == [1, 2, 4]
    assert relative(clips.frames[1], casme_sq) == "rawpic/s15/15_0101disgustingteeth/img{n}.jpg" and pd.isna(clips.offset[2])
    lines = report(clips)
    assert "1 macro-expressions" in lines.problem[0] and "left out" in lines.done[0] and "the offset '0' is no frame number" in problems(clips)[4]["problem"]


def test_casme_sq_without_naming_sheets_and_in_the_wrong_file(casme_sq, tmp_path):
    book(tmp_path / "x" / "code_final.xlsx", "codes", [1, "disgust1_1", 3, 6, 12, "4+7", "negative", "Micro_Expression", "disgust"], [2, "?", 3, 6, 12, "", "", "?", ""])
    clips = read_corpus("casme_sq", annotation=tmp_path / "x" / "code_final.xlsx")
    assert list(clips.subject) == ["1"] and report(clips).problem.str.contains("naming rule1|naming rule2|neither micro- nor macro").sum() == 3
    wrong = book(tmp_path / "y.xlsx", "s", CASME2, [1, "EP02_01f", None, 46, 52, 59, None, 12, "happiness", 1])
    with pytest.raises(CorpusError, match="column H holds no 'micro-expression'. It should be the sheet CASFEcode_final"): read_corpus("casme_sq", annotation=wrong)


def test_casme3_part_a_has_several_clips_in_a_video_and_folders_in_other_capitals(tmp_path):
    header = ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion"]
    book(tmp_path / "annotation" / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", "label", header, ["spNO.1", "a", 3, 6, 12, "4+7", "III", "disgust"], ["spNO.1", "a", 20, 24, 30, "12", "I", "happy"], ["spNO.17", "m", 9, 7, 11, 1, "VII", "Others"])
    frames(tmp_path / "data" / "spNo.1" / "a" / "color", [f"{n}.jpg" for n in range(1, 40)])
    clips = read_corpus("casme3", tmp_path)
    assert list(clips["clip"]) == ["spNO.1_a_3", "spNO.1_a_20", "spNO.17_m_9"] and list(clips.emotion) == ["disgust", "happiness", "others"] and set(clips.fps) == {30}
    assert relative(clips.apex_path[1], tmp_path) == "data/spNo.1/a/color/24.jpg" and clips.apex[2] == 7
    lines = report(clips)
    assert lines[lines.row == 4].problem.tolist() == ["the apex 7 is outside of onset 9 to offset 11", "there is no folder spNO.17/m/color or frame/spNO.17_m_9"]


def test_casme3_part_c_has_no_apex_and_chinese_commas(tmp_path):
    path = book(tmp_path / "CAS(ME)3_part_C_ME.xlsx", "Sheet1", ["sub", "count", "onset", "offset", "au", "PHY"], [1, 1, 373, 390, "4，7", "x"], [2, 1, 10, 25, 12, "y"])
    frames(tmp_path / "part_C" / "02" / "1" / "color", [f"{n}.jpg" for n in range(10, 26)])
    clips = read_corpus("casme3", tmp_path, workers=1)
    assert list(clips.subject) == ["01", "02"] and list(clips["clip"]) == ["01_1_373", "02_1_10"] and list(clips.apex_source) == ["missing", "estimated"] and parse_aus(clips.aus[0]).numbers == (4, 7)
    assert report(clips).problem.str.contains("2 clips have no apex").sum() == 1 and "1 estimated, 1 missing" in " ".join(report(clips).done)
    book(tmp_path / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", "label", ["Subject", "Filename", "Onset", "Apex", "Offset", "AU", "emotion"], ["spNO.1", "a", 3, 6, 12, "4+7", "disgust"])
    with pytest.raises(CorpusError, match="several annotation files: CAS.ME.3_part_C_ME.xlsx, cas.me.3_part_A.*annotation=…"): read_corpus("casme3", tmp_path)
    assert len(read_corpus("casme3", annotation=path)) == 2


@pytest.fixture
def samm(tmp_path):
    prose = [[f"line {i} of prose, which may speak of a Subject"] for i in range(1, 14)]
    header = ["Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame", "Duration", "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes"]
    book(tmp_path / "SAMM_Micro_FACS_Codes_v2.xlsx", "MICRO ONLY", *prose, header, ["006", "006_1_2", 1, 98, 101, 105, 8, "Micro - 1/2", "A1B+A2C", "Surprise", 2, None],
         [6, "006_1_3", 1, 120, "/", 130, 11, "Micro", "ref(7B)+43C", "Other", 7, "note"], ["032", "032_3_1", 3, 5, 6, 9, 5, "Micro", "R14+17+soft focus", "Contempt", 7, None])
    frames(tmp_path / "SAMM" / "006" / "006_1_2", [f"006_{n:05d}.jpg" for n in range(95, 108)])
    frames(tmp_path / "SAMM" / "006" / "006_1_3", [f"006_{n:05d}.jpg" for n in range(120, 131)])
    return tmp_path


def test_samm(samm):
    clips = read_corpus("samm", samm, workers=1)
    assert list(clips.subject) == ["006", "006", "032"] and list(clips["clip"]) == ["006_006_1_2", "006_006_1_3", "032_032_3_1"] and clips.source_row.tolist() == [15, 16, 17]
    assert relative(clips.frames[0], samm) == "SAMM/006/006_1_2/006_{n:05d}.jpg" and relative(clips.apex_path[0], samm).endswith("006_00101.jpg")
    assert list(clips.aus) == ["A1B+A2C", "ref(7B)+43C", "R14+17+soft focus"] and parse_aus(clips.aus[1]).numbers == (43,) and list(clips.emotion) == ["surprise", "others", "contempt"]
    assert list(clips.emotion3) == ["surprise", "", "negative"] and clips.apex_source[1] == "estimated"
    assert "'soft focus' in the action units" in report(clips).problem.str.cat(sep=" ")


def test_smic_folders_are_the_labels(tmp_path):
    frames(tmp_path / "HS" / "s3" / "micro" / "negative" / "s3_ne_05", [f"image{n:06d}.bmp" for n in range(20, 40)])
    frames(tmp_path / "HS" / "s20" / "micro" / "Surprise" / "s20_sur_01", [f"image{n:06d}.bmp" for n in range(998, 1012)])
    frames(tmp_path / "VIS" / "s20" / "micro" / "surprise" / "s20_sur_01", [f"image{n:06d}.bmp" for n in range(5, 12)])
    frames(tmp_path / "HS" / "s20" / "non_micro" / "x" / "s20_non_01", ["image000001.bmp"])
    (tmp_path / "HS" / "s3" / "micro" / "positive" / "s3_po_01").mkdir(parents=True)
    clips = read_corpus("smic", tmp_path, workers=1).set_index("clip")
    assert set(clips.index) == {"s03_s03_ne_05", "s20_s20_sur_01", "s20_s20_sur_01_VIS", "s03_s03_po_01"} and set(clips.subject) == {"s03", "s20"} and clips.aus.eq("").all()
    hs = clips.loc["s20_s20_sur_01"]
    assert (hs.onset, hs.offset, hs.fps, hs.emotion3, hs.apex_source) == (998, 1011, 100, "surprise", "estimated") and clips.fps["s20_s20_sur_01_VIS"] == 25 and 998 < hs.apex <= 1011
    assert relative(clips.frames["s03_s03_ne_05"], tmp_path) == "HS/s3/micro/negative/s3_ne_05/image{n:06d}.bmp" and clips.source_row.isna().all()
    lines = " ".join(report(read_corpus("smic", tmp_path, workers=1)).problem)
    assert "holds no numbered pictures" in lines and "4 clips have no apex" in lines and annotation_files("smic", tmp_path) == ()


def test_smic_twice_without_camera_and_by_its_sheet(tmp_path):
    frames(tmp_path / "pictures" / "s1" / "micro" / "negative" / "s1_ne_01", ["image1.bmp", "image2.bmp"])
    clips = read_corpus("smic", tmp_path / "pictures", workers=1)
    assert clips.fps.isna().all() and "frame rate is not known" in " ".join(report(clips).problem)
    for kind in ("raw", "cropped"): frames(tmp_path / "both" / kind / "HS" / "s1" / "micro" / "negative" / "s1_ne_01", ["image1.bmp"])
    with pytest.raises(CorpusError, match="several folders of SMIC's camera HS: cropped/HS, raw/HS. Choose one"): read_corpus("smic", tmp_path / "both")
    long = tmp_path / "SMIC-HS-E"
    book(long / "SMIC-HS-E_annotation.xlsx", "Sheet1", ["Subject", "Filename", "OnsetF", "OffsetF", "Emotion"], [1, "s1_ne_01", 3, 9, "negative"], [20, "s20_po_02", 30, 44, "positive"])
    frames(long / "HS" / "s01" / "s01_ne_01", [f"image{n:06d}.jpg" for n in range(1, 15)])
    clips = read_corpus("smic", long, workers=1)
    assert list(clips["clip"]) == ["s01_s01_ne_01", "s20_s20_po_02"] and set(clips.fps) == {100} and list(clips.apex_source) == ["estimated", "missing"] and relative(clips.onset_path[0], long) == "HS/s01/s01_ne_01/image000003.jpg"


def test_mmew_folders_are_emotions(tmp_path):
    book(tmp_path / "MMEW_Micro_Exp.xlsx", "Sheet1", ["Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units", "Estimated Emotion", "remarks"],
         ["01", "S01-003-01", 2, 5, 9, "4+7", "disgust", None], [30, "S30-001-02", 1, 4, 8, 12, "happiness", "blinks"], [30, "S30-009-02", 1, 4, 8, 17, "others", None])
    frames(tmp_path / "Micro_Expression" / "disgust" / "S01-003-01", [f"{n}.jpg" for n in range(1, 12)])
    frames(tmp_path / "Micro_Expression" / "Others" / "S30-009-02", [f"{n}.jpg" for n in range(1, 12)])
    clips = read_corpus("mmew", tmp_path)
    assert list(clips.subject) == ["01", "30", "30"] and set(clips.fps) == {90} and relative(clips.frames[0], tmp_path) == "Micro_Expression/disgust/S01-003-01/{n}.jpg"
    assert relative(clips.onset_path[2], tmp_path) == "Micro_Expression/Others/S30-009-02/1.jpg" and clips.frames[1] == ""
    assert read_corpus("mmew", tmp_path / "Micro_Expression").frames.tolist() == clips.frames.tolist(), "the sheet lies beside the root"


def test_4dme_can_have_several_emotions(tmp_path):
    header = ["sub_ID", "fold_name", "Onset", "Apex", "Offset", "AUs", "Emotion", "Positive", "Negative", "Surprise", "Repression", "Others"]
    book(tmp_path / "4DME_Labelling_Micro_release v1.xlsx", "Sheet1", header, ["S1", "S1_01", 3, 6, 9, "AU4+AU7(k)", "Negative", 0, 1, 0, 0, 0], ["S2", "S2_01", 3, 6, 9, "AU1+AU2", None, 0, 1, 1, 0, 0],
         ["S2", "S2_01", 20, 22, 29, "AU12", "Positive", 1, 0, 0, 0, 0], ["S3", "S3_01", 3, 6, 9, "AU17", None, 0, 1, 0, 1, 0])
    frames(tmp_path / "gray_micro" / "S2" / "S2_01", [f"{n}.jpg" for n in range(1, 40)])
    clips = read_corpus("4dme", tmp_path)
    assert list(clips.emotion) == ["negative", "negative+surprise", "positive", "negative+repression"] and list(clips.emotion3) == ["negative", "", "positive", emotion3("negative", "4dme") if emotion3("repression", "4dme") in (None, "negative") else ""]
    assert list(clips["clip"]) == ["S1_S1_01_3", "S2_S2_01_3", "S2_S2_01_20", "S3_S3_01_3"] and set(clips.fps) == {60} and relative(clips.frames[2], tmp_path) == "gray_micro/S2/S2_01/{n}.jpg"
    assert "several emotions at once: negative, surprise" in problems(clips)[3]["problem"] and parse_aus(clips.aus[1]).numbers == (1, 2)


def test_dfme_is_told_its_columns_and_its_frames(tmp_path):
    for part, person in (("part1", "0007"), ("part2", "0512")):
        book(tmp_path / f"DFME_{part}.xlsx", "s", ["person", "video", "begin", "peak", "end", "AU", "label", "fps"], [person, "00012", 3, 6, 9, "4", "disgust", 500])
        frames(tmp_path / "data" / part / person / "00012" / "pics", [f"f_{n:03d}.png" for n in range(1, 12)])
    with pytest.raises(CorpusError, match=r"lacks the column subject .*Found in row 1 of the sheet .s.: person, video, begin.*columns="): read_corpus("dfme", tmp_path)
    told = dict(columns={"subject": "person", "onset": "begin", "apex": "peak"}, frames="*/{subject}/{filename}/pics/f_{n}.png")
    clips = read_corpus("dfme", tmp_path, **told)
    assert list(clips.subject) == ["0007", "0512"] and set(clips.fps) == {500} and clips.apex.tolist() == [6, 6] and relative(clips.frames[1], tmp_path) == "data/part2/0512/00012/pics/f_{n:03d}.png"
    assert [f.name for f in annotation_files("dfme", tmp_path)] == ["DFME_part1.xlsx", "DFME_part2.xlsx"]
    with pytest.raises(CorpusError, match="no such column. Known are subject"): read_corpus("dfme", tmp_path, columns={"person": "person"})
    with pytest.raises(CorpusError, match="no place for the frame number"): read_corpus("dfme", tmp_path, **told | dict(frames="{subject}/{filename}/f.png"))
    with pytest.raises(CorpusError, match="in braces may stand subject"): read_corpus("dfme", tmp_path, **told | dict(frames="{person}/{n}.png"))


# Folders and files that are wrong

def test_without_folder_codes_or_columns(casme2, tmp_path):
    for name in codes.CORPORA:
        if " " in name: continue
        with pytest.raises(CorpusError, match="(?s)needs its folder or its annotation file.*MELLM_ROOT.*MELLM_ANNOTATION"): read_corpus(name)
        with pytest.raises(CorpusError, match="nowhere does not exist.*MELLM_ROOT"): read_corpus(name, tmp_path / "nowhere")
        (tmp_path / "e" / name).mkdir(parents=True)
        with pytest.raises(CorpusError, match="No annotation file of .*MELLM_ANNOTATION"): read_corpus(name, tmp_path / "e" / name)
    with pytest.raises(CorpusError, match="is a file"): read_corpus("casme2", casme2 / "CASME2-coding-20140508.xlsx")
    sheet = casme2 / "CASME2-coding-20140508.xlsx"
    with pytest.raises(CorpusError, match="holds no folder like sub01/EP02_01f.*annotation=… alone"): read_corpus("casme2", tmp_path / "e", annotation=sheet)
    table = pd.read_excel(sheet).rename(columns={"OnsetFrame": "Begin"})
    table.to_excel(sheet, index=False)
    with pytest.raises(CorpusError, match=r"lacks the column onset .*Found.*Subject, Filename.*Begin"): read_corpus("casme2", casme2)
    assert read_corpus("casme2", casme2, workers=1, columns={"onset": "Begin"}).onset[0] == 46
    table.head(0).to_excel(sheet, index=False)
    with pytest.raises(CorpusError, match="no clip.*right file"): read_corpus("casme2", annotation=sheet, columns={"onset": "Begin"})


def test_codes_alone_and_as_csv(casme2, tmp_path):
    sheet = casme2 / "CASME2-coding-20140508.xlsx"
    alone = read_corpus("casme2", annotation=sheet)
    assert alone.frames.eq("").all() and list(alone.apex_source) == ["annotated", "missing", "annotated", "annotated"] and "there are no frames" in problems(alone)[3]["done"]
    pd.read_excel(sheet).to_csv(tmp_path / "codes.csv", index=False)
    same = read_corpus("casme2", annotation=tmp_path / "codes.csv")
    assert same.drop(columns="source_row").equals(alone.drop(columns="source_row")), "a CSV says the same"
    (tmp_path / "latin.csv").write_bytes((tmp_path / "codes.csv").read_text().replace("happiness", "café").encode("latin-1"))
    with pytest.raises(CorpusError, match="latin.csv is not UTF-8.*CSV UTF-8"): read_corpus("casme2", annotation=tmp_path / "latin.csv")


@pytest.mark.parametrize("name", ["../../private", "..", "/etc", "a/../../b", "C:\\pictures", "..\\..\\x"])
def test_names_in_the_sheet_cannot_lead_out(casme2, name):
    frames(casme2.parent / "private", ["img1.jpg"])
    book(casme2 / "CASME2-coding-20140508.xlsx", "s", CASME2, [1, "EP02_01f", None, 46, 52, 59, None, 12, "happiness", 1], [1, name, None, 1, 2, 3, None, 4, "disgust", 1])
    clips = read_corpus("casme2", casme2)
    assert clips.frames[1] == "" and clips.onset_path[1] == "" and os.sep not in clips["clip"][1]
    assert any(word in problems(clips)[3]["problem"] for word in ("leads out of the folder", "there is no folder")) and problems(clips)[3]["done"] == "kept, without frames"


def test_links_cannot_lead_out_but_a_linked_root_is_fine(casme2, tmp_path):
    frames(tmp_path / "private" / "EP19_05f", [f"img{n}.jpg" for n in range(11, 77)])
    os.symlink(tmp_path / "private" / "EP19_05f", casme2 / "sub04" / "EP19_05f")
    clips = read_corpus("casme2", casme2, workers=1)
    assert clips.frames[2] == "" and "leads out of the corpus" in " ".join(report(clips).problem)
    os.symlink(casme2, tmp_path / "link")
    assert read_corpus("casme2", tmp_path / "link", workers=1).frames[0].endswith("sub01/EP02_01f/img{n}.jpg")


def test_missing_and_mixed_frames_are_reported(casme2):
    for n in (47, 48, 52): (casme2 / "sub01" / "EP02_01f" / f"img{n}.jpg").unlink()
    frames(casme2 / "sub01" / "EP02_01f", [f"reg_img{n}.jpg" for n in (46, 59)] + ["cover.jpg"])
    clips = read_corpus("casme2", casme2, workers=1)
    said = report(clips)[report(clips).row == 2].problem.tolist()
    assert "frames named reg_img{n}.jpg; img{n}.jpg is used" in said[0] and "missing frames: apex 52, 2 more between onset and offset" in said[1]
    assert clips.onset_path[0].endswith("img46.jpg") and clips.apex_path[0] == "" and clips.apex_source[0] == "annotated"
    shutil.rmtree(casme2 / "sub04" / "EP12_01f")
    frames(casme2 / "sub04" / "EP12_01f", ["cover.jpg"])
    again = read_corpus("casme2", casme2)
    assert again.apex_source[1] == "missing" and "holds no numbered pictures" in " ".join(report(again).problem)


def test_frames_that_are_no_pictures_leave_the_apex_missing(casme2):
    for p in (casme2 / "sub04" / "EP12_01f").iterdir(): p.write_bytes(b"no picture")
    clips = read_corpus("casme2", casme2)
    assert clips.apex_source[1] == "missing" and "missing: " in problems(clips)[3]["done"]


def test_braces_in_folder_names_are_no_fields(casme2, tmp_path):
    casme2.rename(tmp_path / "my {corpus}")
    clips = read_corpus("casme2", tmp_path / "my {corpus}", workers=1)
    assert clips.frames[0].format(n=52) == clips.apex_path[0] and Path(clips.apex_path[0]).is_file()


def test_rows_that_contradict_themselves_stay(tmp_path):
    path = book(tmp_path / "CASME2-coding-x.xlsx", "s", CASME2, [1, "a", None, 50, 40, 60, None, 12, "boredom", 1], [1, "b", None, 50, 55, 20, None, "xyz", "", 1], [1, "a", None, 50, 52, 60, None, 12, "happy", 1],
                [None, "c", None, "x", 5.5, 9, None, None, "sad", 1], ["somebody", "A", None, 1, 2, 3, None, 4, "fear", 1])
    clips = read_corpus("casme2", annotation=path)
    assert list(clips["clip"]) == ["sub01_a", "sub01_b", "sub01_a_row4", "c", "somebody_A"] and clips["clip"].is_unique and list(clips.emotion) == ["boredom", "", "happiness", "sadness", "fear"]
    lines = report(clips)
    at = lambda row: " | ".join(lines[lines.row == row].problem)
    assert "the apex 40 is outside of onset 50 to offset 60" in at(2) and "unknown emotion 'boredom'" in at(2)
    assert "the onset 50 is after the offset 20" in at(3) and "no action unit is certain in 'xyz'" in at(3) and "'xyz' in the action units" in at(3) and "there is no emotion" in at(3)
    assert "'sub01_a' is there already, in row 2" in at(4)
    assert all(text in at(5) for text in ("the subject is empty", "the onset 'x' is no frame number", "the apex '5.5' is no frame number"))
    assert "has no number, as in sub01" in at(6) and list(clips.emotion3[[3, 4]]) == [emotion3("sad", "casme2") or "", emotion3("fear", "casme2") or ""]


def test_errata_correct_only_rows_in_disorder():
    cell = dict(file="x", row=62, clip="c")
    assert rows.correct("casme2", cell, dict(onset=46, apex=None, offset=11))[0] == dict(onset=46, apex=None, offset=91)
    for name, row, n in (("casme2", 61, dict(onset=46, apex=None, offset=11)), ("samm", 62, dict(onset=46, apex=None, offset=11)), ("casme2", 62, dict(onset=46, apex=None, offset=90)),
                         ("casme2", 62, dict(onset=100, apex=None, offset=11))):
        assert rows.correct(name, cell | dict(row=row), n) == (n, []), "another row, another corpus, a good row, or a correction that would not help"
    (line,) = rows.correct("casme3", cell | dict(row=751), dict(onset=2700, apex=2660, offset=2680))[1]
    assert "onset 2700 → 2647" in line["done"] and "tvaranka/meb" in line["done"] and all(e.reason for e in rows.ERRATA)


def test_an_erratum_is_applied_and_reported(tmp_path):
    lines = [[1, f"EP{n}", None, 1, 5, 9, None, 4, "others", 7] for n in range(2, 62)] + [[9, "EP62", None, 41, "/", 11, None, 4, "others", 7]]
    clips = read_corpus("casme2", annotation=book(tmp_path / "CASME2-coding-20140508.xlsx", "s", CASME2, *lines))
    assert clips.offset.iloc[-1] == 91 and clips.source_row.iloc[-1] == 62
    assert "documented erratum: the onset 41 is after the offset 11" in " ".join(report(clips).problem) and "offset 11 → 91" in " ".join(report(clips).done)


def test_a_synthetic_apex_is_found(tmp_path):
    from mellm import synth
    plan = synth.plan("casme2", seed=1, subjects=1, clips=1)
    row = plan.iloc[0].to_dict() | dict(onset=10, apex=22, offset=36, gains={12: [1.8, 1.8]})
    table = pd.DataFrame([row | dict(subject="sub01", apex=None)])
    write_layout("casme2", table, tmp_path, lambda r: synth.clip_frames(row))
    clips = read_corpus("casme2", tmp_path, workers=1)
    assert clips.apex_source[0] == "estimated" and abs(clips.apex[0] - 22) <= 6


def test_processes_estimate_the_same(tmp_path):
    table = pd.DataFrame([("s1", f"s1_ne_{i:02d}", 10, None, 22, "", "negative") for i in range(5)], columns=["subject", "filename", "onset", "apex", "offset", "aus", "emotion"])
    write_layout("smic", table, tmp_path, disk)
    one, two = (read_corpus("smic", tmp_path, workers=w) for w in (1, 2))
    assert one.equals(two) and set(one.apex_source) == {"estimated"}


def disk(row):
    for n in range(row.onset, row.offset + 1):
        image = np.full((48, 48), 128, np.uint8)
        cv2.circle(image, (24, 24), 4 + min(n - row.onset, row.offset - n), 255, -1)
        yield n, image


# What is written is read

SUBJECT = {"casme": "sub{:02d}", "casme2": "sub{:02d}", "casme_sq": "s{:02d}", "casme3": "spNO.{}", "samm": "{:03d}", "smic": "s{:02d}", "mmew": "{:03d}", "4dme": "S{}", "dfme": "{:04d}"}
EMOTIONS = {"smic": ("positive", "negative", "surprise"), "4dme": ("positive", "negative", "surprise", "repression", "others")}
name_text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp", "Cn", "Co"), exclude_characters="/\\"), min_size=1, max_size=12).filter(lambda t: t not in (".", "..") and t.strip() == t)
stems = st.one_of(name_text, st.integers(0, 99999).map("{:05d}".format), st.sampled_from(["=1+1", "NA", "nan", "1e5", "EP02_01f", "{n}", "007", "None", "a b"]))


@pytest.mark.parametrize("name", SUBJECT)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory, name, data):
    count = data.draw(st.integers(1, 4))
    spelled = [SUBJECT[name].format(data.draw(st.integers(0, 99))) for _ in range(count)]
    want = pd.DataFrame({"subject": spelled, "filename": [data.draw(stems) for _ in range(count)], "onset": [data.draw(st.integers(1, 9000)) for _ in range(count)]})
    want["offset"] = want.onset + [data.draw(st.integers(2, 300)) for _ in range(count)]
    want["apex"] = pd.array([None if name == "smic" or data.draw(st.booleans()) else o + 1 for o in want.onset], dtype="Int64")
    want["aus"] = ["" if name == "smic" else data.draw(st.sampled_from(["4", "4+7", "A1B+A2C", "R12 or R14", "ref(7B)+43C", "10A/B", "12+15"])) for _ in range(count)]
    want["emotion"] = [data.draw(st.sampled_from(EMOTIONS.get(name, ("happiness", "disgust", "others", "surprise", "fear")))) for _ in range(count)]
    got = read_corpus(name, annotation=write_layout(name, want, tmp_path_factory.mktemp(name)))
    assert got.subject.tolist() == spelled and got.onset.tolist() == want.onset.tolist() and got.offset.tolist() == want.offset.tolist() and got.apex.equals(want.apex.rename("apex"))
    assert got.aus.tolist() == [str(parse_aus(a)) for a in want.aus] and got.emotion.tolist() == want.emotion.tolist() and got["clip"].is_unique and all("/" not in c for c in got["clip"])
    for k, f in (("emotion5", emotion5), ("emotion7", emotion7)): assert got[k].tolist() == [f(e, name) or "" for e in want.emotion]


@pytest.mark.parametrize("name, options", [(n, {}) for n in SUBJECT] + [("casme3", {"part": "C"}), ("smic", {"variant": "NIR"})])
def test_every_layout_with_pictures_is_read_back(tmp_path, name, options):
    subject = "{}" if options.get("part") else SUBJECT[name]
    want = pd.DataFrame({"subject": [subject.format(1), subject.format(2)], "filename": ["s1_ne_1", "s2_ne_1"], "onset": [98, 3], "apex": pd.array([104, 8], dtype="Int64"), "offset": [112, 14], "aus": "4", "emotion": "negative" if name in EMOTIONS else "disgust"})
    write_layout(name, want, tmp_path / "corpus", disk, **options)
    got = read_corpus(name, tmp_path / "corpus", workers=1).sort_values("subject", ignore_index=True)
    assert got.frames.ne("").all() and got.onset.tolist() == [98, 3] and got.offset.tolist() == [112, 14] and all(Path(p.format(n=n)).is_file() for p, n in zip(got.frames, got.offset))
    assert all(map(os.path.isabs, got.frames)) and all(Path(p).is_file() for p in [*got.onset_path, *got.apex_path]) and set(got.apex_source) == ({"estimated"} if name == "smic" or options.get("part") else {"annotated"})
    assert set(got.emotion3) == {"negative"} and (name != "smic" or set(got.fps) == {25 if options else 100})


# A list of one's own

@pytest.fixture
def table(tmp_path):
    frames(tmp_path / "frames", [f"{name}.png" for name in "abcd"])

    def write(text, name="list.csv", encoding="utf-8"):
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name
    return write


def test_table_keeps_zeros_and_reads_labels(table):
    clips = read_corpus("table", annotation=table("Subject;Onset_Path;apex path;AUs;emotion;onset;fps\n006;frames/a.png;frames/b.png;6+12;Happy;0;200\n\n007;frames/c.png;frames/d.png;4;angry;;\n"))
    assert list(clips.subject) == ["006", "007"] and list(clips.emotion3) == ["positive", "negative"] and clips.source_row.tolist() == [2, 4]
    assert clips.onset[0] == 0 and pd.isna(clips.onset[1]) and clips.fps[0] == 200 and list(clips["clip"]) == ["006_2", "007_4"] and report(clips).empty
    assert all(map(os.path.isfile, [*clips.onset_path, *clips.apex_path])) and set(clips.apex_source) == {"annotated"} and set(clips.corpus) == {"table"}


def test_table_with_frames_finds_pattern_and_apex(table, tmp_path):
    frames(tmp_path / "s1" / "smile", [f"pic_{n:03d}.png" for n in range(5, 30)])
    clips = read_corpus("table", annotation=table("subject,clip,frames,onset,apex,offset,emotion\n1,x,s1/smile/pic_{n:03d}.png,5,15,29,happy\n1,y,s1/smile,5,,29,happy\n1,z,s1/none,1,2,3,sad\n1,w,../out/{n}.png,1,2,3,sad\n"), workers=1)
    assert relative(clips.frames[0], tmp_path) == relative(clips.frames[1], tmp_path) == "s1/smile/pic_{n:03d}.png" and list(clips.apex_source) == ["annotated", "estimated", "annotated", "annotated"]
    assert clips.apex_path[0].endswith("pic_015.png") and clips.frames[2] == clips.frames[3] == "" and "there is no file" in problems(clips)[4]["problem"] and "lies outside" in problems(clips)[5]["problem"]


def test_table_with_a_place_of_frames_and_own_columns(table, tmp_path):
    frames(tmp_path / "video" / "1" / "x", [f"{n}.png" for n in range(5, 30)])
    clips = read_corpus("table", tmp_path / "video", table("who,what,start,top,end\n1,x,5,9,20\n"), columns=dict(subject="who", filename="what", apex="top"), frames="{subject}/{filename}/{n}.png")
    assert relative(clips.apex_path[0], tmp_path) == "video/1/x/9.png" and clips.offset[0] == 20 and clips["clip"][0] == "x"


def test_table_from_excel_with_bom_and_other_root(table, tmp_path):
    table("subject,onset_path,apex_path\nrenée,a.png,b.png\n", encoding="utf-8-sig")
    assert read_corpus("table", tmp_path / "frames", tmp_path / "list.csv").subject[0] == "renée"
    pd.DataFrame({"subject": [1], "onset_path": ["a.png"], "apex_path": [str(tmp_path / "frames" / "b.png")]}).to_excel(tmp_path / "list.xlsx", index=False)
    clips = read_corpus("table", tmp_path / "frames", tmp_path / "list.xlsx")
    assert clips.subject[0] == "1" and clips.apex_path[0].endswith("b.png"), "an absolute path inside of the root is fine"


def test_table_reports_missing_pictures_and_subjects_by_row(table):
    clips = read_corpus("table", annotation=table("subject,onset_path,apex_path,emotion\n1,frames/a.png,frames/b.png,sad\n1,frames/a.png,no.png,sad\n,frames/a.png,frames/b.png,sad\n2,,frames/b.png,sad\n2,../x.png,frames/b.png,sad\n"))
    lines = report(clips)
    assert len(clips) == 5 and list(lines.row) == [3, 4, 5, 6] and set(lines.file) == {"list.csv"} and clips.apex_path[1] == clips.onset_path[3] == clips.onset_path[4] == ""
    assert all(text in p for text, p in zip(("no.png", "subject is empty", "onset_path is empty", "../x.png lies outside of"), lines.problem)) and clips.apex_source[1] == "missing"


@pytest.mark.parametrize("text, name, encoding, said", [
    ("subject,onset_path\n1,a\n", "x.csv", "utf-8", "lacks the column apex_path.*Found.*subject, onset_path"),
    ("subject,onset_path,apex_path\nRenée,a,b\n", "x.csv", "latin-1", "not UTF-8.*CSV UTF-8"),
    ("subject,onset_path,apex_path\n1,a,b\n", "x.csv", "utf-16", "not UTF-8"),
    ("subject,onset_path,apex_path\n1,a,b,c\n", "x.csv", "utf-8", "row 2: more cells"),
    ("", "x.csv", "utf-8", "it is empty"),
    ("subject,onset_path,apex_path\n", "x.csv", "utf-8", "no rows"),
    ("not a workbook", "x.xlsx", "utf-8", "cannot be opened as an XLSX"),
    ("{}", "x.json", "utf-8", "neither CSV nor XLSX")])
def test_bad_tables_say_what_to_do(table, text, name, encoding, said):
    with pytest.raises(CorpusError, match=f"(?s)x[.].*{said}"): read_corpus("table", annotation=table(text, name, encoding))


def test_no_annotation_and_unknown_corpus(tmp_path):
    with pytest.raises(CorpusError, match="MELLM_ANNOTATION"): read_corpus("table")
    with pytest.raises(CorpusError, match="does not exist"): read_corpus("table", annotation=tmp_path / "no.csv")
    with pytest.raises(CorpusError, match="is a folder"): read_corpus("table", annotation=tmp_path)
    with pytest.raises(CorpusError, match="synthetic, table, casme, casme2"): read_corpus("casme9")
    with pytest.raises(CorpusError, match="needs a folder"): read_corpus("synthetic")
    with pytest.raises(CorpusError, match="no such column"): read_corpus("table", annotation=tmp_path / "no.csv", columns={"x": "y"})


# The others, and the table of all

def test_synthetic_comes_through_the_same_door(tmp_path):
    clips = read_corpus("synthetic", tmp_path, study=Study(subjects=2, clips_per_subject=3, workers=1))
    assert list(clips.columns) == list(CLIP_COLUMNS) and len(clips) == 9 and "astronaut" in set(clips.subject) and report(clips).empty and set(clips.apex_source) == {"annotated"}
    assert all(map(os.path.isfile, [*clips.onset_path, *clips.apex_path])) and all(Path(p.format(n=n)).is_file() for p, n in zip(clips.frames, clips.apex))


def test_megc_flows_come_through_the_same_door(tmp_path):
    from mellm.megc import write_example
    clips = read_corpus("megc2019_flow", write_example(tmp_path / "flows", people=2))
    assert list(clips.columns) == list(CLIP_COLUMNS) and set(clips.corpus) == {"casme2", "samm", "smic"} and all(map(os.path.isfile, clips.flow_path)) and not report(clips).empty
    table = corpus_table({"flows": clips})
    assert table.loc["flows", ["clips", "subjects", "classes", "negative/positive/surprise", "missing apex"]].tolist() == [18, 6, 3, "6/6/6", 18]
    assert len(annotation_files("megc2019_flow", tmp_path / "flows")) == 1


def test_table_of_corpora_counts_persons_of_different_corpora_apart(casme2):
    clips = read_corpus("casme2", casme2, workers=1)
    twice = pd.concat([clips, clips.assign(corpus="samm")])
    twice.attrs = clips.attrs
    line = corpus_table({"both": twice}).loc["both"]
    assert line.to_dict() == {"clips": 8, "subjects": 6, "classes": 3, "negative/positive/surprise": "2/2/2", "AUs": 5, "missing apex": 2, "of these estimated": 2, "reported rows": 3}


def test_the_report_of_a_clean_corpus_is_an_empty_table():
    assert list(report(pd.DataFrame()).columns) == ["file", "row", "clip", "problem", "done"] and report(pd.DataFrame()).empty


def test_a_folder_that_may_not_be_read(casme2, monkeypatch):
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("EP02_01f"): raise PermissionError(13, "Permission denied")
        return real(folder)
    monkeypatch.setattr(os, "scandir", scandir)
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, *a, **k: not str(p).endswith("EP02_01f") and access(p, *a, **k))
    clips = read_corpus("casme2", casme2, workers=1)
    assert clips.frames[0] == "" and clips.frames[1] != "" and "cannot be read (Permission denied)" in " ".join(report(clips).problem)

    def closed(folder): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(CorpusError, match="cannot be read .Permission denied.. Change its permissions"): read_corpus("casme2", casme2)
