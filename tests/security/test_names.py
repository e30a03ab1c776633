"""Names of files, annotations and values of tables are data: nowhere do they become markup, commands or other paths."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import shlex
import urllib.parse
from pathlib import Path
from xml.etree import ElementTree

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from faithad import cli, parquet, schemas, storage
from faithad.audit.exports import export_clips, export_events
from faithad.clips.inputs import find_left_out, find_recordings
from faithad.clips.labels import audacity, csv_labels, label_studio, raven
from faithad.clips.labels.label import Label
from faithad.clips.labels.names import file_name, plain_name
from faithad.clips.problems import ProblemList
from faithad.config.study import load_study
from faithad.errors import ConfigError, StudyError, shown
from faithad.progress import console
from faithad.report.audit_page import render_audit_report
from faithad.report.search_page import render_search_report
from faithad.report.study_page import render_report
from faithad.runs.stages import ResumableStage
from tests.report.audit.conftest import build_audit
from tests.report.conftest import Page
from tests.report.study.conftest import build_study
from tests.report.test_search_page import write_search

MARKUP = [
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "</style><svg onload=alert(1)>",
    "]]><!--{{ 7 * 7 }}{% raw %}$\\frac$",
]
CLIMBERS = ["../../x", "/etc/x", "..\\x", "a/../../x", "~/x", "C:x", "\x00x", "x" * 300, "", ".", "..", "-rf", "CON"]
# A link and a colour; a line of its own; text that runs backwards; and rich's own markup.
CODES = "\x1b]8;;http://x\x07a\x1b[31mred\x9b2J\rover\nline\u202e[bold][/] :bomb:"
# Columns whose values say where a row belongs.
_PLACES = {"clip_id", "split", "status", "metric", "pooling", "mode", "scope", "protocol", "stage", "trial", "clip_ids"}


# --- markup -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["study", "audit", "search"])
def test_no_value_of_a_table_becomes_markup(tmp_path: Path, page: str) -> None:
    hostile = "".join(MARKUP)
    if page == "study":
        root, render = build_study(tmp_path, seeds=(0,), n_recordings=4), render_report
    elif page == "audit":
        root, render = build_audit(tmp_path, hours=0.5, boards=2), render_audit_report
    else:
        root, render = write_search(tmp_path, seeds=(0,)), render_search_report
    n_changed = sum(_rewrite(file, hostile) for file in tmp_path.rglob("*.parquet"))
    for file in tmp_path.rglob("*.yaml"):
        values = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump(values | {"name": hostile, hostile: hostile}))
    html = storage.read_text(render(root))
    read = Page(html)
    read.check_is_whole(html)
    assert n_changed
    assert hostile in "".join(read.texts)
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert not [value for value in read.values("href") if value.startswith("javascript")]
    (policy,) = [value for value in read.values("content") if value.startswith("default-src")]
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    scripts = sources.pop("script-src", "").split() if page == "audit" else []
    assert all(source.startswith("'sha256-") for source in scripts), "no script but those that the page knows by hash"
    media = {"media-src": "data:"} if page == "audit" else {}
    assert sources == {"default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'"} | media


def _rewrite(file: Path, hostile: str) -> int:
    """Put markup before each text of a table; how many columns that were."""
    table = pq.read_table(file)
    n_changed = 0
    for place, name in enumerate(table.column_names):
        if table.schema.field(name).type == pa.string() and name not in _PLACES and table.num_rows:
            # Of all types of anomaly together, a summary says `all`.
            values = [value if value in (None, "all") else f"{hostile}{value}" for value in table[name].to_pylist()]
            if name == "settings":  # of a trial, as JSON
                values = [json.dumps(json.loads(text) | {hostile: hostile}) for text in table[name].to_pylist()]
            table = table.set_column(place, table.schema.field(name), pa.array(values, pa.string()))
            n_changed += 1
    pq.write_table(table, file)
    return n_changed


@pytest.mark.parametrize("hostile", [*MARKUP, *CLIMBERS, CODES, "a\tb\r\nc", '"; =1+1'])
def test_a_name_stays_a_name_in_labels(hostile: str) -> None:
    labels = [Label(f"mill/{hostile}.wav", 0.0, 1.0, hostile, 100.0, 200.0), Label(hostile or "-", 1.0, 2.0, "x")]
    for text in audacity.files(labels).values():
        assert all(line.count("\t") == 2 for line in text.splitlines() if line)
    for text in raven.files(labels).values():
        assert all(line.count("\t") == len(raven.HEADER) - 1 for line in text.split("\n") if line)
    written = label_studio.files(labels)
    tasks = json.loads(written[label_studio.TASKS])
    assert sorted(task["data"]["recording"] for task in tasks) == sorted(label.recording for label in labels)
    offered = ElementTree.fromstring(written[label_studio.CONFIG])
    assert {element.tag for element in offered.iter()} == {"View", "Labels", "Label", "Audio"}
    table = csv_labels.files(labels)[csv_labels.FILE_NAME]
    for row in list(csv.reader(io.StringIO(table, newline="")))[1:]:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in row if not _is_number(cell))
    problems = ProblemList()
    back = csv_labels.parse(table, problems)
    assert problems == []
    assert [(label.recording, label.text) for label in back] == [(label.recording, label.text) for label in labels]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("sign", "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
def test_no_cell_is_a_formula(sign: str) -> None:
    cell = f'{sign}HYPERLINK("http://x","y")'
    table = csv_labels.files([Label(cell, 0.0, 1.0, cell)])[csv_labels.FILE_NAME]
    (row,) = csv.DictReader(io.StringIO(table, newline=""))
    assert (row["recording"], row["text"]) == (f"'{cell}", f"'{cell}")


# --- paths ------------------------------------------------------------------------------------------------------------


@given(
    st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "\x00", "\\", "C:", "x" * 300]), min_size=1).map("/".join)
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_no_name_leads_out_of_its_folder(recording: str) -> None:
    name = file_name(recording, ".txt")
    assert posixpath.normpath(f"/out/{name}") == f"/out/{name}"
    for part in name.split("/"):
        assert not part.startswith(".")
        assert 0 < len(part.encode("utf-8", "surrogatepass")) <= 255
        assert not set(part) & set('\\:*?"<>|\x00\n\r\t')
    assert "/" not in plain_name(recording)
    assert not plain_name(recording).startswith(".")


@pytest.mark.parametrize("climber", CLIMBERS)
def test_exports_write_below_their_folder_only(tmp_path: Path, climber: str) -> None:
    """The audit is somebody else's: its recordings, the ids of its events and the places are all made up."""
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, np.zeros(8_000), 8_000)
    out = build_audit(tmp_path / "a" / "b" / "out", hours=0.5, boards=2)
    for name, schema in (("manifest", schemas.MANIFEST), ("events", schemas.EVENTS)):
        rows = parquet.read_table(f"{out}/{name}.parquet").to_pylist()
        for number, row in enumerate(rows):
            row["recording"] = climber
            if name == "manifest":
                row["uri"] = str(sound)
            else:
                row["event_id"] = f"../../{number}"
                row["parts"] = [part | {"recording": climber, "onset_s": 0.0, "offset_s": 1.0} for part in row["parts"]]
        parquet.write_table(pa.Table.from_pylist(rows, schema=schema), f"{out}/{name}.parquet", schema=schema)
    before = _tree(tmp_path)
    to = tmp_path / "a" / "b" / "to"
    for format in ("audacity", "raven", "label-studio", "csv"):
        export_events(out, str(to / format), format=format)
    assert "WAV files of" in export_clips(out, str(to / "clips"), margin_s=0)
    new = _tree(tmp_path) - before
    assert len(new) >= 6
    assert all(Path(path).is_relative_to(to) for path in new)
    assert len(list((to / "clips").rglob("*.wav"))) == len(list((to / "clips").iterdir()))


