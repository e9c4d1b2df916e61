"""Sample grids: what the prior makes of fixed masks and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.labels import LabelSet
from dnnlib.files import atomic_path, write_json
from training.prior.data import PriorData
from training.prior.diffusion import normal_caption
from training.prior.prior import Prior

GUIDANCE = (1.0, 4.0, 7.5)


def to_tile(picture: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] to (H, W, 3) uint8."""
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def save_grid(path: Path, rows: list[list[np.ndarray]], scale: int = 2) -> None:
    """Tiles (H, W, 3) uint8 as one PNG, each pixel ``scale`` times as large."""
    image = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)


def grid_indices(data: PriorData, count: int) -> list[int]:
    """Pictures for the grids, evenly over the set and never mirror images."""
    pictures = max(len(data) // 2, 1)
    return [round(i * pictures / count) % pictures for i in range(count)]


def reconstruction_grid(path: Path, vae: torch.nn.Module, data: PriorData, count: int) -> None:
    """Rows: pictures, their reconstructions, normal maps, their reconstructions."""
    index = torch.tensor(grid_indices(data, count))
    rows = []
    for is_normal in (False, True):
        pictures = data.pictures(index, torch.full((len(index),), is_normal))
        with torch.no_grad():
            decoded = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        rows += [[to_tile(p) for p in pictures], [to_tile(p) for p in decoded]]
    save_grid(path, rows)


def sample_grid(path: Path, prior: Prior, data: PriorData, labels: LabelSet, count: int, steps: int) -> None:
    """A row per mask: the mask, its picture, samples at guidance 1, 4, 7.5; its normal map, samples of that.
    The captions lie beside the grid as JSON.
    """
    indices = grid_indices(data, count)
    masks = data.masks[indices]
    condition = prior.condition(masks, labels)
    captions = [data.captions[i] for i in indices]
    columns = [[labels.colourise(mask) for mask in masks.cpu().numpy()]]
    for is_normal in (False, True):
        real = data.pictures(torch.tensor(indices), torch.full((count,), is_normal))
        columns.append([to_tile(p) for p in real])
        prompts = [normal_caption(c) for c in captions] if is_normal else captions
        for guidance in GUIDANCE:
            samples = prior.sample(prompts, condition, steps=steps, guidance=guidance)
            columns.append([to_tile(p) for p in samples])
    save_grid(path, [list(row) for row in zip(*columns, strict=True)])
    write_json(path.with_suffix(".json"), {"guidance": GUIDANCE, "captions": captions})


def prompt_grid(
    path: Path,
    prior: Prior,
    masks: Tensor,
    labels: LabelSet,
    prompts: tuple[str, ...],
    steps: int,
    guidance: float,
) -> None:
    """A row per mask (N, H, W): the mask, then one column per prompt, all from the same noise."""
    condition = prior.condition(masks, labels)
    columns = [[labels.colourise(mask) for mask in masks.cpu().numpy()]]
    for prompt in prompts:
        samples = prior.sample([prompt] * len(masks), condition, steps=steps, guidance=guidance)
        columns.append([to_tile(p) for p in samples])
    save_grid(path, [list(row) for row in zip(*columns, strict=True)])
    write_json(path.with_suffix(".json"), {"guidance": guidance, "prompts": list(prompts)})
