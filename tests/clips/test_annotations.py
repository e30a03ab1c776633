"""The annotation table: the published one, the round trip, and everything that can be wrong with a row."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad.clips.annotations import HEADER, Annotation, read_annotations, write_annotations
from faithad.errors import AnnotationError

ROW = ["r.wav", "r_2.pt", "2", "10-20 seconds", "board_stuck", "[(11,13), (18,20)]", "[(40,120), (320,399)]"]
COLUMN = dict(zip(("recording", "clip", "number", "range", "type", "times", "frames"), range(7), strict=True))


def changed(**cells: str) -> list[str]:
    row = list(ROW)
    for name, cell in cells.items():
        row[COLUMN[name]] = cell
    return row


def write_table(path: Path, *rows: list[str], header: tuple[str, ...] | list[str] = HEADER, bom: bool = False) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode())
    return str(path)


def problems_of(path: Path, *rows: list[str]) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(write_table(path, *rows))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "annotations.csv"


def test_published_table(shared_data: Path) -> None:
    annotations = read_annotations(str(shared_data / "planer_annotations.csv"))
    assert len(annotations) == 105
    assert Counter(a.anomaly_type for a in annotations) == {
        "broken_board": 4,
        "board_stuck": 29,
        "Uneven_thick_wood": 72,
    }
    annotated = [a for a in annotations if a.intervals]
    assert len(annotated) == 46
    assert Counter(a.anomaly_type for a in annotated) == {
        "broken_board": 2,
        "board_stuck": 10,
        "Uneven_thick_wood": 34,
    }
    assert len({a.recording for a in annotated}) == 20
    intervals = [interval for a in annotations for interval in a.intervals]
    assert len(intervals) == 64
    assert all(
        0 <= onset < offset <= 10 and onset == int(onset) and offset == int(offset) for onset, offset in intervals
    )
    # The frame label (360,399) of this clip means its last second, whole.
    (last,) = [a for a in annotations if a.recording == "MPD_19-12-04_1112_00150.wav" and a.window == 3]
    assert last == Annotation(
        "MPD_19-12-04_1112_00150.wav", 3, "Uneven_thick_wood", 20.0, 30.0, ((2.0, 3.0), (9.0, 10.0))
    )


def test_published_table_is_written_as_it_was(shared_data: Path, table: Path) -> None:
    """Byte for byte, but for two spaces inside tuples and the line end of the last row."""
    published = shared_data / "planer_annotations.csv"
    write_annotations(read_annotations(str(published)), str(table))
    expected = published.read_bytes().replace(b"(200, 240)", b"(200,240)").replace(b"(240, 399)", b"(240,399)")
    assert table.read_bytes() == expected + b"\r\n"


def test_real_sounds_table(shared_data: Path) -> None:
    annotations = read_annotations(str(shared_data / "real_sounds" / "annotations.csv"))
    assert [(a.anomaly_type, a.window, a.onset_s, a.intervals) for a in annotations] == [
        ("bark", 2, 10.0, ((2.0, 4.0),)),
        ("rooster", 3, 20.0, ((3.0, 6.0),)),
        ("sneeze", 4, 30.0, ((4.0, 5.0),)),
    ]


def test_a_row_as_it_is_meant(table: Path) -> None:
    expected = Annotation("r.wav", 2, "board_stuck", 10.0, 20.0, ((1.0, 3.0), (8.0, 10.0)))
    assert read_annotations(write_table(table, ROW)) == [expected]


def test_what_spreadsheets_do_to_a_table(table: Path) -> None:
    """Byte-order mark, other column order, extra columns, blank lines, dashes, other line breaks in the header."""
    order = [6, 5, 4, 3, 2, 1, 0]
    header = [HEADER[place].replace("\n", "\r\n") for place in order]
    rows = [[row[place] for place in order] for row in (ROW, changed(number="1", clip="r_1.pt", range="0 - 10 s"))]
    rows[1][0] = rows[1][1] = "–"  # noqa: RUF001
    uri = write_table(table, [*rows[0], "seen"], [""] * 8, [], [*rows[1], ""], header=[*header, "remark"], bom=True)
    first, second = read_annotations(uri)
    assert first.intervals == ((1.0, 3.0), (8.0, 10.0))
    assert (second.window, second.onset_s, second.offset_s, second.intervals) == (1, 0.0, 10.0, ())


def test_intervals_are_put_in_order_and_may_touch(table: Path) -> None:
    row = changed(times="[(18, 20),(16,18), (10,11)]", frames="[(320,400),(240,320),(0,40)]")
    (annotation,) = read_annotations(write_table(table, row))
    assert annotation.intervals == ((0.0, 1.0), (6.0, 8.0), (8.0, 10.0))


def test_times_between_frames(table: Path) -> None:
    for frames in ("[(44,119)]", "[(45,120)]", "[(44,120)]"):
        (annotation,) = read_annotations(write_table(table, changed(times="[(11.11,12.99)]", frames=frames)))
        assert annotation.intervals == ((1.11, 2.99),)
    assert "disagrees" in problems_of(table, changed(times="[(11.11,12.99)]", frames="[(43,120)]"))


def test_windows_of_another_length(table: Path) -> None:
    """A table of 5 s windows, the last one of its recording shorter."""
    rows = [
        changed(range="5-10 seconds", times="[(9,10)]", frames="[(160,199)]"),
        changed(number="3", clip="r_3.pt", range="10-12.5 seconds", times="[(11,12.5)]", frames="[(40,99)]"),
    ]
    annotations = read_annotations(write_table(table, *rows))
    assert [(a.onset_s, a.offset_s, a.intervals) for a in annotations] == [
        (5.0, 10.0, ((4.0, 5.0),)),
        (10.0, 12.5, ((1.0, 2.5),)),
    ]


def test_a_table_without_rows(table: Path) -> None:
    assert read_annotations(write_table(table)) == []


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"recording": ""}, "column 'Recording wav File', '': empty"),
        ({"type": " "}, "column 'Board (Anomaly) Type', '': empty"),
        ({"number": "two"}, "'two': no window number"),
        ({"number": "0"}, "'0': no window number"),
        ({"clip": "r_3.pt"}, "'r_3.pt': not this recording and window; 'r_2.pt' expected"),
        ({"range": "10 to 20"}, "'10 to 20': no time range"),
        ({"range": "20-10 seconds"}, "no time range"),
        ({"range": "20-30 seconds", "times": "-", "frames": "-"}, "window 2 cannot start at 20 s"),
        ({"times": "(11,13)"}, "'(11,13)': malformed; write [(t1, t2), ...]"),
        ({"times": "[(11,13), (18;20)]"}, "malformed"),
        ({"times": "[(11,13), (18,)]"}, "malformed"),
        ({"times": "[(11,13)"}, "malformed"),
        ({"times": "__import__('os')"}, "malformed"),
        ({"times": "[(nan,13)]"}, "malformed"),
        ({"times": ""}, "malformed"),
        ({"frames": "[(40,120), ()]"}, "column 'Labels in Spectrogram', '[(40,120), ()]': malformed"),
        ({"times": "[(13,11), (18,20)]"}, "(13, 11) does not end after it begins"),
        ({"times": "[(11,11), (18,20)]"}, "(11, 11) does not end after it begins"),
        ({"times": "[(9,13), (18,20)]"}, "(9, 13) lies outside the clip, which spans 10 to 20 s"),
        ({"times": "[(11,13), (18,21)]"}, "(18, 21) lies outside the clip"),
        ({"times": "[(-1,13)]"}, "(-1, 13) lies outside"),
        ({"times": "[(11,15), (14,20)]"}, "(11, 15) and (14, 20) overlap"),
        ({"times": "[(11,20), (12,13), (15,16)]"}, "(11, 20) and (12, 13) overlap"),
        ({"frames": "[(40,120)]"}, "disagrees with the times [(11,13), (18,20)]"),
        ({"frames": "-"}, "which are [(40,120), (320,400)] in frames"),
        ({"times": "-"}, "disagrees with the times -, which are - in frames"),
        ({"frames": "[(40,119), (320,399)]"}, "disagrees"),
        ({"frames": "[(440,520), (720,799)]"}, "disagrees"),
    ],
)
def test_a_bad_cell(table: Path, cells: dict[str, str], reason: str) -> None:
    text = problems_of(table, changed(**cells))
    assert "row 2" in text
    assert reason in text


def test_all_problems_at_once(table: Path) -> None:
    text = problems_of(
        table,
        changed(times="[(13,11), (14,99)]"),
        [],
        changed(range="?", frames="?"),
        ROW,
        ROW,
        ROW[:4],
    )
    assert "6 problems" in text
    for line in (
        "row 2, column 'Time Anomaly Labels', '[(13,11), (14,99)]': (13, 11)",
        "row 2, column 'Time Anomaly Labels', '[(13,11), (14,99)]': (14, 99)",
        "row 4, column 'Spectrogram Time Range', '?'",
        "row 4, column 'Labels in Spectrogram', '?'",
        "row 6, 'r_2.pt': is in row 5 as well",
        "row 7: 4 cells instead of 7",
    ):
        assert line in text


def test_missing_columns(table: Path) -> None:
    with pytest.raises(AnnotationError, match="no column 'Spectrogram Number', 'Labels in Spectrogram'"):
        read_annotations(write_table(table, header=[name for place, name in enumerate(HEADER) if place not in (2, 6)]))
    table.write_text(";".join(HEADER[:5]) + "\n")
    with pytest.raises(AnnotationError, match="semicolons"):
        read_annotations(str(table))


@pytest.mark.parametrize("content", [b"", b"\r\n\r\n"])
def test_an_empty_file(table: Path, content: bytes) -> None:
    table.write_bytes(content)
    with pytest.raises(AnnotationError, match="found nothing"):
        read_annotations(str(table))


def test_files_that_are_no_table(table: Path) -> None:
    for content, reason in (
        ("Fichier,Durée\n".encode("latin-1"), "no text in UTF-8"),
        ("Recording\n".encode("utf-16"), "no text in UTF-8"),
        (b'"never closed', "no CSV table"),
    ):
        table.write_bytes(content)
        with pytest.raises(AnnotationError, match=reason):
            read_annotations(str(table))
    with pytest.raises(AnnotationError, match="does not exist"):
        read_annotations(str(table.with_name("none.csv")))
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_annotations(str(table.parent))


@st.composite
def annotation_tables(draw: st.DrawFn) -> list[Annotation]:
    """Windows of 10 s with intervals anywhere, in milliseconds."""
    keys = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=6, unique=True))
    annotations = []
    for recording, window in keys:
        edges = sorted(draw(st.lists(st.integers(0, 10_000), max_size=8, unique=True)))
        pairs = zip(edges[::2], edges[1::2], strict=False)
        intervals = tuple((first / 1000, second / 1000) for first, second in pairs)
        kind = draw(st.sampled_from(["board_stuck", 'a "split", wet board', "Nœud, é"]))
        onset_s = 10.0 * (window - 1)
        annotations.append(Annotation(f"rec, {recording}.wav", window, kind, onset_s, onset_s + 10.0, intervals))
    return annotations


@settings(deadline=None, derandomize=True)
@given(annotations=annotation_tables())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, annotations: list[Annotation]) -> None:
    uri = str(tmp_path_factory.mktemp("round") / "annotations.csv")
    write_annotations(annotations, uri)
    assert read_annotations(uri) == annotations
