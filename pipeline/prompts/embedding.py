"""Encode the prompts of classes into the text sets of a store."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.prompts.descriptions import Descriptions
from onceclip.pipeline.prompts.prompts import (
    DEFAULT_TEMPLATES,
    GENERATOR,
    Prompts,
    build_prompts,
    check_names,
    class_phrases,
    waffle_templates,
)
from onceclip.stores import Store, StoreDamaged, StoreWriter, TextSet, open_store, write_lock
from onceclip.stores.text import TEXT_ENCODER

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import Encoder

NAME = "default"


def embed_prompts(writer: StoreWriter, encoder: Encoder, classes: Sequence[str],
                  phrases: Mapping[str, str] | None = None, templates: Sequence[str] | None = None) -> dict[str, Any]:
    """Encode the prompts of all classes into the text set "default", unless it has exactly these prompts already.

    phrases: what the prompts call some classes. templates: sentences with `{}`. Whichever is None is taken from the
        present set, so that a later extraction never changes prompts silently. A set made from a file of prompts is
        left alone unless templates are given.
    Returns what was done, as JSON values.
    Raises PromptError if making a set from a file was interrupted.
    """
    store = writer.store
    if kept := _kept(store, classes, templates):
        return kept
    return put_prompts(writer, encoder, NAME, _requested(store, classes, phrases, templates),
                       "truncated" in _source(store))


def present_prompts(store: Store, classes: Sequence[str], phrases: Mapping[str, str] | None = None,
                    templates: Sequence[str] | None = None) -> dict[str, Any] | None:
    """What `embed_prompts` would return if nothing has to be encoded; None if something has."""
    if kept := _kept(store, classes, templates):
        return kept
    present = _with_prompts(store, NAME, _requested(store, classes, phrases, templates))
    return {**_report(NAME, present), "encoded": 0} if present else None


def _source(store: Store) -> dict[str, Any]:
    """What made the set "default", also of one whose making was interrupted."""
    return store.attributes["texts"].get(NAME, {}).get("source", {})


def _kept(store: Store, classes: Sequence[str], templates: Sequence[str] | None) -> dict[str, Any] | None:
    """The report on a set "default" that is left alone."""
    source = _source(store)
    if templates is not None or "file" not in source:
        return None
    if NAME not in store.texts:
        raise PromptError(f"{store.path}: text set {NAME!r} was being made from {source['file']['name']} when that was "
                          "stopped: run the same `onceclip text` again, or give --templates")
    present = store.text(NAME)
    return {**_report(NAME, present), "encoded": 0, "missing": sorted(set(classes) - set(present.classes))}


def _requested(store: Store, classes: Sequence[str], phrases: Mapping[str, str] | None,
               templates: Sequence[str] | None) -> Prompts:
    """The prompts that the set "default" should have."""
    before = _source(store)
    origin = {"waffle": before["waffle"]} if templates is None and "waffle" in before else {}
    return build_prompts(phrases_of(store, classes, phrases), templates or before.get("templates") or DEFAULT_TEMPLATES,
                         None, **origin)


def phrases_of(store: Store, classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What prompts call each class; where nothing is given, as in the set "default"."""
    if given is None:
        known = set(classes)
        given = {name: phrase for name, phrase in _source(store).get("phrases", {}).items() if name in known}
    return class_phrases(classes, given)


def prompts_for(store: Store, templates: Sequence[str] = (), phrases: Mapping[str, str] | None = None,
                descriptions: Descriptions | None = None, waffle: int = 0, seed: int = 1,
                names: Sequence[str] = ()) -> Prompts:
    """The prompts of a store's classes for a new text set.

    templates: sentences with `{}`; "a photo of a {}." if there are no descriptions either. phrases: what prompts call
        some classes; None takes those of the set "default". waffle: number of pairs of random templates, made from
        `seed`. names: classes, for a store of unlabelled images; by default those of the descriptions or phrases.
    Raises PromptError if phrases or descriptions do not match the classes, or nothing says what the classes are.
    """
    classes = classes_of(store, names, tuple(descriptions.lines if descriptions else phrases or ()))
    class_words = phrases_of(store, classes, phrases)
    origin = {}
    if waffle:
        templates = (*templates, *waffle_templates(list(class_words.values()), waffle, seed))
        origin["waffle"] = {"pairs": waffle, "seed": seed, "generator": GENERATOR}
    if not (templates or descriptions):
        templates = DEFAULT_TEMPLATES
    return build_prompts(class_words, tuple(dict.fromkeys(templates)), descriptions, **origin)


