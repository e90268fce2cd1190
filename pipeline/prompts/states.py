"""Sentences of normal and abnormal states of an object, for anomaly detection by text."""

from __future__ import annotations

from collections.abc import Sequence

from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.anomaly import normal_class
from onceclip.pipeline.errors import PromptError
from onceclip.pipeline.prompts.descriptions import Descriptions
from onceclip.stores.identity import canonical, digest

NORMAL = ("normal {}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
          "{} without damage")
ABNORMAL = ("damaged {}", "abnormal {}", "imperfect {}", "blemished {}", "{} with flaw", "{} with defect",
            "{} with damage")


def state_descriptions(classes: Sequence[str], thing: str, normal: str, templates: Sequence[str]) -> Descriptions:
    """The sentences of every class: normal states of a thing for the normal class, abnormal ones for all others.

    thing: what is looked at, such as "bottle". normal: name of the normal class; empty for the one that has a usual
        name. templates: sentences with `{}`, for each state.
    Raises PromptError where no class is the normal one, or the thing is empty.

    Source: WinCLIP (Jeong et al., CVPR 2023), section 4.1; AnoVL (Deng et al., 2023), section 3.1.
    """
    if not thing.strip():
        raise PromptError("--states is empty: say what the images show, such as bottle")
    try:
        place = normal_class(classes, normal)
    except MethodError as error:
        raise PromptError(str(error).replace("normal=NAME", "--normal NAME")) from error
    words = " ".join(thing.split())
    lines = {name: tuple(template.replace("{}", state.replace("{}", words)) for template in templates
                         for state in (NORMAL if number == place else ABNORMAL))
             for number, name in enumerate(classes)}
    return Descriptions(f"states of {words}", digest(canonical(lines)).hex(), lines, "sentences")
