"""The distance of features outside an edit."""

from __future__ import annotations

import pytest
import torch

from training.judges.reader import Reader
from training.metrics.edits import outside_features
from training.metrics.perceptual import perceptual_distance


def test_equal_features_are_at_no_distance_and_opposite_ones_at_four() -> None:
    features = [torch.randn(1, 5, 8, 8), torch.randn(1, 7, 4, 4)]
    where = torch.ones(16, 16, dtype=torch.bool)
    assert perceptual_distance(features, features, where) == 0
    opposite = [-x for x in features]
    assert perceptual_distance(features, opposite, where) == pytest.approx(4, rel=1e-5)
    longer = [3 * x for x in features]  # directions count, not lengths
    assert perceptual_distance(features, longer, where) == pytest.approx(0, abs=1e-6)


def test_only_the_places_that_count_count() -> None:
    a = torch.zeros(1, 2, 4, 4)
    a[:, 0] = 1
    b = a.clone()
    b[..., :2] = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)  # at right angles on the left half
    where = torch.zeros(8, 8, dtype=torch.bool)
    where[:, 4:] = True
    assert perceptual_distance([a], [b], where) == 0
    assert perceptual_distance([a], [b], ~where) == pytest.approx(2)


def test_what_an_edit_does_inside_is_not_seen_outside(reader: Reader) -> None:
    """The reader's features of a place depend on all of the picture; the distance must not."""
    images = (torch.rand(1, 3, 16, 16) * 2 - 1).repeat(2, 1, 1, 1)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[4:9, 4:9] = False
    images[1, :, 4:9, 4:9] = 1
    assert perceptual_distance(*outside_features(reader, images, outside), outside) == 0
    images[1, :, 12:, :] = 1
    assert perceptual_distance(*outside_features(reader, images, outside), outside) > 0.01
