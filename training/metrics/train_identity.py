"""Trains the identity network: ``python -m training.metrics.train_identity --data DIR --views DIR``.

Two teachers: several views of the same heads (``python -m datasets.portraits.views``), whose embeddings
shall be nearer to each other than to those of other heads; and what single pictures' records say of the face:
morph targets, age, skin. The second makes few heads enough for the first.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.portraits.sampling import SIGNED_MORPHS
from dnnlib.errors import UserError, user_errors
from torch_utils import checkpoint
from training.judges.identity import IdentityConfig, IdentityNet
from training.metrics.portrait_set import PortraitSet, fit, read_set, to_float, varied

_TEMPERATURE = 0.1
_FACE_WEIGHT = 1.0  # of the regression of the face's parameters


def face_parameters(record: dict[str, Any]) -> Tensor:
    """(F,) what makes a face, whatever the pose: signed morph weights, age, sex, skin, descent, beard."""
    morphs = record["morphs"]

    def signed(name: str, minus: str, plus: str) -> float:
        name = name.format("l")  # both sides have the same weight
        return morphs.get(f"{name}-{plus}", 0.0) - morphs.get(f"{name}-{minus}", 0.0)

    values = [signed(name, minus, plus) for name, minus, plus, _, _ in SIGNED_MORPHS if "ear" not in name]
    beard = ("none", "stubble", "mustache", "beard").index(record["beard"]) / 3
    glasses = ("none", "round", "square", "sunglasses").index(record["glasses"]) / 3
    brow = record["brow"]
    values += [record["age"], record["skin_tone"] / 6, *record["ethnicity"].values()]
    values += [
        float(record["sex"] == "female"),
        beard,
        glasses,
        record["makeup"],
        brow["arch"],
        brow["thickness"],
    ]
    return torch.tensor(values)


def heads_of(pictures: PortraitSet) -> Tensor:
    """(n,) int64: number of the head of each view, by its folder."""
    folders = [name.rsplit("/", 1)[0] for name in pictures.names]
    order = {folder: number for number, folder in enumerate(dict.fromkeys(folders))}
    return torch.tensor([order[folder] for folder in folders])


def contrast(embeddings: Tensor, heads: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020) of unit vectors (N, D) with numbers of heads (N,)."""
    alike = embeddings @ embeddings.T / _TEMPERATURE
    itself = torch.eye(len(heads), dtype=torch.bool)
    log_share = alike.masked_fill(itself, -1e9).log_softmax(1)
    same = (heads[:, None] == heads) & ~itself
    return -(log_share * same).sum(1).div(same.sum(1).clamp_min(1))[same.any(1)].mean()


@torch.no_grad()
def separation(network: IdentityNet, pictures: PortraitSet) -> dict[str, float]:
    """How well views of one head are told from those of others.

    ``same`` and ``others``: mean cosines; ``area``: probability that a pair of views of one head has a larger
    cosine than a pair of two; ``R@1``: share of views whose nearest other view is of the same head.
    """
    images = to_float(pictures.images)
    found = torch.cat(
        [network(i, m) for i, m in zip(images.split(64), pictures.masks.long().split(64), strict=True)]
    )
    heads = heads_of(pictures)
    cosines = found @ found.T
    itself = torch.eye(len(heads), dtype=torch.bool)
    same = (heads[:, None] == heads) & ~itself
    other = heads[:, None] != heads
    rank = torch.searchsorted(cosines[other].sort().values, cosines[same])
    nearest = cosines.masked_fill(itself, -2).argmax(1)
    return {
        "same": cosines[same].mean().item(),
        "others": cosines[other].mean().item(),
        "area": rank.double().mean().item() / int(other.sum()),
        "R@1": (heads[nearest] == heads).float().mean().item(),
    }


@click.command(context_settings={"show_default": True})
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Rendered portrait set.")
@click.option("--views", type=click.Path(path_type=Path), required=True, help="Rendered views to learn from.")
@click.option("--test-views", type=click.Path(path_type=Path), required=True, help="Views of other heads.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/identity-64.safetensors"))
@click.option("--steps", type=click.IntRange(min=1), default=500)
@click.option("--heads", type=click.IntRange(min=2), default=12, help="Heads per step, with all their views.")
@click.option("--batch", type=click.IntRange(min=1), default=24, help="Single pictures per step.")
@click.option("--lr", type=float, default=2e-3)
@click.option("--seed", type=int, default=0)
@user_errors
def main(
    data: Path,
    views: Path,
    test_views: Path,
    out: Path,
    steps: int,
    heads: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Train, print how well views of the test heads are told apart, write the network."""
    checkpoint.check_name(out)
    config = IdentityConfig()
    singles, _ = read_set(data, config.labels, config.resolution, records=True).split()
    turned = read_set(views, config.labels, config.resolution)
    tested = read_set(test_views, config.labels, config.resolution)
    if both := set(turned.names) & set(tested.names):
        raise UserError(f"--views and --test-views share heads, first {min(both)}: give views of other heads")
    wanted = torch.stack([face_parameters(record) for record in singles.records])
    wanted = (wanted - wanted.mean(0)) / wanted.std(0).clamp_min(1e-6)
    numbers = heads_of(turned)
    torch.manual_seed(seed)
    network = IdentityNet(config).to(memory_format=torch.channels_last)
    regression = nn.Linear(config.dim, wanted.shape[1])
    click.echo(f"{sum(p.numel() for p in network.parameters()):,} parameters, {int(numbers.max()) + 1} heads")

    def loss(source: torch.Generator) -> Tensor:
        drawn = torch.randperm(int(numbers.max()) + 1, generator=source)[:heads]
        of_heads = torch.isin(numbers, drawn).nonzero()[:, 0]
        alone = torch.randint(len(singles), (batch,), generator=source)
        images = torch.cat([turned.images[of_heads], singles.images[alone]])
        masks = torch.cat([turned.masks[of_heads], singles.masks[alone]])
        images, masks = varied(to_float(images), masks, singles.mirror, source, blur=0.3)
        images = images.contiguous(memory_format=torch.channels_last)
        embeddings = network(images, masks)
        told = regression(embeddings[len(of_heads) :] * config.dim**0.5)
        face = functional.mse_loss(told, wanted[alone])
        return contrast(embeddings[: len(of_heads)], numbers[of_heads]) + _FACE_WEIGHT * face

    started = time.process_time()
    fit(nn.ModuleList([network, regression]), loss, steps=steps, lr=lr, seed=seed, say=click.echo)
    scores = {name: round(value, 4) for name, value in separation(network, tested).items()}
    scores |= {
        "test_heads": len(set(heads_of(tested).tolist())),
        "seconds": round(time.process_time() - started, 1),
    }
    network.save(out, {"scores": scores, "steps": steps})
    click.echo(f"{out}: {scores}")


if __name__ == "__main__":
    main()
