"""Reading label files back, for tests of what was written."""

from __future__ import annotations

from faithad.clips.labels.files import label_texts, parse_labels
from faithad.clips.labels.label import Label
from faithad.clips.problems import ProblemList


def read_labels(location: str, *, submitted: bool = False) -> list[Label]:
    """The labels of a file or a folder. `submitted`: as if an expert had submitted Label Studio's predictions."""
    labels: list[Label] = []
    problems = ProblemList()
    for path, text in label_texts(location).items():
        annotated = text.replace('"predictions"', '"annotations"') if submitted else text
        labels += parse_labels(annotated, path, problems)
    assert problems == []
    return labels
