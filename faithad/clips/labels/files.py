"""Label files at a location: read every known format, and write without overwriting what somebody has made."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping

from faithad import listing, storage
from faithad.clips.annotations import CLIP, RECORDING
from faithad.clips.labels import audacity, csv_labels, label_studio, raven
from faithad.clips.labels.label import Label
from faithad.clips.problems import ProblemList, decoded, read_content
from faithad.errors import AnnotationError, StudyError
from faithad.vocabulary import AUDIO_SUFFIXES, listed

SUFFIXES = (".txt", ".csv", ".json", ".tsv")

_KNOWN = (
    "Known are Audacity's label tracks, Raven's selection tables, Label Studio's JSON, tables with the columns "
    f"{', '.join(csv_labels.NEEDED)} or filename, onset, offset, separated by commas or tabs, and the annotation table "
    "in the published layout."
)


def label_texts(location: str) -> dict[str, str]:
    """The text of a label file, or of all label files in a folder and its subfolders, by relative path.

    Raises:
        AnnotationError: there is no label file, one cannot be read, or some are not UTF-8; the message names all these.
    """
    if location.lower().endswith(AUDIO_SUFFIXES):
        raise AnnotationError(f"{location} is a recording. Give the file or the folder of its labels.")
    try:
        is_file = storage.is_file(location)
        if not is_file and not storage.exists(location):
            raise AnnotationError(f"{location} does not exist. Check the path.")
        places = (
            {storage.name_of(location): location} if is_file else dict(listing.list_files(location, suffixes=SUFFIXES))
        )
    except OSError as error:
        raise AnnotationError(
            f"{location} cannot be read: {error}. Check its permissions and the connection."
        ) from error
    if not places:
        raise AnnotationError(
            f"{location} holds no labels: no file whose name ends in {' or '.join(SUFFIXES)}. {_KNOWN}"
        )
    texts: dict[str, str] = {}
    problems = ProblemList()
    for path, place in places.items():
        content = read_content(place, error=AnnotationError)
        with problems.at(path):
            texts[path] = decoded(content)
    problems.refuse(location, "labels", error=AnnotationError)
    return texts


def parse_labels(text: str, path: str, problems: ProblemList) -> list[Label]:
    """The labels of a file, whose content shows its format. An empty file has no labels."""
    first_line = _first_line(text)
    if first_line.startswith(("[", "{")):
        return label_studio.parse(text, problems)
    if raven.is_table(first_line):
        return raven.parse(text, path, problems)
    for delimiter in "\t,;":
        if _is_header(first_line, delimiter) and csv_labels.is_table(first_line, delimiter=delimiter):
            return csv_labels.parse(text, problems, delimiter="\t" if delimiter == "\t" else ",")
    if "\t" in first_line and not _is_header(first_line, "\t"):
        return audacity.parse(text, path, problems)
    if first_line:
        problems.append(f"line 1: no known kind of labels begins with {first_line[:60]!r}. {_KNOWN}")
    return []


def is_published(text: str) -> bool:
    """Whether a file is an annotation table in the published layout, complete or not."""
    first_line = _first_line(text).casefold()
    return RECORDING.casefold() in first_line or CLIP.casefold() in first_line


def _is_header(first_line: str, delimiter: str) -> bool:
    """Whether the line names columns: no cell of it begins as a number does."""
    return not any(re.match(r"[\s\"]*[-+.]?\d", cell) for cell in first_line.split(delimiter))


def _first_line(text: str) -> str:
    """The first line that is not blank, without the spaces before it."""
    return text.lstrip().partition("\n")[0].rstrip("\r")


def write_labels(texts: Mapping[str, str], folder: str) -> None:
    """Write label files by relative path.

    Raises:
        StudyError: the folder holds other files of the same kind, which may be somebody's work. Nothing was written.
    """
    suffixes = {posixpath.splitext(path)[1] for path in texts}
    others = [
        path
        for path, place in listing.list_files(folder, suffixes=suffixes)
        if path not in texts or storage.read_bytes(place) != texts[path].encode()
    ]
    if others:
        raise StudyError(
            f"{folder} holds other labels already, which may be somebody's work: {listed(others, most=3)}. "
            "Give another folder, or move them away."
        )
    for path, text in texts.items():
        storage.write_text(storage.join_path(folder, path), text)


FORMATS: dict[str, Callable[..., dict[str, str]]] = {
    "audacity": audacity.files,
    "raven": raven.files,
    "label-studio": label_studio.files,
    "csv": csv_labels.files,
}
