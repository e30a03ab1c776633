"""The configuration of a study of a demo mill, which lies beside its recordings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from faithad import storage
from faithad.errors import shown


def write_study(mill: Path, out: str) -> str:
    """Write `study.yaml` into the folder of a mill, unless it is there: it may have been changed.

    Args:
        mill: the folder, as a whole path.
        out: the folder, as the user named it.

    Returns:
        The command that runs the study.
    """
    command = f"faithad study --config {shlex.quote(storage.join(out, 'study.yaml'))}"
    if not (mill / "study.yaml").exists():
        storage.write_text(str(mill / "study.yaml"), _text(mill, command))
    return command


def _text(mill: Path, command: str) -> str:
    """The study as YAML. It has whole paths, so that it can be run from any folder."""

    def quoted(path: Path) -> str:  # text in JSON is text in YAML
        return json.dumps(str(path), ensure_ascii=False)

    return f"""# A study of the demo mill in this folder:
#
#   {shown(command)}
#
# One seed and few epochs, for a machine without a GPU. The paper has seeds 0 to 4 and up to 500 epochs.
name: mill
root: {quoted(mill / "study")}
seeds: [0]

data:
  root: {quoted(mill)}
  train: [train]
  test: [test]
  annotations: annotations.csv
  split: {{validation_unit: recording}}

features:
  normalization: training

train:
  epochs: 12
  batch_size: 8
"""
