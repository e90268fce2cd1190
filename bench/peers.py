"""Training adapters on cached features as the field does: one run at a time, a DataLoader, a log of every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot
from torch.utils.data import DataLoader, TensorDataset


class Linear(nn.Module):
    """A linear head on unit features."""

    def __init__(self, weights: Tensor, keys: Tensor, label: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weights.shape[1], weights.shape[0])

    def forward(self, rows: Tensor) -> Tensor:
        return 100 * self.head(rows)


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
        self.adapter.weight = nn.Parameter(keys.clone())
        self.weights, self.values = weights, one_hot(label, len(weights)).float()

    def forward(self, rows: Tensor) -> Tensor:
        cache = (-(1 - self.adapter(rows))).exp() @ self.values
        return 100 * rows @ self.weights.t() + 1.17 * cache


MODELS = {"linear": Linear, "clip-adapter": ClipAdapter, "tip-adapter-f": TipAdapterF}


def train(name: str, rows: Tensor, label: Tensor, weights: Tensor, epochs: int, learning_rate: float = 1e-3,
          seed: int = 0) -> nn.Module:
    """Train one run: AdamW, cosine per step, batches of 256, loss and accuracy read at every step."""
    torch.manual_seed(seed)
    model = MODELS[name](weights, rows, label)
    loader = DataLoader(TensorDataset(rows, label), batch_size=256, shuffle=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(loader))
    for _ in range(epochs):
        right, total, losses = 0.0, 0, []
        for images, target in loader:
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
