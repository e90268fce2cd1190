"""How the field does it, in small frames: one run at a time on cached features, a double loop, a DataLoader."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot
from torch.utils.data import DataLoader, Dataset, TensorDataset

# What the published trainer of CLIP-Adapter loads at its start, by itself, by CLIP and by Dassl, of packages that are
# here; it also loads CLIP's weights, for which there is nothing here.
IMPORTS = ("torchvision.transforms", "ftfy", "regex", "tqdm", "yaml", "sklearn.metrics")


class Linear(nn.Module):
    """A linear head on unit features."""

    def __init__(self, weights: Tensor, keys: Tensor, label: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weights.shape[1], weights.shape[0])

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(rows)


class ClipAdapter(nn.Module):
    """The residual bottleneck on the image side."""

    def __init__(self, weights: Tensor, keys: Tensor, label: Tensor, ratio: float = 0.2) -> None:
        super().__init__()
        dim = weights.shape[1]
        self.net = nn.Sequential(nn.Linear(dim, dim // 4, bias=False), nn.ReLU(inplace=True),
                                 nn.Linear(dim // 4, dim, bias=False), nn.ReLU(inplace=True))
        self.weights, self.ratio = weights, ratio

    def forward(self, rows: Tensor) -> Tensor:
        mixed = self.ratio * self.net(rows) + (1 - self.ratio) * rows
        return 100 * (mixed / mixed.norm(dim=-1, keepdim=True)) @ self.weights.t()


class TipAdapterF(nn.Module):
    """The cache with trained keys, its labels as a dense one-hot matrix."""

    def __init__(self, weights: Tensor, keys: Tensor, label: Tensor) -> None:
        super().__init__()
        self.adapter = nn.Linear(keys.shape[1], keys.shape[0], bias=False)
        self.adapter.weight = nn.Parameter(normalize(keys, dim=-1))
        self.weights, self.values = weights, one_hot(label, len(weights)).float()

    def forward(self, rows: Tensor) -> Tensor:
        cache = (-(1 - self.adapter(rows))).exp() @ self.values
        return 100 * rows @ self.weights.t() + 1.17 * cache


MODELS: dict[str, Callable[..., nn.Module]] = {"linear": Linear, "clip-adapter": ClipAdapter,
                                               "tip-adapter-f": TipAdapterF}


def train(name: str, rows: Tensor, label: Tensor, weights: Tensor, epochs: int, learning_rate: float = 1e-3,
          seed: int = 0, batch_size: int = 256, weight_decay: float = 0.01, workers: int = 0, epsilon: float = 1e-4,
          start: Mapping[str, Tensor] | None = None, device: str = "cpu", **values: float) -> nn.Module:
    """Train one run: AdamW, cosine per step, loss and accuracy read at every step.

    rows: (rows, dim), raw. weights: (classes, dim), unit. workers: of the DataLoader, started anew in every epoch.
    start: parameters to start from, else those of torch's layers. device: where batches are sent to, and where weights
    are. values: of the model.
    """
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores are its way
    torch.manual_seed(seed)
    model = MODELS[name](weights, rows, label, **values).to(device)
    if start is not None:
        model.load_state_dict(start)
    loader = DataLoader(TensorDataset(rows, label), batch_size=batch_size, shuffle=True, num_workers=workers)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, eps=epsilon, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    for _ in range(epochs):
        right, total, losses = 0.0, 0, []
        for images, target in ((images.to(device), target.to(device)) for images, target in loader):
            logits = model(normalize(images, dim=-1))
            loss = cross_entropy(logits, target)
            right += (logits.argmax(dim=1) == target).float().sum().item()
            total += len(target)
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, rows: Tensor, label: Tensor) -> float:
    """Share of raw rows that a trained model is right about."""
    return (model(normalize(rows, dim=-1)).argmax(dim=1) == label).double().mean().item()


class Cache:
    """Tip-Adapter's search as the published script has it, with a dense one-hot matrix.

    rows, label: (rows, dim) unit and (rows,), on which settings are compared. keys, key_label: of the cache.
    weights: (classes, dim), unit.
    """

    def __init__(self, rows: Tensor, label: Tensor, keys: Tensor, key_label: Tensor, weights: Tensor) -> None:
        self.rows, self.label, self.keys = rows, label, keys.t().contiguous()
        self.values = one_hot(key_label, len(weights)).float()
        self.weights = weights.t().contiguous()

    def point(self, beta: float, alpha: float) -> float:
        """Accuracy at one point of the double loop, which computes everything anew."""
        affinity = self.rows @ self.keys
        cache = ((-1) * (beta - beta * affinity)).exp() @ self.values
        logits = 100.0 * self.rows @ self.weights + cache * alpha
        right = logits.topk(1, 1, True, True)[1].t().eq(self.label.view(1, -1))
        return right.reshape(-1).float().sum().item() / len(self.label)

    def kept(self, betas: Sequence[float], alphas: Sequence[float]) -> Tensor:
        """Accuracies (betas, alphas) with affinities, zero-shot logits and each beta's cache kept."""
        affinity, zero_shot, table = self.rows @ self.keys, 100.0 * self.rows @ self.weights, []
        for beta in betas:
            cache = ((-1) * (beta - beta * affinity)).exp() @ self.values
            table.append([((zero_shot + alpha * cache).argmax(dim=1) == self.label).double().mean()
                          for alpha in alphas])
        return torch.tensor(table)


class Files(Dataset):
    """Image files through open_clip's own preprocessing, for a DataLoader."""

    def __init__(self, files: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image)


def main() -> None:
    """One CLIP-Adapter run as a process of its own: features file, epochs, learning rate, ratio, seed."""
    import importlib
    import sys

    import numpy as np

    for name in IMPORTS:
        importlib.import_module(name)
    path, epochs, learning_rate, ratio, seed = sys.argv[1:]
    with np.load(path) as arrays:
        support, label, weights, test, target = (torch.from_numpy(arrays[name]) for name in
                                                 ("support", "label", "weights", "test", "target"))
    model = train("clip-adapter", support, label, weights, int(epochs), float(learning_rate), int(seed),
                  ratio=float(ratio))
    print(accuracy(model, test, target))  # noqa: T201


if __name__ == "__main__":
    main()
