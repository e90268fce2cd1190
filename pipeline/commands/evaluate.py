"""`onceclip evaluate`: a saved adapter scored on one store or several."""

from __future__ import annotations

from pathlib import Path

import click

from onceclip.pipeline.commands.options import LocalPath, import_option, json_option, show
from onceclip.pipeline.commands.scheduling import hired, local_workers_option, one_way, scheduler_option

_FOR_WORKERS = ("onceclip.pipeline.cluster.evaluation",)


@click.command()
@click.argument("adapter", type=LocalPath(path_type=Path))
@click.argument("stores", nargs=-1, required=True, metavar="STORE...")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option("--text", metavar="NAME", help="Score among the classes of a text set of the store, of a method that "
              "transfers to other classes.")
@click.option("--classes", default="all", show_default=True, metavar="all|base|new|A,B,...",
              help="Score only images of these classes: the first half of the store's classes, the other half, or "
              "names.")
@click.option("--only-its-classes", is_flag=True, help="Score among the classes whose images are scored, not among all "
              "that the adapter knows.")
@click.option("--against", type=LocalPath(path_type=Path), metavar="ADAPTER",
              help="Compare with another adapter on the same images.")
@click.option("--per-class", is_flag=True, help="Show every class, and the most frequent confusions.")
@click.option("--confusion", type=LocalPath(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Write the whole confusion matrix.")
@import_option
@local_workers_option
@scheduler_option
@json_option
def evaluate(adapter: Path, stores: tuple[str, ...], split: str, text: str | None, classes: str,
             only_its_classes: bool, against: Path | None, per_class: bool, confusion: Path | None,
             modules: tuple[str, ...], local_workers: int | None, scheduler: str | None, as_json: bool) -> None:
    """Score a saved adapter on a split of a store, or of several.

    The same encoder must have made all; classes are joined by name. Several stores give a table of what the adapter
    keeps of its scores on the first of them.

    \b
    Example:
        onceclip evaluate pets-adapter pets.zarr --against pets-zero-shot
        onceclip evaluate pets-adapter pets.zarr pets-drawings.zarr pets-at-night.zarr
    """
    one_way(scheduler=scheduler, local_workers=local_workers)
    if confusion and len(stores) > 1:
        raise click.UsageError("--confusion writes the matrix of one store: give one STORE")
    workforce = hired(scheduler, local_workers, _FOR_WORKERS)
    workers = click.get_current_context().with_resource(workforce)  # before this process imports what they import too

    from onceclip.adapters import load_classifier
    from onceclip.pipeline.classes import CHOICES
    from onceclip.pipeline.cluster.evaluation import judged_by
    from onceclip.pipeline.comparison import compare
    from onceclip.pipeline.confusion import write_matrix
    from onceclip.pipeline.evaluate import Judge, Scoring
    from onceclip.pipeline.evaluation_wording import evaluation_lines
    from onceclip.pipeline.progress import percentage
    from onceclip.pipeline.protocol import Protocol
    from onceclip.pipeline.shift import shift
    from onceclip.stores import open_store

    def judge_of(adapter: Path, store: str) -> Judge:
        return judged_by(workers, adapter, store, protocol) if workers else Scoring.judged

    chosen = classes if classes in CHOICES else tuple(name.strip() for name in classes.split(","))
    protocol = Protocol(split, chosen, text, only_its_classes)
    classifier, other = load_classifier(adapter, modules), load_classifier(against, modules) if against else None
    found = []
    for store in map(open_store, stores):
        with percentage(f"evaluate {store.path}") as progress:
            done = protocol.score(classifier, store, progress, judge_of(adapter, store.path))
        found.append(done.as_values())
        if against and other:
            right = protocol.score(other, store, judge=judge_of(against, store.path)).right
            found[-1]["against"] = {"adapter": str(against), **compare(done.right, right, done.unit)}
    if confusion:
        write_matrix(confusion, done.candidates, done.tally.right.numpy(), done.tally.wrong.counted())
    values = {"adapter": str(adapter), **(found[0] if len(found) == 1 else shift(found))}
    show(as_json, values, lambda: evaluation_lines(values, per_class))
