"""Result rows for a paper: as a data frame, and as a table in a form that papers take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onceclip.pipeline.api.arguments import listed, one_of, optional, place_of, shots_of, whole
from onceclip.pipeline.errors import ResultError
from onceclip.pipeline.words import listing
from onceclip.stores.location import local_copy

if TYPE_CHECKING:
    from pandas import DataFrame

Folders = str | Path | Sequence[str | Path]


def results(folders: Folders) -> DataFrame:
    """The runs of results folders as a pandas DataFrame, a line each: store, method, shots, seed, scores and more.

    folders: one or several. The runs are those that count in tables: of a grid the best on validation rows, of runs
        made twice the last. `method` is the name of the table's line. Failures are left out.
    Raises ResultError if there is no row, or a row is no result of onceclip.

    Example:
        >>> rows = onceclip.sweep("pets.zarr", methods=["zero-shot", "gda"], shots=4, seeds=[1, 2], out="for-a-frame")
        >>> frame = onceclip.results("for-a-frame")
        >>> frame.groupby("method")["accuracy"].count().to_dict()
        {'gda': 2, 'zero-shot': 2}
    """
    from onceclip.pipeline.reporting.tables import results_frame

    with local_folders(folders) as paths:
        return results_frame(paths)


def table(folders: Folders, form: str = "markdown", *, score: str | Sequence[str] = "accuracy",
          columns: str | None = None, shots: Sequence[int | str] | int | str | None = None,
          methods: Sequence[str] | str | None = None, interval: bool = False, digits: int = 1) -> str:
    """The table of a paper from results folders: means over seeds, the best of a column bold, the second underlined.

    form: "markdown", "latex", "csv" or "html". score: what is in the cells, such as "accuracy", "macro_recall" or
        "harmonic_mean"; several for columns="scores". columns: "stores", each and their mean; "shots"; or "scores"; by
        default stores if there are several. shots, methods: those that are shown, all by default; methods as ordered.
        interval: add half of the 95 % interval over seeds. digits: decimals of per cent.
    Raises ResultError if nothing is there to show, ArgumentError.

    Example:
        >>> rows = onceclip.sweep("pets.zarr", methods=["zero-shot", "gda"], shots=4, seeds=[1, 2], out="for-a-table")
        >>> print(onceclip.table("for-a-table").splitlines()[0])
        | method | 4 shots |
    """
    from onceclip.pipeline.reporting.tables import COLUMNS, FORMATS, SCORES, cells_of

    write = FORMATS[one_of(form, "format", list(FORMATS))]
    scores = [one_of(each, "score", SCORES) for each in listed(score, "score")]
    frame = results(folders)
    if shots is not None:
        frame = frame[frame["shots"].isin(_shots(shots))]
    if methods is not None:
        names, lines = listed(methods, "methods"), dict.fromkeys(frame["method"])
        missing = next((name for name in names if name not in lines), None)
        if missing is not None:
            raise ResultError(f"no line {missing!r} in the results: there are: {listing([*lines], 12)}")
        frame = frame[frame["method"].isin(names)].sort_values("method", key=lambda each: each.map(names.index),
                                                               kind="stable")
    if frame.empty:
        raise ResultError("no run with a result is left to show: give other --shots, or results folders that have them")
    by = one_of(columns or ("scores" if len(scores) > 1 else "stores" if frame["store"].nunique() > 1 else "shots"),
                "columns", COLUMNS)
    if by != "scores" and len(scores) > 1:
        raise ResultError(f"a table of {by} has one score: give one, or columns scores")
    return write(cells_of(frame, by, scores), whole(digits, "digits", 0), interval)


def compare(folders: Folders, test: str = "draws", *, baseline: str | None = None, score: str = "accuracy",
            shots: Sequence[int | str] | int | str | None = None, methods: Sequence[str] | str | None = None,
            by_encoder: bool = False) -> dict[str, Any]:
    """Test the lines of results folders against one of them, on the same draws, as JSON values.

    test: "draws" (paired t over seeds), "mcnemar" (over images, seed by seed), "bootstrap" (over draws and images
        together), "wilcoxon" or "friedman" (over stores, the latter with Nemenyi's test of all pairs). baseline: a line
        of the tables, "zero-shot" by default. score, shots, methods: as of `table`. by_encoder: lines are methods with
        encoders.
    Gives `blocks`, each with its shots and `comparisons`: difference, its interval, p, and p corrected by Holm over the
    block. "mcnemar" and "bootstrap" take sweeps that kept predictions.
    Raises ResultError if nothing can be compared, ArgumentError.

    Example:
        >>> rows = onceclip.sweep("pets.zarr", methods=["zero-shot", "gda"], shots=4, seeds=[1, 2, 3], out="compared")
        >>> block, = onceclip.compare("compared")["blocks"]
        >>> block["comparisons"][0]["method"], block["comparisons"][0]["n"]
        ('gda', 3)
    """
    from onceclip.pipeline.reporting.comparison import TESTS, compare_results
    from onceclip.pipeline.reporting.tables import SCORES

    with local_folders(folders) as paths:
        return compare_results(paths, one_of(test, "test", TESTS), baseline, one_of(score, "score", SCORES),
                               optional(_shots, shots), optional(listed, methods, "methods"), by_encoder)


def _shots(shots: Any) -> list[int | str]:
    """Numbers of shots as rows have them."""
    return [shots_of(each) or "all" for each in listed(shots, "shots")]


@contextmanager
def local_folders(folders: Any) -> Iterator[list[Path]]:
    """Results folders at paths, and copies of those behind URLs."""
    with ExitStack() as copies:
        yield [copies.enter_context(local_copy(place_of(each, "a results folder")))
               for each in listed(folders, "results")]
