"""`python -m bench`: lists the benches; with a name, runs one."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

BENCHES = {
    "start": "processor seconds of commands that do next to nothing: help, info, an unchanged extraction",
    "commands": "processor seconds and memory of commands on 20,000 classes and a million rows, and of `fit` alone",
    "script": "onceclip beside thirty lines of open_clip and scikit-learn, on the demo's digits",
    "selection": "Tip-Adapter's alpha and beta beside the double loop of the field's scripts",
    "runs": "training runs by method and number beside the field's loop, and the products that the machine allows",
    "grid": "1,000 CLIP-Adapter runs, and the search for the best of them, beside the field's ways",
    "probe": "97 weight decays, exact logistic regression and ridge regressions beside the usual tools",
    "workers": "a sweep and a verification on one and on two cores",
    "large": "CLIP-Adapter on 1,000 classes of 16 images, as on ImageNet",
    "scaling": "what each stage costs at 1,000, 10,000 and 100,000 rows, with the fitted exponent",
    "store": "reading, gathering and writing beside np.load, memory maps, zarr, safetensors and parquet",
    "stream": "training on streamed rows beside training in memory",
    "inference": "StatA and TransCLIP on a whole set beside the published loops",
    "views": "ZERO and MTA on stored views beside encoding the views again",
    "text": "class prompts, deduplicated or not",
    "prompts": "a training step of CoOp beside the published form, with cached and with live images",
    "extract": "an extraction beside its encoder alone, decoding alone and the field's loop",
    "gpu": "hundreds of runs at once on a GPU beside the field's loop there",
    "retrieval": "exact nearest rows of a store beside the products that they take",
    "fidelity": "how far each precision of an encoder is from float64, and how fast",
}

STUDIES = {"study": "which rule chooses hyperparameters best, on groups of related classes of your stores",
           "tables": "the table of a paper, over stores that are cut out of one file of features"}


class Benches(click.Group):
    """Commands that are imported when they are run: each needs much."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*BENCHES, *STUDIES, "all", "compare"]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in BENCHES or name in STUDIES:
            return importlib.import_module(f"bench.{name}").command
        return {"all": every, "compare": _compare()}.get(name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benches"):
            formatter.write_dl([*BENCHES.items()])
        with formatter.section("Also"):
            formatter.write_dl([*STUDIES.items(), ("all", "every bench, each in a process of its own"),
                                ("compare", "A.json B.json: what became slower")])


def _compare() -> click.Command:
    from bench.compare import compare

    return compare


@click.group(cls=Benches, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Our way beside the ways that users work today and beside what the machine allows."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@click.command("all")
@click.option("--only", help="Names with commas between.  [default: all; gpu where there is one]")
@click.option("--quick", is_flag=True, help="Cut sizes down to see whether everything runs.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench.jsonl"), show_default=True,
              help="Append the rows here, as JSON lines.")
def every(only: str | None, quick: bool, out: Path) -> None:
    """Run every bench, each in a process of its own."""
    from bench.machine import this_machine

    begun = time.perf_counter()
    names = only.split(",") if only else [name for name in BENCHES if name != "gpu" or this_machine()["gpu"]]
    failed = [name for name in names if not _run(name, ["--out", str(out), *(["--quick"] if quick else [])])]
    click.echo(f"\nall: {time.perf_counter() - begun:.0f} s, rows in {out}")
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


def _run(name: str, options: Sequence[Any]) -> bool:
    begun = time.perf_counter()
    click.echo(f"\n== {name}: {BENCHES[name]}")
    done = subprocess.run([sys.executable, "-m", "bench", name, *options], check=False)
    click.echo(f"-- {name}: {time.perf_counter() - begun:.0f} s")
    return done.returncode == 0


if __name__ == "__main__":
    main(prog_name="python -m bench")
