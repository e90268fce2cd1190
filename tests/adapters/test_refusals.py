"""Data that does not line up is refused in one line instead of giving a silent wrong answer."""

import numpy as np
import pytest
import torch

from onceclip.adapters import MethodError, Rows, Task, Text, TipAdapter, ZeroShotLinearProbe

NAMES = ("ant", "bee", "cat")
NAN = torch.full((3, 4), float("nan"))


def text(embedding=None, index=(0, 1, 2), names=NAMES):
    return Text(torch.eye(3, 4) if embedding is None else embedding, torch.tensor(index), names)


def rows(embedding=None, label=(0, 1, 2), views=None):
    return Rows(torch.eye(3, 4) if embedding is None else embedding, torch.tensor(label), views)


@pytest.mark.parametrize(("values", "message"), [
    ({"index": (0, 1, 1)}, "class 'cat' has no prompt"),
    ({"index": (0, 1, 3)}, "do not match"),
    ({"index": (0, 1, -1)}, "do not match"),
    ({"index": (0, 1)}, "do not match"),
    ({"index": (0, 0, 0), "names": ("ant",)}, "at least two classes"),
    ({"embedding": NAN}, "NaN"),
])
def test_text_that_does_not_line_up_is_refused(values, message):
    with pytest.raises(MethodError, match=message) as caught:
        Task(text(**values), rows())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["support", "val"])
@pytest.mark.parametrize(("values", "message"), [
    ({"label": (0, 1, 3)}, "labels go from 0 to 3"),
    ({"label": (0, -1, 2)}, "labels go from -1 to 2"),
    ({"label": (0, 1)}, "label"),
    ({"embedding": NAN}, "NaN"),
    ({"embedding": torch.full((3, 4), float("inf"))}, "infinity"),
    ({"embedding": torch.eye(3, 5)}, "5 dimensions"),
    ({"views": NAN.unsqueeze(1)}, "NaN"),
    ({"views": torch.ones(2, 1, 4)}, "views"),
    ({"views": torch.ones(3, 1, 5)}, "views"),
])
def test_rows_that_do_not_line_up_are_refused(place, values, message):
    given = {"support": rows(), place: rows(**values)}
    with pytest.raises(MethodError, match=message) as caught:
        Task(text(), **given)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def classifier():
    return TipAdapter().fit(Task(text(), rows()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_classifier_refuses_rows_that_are_not_finite(classifier, bad):
    queries = torch.ones(3, 4)
    queries[1, 2] = bad
    with pytest.raises(MethodError, match="NaN or infinity"):
        classifier.logits(queries)


@pytest.mark.parametrize("shape", [(2, 5), (4,), (1, 2, 4)])
def test_a_classifier_refuses_another_shape(classifier, shape):
    with pytest.raises(MethodError, match=r"takes \(rows, 4\)"):
        classifier.logits(torch.ones(shape))


@pytest.mark.parametrize("kind", ["int64", "float16", "float32", "float64"])
def test_a_classifier_takes_numpy_arrays_of_any_number_type(classifier, kind):
    queries = np.arange(8).reshape(2, 4) + 1
    expected = classifier.logits(torch.from_numpy(queries).float())
    torch.testing.assert_close(classifier.logits(queries.astype(kind)), expected)


def test_a_classifier_takes_read_only_arrays_such_as_memory_maps_without_a_warning(classifier):
    queries = np.ones((2, 4), dtype=np.float32)
    queries.setflags(write=False)
    assert torch.equal(classifier.logits(queries), classifier.logits(torch.ones(2, 4)))


def test_a_classifier_takes_reversed_and_strided_arrays(classifier):
    queries = np.arange(24, dtype=np.float32).reshape(6, 4)
    expected = classifier.logits(torch.from_numpy(queries))
    assert torch.equal(classifier.logits(queries[::-1]), expected.flip(0))
    assert torch.equal(classifier.logits(queries[::2]), expected[::2])


def test_a_classifier_gives_no_rows_for_no_rows(classifier):
    assert classifier.logits(torch.empty(0, 4)).shape == (0, 3)
    assert classifier.predict(torch.empty(0, 4)) == []


def test_a_classifier_fitted_in_double_precision_takes_single_precision(classifier):
    double = TipAdapter().fit(Task(text(), rows()).to(torch.float64))
    torch.testing.assert_close(double.logits(torch.ones(2, 4)), classifier.logits(torch.ones(2, 4)))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_labels_are_whole_numbers_of_any_type(kind):
    """Arrays of NumPy come with all of them, and torch's losses take one."""
    given, narrow = rows(), Rows(torch.eye(3, 4), torch.tensor((0, 1, 2)).to(kind))
    index = Text(torch.eye(3, 4), torch.tensor((0, 1, 2)).to(kind), NAMES)
    method = ZeroShotLinearProbe(epochs=2)
    assert torch.equal(method.fit(Task(index, narrow)).logits(torch.eye(3, 4)),
                       method.fit(Task(text(), given)).logits(torch.eye(3, 4)))


@pytest.mark.parametrize("make", [lambda: Rows(np.eye(3, 4), torch.arange(3)), lambda: Rows(torch.eye(3), np.arange(3)),
                                  lambda: Text(np.eye(3, 4), torch.arange(3), NAMES)])
def test_arrays_in_the_place_of_tensors_are_named_with_what_makes_tensors_of_them(make):
    with pytest.raises(MethodError, match=r"a ndarray in the place of a torch tensor: give torch.from_numpy\(array\)"):
        make()


@pytest.mark.parametrize(("of_text", "of_rows"), [(torch.float32, torch.float16), (torch.float64, torch.float32),
                                                  (torch.float16, torch.float16)], ids=str)
@pytest.mark.parametrize("method", [TipAdapter(), ZeroShotLinearProbe(epochs=2)], ids=lambda method: method.name)
def test_text_and_rows_are_of_one_precision_which_is_no_half_one(method, of_text, of_rows):
    """What CLIP gives on a GPU is float16, in which nothing here can be solved."""
    with pytest.raises(MethodError, match=r"give all of them as float32, such as with .float\(\)"):
        method.fit(Task(text(torch.eye(3, 4).to(of_text)), rows(torch.eye(3, 4).to(of_rows))))
