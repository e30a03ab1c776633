"""Labels: written and read back in every format, whatever recordings are called; and as reference intervals."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from faithad.clips.annotations import Annotation, write_annotations
from faithad.clips.labels import csv_labels, label_studio
from faithad.clips.labels.files import FORMATS, label_texts, write_labels
from faithad.clips.labels.label import Label, alarm_text, kind_of, one_line
from faithad.clips.labels.names import file_name, look_up, plain_name, recording_name
from faithad.clips.labels.reference import read_reference
from faithad.clips.manifest import ClipRow, attach_annotations
from faithad.clips.problems import ProblemList
from faithad.errors import StudyError
from tests.label_files import read_labels

repeatable = settings(max_examples=30, deadline=None, derandomize=True)

NASTY = [
    "mill/a.wav",
    "mill/day 1/O'Brien \"two\".wav",
    "../../etc/passwd",
    "/etc/cron.d/x.wav",
    "mill/..",
    "mill/./a.wav",
    ".hidden/.a.wav",
    "a\tb\nc\rd.wav",
    "<script>alert(1)</script>.wav",
    "<img src=x onerror=alert(1)>.wav",
    "=HYPERLINK(\"http://x\").wav",
    "'=1+1",
    "-1.wav",
    "100 %.wav",
    "100%25.wav",
    "a%2Fb.wav",
    "CON",
    "ends with a dot.",
    "a:b|c?d*e\\f.wav",
    "录音/зал.wav",
    "a\u2028b\x85c\x0bd\x00e\x7f.wav",
    "x.BirdNET.wav.Table.2.selections.txt",
    "//double//slashes.wav",
    "\ufeffmark.wav",
    "s3://bucket/a.wav?x=1#y",
]  # fmt: skip

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.one_of(st.sampled_from(NASTY), any_text.filter(bool))
microseconds = st.integers(0, 172_800_000_000)
hertz = st.one_of(st.none(), st.integers(0, 192_000_000_000).map(lambda value: value / 1e6))


@st.composite
def any_label(draw: st.DrawFn) -> Label:
    onset, length = draw(microseconds), draw(st.integers(1, 100_000_000))
    low, high = draw(hertz), draw(hertz)
    if low is not None and high is not None and low > high:
        low, high = high, low
    words = draw(st.one_of(any_text, st.just(alarm_text(2.31, 440.0, 1200.4)), st.sampled_from(NASTY)))
    return Label(draw(names), onset / 1e6, (onset + length) / 1e6, words, low, high)


def in_order(labels: list[Label]) -> list[Label]:
    bounds = [(label, (label.low_hz or -1, label.high_hz or -1)) for label in labels]
    key = sorted(bounds, key=lambda one: (one[0].recording, one[0].onset_s, one[0].offset_s, one[0].text, *one[1]))
    return [label for label, _ in key]


# --- written and read back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@repeatable
@given(labels=st.lists(any_label(), max_size=6))
@example(labels=[Label(name, 1.0, 2.5, name, 10.0, 20.0) for name in NASTY])
@example(labels=[Label("a.wav", 1.0, 2.5, "same"), Label("a.wav", 1.0, 2.5, "same"), Label("a.wav", 1.0, 2.5, "")])
def test_what_is_written_is_read(format: str, labels: list[Label]) -> None:
    with tempfile.TemporaryDirectory() as top:
        folder = os.path.join(top, "labels")
        texts = FORMATS[format](labels)
        if not texts:
            return
        write_labels(texts, folder)
        found = read_labels(folder, submitted=True)
        everything = [os.path.join(place, name) for place, _, files in os.walk(top) for name in files]
    assert all(os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep) for path in everything)
    assert len(everything) == len(texts)
    keeps_controls = format in ("label-studio", "csv")
    expected = labels if keeps_controls else [replace(label, text=one_line(label.text)) for label in labels]
    assert in_order(found) == in_order(expected)


@repeatable
@given(name=st.one_of(names, st.lists(names, min_size=2, max_size=3).map("/".join)))
def test_a_recording_s_name_comes_back_from_a_file_s(name: str) -> None:
    path = file_name(name, "")
    assert recording_name(path) == name
    for part in path.split("/"):
        assert part
        assert not part.startswith(".")
        assert not set(part) & set('\x00\t\n\r<>:"|?*\\')


def test_a_file_that_somebody_named_keeps_its_name() -> None:
    assert recording_name("load 50%.wav") == "load 50%.wav"
    assert recording_name("a%20b.wav") == "a%20b.wav"  # we never write a space so


def test_names_too_long_for_a_disk_are_cut_and_stay_apart(tmp_path: Path) -> None:
    labels = [Label("m/" + 200 * "é" + letter, 0.0, 1.0, letter) for letter in "ab"]
    for format in ("audacity", "raven"):
        texts = FORMATS[format](labels)
        assert len(texts) == 2
        write_labels(texts, str(tmp_path / format))
        assert {label.text for label in read_labels(str(tmp_path / format))} == {"a", "b"}


@pytest.mark.parametrize("format", ["audacity", "raven"])
@pytest.mark.parametrize("letter", ["x", "é", "%", "录"])
def test_a_recording_whose_name_was_cut_is_found_again(tmp_path: Path, format: str, letter: str) -> None:
    """Names of 255 bytes, the most that file systems allow, in folders of long names."""
    longest = (letter * 255).encode()[:251].decode(errors="ignore") + ".wav"
    folder = (letter * 255).encode()[:250].decode(errors="ignore")
    paths = [f"{place}/{longest}" for place in ("week", f"week/{folder}a", f"week/{folder}b")] + ["week/short.wav"]
    write_labels(FORMATS[format]([Label(path, 0.0, 1.0, path) for path in paths]), str(tmp_path))
    find = look_up([*paths, f"week/{longest[:-5]}.wav"])
    read = read_labels(str(tmp_path))
    assert len(read) == 4
    for label in read:
        assert find(label.recording) == [label.text]


def test_plain_names_are_plain() -> None:
    assert [plain_name(name) for name in ("../a b<c>.wav", "зал 1", "...", "x" * 99)] == [
        "a_b_c_.wav", "зал_1", "recording", "x" * 80,
    ]  # fmt: skip


def test_an_expert_s_files_are_not_overwritten(tmp_path: Path) -> None:
    texts = FORMATS["audacity"]([Label("a.wav", 1.0, 2.0, "x"), Label("b.wav", 1.0, 2.0, "x")])
    write_labels(texts, str(tmp_path))
    write_labels(texts, str(tmp_path))  # the same again is no loss
    (tmp_path / "a.wav.txt").write_text("1.5\t1.8\tstuck board\n")
    with pytest.raises(StudyError, match=r"somebody's work: a\.wav\.txt\. Give another folder"):
        write_labels(texts, str(tmp_path))
    assert (tmp_path / "a.wav.txt").read_text() == "1.5\t1.8\tstuck board\n"
    write_labels({"label_studio_tasks.json": "[]"}, str(tmp_path))  # another kind may lie beside them


def test_labels_on_an_object_store(object_store: str) -> None:
    labels = [Label(name, 1.0, 2.0, "x") for name in ("m/100 %.wav", "m/../a?b#c.wav", "зал/a b.wav")]
    write_labels(FORMATS["audacity"](labels), f"{object_store}/labels")
    assert in_order(read_labels(f"{object_store}/labels")) == in_order(labels)


def test_no_cell_of_a_table_is_a_formula() -> None:
    """Neither where commas separate cells, nor where semicolons do, whether or not quotes are minded."""
    names = [*NASTY, "x;=cmd|'calc'!A0;.wav", ";;@x", "a;'+1;-2"]
    labels = [Label(name, 1.0, 2.0, name) for name in names]
    (text,) = FORMATS["csv"](labels).values()
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert "'=1+1" in labels[11].text
    assert "x;'=cmd|'calc'!A0;.wav" in cells
    cells += [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=";") for cell in row]
    cells += [cell for line in text.split("\r\n") for cell in line.replace('"', "").split(";")]
    assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]
    problems = ProblemList()
    assert [label.recording for label in csv_labels.parse(text, problems)] == names
    assert problems == problems.unread == []


def test_every_cell_of_a_table_is_quoted() -> None:
    (text,) = FORMATS["csv"]([Label("x;y.wav", 1.0, 2.0, 'say "a"'), Label("b.wav", 1.0, 2.5, "", 440.0)]).values()
    assert text.split("\r\n") == [
        '"recording","onset_s","offset_s","text","low_hz","high_hz"',
        '"x;y.wav","1.000000","2.000000","say ""a""","",""',
        '"b.wav","1.000000","2.500000","","440.000000",""',
        "",
    ]


