"""A portrait set in memory, with what is known about each picture, and its split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.masked_images import MaskedImages
from dnnlib.errors import UserError
from dnnlib.files import read_json
from training.networks.unet import soften
from training.schedules import warm_up_share

HELD_OUT = 0.1  # share of a set, at its end, that the judges are not trained on


@dataclass(frozen=True)
class PortraitSet:
    """n pictures of side H, in the order of their names."""

    names: list[str]  # as in dataset.json
    images: Tensor  # (n, 3, H, H) uint8
    masks: Tensor  # (n, H, H) uint8 classes
    cameras: Tensor  # (n, 25) float32
    mirror: Tensor  # (P,) int64: class p of a picture is class mirror[p] of its mirror image
    captions: list[str]  # '' where the set has none
    records: list[dict[str, Any]]  # attributes/NAME.json, empty where the set has none
    depth: Tensor | None = None  # (n, 1, H, H) float32, 0 on the background
    normals: Tensor | None = None  # (n, 3, H, H) float32 view space, 0 on the background

    def __len__(self) -> int:
        return len(self.names)

    def take(self, chosen: slice) -> PortraitSet:
        """Some of the pictures."""

        def part(value: Any) -> Any:
            return value if value is None else value[chosen]

        return PortraitSet(
            self.names[chosen],
            self.images[chosen],
            self.masks[chosen],
            self.cameras[chosen],
            self.mirror,
            self.captions[chosen],
            self.records[chosen],
            part(self.depth),
            part(self.normals),
        )

    def split(self, held_out: float = HELD_OUT) -> tuple[PortraitSet, PortraitSet]:
        """Pictures to learn from, and the last ``held_out`` of all, to measure with."""
        border = len(self) - max(1, round(held_out * len(self)))
        return self.take(slice(border)), self.take(slice(border, None))


def read_set(
    folder: Path | str,
    labels: str,
    resolution: int,
    *,
    masks: Path | str | None = None,
    depth: bool = False,
    normals: bool = False,
    records: bool = False,
    share: float = 1.0,
    at_least: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> PortraitSet:
    """Reads a portrait set, on request with depth, normals and attributes (``records``).

    Args:
        masks: where they are when not beside the images.
        share: only so much of the set, at its end; but ``at_least`` so many pictures where it has them.
        say: is told when that makes them more than the share.
    """
    surface = [name for name, wanted in (("depth", depth), ("normals", normals)) if wanted]
    data = MaskedImages(folder, masks, labels, resolution, extras=("caption", *surface))
    first = max(0, len(data) - max(at_least, round(share * len(data))))
    if len(data) - first > round(share * len(data)):
        say(
            f"{folder}: its last {len(data) - first} pictures are used: {share:g} of its {len(data)} is "
            "too few, but the judges may have been trained on some of them"
        )
    samples = [data[i] for i in range(first, len(data))]
    names = data.names[first:]

    def stack(name: str) -> Tensor:
        return torch.stack([torch.as_tensor(getattr(sample, name)) for sample in samples])

    return PortraitSet(
        names=names,
        images=stack("image"),
        masks=stack("mask"),
        cameras=stack("camera"),
        mirror=torch.from_numpy(data.labels.mirror_permutation()).long(),
        captions=[sample.caption or "" for sample in samples],
        records=[_record(Path(folder), name) for name in names] if records else [{}] * len(samples),
        depth=stack("depth") if depth else None,
        normals=stack("normals") if normals else None,
    )


def _record(folder: Path, name: str) -> dict[str, Any]:
    path = (folder / "attributes" / name).with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{folder} has no {path.relative_to(folder)}: only rendered portraits know theirs")
    return read_json(path)


def to_float(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def varied(
    images: Tensor,
    masks: Tensor,
    mirror: Tensor,
    source: torch.Generator,
    *,
    shift: int = 3,
    blur: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Each picture (N, 3, H, H) in [-1, 1] and mask (N, H, H), mirrored or not, shifted, perhaps softened.

    Mirrored masks change their left and right classes. ``blur``: probability of halving the resolution.
    """
    n, side = len(images), images.shape[-1]
    flip = torch.rand(n, generator=source) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    masks = torch.where(flip[:, None, None], mirror[masks.long()].flip(-1), masks.long())
    dx, dy = torch.randint(-shift, shift + 1, (2, n), generator=source)
    steps = torch.arange(side)
    rows = (steps + dy[:, None]).clamp(0, side - 1)  # (N, H): edges are repeated
    columns = (steps + dx[:, None]).clamp(0, side - 1)
    which = torch.arange(n)[:, None, None]
    masks = masks[which, rows[:, :, None], columns[:, None, :]]
    images = images.movedim(1, -1)[which, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    if blur:
        images = soften(images, torch.rand(n, generator=source) < blur)
    return images, masks


def fit(
    module: torch.nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """AdamW on ``loss(source of randomness)``, in torch's one cycle: the rate rises over a twentieth of the
    steps and falls to nothing, both as cosines, while the momentum falls from 0.95 to 0.85 and rises."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps, pct_start=warm_up_share(0.05, steps))
    source = torch.Generator().manual_seed(seed)
    mean = 0.0
    module.train()
    for step in range(steps):
        value = loss(source)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        rate.step()
        mean += (value.item() - mean) / min(step + 1, 50)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            say(f"step {step + 1} of {steps}: loss {mean:.4f}")
    module.eval()
