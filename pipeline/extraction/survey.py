"""What an extraction is asked to do, and the images of its source."""

from __future__ import annotations

from dataclasses import dataclass

from onceclip.pipeline.decoding.decoders import TIMEOUT
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.extraction.outputs import EMBEDDING_ALONE, OutputOptions
from onceclip.pipeline.prompts import class_phrases
from onceclip.pipeline.sources import DEFAULTS, Record, SourceOptions, class_names, open_source
from onceclip.stores.schema import UNIT_ROWS


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    templates: None keeps a store's own, else "a photo of a {}.". phrases: what prompts call a class folder.
    batch_size: images per pass, 0 for what suits the encoder. workers: decode processes, 0 for one per core.
    dtype: of stored embeddings. outputs: what to store beside them. source: how to list the images.
    decode_timeout: seconds of processor time that reading and decoding one image may take. retry_bad: whether images
    that are recorded as bad are tried again.

    Example:
        >>> options = onceclip.ExtractOptions(templates=("a drawing of a {}.", "a sketch of a {}."), workers=1)
        >>> onceclip.extract("pets", "pets-3.zarr", onceclip.EncoderSpec("demo"), options).text["encoded"]
        8
    """

    templates: tuple[str, ...] | None = None
    phrases: dict[str, str] | None = None
    batch_size: int = 0
    workers: int = 0
    dtype: str = "float16"
    unit_rows: int = UNIT_ROWS
    progress: bool = False
    source: SourceOptions = DEFAULTS
    outputs: OutputOptions = EMBEDDING_ALONE
    decode_timeout: float = TIMEOUT
    retry_bad: bool = False


@dataclass(frozen=True)
class Survey:
    """What there is to encode.

    source: where. records: the images. remarks: on the source. phrases: what prompts call each class.
    """

    source: str
    records: list[Record]
    remarks: list[str]
    classes: list[str]
    phrases: dict[str, str]

    @property
    def has_splits(self) -> bool:
        """Whether the source says which split some image is in."""
        return any(record.split for record in self.records)


def survey(source: str, options: ExtractOptions) -> Survey:
    """List a source, and complain before anything is loaded or written.

    Raises SourceError if there is nothing to encode, PromptError for phrases that do not fit the classes.
    """
    listing = open_source(source, options.source)
    classes = class_names(listing.records)
    if len(classes) < 2 and not options.source.unlabelled:
        what = f"one class only ({classes[0]!r})" if classes else "no classes"
        raise SourceError(f"{source} has {what}: a classifier needs two; put the images of each class into a folder of "
                          "its own, FOLDER/CLASS/image.jpg or FOLDER/train/CLASS/image.jpg, or store them for predict "
                          "with --unlabelled")
    return Survey(source, listing.records, listing.remarks, classes, class_phrases(classes, options.phrases))