def test_composed_and_decomposed_letters_are_the_same() -> None:
    """macOS writes é as e and an accent; a person's keyboard does not."""
    decomposed, composed = "caf" + "e\u0301 20240506_070000.wav", "caf\u00e9 20240506_070000.wav"
    assert look_up([f"week/{decomposed}"])(composed) == [f"week/{decomposed}"]
    assert look_up([f"week/{decomposed}"])("caf\u00e9 20240506_070000") == [f"week/{decomposed}"]
    assert look_up([f"week/{composed}"])(f"elsewhere/week/{decomposed}") == [f"week/{composed}"]
    two = [f"caf\u00e9/{composed}", f"th\u00e9/{composed}"]
    assert look_up(two)(f"cafe\u0301/{decomposed}") == two[:1]
    both = [f"week/{composed}", f"week/{decomposed}"]
    assert look_up(both)(f"week/{decomposed}") == both[1:]
    assert sorted(look_up(both)(composed)) == sorted(both)


# --- as other tools write them ----------------------------------------------------------------------------------------


def test_audacity(tmp_path: Path) -> None:
    """The example of Audacity's manual, with its line of bounds, a line of a format to come, a mark and CRLF."""
    text = (
        "3.400000\t6.100000\tregion\r\n2.5\t3\tlow undefined\r\n\\\t-1.000000\t6334.588867\r\n\\\tmore\r\n\r\n7\t8\r\n"
    )
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_labels(str(tmp_path / "a.txt")) == [
        Label("a", 3.4, 6.1, "region"),
        Label("a", 2.5, 3.0, "low undefined", None, 6334.588867),
        Label("a", 7.0, 8.0, ""),
    ]


RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def test_raven_lists_a_selection_once_per_view(tmp_path: Path) -> None:
    rows = [
        RAVEN + "\tAnnotation",
        "1\tWaveform 1\t1\t1.5\t2.25\t\t\tstuck",
        "1\tSpectrogram 1\t1\t1.5\t2.25\t440.0\t1200.0\tstuck",
        "2\tSpectrogram 1\t1\t5\t6\t440\t1200",
    ]
    (tmp_path / "a.Table.1.selections.txt").write_text("\r\n".join(rows))
    assert read_labels(str(tmp_path)) == [
        Label("a", 1.5, 2.25, "stuck", 440.0, 1200.0),
        Label("a", 5.0, 6.0, "", 440.0, 1200.0),
    ]


@pytest.mark.parametrize(
    ("columns", "cells", "kind"),
    [
        ("Annotation\tSpecies", "knock\tx", "knock"),
        ("Annotation\tSpecies", "\tknock", "knock"),
        ("Common Name", "knock", "knock"),
        ("Species\tSpecies Code", "knock\tkn", "knock"),
        ("species Code", "kn", "unnamed"),
    ],
)
def test_kinds_in_selection_tables_of_other_programs(tmp_path: Path, columns: str, cells: str, kind: str) -> None:
    (tmp_path / "a.txt").write_text(f"Selection\tBegin Time (s)\tEnd Time (s)\t{columns}\n1\t1\t3\t{cells}\n")
    (annotation,) = reference = read_reference(str(tmp_path))
    assert annotation.anomaly_type == kind
    unread = {"Species\tSpecies Code": ["Columns that are not read: 'Species Code'."],
              "species Code": ["Columns that are not read: 'species Code'; 1 label without a kind will be called "
                               "'unnamed'."]}  # fmt: skip
    assert list(reference.notes) == unread.get(columns, [])


