"""From class names to sentences: templates, sentences and descriptions from a file, random words from a seed."""

from onceclip.pipeline.prompts.descriptions import Descriptions, load_descriptions
from onceclip.pipeline.prompts.prompts import (
    DEFAULT_TEMPLATES,
    Prompts,
    build_prompts,
    class_phrases,
    load_phrases,
    load_templates,
    waffle_templates,
)

__all__ = ["DEFAULT_TEMPLATES", "Descriptions", "Prompts", "build_prompts", "class_phrases", "load_descriptions",
           "load_phrases", "load_templates", "waffle_templates"]
