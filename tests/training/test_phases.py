"""Phases: spheres, gradients of shares and passes, and of two processes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from datasets.masked_images import MaskedImages, collate
from dnnlib import config as config_files
from tests.training.two_processes import run_in_group
from training.adversarial import AdversarialPhase, draw_scenes
from training.curves import Curves
from training.phases import Context, SpherePhase, build_models, geometry_terms, passes
from training.rendering.cameras import sample_cameras
from training.rendering.renderer import RaySamples
from training.schedules import moment
from training.updates import FiniteGuard
from training.views import Views

CPU = torch.device("cpu")
WORKER = Path(__file__).with_name("gradients_of_a_share.py")


def context_of(config) -> Context:
    torch.manual_seed(3)
    return Context(config, build_models(config, CPU), Curves(), FiniteGuard(0), CPU)


def gradients(context: Context) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in context.models.named().items():
        for key, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"{name}.{key}"] = parameter.grad.clone()
                parameter.grad = None
    return found


def random_views(count: int, parts: int) -> Views:
    return Views(*(torch.rand(count, c, s, s) * 2 - 1 for c, s in ((3, 16), (3, 8), (parts, 16), (parts, 8))))


def test_sphere_phase_makes_spheres(tiny):
    context = context_of(tiny("sphere.points=256", "sphere.batch=2", "sphere.lr=0.01"))
    phase = SpherePhase(context)
    losses = []
    for _ in range(60):
        phase.step(None, 0)
        losses.append(context.curves.collect())
    assert losses[-1]["sphere/global"] < losses[0]["sphere/global"] / 3
    assert losses[-1]["sphere/parts"] < losses[0]["sphere/parts"] / 3
    phase.finish()
    average, generator = context.models.average, context.models.generator
    torch.testing.assert_close(average.state_dict(), generator.state_dict())


def test_passes_cover_the_batch_and_their_shares_sum_to_one():
    pieces = list(passes(10, 4))
    assert [(p.start, p.stop) for p, _ in pieces] == [(0, 4), (4, 8), (8, 10)]
    assert sum(share for _, share in pieces) == pytest.approx(1)
    assert list(passes(10, 0)) == [(slice(0, 10), 1.0)]


class SixOfEach:
    """A field in which 6 parts make up a density of 6."""

    def density(self, sdf):
        return torch.ones_like(sdf)


def test_geometry_terms_use_the_gradients_that_are_there(tiny):
    gradient = torch.zeros(1, 2, 3, 3)
    gradient[..., 0] = 2.0  # |grad s| = 2 everywhere: eikonal loss 1
    one, three = torch.zeros(1, 2, 3, 1), torch.zeros(1, 2, 3, 6)
    samples = RaySamples(
        points=torch.zeros(1, 2, 3, 3),
        depth=torch.zeros(1, 2, 3),
        sdf=one,
        density=one + 6,
        colour=one,
        part_sdf=three,
        gradient=gradient,
    )
    terms = {term.name: term.value.item() for term in geometry_terms(tiny().loss, SixOfEach(), samples)}
    assert terms == pytest.approx(
        {
            "shape/eikonal": 1.0,
            "shape/minimal_surface": 1.0,
            "shape/sdf_consistency": 0.0,
            "shape/density_consistency": 0.0,
        },
        abs=1e-6,
    )


def test_checkpointing_gives_the_same_gradients(tiny):
    results = []
    for again in (False, True):
        context = context_of(tiny("loss.mask_adversarial=0.1", f"checkpointing={str(again).lower()}"))
        phase = AdversarialPhase(context)
        phase.deterministic = True
        torch.manual_seed(5)
        scenes = draw_scenes(8, sample_cameras(4), 0.5)
        phase.generator_gradients(scenes, moment(context.config.schedule, 10**6, 4))
        results.append(gradients(context))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():  # the same operations on the same numbers
        torch.testing.assert_close(results[1][name], gradient, msg=name)


def test_accumulated_passes_give_the_gradients_of_the_whole_batch(tiny):
    results = []
    for per_pass in (0, 2):
        # groups of one: the batch's standard deviation would differ between passes
        context = context_of(tiny("discriminator.group_size=1", f"batch_per_pass={per_pass}"))
        phase = AdversarialPhase(context)
        phase.deterministic = True
        torch.manual_seed(5)
        scenes = draw_scenes(8, sample_cameras(4), 0.5)
        reals, now = random_views(4, 6), moment(context.config.schedule, 10**6, 4)
        fakes = phase.generator_gradients(scenes, now)
        phase.discriminator_gradients(reals, fakes, scenes.camera, now)
        phase.r1_gradients(reals, scenes.camera, now)
        results.append(gradients(context))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        scale = gradient.abs().max().item()  # sums in another order: float32 rounding
        torch.testing.assert_close(results[1][name], gradient, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=name)


def test_mask_discriminator_does_not_teach_the_picture(tiny):
    context = context_of(tiny("loss.mask_adversarial=0.1"))
    phase = AdversarialPhase(context)
    now = moment(context.config.schedule, 10**6, 4)
    _, terms = phase._generator_terms(draw_scenes(8, sample_cameras(4), 0.5), now)
    term = next(term for term in terms if term.name == "generator/mask")
    term.value.backward()
    taught = {
        name
        for name, p in context.models.generator.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert any(name.startswith("superresolution_semantic.") for name in taught)
    assert any(name.startswith("decoder.part_shapes") for name in taught)
    # neither the picture's super-resolution, nor colours through the features that the mask's is shown
    colours = ("superresolution.", "decoder.texture")
    assert not {name for name in taught if name.startswith(colours) or "torgb_tex" in name}
    names = dict(context.models.generator.named_parameters())
    assert all(
        any(known in name for name in names) for known in (*colours, "torgb_tex", "decoder.part_shapes")
    )


def test_r1_has_half_of_gamma_for_each_of_the_steps_that_it_stands_for(tiny):
    context = context_of(tiny("loss.gamma=3", "loss.gamma_mask=0.5", "loss.r1_every=4"))
    phase = AdversarialPhase(context)
    reals, camera = random_views(4, 6), sample_cameras(4)
    phase.r1_gradients(reals, camera, moment(context.config.schedule, 10**6, 4))
    found = gradients(context)

    image, raw, mask, mask_raw = (x.clone().requires_grad_() for x in vars(reals).values())
    models = context.models
    of_image, of_mask = models.discriminator, models.discriminator_mask
    seen = phase._masked(Views(image, raw, mask, mask_raw))
    for judge, shown, inputs, gamma in (
        (of_image, (image, raw), (image, raw), 3.0),
        (of_mask, seen, (image, raw, mask, mask_raw), 1.5),
    ):
        by_input = torch.autograd.grad(judge(*shown, camera).sum(), inputs, create_graph=True)
        penalty = sum(g.square().sum() for g in by_input) / 4  # the mean of the images
        (4 * gamma / 2 * penalty).backward()
    expected = gradients(context)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()  # sums in another order: float32 rounding
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * scale + 1e-9, rtol=1e-3, msg=name)


def test_lazy_density_regularisation_weighs_as_much_as_the_steps_that_it_stands_for(tiny):
    found = []
    for every in (1, 4):
        context = context_of(
            tiny("loss.density_regularisation=0.25", f"loss.density_regularisation_every={every}")
        )
        phase = AdversarialPhase(context)
        torch.manual_seed(5)  # the same points
        phase.density_gradients(draw_scenes(8, sample_cameras(4), 0.5))
        value = context.curves.collect()["shape/density_smoothness"]
        found.append((gradients(context), value))
    (one, value), (four, same) = found
    assert value == same > 0
    for name, gradient in one.items():
        torch.testing.assert_close(four[name], 4 * gradient, msg=name)


def test_generator_waits_for_the_discriminators(tiny, tiny_set):
    context = context_of(
        tiny("schedule.generator_delay_kimg=0.004", "schedule.beta=0.01", "schedule.beta_kimg=0.01")
    )
    phase = AdversarialPhase(context)
    data = MaskedImages(tiny_set, None, "catmask-hq", 16)
    batch = collate([data[i] for i in range(4)])

    def changed(images: int) -> dict[str, bool]:
        before = {name: copy.deepcopy(m.state_dict()) for name, m in context.models.named().items()}
        phase.step(batch, images)
        return {
            name: any(not torch.equal(before[name][k], v) for k, v in module.state_dict().items())
            for name, module in context.models.named().items()
        }

    judges = {"discriminator": True, "discriminator_mask": True}
    assert changed(0) == {"generator": False, "average": False} | judges
    assert changed(4) == {"generator": True, "average": True} | judges


def test_swapped_cameras_come_from_the_batch():
    camera = sample_cameras(6)
    never, always = draw_scenes(4, camera, 0.0), draw_scenes(4, camera, 1.0)
    assert never.conditioning.equal(camera)
    assert always.conditioning.equal(camera.roll(1, 0))
    assert always.camera.equal(camera)


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tiny, tmp_path: Path):
    config_files.save(tiny(), tmp_path / "config.yaml")
    for world in (1, 2):
        run_in_group(WORKER, world, tmp_path)
    one, two = (load_file(tmp_path / f"gradients-{world}.safetensors") for world in (1, 2))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        scale = gradient.abs().max().item()  # sums in another order: float32 rounding
        torch.testing.assert_close(two[name], gradient, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=name)
