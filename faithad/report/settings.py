"""The resolved configurations that lie beside the tables, as plain mappings: a report needs no valid study."""

from __future__ import annotations

from typing import Any

import yaml

from faithad import storage
from faithad.config.file import yaml_problem
from faithad.errors import StudyError


def read_settings(location: str) -> tuple[str, dict[str, Any]]:
    """The text of a YAML file, and the mapping that it holds.

    Raises:
        StudyError: it is no YAML, or no mapping.
    """
    text = storage.read_text(location)
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"{location} is not valid YAML: {yaml_problem(error)}") from None
    if not isinstance(settings, dict):
        raise StudyError(f"{location} must hold keys and values, found {type(settings).__name__}.")
    return text, settings


def look_up(settings: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
