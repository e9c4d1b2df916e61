"""The portraits as the prior learns them: everything in memory as bytes, mirror images included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.masked_images import MaskedImages, collate
from datasets.portraits.attributes import Attributes
from datasets.portraits.captions import brief_caption, caption
from datasets.storage import Store
from dnnlib.errors import UserError
from dnnlib.files import parse_json
from training.prior.config import PriorConfig
from training.prior.vocabulary import split_words

_RAREST = 0.03  # share of the pictures below which a word makes them no more frequent


@dataclass(frozen=True)
class PriorData:
    """n samples of side H; the second half are the mirror images of the first.

    Pictures lie on one device, of any kind; what is drawn is drawn on the CPU, the same for all of them.
    """

    images: Tensor  # (n, 3, H, H) uint8
    normals: Tensor  # (n, 3, H, H) uint8, (normal + 1) / 2 * 255; background 128
    masks: Tensor  # (n, H, H) uint8 classes
    captions: tuple[str, ...]
    retold: tuple[tuple[str, ...], ...] = ()  # n tuples of as many further captions each, or none at all
    weights: Tensor | None = None  # (n,) float32: how often each is drawn; None: all alike

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str) -> PriorData:
        """The same with its pictures on ``device``."""
        return replace(
            self, images=self.images.to(device), normals=self.normals.to(device), masks=self.masks.to(device)
        )

    @property
    def device(self) -> torch.device:
        return self.images.device

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64 on the CPU: samples for a batch, with repetition."""
        if self.weights is None:
            return torch.randint(len(self), (count,), generator=generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def pictures(self, index: Tensor, is_normal: Tensor) -> Tensor:
        """(B, 3, H, H) float32 in [-1, 1]: the normal map where ``is_normal`` (B,), else the image."""
        index, is_normal = sent(self.device, index, is_normal)
        chosen = torch.where(is_normal.view(-1, 1, 1, 1), self.normals[index], self.images[index])
        return chosen.float() / 127.5 - 1


def sent(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Small tensors of the CPU on ``device``, without waiting for what that is busy with.

    Right for memory that is not page-locked: CUDA has taken it in when the call returns.
    """
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def read_data(config: PriorConfig) -> PriorData:
    """Read the portrait set at ``config.data``."""
    if not config.data:
        raise UserError(
            "no pictures to learn from: give --data DIR; `python -m datasets.portraits` renders such a set"
        )
    dataset = MaskedImages(
        config.data, None, config.labels, config.resolution, mirror=True, extras=("normals", "caption")
    )
    loader = DataLoader(dataset, batch_size=64, num_workers=config.workers, collate_fn=collate)
    names = [name for name in config.smooth_classes if name in dataset.labels.names]
    classes = [dataset.labels.index(name) for name in names]
    images, normals, masks, captions = [], [], [], []
    for batch in tqdm(loader, desc="reading", unit="batch", leave=False):
        images.append(batch.image)
        masks.append(batch.mask)
        normals.append(_to_bytes(smooth_normals(batch.normals, batch.mask, classes, config.smooth_radius)))
        captions.extend(batch.caption or ())
    if not any(captions):
        raise UserError(
            f'{config.data}/dataset.json has no captions: it needs {{"captions": {{name: text}}}}'
        )
    retold = retell(config.data, dataset.names, config.retold, len(captions)) if config.retold else ()
    told = [(own, *others) for own, others in zip(captions, retold or [()] * len(captions), strict=True)]
    weights = rarity(told, config.rare) if config.rare else None
    if config.favoured:
        factors = favour(told, config.favoured, config.favour)
        weights = factors if weights is None else weights * factors
    return PriorData(
        torch.cat(images), torch.cat(normals), torch.cat(masks), tuple(captions), retold, weights
    )


def rarity(told: Sequence[Sequence[str]], power: float) -> Tensor:
    """(n,) float32: for each of n pictures, told in several captions, ``share ** -power`` of its rarest word.

    The share is that of the pictures that have the word in one of their captions. Words of less than
    ``_RAREST`` weigh no more, or a few pictures would be all that is seen.
    """
    words = [set().union(*map(split_words, captions)) for captions in told]
    having = Counter(word for found in words for word in found)
    shares = [min((having[word] for word in found), default=len(told)) / len(told) for found in words]
    return torch.tensor(shares).clamp_min(_RAREST) ** -power


def favour(told: Sequence[Sequence[str]], favoured: Sequence[str], factor: float) -> Tensor:
    """(n,) float32: ``factor`` for each of n pictures, told in several captions, with a ``favoured`` word in
    one of them, and 1 for the others. UserError for a word that no caption has."""
    words = [set().union(*map(split_words, captions)) for captions in told]
    if missing := set(favoured).difference(*words):
        raise UserError(f"no caption has the favoured {', '.join(sorted(missing))}: check its spelling")
    return torch.tensor([1.0 if found.isdisjoint(favoured) else factor for found in words])


def retell(data: str | Path, names: list[str], count: int, samples: int) -> tuple[tuple[str, ...], ...]:
    """``count`` further captions of each of the samples, which are the named pictures and their mirror images
    after them; every second one is brief. ``data``: the set's folder or zip. UserError where the set does not
    tell its attributes."""
    store, told = Store(data).within("attributes"), []
    known = set(store.names())
    for name in names:
        file = str(PurePosixPath(name).with_suffix(".json"))
        where = store.locate(file)
        if file not in known:
            raise UserError(f"retold captions need {where}: only rendered portraits know their attributes")
        attributes = Attributes.from_json(parse_json(store.read(file), where))
        rng = np.random.default_rng(attributes.seed)
        told.append(tuple((brief_caption if i % 2 else caption)(attributes, rng) for i in range(count)))
    return tuple(told[i % len(told)] for i in range(samples))


def smooth_normals(normals: Tensor, masks: Tensor, classes: list[int], radius: int) -> Tensor:
    """Unit normals (N, 3, H, W) averaged over squares of side 2 radius + 1 within each of ``classes``.

    Rendered hair has the normals of its strands, all but noise; the hair of an SDF has a surface.
    """
    for index in classes:
        inside = (masks == index).unsqueeze(1).float()
        mean = F.avg_pool2d(normals * inside, 2 * radius + 1, stride=1, padding=radius)
        normals = torch.where(inside.bool(), F.normalize(mean, dim=1), normals)
    return normals


def _to_bytes(normals: Tensor) -> Tensor:
    return ((normals + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
