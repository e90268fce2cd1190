"""What the endings of file names say."""

from __future__ import annotations

import os

IMAGES = frozenset([
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
])
VIDEOS = frozenset([
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
])


def suffix(name: str) -> str:
    """The ending of a name from its last dot on, in lower case."""
    return os.path.splitext(name)[1].lower()
