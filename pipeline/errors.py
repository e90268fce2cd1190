"""The failures of the pipeline."""

from __future__ import annotations

from onceclip import OnceclipError


class SourceError(OnceclipError):
    """A folder or file of images cannot be used as asked."""


class BadImage(Exception):  # noqa: N818 - not a failure of the run: the row records it
    """One file is not a readable image; the text says why."""


class DecoderError(OnceclipError):
    """The processes that read and decode images cannot do their work."""


class EncoderError(OnceclipError):
    """An encoder cannot be found, loaded or trusted."""


class PromptError(OnceclipError):
    """Templates or class names cannot be used as asked."""


class TaskError(OnceclipError):
    """A store cannot give the task that was asked for."""


class ArrayError(OnceclipError):
    """Arrays made elsewhere cannot be imported."""


class WorkerError(OnceclipError):
    """A process that carries out runs has died."""


class ResultError(OnceclipError):
    """A result row cannot be used as asked."""
