"""Glyphs: finds fonts, renders a pool of tight grey bitmaps, and degrades batches of them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from bench.demo_model.captions import CLASSES, COLOURS, FONT_STYLES, STYLES

log = logging.getLogger("bench.demo_model")
SIDE = 48
MARGIN = 4
RENDER_SIZE = 72
IMAGE_SIZE = 32
SUFFIXES = {".ttf", ".otf", ".ttc", ".t1", ".pfb"}


@dataclass(frozen=True)
class Pool:
    """Rendered glyphs: `bitmaps` [N, 48, 48] uint8 (255 is ink), `label` [N] index into CLASSES,
    `font` [N] index into the fonts: their `family` names [fonts] and `styles` [fonts, FONT_STYLES] bool."""

    bitmaps: Tensor
    label: Tensor
    font: Tensor
    family: list[str]
    styles: Tensor


def render_glyph(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """Draw one character, cut it out and fit it, aspect kept, in a [48, 48] uint8 square (None if blank)."""
    canvas = Image.new("L", (4 * RENDER_SIZE, 3 * RENDER_SIZE))
    ImageDraw.Draw(canvas).text((RENDER_SIZE, RENDER_SIZE // 2), character, font=font, fill=255)
    box = canvas.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < RENDER_SIZE // 8:
        return None
    glyph = canvas.crop(box)
    scale = (SIDE - 2 * MARGIN) / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size], Image.Resampling.BOX)
    square = Image.new("L", (SIDE, SIDE))
    square.paste(glyph, ((SIDE - glyph.width) // 2, (SIDE - glyph.height) // 2))
    return np.asarray(square)


def render_font(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Render every class of one font file: its family name and a bitmap per class that the font has."""
    font = ImageFont.truetype(str(path), RENDER_SIZE, layout_engine=ImageFont.Layout.BASIC)
    family, style = font.getname()
    missing = [render_glyph(font, character) for character in ("\uffff", "\u0ffe")]
    absent = [bitmap.tobytes() for bitmap in missing if bitmap is not None]
    glyphs = {character: render_glyph(font, character) for character in CLASSES}
    return f"{family} {style}", {
        character: bitmap
        for character, bitmap in glyphs.items()
        if bitmap is not None and bitmap.tobytes() not in absent
    }


def font_styles(name: str) -> list[bool]:
    """Say which of FONT_STYLES a font has, judged by its file and family name."""
    has = {style: any(word in name.lower() for word in words.split()) for style, words in FONT_STYLES.items()}
    has["serif"] &= not has["sans serif"]
    return list(has.values())


def render_pool(folders: list[Path]) -> Pool:
    """Render all readable fonts below some folders; fonts with the same digits are taken once."""
    files = (path for folder in folders for path in folder.rglob("*"))
    paths = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    bitmaps: list[np.ndarray] = []
    family: list[str] = []
    label, font, styles, seen = [], [], [], set()
    for path in tqdm(paths, desc="render", unit="font"):
        try:
            name, glyphs = render_font(path)
        except (OSError, ValueError) as error:
            log.info("skipped %s: %s", path.name, error)
            continue
        shapes = {glyphs[digit].tobytes() for digit in CLASSES[:10] if digit in glyphs}
        key = b"".join(sorted(shapes))
        if len(shapes) < 8 or key in seen:
            continue
        seen.add(key)
        bitmaps += glyphs.values()
        label += [CLASSES.index(character) for character in glyphs]
        font += [len(family)] * len(glyphs)
        family.append(path.parent.name + " " + name.split()[0])
        styles.append(font_styles(f"{path.stem} {name}"))
    squares = torch.from_numpy(np.stack(bitmaps))
    return keep_readable(Pool(squares, torch.tensor(label), torch.tensor(font), family, torch.tensor(styles)))


def keep_readable(pool: Pool, least: float = 0.3) -> Pool:
    """Drop the fonts (dingbats, ornaments) of which too few glyphs look like the mean of their class."""
    small = F.avg_pool2d(pool.bitmaps[:, None].float(), 4).flatten(1)
    small = F.normalize(small - small.mean(1, keepdim=True), dim=1)
    means = torch.zeros(len(CLASSES), small.shape[1]).index_add_(0, pool.label, small)
    nearest = (small @ F.normalize(means, dim=1).T).argmax(1)
    folded = torch.tensor([CLASSES.lower().index(character) for character in CLASSES.lower()])
    right = (folded[nearest] == folded[pool.label]).float()
    count = torch.bincount(pool.font, minlength=len(pool.family))
    readable = torch.bincount(pool.font, right, minlength=len(pool.family)) / count >= least
    keep = readable[pool.font]
    log.info("%d of %d fonts are readable, %d glyphs", readable.sum(), len(readable), keep.sum())
    return Pool(pool.bitmaps[keep], pool.label[keep], pool.font[keep], pool.family, pool.styles)


