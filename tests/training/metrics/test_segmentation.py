"""Masks against masks, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.metrics.segmentation import confusion, iou, mean_iou, presence

WANTED = torch.tensor([[[0, 0, 1, 1], [0, 0, 2, 2]]])
FOUND = torch.tensor([[[0, 1, 1, 1], [0, 0, 2, 0]]])


def test_confusion_counts_pixels() -> None:
    assert confusion(WANTED, FOUND, 4).tolist() == [[3, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0] * 4]


def test_iou_by_hand() -> None:
    values = iou(confusion(WANTED, FOUND, 4)).tolist()
    assert values[:3] == pytest.approx([3 / 5, 2 / 3, 1 / 2])
    assert math.isnan(values[3])


def test_the_mean_is_over_frequent_classes() -> None:
    mean, _ = mean_iou(WANTED, FOUND, 4)
    assert mean == pytest.approx((3 / 5 + 2 / 3 + 1 / 2) / 3)
    mean, _ = mean_iou(WANTED, FOUND, 4, torch.tensor([False, True, True, True]))
    assert mean == pytest.approx((2 / 3 + 1 / 2) / 3)  # class 3 counts, and occurs nowhere


def test_presence_is_of_pictures_not_of_pixels() -> None:
    masks = torch.zeros(4, 3, 3, dtype=torch.long)
    masks[1, 0, 0] = 1
    assert presence(masks, 3).tolist() == [1.0, 0.25, 0.0]


def test_a_class_in_one_of_a_hundred_pictures_does_not_count() -> None:
    wanted = torch.zeros(100, 2, 2, dtype=torch.long)
    wanted[0, 0, 0] = 1
    mean, each = mean_iou(wanted, torch.zeros_like(wanted), 2)
    assert mean == each[0] and each[1] == 0
