"""What is read off a rendering."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from training.scene import normal_picture


def test_normals_are_shown_as_far_as_a_pixel_is_foreground_and_only_they_learn():
    normals = torch.randn(1, 3, 1, 3, requires_grad=True)
    mask = torch.zeros(1, 2, 1, 3)
    mask[0, 0, 0] = torch.tensor([1.0, -1.0, 0.0])  # background; person; half of each
    mask.requires_grad_()
    picture = normal_picture(SimpleNamespace(normals=normals, mask_raw=mask))
    torch.testing.assert_close(picture, normals * torch.tensor([0.0, 1.0, 0.5]))
    picture.sum().backward()
    assert normals.grad[0, 0, 0].tolist() == [0, 1, 0.5]
    assert mask.grad is None  # a geometry gradient turns surfaces and does not hide them
    assert normal_picture(SimpleNamespace(normals=normals, mask_raw=None)) is normals