def uniform(rows: int, low: float, high: float) -> Tensor:
    """Draw `rows` numbers from [low, high), shaped [rows, 1, 1] to go with a batch of bitmaps."""
    return torch.empty(rows, 1, 1).uniform_(low, high)


def change_stroke(ink: Tensor) -> Tensor:
    """Erode or dilate the strokes of each bitmap [B, 48, 48] by a random width, unless that would make it
    vanish or fill up."""
    steps = torch.randint(-1, 4, (len(ink),))
    out = ink.clone()
    for step in (-1, 1, 2, 3):
        chosen, sign = ink[steps == step], 1 if step > 0 else -1
        changed = sign * F.max_pool2d(sign * chosen, 2 * abs(step) + 1, 1, abs(step))
        before, after = chosen.mean((1, 2), keepdim=True), changed.mean((1, 2), keepdim=True)
        readable = (after > 0.4 * before) & (after < 0.36)
        out[steps == step] = torch.where(readable, changed, chosen)
    return out


def warp(ink: Tensor, strength: float = 0.06) -> Tensor:
    """Rotate, slant, stretch and elastically bend each bitmap [B, 48, 48]."""
    rows = len(ink)
    angle, slant = torch.randn(rows) * 0.13, torch.randn(rows) * 0.18
    stretch = torch.exp(torch.randn(rows) * 0.1)
    cosine, sine, zero = angle.cos() * 1.3, angle.sin() * 1.3, torch.zeros(rows)
    theta = torch.stack([cosine * stretch, cosine * slant - sine, zero, sine, cosine / stretch, zero], 1)
    grid = F.affine_grid(theta.view(rows, 2, 3), [rows, 1, SIDE, SIDE], align_corners=False)
    waves = torch.cos(math.pi * torch.arange(4) * (torch.arange(SIDE)[:, None] + 0.5) / SIDE)
    bend = torch.randn(rows, 2, 4, 4) * strength * torch.rand(rows, 1, 1, 1)
    bend = (waves @ bend @ waves.T).permute(0, 2, 3, 1)
    return F.grid_sample(ink[:, None], grid + bend, align_corners=False)[:, 0]