def classes_of(store: Store, names: Sequence[str], derived: Sequence[str] = ()) -> Sequence[str]:
    """The classes of a new text set: the store's own, or, if its images are unlabelled, those that the user names."""
    if store.classes:
        if names:
            raise PromptError(f"{store.path} has classes of its own: leave --names out; --class-names says what "
                              "prompts call them")
        return store.classes
    if not (names or derived):
        raise PromptError(f"{store.path} has images without classes: name some with --names cat,dog, or give --prompts "
                          "or --class-names")
    return check_names(names or derived)


def add_text(path: str, name: str, prompts: Prompts, encoder: Encoder, truncate: bool = False,
             overwrite: bool = False, progress: bool = False) -> dict[str, Any]:
    """Encode prompts into a text set of a store; its images stay as they are.

    overwrite: replace a set of this name that has other prompts.
    Returns what was done, as JSON values.
    Raises PromptError if the name is taken, EncoderError for a prompt that cannot be encoded, StoreMismatch if the
    images come from another encoder.
    """
    begun = time.perf_counter()
    with write_lock(path):
        # Imported arrays only name their encoder: whether it is this one, only the user can know.
        store = open_store(path)
        writer = StoreWriter.open(path, store.encoder if store.encoder.get("imported") else encoder.info)
        if encoder.dim != store.dim:
            raise PromptError(f"{path} has {store.dim} dimensions, {encoder.info['name']} gives {encoder.dim}: name "
                              "the encoder that made the images")
        if name in store.texts and not overwrite and not _with_prompts(store, name, prompts, encoder):
            what = "that does not say which encoder made it" if _with_prompts(store, name, prompts) else (
                "of other prompts, or by another encoder" if store.encoder.get("imported") else "of other prompts")
            raise PromptError(f"{path} has a text set {name!r} {what}: choose another --name, or replace it with "
                              "--overwrite")
        done = put_prompts(writer, encoder, name, prompts, truncate, progress)
    return {"store": path, **done, "seconds": time.perf_counter() - begun}


def put_prompts(writer: StoreWriter, encoder: Encoder, name: str, prompts: Prompts, truncate: bool = False,
                progress: bool = False) -> dict[str, Any]:
    """Encode prompts into a text set, unless the set of this name has exactly these prompts.

    Otherwise all of them are encoded: the last bits of an embedding depend on what shares its batch, and a set must be
    the same whether or not making it was interrupted.
    Returns what was done, as JSON values.
    """
    from onceclip.pipeline.encoders.sentences import encode_sentences

    if present := _with_prompts(writer.store, name, prompts, encoder):
        writer.settle_text(name)
        return {**_report(name, present), "encoded": 0}
    planned = _without_embeddings(writer.store, prompts, encoder)
    encoded = encode_sentences(encoder, prompts.sentences, truncate, progress)
    source = dict(planned.source)
    if encoded.cut:
        source["truncated"] = len(encoded.cut)
    text = replace(planned, embedding=encoded.embedding, source=source)
    writer.put_text(name, text)
    return {**_report(name, text), "encoded": encoded.distinct}


def check_name(name: str) -> None:
    """Raise PromptError unless a text set can have this name, which becomes a folder of the store."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise PromptError(f"--name {name!r}: use up to 64 letters, digits, dots, hyphens and underscores, such as "
                          "gpt-4")


def _without_embeddings(store: Store, prompts: Prompts, encoder: Encoder | None) -> TextSet:
    """The text set of some prompts before they are encoded. encoder: None for one whose store is not imported."""
    source = dict(prompts.source)
    if encoder and store.encoder.get("imported"):
        source[TEXT_ENCODER] = {each: encoder.info.get(each) for each in ("name", "pretrained", "fingerprint")}
    return TextSet(np.empty((0, store.dim), np.float32), prompts.classes, prompts.class_ptr,
                   prompts.template_id, prompts.sentences, store.encoder["fingerprint"], source)


def _with_prompts(store: Store, name: str, prompts: Prompts, encoder: Encoder | None = None) -> TextSet | None:
    """The text set of this name if it has exactly these prompts, by this encoder, else None, also for a damaged one."""
    if name not in store.texts:
        return None
    try:
        present = store.text(name)
    except StoreDamaged:
        return None
    planned = _without_embeddings(store, prompts, encoder)
    same = (present.fingerprint == planned.fingerprint
            and np.array_equal(present.template_id, planned.template_id))
    return present if same else None


def _report(name: str, text: TextSet) -> dict[str, Any]:
    return {"name": name, "prompts": len(text.prompts), "templates": text.source.get("templates", []),
            "classes": len(text.classes), "truncated": text.source.get("truncated", 0),
            "unused": text.source.get("file", {}).get("unused", 0), "fingerprint": text.fingerprint}
