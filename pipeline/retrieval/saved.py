"""Trained maps in a folder, in the two files of an adapter, and what has to be so that they are used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from onceclip.adapters.errors import AdapterFileError
from onceclip.adapters.saving import FORMAT, RETRIEVAL, read_adapter, write_adapter
from onceclip.pipeline.errors import RetrievalError
from onceclip.pipeline.retrieval.training import RECIPES, Trained
from onceclip.pipeline.words import version
from onceclip.stores import Store, StoreMismatch


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
