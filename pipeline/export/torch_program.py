"""The format `torch`: a program of torch.export, which runs without onceclip."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export.model import Format, Subject

METADATA = "onceclip.json"
_EXAMPLES = 3  # rows: of one, torch would make a constant
_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


class TorchProgram(Format):
    """A .pt2 file, with the metadata as its extra file METADATA."""

    name = "torch"
    suffix = ".pt2"

    @staticmethod
    def write(subject: Subject) -> bytes:
        """The file; see `Format`."""
        file = io.BytesIO()
        with quiet():
            torch.export.save(program_of(subject), file, extra_files={METADATA: json.dumps(subject.metadata())})
        return file.getvalue()

    @staticmethod
    def run(content: bytes, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities that a file gives of rows; see `Format`."""
        with quiet(), torch.no_grad():
            logits, probabilities = torch.export.load(io.BytesIO(content)).module()(values)
        return logits, probabilities


def program_of(subject: Subject) -> torch.export.ExportedProgram:
    """The program for any number of rows, with nothing in it of the machine that it was made on.

    Raises ExportError if torch cannot follow the head or the encoder.
    """
    module, example = subject.module, (subject.random(_EXAMPLES),)
    shapes = ({0: torch.export.Dim("batch")},)
    # The first way fails on what asks for `len(rows)`, the second one on what Python's bytecode hides.
    for strict in (False, True):
        try:
            with torch.no_grad():
                program = torch.export.export(module, example, dynamic_shapes=shapes, strict=strict)
            return _without_traces(program)
        except Exception as error:  # torch raises many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ExportError(f"torch.export cannot follow {subject.what} ({reason}): use `onceclip predict`, or the adapter's "
                      "own folder from Python")


def _without_traces(program: Any) -> Any:
    """Leave out paths of source files, which differ between machines, and weights that nothing reads."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for name in _TRACES:
                node.meta.pop(name, None)
    unread = {node.name: node for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    specs = program.graph_signature.input_specs
    for spec in [each for each in specs if each.target is not None and each.arg.name in unread]:
        specs.remove(spec)
        program.graph.erase_node(unread[spec.arg.name])
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    program.graph_module.recompile()
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the remarks of converters, which no user can act on, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
