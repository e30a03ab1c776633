"""Everything that can be wrong with a file of labels is told, with its line, in words that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from faithad.clips.labels.reference import read_reference
from faithad.errors import AnnotationError
from tests.label_files import read_labels

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File"


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError) as caught:
        read_reference(str(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1\t1\tpoint\n", "line 1: the label is a point, at 1 s; drag it open so that it covers the sound"),
        ("1\told\n", "line 1: the label has no end ('old' is no number): a point is no interval"),
        ("1\t2\tx\n3\n", "line 2: the label has no end; write onset, offset and text"),
        ("1,5\t2,5\tx\n", "line 1: '1,5' has a decimal comma; write a point"),
        ("1\t2,5\tx\n", "line 1: the label has no end ('2,5' has a decimal comma; write a point)"),
        ("5\t2\tx\n", "line 1: the label ends at 2 s, before it begins at 5 s"),
        ("-1\t2\tx\n", "line 1: the label begins at -1 s, before the recording"),
        ("nan\t2\tx\n", "line 1: 'nan' is no number"),
        ("1\tinf\tx\n", "'inf' is no number"),
        ("1e999\t2\tx\n", "line 1: the label inf to 2 s is no interval of a recording"),
        ("\t2\tx\n", "line 1: a number is missing"),
        ("1\t2\tx\n\\\tlow\t7\n", "line 2: 'low' is no number"),
        ("1\t2\tx\n\\\t7\n", "line 2: a line that begins with a backslash must hold a lower and an upper frequency"),
        ("1\t2\tx\n\\\t700\t70\n", "line 2: the label has the frequency bounds 700 to 70 Hz"),
        ("00:01:00\t00:02:00\tx\n", "line 1: '00:01:00' is no number"),
    ],
)
def test_audacity(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path / "a.txt", text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Selection\tView\n1\tx\n",
            "line 1: the selection table has no column 'Begin Time (s)' and none 'End Time (s)'",
        ),
        (f"{RAVEN}\n1\tS\t1\t1\t1\t\t\ta\n", "line 2: the selection is a point, at 1 s"),
        (f"{RAVEN}\n1\tS\t1\t1,5\t2,5\t\t\ta\n", "line 2: '1,5' has a decimal comma"),
        (f"{RAVEN}\n\n1\tS\t1\t1\t2\t9\t3\ta\n", "line 3: the selection has the frequency bounds 9 to 3 Hz"),
        (f"{RAVEN}\n1\tS\t1\t1\t2\t\t\ta\tb\n", "line 2: 9 cells under 8 columns; a tab too many"),
        (f"{RAVEN}\n1\tS\t1\t1\t\t\t\ta\n", "line 2: a number is missing"),
        (
            f"{RAVEN}\n1\tS\t1\t1\t2\t\t\ta\n2\tS\t1\t61\t62\t\t\tb\n",
            "line 1: the table covers 2 recordings, so its times count through all of them; add the "
            "measurement 'File Offset (s)' in Raven",
        ),
        (f"{RAVEN}\tEnd File\n1\tS\t1\t1\t2\t\t\ta\tb\n", "line 2: the selection runs on into another recording"),
    ],
)
def test_raven(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path / "a.txt", text)


REGION = {"id": "r1", "type": "labels", "value": {"start": 1, "end": 2, "labels": ["x"]}}


def with_region(**changes: object) -> str:
    value = REGION["value"] | changes  # type: ignore[operator]
    return json.dumps([{"data": {"audio": "a.wav"}, "annotations": [{"result": [{**REGION, "value": value}]}]}])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[{", "no JSON: "),
        ("[NaN]", "no JSON: NaN is no number in JSON"),
        ("[" * 100_000, "no JSON: "),
        ("[3]", "task 1: it is no object with 'data' and 'annotations'"),
        ('{"data": 3}', "task 1: it has no object 'data'"),
        ('[{"data": {"sound": "a.wav"}}]', "task 1: its data has no text 'audio'"),
        ('[{"data": {"audio": "a.wav"}}]', "task 1 (a.wav): nobody has annotated it; submit it in Label Studio"),
        ('[{"data": {"audio": "a.wav"}, "predictions": [{"result": []}]}]', "task 1 (a.wav): nobody has annotated it"),
        (
            '[{"data": {"audio": "a.wav"}, "annotations": [{"was_cancelled": true, "result": []}]}]',
            "task 1 (a.wav): nobody has annotated it",
        ),
        ('[{"data": {"audio": "a.wav"}, "annotations": [7]}]', "its 'annotations' is no list of objects"),
        (with_region(start=2), "task 1 (a.wav), region 'r1': the region is a point, at 2 s"),
        (with_region(start="1.5"), "region 'r1': its 'start' is no number: '1.5'"),
        (with_region(end=True), "its 'end' is no number: True"),
        (with_region(end=None), "its 'end' is no number: None"),
        (with_region(end=10**400), "its 'end' is too large"),
        (with_region(labels="x"), "its labels are no list of texts: 'x'"),
        (with_region(labels=["\ud800"]), "it holds halves of characters"),
        (
            json.dumps({"data": {"audio": "a.wav"}, "annotations": [{"result": [{"type": "labels"}]}]}),
            "no object 'value'",
        ),
    ],
)
def test_label_studio(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path / "a.json", text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recording,onset_s\na,1\n", "row 1: the table has no column 'offset_s'"),
        ("recording;onset_s;offset_s\na;1;2\n", "its columns seem separated by semicolons: use commas"),
        ("recording,onset_s,offset_s\na,1\n", "row 2: 2 cells instead of 3; put cells with commas in quotes"),
        ("recording,onset_s,offset_s\n,1,2\n", "row 2: the recording is empty"),
        ('recording,onset_s,offset_s\na,"1,5",2\n', "row 2: '1,5' has a decimal comma; write a point"),
        ("recording,onset_s,offset_s\na,1,2\n\na,3,3\n", "row 4: the label is a point, at 3 s"),
        ("recording,onset_s,offset_s,low_hz\na,1,2,-5\n", "row 2: the label has the frequency bounds -5 Hz"),
        ("recording,onset_s,offset_s,high_hz\na,1,2,1e999\n", "row 2: the label has the frequency bounds inf Hz"),
        ('recording,onset_s,offset_s\n"a,1,2\n', "no CSV table"),
    ],
)
def test_csv(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(tmp_path / "a.csv", text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1\t2\tüber\n".encode("utf-16"), "no text in UTF-8"),
        ("1\t2\tüber\n".encode("latin-1"), "no text in UTF-8"),
        ("once upon a time\n", "line 1: no known kind of labels begins with 'once upon a time'. Known are Audacity's"),
        ("Recording wav File,x\n1,2\n", "the annotation table has no column"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: str | bytes, reason: str) -> None:
    assert reason in refusal(tmp_path / "a.csv", content)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "file\tstart\tend\tlabel\na.wav\t1\t3\tx\n",
            "line 1: no known kind of labels begins with 'file\\tstart\\tend",
        ),
        ("filename\tevent_labels\na.wav\tx,y\n", "row 1: the table has no column 'onset_s', 'offset_s', found 'filen"),
        ("filename\tonset\toffset\tevent_label\na.wav\t1\t\tx\n", "row 2: a number is missing"),
        ("filename\tonset\toffset\na.wav\t1\t3\tx\n", "row 2: 4 cells instead of 3; put cells with tabs in quotes"),
    ],
)
def test_tables_with_tabs(tmp_path: Path, text: str, reason: str) -> None:
    said = refusal(tmp_path / "a.tsv", text)
    assert reason in said
    assert "is no number" not in said


def test_of_thousands_of_problems_ten_are_told(tmp_path: Path) -> None:
    said = refusal(tmp_path / "a.txt", "".join(f"{k}\t{k}\tx\n" for k in range(5_000)))
    first, *lines, last = said.splitlines()
    assert first.endswith(": 5,000 problems in the labels:")
    assert [line.partition(":")[0].strip() for line in lines] == [f"a.txt, line {k}" for k in range(1, 11)]
    assert last == "  and 4,990 more"


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\t1\tx\n1\t2\tfine\n5\t4\tx\n")
    (tmp_path / "b.csv").write_text("recording,onset_s,offset_s\na,1,x\n")
    with pytest.raises(AnnotationError) as caught:
        read_reference(str(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}: 3 problems in the labels:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["a.txt, line 1", "a.txt, line 3", "b.csv, row 2"]


def test_all_files_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.csv", "c.txt"):
        (tmp_path / name).write_bytes("1\t2\tüber\n".encode("utf-8" if name == "b.csv" else "latin-1"))
    with pytest.raises(AnnotationError) as caught:
        read_reference(str(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}: 2 problems in the labels:"
    assert [line.partition(" (")[0].strip() for line in lines[1:]] == [
        "a.txt: no text in UTF-8",
        "c.txt: no text in UTF-8",
    ]


def test_of_a_repeated_column_that_is_not_needed_the_last_one_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("recording,onset_s,offset_s,text,note,text,note\na,1,2,x,n,y,m\n")
    (label,) = read_labels(str(tmp_path))
    assert (label.recording, label.text) == ("a", "y")
    text = "recording,onset_s,offset_s,onset_s\na,1,2,1\n"
    assert "column 'onset_s' is there more than once; keep one" in refusal(tmp_path / "b.csv", text)


def test_places_without_labels(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"does not exist\. Check the path"):
        read_reference(str(tmp_path / "nowhere"))
    with pytest.raises(AnnotationError, match=r"holds no labels: no file whose name ends in \.txt or \.csv or \.json"):
        read_reference(str(tmp_path))
    with pytest.raises(AnnotationError, match=r"is a recording\. Give the file or the folder of its labels"):
        read_reference(str(tmp_path / "a.WAV"))
