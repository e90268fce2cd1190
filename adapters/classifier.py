"""A fitted classifier: raw embeddings in, logits out; saved as safetensors and JSON; also as a torch module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from onceclip.adapters.cpu import threads_for
from onceclip.adapters.errors import AdapterFileError, MethodError
from onceclip.adapters.heads import Head, Kernel, KernelMachine, pack, unpack
from onceclip.adapters.heads.batched import batched_logits, row_pieces
from onceclip.adapters.heads.packing import from_json, parts_of, plugin_heads, to_json
from onceclip.adapters.ops import unit
from onceclip.adapters.plugin import import_module, is_plugin
from onceclip.adapters.saving import CONFIG, FORMAT, damaged, markdown_cell, read_adapter, write_adapter
from onceclip.adapters.task import EMBEDDING
from onceclip.adapters.training.trainable import RENAMED

_NAMED = 100  # classes on the card


@dataclass(frozen=True)
class Classifier:
    """What fitting a method gives; the logits of a row never depend on other rows.

    head: the mathematics, on unit rows.
    class_names: one name per logit column.
    dim: width of the rows that it takes.
    method, hyperparameters: what was fitted, and with which values.
    provenance: JSON values such as the encoder, the text set, the draw; written into the saved folder.
    inputs: the encoder's outputs that a row is made of, side by side.
    parameters: the trained tensors, of a method whose parameters serve other classes too.
    temperature: what logits are divided by to give probabilities. calibrated_on: rows that it was fitted on, "val"
        (validation), "loo" (each support image left out in turn) or "held-out" (of the support); empty for none.
    conformity: scores of the true classes of these rows by kind, ascending, of which prediction sets are made.

    Example:
        >>> classifier = onceclip.adapters.TipAdapter().fit(task)
        >>> classifier.logits(embeddings).shape, classifier.probabilities(embeddings).shape
        (torch.Size([5, 4]), torch.Size([5, 4]))
        >>> len(classifier.predict(embeddings))
        5
    """

    head: Head
    class_names: tuple[str, ...]
    dim: int
    method: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = (EMBEDDING,)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    temperature: float = 1.0
    calibrated_on: str = ""
    conformity: dict[str, list[float]] = field(default_factory=dict)

    @property
    def encoder(self) -> dict[str, Any]:
        """What the provenance says of the encoder; empty where it says nothing."""
        encoder = self.provenance.get("encoder")
        return encoder if isinstance(encoder, dict) else {}

    @torch.no_grad()
    def logits(self, embeddings: Tensor | np.ndarray) -> Tensor:
        """Score raw embeddings (rows, dim): float32 logits (rows, classes), on the CPU.

        Raises MethodError for another width, or for rows with NaN or infinity.
        """
        rows = self.prepared(embeddings)
        with threads_for(len(rows) * self.dim * max(self.head.width, self.dim)):
            return next(batched_logits([self.head], rows)).cpu()

    def probabilities(self, embeddings: Tensor | np.ndarray) -> Tensor:
        """Softmax of the logits over the temperature: (rows, classes)."""
        return (self.logits(embeddings) / self.temperature).softmax(dim=1)

    def predict(self, embeddings: Tensor | np.ndarray) -> list[str]:
        """Name of the most likely class of each raw embedding (rows, dim)."""
        return [self.class_names[index] for piece in row_pieces(embeddings, len(self.class_names))
                for index in self.logits(piece).argmax(dim=1).tolist()]

    def prepared(self, embeddings: Tensor | np.ndarray) -> Tensor:
        """What the head takes of raw embeddings (rows, dim), on its device: unit rows, or other outputs as they are.

        Raises MethodError for another width, or for rows with NaN or infinity.
        """
        rows = embeddings if isinstance(embeddings, Tensor) else np.asarray(embeddings)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise MethodError(f"embeddings have shape {tuple(rows.shape)}, this classifier takes (rows, {self.dim}): "
                              "use embeddings of the encoder that it was fitted on")
        if isinstance(rows, np.ndarray):
            native = rows.dtype.newbyteorder("=")
            rows = torch.from_numpy(np.require(rows, native, ["C", "W"]))  # what torch can share without a copy
        rows = rows.to(self.head.device, self.head.dtype)
        if not torch.isfinite(rows).all():
            raise MethodError("embeddings hold NaN or infinity: leave out the rows of bad images")
        return unit(rows) if self.inputs == (EMBEDDING,) else rows

    def with_head(self, head: Head, **changes: Any) -> Self:
        """Copy with another head, of which no rows have yet said how sure it is, and other changed fields."""
        return replace(self, head=head, temperature=1.0, calibrated_on="", conformity={}, **changes)

    def save(self, folder: str | Path, facts: Mapping[str, str] = {}) -> None:
        """Write the classifier as `adapter_config.json`, `adapter_model.safetensors` and a `README.md` card.

        facts: further lines of the card, by name, such as what the classifier reached.
        Raises AdapterFileError if a file cannot be written, as on a full disk. Whatever stops it, `load_classifier`
        finds the adapter that was there, or this one.
        """
        description, tensors = pack(self.head)
        config = {"format": FORMAT, "method": self.method, "hyperparameters": self.hyperparameters, "dim": self.dim,
                  "class_names": list(self.class_names), "head": to_json(description), "provenance": self.provenance,
                  "inputs": list(self.inputs), "parameters": sorted(self.parameters),
                  "temperature": self.temperature, "calibrated_on": self.calibrated_on,
                  **({"conformity": self.conformity} if self.conformity else {})}
        tensors |= {f"parameters.{name}": value.detach().cpu().contiguous().clone()
                    for name, value in self.parameters.items()}
        write_adapter(Path(folder), config, tensors, self._card(facts))

    def _card(self, facts: Mapping[str, str]) -> str:
        values = "\n".join(f"| {name} | {value} |" for name, value in self.hyperparameters.items())
        names = self.class_names[:_NAMED]
        further = f" and {len(self.class_names) - _NAMED:,} more" if len(self.class_names) > _NAMED else ""
        known = {"classes": f"{', '.join(names)}{further}", **facts}
        told = "\n".join(f"| {name} | {markdown_cell(value)} |" for name, value in known.items())
        modules = sorted({kind.__module__ for kind in plugin_heads(self.head)})
        command = " ".join(["onceclip predict THIS_FOLDER IMAGES...", *(f"--import {each}" for each in modules)])
        needed = f" It runs code of its author: {', '.join(modules)}." if modules else ""
        return (f"---\nlibrary_name: onceclip\ntags: [clip, few-shot, {self.method}]\n---\n\n"
                f"# {self.method}\n\nA few-shot classifier of {len(self.class_names)} classes on embeddings of "
                f"`{self.encoder.get('name', 'unknown')}` ({self.dim} dimensions).\n\n"
                f"| | |\n| --- | --- |\n{told}\n\n"
                f"| hyperparameter | value |\n| --- | --- |\n{values}\n\n"
                f"Probabilities: {self._calibration()}.\n\n"
                f"Use it with `{command}`.{needed}\n")

    def _calibration(self) -> str:
        if not self.calibrated_on:
            return "softmax of the logits, uncalibrated"
        rows = {"val": "validation images", "loo": "the training images, each left out in turn",
                "held-out": "training images that were held out"}
        return (f"softmax of the logits over the temperature {self.temperature:.4g}, fitted on "
                f"{rows.get(self.calibrated_on, self.calibrated_on)}")


def load_classifier(folder: str | Path, modules: str | Sequence[str] = ()) -> Classifier:
    """Read a classifier that `Classifier.save` wrote.

    modules: name or names of modules that are imported, so that heads and methods from them may be taken: a file's word
        alone imports nothing.
    Raises AdapterFileError if the folder holds none, or one of a newer format or with a head of another module.

    Example:
        >>> onceclip.adapters.TipAdapter().fit(task).save("pets-tip")
        >>> onceclip.load_classifier("pets-tip").logits(embeddings).shape
        torch.Size([5, 4])
    """
    if not isinstance(folder, str | Path):
        raise AdapterFileError(f"{short(folder)} is no path: give the folder that `onceclip fit --out` wrote")
    if "://" in str(folder):
        raise AdapterFileError(f"{folder} is a URL, which evaluate, predict and export take as it is: give a folder of "
                               "this machine here")
    folder = Path(folder)
    modules = [modules] if isinstance(modules, str) or not isinstance(modules, Sequence) else modules
    for module in modules:
        import_module(module)
    config, tensors = read_adapter(folder)
    try:
        return _classifier(config, tensors, modules, str(folder))
    except MethodError as error:
        raise AdapterFileError(str(error)) from error
    except AdapterFileError:
        raise
    except Exception as error:  # torch and Python have many types for a head whose parts do not fit
        raise damaged(folder / CONFIG, f"{type(error).__name__}: {error}") from error


def _classifier(config: Mapping[str, Any], tensors: dict[str, Tensor], modules: Sequence[str],
                where: str) -> Classifier:
    """A classifier whose parts fit each other. Raises errors of any type where they do not."""
    names, dim = config["class_names"], config["dim"]
    head = unpack(from_json(config["head"], modules, where), tensors)
    for part in parts_of(head):  # before it takes memory for so many
        classes = getattr(part, "classes", len(names))
        if not is_plugin(type(part)) and classes != len(names):
            raise ValueError(f"{len(names)} class_names, and a {part.name} of {classes} classes")
    with torch.no_grad():
        logits = head(torch.zeros(1, dim, dtype=head.dtype))
    if logits.shape != (1, len(names)) or not head.dtype.is_floating_point:
        raise ValueError(f"{len(names)} class_names, and logits of shape {tuple(logits.shape)}")
    hyperparameters = {RENAMED.get(name, name): value for name, value in config["hyperparameters"].items()}
    parameters = {name: tensors[f"parameters.{name}"] for name in config["parameters"]}
    return Classifier(head, tuple(names), dim, config["method"], hyperparameters, config["provenance"],
                      tuple(config["inputs"]), parameters, float(config["temperature"]), config["calibrated_on"],
                      config["conformity"])


def to_device(classifiers: Sequence[Classifier], where: torch.device | str) -> list[Classifier]:
    """Copies of classifiers on another device; tensors that they share are shared there, too."""
    copies: dict[Any, Tensor] = {}

    def move(value: Tensor) -> Tensor:
        memory = value.data_ptr(), value.dtype, value.shape, value.stride()
        if memory not in copies:
            copies[memory] = value.detach().to(where)
        return copies[memory]

    moves = []
    for classifier in classifiers:
        description, tensors = pack(classifier.head, copy=False)
        head = unpack(description, {name: move(value) for name, value in tensors.items()})
        parameters = {name: move(value) for name, value in classifier.parameters.items()}
        moves.append(replace(classifier, head=head, parameters=parameters))
    return moves


class ClassifierModule(nn.Module):
    """A classifier that moves, compiles and exports as any module does; its tensors are buffers.

    Raw embeddings (rows, dim) go in; float32 logits and probabilities, both (rows, classes), come out. Rows are not
    looked at: NaN in gives NaN out.

    classifier: the fitted one; its tensors are copied.

    Example:
        >>> module = onceclip.adapters.ClassifierModule(onceclip.adapters.TipAdapter().fit(task))
        >>> logits, probabilities = module(embeddings)
        >>> logits.shape, probabilities.shape
        (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.class_names = classifier.class_names
        self.temperature = classifier.temperature
        self._normalize = classifier.inputs == (EMBEDDING,)
        self._description, tensors = pack(_without_branches(classifier.head))
        self._names = {name: name.replace(".", "_") for name in tensors}
        for name, values in tensors.items():
            self.register_buffer(self._names[name], values)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Score raw embeddings (rows, dim)."""
        head = unpack(self._description, {name: getattr(self, buffer) for name, buffer in self._names.items()})
        rows = embeddings.to(head.dtype)
        logits = head(unit(rows) if self._normalize else rows).float()
        return logits, (logits / self.temperature).softmax(dim=-1)


def _without_branches(head: Head) -> Head:
    """The same head with nothing in it that looks at the values of tensors, which no exported program can do.

    A cache adds up its keys by a matrix (keys, classes) instead of by their labels.
    """
    if isinstance(head, Kernel):
        value = one_hot(head.label, head.classes).to(head.keys)
        return KernelMachine(head.keys, value if head.weight is None else value * head.weight.unsqueeze(1), head.beta)

    def inner(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(inner(each) for each in value)
        return _without_branches(value) if isinstance(value, Head) else value

    return replace(head, **{field.name: inner(getattr(head, field.name))  # type: ignore[type-var]
                            for field in fields(head)})  # type: ignore[arg-type]
