"""The failures of the pipeline."""

from __future__ import annotations

from onceclip.errors import OnceclipError


class SourceError(OnceclipError):
    """A folder or file of images cannot be used as asked."""


class NoImages(SourceError):  # noqa: N818 - reads as what it is
    """A folder has no images."""


class BadImage(Exception):  # noqa: N818 - not a failure of the run: the row records it
    """One file is not a readable image; the text says why."""


class InterruptedImage(BadImage):
    """One image could not be read or decoded for a reason of the machine, not of its bytes; the text says which."""


class DecoderError(OnceclipError):
    """The processes that read and decode images cannot do their work."""


class EncoderError(OnceclipError):
    """An encoder cannot be found, loaded or trusted."""


class DeviceError(OnceclipError):
    """A device cannot be used as asked."""


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


class ConfigurationError(OnceclipError):
    """A configuration file cannot be used as asked."""


class ExportError(OnceclipError):
    """An adapter cannot be written in the form that was asked for."""


class EstimatorError(OnceclipError, ValueError):
    """An estimator cannot be fitted or asked with these arrays; a ValueError, as scikit-learn's own checks expect."""


class RetrievalError(OnceclipError):
    """Texts and images cannot rank each other as asked."""


class PredictionError(OnceclipError):
    """Predictions cannot be made or written as asked."""


class ArgumentError(OnceclipError):
    """An argument of a function is not what it takes."""
