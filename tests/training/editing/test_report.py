"""The report's numbers on masks and pictures made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from datasets.labels import label_set
from training.editing.optimise import StepLosses
from training.editing.region import EditRequest, RegionSettings
from training.editing.report import class_iou, losses_as_json, mask_ious, outside_region, psnr, versions

LABELS = label_set("catmask-hq")  # background, skin, ears, eyes, nose, mouth


def request(requested, rendered, classes) -> EditRequest:
    return EditRequest(torch.tensor(requested), torch.tensor(rendered), torch.zeros(1, 25), classes)


def test_iou_of_a_class() -> None:
    a, b = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 1, 1, 0]])
    assert class_iou(a, b, 1) == pytest.approx(1 / 3)
    assert class_iou(a, b, 5) is None


def test_ious_are_those_of_the_edited_classes() -> None:
    asked = request([[0, 2, 2, 1]], [[0, 0, 1, 1]], (2,))
    assert mask_ious(torch.tensor([[0, 2, 1, 1]]), asked, LABELS) == {"ears": 0.5}


def test_a_removed_class_counts_with_what_takes_its_place() -> None:
    asked = request([[0, 0, 1, 1]], [[0, 2, 2, 1]], (2,))
    gone = mask_ious(torch.tensor([[0, 0, 1, 1]]), asked, LABELS)
    assert gone == {"background": 1.0, "skin": 1.0, "ears": 1.0}
    still_there = mask_ious(torch.tensor([[0, 2, 2, 1]]), asked, LABELS)
    assert still_there == {"background": 0.5, "skin": 0.5, "ears": 0.0}


def test_outside_is_far_from_what_was_asked_for() -> None:
    rendered = torch.zeros(32, 32, dtype=torch.long)
    requested = rendered.clone()
    requested[16, 16] = 2
    outside = outside_region(EditRequest(requested, rendered, torch.zeros(1, 25), (2,)), RegionSettings())
    assert (~outside).sum() == 25  # dilated by 2 * 1 pixel


def test_psnr_by_hand() -> None:
    before = torch.zeros(3, 2, 2)
    after = before.clone()
    after[:, 0, 0] = 0.2  # a tenth of the range
    after[:, 1, 1] = 9.0
    where = torch.tensor([[True, False], [False, False]])
    assert psnr(before, after, where) == pytest.approx(20.0, abs=1e-4)
    assert psnr(before, before, where) == 99.0
    # values beyond the range of a picture are clamped, as they are when it is written
    assert psnr(torch.ones(3, 2, 2), torch.full((3, 2, 2), 1.5), where) == 99.0


def test_psnr_of_what_is_no_picture_is_none() -> None:
    picture = torch.full((3, 4, 4), math.nan)
    assert math.isnan(psnr(picture, torch.zeros(3, 4, 4), torch.ones(4, 4, dtype=torch.bool)))


def test_versions_and_losses_are_plain_json() -> None:
    assert "torch" in versions() and "python" in versions()
    entry = StepLosses(0, 800, 1.23456789, 0.0, 2.0, 0.1, 0.1, 0.1, 0.1, 0.2, 3.0)
    assert losses_as_json([entry])[0]["texture"] == 1.2346
    assert losses_as_json([entry])[0]["timestep"] == 800
