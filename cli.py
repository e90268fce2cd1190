"""The commands: thin, and free of heavy imports, so that help is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onceclip import OnceclipError, __version__

if TYPE_CHECKING:
    from onceclip.pipeline.encoder import EncoderSpec

Decorator = Callable[[Callable[..., None]], Callable[..., None]]
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


class LocalPath(click.Path):
    """A path on this machine: of what is not a store, a URL would become a folder of an odd name."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL; only stores can be: give a path on this machine", param, context)
        return super().convert(value, param, context)


class Commands(click.Group):
    """Turns every failure that the user can mend into one line and exit code 1."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except OnceclipError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("\nStopped. What was done is kept: run the same command again to go on.", err=True)
            sys.exit(130)
        except BrokenPipeError:
            raise
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{place}{error.strerror or error}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="onceclip")
def main() -> None:
    """Encode once, adapt thousands of times.

    Stage 1 runs CLIP over a folder of images and over the class names once, and keeps the embeddings in a store.
    Stage 2 fits few-shot classifiers on the store alone: no images, no CLIP model and no GPU are needed.

    \b
    See it work (a small CLIP model and real images come with onceclip):
        onceclip demo
    \b
    Your own images, one folder per class:
        onceclip extract pets pets.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k
        onceclip fit pets.zarr --method tip-adapter --shots 16 --select val --out pets-adapter
        onceclip predict pets-adapter new-photos/
    """


def encoder_options(required: bool) -> Decorator:
    """Options that name an encoder."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed([
            click.option("--model", required=required, metavar="NAME",
                         help="open_clip model, hf-hub:ORG/NAME, local-dir:FOLDER, or demo (ships with onceclip)."),
            click.option("--pretrained", metavar="TAG|FILE", help="Weights of an open_clip model."),
            click.option("--preprocess", metavar="openai|FILE", help="How images are prepared for a weights FILE: "
                         "CLIP's way, or a JSON file with mean, std, interpolation, resize_mode."),
            click.option("--device", default="auto", show_default=True, metavar="D",
                         help="auto, cpu, cuda, cuda:1 ..."),
        ]):
            function = option(function)
        return function

    return add


def _encoder(model: str, pretrained: str | None, preprocess: str | None, device: str, precision: str = "auto",
             allow_random: bool = False, cache_dir: str | None = None) -> EncoderSpec:
    from onceclip.pipeline.encoder import EncoderSpec

    return EncoderSpec(model, pretrained, precision, device, preprocess, allow_random, cache_dir)


@main.command()
@click.argument("folder", type=LocalPath(path_type=Path))
@click.argument("store")
@encoder_options(required=True)
@click.option("--templates", metavar="NAME|FILE", help="Prompt templates: photo, imagenet, imagenet-7, a file with one "
              "a line, or a sentence with {}.  [default: those of the store, else \"a photo of a {}.\"]")
@click.option("--class-names", type=LocalPath(path_type=Path), metavar="FILE",
              help="What prompts call a class folder: CSV lines folder,name or a JSON object.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", show_default=True,
              help="auto: fp32 on a CPU, fp16 on a GPU.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True,
              help="Type of the stored embeddings.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images per encoder pass.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Decoding threads.  [default: one per core]")
@click.option("--unit-rows", type=click.IntRange(1), default=4096, show_default=True,
              help="Images per unit of a new store.")