def test_where_birdnet_hears_nothing_there_is_no_event(tmp_path: Path) -> None:
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tCommon Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)"
    rows = ["1\t0\t3\tnocall\tnocall\t1.0\t/data/a.wav\t0", "2\t3\t6\tGreat Tit\tgretit1\t0.9\t/data/a.wav\t3"]
    (tmp_path / "a.BirdNET.selection.table.txt").write_text("\n".join([head, *rows]))
    (tmp_path / "b.txt").write_text("0\t3\tnocall, nocall\t1.0\n3\t6\tNocall\n6\t9\tParus major, Great Tit\t0.8\n")
    reference = read_reference(str(tmp_path))
    assert [annotation.anomaly_type for annotation in reference] == ["Great Tit", "Parus major, Great Tit 0.8"]
    assert reference.notes == (
        "3 labels 'nocall' left out: nothing is heard there.",
        "Columns that are not read: 'Confidence', 'Species Code'.",
    )


@pytest.mark.parametrize("separator", ["\t", ","])
def test_tables_as_desed_has_them(tmp_path: Path, separator: str) -> None:
    lines = ["filename,onset,offset,event_label", "a.wav,1.0,3.0,knock", "b.wav,,,", "a.wav,4,5.5,squeak"]
    (tmp_path / "strong.tsv").write_text("\n".join(lines).replace(",", separator))
    assert read_labels(str(tmp_path)) == [Label("a.wav", 1.0, 3.0, "knock"), Label("a.wav", 4.0, 5.5, "squeak")]


def test_raven_tables_over_several_recordings(tmp_path: Path) -> None:
    rows = [
        RAVEN + "\tBegin File\tFile Offset (s)\tEnd File",
        "1\tSpectrogram 1\t1\t61.5\t62.25\t440\t1200\tb.wav\t1.5\tb.wav",
        "2\tSpectrogram 1\t1\t3\t4\t440\t1200\ta.wav\t3\ta.wav",
    ]
    path = tmp_path / "all.txt"
    path.write_text("\n".join(rows))
    assert read_labels(str(path)) == [
        Label("b.wav", 1.5, 2.25, "", 440.0, 1200.0),
        Label("a.wav", 3.0, 4.0, "", 440.0, 1200.0),
    ]


@pytest.mark.parametrize(
    ("column", "value", "recording"),
    [
        ("Begin Path", r"D:\mill\day1\a.wav", "D:/mill/day1/a.wav"),
        ("Begin Path", "/mill/day1/a.wav", "/mill/day1/a.wav"),
        ("Begin File", "a.flac", "a.flac"),
        ("Comment", "x", "b"),
    ],
)
def test_what_raven_calls_a_recording(tmp_path: Path, column: str, value: str, recording: str) -> None:
    path = tmp_path / "b.BirdNET.selection.table.txt"
    path.write_text(f"{RAVEN}\t{column}\n1\tSpectrogram 1\t1\t1\t2\t440\t1200\t{value}\n")
    assert [label.recording for label in read_labels(str(path))] == [recording]


def task(*regions: tuple[float, float, str], audio: str = "a.wav", of: str = "annotations", **more: object) -> dict:  # type: ignore[type-arg]
    results = [
        {"id": "r", "type": "labels", "from_name": "label", "to_name": "audio", "original_length": 60.0,
         "value": {"start": start, "end": end, "channel": 0, "labels": [name]}}
        for start, end, name in regions
    ]  # fmt: skip
    return {"id": 7, "data": {"audio": audio}, of: [{"result": results, "was_cancelled": False, **more}]}


