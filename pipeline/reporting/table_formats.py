"""A table of means as LaTeX, CSV, Markdown or HTML: the best of a column bold, the second underlined."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from onceclip.pipeline.evaluation.statistics import Mean
from onceclip.pipeline.reporting.frames import LOWER, NATS, Cells
from onceclip.pipeline.words import csv_cell, shots_of

_BEST, _SECOND = "best", "second"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def _value(mean: Mean, score: str, digits: int) -> str:
    return f"{mean.value:.{digits + 2}f}" if score in NATS else f"{100 * mean.value:.{digits}f}"


def _half(mean: Mean, score: str, digits: int) -> str:
    if mean.half_width is None:
        return ""
    return f"{mean.half_width:.{digits + 2}f}" if score in NATS else f"{100 * mean.half_width:.{digits}f}"


def marks_of(table: Cells, digits: int) -> dict[tuple[tuple[Any, str], Any], str]:
    """Which cells are the best and the second of their column, among the methods at the same shots.

    What looks equal in print is equal. A column with one method has no marks.
    """
    marks = {}
    for shots in dict.fromkeys(line[0] for line in table.lines):
        lines = [line for line in table.lines if line[0] == shots]
        for column in table.columns:
            score = table.score[column]
            shown = {line: float(_value(table.cells[line, column], score, digits)) for line in lines
                     if (line, column) in table.cells}
            ranked = sorted(set(shown.values()), reverse=score not in LOWER)
            if len(shown) > 1:
                for line, value in shown.items():
                    if value in ranked[:2]:
                        marks[line, column] = (_BEST, _SECOND)[ranked.index(value)]
    return marks


def _texts(table: Cells, digits: int, interval: bool, escape: Callable[[str], str], between: str,
           mark: Mapping[str, Callable[[str], str]]) -> tuple[list[str], list[list[str]]]:
    """Headings, and the texts of every line; a first column has the shots where lines differ in them."""
    marks, several = marks_of(table, digits), any(line[0] is not None for line in table.lines)
    shots = not several and table.columns and all(isinstance(each, int) for each in table.columns)
    head = [*["shots"] * several, "method", *(shots_of(each) if shots else escape(str(each).replace("_", " "))
                                              for each in table.columns)]
    lines = []
    for line in table.lines:
        cells = []
        for column in table.columns:
            mean, score = table.cells.get((line, column)), table.score[column]
            text = "–" if mean is None else _value(mean, score, digits)
            half = _half(mean, score, digits) if mean and interval else ""
            cells.append(mark.get(marks.get((line, column), ""), str)(text) + (f"{between}{half}" if half else ""))
        lines.append([*[str(line[0])] * several, escape(line[1]), *cells])
    return head, lines


def _latex(table: Cells, digits: int, interval: bool) -> str:
    def escape(text: str) -> str:
        return "".join(_LATEX.get(letter, letter) for letter in text)

    head, lines = _texts(table, digits, interval, escape, r" $\pm$ ", {
        _BEST: lambda text: f"\\textbf{{{text}}}", _SECOND: lambda text: f"\\underline{{{text}}}"})
    words = len(head) - len(table.columns)
    made = [f"\\begin{{tabular}}{{{'l' * words}{'r' * len(table.columns)}}}", "\\toprule", " & ".join(head) + r" \\"]
    before = None
    for line, (shots, _) in zip(lines, table.lines, strict=True):
        made += ["\\midrule"] if not before or shots != before[0] else []
        before = (shots,)
        made.append(" & ".join("--" if cell == "–" else cell for cell in line) + r" \\")
    return "\n".join([*made, "\\bottomrule", "\\end{tabular}"])


def _markdown(table: Cells, digits: int, interval: bool) -> str:
    head, lines = _texts(table, digits, interval, lambda text: re.sub(r"([|\\`*_<>])", r"\\\1", text), " ± ", {
        _BEST: lambda text: f"**{text}**", _SECOND: lambda text: f"<u>{text}</u>"})
    words = len(head) - len(table.columns)
    rule = ["---"] * words + ["---:"] * len(table.columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def _html(table: Cells, digits: int, interval: bool) -> str:
    head, lines = _texts(table, digits, interval, html.escape, " ± ", {
        _BEST: lambda text: f"<b>{text}</b>", _SECOND: lambda text: f"<u>{text}</u>"})
    rows = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return (f"<table>\n<thead>\n<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>\n</thead>\n<tbody>\n{rows}\n"
            "</tbody>\n</table>")


def _csv(table: Cells, digits: int, interval: bool) -> str:
    """Numbers as they are, fractions too; with intervals a column of half widths behind each."""
    file, several = io.StringIO(newline=""), any(line[0] is not None for line in table.lines)
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow([*["shots"] * several, "method", *(csv_cell(str(name)) for column in table.columns
                    for name in (column, f"{column} ±")[:1 + interval])])
    for line in table.lines:
        means = [table.cells.get((line, column)) for column in table.columns]
        pairs = [(mean.value, mean.half_width) if mean else (None, None) for mean in means]
        lines.writerow([*[line[0]] * several, csv_cell(line[1]), *(
            value for pair in pairs for value in pair[:1 + interval])])
    return file.getvalue().rstrip("\n")


FORMATS: Mapping[str, Callable[[Cells, int, bool], str]] = {"markdown": _markdown, "latex": _latex, "csv": _csv,
                                                            "html": _html}
