"""What a user can act on.

Every error that a person at the keyboard may cause derives from `FaithadError` and its text names the thing, the
value found, what is allowed and what to do. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class FaithadError(Exception):
    """Root of all errors that a user can act on; the command line prints the text alone and exits with 1."""


class ConfigError(FaithadError):
    """A setting is unknown, of the wrong type or impossible."""


class RecordingError(FaithadError):
    """A recording, or one clip of it, cannot be used: unreadable, truncated, empty, NaN, of another shape."""


class AnnotationError(FaithadError):
    """An annotation table, or rows of it, cannot be understood."""


class CheckpointError(FaithadError):
    """A saved model is missing, damaged, or does not fit the study that asks for it."""


class StudyError(FaithadError):
    """A stage cannot run or did not end well: nothing to work on, an earlier stage missing, a run that failed."""
