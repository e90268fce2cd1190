"""Reports: one self-contained HTML file of a results folder, or of one saved adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onceclip.pipeline.reporting.pages import write_adapter_report, write_results_report

__all__ = ["write_adapter_report", "write_results_report"]


def __getattr__(name: str) -> Any:
    """Import the pages on first use: `onceclip info` reads a description and needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from onceclip.pipeline.reporting import pages

    return getattr(pages, name)
