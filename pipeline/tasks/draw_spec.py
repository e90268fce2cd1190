"""What a draw is asked to be: which images of which classes a run sees, and how many of them with which labels.

A new kind of draw is a field here, with how it changes the support, and an option in `commands/options.py`.
"""

from __future__ import annotations

import operator
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
from onceclip.pipeline.tasks.draw_files import DrawFile, draw_file
from onceclip.pipeline.tasks.draws import ALL, BASE, Draw, draw
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

    shots: labelled rows per class, None or "all" for all; with 0 no label is read. seed: of the draw.
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
        if self.classes not in (ALL, BASE):
            raise TaskError(f"no task of {self.classes!r} classes: there are: {ALL}, {BASE}")
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
        parsed: dict[str, Any] = {"seed": _whole("seed", self.seed),
                                  "shots": None if self.shots in (None, "all") else _whole("shots", self.shots)}
        for name in ("long_tail", "label_noise"):
            try:
                parsed[name] = float(getattr(self, name))
            except (TypeError, ValueError) as error:
                raise TaskError(f"{_option(name)} {getattr(self, name)!r}: give a number") from error
        for name in ("stream", "natural_prior"):
            if type(getattr(self, name)) is not bool:
                raise TaskError(f"{_option(name)} {getattr(self, name)!r}: give True or False")
        if type(self.missing) is not int:
            names = [self.missing] if isinstance(self.missing, str) else self.missing
            if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
                raise TaskError(f"--missing {self.missing!r}: give a number of classes, or their names")
            parsed["missing"] = tuple(sorted({*names})) or 0
        parsed["support"] = str(support_source(self.support)) if self.support else ""
        parsed["bank"] = everywhere(self.bank) if self.bank else ""
        if isinstance(self.draws, Mapping):
            parsed["draws"] = DrawFile(**self.draws)
        elif isinstance(self.draws, str | Path):
            parsed["draws"] = draw_file(self.draws, parsed["shots"], parsed["seed"])
        for name, value in parsed.items():
            object.__setattr__(self, name, value)

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
            chosen = _order(classes, f"missing:{self.seed}")[:self.missing] if self.missing else []
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
        true = dict(zip(rows.tolist(), label.tolist(), strict=True))
        if self.natural_prior:
            most = None if shots is None else shots * len(classes)
            drawn = draw(rows, keys, np.zeros(len(rows), np.int64), most, self.seed, "support")
            order = sorted(range(len(drawn.rows)), key=lambda place: true[int(drawn.rows[place])])  # class by class
            drawn = Draw(drawn.rows[order], tuple(drawn.keys[place] for place in order))
        else:
            drawn = draw(rows, keys, label, self._counts(label, shots, classes), self.seed, "support")
        if not self.label_noise:
            return drawn
        wrong = {}
        for place, (row, key) in enumerate(zip(drawn.rows.tolist(), drawn.keys, strict=True)):
            number = digest(f"noise:{self.seed}:{key}".encode("utf-8", "surrogatepass"))
            if int.from_bytes(number[:8], "big") < self.label_noise * 2**64:
                step = 1 + int.from_bytes(number[8:], "big") % (len(classes) - 1)
                wrong[place] = (true[row] + step) % len(classes)
        return replace(drawn, wrong=wrong)

    def _counts(self, label: np.ndarray, shots: int | None, classes: Sequence[str]) -> int | dict[int, int] | None:
        """The number of rows of each class of a long tail."""
        if self.long_tail == 1 or not len(label):
            return shots
        most = shots or int(np.bincount(label).max())
        steps = max(len(classes) - 1, 1)
        return {number: max(1, round(most * self.long_tail ** (-place / steps)))
                for place, number in enumerate(_order(classes, f"tail:{self.seed}"))}

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


def _whole(name: str, value: Any) -> int:
    """A whole number from 0 up, with room for more below 2^64. Raises TaskError for others. name: of the field."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= operator.index(value) < 2**63:
        raise TaskError(f"{_option(name)} {value!r}: give a whole number from 0 up, below 2^63")
    return operator.index(value)


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
