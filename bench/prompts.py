"""A training step of CoOp: the published form on cached images, the same with live images, and ours.

The published form encodes the whole context of every class, beginning included, and in its own code the images of the
batch anew. 100 classes x 16 shots with the text tower of ViT-B/32 and random weights, batches of 32 rows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bench.measure import Row, Seconds, bench, in_turn, make_row, ratio
from bench.text import prompts
from onceclip.adapters import CoOp, Rows, Task, Text, TextTower
from onceclip.adapters.training.loop import Run, Training
from onceclip.adapters.training.optimizer import Position
from onceclip.pipeline.prompts.tower import written_tower

LENGTH = 16  # learned tokens


def make_task(model: Any, tokenizer: Any, classes: int, shots: int) -> tuple[Task, Tensor]:
    """A task on random rows, with the model's tower, and the token ids of its prompts with place for learned tokens."""
    names = [sentence.removeprefix("a bad photo of a ").removesuffix(".") for sentence in prompts(classes, 0.0)
             if sentence.startswith("a bad photo of a ")]
    tensors, spec = written_tower(model, "the model")
    ids = tokenizer([" ".join(["x"] * LENGTH) + f" {name}." for name in names])
    tails = [[each for each in row.tolist()[1 + LENGTH:] if each] for row in ids]
    spec |= {"start": [int(ids[0, 0])], "end": [tails[0][-1]], "fill": 0, "phrases": {},
             "names": {name: tail[:-1] for name, tail in zip(names, tails, strict=True)},
             "stems": {name: len(tail) - 2 for name, tail in zip(names, tails, strict=True)}}
    kept = torch.tensor(sorted({0, *ids.flatten().tolist()}))
    tower = TextTower.checked(tensors | {"tokens": tensors["tokens"][kept], "token_ids": kept}, spec)
    random = torch.Generator().manual_seed(0)
    label = torch.arange(classes).repeat_interleave(shots)
    text = Text(torch.randn(classes, tower.dim, generator=random), torch.arange(classes), tuple(names))
    return Task(text, Rows(torch.randn(len(label), tower.dim, generator=random), label), tower=tower), ids


class Published:
    """The training step as the field writes it, with the model's own modules."""

    def __init__(self, model: Any, ids: Tensor, context: Tensor) -> None:
        self.model, self.ids = model, ids
        with torch.no_grad():
            embedded = model.token_embedding(ids)
        self.before, self.behind = embedded[:, :1], embedded[:, 1 + LENGTH:]
        self.context = context.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.context], lr=2e-3, momentum=0.9, weight_decay=5e-4)

    def loss(self, rows: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of unit rows (n, dim)."""
        model = self.model
        prompts = torch.cat([self.before, self.context.expand(len(self.ids), -1, -1), self.behind], dim=1)
        states = model.transformer(prompts + model.positional_embedding, attn_mask=model.attn_mask)
        last = model.ln_final(states)[torch.arange(len(self.ids)), self.ids.argmax(dim=-1)]
        return cross_entropy(100 * rows @ normalize(last @ model.text_projection, dim=1).T, label)

    def step(self, rows: Tensor, label: Tensor) -> None:
        """One step on cached rows."""
        self.optimizer.zero_grad()
        self.loss(rows, label).backward()
        self.optimizer.step()

    def live(self, pixels: Tensor, label: Tensor) -> None:
        """One step that encodes its images first."""
        with torch.no_grad():
            rows = normalize(self.model.encode_image(pixels), dim=1)
        self.step(rows, label)


def timed(found: Seconds, name: str, way: Callable[[], object]) -> Callable[[], None]:
    """A way whose seconds of the processor are kept."""
    def run() -> None:
        begun = time.process_time()
        way()
        found[name].append(time.process_time() - begun)

    return run


@bench("prompts", small={"model": "ViT-S-32-alt", "classes": 4, "shots": 1, "repeats": 1})
@click.option("--model", default="ViT-B-32")
@click.option("--classes", default=100)
@click.option("--shots", default=16)
@click.option("--batch", default=32)
@click.option("--repeats", default=2)
def command(model: str, classes: int, shots: int, batch: int, repeats: int) -> Iterator[Row]:
    """A step of CoOp beside the published form."""
    torch.manual_seed(0)
    network = open_clip.create_model(model).eval().requires_grad_(False)
    task, ids = make_task(network, open_clip.get_tokenizer(model), classes, shots)
    method = CoOp(words="", length=LENGTH, optimizer="sgd", weight_decay=5e-4, schedule="constant", batch_size=batch)
    run = Run(method, task, method.prepare(task), 0)
    training = Training([run], [run.start], alone=True)
    published = Published(network, ids, run.start["context"])
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(classes * shots)[:batch])
    rows, label = task.support.unit[chosen], task.support.label[chosen]
    theirs, = torch.autograd.grad(published.loss(rows, label), published.context)
    ours = training.gradients(training.parameters, {}, None, rows, label)[0]
    size = network.visual.image_size
    pixels = torch.randn(len(chosen), 3, *((size, size) if isinstance(size, int) else size))
    first, own = "the published form, cached images", "ours"
    processor: Seconds = defaultdict(list)  # times of the processor alone say more on a machine that others use
    seconds = in_turn({first: timed(processor, first, lambda: published.step(rows, label)),
                       "the published form, live images": lambda: published.live(pixels, label),
                       own: timed(processor, own, lambda: training.step(rows, label, Position(0, 1, 0, 1)))},
                      repeats, warm=1)
    yield make_row(f"a step of CoOp, {model}", {"classes": classes, "shots": shots, "batch": batch}, seconds, [own],
                   goals={"17": ratio(seconds, first, own)} if (model, classes) == ("ViT-B-32", 100) else None,
                   threads=torch.get_num_threads(), processor_ratio=ratio(processor, first, own),
                   gradient_difference=float((ours - theirs).norm() / theirs.norm()))
