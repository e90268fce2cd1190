"""The frozen text model of an encoder as plain tensors: prompts with learned tokens in, class vectors out."""

from onceclip.adapters.tower.layout import POSITIONS
from onceclip.adapters.tower.tower import TextTower

__all__ = ["POSITIONS", "TextTower"]
