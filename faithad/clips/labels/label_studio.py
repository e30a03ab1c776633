"""Label Studio's tasks as JSON: a list with one task per recording, or a single task.

A task has `data.audio`, the location of the sound, and results of the type `labels`: `value.start` and `value.end` in
seconds of the sound, `value.labels` (https://labelstud.io/guide/task_format). We write what a model found under
`predictions` and read only `annotations`, which people make: a prediction that nobody looked at would agree with
itself. If some annotations of a task are marked as ground truth, we read these alone, else all; never those that were
skipped (`was_cancelled`).

`data.recording` (the full name of the recording) and `meta` (text and frequency bounds, for which Label Studio has no
place) are ours; Label Studio keeps both.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from faithad.clips.labels.label import Label, by_recording, checked, kind_of, one_line
from faithad.clips.problems import ProblemList

TASKS, CONFIG = "label_studio_tasks.json", "label_studio_config.xml"
_FROM, _TO, _KIND = "label", "audio", "labels"

# An interface offers these labels besides those of the tasks.
_OFFERED = ("alarm", "anomaly")
_NO_XML = re.compile(r"[\ufffe\uffff]")
# Label Studio puts this before the name of an uploaded file.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")

Json = dict[str, Any]


def files(labels: Iterable[Label], *, places: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tasks, and the labelling interface for a new project, by file name.

    Args:
        labels: written as predictions.
        places: location of each recording, local or a URI; a recording without one is written by its name. A local
            path is written as Label Studio's local storage serves it, with / as the document root.
    """
    tasks = []
    kinds = {*_OFFERED}
    for recording, group in by_recording(labels).items():
        place = (places or {}).get(recording)
        results = [_result(label, f"label-{number}") for number, label in enumerate(group, start=1)]
        data = {"audio": recording if place is None else _served(place), "recording": recording}
        tasks.append({"data": data, "predictions": [{"result": results}]})
        kinds |= {kind_of(label.text) for label in group}
    return {TASKS: json.dumps(tasks, ensure_ascii=False, indent=1), CONFIG: _interface(kinds)}


def parse(text: str, problems: ProblemList) -> list[Label]:
    """The labels that people gave to all tasks."""
    try:
        tasks = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        problems.append(f"no JSON: {error}")
        return []
    labels: list[Label] = []
    for number, task in enumerate(tasks if isinstance(tasks, list) else [tasks], start=1):
        recording, results = None, list[Json]()
        with problems.at(f"task {number}"):
            recording = _recording(task)
        if recording is None:
            continue
        place = f"task {number} ({recording})"
        with problems.at(place):
            results += _results(task)
        for result in results:
            with problems.at(f"{place}, region {result.get('id')!r}"):
                labels.append(_label(result, recording))
    return labels


def _interface(kinds: Iterable[str]) -> str:
    """The labelling interface for tasks with these labels: Label Studio refuses labels that it does not name."""
    shown = sorted({_NO_XML.sub(" ", one_line(kind)) for kind in kinds if kind})
    offered = "".join(f"    <Label value={quoteattr(kind)}/>\n" for kind in shown)
    return (
        f'<View>\n  <Labels name="{_FROM}" toName="{_TO}">\n{offered}  </Labels>\n'
        f'  <Audio name="{_TO}" value="$audio"/>\n</View>\n'
    )


def _result(label: Label, name: str) -> Json:
    kind = kind_of(label.text)
    value = {"start": round(label.onset_s, 6), "end": round(label.offset_s, 6), "channel": 0}
    meta: Json = {} if kind == label.text else {"text": [label.text]}
    meta |= {key: hz for key, hz in (("low_hz", label.low_hz), ("high_hz", label.high_hz)) if hz is not None}
    return {
        "id": name,
        "from_name": _FROM,
        "to_name": _TO,
        "type": _KIND,
        "value": {**value, _KIND: [kind] if kind else []},
        **({"meta": meta} if meta else {}),
    }


def _results(task: Json) -> Iterator[Json]:
    """The intervals with labels that people made in a task."""
    annotations = [annotation for annotation in _list(task, "annotations") if not annotation.get("was_cancelled")]
    if not annotations:
        raise ValueError(
            "nobody has annotated it; submit it in Label Studio (without any region if there is nothing to hear), or "
            "remove the task"
        )
    for annotation in [annotation for annotation in annotations if annotation.get("ground_truth")] or annotations:
        yield from (result for result in _list(annotation, "result") if result.get("type") == _KIND)


def _label(result: Json, recording: str) -> Label:
    value = _dict(result, "value")
    onset_s, offset_s = (_number(value, key) for key in ("start", "end"))
    kinds = value.get(_KIND, [])
    if not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise ValueError(f"its labels are no list of texts: {kinds!r}")
    text = _text(", ".join(kinds))
    meta: Json = result["meta"] if isinstance(result.get("meta"), dict) else {}
    ours = meta.get("text")
    ours = ours[0] if isinstance(ours, list) and ours else ours
    if isinstance(ours, str) and kind_of(ours) == text:  # else somebody has changed the label since
        text = _text(ours)
    low_hz, high_hz = (_number(meta, key) if key in meta else None for key in ("low_hz", "high_hz"))
    return checked(Label(recording, onset_s, offset_s, text, low_hz, high_hz), noun="region")


def _recording(task: Any) -> str:
    """The recording of a task: the full name if we wrote it, else the name of the sound file."""
    if not isinstance(task, dict):
        raise ValueError("it is no object with 'data' and 'annotations'; export the project as 'JSON'")
    data = _dict(task, "data")
    if isinstance(data.get("recording"), str) and data["recording"]:
        return _text(data["recording"])
    audio = data.get("audio")
    if not isinstance(audio, str) or not audio:
        raise ValueError("its data has no text 'audio', the location of the recording")
    served = urllib.parse.urlsplit(audio)
    local = urllib.parse.parse_qs(served.query).get("d")
    if local and served.path.rstrip("/").endswith("local-files"):
        return _text(local[0])
    path = urllib.parse.unquote(served.path) if served.scheme or audio.startswith("/data/") else audio
    folder, slash, name = path.rpartition("/")
    return _text(_UPLOADED.sub("", name, count=1) if "/upload/" in audio else folder + slash + name)


def _served(place: str) -> str:
    if "://" in place:
        return place
    return "/data/local-files/?d=" + urllib.parse.quote(place.lstrip("/"))


def _dict(owner: Json, key: str) -> Json:
    value = owner.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"it has no object {key!r}")
    return value


def _list(owner: Json, key: str) -> list[Json]:
    value = owner.get(key) or []
    if not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise ValueError(f"its {key!r} is no list of objects; export the project as 'JSON', not as 'JSON-MIN'")
    return value


def _number(owner: Json, key: str) -> float:
    value = owner.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"its {key!r} is no number: {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"its {key!r} is too large") from None


def _text(text: str) -> str:
    """Return the text if it is valid: JSON can write halves of characters (surrogates), which no table can hold."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"it holds halves of characters: {text!r}")
    return text


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
