"""Where images come from: every source gives one record per image."""

from onceclip.pipeline.sources.folder import list_images
from onceclip.pipeline.sources.record import Content, LocalFile, Record, class_names, natural_order

__all__ = ["Content", "LocalFile", "Record", "class_names", "list_images", "natural_order"]
