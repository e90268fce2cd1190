"""Trains the small CLIP that the project ships, contrastively, on rendered glyphs and their captions."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import click
import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from bench.demo_model.captions import CLASSES, FONT_STYLES, STYLES, Captions, build_captions
from bench.demo_model.glyphs import IMAGE_SIZE, Pool, degrade, render_pool

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 96, "head_width": 32, "layers": 3},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS_CONFIG = {
    "size": IMAGE_SIZE,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
DIGITS = 10
STYLED_CAPTIONS = 96
FOLDER = click.Path(file_okay=False, path_type=Path)
log = logging.getLogger("bench.demo_model")


class Sampler:
    """Draws pictures of glyphs and captions, and says which captions are true of which pictures."""

    def __init__(self, pool: Pool, captions: Captions, held_out: set[str]):
        self.pool, self.captions = pool, captions
        families = [pool.family.count(name) for name in pool.family]
        handwritten = pool.styles[:, STYLES.index("handwritten")]
        font_weight = torch.tensor(families).float() ** -0.5 * (1 + 3 * handwritten)
        class_weight = torch.full((len(CLASSES),), 0.5 / (len(CLASSES) - DIGITS))
        class_weight[:DIGITS] = 0.5 / DIGITS
        self.weight = font_weight[pool.font] * class_weight[pool.label]
        kept = torch.tensor([name in held_out for name in pool.family])[pool.font]
        self.train_weight, self.held_out_weight = self.weight * ~kept, self.weight * kept
        self.rows = [
            [(true_of & (captions.style == style)).nonzero()[:, 0] for style in range(-1, len(STYLES))]
            for true_of in captions.classes.T
        ]

    def pictures(self, rows: int, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw glyphs by weight and degrade them: images [B, 3, 32, 32], labels [B], styles [B, STYLES]."""
        chosen = torch.multinomial(weight, rows, replacement=True)
        images, styles = degrade(self.pool.bitmaps[chosen])
        styles[:, : len(FONT_STYLES)] = self.pool.styles[self.pool.font[chosen]]
        return (images - 0.5) / 0.5, self.pool.label[chosen], styles

    def choose_captions(self, labels: Tensor, styles: Tensor) -> Tensor:
        """Choose a plain caption per class and a few that name a style of some pictures: indices [M]."""
        wanted = [(label, -1) for label in range(len(CLASSES))]
        pictures = torch.randint(len(labels), (STYLED_CAPTIONS,))
        style = torch.multinomial(styles[pictures].float() + 1e-6, 1)[:, 0]
        wanted += zip(labels[pictures].tolist(), style.tolist(), strict=True)
        rows = [self.rows[label][style + 1] for label, style in wanted]
        draws = torch.rand(len(rows)).tolist()
        return torch.stack([row[int(draw * len(row))] for row, draw in zip(rows, draws, strict=True)])

    def truth(self, chosen: Tensor, labels: Tensor, styles: Tensor) -> Tensor:
        """Say of each picture [B] and chosen caption [M] whether the caption is true of it: [B, M]."""
        style = self.captions.style[chosen]
        shown = torch.cat([styles, torch.ones(len(styles), 1, dtype=torch.bool)], 1)  # style -1 fits them all
        return self.captions.classes[chosen][:, labels].T & shown[:, style]


def contrastive_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """CLIP's two-way cross entropy for logits [B, M] where any number of the pairs [B, M] are true."""
    target = truth.float()
    rows = -(F.log_softmax(logits, 1) * target).sum(1) / target.sum(1).clamp(min=1)
    columns = -(F.log_softmax(logits, 0) * target).sum(0) / target.sum(0).clamp(min=1)
    return (rows.mean() + columns.mean()) / 2


