"""Models of open_clip: by name and weights, from the hub, from a folder, and the small one that is shipped."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from open_clip import factory
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from torch import Tensor

from onceclip.adapters.errors import unknown
from onceclip.pipeline.decoding.preparation import FILTERS, RESIZE_MODES, Preparation
from onceclip.pipeline.encoders.backend import (
    EMBEDDING,
    Backend,
    default_precision,
    load_failure,
    read_weights,
    weights_digest,
    without_questions,
)
from onceclip.pipeline.encoders.spec import DEMO, HUB, LOCAL, OPEN_CLIP_SOURCES, EncoderSpec
from onceclip.pipeline.encoders.towers import projection_of, reads_class_token, several_outputs
from onceclip.pipeline.errors import EncoderError
from onceclip.pipeline.files import read_json
from onceclip.stores.identity import fingerprint

CONFIG = "open_clip_config.json"
_plain_tokenizer = cache(SimpleTokenizer)  # making one reads 48,894 merges
_PREPROCESS = {"mean", "std", "interpolation", "resize_mode"}
_UNPREPARED = ("does not say how its images were prepared: add --preprocess openai (CLIP's own mean, deviation and "
               "bicubic resize) or --preprocess FILE.json")
_TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}  # open_clip's own; any other would reach transformers


class OpenClipBackend(Backend):
    """A model of open_clip.

    Raises EncoderError if it does not exist, has no weights, or would give other embeddings than its authors'.
    """

    model: Any

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        self.precision = default_precision(spec, device)
        self._spec = spec
        self.model, self._folder, architecture = _load(spec, device, self.precision)
        self._text = architecture["text_cfg"]
        config: dict[str, Any] = self.model.visual.preprocess_cfg
        size = config["size"]
        self.preparation = Preparation(
            size=(size, size) if isinstance(size, int) else tuple(size), interpolation=config["interpolation"],
            resize_mode=config["resize_mode"], fill=config["fill_color"], mean=tuple(config["mean"]),
            std=tuple(config["std"]), decode=spec.decode, exif=spec.exif)
        # Names and paths stay outside the identity: the weights and the architecture say more.
        self.identity = {
            "architecture": fingerprint(architecture),
            "weights": weights_digest(self.model),
            "preprocess": json.loads(json.dumps(config, default=list)),
            "quick_gelu": bool(architecture.get("quick_gelu", False)),
            "precision": self.precision,
            "output": "projected",
        }
        bias = self.model.logit_bias
        self.info = {
            "name": (f"{LOCAL}{self._folder.resolve().name}" if self._folder and spec.model.startswith(LOCAL)
                     else spec.model),
            "pretrained": Path(spec.pretrained).name if spec.pretrained else None,
            "dim": int(architecture["embed_dim"]),
            "logit_scale": self.model.logit_scale.exp().item(), "logit_bias": None if bias is None else bias.item(),
        }

    @cached_property
    def tokenizer(self) -> Callable[..., Tensor]:  # type: ignore[override]
        """Sentences to token ids; opened when text is wanted, since it may need files that images do not."""
        source, options = self._text.get("hf_tokenizer_name"), dict(self._text.get("tokenizer_kwargs") or {})
        trust = {"trust_remote_code": False} if source else {}
        try:
            if self._folder is None:
                return open_clip.get_tokenizer(self._spec.model, cache_dir=self._spec.cache_dir, **trust)
            options["context_length"] = self._text.get("context_length", DEFAULT_CONTEXT_LENGTH)
            if not source:
                return _plain_tokenizer(**options)
            return HFTokenizer(self._folder if self._spec.model.startswith(LOCAL) else source,
                               cache_dir=self._spec.cache_dir, tokenizer_mode=self._text.get("tokenizer_mode"),
                               **options, **trust)
        except Exception as error:
            remedy = "put its files into the folder"
            raise load_failure(f"the tokenizer of {self._spec.model}", error, remedy, remedy) from error

    def images(self, pixels: Tensor, outputs: tuple[str, ...], tokens: str) -> dict[str, Tensor]:
        """Run the image tower once; see `Backend`."""
        if outputs == (EMBEDDING,) and not reads_class_token(self.model.visual):
            return {EMBEDDING: self.model.encode_image(pixels, normalize=False)}
        return several_outputs(self.model.visual, pixels, outputs, tokens, self.info["name"])

    def text(self, tokens: Tensor) -> Tensor:
        """Run the text tower on token ids (n, context); see `Backend`."""
        return self.model.encode_text(tokens, normalize=False)

    def projection(self) -> tuple[Tensor | None, Tensor | None]:
        """The image tower's last linear map; see `Backend`."""
        return projection_of(self.model.visual)


def is_listed(model: str, tag: object) -> bool:
    """Whether a model with these weights ships with onceclip, or stands in open_clip's own list."""
    return model == DEMO or (model in open_clip.list_models() and tag in open_clip.list_pretrained_tags_by_model(model))


def check_pretrained(spec: EncoderSpec) -> None:
    """Raise EncoderError for weights that open_clip does not know, or that would be random."""
    if spec.model == DEMO or spec.model.startswith(OPEN_CLIP_SOURCES):
        return
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.pretrained is None:
        if not spec.allow_random:
            raise EncoderError(f"{spec.model} needs --pretrained, a tag or a weights file (without it the weights are "
                               f"random); tags: {', '.join(tags) or 'none'}")
    elif Path(spec.pretrained).is_file():
        if spec.preprocess is None:
            raise EncoderError(f"{spec.pretrained} {_UNPREPARED}")
    elif spec.pretrained not in tags:
        raise EncoderError(unknown("pretrained tag or weights file", spec.pretrained, tags, f" for {spec.model}"))