@pytest.mark.parametrize(
    ("audio", "recording"),
    [
        ("/data/upload/3/0a1b2c3d-a%20b.wav", "a b.wav"),
        ("/data/local-files/?d=mill/day%201/a.wav", "mill/day 1/a.wav"),
        ("https://host/mill/a%20b.wav?token=x", "/mill/a b.wav"),
        ("s3://bucket/mill/a.wav", "/mill/a.wav"),
        ("mill/a.wav", "mill/a.wav"),
    ],
)
def test_what_label_studio_calls_a_recording(tmp_path: Path, audio: str, recording: str) -> None:
    (tmp_path / "export.json").write_text(json.dumps([task((1, 2.5, "stuck"), audio=audio)]))
    assert read_labels(str(tmp_path)) == [Label(recording, 1.0, 2.5, "stuck")]


def test_label_studio_reads_what_persons_made(tmp_path: Path) -> None:
    """Not predictions, not skipped annotations, not those beside a ground truth, not transcriptions."""
    several = task((1, 2, "stuck"))
    several["annotations"] += task((3, 4, "x"), was_cancelled=True)["annotations"]
    several["annotations"] += task((5, 6, "broken"))["annotations"]
    several["annotations"][0]["result"].append({"id": "t", "type": "textarea", "value": {"start": 1, "end": 2}})
    several["predictions"] = task((7, 8, "alarm"))["annotations"]
    truth = task((1, 2, "mine"), audio="b.wav", ground_truth=True)
    truth["annotations"] += task((3, 4, "theirs"))["annotations"]
    (tmp_path / "export.json").write_text(json.dumps([several, truth]))
    found = [(label.recording, label.text) for label in read_labels(str(tmp_path))]
    assert found == [("a.wav", "stuck"), ("a.wav", "broken"), ("b.wav", "mine")]


def test_a_label_that_was_changed_in_label_studio_is_the_new_one() -> None:
    texts = FORMATS["label-studio"]([Label("a.wav", 1.0, 2.0, alarm_text(2.3, 440, 1200), 440.0, 1200.0)])
    tasks = json.loads(texts[label_studio.TASKS])
    assert tasks[0]["predictions"][0]["result"][0]["value"]["labels"] == ["alarm"]
    tasks[0]["annotations"] = tasks[0].pop("predictions")
    tasks[0]["annotations"][0]["result"][0]["value"]["labels"] = ["stuck board"]
    problems = ProblemList()
    (label,) = label_studio.parse(json.dumps(tasks), problems)
    assert (label.text, problems) == ("stuck board", [])


def test_label_studio_s_interface_knows_the_labels_of_the_tasks() -> None:
    words = [alarm_text(2.3, 440, 1200), *(name for name in NASTY if one_line(name) == name), "\uffff", ""]
    labels = [Label("a.wav", 1.0 + number, 2.0 + number, text) for number, text in enumerate(words)]
    texts = label_studio.files(labels, places={"a.wav": "/data/mill 1/a.wav"})
    view = xml.etree.ElementTree.fromstring(texts[label_studio.CONFIG])
    (made,) = json.loads(texts[label_studio.TASKS])
    results = made["predictions"][0]["result"]
    used = {kind for result in results for kind in result["value"]["labels"]}
    assert used - {"\uffff"} <= {label.get("value") for label in view.iter("Label")}
    assert view.find("Labels").get("name") == results[0]["from_name"]  # type: ignore[union-attr]
    assert view.find("Audio").get("name") == results[0]["to_name"]  # type: ignore[union-attr]
    assert made["data"]["audio"] == "/data/local-files/?d=data/mill%201/a.wav"


# --- as reference intervals -------------------------------------------------------------------------------------------


def test_a_folder_of_labels_in_several_formats(tmp_path: Path) -> None:
    (tmp_path / "day1").mkdir()
    (tmp_path / "day1" / "a.wav.txt").write_text("1\t2\tstuck\n0.5\t0.75\t\n")
    (tmp_path / "b.json").write_text(json.dumps(task((3, 5, "broken"), audio="b.wav")))
    (tmp_path / "c.csv").write_text("onset_s,recording,offset_s\n61,c.wav,62\n")
    (tmp_path / "d.wav.txt").write_text("")  # looked through, nothing found
    published = [Annotation("e.wav", 2, "board_stuck", 10.0, 20.0, ((1.0, 2.0),))]
    write_annotations(published, str(tmp_path / "e.csv"))
    assert sorted(read_reference(str(tmp_path)), key=lambda one: (one.recording, one.window)) == [
        Annotation("b.wav", 1, "broken", 3.0, 5.0, ((0.0, 2.0),)),
        Annotation("c.wav", 1, "unnamed", 61.0, 62.0, ((0.0, 1.0),)),
        Annotation("day1/a.wav", 1, "unnamed", 0.5, 0.75, ((0.0, 0.25),)),
        Annotation("day1/a.wav", 2, "stuck", 1.0, 2.0, ((0.0, 1.0),)),
        *published,
    ]


