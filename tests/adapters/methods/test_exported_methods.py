"""Every method runs in other programs; one that is added to `METHODS` is tested without a change."""

import onnxruntime
import pytest
import torch

from onceclip.adapters import METHODS, CoCoOp, ZeroShot
from onceclip.adapters.heads import pack
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.export import export
from onceclip.pipeline.export.export import FORMATS


def answers_of(path, rows):
    session = onnxruntime.InferenceSession(path)
    given, = session.get_inputs()
    assert given.shape == ["batch", rows.shape[1]]
    return [torch.from_numpy(values) for values in session.run(["logits", "probabilities"], {given.name: rows.numpy()})]


def agree(found, expected, what):
    """To 1e-4, or 16 roundings of the largest logit, and on every class but ties."""
    allowed = max(1e-4, 16 * torch.finfo(torch.float32).eps * float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= allowed, what
    first, second = expected.topk(2, dim=1).values.T
    clear = first - second > 2 * allowed
    assert clear.any(), what
    assert torch.equal(found.argmax(dim=1)[clear], expected.argmax(dim=1)[clear]), what


def form_of(fitted):
    """What an exported program depends on: the head and its numbers' types, not their values."""
    def form(value):
        if isinstance(value, dict):
            return tuple((key, form(each)) for key, each in value.items())
        return tuple(map(form, value)) if isinstance(value, list) else "number" if isinstance(value, float) else value

    return form(pack(fitted.head)[0]), fitted.inputs


@pytest.mark.slow
def test_onnx_runtime_says_what_torch_says_of_every_method(make_method, make_task, make_rows, tmp_path):
    """Also for one row, and for a number that the export has not seen; of methods with one form of head one is run."""
    task, path = make_task((2, 5, 4)), tmp_path / "adapter.onnx"
    cases = [*((name, {}) for name, method in METHODS.items() if not issubclass(method, CoCoOp)),
             ("clip-adapter", {"branch": "both", "learn_ratio": True}), ("zero-shot", {"prompts": "max"})]
    fitted = [make_method(case).fit(task) for case in cases]
    forms = {form_of(each): each for each in fitted}
    assert len(cases) > len(forms) > 10
    for each in forms.values():
        queries = make_rows((7, 7, 7), 10, noise=0.3, seed=50).input(each.inputs)
        made = export(each, "onnx", path, check=queries)
        assert (made.file, made.rows, made.size) == (path, len(queries), path.stat().st_size)
        for rows in (queries, queries[:1]):
            logits, probabilities = answers_of(path, rows)
            agree(logits, each.logits(rows), each.method)
            agree(probabilities, each.probabilities(rows), each.method)
        assert [file.name for file in tmp_path.iterdir()] == ["adapter.onnx"]


@pytest.mark.parametrize("name", ["linear-probe", "tip-adapter", "linear-probe-preproj", "vt-clip"])
def test_a_torch_program_says_what_the_classifier_says_without_onceclip(name, make_method, make_task, make_rows,
                                                                        tmp_path):
    fitted = make_method((name, {})).fit(make_task((2, 5, 4)))
    queries = make_rows((7, 7, 7), 10, seed=50).input(METHODS[name].inputs)
    export(fitted, "torch", tmp_path / "a.pt2", check=queries)
    program = torch.export.load(tmp_path / "a.pt2").module()
    for rows in (queries, queries[:1]):
        logits, probabilities = program(rows)
        agree(logits, fitted.logits(rows), name)
        agree(probabilities, fitted.probabilities(rows), name)


@pytest.mark.parametrize("break_it", [lambda logits: logits + 1e-3, lambda logits: logits.roll(1, dims=1),
                                      lambda logits: logits * float("nan")])
def test_a_file_that_says_something_else_is_not_left_behind(make_task, tmp_path, monkeypatch, break_it):
    fitted, path = ZeroShot().fit(make_task()), tmp_path / "a.safetensors"
    path.write_bytes(b"what was there")
    honest = FORMATS["safetensors"].run

    def run(file, values):
        logits, probabilities = honest(file, values)
        return break_it(logits), probabilities

    monkeypatch.setattr(FORMATS["safetensors"], "run", run)
    with pytest.raises(ExportError, match=r"a\.safetensors was not written: its answers differ"):
        export(fitted, "safetensors", path)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("a.safetensors", b"what was there")]
