"""What an extraction is asked to do, and the images of its source."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isclose

from onceclip.pipeline.decoding.decoders import TIMEOUT
from onceclip.pipeline.decoding.views import CROPS, Views, crops_of
from onceclip.pipeline.encoders.spec import EncoderSpec, check_model, is_plugin
from onceclip.pipeline.errors import ArgumentError, SourceError
from onceclip.pipeline.extraction.outputs import EMBEDDING_ALONE, OutputOptions
from onceclip.pipeline.prompts import class_phrases, load_templates
from onceclip.pipeline.sources import DEFAULTS, Record, SourceOptions, class_names, open_source
from onceclip.stores.identity import DIGEST_BYTES
from onceclip.stores.schema import UNIT_ROWS


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    templates: one or several, as of `load_templates`; None keeps a store's own, else "a photo of a {}.". phrases: what
    prompts call a class folder. batch_size: images per pass, 0 for what suits the encoder. workers: decode processes, 0
    for one per core. dtype: of stored embeddings, "float16" or "float32"; None for a store's own, else "float16".
    outputs: what to store beside them. source: how to list the images.
    decode_timeout: seconds of processor time that reading and decoding one image may take. retry_bad: whether images
    that are recorded as bad are tried again.
    split_shares: per cent of each class for train, val and test, where the source has no splits; None for those that
    the store has, else 50, 20 and 30. split_seed: of their draw; None for that of the store, else 1.

    Example:
        >>> options = onceclip.ExtractOptions(templates=("a drawing of a {}.", "a sketch of a {}."), workers=1)
        >>> onceclip.extract("pets", "pets-3.zarr", onceclip.EncoderSpec("demo"), options).text["encoded"]
        8
    """

    templates: Sequence[str] | None = None
    phrases: dict[str, str] | None = None
    batch_size: int = 0
    workers: int = 0
    dtype: str | None = None
    unit_rows: int = UNIT_ROWS
    progress: bool = False
    source: SourceOptions = DEFAULTS
    outputs: OutputOptions = EMBEDDING_ALONE
    decode_timeout: float = TIMEOUT
    split_shares: tuple[float, float, float] | None = None
    split_seed: int | None = None
    retry_bad: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in (None, "float16", "float32"):
            raise ArgumentError(f"dtype {self.dtype!r}: there are float16 and float32")
        for name, least in (("workers", 0), ("batch_size", 0), ("unit_rows", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} {value!r}: give a whole number from {least} up")
        if self.templates is not None:
            given = [self.templates] if isinstance(self.templates, str | os.PathLike) else self.templates
            loaded = dict.fromkeys(each for one in given for each in load_templates(os.fspath(one)))
            object.__setattr__(self, "templates", tuple(loaded))


@dataclass(frozen=True)
class Survey:
    """What there is to encode.

    source: where. records: the images. remarks: on the source. phrases: what prompts call each class. options: how to
    extract, with the crops that the source gives where crops are asked for.
    """

    source: str
    records: list[Record]
    remarks: list[str]
    classes: list[str]
    phrases: dict[str, str]
    options: ExtractOptions

    @property
    def has_splits(self) -> bool:
        """Whether the source says which split some image is in."""
        return any(record.split for record in self.records)

    @property
    def fingerprint(self) -> str:
        """Identity of the records, but for the images' bytes."""
        made = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for record in self.records:
            made.update(json.dumps([record.key, record.label, record.split, record.group]).encode("ascii"))
        return made.hexdigest()


def survey(source: str, encoder: EncoderSpec, options: ExtractOptions) -> Survey:
    """List a source, and complain before anything is loaded or written.

    Raises SourceError if there is nothing to encode or the splits cannot be as asked, PromptError for phrases that do
    not fit the classes, EncoderError for a model that does not exist.
    """
    check_model(encoder)
    shares = options.split_shares
    if shares is not None and not (len(shares) == 3 and min(shares) >= 0 and isclose(sum(shares), 100)):
        raise SourceError(f"--split-shares {share_words(shares)}: give per cent for train, val and test that add up to "
                          "100, such as 80/10/10")
    listing = open_source(source, replace(options.source, clip=_clip(encoder)))
    classes = class_names(listing.records)
    if len(classes) < 2 and not options.source.unlabelled:
        what = f"one class only ({classes[0]!r})" if classes else "no classes"
        raise SourceError(f"{source} has {what}: a classifier needs two; put the images of each class into a folder of "
                          "its own, FOLDER/CLASS/image.jpg or FOLDER/train/CLASS/image.jpg, or store them for predict "
                          "with --unlabelled")
    if options.templates and not classes:
        raise SourceError(f"{source} gives no classes, of which --templates could say something: leave them out; "
                          "`onceclip text --names` makes prompts for unlabelled images")
    found = Survey(source, listing.records, listing.remarks, classes, class_phrases(classes, options.phrases),
                   _with_boxes(options, source, listing.records))
    if found.has_splits and (shares is not None or options.split_seed is not None):
        raise SourceError(f"{source} says itself which split its images are in: leave out --split-shares and "
                          "--split-seed")
    return found


def _clip(encoder: EncoderSpec) -> int:
    """Frames of a video that an encoder takes as one input; 0 for images."""
    if not is_plugin(encoder.model):
        return 0
    from onceclip.pipeline.encoders.plugin import frames_of  # imports torch, as the user's module will

    return frames_of(encoder.model)


def _with_boxes(options: ExtractOptions, source: str, records: Sequence[Record]) -> ExtractOptions:
    """The options with the crops that a source gives, where crops are asked for.

    Raises SourceError if it gives none.
    """
    views = options.outputs.views
    if views is None or views.kind != CROPS:
        return options
    found = crops(records)
    if found is None:
        raise SourceError(f"{source} gives no boxes for --crops: give a manifest with the columns path, "
                          "label, x0, y0, x1, y1, a line for each box")
    return replace(options, outputs=replace(options.outputs, views=found))


def crops(records: Sequence[Record]) -> Views | None:
    """The views that the boxes of a source make; None where it gives none."""
    boxes = {record.key: found for record in records if (found := getattr(record.content, "boxes", ()))}
    return crops_of(boxes) if boxes else None


def share_words(shares: Iterable[float]) -> str:
    """Per cent of train, val and test as a user writes them, such as 80/10/10."""
    return "/".join(f"{each:g}" for each in shares)
