"""Adapters for other programs: one file per format."""

from onceclip.pipeline.export.export import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
