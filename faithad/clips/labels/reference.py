"""Labels as reference intervals: what an expert heard, wherever it was written down."""

from __future__ import annotations

from collections.abc import Iterable

from faithad import storage
from faithad.clips.annotations import Annotation, read_annotations
from faithad.clips.labels.files import is_published, label_texts, parse_labels, refuse
from faithad.clips.labels.label import Label, kind_of
from faithad.clips.labels.names import below

UNNAMED = "unnamed"


def read_reference(location: str) -> list[Annotation]:
    """The reference intervals at a location; what its files hold tells their format.

    Known are the annotation table in the published layout, Audacity's label tracks, Raven's selection tables, Label
    Studio's JSON and CSV tables with `recording`, `onset_s`, `offset_s`. A folder may hold several of them. Recordings
    without any label are normal throughout, so a reference must speak of all that is scored against it.

    Args:
        location: a file or a folder, local or a URI.

    Raises:
        AnnotationError: there are no label files, or all that is wrong with them.
    """
    labels: list[Label] = []
    problems: list[str] = []
    found: list[Annotation] = []
    for path, text in label_texts(location).items():
        if is_published(text):
            found += read_annotations(location if storage.is_file(location) else below(location, path))
            continue
        read, complaints = parse_labels(text, path=path)
        labels += read
        problems += [f"{path}, {complaint}" for complaint in complaints]
    refuse(location, problems)
    return found + annotations_of(labels)


def annotations_of(labels: Iterable[Label]) -> list[Annotation]:
    """One annotation per label: its window is the label's own stretch, and all of it is audible.

    Windows are numbered from 1 in each recording, by onset. The anomaly's type is the label's text; labels without one
    are `unnamed`, those that still bear the words of an alarm are of the type `alarm`.
    """
    counted: dict[str, int] = {}
    found: list[Annotation] = []
    for label in sorted(labels, key=lambda one: (one.recording, one.onset_s, one.offset_s)):
        counted[label.recording] = counted.get(label.recording, 0) + 1
        found.append(
            Annotation(
                recording=label.recording,
                window=counted[label.recording],
                anomaly_type=kind_of(label.text) or UNNAMED,
                onset_s=label.onset_s,
                offset_s=label.offset_s,
                intervals=((0.0, round(label.offset_s - label.onset_s, 6)),),
            )
        )
    return found
