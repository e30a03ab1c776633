"""The runs that are compared, their names, and the settings that differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from faithad import storage
from faithad.runs.stages import flatten

Row = dict[str, Any]
# The place of a run is no setting.
_PLACES = ("out", "root")
_LONGEST_VALUE = 500


def run_names(locations: Sequence[str]) -> list[str]:
    """The folder of each run, with as many folders above it as tell the runs apart."""
    parts = [location.rstrip("/").split("/") for location in locations]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(locations, start=1)]


def default_folder(locations: Sequence[str]) -> str:
    """The folder for a comparison of these runs if none was given: next to the first run."""
    above, slash, _ = locations[0].rstrip("/").rpartition("/")
    names = [storage.name_of(location.rstrip("/")) for location in locations]
    return f"{above}{slash}compare-{'-'.join(names)}"


def differing_settings(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of schemas.COMPARED_SETTINGS, setting by setting.

    Args:
        settings: the nested settings of each run, by its name.
    """
    flat = {run: {key: _text(value) for key, value in flatten("", nested).items()} for run, nested in settings.items()}
    for setting in sorted({key for values in flat.values() for key in values}):
        values = [of_run.get(setting) for of_run in flat.values()]
        if setting not in _PLACES and any(value != values[0] for value in values):
            for run, value in zip(flat, values, strict=True):
                yield {"run": run, "setting": setting, "value": value}


def _text(value: Any) -> str:
    """The value as YAML on one line, cut where it is very long."""
    plain = json.loads(json.dumps(value, default=str))
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, allow_unicode=True).strip()
    text = text.removesuffix("...").strip()
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + " …"