@click.option("--cache-dir", metavar="DIR", help="Where downloaded weights are kept.")
@click.option("--allow-random", is_flag=True, help="Accept a model without weights, for tests of speed.")
@click.option("--strict", is_flag=True, help="Exit with 1 if any image is bad.")
@json_option
def extract(folder: Path, store: str, model: str, pretrained: str | None, preprocess: str | None, device: str,
            templates: str | None, class_names: Path | None, precision: str, dtype: str, batch_size: int, workers: int,
            unit_rows: int, cache_dir: str | None, allow_random: bool, strict: bool, as_json: bool) -> None:
    """Encode a folder of images and its class prompts, once.

    Reads FOLDER, writes STORE. FOLDER holds one folder of images per class, or train/, val/ and test/ with such
    folders in them; without those, a stratified split (50 % train, 20 % val, 30 % test) is drawn and recorded. Run it
    again when images were added, changed, moved or removed: only new content is encoded. Bad images are recorded with
    their reason and left out.

    \b
    Example:
        onceclip extract pets pets.zarr --model ViT-B-32 --pretrained laion2b_s34b_b79k
    """
    from onceclip.pipeline.extract import ExtractOptions
    from onceclip.pipeline.extract import extract as run
    from onceclip.pipeline.prompts import load_phrases, load_templates
    from onceclip.pipeline.wording import extraction_lines

    options = ExtractOptions(load_templates(templates) if templates else None,
                             load_phrases(class_names) if class_names else None,
                             batch_size, workers, dtype, unit_rows, progress=True)
    done = run(folder, store, _encoder(model, pretrained, preprocess, device, precision, allow_random, cache_dir),
               options)
    for warning in done.warnings:
        click.echo(f"Warning: {warning}", err=True)
    _print(as_json, vars(done), lambda: extraction_lines(done))
    if strict and done.bad:
        raise click.ClickException(f"{done.bad} of {done.images} images are bad (--strict)")


@main.command("import")
@click.argument("arrays", type=LocalPath(path_type=Path, exists=True))
@click.argument("store")
@click.option("--encoder", metavar="NAME", help="Name of the encoder that made them, e.g. ViT-B-32/openai.")
@json_option
def import_(arrays: Path, store: str, encoder: str | None, as_json: bool) -> None:
    """Make a store from features made elsewhere.

    ARRAYS is an .npz file, or a folder of .npy files, with embedding (n, d), label (n,) and split (n,); optionally
    key (n,), view (n, v, d), text (c, d) or (c, p, d), class_names (c,), logit_scale.

    \b
    Example:
        onceclip import features.npz imagenet.zarr --encoder ViT-B-32/openai
    """
    from onceclip.pipeline.importing import import_arrays
    from onceclip.pipeline.wording import import_lines

    done = import_arrays(arrays, store, encoder)
    _print(as_json, done, lambda: import_lines(done))


class Shots(click.ParamType):
    """A whole number from 1 up, or all."""

    name = "K|all"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        if str(value).lower() == "all":
            return 0
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"{value!r} is not a whole number from 1 up, or all", param, context)


@main.command()
@click.argument("store")
@click.option("--method", required=True, metavar="M", help="Name of a method; `onceclip methods` lists them.")
@click.option("--shots", type=Shots(), default="all", show_default=True, help="Labelled training images per class.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the draw and of the training.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set a hyperparameter (repeatable).")
@click.option("--text", default="default", show_default=True, metavar="NAME", help="Text set to use.")
@click.option("--select", type=click.Choice(["fixed", "val", "val-full", "loo"]),
              help="How hyperparameters are chosen: not at all, on min(shots, 4) validation images per class, on the "
              "whole val split, or by leave-one-image-out.  [default: fixed; val for linear-probe]")