def frame(ink: Tensor) -> Tensor:
    """Cut each glyph [B, 48, 48] out and place it anew: tight or loose, stretched, off-centre."""
    rows = len(ink)
    centre, half = [], []
    for axis in (1, 2):  # the profile over x, then over y
        seen, place = ink.amax(axis) > 0.3, torch.arange(SIDE)
        first = torch.where(seen, place, SIDE // 2).amin(1)
        last = torch.where(seen, place, SIDE // 2).amax(1) + 1
        centre.append((first + last) / SIDE - 1)
        half.append((last - first) / SIDE)
    aspect = half[0] / half[1] * torch.exp(torch.randn(rows) * 0.25)
    size = torch.where(torch.rand(rows) < 0.5, torch.ones(rows), torch.empty(rows).uniform_(0.55, 1.05))
    sizes = (size * aspect.clamp(max=1), size / aspect.clamp(min=1))
    shift = [(torch.rand(rows) * 2 - 1) * (1.05 - target) * 0.5 for target in sizes]
    scale = [part / target for part, target in zip(half, sizes, strict=True)]
    zero = torch.zeros(rows)
    theta = [scale[0], zero, centre[0] - shift[0] * scale[0], zero, scale[1], centre[1] - shift[1] * scale[1]]
    grid = F.affine_grid(torch.stack(theta, 1).view(rows, 2, 3), [rows, 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(ink[:, None], grid, align_corners=False)[:, 0]


def stray_stroke(ink: Tensor, share: float = 0.15) -> Tensor:
    """Add a short straight pen stroke somewhere to a share of the bitmaps [B, 48, 48]."""
    chosen = torch.rand(len(ink)) < share
    rows = int(chosen.sum())
    x, y, angle = uniform(rows, 12, 36), uniform(rows, 12, 36), uniform(rows, 0, math.pi)
    across, down = torch.arange(SIDE)[None, None, :] - x, torch.arange(SIDE)[None, :, None] - y
    along = (across * angle.cos() + down * angle.sin()).abs() - uniform(rows, 4, 12)
    off = (across * angle.sin() - down * angle.cos()).abs()
    stroke = (uniform(rows, 1, 3) + 0.5 - torch.hypot(along.clamp(min=0), off)).clamp(0, 1)
    out = ink.clone()
    out[chosen] = torch.maximum(ink[chosen], stroke)
    return out


def blur(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Blur a part of the bitmaps [B, 48, 48]; also say which [B] look blurred."""
    steps = torch.randint(-1, 3, (len(ink),))
    out = ink.clone()
    for step in (1, 2):
        chosen = ink[steps == step]
        for _ in range(2):
            chosen = F.avg_pool2d(chosen, 2 * step + 1, 1, step)
        out[steps == step] = chosen
    return out, steps == 2


def lower_resolution(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Box-average each bitmap [B, 48, 48] down to a few pixels and enlarge it to [B, 32, 32], bicubic as
    CLIP's preprocessing does; also say which [B] are coarse."""
    sides = torch.tensor([8, 8, 8, 10, 12, 16, 24, IMAGE_SIZE])[torch.randint(8, (len(ink),))]
    gain = uniform(len(ink), 0.8, 1.9)
    out = torch.empty(len(ink), IMAGE_SIZE, IMAGE_SIZE)
    for side in sides.unique().tolist():
        chosen = sides == side
        small = F.interpolate(ink[chosen][:, None], (side, side), mode="area")
        small = (small * gain[chosen][:, None]).clamp(0, 1)
        # With antialias the cubic is PIL's, which is not torch's own.
        out[chosen] = F.interpolate(small, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)[:, 0]
    return out.clamp(0, 1), sides <= 12


def colour(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Print each bitmap [B, 32, 32] in an ink colour on paper: images [B, 3, 32, 32], styles [B, STYLES]."""
    rows, names = len(ink), list(COLOURS)
    table = torch.tensor(list(COLOURS.values()))
    black, white = torch.full((rows,), names.index("black")), torch.full((rows,), names.index("white"))
    pen = torch.randint(len(names), (rows,))
    paper = (pen + torch.randint(1, len(names), (rows,))) % len(names)
    kind = torch.rand(rows)
    pen = torch.where(kind < 0.5, black, torch.where(kind < 0.7, white, pen))
    paper = torch.where(kind < 0.5, white, torch.where(kind < 0.7, black, paper))
    jitter = torch.randn(2, rows, 3) * 0.08 * torch.rand(rows, 1)
    front, back = table[pen] + jitter[0], table[paper] + jitter[1]
    front = torch.lerp(back, front, uniform(rows, 0.6, 1.3)[:, :, 0].clamp(max=1))
    brightness = (front - back).mean(1)
    styles = torch.zeros(rows, len(STYLES), dtype=torch.bool)
    styles[torch.arange(rows), STYLES.index(names[0]) + pen] = True
    styles[:, STYLES.index("dark on light")] = brightness < -0.2
    styles[:, STYLES.index("light on dark")] = brightness > 0.2
    images = torch.lerp(back[:, :, None, None], front[:, :, None, None], ink[:, None])
    return images, styles


def degrade(bitmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Turn clean bitmaps [B, 48, 48] uint8 into pictures [B, 3, 32, 32] in [0, 1], and say which styles
    [B, STYLES] they got by that."""
    ink = frame(stray_stroke(warp(change_stroke(bitmaps.float() / 255))))
    ink, blurry = blur(ink)
    ink, coarse = lower_resolution(ink)
    images, styles = colour(ink)
    noise = torch.empty(len(ink)).uniform_(-0.15, 0.15)
    grainy = noise > 0
    images[grainy] += noise[grainy].view(-1, 1, 1, 1) * torch.randn_like(images[grainy])
    styles[:, STYLES.index("blurry")] = blurry
    styles[:, STYLES.index("low resolution")] = coarse
    styles[:, STYLES.index("noisy")] = noise > 0.06
    return images.clamp(0, 1), styles
