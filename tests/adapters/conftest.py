"""Synthetic tasks: separable classes around fixed centres, with the shared offset that CLIP embeddings have."""

import pytest
import torch

from onceclip.adapters import METHODS, Rows, Task, Text

VARIANTS = [("clip-adapter", {"branch": "text"}), ("clip-adapter", {"branch": "both"}),
            ("clip-adapter", {"branch": "both", "learn_ratio": True})]
QUICK = {"epochs": 15, "batch_size": 0, "l2": 0.03}  # a strong decay, so that the solver's tolerance does not show


def _centres(classes, dim):
    generator = torch.Generator().manual_seed(classes * 1000 + dim)
    basis = torch.linalg.qr(torch.randn(max(dim, classes), max(dim, classes), generator=generator))[0]
    return basis[:classes, :dim]


def _rows(shots, dim, views=0, noise=0.3, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(shots)), torch.tensor(shots))
    offset = torch.full((dim,), 0.2)

    def draw():
        points = _centres(len(shots), dim)[label] + offset + noise * torch.randn(len(label), dim, generator=generator)
        return (points * (0.5 + 9 * torch.rand(len(label), 1, generator=generator))).to(dtype)

    plain = draw()
    return Rows(plain, label, torch.stack([draw() for _ in range(views)], dim=1) if views else None)


def _task(shots=(4, 4, 4), dim=10, views=0, val=0, noise=0.3, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + 100)
    classes = len(shots)
    index = torch.cat([torch.full((2 + number % 3,), number) for number in range(classes)])
    prompts = _centres(classes, dim)[index] - 0.1 + 0.15 * torch.randn(len(index), dim, generator=generator)
    text = Text((3 * prompts).to(dtype), index, tuple(f"class {number}" for number in range(classes)))
    validation = _rows((val,) * classes, dim, noise=noise, seed=seed + 200, dtype=dtype) if val else None
    return Task(text, _rows(shots, dim, views, noise, seed, dtype), validation)


@pytest.fixture(scope="session")
def make_rows():
    """Function that draws labelled rows: `make_rows(shots_per_class, dim, views, noise, seed, dtype)`."""
    return _rows


@pytest.fixture(scope="session")
def make_task():
    """Function that draws a task with ragged prompts: `make_task(shots_per_class, dim, views, val, ...)`."""
    return _task


def _build(case, **more):
    name, values = case
    quick = {key: value for key, value in QUICK.items() if key in METHODS[name].hyperparameters}
    return METHODS[name](**{**quick, **values, **more})


@pytest.fixture(params=[(name, {}) for name in METHODS] + VARIANTS,
                ids=lambda case: "-".join(str(part) for part in (case[0], *case[1].values())))
def case(request):
    return request.param


@pytest.fixture
def method(case):
    return _build(case)


@pytest.fixture
def queries(make_rows):
    return make_rows((7, 7, 7), 10, noise=0.3, seed=50).embedding


@pytest.fixture(scope="session")
def make_method():
    """Function that builds a method of a case for quick tests: `make_method(case, **hyperparameters)`."""
    return _build
