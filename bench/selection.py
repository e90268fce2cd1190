"""Choosing Tip-Adapter's alpha and beta beside the double loop of the field's scripts: `python -m bench.selection`.

The published script computes affinities, cache and zero-shot logits anew at each of the 200 x 20 points; that loop is
timed on points spread over the grid and multiplied up. A second loop keeps what can be kept. The package finds, for
every beta, the interval of weights at which each row is right. One thread each; the loops have torch's own products.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench.measure import in_turn, record
from bench.synthetic import features
from onceclip.adapters import Rows, Task, Text
from onceclip.adapters.affinity import cache_logits
from onceclip.adapters.mixing import best_weight, intervals
from onceclip.adapters.threads import threads_for

BETAS = [0.1 + number * (13 - 0.1) / 200 for number in range(200)]
NOISE = 5.0  # added to features that are too easy for any cell to differ
ALPHAS = [0.1 + number * (13 - 0.1) / 20 for number in range(20)]


class Peer:
    """The cache model as the field's script has it, with a dense one-hot matrix."""

    def __init__(self, task: Task, rows: Tensor, label: Tensor) -> None:
        self.rows, self.label, self.keys = rows, label, task.support.keys.t().contiguous()
        self.values = one_hot(task.support.label, task.classes).float()
        self.weights = task.text.class_weights.t().contiguous()

    def point(self, beta: float, alpha: float) -> float:
        """One point of the published search: the accuracy there."""
        affinity = self.rows @ self.keys
        cache = ((-1) * (beta - beta * affinity)).exp() @ self.values
        logits = 100.0 * self.rows @ self.weights + cache * alpha
        right = logits.topk(1, 1, True, True)[1].t().eq(self.label.view(1, -1))
        return right.reshape(-1).float().sum().item() / len(self.label)

    def kept(self) -> Tensor:
        """The whole search with affinities and zero-shot logits kept, and each beta's cache: (betas, alphas)."""
        affinity, zero_shot, table = self.rows @ self.keys, 100.0 * self.rows @ self.weights, []
        for beta in BETAS:
            cache = ((-1) * (beta - beta * affinity)).exp() @ self.values
            table.append([((zero_shot + alpha * cache).argmax(dim=1) == self.label).double().mean()
                          for alpha in ALPHAS])
        return torch.tensor(table)


def ours(task: Task, rows: Tensor, label: Tensor, table: bool = False) -> Tensor:
    """For every beta the best accuracy of all weights up to 50 (betas,); or the table of the loop (betas, alphas)."""
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    with threads_for(0):
        zero_shot = rows @ task.zero_shot_weights.T
        caches = cache_logits(rows, task.support.keys, task.support.label, task.classes, BETAS)
        if table:
            return torch.stack([intervals(zero_shot, cache, label).accuracy(alphas) for cache in caches])
        return torch.tensor([best_weight(zero_shot, cache, label, 50.0).accuracy for cache in caches])


@click.command()
@click.option("--classes", default=100, show_default=True)
@click.option("--shots", default=16, show_default=True)
@click.option("--dim", default=512, show_default=True)
@click.option("--points", default=20, show_default=True, help="Points of the published loop that are timed.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Append the figures to this file, as JSON lines.")
def main(classes: int, shots: int, dim: int, points: int, repeats: int, out: Path | None) -> None:
    """Seconds of a 200 x 20 search with as many validation rows as keys, and how the tables differ."""
    torch.set_num_threads(1)
    embedding, label, text = (torch.from_numpy(each) for each in features(classes, 2 * shots, dim))
    embedding = embedding + NOISE * torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    val = torch.arange(len(label)) % 2 == 0
    task = Task(Text(text, torch.arange(classes), tuple(map(str, range(classes)))), Rows(embedding[~val], label[~val]))
    rows, label = Rows(embedding[val], label[val]).unit, label[val]
    peer = Peer(task, rows, label)
    spread = [(BETAS[number * len(BETAS) // points], ALPHAS[number % len(ALPHAS)]) for number in range(points)]
    seconds = in_turn({"loop": lambda: [peer.point(beta, alpha) for beta, alpha in spread],
                       "ours": lambda: ours(task, rows, label)}, repeats)
    kept = in_turn({"kept": peer.kept}, 1, 0)["kept"]
    loop, own = seconds["loop"] * len(BETAS) * len(ALPHAS) / points, seconds["ours"]
    table, theirs = ours(task, rows, label, table=True), peer.kept()
    different = ((table - theirs).abs() * len(label)).round()
    click.echo(f"published loop {loop:.0f} s (from {points} points), with what can be kept {kept:.1f} s, "
               f"ours {own:.3f} s: {loop / own:.0f}x and {kept / own:.0f}x")
    click.echo(f"{int((different > 0).sum())} of {table.numel()} cells differ, by {int(different.max())} of "
               f"{len(label)} rows at most; best of the table {theirs.max():.4f}, of all weights "
               f"{ours(task, rows, label).max():.4f}")
    record(out, "selection", classes=classes, shots=shots, dim=dim, loop=loop, kept=kept, ours=own,
           cells_that_differ=int((different > 0).sum()))


if __name__ == "__main__":
    main()
