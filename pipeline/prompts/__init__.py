"""From class names to sentences: templates, sentences and descriptions from a file, random words from a seed."""

from onceclip.pipeline.prompts.class_names import class_phrases, load_phrases, numbered
from onceclip.pipeline.prompts.descriptions import Descriptions, load_descriptions
from onceclip.pipeline.prompts.prompts import Prompts, build_prompts
from onceclip.pipeline.prompts.templates import DEFAULT_TEMPLATES, load_templates, waffle_templates

__all__ = ["DEFAULT_TEMPLATES", "Descriptions", "Prompts", "build_prompts", "class_phrases", "load_descriptions",
           "load_phrases", "load_templates", "numbered", "waffle_templates"]