def _load(spec: EncoderSpec, device: torch.device, precision: str) -> tuple[Any, Path | None, dict[str, Any]]:
    """The model, the folder of its files unless open_clip has it built in, and its architecture."""
    weights = f" with {spec.pretrained}" if spec.pretrained else ""
    try:
        with warnings.catch_warnings(), _quiet(), patch.object(factory, "load_state_dict", read_weights):
            folder = _folder(spec)
            architecture = _checked_architecture(spec, folder) if folder else factory.get_model_config(spec.model)
            if folder and spec.model.startswith(HUB):
                _fetch_weights(spec, folder)
            if architecture["text_cfg"].get("hf_model_name"):
                without_questions()
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            torch.manual_seed(0)  # random weights, where they are allowed, are the same in every process
            model = open_clip.create_model(
                f"{LOCAL}{folder}" if folder else spec.model, spec.pretrained, precision=precision, device=device,
                cache_dir=spec.cache_dir, require_pretrained=not spec.allow_random,
                force_preprocess_cfg=_preprocess_config(spec.preprocess))
        _check_preprocess(spec.model, model.visual.preprocess_cfg)
        return model, folder, architecture
    except UserWarning as error:
        raise EncoderError(f"{spec.model} with {spec.pretrained}: {error}; the embeddings would be wrong: use model "
                           f"{spec.model.removesuffix('-quickgelu')}-quickgelu (or the one without)") from error
    except EncoderError:
        raise
    except Exception as error:
        remedy = ("the weights are incomplete or of another architecture: give the model that they belong to"
                  if "loading state_dict" in str(error) else "check the name")
        raise load_failure(f"{spec.model}{weights}", error, remedy,
                           "use local-dir:FOLDER or a weights file for --pretrained") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence loggers: the hub's client reports every one of its retries, and what fails is raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _folder(spec: EncoderSpec) -> Path | None:
    """Where the configuration of a model lies that open_clip has not built in."""
    if spec.model.startswith(HUB):
        return Path(download_pretrained_from_hf(spec.model.removeprefix(HUB), CONFIG, cache_dir=spec.cache_dir)).parent
    return None if spec.folder is None else Path(spec.folder)


def _fetch_weights(spec: EncoderSpec, folder: Path) -> None:
    """Fetch weights from the hub to the configuration that was checked, out of the same revision."""
    try:
        download_pretrained_from_hf(spec.model.removeprefix(HUB), revision=folder.name, cache_dir=spec.cache_dir)
    except FileNotFoundError:
        if not spec.allow_random:
            raise


def _checked_architecture(spec: EncoderSpec, folder: Path) -> dict[str, Any]:
    """What a configuration says of the model.

    Raises EncoderError if it does not say how images are prepared, or would have open_clip open or download what only
    the file names.
    """
    config = read_json((folder / CONFIG).read_text(encoding="utf-8"))
    architecture, prepared = config["model_cfg"], config.get("preprocess_cfg") or {}
    text, vision = architecture["text_cfg"], architecture["vision_cfg"]
    where = f"{CONFIG} of {spec.model}"
    passed_on = sorted({*(text.get("tokenizer_kwargs") or {})} - _TOKENIZER_OPTIONS)
    if passed_on:
        raise EncoderError(f"{where} sets the tokenizer's {', '.join(passed_on)}, by which a file can have code run: "
                           "onceclip does not pass it on; wrap the model as an encoder of your own (docs/extending.md)")
    named, publisher = [text.get("hf_model_name")], ""
    if ":" in str(vision.get("timm_model_name")):
        named.append(vision["timm_model_name"])
    if spec.model.startswith(HUB):  # a folder's tokenizer lies in it
        named.append(text.get("hf_tokenizer_name"))
        publisher = f"{spec.model.removeprefix(HUB).partition('/')[0]}/"
    named = [name for name in named if name]
    known = {factory.get_model_config(each)["text_cfg"].get(key) for each in open_clip.list_models()
             for key in ("hf_model_name", "hf_tokenizer_name")} if named else set()
    for name in named:
        if name not in known and not (publisher and str(name).startswith(publisher)):
            raise EncoderError(f"{where} names the repository {name!r}, and what a file names is not fetched: wrap the "
                               "model as an encoder of your own (docs/extending.md)")
    if spec.preprocess is None and not (prepared.get("mean") and prepared.get("std")):
        raise EncoderError(f"{spec.model} {_UNPREPARED}")
    return architecture


def _preprocess_config(choice: str | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if choice == "openai":
        return {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic",
                "resize_mode": "shortest"}
    try:
        given = read_json(Path(choice).read_text(encoding="utf-8-sig"))
        if not isinstance(given, dict) or set(given) != _PREPROCESS:
            raise ValueError(f"it must have {', '.join(sorted(_PREPROCESS))}, and nothing else")
        return given
    except (OSError, ValueError) as error:
        raise EncoderError(f"--preprocess {choice}: {error}: give `openai` or a JSON file such as "
                           '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", '
                           '"resize_mode": "squash"}') from error


def _check_preprocess(model: str, config: dict[str, Any]) -> None:
    """Raise EncoderError for a preparation that `Preparation` does not know."""
    wrong = [f"{key} {config[key]!r}" for key, known in (("interpolation", FILTERS), ("resize_mode", RESIZE_MODES))
             if config[key] not in known]
    wrong += [f"{key} {config[key]!r}" for key in ("mean", "std") if len(config[key]) != 3]
    if wrong:
        raise EncoderError(f"{model} prepares images with {', '.join(wrong)}: there are {', '.join(FILTERS)} and "
                           f"{', '.join(RESIZE_MODES)}, and three channels")
