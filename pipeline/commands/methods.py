"""`onceclip methods`: methods, strategies of inference, support sources and averages listed or explained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from onceclip.pipeline.commands.configuration import complete_methods
from onceclip.pipeline.commands.inference import PRIORS, SEEN
from onceclip.pipeline.commands.options import json_option, show


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
    if "methods" in values:
        return [*_list(values["methods"]), "", *_strategies(values["inferences"]), "",
                *_sources(values["supports"]), "", *_averages(values["averages"]), "",
                "`onceclip methods NAME` shows equation, hyperparameters, presets and source."]
    kind = next((kind for key, kind in _PAGES.items() if key in values), _one)
    return kind(values)


def _list(methods: list[dict[str, Any]]) -> list[str]:
    rows = [("method", "family", "cost", "new classes", "what it is"),
            *((each["name"], each["family"], each["cost"], "yes" if each["transfers"] else "no",
               each["summary"] + (f" (needs {_short(each['needs'])})" if each["needs"] else "")) for each in methods)]
    return _columns(rows)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in rows]


def _strategies(strategies: list[dict[str, Any]]) -> list[str]:
    return _columns([("inference", "sees", "assumes", "fitted on", "leaves an adapter", "what it is (evaluate, predict "
                      "and sweep --inference NAME)"),
                     *((each["name"], each["sees"], f"{each['prior']} prior" if each["prior"] != "none" else "-",
                        each["fitted_on"], "yes" if each["leaves_classifier"] else "no", each["summary"])
                       for each in strategies)])


def _sources(sources: list[dict[str, Any]]) -> list[str]:
    return _columns([("support", "from", "what it is (fit and sweep --support NAME:K)"),
                     *((each["name"], "a bank" if each["from_bank"] else "training images",
                        each["summary"]) for each in sources)])


def _averages(averages: list[dict[str, Any]]) -> list[str]:
    return _columns([("average", "what it is (fit --method, sweep --methods; NAME/A for a method of the encoder that "
                      "--join NAME=STORE joins)"), *((each["name"], each["summary"]) for each in averages)])


def _source(values: dict[str, Any]) -> list[str]:
    where = ("images of a bank (--bank STORE)" if values["from_bank"] else
             "training images, labels unread, or those of a --bank")
    return [f"{values['name']}: {values['summary']}", "", f"Source: {values['source']}",
            f"Takes support rows from {where}{', by their captions' if values['needs'] == 'caption' else ''}: "
            f"--support {values['name']}:K, or {values['name']}:K,NAME=VALUE.",
            *_settings(values["hyperparameters"], f"--support {values['name']}:K,")]


def _average(values: dict[str, Any]) -> list[str]:
    example = values["name"].replace("A+B", "gda+lp++")
    return [f"{values['name']}: {values['summary']}", "",
            *([f"Members: {', '.join(values['members'])}"] if "members" in values else []),
            "Each has hyperparameters that validation images choose, or its defaults where there are none. NAME/METHOD "
            "is of the encoder of --join NAME=STORE.",
            f"Write: fit STORE --method {example}, sweep STORE --methods {example},..."]


def _strategy(values: dict[str, Any]) -> list[str]:
    return [f"{values['name']}: {values['summary']}", "", f"  {values['equation']}", "", f"Source: {values['source']}",
            f"Inference: sees {SEEN[values['sees']]}; assumes {PRIORS[values['prior']]}; fits "
            + ("nothing." if values["fitted_on"] == "nothing" else f"on {values['fitted_on']} images without labels."),
            ("Transductive: an image's class depends on the others" if values["transductive"] else
             "Inductive: every image is read by itself") + " (with the hyperparameters at their defaults).",
            "Leaves an adapter behind (evaluate --save)." if values["leaves_classifier"] else
            "Leaves no adapter behind.", *_settings(values["hyperparameters"], "--inference-set")]


def _settings(hyperparameters: dict[str, dict[str, Any]], option: str) -> list[str]:
    if not hyperparameters:
        return []
    width = max(map(len, hyperparameters))
    return ["", f"Hyperparameters ({option} NAME=VALUE):",
            *(f"  {name.ljust(width)}  {_number(setting['default'])}  {setting['meaning']}{_tried(setting)}"
              for name, setting in hyperparameters.items())]


def _short(needs: str) -> str:
    return re.split(r"[;,(]", needs)[0].strip()


def _one(values: dict[str, Any]) -> list[str]:
    tried = values["trainings_of_val"]
    unit = "trainings" if values["trained"] else "settings"
    result = [f"{values['name']}: {values['summary']}", "", f"  {values['equation']}", "",
              f"Source: {values['source']}",
              f"Family: {values['family']}. Fit: {values['cost']}"
              + (f"; {tried} {unit} with --select val." if tried > 1 else "."),
              "Serves other classes, too." if values["transfers"] else "Serves the classes that it was fitted on."]
    if values["needs"]:
        result.append(f"Needs: {values['needs']}.")
    result += _settings(values["hyperparameters"], "--set")
    if values["presets"]:
        result += ["", "Presets (--set preset=NAME):"]
        width = max(map(len, values["presets"]))
        result += [f"  {name.ljust(width)}  {', '.join(f'{key}={_number(value)}' for key, value in preset.items())}"
                   for name, preset in values["presets"].items()]
    return result


def _tried(setting: dict[str, Any]) -> str:
    if setting["search"] == "exact":
        return " (chosen on validation rows without another training)"
    choices = f" ({' | '.join(setting['choices'])})" if "choices" in setting else ""
    if not setting["search"]:
        return choices
    return f"{choices} (tried on validation rows: {', '.join(map(_number, setting['search']))})"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_PAGES = {"sees": _strategy, "from_bank": _source, "rule": _average}  # by what only such values have
