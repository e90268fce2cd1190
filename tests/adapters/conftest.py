"""Synthetic tasks: separable classes around fixed centres, with the shared offset that CLIP embeddings have."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from onceclip.adapters import METHODS, Pool, Rows, Task, Text, TextTower

VARIANTS = [("clip-adapter", {"branch": "text"}), ("clip-adapter", {"branch": "both"}),
            ("clip-adapter", {"branch": "both", "learn_ratio": True}),
            ("taskres", {"learn_alpha": True, "enhanced": 5})]
QUICK = {"epochs": 15, "batch_size": 0, "l2": 0.03}  # a strong decay, so that the solver's tolerance does not show
OF_PROMPTS = {**{name: {"reduction": 4} for name in ("cocoop", "gopro", "stylip")}, "upl": {"top": 6},
              "eco": {"contexts": 2}, "ship": {"hidden": 16},
              "pre": {"epochs": 30, "learning_rate": 0.1}}
QUICK_OF = {"linear-probe-adamw": {"epochs": 60},  # starts from nothing, not from zero-shot
            "ape-t": {"similarity": 0.6, "channels": 512},  # where its two criteria choose different channels
            "multi-modal-adapter": {"bottleneck": 4, "head_width": 2},
             "labelling-network": {"epochs": 80, "learning_rate": 0.01}, "ss-text": {"text_weight": 100.0},
             "ranpac": {"features": 60}, "lafter-text": {"learning_rate": 1e-3},
             "reco": {"epochs": 3, "learning_rate": 2e-4, "neighbours": 3, "hidden": 16},
             # Adam makes whole steps of gradients that are rounding alone.
             **{name: {"optimizer": "sgd", "learning_rate": 1e-3, "epochs": 5, **OF_PROMPTS.get(name, {})}
                for name, method in METHODS.items() if method.wants_tower}}


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
    return Rows(plain, label, torch.stack([draw() for _ in range(views)], dim=1) if views else None, _others(plain))


def _projection(dim):
    """What turns the output before the projection, which is two wider, into the embedding."""
    return torch.linalg.qr(torch.randn(dim + 2, dim, generator=torch.Generator().manual_seed(dim)))[0]


def _others(embedding):
    """Further outputs of an encoder that has this embedding: before its projection, three tokens, and of them mean and
    deviation, as of two blocks.
    """
    tokens = torch.stack([embedding, embedding.roll(1, dims=1), 0.5 * embedding.flip(1)], dim=1)
    blocks = [torch.stack([each.mean(dim=1), each.std(dim=1) if len(each) else each[:, 0]], dim=1)
              for each in (tokens, tokens.square())]
    return {"caption": 0.5 * embedding + 0.1,
            "preproj": embedding @ _projection(embedding.shape[1]).T.to(embedding), "token": tokens,
            "statistics": torch.stack(blocks, dim=1)}


def _task(shots=(4, 4, 4), dim=10, views=0, val=0, noise=0.3, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + 100)
    classes = len(shots)
    index = torch.cat([torch.full((2 + number % 3,), number) for number in range(classes)])
    prompts = _centres(classes, dim)[index] - 0.1 + 0.15 * torch.randn(len(index), dim, generator=generator)
    text = Text((3 * prompts).to(dtype), index, tuple(f"class {number}" for number in range(classes)))
    validation = _rows((val,) * classes, dim, noise=noise, seed=seed + 200, dtype=dtype) if val else None
    others = _rows((4,) * classes, dim, noise=noise, seed=seed + 300, dtype=dtype)
    return Task(text, _rows(shots, dim, views, noise, seed, dtype), validation, projection=_projection(dim).to(dtype),
                tower=_tower(classes, dim).to(dtype), bank=Pool(others.embedding, others.others["caption"]))


NUMBERS = 64  # class names that the text tower knows: "class 0" and so on
WORDS = {"a": [5], "photo": [6], "of": [7], "a photo of a": [5, 6, 7, 5]}


@functools.cache
def _tower(classes, dim, layers=1, positions=24, **spec):
    """A text tower whose class vectors for "a photo of a class 0." and so on are the centres of the rows, nearly."""
    width, generator = max(16, classes + classes % 2), torch.Generator().manual_seed(dim)
    rows = [*range(8), *range(10, 10 + NUMBERS)]

    def draw(*shape, scale):
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {"tokens": draw(len(rows), width, scale=1.0), "token_ids": torch.tensor(rows),
               "positions": draw(positions, width, scale=0.2)}
    for name, shape in (("qkv", (3 * width, width)), ("out", (width, width)), ("up", (2 * width, width)),
                        ("down", (width, 2 * width))):
        tensors[f"{name}.weight"] = draw(layers, *shape, scale=shape[1]**-0.5)
        tensors[f"{name}.bias"] = draw(layers, shape[0], scale=0.1)
    for name in ("norm_1", "norm_2"):
        tensors[f"{name}.weight"] = 1 + draw(layers, width, scale=0.1)
        tensors[f"{name}.bias"] = draw(layers, width, scale=0.1)
    tensors["norm.weight"], tensors["norm.bias"] = 1 + draw(width, scale=0.1), draw(width, scale=0.1)
    spec = {"heads": 2, "activation": "gelu", "epsilon": 1e-5, "final_epsilon": 1e-5, "causal": True, "pool": "end",
            "start": [0], "end": [1], "fill": 2, "phrases": WORDS,
            "names": {f"class {number}": [4, 10 + number, 3] for number in range(NUMBERS)},
            "stems": {f"class {number}": 2 for number in range(NUMBERS)}, **spec}
    names = [f"class {number}" for number in range(classes)]
    plain = TextTower.checked(tensors, spec).of(names)
    states = plain.raw(plain.phrase("a photo of a")[None, None], "front")[0]
    tensors["projection.weight"] = torch.linalg.pinv(states) @ (_centres(classes, dim).double() - 0.1)
    return TextTower.checked(tensors, spec).of(names)


@pytest.fixture(scope="session")
def make_tower():
    """Function that makes a text tower in float64: `make_tower(classes, dim, layers, positions, **spec)`."""
    return _tower


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
    return METHODS[name](**{**quick, **QUICK_OF.get(name, {}), **values, **more})


@pytest.fixture(params=[(name, {}) for name in METHODS] + VARIANTS,
                ids=lambda case: "-".join(str(part) for part in (case[0], *case[1].values())))
def case(request):
    return request.param


@pytest.fixture
def method(case):
    return _build(case)


@pytest.fixture
def queries(request, make_rows):
    """Rows to classify: embeddings, or what else the method of a test over all methods takes."""
    name = request.getfixturevalue("case")[0] if "case" in request.fixturenames else "zero-shot"
    return make_rows((7, 7, 7), 10, noise=0.3, seed=50).input(METHODS[name].inputs)


@pytest.fixture(scope="session")
def make_method():
    """Function that builds a method of a case for quick tests: `make_method(case, **hyperparameters)`."""
    return _build


@pytest.fixture
def untie():
    """Function that makes a saved adapter one as older versions wrote it, whose files do not know each other."""

    def change(folder):
        config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        values = json.loads(config.read_text())
        del values["weights_sha256"]
        config.write_text(json.dumps(values))
        save_file(load_file(weights), weights, {"format": "pt"})

    return change
