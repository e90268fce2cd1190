"""Training for retrieval on the captions of the train split, with the epoch that is best on val; kept in a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters.errors import AdapterFileError, unknown
from onceclip.adapters.saving import CONFIG, FORMAT, RETRIEVAL, file_of, read_adapter, write_adapter
from onceclip.adapters.training.loop import Progress, no_progress
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.evaluation import rank_all
from onceclip.pipeline.retrieval.items import Captioned, captioned, ranges, read_frames, unit_text
from onceclip.pipeline.retrieval.recipes import RECIPES, Batch, Maps, Trained
from onceclip.pipeline.retrieval.similarity import DIRECTIONS, MEAN, Gallery, Similarity
from onceclip.pipeline.words import version
from onceclip.stores import Store, StoreMismatch, TextSet

_SCALE = 100.0  # of an encoder that does not say its own


def train(store: Store, text: TextSet, name: str, recipe: str, negatives: TextSet | None = None, seed: int = 1,
          epochs: int | None = None, learning_rate: float | None = None, progress: Progress = no_progress) -> Trained:
    """Train maps on the train split's captions; val captions, where there are any, choose the epoch.

    The start, which is the pooling `mean` (of contra the middle row), is among the epochs that are compared: training
    never gives what is worse on val.
    negatives: false captions of the same items, another set of captions.
    Raises RetrievalError if the train split has under two captioned items, or training diverges.
    """
    if recipe not in RECIPES:
        raise RetrievalError(unknown("training", recipe, RECIPES))
    made = RECIPES[recipe]
    epochs = made.epochs if epochs is None else epochs
    rate = made.learning_rate if learning_rate is None else learning_rate
    if negatives is not None and not made.takes_negatives:
        takers = ", ".join(each for each, its in RECIPES.items() if its.takes_negatives)
        raise RetrievalError(f"{recipe} makes its negatives itself: leave --negatives out, or train {takers}")
    pairs = captioned(store, text, "train", name)
    if len(pairs.items) < 2:
        raise RetrievalError(f"{store.path}: the train split has a single captioned item: training takes two at least")
    frames = read_frames(store, pairs.items).to(torch.float32)
    false, begin = _false_captions(store, pairs, negatives)
    judge = _judge(store, text, name)
    scale = float(store.encoder.get("logit_scale") or _SCALE)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = made.make(store.dim, int(frames.pointer.diff().max()))

        def losses() -> Iterator[Tensor]:
            """The loss of every step of an epoch: all items once in any order, each with one of its captions."""
            order, captions = random.permutation(len(pairs.items)), pairs.pointer
            for chosen in np.array_split(order, max(1, round(len(order) / made.batch_size))):
                words = maps.text(unit_text(pairs.text[_one_of_each(captions, chosen, random)]))
                wrong = words[:0] if negatives is None else maps.text(false[_one_of_each(begin, chosen, random)])
                yield made.loss(Batch(words, maps.items(frames.chosen(chosen)), wrong, scale, random))

        best, best_score, best_epoch = copy.deepcopy(maps.state_dict()), judge(maps), 0
        for epoch in descend(maps, losses, epochs, rate, made.weight_decay, progress):
            score = judge(maps)
            if score is None or best_score is None or score > best_score:
                best, best_score, best_epoch = copy.deepcopy(maps.state_dict()), score, epoch
    maps.load_state_dict(best)
    return Trained(maps.eval().requires_grad_(False), {"trained": {
        "recipe": recipe, "source": made.source, "split": "train", "items": len(pairs.items),
        "captions": len(pairs.owner), "false_captions": len(false),
        "negatives": negatives.fingerprint if negatives else None, "epochs": epochs, "epoch": best_epoch,
        "chosen_by": "mAP on val" if best_score is not None else "last epoch", "val_map": best_score,
        "batch_size": made.batch_size, "learning_rate": rate, "weight_decay": made.weight_decay, "seed": seed}})


def descend(maps: Maps, losses: Callable[[], Iterable[Tensor]], epochs: int, rate: float, weight_decay: float = 0.01,
            progress: Progress = no_progress) -> Iterator[int]:
    """Train by AdamW: a step for every loss of an epoch, in the order given; yields the epochs as they end.

    Raises RetrievalError if a loss is not finite.
    """
    optimizer = torch.optim.AdamW(maps.parameters(), rate, weight_decay=weight_decay)
    for epoch in range(1, epochs + 1):
        maps.train()
        for loss in losses():
            if not torch.isfinite(loss):
                raise RetrievalError(f"training diverged in epoch {epoch}: use a smaller learning rate than {rate:g}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield epoch
        progress(epoch / epochs)


def _false_captions(store: Store, pairs: Captioned, negatives: TextSet | None) -> tuple[Tensor, np.ndarray]:
    """Unit texts of false captions, item by item, and where those of each item begin."""
    if negatives is None:
        return torch.empty(0, store.dim), np.zeros(len(pairs.items) + 1, np.int64)
    if not negatives.is_captions:
        raise RetrievalError("false captions are a set of captions: make one with `onceclip text STORE --captions FILE "
                             "--name negatives`")
    place = {name: number for number, name in enumerate(negatives.classes)}
    theirs = np.array([place.get(name, -1) for name in pairs.items.names.tolist()])
    rows, begin = ranges(negatives.class_ptr[theirs], np.where(theirs < 0, 0, np.diff(negatives.class_ptr)[theirs]))
    if not len(rows):
        raise RetrievalError(f"{store.path}: no false caption belongs to an item of the train split")
    return unit_text(torch.from_numpy(negatives.embedding[rows])), begin


def _one_of_each(begin: np.ndarray, chosen: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One of the rows of each chosen item that has any. begin: (items + 1,) where each one's rows begin."""
    low, high = begin[chosen], begin[chosen + 1]
    drawn = low + (random.random(len(chosen)) * (high - low)).astype(np.int64)
    return drawn[high > low]