@click.option("--out", type=LocalPath(path_type=Path), metavar="FOLDER", help="Save the adapter and its result row.")
@click.option("--overwrite", is_flag=True, help="Replace an adapter that --out holds already.")
@json_option
def fit(store: str, method: str, shots: int, seed: int, settings: tuple[str, ...], text: str, select: str | None,
        out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Fit a few-shot classifier on a store and score it.

    Hyperparameters given by --set are never searched. Test images are not reachable while fitting.

    \b
    Example:
        onceclip fit pets.zarr --method tip-adapter --shots 16 --select val --out pets-adapter
    """
    from onceclip.adapters.classifier import CONFIG
    from onceclip.pipeline.fit import RunSpec
    from onceclip.pipeline.fit import fit as run
    from onceclip.pipeline.progress import percentage
    from onceclip.pipeline.results import append_row
    from onceclip.pipeline.wording import fit_lines
    from onceclip.stores import open_store

    if out and (out / CONFIG).exists() and not overwrite:
        raise click.ClickException(f"{out} holds an adapter already: give another --out, or add --overwrite")
    spec = RunSpec(method, shots or None, seed, dict(map(_setting, settings)), text, select)
    with percentage(f"fit {method}") as progress:
        fitted = run(open_store(store), spec, progress)
    for remark in fitted.remarks:
        click.echo(f"Note: {remark}", err=True)
    if out:
        fitted.classifier.save(out)
        append_row(out, fitted.row)
    _print(as_json, fitted.row, lambda: fit_lines(fitted.row, out))


def _setting(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    return name.strip().replace("-", "_"), value.strip()


@main.command()
@click.argument("adapter", type=LocalPath(path_type=Path))
@click.argument("store")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@json_option
def evaluate(adapter: Path, store: str, split: str, as_json: bool) -> None:
    """Score a saved adapter on a split of a store.

    The same encoder must have made both; classes are joined by name.

    \b
    Example:
        onceclip evaluate pets-adapter other-pets.zarr --split test
    """
    from onceclip.adapters import load_classifier
    from onceclip.pipeline.evaluate import evaluate as run
    from onceclip.pipeline.wording import evaluation_lines
    from onceclip.stores import open_store

    scores = run(load_classifier(adapter), open_store(store), split)
    _print(as_json, {"adapter": str(adapter), **scores}, lambda: evaluation_lines(adapter, scores))


@main.command()
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
    from onceclip.stores.reader import looks_like_store

    classifier = load_classifier(adapter)
    if len(inputs) == 1 and looks_like_store(inputs[0]):
        answers = predict_store(classifier, open_store(inputs[0]), split, top_k)
    elif split:
        raise click.UsageError("--split is for a store")
    else:
        given = _encoder(model, pretrained, preprocess, device) if model else None
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


@main.command()
@click.argument("path")
@json_option
def info(path: str, as_json: bool) -> None:
    """Show what a store or a saved adapter holds."""
    from onceclip.pipeline.info import info as describe
    from onceclip.pipeline.info import lines

    values = describe(path)
    _print(as_json, values, lambda: lines(values))


@main.command()
@click.argument("store")
@click.option("--repair", is_flag=True, help="Mark what is damaged as to be encoded again by the next extract.")
@json_option
def verify(store: str, repair: bool, as_json: bool) -> None:
    """Read a whole store and check it.

    Checks every chunk of STORE against its checksum, rows, columns and text sets against each other, and looks for
    equal pictures in different splits. Exit code 1 if anything is wrong.

    \b
    Example:
        onceclip verify pets.zarr
    """
    from onceclip.pipeline.progress import percentage
    from onceclip.pipeline.wording import verification_lines
    from onceclip.stores.verify import repair as mend
    from onceclip.stores.verify import verify as run

    with percentage("verify") as progress:
        found = run(store, progress)
    _print(as_json, asdict(found), lambda: verification_lines(found))
    if repair and found.faults:
        click.echo(f"{mend(store, found)} units are marked: run the `onceclip extract` command of this store again",
                   err=True)
    elif found.faults:
        raise click.ClickException(f"{store} has {len(found.faults)} faults: add --repair to have the next extract "
                                   "mend them, or take the store from a copy")


@main.command()
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the methods, or explain one.

    With a NAME: its equation, hyperparameters and source."""
    from onceclip.pipeline.catalogue import describe, lines

    values = describe(name)
    _print(as_json, values, lambda: lines(values))


@main.command()
@click.option("--out", type=LocalPath(path_type=Path, file_okay=False), default="onceclip-demo", show_default=True,
              metavar="FOLDER", help="Where everything is written.")
def demo(out: Path) -> None:
    """Run everything once, on real images that come along.

    Uses 1,797 handwritten digits and a small CLIP model that ships with onceclip.
    Writes the digits as an image folder, encodes them, fits every method with 1 to 16 labelled images per class and
    5 seeds, prints the table of accuracies and draws the learning curves. Takes a minute or two.
    """
    from onceclip.pipeline.demo.tour import run_tour
    from onceclip.pipeline.wording import tour_lines

    tour = run_tour(out, click.echo)
    click.echo("\n".join(tour_lines(tour)))


def _print(as_json: bool, values: Any, lines: Callable[[], list[str]]) -> None:
    """One JSON object for scripts, or lines for people."""
    click.echo(json.dumps(values, allow_nan=False) if as_json else "\n".join(lines()))


if __name__ == "__main__":
    main()
