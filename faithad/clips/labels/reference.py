"""Labels as reference intervals: what an expert heard, in whatever format it was written down."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from faithad.clips.annotations import Annotation, parse_annotations
from faithad.clips.labels.files import is_published, label_texts, parse_labels
from faithad.clips.labels.label import Label, by_recording, kind_of
from faithad.clips.problems import ProblemList
from faithad.errors import AnnotationError
from faithad.vocabulary import count, listed

UNNAMED = "unnamed"
# What BirdNET writes where it hears nothing, as a selection table or as an Audacity label with a confidence.
_NO_CALL = re.compile(r"nocall(?:[\W_]+nocall)?(?:\s+[\d.]+)?", re.IGNORECASE)


class Reference(list[Annotation]):
    """Reference intervals, and in `notes` what was left out of their files, a sentence each."""

    def __init__(self, annotations: Iterable[Annotation], notes: Iterable[str] = ()) -> None:
        super().__init__(annotations)
        self.notes = tuple(notes)


def read_reference(location: str) -> Reference:
    """The reference intervals at a location. The content of each file shows its format.

    Known are the annotation table in the published layout, Audacity's label tracks, Raven's selection tables, Label
    Studio's JSON and tables with `recording`, `onset_s`, `offset_s`. A folder may hold several formats. A recording
    without a label counts as normal throughout, so a reference must cover every recording that is scored against it.
    BirdNET's `nocall` is no label.

    Args:
        location: a file or a folder, local or a URI.

    Raises:
        AnnotationError: there are no label files, or they have problems; the message lists the first ten.
    """
    labels: list[Label] = []
    annotations: list[Annotation] = []
    problems = ProblemList()
    for path, text in label_texts(location).items():
        file_problems = ProblemList()
        if is_published(text):
            annotations += parse_annotations(text, file_problems)
        else:
            labels += parse_labels(text, path, file_problems)
        problems += [f"{path}, {problem}" for problem in file_problems]
        problems.unread += file_problems.unread
    problems.refuse(location, "labels", error=AnnotationError)
    heard = [label for label in labels if not _NO_CALL.fullmatch(label.text.strip())]
    return Reference(annotations + annotations_of(heard), _notes(labels, heard, problems.unread))


def _notes(labels: Sequence[Label], heard: Sequence[Label], unread: Iterable[str]) -> Iterator[str]:
    if len(heard) < len(labels):
        yield f"{count(len(labels) - len(heard), 'label')} 'nocall' left out: nothing is heard there."
    if columns := sorted({repr(" ".join(column.split())) for column in unread if column.strip()}):
        n_unnamed = sum(not label.text.strip() for label in heard)
        unnamed = f"; {count(n_unnamed, 'label')} without a kind will be called {UNNAMED!r}" if n_unnamed else ""
        yield f"Columns that are not read: {listed(columns)}{unnamed}."


def annotations_of(labels: Iterable[Label]) -> list[Annotation]:
    """One annotation per label; the label's interval is both its window and its only audible interval.

    Windows are numbered from 1 in each recording, by onset. The anomaly type is the label's text: `unnamed` if that is
    empty, `alarm` if it still is the text of an alarm.
    """
    return [
        Annotation(
            recording=recording,
            window=window,
            anomaly_type=kind_of(label.text) or UNNAMED,
            onset_s=label.onset_s,
            offset_s=label.offset_s,
            intervals=((0.0, round(label.offset_s - label.onset_s, 6)),),
        )
        for recording, group in by_recording(labels).items()
        for window, label in enumerate(group, start=1)
    ]
