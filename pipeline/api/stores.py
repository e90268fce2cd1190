"""Stage 1: images, sentences and arrays into stores, and stores checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onceclip.pipeline.api.arguments import class_names_of, listed, opened, optional, path_of, place_of, spec_of, whole
from onceclip.pipeline.errors import ArgumentError, ArrayError
from onceclip.stores import Store
from onceclip.stores.location import local_path

if TYPE_CHECKING:
    from onceclip.pipeline.encoders import EncoderSpec
    from onceclip.pipeline.extraction.extract import Extraction
    from onceclip.pipeline.extraction.survey import ExtractOptions
    from onceclip.pipeline.prompts import Prompts
    from onceclip.pipeline.workers.cluster import Workers
    from onceclip.stores.compact import Compaction
    from onceclip.stores.verification import Verification


def extract(source: str | Path, store: str | Path, encoder: str | EncoderSpec, options: ExtractOptions | None = None,
            *, pretrained: str | None = None, workers: Workers | None = None) -> Extraction:
    """Encode a source of images into a store; on a store that exists, only what is new or changed.

    source: a folder with a sub-folder of images per class, or what else `onceclip extract` takes. encoder: a model's
        name, with `pretrained` for those of open_clip, or an EncoderSpec. workers: what encodes; None for this process.
    Raises SourceError if there is nothing to encode or every image is bad, EncoderError for the encoder, StoreMismatch
    if another encoder made the store or it has other outputs.

    Example:
        >>> done = onceclip.extract("pets", "pets-2.zarr", "demo")
        >>> done.images, done.encoded, done.bad
        (160, 160, 0)
    """
    from onceclip.pipeline.extraction.extract import extract as run
    from onceclip.pipeline.extraction.survey import ExtractOptions

    source, target = place_of(source, "a folder of images"), place_of(store, "where the store is to be")
    spec, options = spec_of(encoder, pretrained), ExtractOptions() if options is None else options
    if not isinstance(options, ExtractOptions):
        raise ArgumentError(f"options {options!r}: give ExtractOptions(...)")
    return run(source, target, spec, options, workers)


def import_arrays(source: str | Path, store: str | Path, encoder: str | None = None,
                  text_sets: Mapping[str, str | Path] | None = None, columns: Mapping[str, str] | None = None
                  ) -> dict[str, Any]:
    """Make a store from features made elsewhere, or from what `export` wrote of one.

    source: an .npz file or a folder of .npy files; or a table: Parquet files, a folder that `datasets` saved, Lance; or
        a folder that clip-retrieval wrote. `onceclip import --help` names the arrays. encoder: name of what made them.
        text_sets: files of further text sets by name: .npy in the order of the classes, or .npz with text and
        class_names. columns: of a table, by role, such as {"embedding": "clip"}.
    Raises ArrayError if the arrays do not fit together, SourceError if a table cannot be read.

    Example:
        >>> import numpy
        >>> numpy.savez("features.npz", embedding=numpy.eye(8, dtype="float32"), label=numpy.arange(8) % 2)
        >>> onceclip.import_arrays("features.npz", "my.zarr")["images"]
        8
    """
    from onceclip.pipeline.extraction.import_arrays import import_arrays as run

    place, target = place_of(source, "a file or a folder of arrays"), place_of(store, "where the store is to be")
    if (Path(local_path(place)) / "zarr.json").is_file():
        raise ArrayError(f"{opened(place).path} is a store already, which fit, evaluate and the like take as it is; "
                         f"`onceclip compact {place} {target}` copies it")
    files = {name: path_of(file, f"text set {name}: a file") for name, file in (text_sets or {}).items()}
    return run(place, target, encoder, text_sets=files, columns=columns or {})


def add_text(store: str | Path | Store, name: str, templates: str | Sequence[str] = (),
             prompts: str | Path | None = None, *, prompts_form: str | None = None,
             class_names: str | Path | None = None, waffle: int = 0, seed: int = 1, states: str | None = None,
             normal: str = "", captions: str | Path | None = None, encoder: str | EncoderSpec | None = None,
             device: str = "auto", truncate: bool = False, overwrite: bool = False, progress: bool = False,
             names: str | Sequence[str] = ()) -> dict[str, Any]:
    """Embed another set of class prompts, or captions of images or videos, without touching the images.

    name: of the set. templates: names of template sets, files, or sentences with `{}`. prompts: a JSON file with
        sentences of every class, or a .txt file with one a line, each of all classes that it names; prompts_form:
        "sentences" or "descriptors". class_names: a file that says what prompts call a class. waffle: pairs of random
        templates, from `seed`. states: what the images show, such as "bottle": the class `normal` gets sentences of its
        normal states, all others of abnormal ones. captions: a file of captions by key or group, with none of the
        former. encoder: where it is, if the store cannot say. truncate: cut prompts that are too long. overwrite:
        replace a set of this name. names: of the classes, for a store of unlabelled images; one text with commas, too.
    Raises PromptError if the name is taken or a file does not fit the classes, SourceError if the encoder is not found.

    Example:
        >>> onceclip.add_text("pets.zarr", "drawings", "a drawing of a {}.")["prompts"]
        4
    """
    from onceclip.pipeline.encoders.opening import recorded_encoder
    from onceclip.pipeline.prompts.embedding import add_text as run

    target = opened(store)
    sentences = sentences_of(target, name, templates, prompts, prompts_form, class_names, waffle, seed, captions, names,
                             states, normal)
    found = recorded_encoder(target.encoder, target.path, optional(spec_of, encoder, device=device), device)
    done = run(target.path, name, sentences, found, truncate, overwrite, progress)
    target.refresh()
    return done


def add_tower(store: str | Path | Store, words: str | Sequence[str] = (), *, encoder: str | EncoderSpec | None = None,
              device: str = "auto") -> dict[str, Any]:
    """Write the text model of a store's encoder into the store, for methods that learn prompts.

    words: phrases that learned prompts may start as, beside those of the store's templates. encoder: where it is, if
        the store cannot say.
    Raises EncoderError if the encoder's text model is of a kind that cannot be written down, PromptError for class
    names that are too long, SourceError if the encoder is not found.

    Example:
        >>> onceclip.add_tower("pets.zarr", "a sketch of the")["classes"]
        4
    """
    from onceclip.pipeline.encoders.opening import recorded_encoder
    from onceclip.pipeline.prompts.tower import add_tower as run

    target = opened(store)
    phrases = [words] if isinstance(words, str) else listed(words, "words") if words else []
    if not all(isinstance(each, str) for each in phrases):
        raise ArgumentError(f"words {words!r}: give phrases, such as [\"a photo of a\"]")
    found = recorded_encoder(target.encoder, target.path, optional(spec_of, encoder, device=device), device)
    done = run(target.path, found, phrases)
    target.refresh()
    return done


def sentences_of(store: Store, name: str, templates: str | Sequence[str] = (), prompts: str | Path | None = None,
                 prompts_form: str | None = None, class_names: str | Path | None = None, waffle: int = 0,
                 seed: int = 1, captions: str | Path | None = None, names: str | Sequence[str] = (),
                 states: str | None = None, normal: str = "") -> Prompts:
    """The sentences that `add_text` would embed; arguments as there."""
    from onceclip.pipeline.prompts import load_descriptions, load_phrases, load_templates
    from onceclip.pipeline.prompts.captions import captions_for, load_captions
    from onceclip.pipeline.prompts.descriptions import state_descriptions
    from onceclip.pipeline.prompts.embedding import NAME, check_name, classes_of, prompts_for
    from onceclip.pipeline.prompts.prompts import DEFAULT_TEMPLATES, build_prompts, class_phrases

    if not isinstance(name, str):
        raise ArgumentError(f"name {name!r}: give the text set a name, such as \"ensemble\"")
    check_name(name)
    classes = class_names_of(names)
    if captions is not None:
        if (templates or prompts is not None or prompts_form or class_names is not None or waffle or classes
                or states is not None or normal):
            raise ArgumentError("captions belong to images, prompts to classes: make two sets of them")
        if name == NAME:
            raise ArgumentError(f"the set {NAME!r} is that of the classes: give captions another name")
        return captions_for(store, load_captions(path_of(captions, "captions: a CSV or JSON file")))
    choices = [templates] if isinstance(templates, str | Path) else listed(templates, "templates") if templates else []
    sentences = tuple(each for choice in choices for each in load_templates(
        place_of(choice, "templates: a name, a file or a sentence with {}")))
    if states is not None:
        if prompts is not None or waffle or class_names is not None:
            raise ArgumentError("--states makes all sentences itself: leave out --prompts, --waffle and --class-names")
        known = classes_of(store, classes)
        told = state_descriptions(known, states, normal, sentences or DEFAULT_TEMPLATES)
        return build_prompts(class_phrases(known), (), told)
    if normal:
        raise ArgumentError("--normal is for --states: add it, with what the images show")
    phrases = None if class_names is None else load_phrases(path_of(class_names, "class_names: a file"))
    said = None if prompts is None else load_descriptions(path_of(prompts, "prompts: a JSON file"), prompts_form)
    return prompts_for(store, sentences, phrases, said, whole(waffle, "waffle", 0), whole(seed, "seed", 0), classes)


def verify(store: str | Path | Store, repair: bool = False,
           progress: Callable[[float], None] = lambda fraction: None) -> Verification:
    """Read a whole store and check it: chunks, rows, columns and text sets.

    repair: mark units with faults as to be encoded again by the next `extract`. progress: gets the fraction done.
    Raises NotAStore if there is no store, StoreError for faults that no extraction mends where they are to be repaired.

    Example:
        >>> onceclip.verify("pets.zarr").faults
        []
    """
    from onceclip.stores.verification import repair as mend
    from onceclip.stores.verification import verify as run

    path = opened(store).path
    found = run(path, progress)
    if repair and found.faults:
        mend(path, found)
    return found


def compact(store: str | Path | Store, new: str | Path, shard_rows: int | None = None,
            progress: Callable[[float], None] = lambda fraction: None) -> Compaction:
    """Copy a store into few large files, also to a URL; hf://datasets/ORG/NAME publishes it.

    new: where the copy is to be. On the hub it is uploaded as one commit when it is whole, with its card; it is made
        in the folder for temporary files first. Elsewhere a copy that was cut short is gone on with by the same call.
        shard_rows: rows per shard, a multiple of those per chunk; None for many. progress: gets the fraction done.
    Raises StoreError if something else stands at `new`, StoreIncomplete for an unfinished store, ExportError if the
    upload fails.

    Example:
        >>> onceclip.compact("pets.zarr", "compact-pets.zarr").images
        160
    """
    from onceclip.pipeline.export.publish import HUB, publish, require_free
    from onceclip.pipeline.reporting.description import card, info
    from onceclip.stores.card import write_card
    from onceclip.stores.compact import compact as run

    source, target = opened(store).path, place_of(new, "where the copy is to be")
    if not target.startswith(HUB):
        return run(source, target, shard_rows, progress)
    require_free(target)
    with TemporaryDirectory(prefix="onceclip-") as folder:
        copy = Path(folder, Path(target).name)
        done = run(source, str(copy), shard_rows, progress)
        write_card(str(copy), card(info(str(copy)) | {"path": target}))
        publish(copy, target)
    return replace(done, store=target)
