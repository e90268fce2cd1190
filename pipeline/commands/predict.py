"""`onceclip predict`: labels for images from a saved adapter."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, encoder_options, encoder_spec, json_option


@click.command()
@click.argument("adapter", type=LocalPath(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, metavar="(IMAGES... | FOLDER | STORE)")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Only this split of a store.")
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Classes per image.")
@click.option("--logits", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.npy",
              help="Also write all logits, a row per image in the order printed.")
@encoder_options(required=False)
@json_option
def predict(adapter: Path, inputs: tuple[str, ...], split: str | None, top_k: int, logits: Path | None,
            model: str | None, pretrained: str | None, preprocess: str | None, device: str, as_json: bool) -> None:
    """Label images, folders or a store with a saved adapter.

    Prints a line per image: name, class and probability, separated by tabs. Bad images keep their line, with the
    reason. The encoder is the adapter's own; --model says where it is if the adapter cannot.

    \b
    Example:
        onceclip predict pets-adapter new-photos/ --top-k 3
    """
    from onceclip.adapters import load_classifier
    from onceclip.pipeline.predict import as_values, encoder_of, predict_images, predict_store, write_logits
    from onceclip.stores import open_store
    from onceclip.stores.place import looks_like_store

    classifier = load_classifier(adapter)
    if len(inputs) == 1 and looks_like_store(inputs[0]):
        answers = predict_store(classifier, open_store(inputs[0]), split, top_k)
    elif split:
        raise click.UsageError("--split is for a store")
    else:
        given = encoder_spec(model, pretrained, preprocess, device) if model else None
        encoder = encoder_of(classifier, given, device)
        answers = predict_images(classifier, [Path(each) for each in inputs], encoder, top_k)
    if logits:
        answers = write_logits(logits, answers, len(classifier.class_names))
    kept, total, bad = [], 0, 0
    for answer in answers:
        total, bad = total + 1, bad + bool(answer.reason)
        if as_json:
            kept.append(as_values(answer))
        else:
            shown = [f"{name}\t{probability:.4f}" for name, probability in answer.top] or [f"bad\t{answer.reason}"]
            click.echo("\t".join([answer.image, *shown]))
    if as_json:
        click.echo(json.dumps({"adapter": str(adapter), "n": total, "bad": bad, "predictions": kept}))
    if total == bad:
        raise click.ClickException(f"none of the {total} images could be read")