def _judge(store: Store, text: TextSet, name: str) -> Callable[[Maps], float | None]:
    """What scores maps: mean of both directions' mAP on val, or None where val has no captions."""
    try:
        found = captioned(store, text, "val", name)
    except RetrievalError:
        return lambda maps: None
    frames = read_frames(store, found.items).to(torch.float32)

    def score(maps: Maps) -> float:
        maps.eval()
        with torch.no_grad():
            words = maps.text(unit_text(found.text))
            gallery = Gallery(MEAN, maps.items(frames), None)
            return float(np.mean([rank_all(Similarity(words, gallery, direction), found).precision.mean()
                                  for direction in DIRECTIONS]))

    return score


def save_maps(folder: Path, trained: Trained, store: Store) -> None:
    """Write trained maps, with the encoder and the store that they are of.

    Raises AdapterFileError if a file cannot be written.
    """
    made, encoder = trained.made_by["trained"], store.encoder
    tensors = {name: value.detach().contiguous().clone() for name, value in trained.maps.state_dict().items()}
    write_adapter(folder, {"format": FORMAT, "task": RETRIEVAL, "recipe": made["recipe"], "dim": store.dim,
                           "trained": made, "encoder": {"name": encoder["name"], "fingerprint": encoder["fingerprint"]},
                           "store": store.fingerprint, "version": version()}, tensors,
                  f"# {made['recipe']}\n\nMaps of {RECIPES[made['recipe']].source} for retrieval on embeddings of "
                  f"`{encoder['name']}` ({store.dim} dimensions), trained on {made['captions']:,} captions of "
                  f"{made['items']:,} items.\n\nUse them with `onceclip retrieve STORE --map THIS_FOLDER`.\n")


def load_maps(folder: Path, store: Store) -> Trained:
    """Trained maps that `save_maps` wrote.

    Raises AdapterFileError for files that are missing or damaged, RetrievalError for those of a classifier,
    StoreMismatch for another encoder's.
    """
    if not file_of(folder, CONFIG).exists():
        raise AdapterFileError(f"{folder} holds no trained maps (no {CONFIG} in it): give the folder that `onceclip "
                               "retrieve STORE --train NAME --save FOLDER` wrote")
    config, tensors = read_adapter(folder, _checked)
    encoder = config["encoder"]
    if (encoder["fingerprint"], config["dim"]) != (store.encoder["fingerprint"], store.dim):
        raise StoreMismatch(f"{folder} was trained on embeddings of {encoder['name']} ({encoder['fingerprint']}), "
                            f"{store.path} has those of {store.encoder['name']} ({store.encoder['fingerprint']}): name "
                            "a store of the same encoder")
    try:
        # No larger than the file: the head has as many positions as are stored, of the store's own width.
        maps = RECIPES[config["recipe"]].make(store.dim, len(tensors.get("position", ())) or 1)
        maps.load_state_dict(tensors)
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise ValueError("NaN or infinity")
    except (RuntimeError, ValueError) as error:
        raise AdapterFileError(f"{folder} is damaged ({' '.join(str(error).split())[:200]}): train anew with --save"
                               ) from error
    made = {"trained": {**config["trained"], "store": config["store"], "weights": config["weights_sha256"]}}
    return Trained(maps.eval().requires_grad_(False), made)


def _checked(config: Any) -> dict[str, Any]:
    """A configuration of maps. Raises RetrievalError for that of a classifier, ValueError for anything else."""
    if isinstance(config, dict) and "class_names" in config:
        raise RetrievalError("a classifier is no map of texts and items: --map takes a folder that `retrieve --train "
                             "NAME --save FOLDER` wrote")
    if not isinstance(config, dict) or config.get("task") != RETRIEVAL or config.get("recipe") not in RECIPES:
        raise ValueError("no trained maps")
    for values, kinds in ((config, {"dim": int, "trained": dict, "encoder": dict, "store": str, "weights_sha256": str}),
                          (config.get("encoder"), {"name": str, "fingerprint": str}),
                          (config.get("trained"), {"recipe": str, "epoch": int, "epochs": int, "chosen_by": str})):
        for name, kind in kinds.items():
            if not isinstance(values, dict) or not isinstance(values.get(name), kind):
                raise ValueError(f"{name} is not there, or of another type")
    return config
