"""The text of a store's card: what it holds, what made it, and how to use it."""

from __future__ import annotations

import os
from typing import Any

from onceclip.pipeline.words import counts
from onceclip.stores.schema import SPLITS

_LISTED = 1000  # classes


def card(values: dict[str, Any]) -> str:
    """Markdown for a store that `info` described, with the metadata that the Hugging Face Hub reads.

    The licence is left to the owner of the images. No path of the machine is in it.
    """
    encoder, images, source = values["encoder"], values["images"], values["split_source"] or {}
    name = os.path.basename(values["path"].rstrip("/")) or "store.zarr"
    embedding = values["embedding"]
    norm = embedding["norm"]
    facts = {
        "images": ", ".join(f"{number:,} {state}" for state, number in images.items() if number) or "none",
        "splits": f"{counts(values['splits'])} ({source.get('how', 'not yet drawn')})",
        "classes": f"{len(values['classes']):,}",
        "embeddings": f"{embedding['dim']} x {embedding['dtype']}, "
                      + ("normalised" if encoder.get("normalized") else "raw, not normalised")
                      + (f", median length {norm['median']:.3g}" if norm else ""),
        **{f"output `{output}`": " x ".join(map(str, shape)) for output, shape in embedding["outputs"].items()},
        "encoder": " / ".join(str(encoder[part]) for part in ("name", "pretrained") if encoder.get(part)),
        "encoder fingerprint": f"`{encoder['fingerprint']}`",
        "store fingerprint": f"`{values['fingerprint']}`" if values["complete"] else "unfinished",
        **{f"text `{text}`": f"{made['prompts']:,} prompts of {made['classes']:,} classes"
           + (f", such as \"{made['first']}\"" if made["first"] else "") for text, made in values["texts"].items()},
    }
    classes = list(values["classes"].items())
    method = "tip-adapter" if values["texts"] else "linear-probe"
    lines = [
        "---", "license: other", "license_name: to-be-chosen-by-the-owner-of-the-images",
        "tags: [clip, image-embeddings, few-shot, zarr, onceclip]", "---", "",
        f"# {name}", "", "Image embeddings by CLIP, for training few-shot classifiers without the images.", "",
        "| | |", "| --- | --- |", *(f"| {key} | {_cell(value)} |" for key, value in facts.items()), "",
        "## Use", "", "```console", "pip install onceclip",
        f"onceclip verify {name}", f"onceclip fit {name} --method {method} --shots 16 --select val", "```", "",
        "```python", "import onceclip", "", f"store = onceclip.open_store({name!r})",
        'print(store.embeddings(store.rows("train")).shape)', "```", "",
        "It is a Zarr v3 group: `zarr.open_group` and `xarray.open_zarr` read it too.", "",
        "## Licence", "", "To be filled in by the owner of the images.", "",
        "## Images per class", "", f"| class | {' | '.join(SPLITS)} | none |",
        "| --- |" + " ---: |" * (len(SPLITS) + 1),
        *(f"| {_cell(each)} | {' | '.join(str(counts.get(split, 0)) for split in (*SPLITS, 'none'))} |"
          for each, counts in classes[:_LISTED]),
        *([f"| and {len(classes) - _LISTED:,} more | | | | |"] if len(classes) > _LISTED else []),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
