"""Masks against masks: intersection over union, class by class."""

from __future__ import annotations

import torch
from torch import Tensor

FREQUENT = 0.02  # a class counts for the mean when at least this share of the pictures has it


def confusion(wanted: Tensor, found: Tensor, classes: int) -> Tensor:
    """(P, P) int64: pixels of class i in ``wanted`` that are of class j in ``found``; any equal shapes."""
    pairs = wanted.long().flatten() * classes + found.long().flatten()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(table: Tensor) -> Tensor:
    """(P,) float: intersection over union of each class of a :func:`confusion`; nan where it never occurs."""
    both = table.diagonal().double()
    union = table.sum(0) + table.sum(1) - both
    return torch.where(union > 0, both / union, torch.nan)


def presence(masks: Tensor, classes: int) -> Tensor:
    """(P,) float: share of the class maps (N, H, W) that have a pixel of each class."""
    return torch.stack([(masks == p).flatten(1).any(1).float().mean() for p in range(classes)])


def mean_iou(
    wanted: Tensor, found: Tensor, classes: int, counted: Tensor | None = None
) -> tuple[float, Tensor]:
    """Mean over the classes ``counted`` (P,) bool, and all of them (P,).

    Without ``counted``: those that at least 2 % of the ``wanted`` (N, H, W) have. IoUs are of all pixels of
    all pictures together. A counted class that occurs in neither counts 0: it is missed on both sides.
    """
    each = iou(confusion(wanted, found, classes))
    counted = presence(wanted, classes) >= FREQUENT if counted is None else counted
    return each[counted].nan_to_num(0).mean().item(), each
