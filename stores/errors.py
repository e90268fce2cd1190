"""The failures of stores."""

from __future__ import annotations

from onceclip.errors import OnceclipError


class StoreError(OnceclipError):
    """A store cannot be used as asked."""


class StoreBusy(StoreError):  # noqa: N818
    """Another process holds the lock of a store."""


class NotAStore(StoreError, FileNotFoundError):  # noqa: N818 - reads as what it is
    """There is no store at the path, or something else is."""


class StoreMismatch(StoreError):  # noqa: N818
    """Two things were made by different encoders, or their classes do not match."""


class StoreIncomplete(StoreError):  # noqa: N818
    """The extraction has not finished, or something asked for was never stored."""


class StoreDamaged(StoreError):  # noqa: N818
    """Stored bytes are missing or do not match their checksum."""