def _tree(folder: Path) -> set[str]:
    return {os.path.join(above, name) for above, _, names in os.walk(folder) for name in names}


# --- terminals and shells ---------------------------------------------------------------------------------------------


def test_codes_of_a_terminal_take_no_effect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert shown(CODES).isprintable()
    error = StudyError(f"{CODES} cannot be read")
    console.print(f"removing {CODES}")
    stage = ResumableStage(str(tmp_path), "index", {}, ("[red] :bomb: \x1b[2J",), result="x")
    (tmp_path / stage.outputs[0]).touch()
    stage.reset()
    said = capsys.readouterr().out
    for text in (str(error), said):
        assert all(sign.isprintable() or sign == "\n" for sign in text)
        assert "\\x1b[31mred" in text or text is said
    assert "[bold][/] :bomb:" in said
    assert "[red] :bomb: \\x1b[2J" in said


@pytest.mark.ray
@pytest.mark.parametrize("name", ["it's $(touch pwned) `touch pwned`; touch pwned #", "a [/red] :bomb: b", "-c x"])
def test_commands_that_are_printed_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / name
    monkeypatch.chdir(tmp_path)
    said = [_faithad(monkeypatch, capsys, "synth", f"--out={name}", "--hours=0.05")]
    study = f"{name}/study.yaml"
    assert yaml.safe_load((folder / "study.yaml").read_text())["data"]["root"] == str(folder)
    said.append(_faithad(monkeypatch, capsys, "index", f"--config={study}"))
    # Results of other settings are named and removed.
    said.append(_faithad(monkeypatch, capsys, "index", f"--config={study}", "--set=data.clip_s=5", "--redo"))
    assert f"index: removing {folder / 'study' / 'manifest.parquet'}" in said[-1]
    following = (["study"], ["train"], ["train", "--set", "data.clip_s=5"])
    for text, (command, *changed) in zip(said, following, strict=True):
        pasted = shlex.split(text.rpartition("Next: ")[2])
        assert pasted == ["faithad", command, "--config", study, *changed]
    assert not (tmp_path / "pwned").exists()


