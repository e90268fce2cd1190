"""The page of images that a person should look at, with small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.reporting.mistakes import thumbnail, with_pictures
from onceclip.pipeline.reporting.pages import write_page
from onceclip.pipeline.sources import Record
from onceclip.stores import Store


def with_thumbnails(found: Sequence[Any], store: Store | None, images: str | None,
                    records: Sequence[Record]) -> list[Any]:
    """Suggestions with pictures as far as there are any. records: the images, where they are not those of a store."""
    if store is not None:
        return with_pictures(found, store, images)[0]
    shown = []
    for each in found:
        try:
            shown.append(replace(each, picture=thumbnail(records[each.row].content.read())))
        except BadImage as error:
            shown.append(replace(each, why=str(error)))
    return shown


def write_suggestions_page(path: Path, found: Sequence[Any], method: str, where: str, errors: bool) -> None:
    """Write one self-contained HTML file. errors: whether labels are to be checked, or else images to be labelled."""
    title = "Labels to check" if errors else "Images to label next"
    write_page(path, "suggestions.html", title=title, found=found, method=method, where=where, errors=errors)
