"""Label Studio's tasks as JSON: a list with one task per recording, or one task alone.

A task holds `data.audio`, the place of the sound, and results of the type `labels`: `value.start` and `value.end` in
seconds of the sound, `value.labels` (https://labelstud.io/guide/task_format). What a model found is written under
`predictions`; a person's work comes back under `annotations`, and a reference reads nothing else: predictions that came
back as they went out would agree with themselves. Where some annotations of a task are marked as ground truth, the
others are left out; else all count. Skipped ones (`was_cancelled`) never do.

`data.recording` (the recording's whole name) and `meta` (words and frequency bounds, which Label Studio has no place
for) are ours; Label Studio keeps both.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import quoteattr

from faithad.clips.labels.label import Label, bounds_problem, kind_of, one_line, span_problem

TASKS, CONFIG = "label_studio_tasks.json", "label_studio_config.xml"
_FROM, _TO, _KIND = "label", "audio", "labels"

# What an interface offers besides the labels of the tasks.
_OFFERED = ("alarm", "anomaly")
_NO_XML = re.compile(r"[\ufffe\uffff]")
# Label Studio puts this before the name of a file that is uploaded.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")

Json = dict[str, Any]


def files(labels: Iterable[Label], *, places: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tasks, and the labelling interface for a new project, by file name.

    Args:
        labels: written as predictions.
        places: location of each recording, local or a URI; the recording's name where it is missing. A local file is
            written as Label Studio's local storage serves it, with / as the document root.
    """
    tasks: dict[str, Json] = {}
    kinds = set(_OFFERED)
    for label in sorted(labels, key=lambda one: (one.recording, one.onset_s, one.offset_s)):
        place = (places or {}).get(label.recording)
        data = {"audio": label.recording if place is None else _served(place), "recording": label.recording}
        task = tasks.setdefault(label.recording, {"data": data, "predictions": [{"result": []}]})
        results = task["predictions"][0]["result"]
        results.append(_result(label, f"label-{len(results) + 1}"))
        kinds.add(kind_of(label.text))
    return {TASKS: json.dumps(list(tasks.values()), ensure_ascii=False, indent=1), CONFIG: _interface(kinds)}


def parse(text: str, *, of: str = "annotations") -> tuple[list[Label], list[str]]:
    """The labels of all tasks and what is wrong with them.

    Args:
        text: JSON.
        of: `annotations`, what persons made, or `predictions`.
    """
    try:
        read = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return [], [f"no JSON: {error}"]
    labels: list[Label] = []
    problems: list[str] = []
    for number, task in enumerate(read if isinstance(read, list) else [read], start=1):
        where = f"task {number}"
        try:
            recording = _recording(task)
            where += f" ({recording})"
            results = list(_results(task, of))
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        for result in results:
            try:
                labels.append(_label(result, recording))
            except ValueError as error:
                problems.append(f"{where}, region {result.get('id')!r}: {error}")
    return labels, problems


def _interface(kinds: Iterable[str]) -> str:
    """The labelling interface that tasks with these labels need: Label Studio refuses labels that it does not name."""
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


def _results(task: Json, of: str) -> Iterator[Json]:
    """The results of a task that are stretches of sound with labels."""
    made = [one for one in _list(task, of) if not one.get("was_cancelled")]
    if of == "annotations":
        if not made:
            raise ValueError(
                "nobody has annotated it; submit it in Label Studio (without any region if nothing is to be heard), or "
                "remove the task"
            )
        made = [one for one in made if one.get("ground_truth")] or made
    for one in made:
        yield from (result for result in _list(one, "result") if result.get("type") == _KIND)


def _label(result: Json, recording: str) -> Label:
    value = _dict(result, "value")
    onset_s, offset_s = (_number(value, key) for key in ("start", "end"))
    if problem := span_problem(onset_s, offset_s):
        raise ValueError(f"the region {problem}")
    kinds = value.get(_KIND, [])
    if not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise ValueError(f"its labels are no list of texts: {kinds!r}")
    text = _text(", ".join(kinds))
    meta: Json = result["meta"] if isinstance(result.get("meta"), dict) else {}
    words = meta.get("text")
    words = words[0] if isinstance(words, list) and words else words
    if isinstance(words, str) and kind_of(words) == text:  # else somebody has given it another label since
        text = _text(words)
    low_hz, high_hz = (_number(meta, key) if key in meta else None for key in ("low_hz", "high_hz"))
    if problem := bounds_problem(low_hz, high_hz):
        raise ValueError(f"the region {problem}")
    return Label(recording, onset_s, offset_s, text, low_hz, high_hz)


def _recording(task: Any) -> str:
    """The recording of a task: its whole name where we wrote it, else the name of the file that it was made from."""
    if not isinstance(task, dict):
        raise ValueError("it is no object with 'data' and 'annotations'; export the project as 'JSON'")
    data = _dict(task, "data")
    if isinstance(data.get("recording"), str) and data["recording"]:
        return _text(data["recording"])
    audio = data.get("audio")
    if not isinstance(audio, str) or not audio:
        raise ValueError("its data has no text 'audio', the recording's place")
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
    if not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
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
    """The text, where it is one: JSON can write halves of characters, which no table can hold."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"it holds halves of characters: {text!r}")
    return text


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