def test_the_published_table_is_read_as_such(shared_data: Path) -> None:
    assert len(read_reference(str(shared_data / "planer_annotations.csv"))) == 105


@pytest.mark.parametrize("format", FORMATS)
def test_labels_come_back_to_the_clips_they_were_made_from(tmp_path: Path, format: str) -> None:
    recordings = ["mill/day1/a.wav", "mill/day2/a.wav", "mill/O'Brien <b>\t.wav"]
    rows = [ClipRow(name, f"/{name}", 10.0 * k, 10.0, "test") for name in recordings for k in range(3)]
    labels = [Label(name, 12.0, 21.5, alarm_text(2.0, 0.0, 100.0)) for name in recordings]
    texts = FORMATS[format](labels)
    if format == "label-studio":  # as if an expert had submitted them
        texts = {label_studio.TASKS: texts[label_studio.TASKS].replace("predictions", "annotations")}
    write_labels(texts, str(tmp_path))
    found = attach_annotations(rows, read_reference(str(tmp_path)))
    assert [row.label for row in found] == 3 * [0, 1, 1]
    assert [row.intervals for row in found] == 3 * [(), ((2.0, 10.0),), ((0.0, 1.5),)]
    assert {row.anomaly_type for row in found if row.label} == {"alarm"}


def test_labels_that_overlap_are_one_interval_of_a_clip(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\t3\tstuck\n2\t4\tbroken\n6\t7\tbroken\n")
    (row,) = attach_annotations([ClipRow("m/a.wav", "/a", 0.0, 10.0, "test")], read_reference(str(tmp_path)))
    assert row.intervals == ((1.0, 4.0), (6.0, 7.0))


PATHS = ["m/day1/a.wav", "m/day2/a.wav", "m/b.wav", "m/c.flac", "m/c.wav", "d"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("m/day1/a.wav", ["m/day1/a.wav"]),
        ("day2/a.wav", ["m/day2/a.wav"]),
        ("D:/data/m/day2/a.wav", ["m/day2/a.wav"]),
        ("a.wav", ["m/day1/a.wav", "m/day2/a.wav"]),
        ("day1/a", ["m/day1/a.wav"]),
        ("elsewhere/b.wav", ["m/b.wav"]),
        ("b", ["m/b.wav"]),
        ("c", ["m/c.flac", "m/c.wav"]),
        ("c.wav", ["m/c.wav"]),
        ("d", ["d"]),
        ("b.flac", []),
        ("1/a.wav", ["m/day1/a.wav", "m/day2/a.wav"]),
        ("", []),
    ],
)
def test_which_recording_is_meant(name: str, found: list[str]) -> None:
    assert look_up(PATHS)(name) == found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (alarm_text(2.31, 440.0, 1200.4), "alarm"),
        (alarm_text(float("nan"), 0.0, 12.0), "alarm"),
        (alarm_text(12345.6, 0.0, 1e6), "alarm"),
        (" stuck board ", "stuck board"),
        ("alarm of the fire brigade", "alarm of the fire brigade"),
        ("", ""),
    ],
)
def test_what_a_label_is_about(text: str, kind: str) -> None:
    assert kind_of(text) == kind
    assert alarm_text(2.31, 440.0, 1200.4) == "alarm 2.3x, 440–1,200 Hz"  # noqa: RUF001


def test_one_file_is_listed_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1\t2\tx\n")
    assert label_texts(str(tmp_path / "a.txt")) == {"a.txt": "1\t2\tx\n"}