def _faithad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["faithad", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    return said.out


@pytest.mark.parametrize("key", ["root", "data.root", "data.annotations"])
def test_no_setting_breaks_a_line(tmp_path: Path, key: str) -> None:
    """It would end a comment of `best.yaml`, a line of a log or a cell."""
    text = yaml.safe_dump({"name": "mill", "root": "r", "data": {"root": "m", "train": ["a"], "test": ["b"]}})
    (tmp_path / "study.yaml").write_text(text)
    for sign in ("\\n", "\\r", "\\e", "\\0", "\\x9b"):
        with pytest.raises(ConfigError, match="holds control characters"):
            load_study(str(tmp_path / "study.yaml"), overrides=[f'{key}="a{sign}b"'])


def test_keys_of_an_object_store_stay_below_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """There `..` is a name like any other; so are codes of bytes, and the signs that begin options of a URI."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    for name, value in {
        "ENDPOINT_URL": endpoint,
        "DEFAULT_REGION": "us-east-1",
        "EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    client = boto3.client("s3")
    client.create_bucket(Bucket="mill")
    names = ["%2e%2e%2fother%2fa.wav", "../other/b.wav", "../../c.wav", "q?region=x#d.wav", "\x1b[31m.wav", "e.wav"]
    for key in (*(f"week/{name}" for name in names), "other/a.wav", "other/b.wav"):
        client.put_object(Bucket="mill", Key=key, Body=b"")
    found = find_recordings([("test", "s3://mill/week")])
    left_out = [row["recording"] for row in find_left_out(["s3://mill/week"])]
    server.stop()
    assert {recording.path for recording in found} == {f"week/{name}" for name in names if ".." not in name}
    assert sorted(left_out) == ["week/../../c.wav", "week/../other/b.wav"]
    for recording in found:
        path = recording.uri.removeprefix("s3://mill/week/")
        assert not set(path) & set("/?#\n\x1b")
        assert urllib.parse.unquote(path) == recording.path.removeprefix("week/")
