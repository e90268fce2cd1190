"""The failures of the adapters."""

from __future__ import annotations

from onceclip import OnceclipError


class MethodError(OnceclipError):
    """A method cannot be built, fitted or chosen as asked."""


class UnknownName(MethodError):  # noqa: N818 - reads as what it is
    """A method or hyperparameter that does not exist."""


class AdapterFileError(OnceclipError):
    """A folder does not hold a saved adapter, or holds one that this version cannot read."""
