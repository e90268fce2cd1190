"""The format `onnx`: one file that ONNX Runtime and others run without torch."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from onceclip.errors import one_line
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export.model import OUTPUTS, Format, Subject
from onceclip.pipeline.export.torch_program import program_of, quiet

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 2**31 - 2**20  # bytes: what the format's container can hold, less room for the graph


class OnnxFile(Format):
    """An ONNX model with the metadata as its metadata_props."""

    name = "onnx"
    suffix = ".onnx"

    @staticmethod
    def write(subject: Subject) -> bytes:
        """The file; see `Format`. Raises ExportError also without the packages, and for more than 2 GiB."""
        _require_packages()
        program = program_of(subject)
        size = sum(values.numel() * values.element_size() for values in program.state_dict.values())
        if size > _LARGEST:
            raise ExportError(f"the file would have {size / 2**30:.1f} GiB, and one ONNX file holds 2 GiB at most: "
                              "export the adapter alone, without --with-encoder, or --to torch")
        try:
            with quiet():
                made = torch.onnx.export(program, dynamo=True, verbose=False, output_names=list(OUTPUTS),
                                         input_names=["embeddings" if subject.encoder is None else "pixels"])
        except Exception as error:  # the converter raises many types
            raise ExportError(f"ONNX does not have all that {subject.what} computes "
                              f"({one_line(error.__cause__ or error)}): use --to torch") from error
        assert made is not None
        model = made.model_proto
        _clean(model)
        for key, value in subject.metadata().items():
            model.metadata_props.add(key=key, value=value)
        return model.SerializeToString(deterministic=True)

    @staticmethod
    def run(content: bytes, values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities that a file gives of rows, in ONNX Runtime on the CPU; see `Format`."""
        import onnxruntime

        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        logits, probabilities = session.run(list(OUTPUTS), {session.get_inputs()[0].name: values.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(probabilities)


def _require_packages() -> None:
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ExportError(f"--to onnx needs the package {name}: pip install 'onceclip[onnx]'") from error


def _clean(model: Any) -> None:
    """Call the free dimension `batch`, and leave out where in the source each node comes from."""
    graph = model.graph
    for each in (*graph.input, *graph.output):
        for dimension in each.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = "batch"
    del graph.value_info[:]
    for each in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *model.functions,
                 *(node for function in model.functions for node in function.node)):
        del each.metadata_props[:]
        each.doc_string = ""
