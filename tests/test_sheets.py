"""Spreadsheets as people type them: zeros, prose, blank rows, several sheets, and files that are no spreadsheets."""
import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm.sheets import CorpusError, cell_text, file_name, find_header, frame_number, number, pick_columns, plain, read_cells, read_sheet

NAMES = {"subject": ("Subject", "sub"), "onset": ("OnsetFrame", "Onset"), "aus": ("Action Units", "AU"), "fps": ("fps",)}


def book(path, **sheets):
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, rows in sheets.items():
        page = made.create_sheet(title)
        for row in rows: page.append(row)
    made.save(path)
    return path


def test_text_stays_text_and_rows_keep_their_number(tmp_path):
    (tmp_path / "x.csv").write_text('a,b\n006,"NA"\n,\n4,"two\nlines"\n', encoding="utf-8")
    sheet = read_sheet(tmp_path / "x.csv")
    assert sheet.a.tolist() == ["006", "4"] and sheet.b.tolist() == ["NA", "two\nlines"] and sheet.index.tolist() == [2, 4]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_separators_and_byte_order_mark(tmp_path, separator, bom):
    (tmp_path / "x.csv").write_text(bom + separator.join(["Subject", "Onset"]) + "\n" + separator.join(["Renée", "7"]) + "\n", encoding="utf-8")
    sheet = read_sheet(tmp_path / "x.csv", NAMES, ("subject", "onset"))
    assert sheet.columns.tolist() == ["Subject", "Onset"] and sheet.Subject[2] == "Renée"


def test_workbook_cells_become_text(tmp_path):
    path = book(tmp_path / "x.xlsx", codes=[["Subject", "AU", "note"], ["006", 4, True], [7, 4.5, None], [None, "4+7 ", "=1+1"]])
    assert read_cells(path)["codes"][1:3] == [["006", "4", "True"], ["7", "4.5", ""]]
    assert cell_text(4.0) == "4" and cell_text(" a ") == "a" and cell_text(None) == "" and cell_text(0) == "0"


def test_header_is_found_by_content_in_any_sheet_below_any_prose(tmp_path):
    rows = [[f"line {i}"] for i in range(13)] + [["Sub", None, "Onset Frame", "AU"], ["006", None, 11, 4]]
    path = book(tmp_path / "x.xlsx", legend=[["Onset", "what it means"]], codes=rows, more=rows)
    sheet = read_sheet(path, NAMES, ("subject", "onset"))
    assert sheet.index.tolist() == [15] and sheet.attrs == {"sheet": "codes", "also": ["more"]}
    assert sheet.columns.tolist() == ["Sub", "Unnamed: 1", "Onset Frame", "AU"]
    picked = pick_columns(sheet, NAMES, ("subject", "onset"), path)
    assert picked.loc[15].to_dict() == dict(subject="006", onset="11", aus="4", fps="")


def test_no_header_means_letters(tmp_path):
    sheet = read_sheet(book(tmp_path / "x.xlsx", a=[[1, "anger1_1"], [2, "happy"]]), header=False)
    assert sheet.columns.tolist() == ["A", "B"] and sheet.index.tolist() == [1, 2] and sheet.A.tolist() == ["1", "2"]


def test_repeated_and_missing_names_of_columns(tmp_path):
    (tmp_path / "x.csv").write_text("AU,,AU\n1,2,3\n", encoding="utf-8")
    sheet = read_sheet(tmp_path / "x.csv")
    assert sheet.columns.tolist() == ["AU", "Unnamed: 1", "AU (C)"]
    assert pick_columns(sheet, {"aus": ("AU",)}, ("aus",), "x").aus.tolist() == ["1"]


def test_a_header_that_only_prose_resembles_is_no_header():
    rows = [["The subject is a number", ""], ["Subject", "Onset"], ["1", "2"]]
    assert find_header(rows, NAMES, ("subject", "onset")) == (1, 1)
    assert find_header(rows, NAMES, ("subject", "aus"))[0] is None and find_header([], NAMES, ("subject",)) == (None, 0)


@pytest.mark.parametrize("text, name, encoding, said", [
    ("Renée\n", "x.csv", "latin-1", "not UTF-8 text .byte 0xe9 at position 3.*CSV UTF-8"),
    ("Renée\n", "x.csv", "utf-16", "not UTF-8"),
    ("被试\n", "x.csv", "gbk", "not UTF-8"),
    ("a,b\n1,2,3\n", "x.csv", "utf-8", "row 2: more cells than the 2 of the header.*quotes"),
    ("", "x.csv", "utf-8", "it is empty"), ("\n\n", "x.csv", "utf-8", "it is empty"), (",\n,\n", "x.csv", "utf-8", "is empty"),
    ('a\n"' + "x" * 140_000, "x.csv", "utf-8", "no table in CSV format"),
    ("not a workbook", "x.xlsx", "utf-8", "cannot be opened as an XLSX file .*save it as .xlsx again"),
    ("{}", "x.json", "utf-8", "neither CSV nor XLSX"), ("old", "x.xls", "utf-8", "neither CSV nor XLSX.*save it as .xlsx")])
def test_files_that_are_no_sheets_say_what_to_do(tmp_path, text, name, encoding, said):
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(CorpusError, match=f"(?s){name}.*{said}"): read_sheet(tmp_path / name)


def test_missing_files_sheets_and_columns(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"): read_sheet(tmp_path / "x.csv")
    with pytest.raises(CorpusError, match="is a folder"): read_sheet(tmp_path)
    path = book(tmp_path / "x.xlsx", legend=[["what it means"]], codes=[["Subject", "Begin"], [1, 2]])
    with pytest.raises(CorpusError, match="no sheet 'label'. Its sheets are 'legend', 'codes'"): read_sheet(path, sheet="label")
    with pytest.raises(CorpusError, match=r"lacks the column onset \(as 'OnsetFrame' or 'Onset'\). Found in row 1 of the sheet 'codes': Subject, Begin.*has the sheets 'legend', 'codes'.*columns=\{'onset'"):
        read_sheet(path, NAMES, ("subject", "onset"))
    with pytest.raises(CorpusError, match="lacks the column aus .*Found in row 1: Subject, Begin"): pick_columns(read_sheet(path, sheet="codes"), NAMES, ("subject", "aus"), path)
    with pytest.raises(CorpusError, match="lacks the column subject"): read_sheet(book(tmp_path / "e.xlsx", a=[]), NAMES, ("subject",))


def test_cells():
    assert [frame_number(c) for c in (" 7 ", "7.0", "7.5", "0", "/", "", "x", "1e3", None, float("nan"), "٣", "9" * 12)] == [7, 7] + [None] * 10
    assert frame_number("0", 0) == 0 and [number(c) for c in ("200", "29.97", "0", "-1", "inf", "nan", "x", None)] == [200, 29.97] + [None] * 6
    assert file_name("../../etc/passwd") == "etc_passwd" and file_name("///") == "_" and file_name("EP02_01f") == "EP02_01f" and len(file_name("x" * 500)) == 120
    assert plain("Onset Frame") == plain("onset_frame") == plain("ONSETFRAME")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8), min_size=3, max_size=3), min_size=1, max_size=6))
def test_csv_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    pd.DataFrame(rows, columns=["Subject", "Onset", "AU"]).to_csv(path, index=False)
    sheet = read_sheet(path, NAMES, ("subject", "onset"))
    want = {n: [cell.strip() for cell in row] for n, row in enumerate(rows, 2) if any(cell.strip() for cell in row)}
    assert dict(zip(sheet.index, sheet.to_numpy().tolist())) == want
