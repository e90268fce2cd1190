"""`onceclip methods`: methods, strategies of inference, support sources and averages listed or explained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.inference import PRIORS, SEEN
from onceclip.pipeline.commands.options import aligned, json_option, show

Values = Mapping[str, Any]


@click.command()
@click.argument("name", required=False, shell_complete=complete_methods)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List methods, strategies and sources, or explain one.

    The list has each method's family, what a fit costs, whether it serves classes that it was not fitted on, and what
    it needs; of each strategy what it sees and assumes, and whether it leaves an adapter behind; of each source where
    its images come from; and what A+B and RULE:A+B mean. With a NAME, or MODULE:CLASS of your own: equation,
    hyperparameters with what is tried, presets and source.
    """
    from onceclip.pipeline.api.catalogue import methods as describe

    values = describe(name)
    show(as_json, values, lambda: method_lines(values))


def method_lines(values: dict[str, Any]) -> list[str]:
    """All methods and strategies, or one, for people to read."""
    if "methods" not in values:
        # Each kind by what only its values have.
        page = next((page for key, page in {"sees": _strategy, "from_bank": _source, "rule": _average}.items()
                     if key in values), _method)
        return list(page(values))
    tables: list[list[tuple[str, ...]]] = [
        [("method", "family", "cost", "new classes", "what it is"), *(
            (each["name"], each["family"], each["cost"], "yes" if each["transfers"] else "no",
             each["summary"] + (f" (needs {re.split('[;,(]', each['needs'])[0].strip()})" if each["needs"] else ""))
            for each in values["methods"])],
        [("inference", "sees", "assumes", "fitted on", "leaves an adapter", "what it is (evaluate, predict and sweep "
          "--inference NAME)"), *(
            (each["name"], each["sees"], f"{each['prior']} prior" if each["prior"] != "none" else "-",
             each["fitted_on"], "yes" if each["leaves_classifier"] else "no", each["summary"])
            for each in values["inferences"])],
        [("support", "from", "what it is (fit and sweep --support NAME:K)"), *(
            (each["name"], "a bank" if each["from_bank"] else "training images", each["summary"])
            for each in values["supports"])],
        [("average", "what it is (fit --method, sweep --methods; NAME/A for a method of the encoder that --join "
          "NAME=STORE joins)"), *((each["name"], each["summary"]) for each in values["averages"])]]
    return [*(line for table in tables for line in (*aligned(table, left=len(table[0])), "")),
            "`onceclip methods NAME` shows equation, hyperparameters, presets and source."]


def _about(values: Values) -> Iterator[str]:
    """Name, summary, equation and source; a method of one's own need not say the latter."""
    yield ": ".join(filter(None, (values["name"], values["summary"])))
    for text, said in (("  ", values.get("equation")), ("Source: ", values["source"])):
        if said:
            yield from ("", f"{text}{said}")


def _method(values: Values) -> Iterator[str]:
    tried = values["trainings_of_val"]
    unit = "trainings" if values["trained"] else "settings"
    yield from _about(values)
    yield ((f"Family: {values['family']}. " if values["family"] else "") + f"Fit: {values['cost']}"
           + (f"; {tried} {unit} with --select val." if tried > 1 else "."))
    yield "Serves other classes, too." if values["transfers"] else "Serves the classes that it was fitted on."
    if values["needs"]:
        yield f"Needs: {values['needs']}."
    yield from _settings(values["hyperparameters"], "--set")
    if values["presets"]:
        yield from ("", "Presets (--set preset=NAME):")
        width = max(map(len, values["presets"]))
        for name, preset in values["presets"].items():
            yield f"  {name.ljust(width)}  {', '.join(f'{key}={_number(value)}' for key, value in preset.items())}"


def _strategy(values: Values) -> Iterator[str]:
    yield from _about(values)
    yield (f"Inference: sees {SEEN[values['sees']]}; assumes {PRIORS[values['prior']]}; fits "
           + ("nothing." if values["fitted_on"] == "nothing" else f"on {values['fitted_on']} images without labels."))
    yield ("Transductive: an image's class depends on the others" if values["transductive"] else
           "Inductive: every image is read by itself") + " (with the hyperparameters at their defaults)."
    yield ("Leaves an adapter behind (evaluate --save)." if values["leaves_classifier"] else
           "Leaves no adapter behind.")
    yield from _settings(values["hyperparameters"], "--inference-set")


def _source(values: Values) -> Iterator[str]:
    name = values["name"]
    where = ("images of a bank (--bank STORE)" if values["from_bank"] else
             "training images, labels unread, or those of a --bank")
    yield from _about(values)
    yield (f"Takes support rows from {where}{', by their captions' if values['needs'] == 'caption' else ''}: "
           f"--support {name}:K, or {name}:K,NAME=VALUE.")
    yield from _settings(values["hyperparameters"], f"--support {name}:K,")


def _average(values: Values) -> Iterator[str]:
    example = values["name"].replace("A+B", "gda+lp++")
    yield from (f"{values['name']}: {values['summary']}", "")
    if "members" in values:
        yield f"Members: {', '.join(values['members'])}"
    yield ("Each has hyperparameters that validation images choose, or its defaults where there are none. NAME/METHOD "
           "is of the encoder of --join NAME=STORE.")
    yield f"Write: fit STORE --method {example}, sweep STORE --methods {example},..."


def _settings(hyperparameters: dict[str, dict[str, Any]], option: str) -> Iterator[str]:
    if hyperparameters:
        width = max(map(len, hyperparameters))
        yield from ("", f"Hyperparameters ({option} NAME=VALUE):")
        for name, setting in hyperparameters.items():
            yield f"  {name.ljust(width)}  {_number(setting['default'])}  {setting['meaning']}{_tried(setting)}"


def _tried(setting: dict[str, Any]) -> str:
    if setting["search"] == "exact":
        return " (chosen on validation rows without another training)"
    choices = f" ({' | '.join(setting['choices'])})" if "choices" in setting else ""
    if not setting["search"]:
        return choices
    return f"{choices} (tried on validation rows: {', '.join(map(_number, setting['search']))})"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
