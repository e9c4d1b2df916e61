"""Trains the reader: ``python -m training.metrics.train_reader --data runs/portraits64``."""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional

from dnnlib.errors import user_errors
from torch_utils import checkpoint
from training.judges.attributes import ATTRIBUTES, HIDDEN, targets
from training.judges.reader import Reader, ReaderConfig, Reading
from training.metrics.portrait_set import PortraitSet, fit, read_set, to_float, varied
from training.metrics.segmentation import mean_iou
from training.networks.inputs import one_hot
from training.networks.unet import parsing_loss


def reading_loss(reading: Reading, masks: Tensor, attributes: Tensor) -> Tensor:
    """Cross-entropy and overlap of the pixels; a tenth each of that of the attributes (N, A) in sight."""
    loss = parsing_loss(reading.classes, one_hot(masks, reading.classes.shape[1]))
    for logits, wanted in zip(reading.attributes.values(), attributes.unbind(1), strict=True):
        if (wanted != HIDDEN).any():
            loss = loss + 0.1 * functional.cross_entropy(logits, wanted, ignore_index=HIDDEN)
    return loss


def all_targets(pictures: PortraitSet) -> Tensor:
    """(n, A) int64."""
    return torch.stack([targets(r, m) for r, m in zip(pictures.records, pictures.masks, strict=True)])


@torch.no_grad()
def score(reader: Reader, pictures: PortraitSet) -> dict:
    """Mean IoU of the mask, and share of right answers of each attribute."""
    parts = [reader(to_float(part)) for part in pictures.images.split(128)]
    found = torch.cat([part.classes.argmax(1) for part in parts])
    mean, each = mean_iou(pictures.masks, found, reader.labels.count)
    wanted = all_targets(pictures)
    right = {}
    for i, name in enumerate(ATTRIBUTES):
        read = torch.cat([part.attributes[name].argmax(1) for part in parts])
        seen = wanted[:, i] != HIDDEN
        right[name] = round((read == wanted[:, i])[seen].float().mean().item(), 4)
    by_class = dict(zip(reader.labels.names, (round(x, 4) for x in each.tolist()), strict=True))
    return {
        "mask_iou": round(mean, 4),
        "mask_iou_by_class": {name: x if x == x else None for name, x in by_class.items()},
        "attribute_accuracy": right,
    }


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Rendered portrait set.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/reader-64.safetensors"))
@click.option("--steps", type=click.IntRange(min=1), default=800)
@click.option("--batch", type=click.IntRange(min=1), default=32)
@click.option("--lr", type=float, default=2e-3)
@click.option("--seed", type=int, default=0)
@click.option("--start", type=click.Path(path_type=Path), help="A reader to go on from, instead of nothing.")
@user_errors
def main(data: Path, out: Path, steps: int, batch: int, lr: float, seed: int, start: Path | None) -> None:
    """Train on all but the last tenth of the set, print how well that tenth is read, write the network."""
    config = ReaderConfig()
    checkpoint.check_name(out)
    train, held_out = read_set(data, config.labels, config.resolution, records=True).split()
    wanted = all_targets(train)
    torch.manual_seed(seed)
    reader = Reader(config) if start is None else Reader.load(start).requires_grad_(True)
    reader = reader.to(memory_format=torch.channels_last)  # a quarter faster on CPUs
    click.echo(f"{sum(p.numel() for p in reader.parameters()):,} parameters, {len(train)} pictures")

    def loss(source: torch.Generator) -> Tensor:
        chosen = torch.randint(len(train), (batch,), generator=source)
        images, masks = varied(
            to_float(train.images[chosen]), train.masks[chosen], train.mirror, source, blur=0.3
        )
        images = images.contiguous(memory_format=torch.channels_last)
        return reading_loss(reader(images), masks, wanted[chosen])

    started = time.process_time()
    fit(reader, loss, steps=steps, lr=lr, seed=seed, say=click.echo)
    scores = {"held_out": score(reader, held_out), "pictures": len(held_out)}
    scores["seconds"] = round(time.process_time() - started, 1)
    reader.save(out, {"scores": scores, "steps": steps, "batch": batch})
    click.echo(f"{out}: {scores}")


if __name__ == "__main__":
    main()
