"""Views of known shapes, surfaces, and what the scores tell apart."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from datasets.portraits import BUNDLED, BUNDLED_VIEWS
from dnnlib.errors import UserError
from training.generator import Generator
from training.metrics import geometry
from training.metrics.fitting import Fit, fit_latents, rendered_error, unfitted_error
from training.metrics.geometry import (
    eikonal_residual,
    exchanged,
    recognised,
    score_consistency,
    sights_of_seeds,
    surface_error,
    true_sights,
)
from training.metrics.portrait_set import PortraitSet, read_set
from training.metrics.sources import random_generator, untrained_generator
from training.metrics.warping import Sight
from training.scene import camera_at

SIDE = 16


@pytest.fixture(scope="module")
def heads() -> list[Sight]:
    """Two of the bundled true heads."""
    return true_sights(read_set(BUNDLED_VIEWS, "ffhq-mask", 64, depth=True))[:2]


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(images.mean((2, 3)) + 1, dim=1)


def test_true_heads_agree_and_exchanged_views_do_not(heads: list[Sight]) -> None:
    assert len(heads[0]) == 7
    true, mixed = score_consistency(heads, mean_colour), score_consistency(exchanged(heads), mean_colour)
    assert true.depth_warp < 0.01 < 0.5 * mixed.depth_warp
    assert true.mask_agreement > 0.9 > mixed.mask_agreement + 0.2
    assert true.colour_warp < 0.3 * mixed.colour_warp
    assert true.identity > mixed.identity and true.recognised == 1
    assert true.identity_others == pytest.approx(
        (mean_colour(heads[0].image[3:4]) @ mean_colour(heads[1].image[3:4]).T).item(), abs=1e-5
    )


def test_without_an_embedding_there_is_no_identity(heads: list[Sight]) -> None:
    found = score_consistency(heads[:1], None)
    assert found.identity is None and found.identity_others is None and found.recognised is None


def test_heads_are_recognised_from_the_mirrored_side_by_hand() -> None:
    """Two heads from three sides; unit vectors in the plane, by their angles in degrees."""

    def embedded(*degrees: float) -> torch.Tensor:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    yaws = [torch.tensor([-0.5, 0.0, 0.5])] * 2
    assert recognised([embedded(0, 0, 10), embedded(80, 90, 90)], yaws) == 1
    # the first head's left view is nearer to the second's right one, and so is that to it
    assert recognised([embedded(60, 0, 10), embedded(100, 90, 90)], yaws) == 0.75
    turned = [yaws[0], yaws[0].flip(0)]  # the second head's views in another order
    assert recognised([embedded(60, 0, 10), embedded(90, 90, 100)], turned) == 0.75


def test_portraits_are_no_views() -> None:
    portraits = read_set(BUNDLED, "ffhq-mask", 64, depth=True).take(slice(4))
    with pytest.raises(UserError, match="img00000000.png is a portrait and no view of a head"):
        true_sights(portraits)
    views = read_set(BUNDLED_VIEWS, "ffhq-mask", 64, depth=True)
    with pytest.raises(UserError, match="head01000000 has one view only"):
        true_sights(views.take(slice(3, 4)))


def test_views_of_a_generator(generator: Generator) -> None:
    sights = sights_of_seeds(generator, (0, 1))
    assert [len(sight) for sight in sights] == [7, 7]
    assert sights[0].image.shape == (7, 3, 16, 16) and sights[0].depth.shape == (7, 1, 16, 16)
    assert sights[0].classes.shape == (7, 16, 16)
    assert not torch.equal(sights[0].image, sights[1].image)


def test_the_eikonal_residual_of_a_flat_field_is_one(generator: Generator) -> None:
    """Random weights have some slope; where the signed distance is the same everywhere, (0 - 1)^2."""
    assert eikonal_residual(generator, (0, 1)) > 0.01
    for parameter in generator.decoder.shape.parameters():
        parameter.zero_()
    # the norm at zero is smoothed by 1e-3
    assert eikonal_residual(generator, (0, 1)) == pytest.approx(1, abs=0.01)


def test_untrained_and_random_generators_leave_random_numbers_alone(generator: Generator) -> None:
    state = torch.get_rng_state()
    sphere = untrained_generator(generator.config, steps=3)
    assert torch.equal(state, torch.get_rng_state())
    first, second = random_generator(generator.config), random_generator(generator.config, seed=1)
    weights = [next(each.synthesis.parameters()) for each in (sphere, first, second)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def _surface(depth: torch.Tensor, tilt: float) -> tuple[Sight, torch.Tensor]:
    camera = torch.zeros(1, 25)
    normals = torch.tensor([math.sin(tilt), 0.0, math.cos(tilt)]).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    image = torch.zeros(1, 3, SIDE, SIDE)
    return Sight(camera, image, torch.ones(1, SIDE, SIDE, dtype=torch.long), depth), normals


def test_surface_errors_by_hand() -> None:
    depth = torch.rand(1, 1, SIDE, SIDE) * 0.1 + 2.5
    found, found_normals = _surface(depth + 0.03, tilt=0.3)
    true, true_normals = _surface(depth, tilt=0.0)
    found = dataclasses.replace(found, image=found.image + 0.5)
    error = surface_error(found, found_normals, true, true_normals)
    assert error.depth == pytest.approx(0.03, rel=1e-4)
    assert error.depth_centred == pytest.approx(0, abs=1e-6)
    assert error.normals == pytest.approx(math.degrees(0.3), rel=1e-4)
    assert error.image == pytest.approx(0.25) and error.foreground == 1
    assert (error.depth_shared, error.normals_shared) == pytest.approx((error.depth, error.normals))


def test_a_missing_half_of_a_head_is_an_error() -> None:
    """What a smaller head leaves out counts; over the shared pixels it looks as good as a whole one."""
    depth = torch.full((1, 1, SIDE, SIDE), 2.7)
    found, found_normals = _surface(depth + 0.03, tilt=0.3)
    true, true_normals = _surface(depth, tilt=0.0)
    found.classes[:, : SIDE // 2] = 0
    error = surface_error(found, found_normals, true, true_normals)
    assert error.depth == pytest.approx((0.03 + 0.1) / 2, rel=1e-4)
    assert error.normals == pytest.approx((math.degrees(0.3) + 90) / 2, rel=1e-4)
    assert error.depth_shared == pytest.approx(0.03, rel=1e-4)
    assert error.normals_shared == pytest.approx(math.degrees(0.3), rel=1e-4)


def test_a_fit_finds_a_portrait_that_the_generator_made(generator: Generator) -> None:
    """Its picture and mask come nearer, and with them the surface's picture, than the mean portrait's."""
    camera = camera_at(generator, torch.tensor([0.1]), torch.tensor([0.0]))
    ws = generator.map(torch.randn(1, 8), camera)
    with torch.no_grad():
        view = generator.synthesise(ws, camera, deterministic=True)
    image = ((view.image.clamp(-1, 1) + 1) * 127.5).byte()
    mask = view.mask.argmax(1).byte()
    shape = (1, 3, 16, 16)
    wanted = PortraitSet(
        ["a.png"], image, mask, camera, torch.arange(19), [""], [{}],
        depth=torch.full((1, 1, 16, 16), 2.7), normals=torch.ones(shape),
    )  # fmt: skip
    mean = generator.mapping.w_avg.expand(1, ws.shape[1], -1)
    before = rendered_error(generator, mean, wanted).image
    fitted = fit_latents(generator, wanted, Fit(steps=60, lr=0.1))
    assert fitted.shape == ws.shape
    assert rendered_error(generator, fitted, wanted).image < 0.6 * before
    assert unfitted_error(generator, wanted).image == before


def test_sides_of_large_pictures_are_bounded(generator: Generator, monkeypatch) -> None:
    monkeypatch.setattr(geometry, "_SIDE", 8)
    assert sights_of_seeds(generator, (0,))[0].depth.shape[-1] == 8
