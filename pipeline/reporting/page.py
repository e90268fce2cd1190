"""From what a report says to one HTML file: templates, the wording of numbers, writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import onceclip
from onceclip.pipeline.files import whole_file
from onceclip.pipeline.runs.results import Mean
from onceclip.pipeline.words import counted, shots_of


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template and write the page; a file of that name is replaced when the new one is whole."""
    environment = Environment(loader=PackageLoader("onceclip.pipeline.reporting"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, signed=signed, mean=mean, duration=duration, count=count,
                               number=number, plural=counted, shots_of=shots_of)
    html = environment.get_template(template).render(version=onceclip.__version__, **values)
    with whole_file(path) as file:
        # Names of files may hold bytes that are no text.
        file.write(html.encode("utf-8", errors="replace"))


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def signed(value: float | None, digits: int = 1) -> str:
    """A difference of fractions in per cent points, with its sign."""
    return "–" if value is None else f"{100 * value:+.{digits}f}".replace("-", "−")


def mean(value: Mean | None, sign: bool = False) -> str:
    """A mean with its interval, in per cent."""
    if value is None:
        return "–"
    half = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{signed(value.value) if sign else percent(value.value)}{half}"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def count(value: float) -> str:
    """A count, which may be a mean of counts."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def duration(seconds: float) -> str:
    """A duration in a unit that suits it."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} min"
