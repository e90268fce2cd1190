"""Methods on a GPU, without one: a stand-in on which every use of tensors from two devices is an error.

Its tensors lie in ordinary memory, so that whole fits are carried out and compared with those of the CPU. But they say
that their device is CUDA, what is made of them does too, and they bear nothing beside them that was made elsewhere.
"""

from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from onceclip.adapters import (
    METHODS,
    ClipAdapter,
    MethodError,
    TipAdapter,
    ZeroShotLinearProbe,
    fit_all,
    fit_selected,
    transfer,
)
from onceclip.adapters.classifier import to_device
from onceclip.adapters.heads import pack
from onceclip.adapters.heads.batched import batched_logits
from onceclip.adapters.selection.search import Search
from onceclip.adapters.task import Stream

CUDA = torch.device("cuda")
ATTRIBUTES = {torch.Tensor.device: lambda there: CUDA if there else torch.device("cpu"),
              torch.Tensor.is_cuda: lambda there: there, torch.Tensor.is_cpu: lambda there: not there}


class MixedDevicesError(AssertionError):
    """What fails where there really are two devices."""


class SecondDevice(TorchFunctionMode):
    """Inside, "cuda" is a device.

    It is stricter than torch in one thing: torch takes a tensor of no dimensions from the CPU in many operations.
    """

    def __init__(self):
        super().__init__()
        self._there = {}  # the memory that lies there; kept, so that its address belongs to nothing else

    def has(self, tensor):
        """Whether a tensor lies there."""
        return _memory(tensor)._cdata in self._there

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        attribute = ATTRIBUTES.get(getattr(function, "__self__", None))
        if attribute is not None:
            return attribute(self.has(args[0]))
        if function is torch.device:
            return function(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [each for each in leaves if isinstance(each, torch.Tensor)]
        named = [torch.device(each).type == "cuda" for each in leaves if _is_device(each)]
        places = {self.has(each) for each in tensors}
        if isinstance(function, torch._ops.OpOverload):
            # Of a graph, whose operations were looked at as it was written; it names the memory's device.
            return self._put(function(*args, **kwargs), any(places))
        moves = name in ("to", "cpu", "cuda", "type_as")
        if len(places) > 1 and not moves and name != "copy_" and not self._in_brackets(name, args):
            listing = (f"{tuple(each.shape)} on {'cuda' if self.has(each) else 'cpu'}" for each in tensors)
            raise MixedDevicesError(f"{name} of {', '.join(listing)}")
        if name in ("numpy", "__array__") and places == {True}:
            raise MixedDevicesError(f"{name} of a tensor on cuda")
        there = self._target(name, tensors, named)
        if there and any(isinstance(each, torch.Generator) for each in leaves):
            raise MixedDevicesError(f"{name} on cuda with a generator of the CPU")
        given, more = tree_map(lambda each: "cpu" if _is_device(each) else each, (args, kwargs))
        result = args[0] if name == "cuda" else function(*given, **more)
        if moves and there != self.has(tensors[0]):
            result = result.clone()
        return self._put(result, there)

    def _in_brackets(self, name, args):
        """Whether it is an indexing that torch carries out: positions may be on the CPU, one value may come from it."""
        if name not in ("__getitem__", "__setitem__"):
            return False
        positions, values = ([each for each in tree_leaves(given) if isinstance(each, torch.Tensor)]
                             for given in (args[1], args[2:]))
        there = self.has(args[0])
        return (there or not any(map(self.has, positions))) and not (
            positions and any(self.has(each) != there for each in values))

    def _put(self, result, there):
        for each in tree_leaves(result) if there else ():
            if isinstance(each, torch.Tensor):
                memory = _memory(each)
                self._there[memory._cdata] = memory
        return result

    def _target(self, name, tensors, named):
        """Whether the result lies there."""
        if name in ("cpu", "cuda"):
            return name == "cuda"
        if named:
            return named[0]
        return bool(tensors) and self.has(tensors[-1] if name in ("to", "type_as") else tensors[0])


def _memory(tensor):
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


def _is_device(value):
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"))


def there_and_back(fit, task):
    """A classifier that is fitted on the second device, on the CPU."""
    with SecondDevice() as device:
        classifier = fit(task.to("cuda"))
        assert all(map(device.has, classifier.parameters.values()))
        return to_device([classifier], "cpu")[0]


def same_logits(fit, task, make_rows):
    """Assert that a classifier says on the CPU what it says when it was fitted on the second device."""
    expected = fit(task)
    queries = make_rows((7, 7, 7), 10, seed=50).input(expected.inputs)
    found = there_and_back(fit, task)
    torch.testing.assert_close(found.logits(queries), expected.logits(queries), rtol=1e-3, atol=1e-3)


def test_a_classifier_on_the_device_takes_rows_from_anywhere(make_task, make_rows):
    task, rows = make_task(), make_rows((4, 4, 4), 10, seed=50).embedding
    expected = TipAdapter().fit(task).logits(rows)
    with SecondDevice() as device:
        classifier = TipAdapter().fit(task.to("cuda"))
        found = [classifier.logits(each) for each in (rows.numpy(), rows, rows.to("cuda"))]
        assert not any(map(device.has, found))
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
    assert len(found) == 3


class Waiting:
    """In place of threads, which would not know of the stand-in."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *given):
        done = Future()
        done.set_result(function(*given))
        return done


@pytest.fixture
def full_task(make_task):
    """A task that has everything a method may look at, two templates that all classes share among it."""
    task = make_task((4, 4, 4), views=2, val=3)
    template = torch.cat([torch.arange(int(count)) for count in task.text.class_index.bincount()])
    shared, rest = template < 2, torch.randn(12, 10, generator=torch.Generator().manual_seed(1))
    text = replace(task.text, embedding=task.text.embedding[shared], class_index=task.text.class_index[shared],
                   template_id=template[shared])
    return replace(task, text=text, unlabelled=rest)


FAULTS = {
    "another tensor": lambda there, here: there + here,
    "in place": lambda there, here: there.add_(here),
    "product": lambda there, here: there @ here.T,
    "labels": lambda there, here: torch.nn.functional.cross_entropy(there, here[:, 0].long()),
    "number": lambda there, here: there * torch.tensor(2.0),
    "new tensor": lambda there, here: torch.where(there > 0, there, torch.zeros(3)),
    "list": lambda there, here: torch.stack([there, here]),
    "chosen": lambda there, here: there.index_select(0, torch.arange(2)),
    "mask": lambda there, here: here[there > 0],
    "written": lambda there, here: there.__setitem__(there[:, 0] > 0, here),
    "written here": lambda there, here: here.__setitem__(torch.tensor([0, 1]), there[:2]),
    "generator": lambda there, here: torch.randn(3, generator=torch.Generator(), device=there.device),
    "generator in place": lambda there, here: there.uniform_(generator=torch.Generator()),
    "numpy": lambda there, here: there.numpy(),
    "array": lambda there, here: np.asarray(there),
    "run axis": lambda there, here: torch.func.vmap(lambda row: row * torch.ones(3))(there),
    "run axis over another": lambda there, here: torch.func.vmap(lambda row: row * there[0])(here),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_stand_in_complains_of_what_is_not_on_its_device(fault):
    with SecondDevice():
        there = torch.ones(4, 3).to("cuda")
        with pytest.raises(MixedDevicesError):
            FAULTS[fault](there, torch.ones(4, 3))


def test_the_stand_in_keeps_to_its_device_what_is_made_of_its_tensors():
    with SecondDevice() as device:
        there, here = torch.ones(4, 3).to(CUDA), torch.ones(4, 3)
        weight = torch.zeros(3, device=there.device).requires_grad_()
        gradient, = torch.autograd.grad((there * weight).sum(), [weight])
        (there * weight).sum().backward()
        over_rows = torch.func.vmap(lambda row: row * torch.ones(3, device=row.device))(there)
        there[0], here[0] = here[0], there[0]
        for each in (there.T[1:], there[torch.tensor([0, 1])], there.double(), there.new_tensor([1.0]),
                     here.to(there), here.type_as(there), gradient, weight.grad, over_rows, *there.unbind(),
                     there.sort().indices, torch.zeros_like(there)):
            assert device.has(each)
            assert each.device == CUDA
        for each in (here, torch.ones(4), there.cpu(), there.to("cpu"), there.to(here), here.double()):
            assert not device.has(each)
            assert each.device.type == "cpu"
        assert (float(there.sum()), there.cpu().numpy().shape) == (12.0, (4, 3))


def test_a_method_that_makes_a_tensor_elsewhere_is_found(make_task):
    class Careless(ZeroShotLinearProbe):
        def training_head(self, prepared, parameters):
            head = super().training_head(prepared, parameters)
            return replace(head, bias=torch.zeros(prepared.classes))

    task = make_task()
    Careless(epochs=2).fit(task)
    with SecondDevice(), pytest.raises(MixedDevicesError, match=r"add of .* on cuda, \(1, 3\) on cpu"):
        Careless(epochs=2).fit(task.to("cuda"))


def test_a_method_fitted_on_another_device_is_what_it_is_on_the_cpu(case, make_method, full_task, make_rows):
    same_logits(lambda task: make_method(case).fit(task, seed=3), full_task, make_rows)


@pytest.mark.parametrize("name", METHODS)
def test_every_choice_of_a_method_keeps_to_the_device(name, make_method, full_task):
    """Whether it is a way to begin, to stop, to step or to train, no tensor is made elsewhere."""
    settings = METHODS[name].hyperparameters
    for choice in settings.keys() - {"preset"}:  # presets are made of the others
        quick = {"epochs": 2 if choice == "keep" else 1} if "epochs" in settings else {}
        known = {*settings[choice].choices, *((True, False) if isinstance(settings[choice].default, bool) else ())}
        for value in known - {settings[choice].default}:
            there_and_back(make_method((name, {}), **{choice: value, **quick}).fit, full_task)


@pytest.mark.parametrize("policy", ["val", "loo"])
@pytest.mark.parametrize("name", METHODS)
def test_hyperparameters_are_chosen_on_the_device_as_on_the_cpu(name, policy, make_method, make_task, make_rows):
    method = make_method((name, {}), **({"epochs": 4} if "epochs" in METHODS[name].hyperparameters else {}))
    search = Search("random", 3, narrow=policy == "val")
    with suppress(MethodError):  # many have no such form
        same_logits(lambda task: fit_selected(method, task, policy, seed=1, search=search).classifier,
                    make_task((4, 4, 4), val=3), make_rows)


def test_runs_that_are_trained_together_share_what_they_shared(make_task):
    methods = [TipAdapter(beta=beta) for beta in (1.0, 2.0, 3.0)]
    task = make_task((4, 4, 4), val=3)
    with SecondDevice():
        fitted = [each.classifier for each in fit_all(methods, task.to("cuda"))]
        back = to_device(fitted, "cpu")
    first, *others = (classifier.head.heads[1] for classifier in back)
    assert all(each.keys is first.keys and each.label is first.label for each in others)
    expected = batched_logits([each.classifier.head for each in fit_all(methods, task)], task.support.unit)
    found = batched_logits([each.head for each in back], task.support.unit)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.transfers])
def test_a_classifier_serves_other_classes_on_the_device(name, make_method, make_task):
    classifier, others = make_method((name, {})).fit(make_task((4, 4, 4))), make_task((3, 3, 3, 3), seed=5)
    queries = others.support.input(classifier.inputs)
    with SecondDevice():
        found, = to_device([transfer(classifier, others.to("cuda"))], "cpu")
    expected = transfer(classifier, others)
    torch.testing.assert_close(found.logits(queries), expected.logits(queries), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [ClipAdapter(epochs=2), ZeroShotLinearProbe(epochs=2, batch_size=4)])
def test_rows_that_are_read_in_every_epoch_come_to_the_device(method, make_task, make_rows, monkeypatch):
    monkeypatch.setattr("onceclip.adapters.task.ThreadPoolExecutor", Waiting)
    task = make_task((4, 4, 4))
    embedding = task.support.embedding.numpy()
    support = Stream(task.support.label, lambda places: embedding[places], torch.empty(0))
    same_logits(lambda task: method.fit(task, seed=1), replace(task, support=support), make_rows)


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a second device")


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("more", [{"select": "fixed"}, {"select": "val"}, {"stream": True}, {"classes": "base"}])
def test_a_run_is_trained_on_the_device_and_scored_on_the_cpu(store_path, monkeypatch, more):
    from onceclip.pipeline.runs.fit import fit
    from onceclip.pipeline.runs.run import RunSpec
    from onceclip.stores import open_store

    monkeypatch.setattr("onceclip.adapters.task.ThreadPoolExecutor", Waiting)
    store = open_store(str(store_path))
    spec = RunSpec("clip-adapter", 4, 1, {"epochs": 3}, **more)
    expected = fit(store, spec)
    with SecondDevice() as device:
        found = fit(store, spec, device="cuda")
        _, tensors = pack(found.classifier.head, copy=False)
        assert not any(map(device.has, [*tensors.values(), *found.classifier.parameters.values()]))
    assert (expected.row["device"], found.row["device"]) == ("cpu", "a second device")
    for name in ("run", "hyperparameters", "accuracy", "accuracy_val", "accuracy_new"):
        assert found.row.get(name) == expected.row.get(name), name
    assert found.row["nll"] == pytest.approx(expected.row["nll"], rel=1e-3)


@pytest.mark.usefixtures("one_gpu")
def test_an_estimator_is_trained_on_the_device(make_rows):
    from onceclip import FewShotClassifier

    rows = make_rows((5, 5, 5), 10)
    values, label = rows.embedding.numpy(), rows.label.numpy()
    expected = FewShotClassifier("tip-adapter", select="val").fit(values, label).predict_proba(values)
    with SecondDevice():
        found = FewShotClassifier("tip-adapter", select="val", device="cuda").fit(values, label).predict_proba(values)
    np.testing.assert_allclose(found, expected, atol=1e-5)
