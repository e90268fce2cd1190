"""Pages of reports as a test reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from onceclip.pipeline.reporting.pages import write_results_report
from onceclip.pipeline.runs.results import append_rows

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """A parsed page: its text, its links and its tables; fails where a tag is not closed in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.text = ""
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append((self.label(), []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def label(self) -> str:
        """The name of the region that a table stands in."""
        return next(str(values["aria-label"]) for _, values in reversed(self.tags) if "aria-label" in values)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][1][-1][-1] += data

    def table(self, start: str, number: int = 0) -> dict[str, list[str]]:
        """The cells of a table by the first of every row, without the words for screen readers."""
        rows = [rows for label, rows in self.tables if label.startswith(start)][number]
        return {first.strip(): [cell.replace(" (best)", "").strip("≈ \n") for cell in rest] for first, *rest in rows}

    def assert_self_contained(self) -> None:
        """Nothing is loaded and nothing is run."""
        assert not {tag for tag, _ in self.tags} & {"script", "iframe", "object", "embed", "base", "form"}
        for tag, values in self.tags:
            for name in ("src", "href", "srcset", "xlink:href", "data", "action"):
                assert (values.get(name) or "#").startswith(("#", "data:")), (tag, values)
            assert not [name for name in values if name.startswith("on")]
        styles = re.findall(r"<style>(.*?)</style>", self.html, re.DOTALL)
        assert len(styles) == 1
        assert not re.search(r"url\(|@import|https?:", styles[0])


def describe(folder: Path, classes: list[str], counts: list[int], store: str = "pets.zarr") -> None:
    """Write a `stores.json`."""
    (folder / "stores.json").write_text(json.dumps({f"print of {store}": {
        "path": store, "classes": classes, "test_counts": counts, "splits": {"train": 9, "val": 0, "test": sum(counts)},
        "encoder": {"name": "demo", "fingerprint": "e" * 32, "weights": "w" * 32, "preprocess": {"size": [32, 32]}},
        "texts": {}, "extraction": {"images": 30, "bad": 1, "reasons": {"zero bytes": 1}, "split_source": None}}}))


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], Page]:
    """Parse a page."""
    return Page


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Page]:
    """Report on some rows: page_of(rows, classes=..., counts=...)."""

    def make(rows: Iterable[dict[str, Any]], classes: list[str] | None = None, counts: Iterable[int] = ()) -> Page:
        append_rows(tmp_path / "made", rows)
        if classes:
            describe(tmp_path / "made", classes, list(counts))
        write_results_report([tmp_path / "made"], tmp_path / "made.html")
        page = Page(tmp_path / "made.html")
        page.assert_self_contained()
        return page

    return make
