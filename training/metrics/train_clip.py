"""Trains the small CLIP: ``python -m training.metrics.train_clip --data runs/portraits64``."""

from __future__ import annotations

import time
from pathlib import Path

import click
import open_clip
import torch
from torch import Tensor

from dnnlib.errors import UserError, user_errors
from torch_utils import checkpoint
from training.judges.clip import ClipConfig, PortraitClip
from training.metrics.portrait_set import PortraitSet, fit, read_set, to_float, varied
from training.prior.vocabulary import split_words


def contrastive_loss(clip: PortraitClip, images: Tensor, captions: list[str]) -> Tensor:
    """open_clip's symmetric cross-entropy of a batch."""
    loss = open_clip.ClipLoss()
    return loss(clip.encode_images(images), clip.encode_texts(captions), clip.logit_scale)


@torch.no_grad()
def retrieval(clip: PortraitClip, pictures: PortraitSet) -> dict[str, float]:
    """Share of captions whose own picture is the nearest, or among the five nearest, of all pictures.

    A caption that several pictures have counts as right with any of them.
    """
    images = torch.cat([clip.encode_images(to_float(part)) for part in pictures.images.split(256)])
    near = (clip.encode_texts(pictures.captions) @ images.T).topk(min(5, len(pictures))).indices
    right = torch.tensor(
        [
            [pictures.captions[j] == own for j in row]
            for own, row in zip(pictures.captions, near.tolist(), strict=True)
        ]
    )
    return {"R@1": right[:, 0].float().mean().item(), "R@5": right.any(1).float().mean().item()}


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Portrait set with captions.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/clip-64.safetensors"))
@click.option("--steps", type=click.IntRange(min=1), default=400)
@click.option("--batch", type=click.IntRange(min=2), default=128)
@click.option("--lr", type=float, default=1e-3)
@click.option("--seed", type=int, default=0)
@click.option("--start", type=click.Path(path_type=Path), help="A CLIP to go on from, instead of nothing.")
@user_errors
def main(data: Path, out: Path, steps: int, batch: int, lr: float, seed: int, start: Path | None) -> None:
    """Train on all but the last tenth of the set, print how well that tenth is retrieved, write the model."""
    config = ClipConfig()
    checkpoint.check_name(out)
    train, held_out = read_set(data, "ffhq-mask", config.image_size).split()
    if not any(train.captions):
        raise UserError(f"{data}/dataset.json has no captions")
    torch.manual_seed(seed)
    words = sorted({word for caption in train.captions + held_out.captions for word in split_words(caption)})
    clip = PortraitClip(config, words) if start is None else PortraitClip.load(start).requires_grad_(True)
    click.echo(
        f"{sum(p.numel() for p in clip.parameters()):,} parameters, {len(words)} words, {len(train)} pictures"
    )

    def loss(source: torch.Generator) -> Tensor:
        chosen = torch.randint(len(train), (min(batch, len(train)),), generator=source)
        images, _ = varied(to_float(train.images[chosen]), train.masks[chosen], train.mirror, source)
        return contrastive_loss(clip, images, [train.captions[i] for i in chosen])

    started = time.process_time()
    fit(clip, loss, steps=steps, lr=lr, seed=seed, say=click.echo)
    scores = {
        "held_out": retrieval(clip, held_out),
        "trained_on": retrieval(clip, train.take(slice(len(held_out)))),  # as many, to compare
        "pictures": len(held_out),
        "seconds": round(time.process_time() - started, 1),
    }
    clip.save(out, {"scores": scores, "steps": steps, "batch": batch})
    click.echo(f"{out}: {scores}")


if __name__ == "__main__":
    main()
