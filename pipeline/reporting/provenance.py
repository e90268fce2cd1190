"""What made the numbers: encoder, text, store, draws, versions, and the commands that repeat them."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from onceclip.adapters.support import outside_class
from onceclip.pipeline.reporting.settings import Best, Results, Setting
from onceclip.pipeline.runs.automatic import member_names
from onceclip.pipeline.tasks.draws import GENERATOR
from onceclip.pipeline.words import counts, shots_of, version
from onceclip.stores import Store

_TEMPLATES = 3
Facts = list[tuple[str, str]]


def facts_of(setting: Setting) -> Facts:
    """What made the rows of a setting, name by name."""
    rows, store = setting.rows, setting.store
    first = rows[0]
    prints: Mapping[str, Any] = next((row["fingerprints"] for row in rows if row.get("fingerprints")), {})
    encoder = store.get("encoder", {"name": next((row["encoder"] for row in rows if row.get("encoder")), "unknown"),
                                    "fingerprint": prints.get("encoder")})
    facts = [("store", str(first["store"])), ("store fingerprint", prints.get("store", "")),
             *encoder_facts(encoder), *_store_facts(store)]
    name = str(first.get("asked", {}).get("text", first.get("text")))
    text: Mapping[str, Any] = next((each for each in store.get("texts", {}).values()
                                    if each.get("fingerprint") == prints.get("text")), {})
    facts += [*text_facts(name, {"fingerprint": prints.get("text"), **text}),
              *((title, ", ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key))))
               for title, key in (("class weights", "class_weights"), ("device", "device"), ("products", "products"),
                                  ("onceclip", "version")))]
    return [(key, value) for key, value in facts if value]


def facts_of_adapter(made: Mapping[str, Any], store: Store) -> Facts:
    """What made an adapter, name by name, and on which store it was scored; no value is trusted to be of its type."""
    text, support = _mapping(made.get("text")), _mapping(made.get("support"))
    return [("fitted with", ", ".join(f"{name} {made[name]}" for name in ("shots", "seed", "select") if name in made)),
            ("scored on", store.path), ("store fingerprint", store.fingerprint),
            ("fitted on store fingerprint", str(made.get("store", ""))),
            *encoder_facts(_mapping(made.get("encoder"))), *text_facts(str(text.get("name", "")), text),
            ("support draw fingerprint", str(support.get("fingerprint", ""))),
            ("draws made by", str(support.get("generator", ""))),
            ("fitted by onceclip", str(made.get("version", "")))]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def encoder_facts(encoder: Mapping[str, Any]) -> Facts:
    """An encoder, name by name."""
    picture = ", ".join(f"{key} {_plain(value)}" for key, value in _mapping(encoder.get("preprocess")).items()
                        if value is not None)
    return [("encoder", " / ".join(str(encoder[key]) for key in ("name", "pretrained") if encoder.get(key))
             + (" (features made elsewhere)" if encoder.get("imported") else "")),
            ("encoder fingerprint", str(encoder.get("fingerprint") or "")),
            ("weights", str(encoder.get("weights") or "")), ("preprocessing", picture),
            ("precision", str(encoder.get("precision") or "")),
            ("logit scale", _plain([encoder["logit_scale"]]) if encoder.get("logit_scale") else "")]


def text_facts(name: str, text: Mapping[str, Any]) -> Facts:
    """A text set, name by name."""
    found = text.get("templates")
    templates = list(map(str, found)) if isinstance(found, list | tuple) else []
    more = f" and {len(templates) - _TEMPLATES} more" if len(templates) > _TEMPLATES else ""
    file = _mapping(text.get("file"))
    return [("text set", name + (" (made elsewhere)" if text.get("imported") else "")),
            ("text fingerprint", str(text.get("fingerprint") or "")),
            ("templates", ", ".join(f"“{each}”" for each in templates[:_TEMPLATES]) + more),
            ("text file", f"{file.get('name')}, digest {file.get('digest')}" if file else "")]


def _store_facts(store: Mapping[str, Any]) -> Facts:
    if not store:
        return []
    made = store.get("extraction") or {}
    bad = [f"{number:,} {reason}" for reason, number in (made.get("reasons") or {}).items()]
    source = made.get("split_source") or {}
    how = ", ".join(f"{key} {_plain(value)}" for key, value in source.items() if key != "how")
    return [("classes", f"{len(store.get('classes', ())):,}"),
            ("splits", counts(store.get("splits", {}))),
            ("split made by", f"{source.get('how', '')}{f' ({how})' if how else ''}"),
            ("images stored", f"{made['images']:,}" if "images" in made else ""),
            ("bad images", f"{made['bad']:,}{': ' if bad else ''}{', '.join(bad)}" if made.get("bad") else "")]


def draws_of(setting: Setting) -> dict[str, Any]:
    """The support draws of a setting: fingerprints by shots and seed, and whether all methods shared each of them."""
    prints: dict[tuple[Any, int], set[str]] = defaultdict(set)
    for row in setting.rows:
        if found := (row.get("fingerprints") or {}).get("support"):
            prints[row["shots"], row["seed"]].add(found)
    known = {row["version"] for row in setting.rows if row.get("version")} == {version()}
    ordered = sorted(prints, key=lambda key: (isinstance(key[0], str), key))
    return {"generator": GENERATOR if known else "", "same": all(len(each) == 1 for each in prints.values()),
            "prints": {key: ", ".join(sorted(prints[key])) for key in ordered}}


def replays(setting: Setting, best: Iterable[Best], results: Results) -> list[tuple[str, str]]:
    """A run of the best line of every column, and the command that carries it out again."""
    found = []
    for each in best:
        seed, row = min(setting.chosen[each.name, each.shots].items())
        place = results.places.get(str(row.get("run")))
        if place and "asked" in row:
            found.append((f"{each.name}, {shots_of(each.shots)}, seed {seed}",
                          " ".join([f"onceclip fit --from-row {shlex.quote(place)}", *_imports(row["asked"])])))
    return found


def _imports(asked: Mapping[str, Any]) -> list[str]:
    """The options without which a row's method, strategy or source of support from outside would be refused."""
    method = str(asked.get("method"))
    named = (*(member_names(method) or [method]), str(asked.get("inference")),
             outside_class(asked.get("support") or ""))
    return [f"--import {each}" for each in dict.fromkeys(name.partition(":")[0] for name in named if ":" in name)]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(f"{each:.4g}" if isinstance(each, float) else str(each) for each in value)
    return str(value)
