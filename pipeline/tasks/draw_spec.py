"""What a draw is asked to be: which images of which classes a run sees, and how many of them with which labels.

A new kind of draw is a field here, with how it changes the support, and an option in `commands/options.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from onceclip.adapters import support_source
from onceclip.adapters.errors import unknown
from onceclip.adapters.support import SupportSource
from onceclip.pipeline.errors import TaskError
from onceclip.pipeline.tasks.classes import ALL
from onceclip.pipeline.tasks.draw_files import DrawFile, draw_file
from onceclip.pipeline.tasks.draws import Draw, draw
from onceclip.stores.identity import digest
from onceclip.stores.location import everywhere


def _shape(words: Callable[[Any], str], *types: type) -> dict[str, Any]:
    """What is known of a field that makes the support other than K images of every class with their labels.

    words: how a table's title says its value. types: of the value in a result row, if not that of the default.
    """
    return {"shape": True, "words": words, **({"types": types} if types else {})}


@dataclass(frozen=True)
class DrawSpec:
    """A draw.

    shots: labelled rows per class, None for all; with 0 no label is read. seed: of the draw.
    stream: read the support rows anew in every epoch instead of holding them in memory.
    classes: "all", or "base" for the first half of the classes alone, as if the store had no others.
    support: where further rows come from that nobody labelled, as "upl:16".
    bank: path of another store of the same encoder, which such rows, or the method, take images from. captions: name of
        the bank's text set of captions.
    long_tail: how many times as many images the largest class has as the smallest; between them the numbers fall
        exponentially, over the classes in an order of the seed (Cui et al., CVPR 2019, section 5).
    natural_prior: K times the number of classes in all, drawn without regard to class.
    label_noise: the probability with which a label is replaced by another class, all alike (symmetric noise).
    missing: classes without any labelled image, a number of them chosen by the seed or their names; these have no
        validation images either.
    draws: the file or folder that lists the images, in place of a draw by the seed; see `draw_file`.
    Raises TaskError for values that mean nothing, or not together.
    """

    shots: int | None = field(default=None, metadata={"types": (int,)})
    seed: int = 1
    _: KW_ONLY
    stream: bool = False
    classes: str = ALL
    support: str = ""
    bank: str = ""
    captions: str = ""
    long_tail: float = field(default=1.0, metadata=_shape(lambda value: f"long tail {value:g}"))
    natural_prior: bool = field(default=False, metadata=_shape(lambda _: "natural prior"))
    label_noise: float = field(default=0.0, metadata=_shape(lambda value: f"label noise {value:g}"))
    missing: int | tuple[str, ...] = field(default=0, metadata=_shape(
        lambda value: f"missing {value if isinstance(value, int) else ' '.join(map(str, value))}", int, list))
    draws: DrawFile | None = field(default=None, metadata={"types": (dict,), "words": lambda _: "listed draws"})

    def __post_init__(self) -> None:
        self._parse()
        if not 1 <= self.long_tail < float("inf"):
            raise TaskError(f"--long-tail {self.long_tail}: give a ratio from 1 up, such as 10")
        if not 0 <= self.label_noise < 1:
            raise TaskError(f"--label-noise {self.label_noise}: give a probability from 0 to below 1")
        if isinstance(self.missing, int) and self.missing < 0:
            raise TaskError(f"--missing {self.missing}: give a number of classes from 0 up, or their names")
        if self.natural_prior and self.long_tail != 1:
            raise TaskError("--long-tail and --natural-prior are two ways to say how many images classes have: give "
                            "one of them")
        if self.draws and (self.long_tail != 1 or self.natural_prior):
            raise TaskError("--draws says which images there are: leave --long-tail and --natural-prior out")
        if self.shots == 0 and self.shape:
            raise TaskError(f"without --shots no label is read: add --shots K, or leave {SHAPE_OPTIONS} out")
        if self.captions and not self.bank:
            raise TaskError(f"--captions {self.captions} names a text set of a bank: add --bank STORE")
        wrong = "stream" if self.stream else "classes" if self.classes != ALL else ""
        if wrong and (self.support or self.bank):
            raise TaskError(f"--{wrong} does not go with --support or --bank: leave one of them out")

    def _parse(self) -> None:
        """Bring every field to one form, so that equal draws are one value, however they were typed."""
        for name in ("long_tail", "label_noise"):
            try:
                object.__setattr__(self, name, float(getattr(self, name)))
            except (TypeError, ValueError) as error:
                raise TaskError(f"{_option(name)} {getattr(self, name)!r}: give a number") from error
        if type(self.natural_prior) is not bool:
            raise TaskError(f"--natural-prior {self.natural_prior!r}: give True or False")
        if type(self.missing) is not int:
            names = [self.missing] if isinstance(self.missing, str) else self.missing
            if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
                raise TaskError(f"--missing {self.missing!r}: give a number of classes, or their names")
            object.__setattr__(self, "missing", tuple(sorted({*names})) or 0)
        object.__setattr__(self, "support", str(support_source(self.support)) if self.support else "")
        object.__setattr__(self, "bank", everywhere(self.bank) if self.bank else "")
        if isinstance(self.draws, Mapping):
            object.__setattr__(self, "draws", DrawFile(**self.draws))
        elif isinstance(self.draws, str | Path):
            object.__setattr__(self, "draws", draw_file(self.draws, self.shots, self.seed))

    @property
    def shots_word(self) -> int | str:
        """The number of labelled rows per class, or "all"."""
        return "all" if self.shots is None else self.shots

    @property
    def source(self) -> SupportSource | None:
        """Where support rows come from that nobody labelled, if there are any."""
        return support_source(self.support) if self.support else None

    @property
    def shape(self) -> dict[str, Any]:
        """What the support is like, if not K images of every class with their labels; else empty."""
        found = {each.name: getattr(self, each.name) for each in _SHAPE}
        return found if any(found[each.name] != each.default for each in _SHAPE) else {}

    def absent(self, classes: Sequence[str]) -> frozenset[int]:
        """Positions of the classes that are missing.

        Raises TaskError for a name that is no class, or if fewer than two classes would be left.
        """
        if isinstance(self.missing, int):
            chosen = _order(classes, f"missing:{self.seed}")[:self.missing]
        else:
            for name in self.missing:
                if name not in classes:
                    raise TaskError(unknown("class", name, classes, " that --missing could leave out"))
            chosen = [classes.index(name) for name in self.missing]
        if chosen and len(classes) - len(set(chosen)) < 2:
            raise TaskError(f"--missing leaves {len(classes) - len(set(chosen))} of {len(classes)} classes with "
                            "images: leave two or more")
        return frozenset(chosen)

    def choose(self, rows: np.ndarray, keys: Sequence[str], label: np.ndarray, classes: Sequence[str],
               listed: bool = False) -> Draw:
        """Choose the support. rows, keys, label: of the candidates, as of `draw`; classes: names of all classes.

        listed: whether a file lists the candidates, so that all of them are taken.
        """
        shots = None if listed else self.shots
        if not self.shape:
            return draw(rows, keys, label, shots, self.seed, "support")
        there = ~np.isin(label, list(self.absent(classes)))
        rows, keys, label = rows[there], [key for key, kept in zip(keys, there, strict=True) if kept], label[there]
        if self.natural_prior:
            number = None if shots is None else shots * len(classes)
            drawn = _by_class(draw(rows, keys, np.zeros(len(rows), np.int64), number, self.seed, "support"), rows,
                              label)
        else:
            drawn = draw(rows, keys, label, self._counts(label, shots, classes), self.seed, "support")
        return self._with_noise(drawn, rows, label, len(classes))

    def _counts(self, label: np.ndarray, shots: int | None, classes: Sequence[str]) -> int | dict[int, int] | None:
        if self.long_tail == 1 or not len(label):
            return shots
        most = shots or int(np.bincount(label).max())
        steps = max(len(classes) - 1, 1)
        return {number: max(1, round(most * self.long_tail ** (-place / steps)))
                for place, number in enumerate(_order(classes, f"tail:{self.seed}"))}

    def _with_noise(self, drawn: Draw, rows: np.ndarray, label: np.ndarray, classes: int) -> Draw:
        if not self.label_noise:
            return drawn
        true = dict(zip(rows.tolist(), label.tolist(), strict=True))
        wrong = {}
        for place, (row, key) in enumerate(zip(drawn.rows.tolist(), drawn.keys, strict=True)):
            number = digest(f"noise:{self.seed}:{key}".encode("utf-8", "surrogatepass"))
            if int.from_bytes(number[:8], "big") < self.label_noise * 2**64:
                step = 1 + int.from_bytes(number[8:], "big") % (classes - 1)
                wrong[place] = (true[row] + step) % classes
        return replace(drawn, wrong=wrong)

    def as_row(self, label: np.ndarray, drawn: Draw, classes: Sequence[str]) -> dict[str, Any]:
        """What a result row says of a support that has a shape. label: the true ones of its rows."""
        if not self.shape:
            return {}
        counts = Counter(label.tolist())
        return {"support_counts": [counts[number] for number in range(len(classes))],
                "n_wrong_labels": len(drawn.wrong),
                "missing_classes": [classes[number] for number in sorted(self.absent(classes))]}


_SHAPE = tuple(each for each in fields(DrawSpec) if "shape" in each.metadata)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


SHAPE_OPTIONS = ", ".join(_option(each.name) for each in _SHAPE[:-1]) + f" and {_option(_SHAPE[-1].name)}"


def draw_words(asked: Mapping[str, Any]) -> str:
    """In words, what a run was asked to draw if not K images of every class by the seed. asked: of a result row."""
    return ", ".join(each.metadata["words"](asked[each.name]) for each in fields(DrawSpec)
                     if "words" in each.metadata and asked.get(each.name))


def stored_types() -> dict[str, tuple[type, ...]]:
    """The types that the value of each field has in a result row, if it is not null."""
    return {each.name: each.metadata.get("types", (type(each.default),)) for each in fields(DrawSpec)}


def _order(classes: Sequence[str], purpose: str) -> list[int]:
    """Positions of classes in an order that their names decide."""
    return sorted(range(len(classes)), key=lambda number: digest(
        f"{purpose}:{classes[number]}".encode("utf-8", "surrogatepass")))


def _by_class(drawn: Draw, rows: np.ndarray, label: np.ndarray) -> Draw:
    """The same draw, class by class."""
    true = dict(zip(rows.tolist(), label.tolist(), strict=True))
    order = sorted(range(len(drawn.rows)), key=lambda place: true[int(drawn.rows[place])])
    return Draw(drawn.rows[order], tuple(drawn.keys[place] for place in order))
