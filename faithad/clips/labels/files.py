"""Label files at a location: read whatever is there, write without touching what somebody has made there."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping

import pyarrow as pa

from faithad import storage
from faithad.clips.annotations import CLIP, RECORDING
from faithad.clips.labels import audacity, csv_labels, label_studio, raven
from faithad.clips.labels.label import Label
from faithad.clips.labels.names import below
from faithad.clips.recordings import AUDIO_SUFFIXES
from faithad.errors import AnnotationError, StudyError
from faithad.vocabulary import count, listed

SUFFIXES = (".txt", ".csv", ".json")

_KNOWN = (
    "Known are Audacity's label tracks, Raven's selection tables, Label Studio's JSON, a CSV table with the columns "
    f"{', '.join(csv_labels.NEEDED)}, and the annotation table in the published layout."
)


def label_texts(location: str) -> dict[str, str]:
    """The text of a file of labels, or of all that are in a folder and below, by relative path.

    Raises:
        AnnotationError: there is none, or some cannot be read as text in UTF-8.
    """
    if location.lower().endswith(AUDIO_SUFFIXES):
        raise AnnotationError(f"{location} is a recording. Give the file or the folder of its labels.")
    try:
        if not storage.exists(location):
            raise AnnotationError(f"{location} does not exist. Check the path.")
        if storage.is_file(location):
            found = [(storage.name_of(location), location)]
        else:
            found = storage.list_files(location, suffixes=SUFFIXES)
        contents = {path: storage.read_bytes(place) for path, place in found}
    except (OSError, pa.ArrowException) as error:
        raise AnnotationError(
            f"{location} cannot be read: {error}. Check its permissions and the connection."
        ) from error
    if not contents:
        raise AnnotationError(
            f"{location} holds no labels: no file whose name ends in {' or '.join(SUFFIXES)}. {_KNOWN}"
        )
    texts: dict[str, str] = {}
    problems: list[str] = []
    for path, content in contents.items():
        try:
            texts[path] = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.append(f"{path}: no text in UTF-8 ({error}). Save it as UTF-8")
    refuse(location, problems)
    return texts


def read_labels(location: str, *, of: str = "annotations") -> list[Label]:
    """The labels of a file, or of all files in a folder and below, of any format but the published table's.

    Args:
        location: local or a URI.
        of: of Label Studio's tasks, the `annotations` of persons or the `predictions`.

    Raises:
        AnnotationError: there are no label files, or all that is wrong with them.
    """
    labels: list[Label] = []
    problems: list[str] = []
    for path, text in label_texts(location).items():
        found, complaints = parse_labels(text, path=path, of=of)
        labels += found
        problems += [f"{path}, {complaint}" for complaint in complaints]
    refuse(location, problems)
    return labels


def parse_labels(text: str, *, path: str, of: str = "annotations") -> tuple[list[Label], list[str]]:
    """The labels of a file and what is wrong with it; what it holds tells its format. No text is no labels."""
    first = _first_line(text)
    if not first:
        return [], []
    if first.startswith(("[", "{")):
        return label_studio.parse(text, of=of)
    if raven.is_table(first):
        return raven.parse(text, path=path)
    if "\t" in first:
        return audacity.parse(text, path=path)
    if any(name in first.casefold() for name in csv_labels.NEEDED):
        return csv_labels.parse(text)
    return [], [f"line 1: no known kind of labels begins with {first[:60]!r}. {_KNOWN}"]


def is_published(text: str) -> bool:
    """Whether a file is an annotation table in the published layout, complete or not."""
    first = _first_line(text).casefold()
    return RECORDING.casefold() in first or CLIP.casefold() in first


def _first_line(text: str) -> str:
    """The first line that is not blank, without the spaces before it."""
    return text.lstrip().partition("\n")[0].rstrip("\r")


def write_labels(texts: Mapping[str, str], folder: str) -> None:
    """Write label files by relative path; nothing is written where others lie that may be somebody's work.

    Raises:
        StudyError: the folder holds files of the same kind that are not what would be written now.
    """
    foreign = []
    for path, place in storage.list_files(folder, suffixes={posixpath.splitext(path)[1] for path in texts}):
        if path not in texts or storage.read_bytes(place) != texts[path].encode():
            foreign.append(path)
    if foreign:
        raise StudyError(
            f"{folder} holds other labels already, which may be somebody's work: {listed(foreign, most=3)}. "
            "Give another folder, or move them away."
        )
    for path, text in texts.items():
        storage.write_text(below(folder, path), text)


def refuse(location: str, problems: Iterable[str]) -> None:
    """Raise `AnnotationError` where there are problems, with all of them."""
    problems = list(problems)
    if problems:
        lines = "\n  ".join(problems)
        raise AnnotationError(f"{location}: {count(len(problems), 'problem')} in the labels:\n  {lines}")


FORMATS: dict[str, Callable[..., dict[str, str]]] = {
    "audacity": audacity.files,
    "raven": raven.files,
    "label-studio": label_studio.files,
    "csv": csv_labels.files,
}