@torch.no_grad()
def held_out_accuracy(
    model: CLIP, sampler: Sampler, tokenizer: SimpleTokenizer, rows: int = 4000
) -> tuple[float, float]:
    """Zero-shot accuracy on degraded glyphs of the held-out fonts: of digits among digits, and of all glyphs
    among all classes (there upper and lower case of a letter count as one)."""
    model.eval()
    images, labels, _ = sampler.pictures(rows, sampler.held_out_weight)
    names = list(CLASSES[:DIGITS]) + [f"letter {letter}" for letter in CLASSES[-26:]]
    text = model.encode_text(tokenizer([f"a photo of a {name}." for name in names]), normalize=True)
    scores = torch.cat([model.encode_image(part, normalize=True) @ text.T for part in images.split(500)])
    folded = torch.where(labels < DIGITS, labels, (labels - DIGITS) % 26 + DIGITS)
    digit = labels < DIGITS
    model.train()
    among_digits = scores[digit, :DIGITS].argmax(1) == labels[digit]
    return among_digits.float().mean().item(), (scores.argmax(1) == folded).float().mean().item()


def save(model: CLIP, folder: Path) -> None:
    """Write the model to a folder that open_clip reads as `local-dir:`, its weights rounded to fp16."""
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def optimizer_groups(model: CLIP, weight_decay: float) -> list[dict]:
    """Decay the matrices only, not the biases, norms, positions, scale or the rarely used token embedding."""

    def decays(name: str, value: Tensor) -> bool:
        return value.ndim >= 2 and "embedding" not in name

    named = list(model.named_parameters())
    return [
        {"params": [value for name, value in named if decays(name, value)], "weight_decay": weight_decay},
        {"params": [value for name, value in named if not decays(name, value)], "weight_decay": 0.0},
    ]


@click.command()
@click.option("--fonts", "folders", type=FOLDER, multiple=True, required=True)
@click.option("--out", type=FOLDER, required=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--steps", default=14000, show_default=True)
@click.option("--batch", default=256, show_default=True)
@click.option("--learning-rate", default=1.5e-3, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(
    folders: tuple[Path, ...],
    out: Path,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    threads: int,
) -> None:
    """Render the glyphs of all fonts below --fonts, train a CLIP on them and write it to --out."""
    out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING)
    handler = logging.FileHandler(out / "training.log", mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    log.info("seed %d, %d steps of %d pictures, learning rate %g", seed, steps, batch, learning_rate)

    pool = render_pool(list(folders))
    names = sorted({pool.family[index] for index in pool.font.unique().tolist()})
    held_out = {names[index] for index in torch.randperm(len(names))[: len(names) // 12].tolist()}
    log.info("%d of %d font families held out: %s", len(held_out), len(names), ", ".join(sorted(held_out)))
    tokenizer = SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    captions = build_captions(tokenizer)
    sampler = Sampler(pool, captions, held_out)
    model = CLIP(**MODEL_CONFIG)
    size = sum(value.numel() for value in model.parameters())
    log.info("%d parameters, %d captions", size, len(captions.texts))

    optimizer = torch.optim.AdamW(optimizer_groups(model, 0.05), lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 300, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    running = 0.0
    for step in tqdm(range(1, steps + 1), desc="train", unit="step"):
        images, labels, styles = sampler.pictures(batch, sampler.train_weight)
        chosen = sampler.choose_captions(labels, styles)
        # On a CPU, fused attention in bfloat16 takes longer than plain matrix products.
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image, text = model.encode_image(images), model.encode_text(captions.tokens[chosen])
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        logits = model.logit_scale.exp() * image @ text.T
        loss = contrastive_loss(logits, sampler.truth(chosen, labels, styles))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        running += (loss.item() - running) / min(step, 100)
        if step % 500 == 0 or step == steps:
            accuracy = held_out_accuracy(model, sampler, tokenizer)
            log.info("step %d, loss %.3f, held out: digits %.3f, all classes %.3f", step, running, *accuracy)
            save(model, out)
    saved, _ = open_clip.create_model_from_pretrained(f"local-dir:{out.resolve()}")
    accuracy = held_out_accuracy(saved, sampler, tokenizer, rows=10000)
    log.info("the saved file, held out: digits %.3f, all classes %.3f", *accuracy)


if __name__ == "__main__":
    main()
