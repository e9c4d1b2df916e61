"""The optimisation on a tiny random generator with a prior that wants one colour."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from datasets.labels import label_set
from dnnlib import config as config_files
from dnnlib.errors import UserError
from tests.training.recordable import Watch, refuse_tensors_of_the_host
from training.editing import optimise
from training.editing.optimise import EditOptimiser
from training.editing.region import EditRequest, RegionSettings
from training.editing.settings import EditSettings, EditWeights
from training.generator import Want
from training.graphs import Recorder
from training.network_source import BUNDLED, BUNDLED_PRIOR, open_network
from training.pictures import look
from training.prior import load_prior
from training.scene import Scene, camera_at, class_map, latent_of_seed, scene_of, ws_of_latent

SETTINGS = EditSettings(
    steps=4,
    warmup_steps=1,
    views=((-0.3, 0.0), (0.3, 0.1)),
    region_every=2,
    keep_points=64,
    region=RegionSettings(voxels=16),
)


@pytest.fixture
def source(generator, camera) -> Scene:
    return scene_of(generator, generator.map(torch.randn(1, 8), camera))


@pytest.fixture
def request_(source, camera) -> EditRequest:
    """The upper left quarter becomes class 2."""
    rendered = class_map(source.render(camera, Want(), deterministic=True))[0]
    requested = rendered.clone()
    requested[2:8, 2:8] = 2
    return EditRequest(requested, rendered, camera, (2,))


def optimiser(source, prior, request_, **changes) -> EditOptimiser:
    settings = dataclasses.replace(SETTINGS, **changes)
    return EditOptimiser(source, prior, request_, "a red thing", "a thing", settings)


def test_the_edit_begins_as_the_source(source, prior, request_, camera) -> None:
    edit = optimiser(source, prior, request_)
    with torch.no_grad():
        before = source.render(camera, Want(normals=True), deterministic=True)
        after = edit.portrait.scene().render(camera, Want(normals=True), deterministic=True)
    for name in ("image", "mask", "normals"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["cdgt", "dds", "sds", "csd"])
def test_every_objective_moves_the_learned_copy_alone(source, prior, request_, objective) -> None:
    frozen = {name: tensor.clone() for name, tensor in source.generator.state_dict().items()}
    edit = optimiser(source, prior, request_, objective=objective)
    learned = {name: tensor.clone() for name, tensor in edit.portrait.learned.state_dict().items()}
    result = edit.run()
    assert len(result.losses) == 4 and not result.interrupted
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in source.generator.state_dict().items())
    moved = [
        n for n, tensor in edit.portrait.learned.state_dict().items() if not torch.equal(tensor, learned[n])
    ]
    assert any(name.startswith("synthesis") for name in moved) and "ws" in moved
    assert result.losses[0].texture > 0
    assert (result.losses[0].geometry > 0) == (objective != "dds")
    assert result.losses[0].eikonal > 0
    assert [entry.timestep for entry in result.losses] == [80, 54, 28, 2]


@pytest.mark.parametrize("chunk", [7, 32])
def test_rays_in_chunks_take_the_same_step(source, prior, request_, chunk) -> None:
    """Whatever is recomputed for the gradients, it is the same."""
    whole, parts = optimiser(source, prior, request_), optimiser(source, prior, request_, chunk=chunk)
    first, second = whole.step(0), parts.step(0)
    for name, value in dataclasses.asdict(first).items():
        # sums in another order, in float32
        assert getattr(second, name) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    ws, again = (edit.portrait.learned.ws.grad for edit in (whole, parts))
    # Voxels and importance samples are chosen by comparisons, which rounding can turn: weights that differ by
    # 1e-7 of themselves move this gradient by 8 % here, chunks by less than a thousandth.
    assert (again - ws).norm() < 0.01 * ws.norm()


@pytest.mark.parametrize("timestep", [10, 90])
@pytest.mark.parametrize("every", [1, 3])
def test_distilled_gradients_have_their_weights(source, prior, request_, timestep, every) -> None:
    """At the beginning the picture is the source, so of e(z_t, y, m) - e(z'_t, y', m') what the prompts
    differ about is left: guidance times the prior's red, in the sizes of noise."""
    edit = optimiser(source, prior, request_, views=((0.3, 0.1),), geometry_every=every)
    views = edit.views
    with torch.no_grad():
        seen = edit.portrait.scene().render(
            torch.cat([view.camera for view in views]), Want(normals=True), deterministic=True
        )
    image, normals = seen.image.clone().requires_grad_(), seen.normals.clone().requires_grad_()
    seen = dataclasses.replace(seen, image=image, normals=normals)
    loss, _ = edit._distil(seen, views, edit._draw(views, True, timestep))
    found = torch.autograd.grad(loss, (image, normals))

    alpha = prior.alphas_cumprod[timestep].item()
    in_noise = (alpha / (1 - alpha)) ** 0.5
    weight = min(1.0, 1 / in_noise)  # what is large in noise and small in the picture is kept down
    red = torch.tensor(prior.COLOURS["red"]).view(3, 1, 1)
    latents = -edit.settings.guidance * in_noise * weight * red
    footprint = torch.cat([view.footprint for view in views])[:, None].float()
    latents = latents * torch.nn.functional.adaptive_max_pool2d(footprint, 4)
    share = edit.settings.weights.geometry
    count = 4  # pictures: two views of two kinds; of each kind a share of the mean
    for gradient, part in zip(found, (1 - share, share * every), strict=True):
        pixels = gradient.shape[-1] // 4  # of a latent, whose mean it is
        expected = (
            (latents * part * 2 / count / pixels**2).repeat_interleave(pixels, 2).repeat_interleave(pixels, 3)
        )
        if gradient is found[1]:
            expected = expected * ((1 - seen.mask_raw[:, :1]) / 2).clamp(0, 1)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_picture_follows_the_prompt_inside_and_stays_outside(source, prior, request_, camera) -> None:
    weights = EditWeights(distillation=1.0, mask=0.0)
    edit = optimiser(source, prior, request_, steps=25, lr=0.01, guidance=1.0, weights=weights)
    footprint = edit.views[0].footprint
    edit.run()
    with torch.no_grad():
        before = source.render(camera, Want(), deterministic=True).image
        after = edit.portrait.scene().render(camera, Want(), deterministic=True).image
    change = (after - before).mean(1)
    redness = (after[:, 0] - after[:, 1:].mean(1)) - (before[:, 0] - before[:, 1:].mean(1))
    assert redness[footprint].mean() > 0.02
    assert change[~footprint].abs().mean() < 0.3 * change[footprint].abs().mean()


def test_the_mask_follows_the_request(source, prior, request_, camera) -> None:
    weights = EditWeights(distillation=0.0, mask=1.0)
    edit = optimiser(source, prior, request_, steps=25, lr=0.01, weights=weights)
    losses = edit.run().losses
    assert losses[-1].mask < 0.9 * losses[0].mask


def test_conditions_of_other_views_follow_the_model_and_m_stays(source, prior, request_) -> None:
    edit = optimiser(source, prior, request_, views=((0.3, 0.1),))
    edit.step(0)
    shown = prior.seen_conditions[-1]  # edited M, edited other; again for normals; then the source's
    requested = prior.condition(request_.requested[None], edit.labels)
    assert torch.equal(shown[:1], requested) and torch.equal(shown[4:5], edit.views[0].source_condition)
    assert torch.equal(shown[1:2], shown[5:6])  # the model is still the source
    with torch.no_grad():
        edit.portrait.learned.decoder.part_shapes.bias2[2] -= 10.0  # class 2 wins wherever the blend shows it
    edit.step(1)
    shown = prior.seen_conditions[-1]
    assert len(shown) == 4  # this step has no normal maps
    assert torch.equal(shown[:1], requested)
    assert not torch.equal(shown[1:2], edit.views[1].source_condition)
    assert torch.equal(shown[3:], edit.views[1].source_condition)


def test_without_updating_the_conditions_stay_the_sources(source, prior, request_) -> None:
    edit = optimiser(source, prior, request_, views=((0.3, 0.1),), update_condition=False)
    with torch.no_grad():
        edit.portrait.learned.decoder.part_shapes.bias2[2] -= 10.0
    edit.step(1)  # without normal maps: edited M, edited other, both sources
    shown = prior.seen_conditions[-1]
    assert torch.equal(shown[1:2], edit.views[1].source_condition)
    assert torch.equal(shown[:1], prior.condition(request_.requested[None], edit.labels))


def test_proposals_choose_where_rays_are_sampled(source, prior, request_, camera) -> None:
    """The learned copy begins as the frozen one: samples are the same whichever model draws them. After a
    change of its surface they are not, except where the frozen model draws them alone."""

    def depths(proposals: str, shift: float) -> torch.Tensor:
        edit = optimiser(source, prior, request_, proposals=proposals)
        with torch.no_grad():
            edit.portrait.learned.decoder.shape.bias2 -= shift
            learned = edit.portrait.learned()
            torch.manual_seed(0)
            seen = edit.portrait.scene(learned).render(
                camera, Want(samples=True), proposals=edit._proposals(learned)
            )
        return seen.samples.depth

    torch.manual_seed(0)
    with torch.no_grad():
        alone = source.render(camera, Want(samples=True)).samples.depth
    torch.testing.assert_close(depths("frozen", 0.0), alone)
    torch.testing.assert_close(depths("frozen", 0.3), alone)
    assert not torch.allclose(depths("union", 0.3), depths("union", 0.0))
    coarse = source.generator.config.samples_coarse
    half = source.generator.config.samples_fine // 2
    torch.testing.assert_close(  # the first half of the union's importance samples is the frozen model's
        depths("union", 0.3)[..., : coarse + half], depths("union", 0.0)[..., : coarse + half]
    )


def test_an_unknown_kind_of_proposals_is_named() -> None:
    with pytest.raises(UserError, match="proposals 'unoin': .*union"):
        EditSettings(proposals="unoin")


def test_the_same_seed_gives_the_same_edit_and_leaves_the_callers_random_state(
    source, prior, request_
) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = optimiser(source, prior, request_).run().losses
    assert torch.equal(torch.rand(3), expected)
    again = optimiser(source, prior, request_).run().losses
    other = optimiser(source, prior, request_, seed=1).run().losses
    assert first == again
    assert first != other


def test_ctrl_c_keeps_what_there_is(source, prior, request_) -> None:
    def stop(entry) -> None:
        if entry.step == 1:
            raise KeyboardInterrupt

    result = optimiser(source, prior, request_).run(stop)
    assert result.interrupted and len(result.losses) == 2


def test_one_view_a_step_is_enough(source, prior, request_) -> None:
    result = optimiser(source, prior, request_, views_per_step=1, steps=6).run()
    assert 0 < sum(entry.mask > 0 for entry in result.losses) < 6


def test_nonfinite_gradients_are_left_out_and_end_the_edit(source, prior, request_) -> None:
    from dnnlib.errors import UserError

    edit = optimiser(source, prior, request_, max_nonfinite=1, objective="sds")
    prior.alphas_cumprod = torch.full((100,), float("nan"))
    with pytest.raises(UserError, match="non-finite"):
        edit.run()
    assert all(torch.isfinite(tensor).all() for tensor in edit.portrait.learned.state_dict().values())


class _Brightness:
    """A CLIP that knows only how bright a picture is."""

    def encode_images(self, images):
        return images.mean((1, 2, 3))[:, None] * torch.ones(1, 2)

    def encode_texts(self, texts):
        return torch.tensor([[float("red" in text)] * 2 for text in texts])


def test_the_directional_loss_counts_only_where_it_has_a_weight(source, prior, request_) -> None:
    weights = dataclasses.replace(EditWeights(), clip=1.0)
    edit = EditOptimiser(
        source,
        prior,
        request_,
        "a red thing",
        "a thing",
        dataclasses.replace(SETTINGS, weights=weights),
        _Brightness(),
    )
    losses = edit.run().losses
    assert losses[0].clip == pytest.approx(1, abs=1e-4)  # nothing has changed yet
    assert losses[-1].clip != losses[0].clip
    off = EditOptimiser(source, prior, request_, "a red thing", "a thing", SETTINGS, _Brightness())
    assert off.clip is None and off.step(0).clip == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": {"geometry": 1.1}},
        {"weights": {"mask": -1.0}},
        {"weights": {"image": float("nan")}},
        {"first_timestep": 0.1, "last_timestep": 0.5},
        {"first_timestep": 1.5},
        {"lr": -0.1},
        {"guidance": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(UserError, match=str(list(settings)[0])):
        config_files.load(EditSettings, settings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "sds", "views_per_step": 1},
        {"objective": "csd", "proposals": "union"},
        {"weights": EditWeights(geometry=0.0, eikonal=0.0)},
    ],
)
def test_a_step_that_can_be_recorded_is_the_same(source, prior, request_, changes) -> None:
    picked, whole = (optimiser(source, prior, request_, **changes) for _ in range(2))
    whole.whole = True
    for index in range(2):  # with normals and without
        first, second = (dataclasses.asdict(edit.step(index)) for edit in (picked, whole))
        # sums in another order, in float32
        assert second == pytest.approx(first, rel=1e-4, abs=1e-6), index
        if index == 0:  # later, rounding turns choices of voxels and samples
            for name, parameter in picked.portrait.learned.named_parameters():
                other = whole.portrait.learned.get_parameter(name).grad
                if parameter.grad is not None:
                    assert (other - parameter.grad).norm() <= 1e-3 * parameter.grad.norm() + 1e-7, name


@pytest.mark.timeout(300)  # the first use of native operations may have to build them
@pytest.mark.parametrize("changes", [{}, {"objective": "sds", "proposals": "union", "jitter": True}])
def test_recordable_steps_read_nothing_back(monkeypatch, changes) -> None:
    """The bundled models, on a CPU: what a step computes is one function, and no value is looked at in it."""
    edit = bundled_edit("cpu", **changes)
    edit.whole = True
    edit.step(0)  # whatever is made once is made now
    found = []

    def watched(name, function, *arguments):
        with Watch() as watch, monkeypatch.context() as patched:
            refuse_tensors_of_the_host(patched)
            result = function(*arguments)
        found.append((name, watch.found))
        return result

    monkeypatch.setattr(edit.recorder, "run", watched)
    edit.step(1), edit.step(2)
    assert found == [("step at M", []), ("step with normals at M", [])]


@pytest.mark.parametrize(("told", "side", "recorded"), [(None, 4, True), (None, 64, False), (True, 64, True)])
def test_steps_are_recorded_where_latents_are_small(
    source, prior, request_, monkeypatch, told, side, recorded
) -> None:
    seen = []
    monkeypatch.setattr(optimise, "Recorder", lambda device, enabled, **_: seen.append(enabled) or Recorder())
    monkeypatch.setattr(prior, "encode", lambda images: torch.zeros(len(images), 3, side, side))
    optimiser(source, prior, request_, cuda_graphs=told)
    assert seen == [recorded]


@pytest.mark.cuda
def test_a_recorded_edit_is_like_one_that_is_not() -> None:
    """Both draw the same numbers; their sums of atomics differ, which steps of Adam magnify."""
    plain, recorded = (bundled_edit("cuda", cuda_graphs=graphs, steps=16) for graphs in (False, True))
    records = plain.recorder._records, recorded.recorder._records
    pairs = list(zip(plain.run().losses, recorded.run().losses, strict=True))
    assert not records[0] and len(records[1]) == 2
    assert all(record.graph is not None for record in records[1].values())
    for first, second in pairs[:3]:
        assert dataclasses.asdict(second) == pytest.approx(dataclasses.asdict(first), rel=0.03, abs=1e-4)
    for first, second in pairs[3:]:  # 0.3: what the same edit differs by from run to run is smaller
        assert second.mask == pytest.approx(first.mask, rel=0.3)
        assert second.texture == pytest.approx(first.texture, rel=0.3)
    regions = [edit.portrait.region.voxels for edit in (plain, recorded)]
    assert (regions[0] ^ regions[1]).sum() < 0.02 * regions[0].sum()


def bundled_edit(device: str, **changes) -> EditOptimiser:
    """The face of seed 0 gets a hat over its upper rows."""
    generator = open_network(BUNDLED, device)
    source = scene_of(generator, ws_of_latent(generator, latent_of_seed(generator, 0), 0.7))
    camera = camera_at(generator, 0.0, 0.0)
    rendered = class_map(look(source, camera))[0]
    requested = rendered.clone()
    hat = label_set(generator.config.labels).index("hat")
    requested[4:20, 16:48] = hat
    request = EditRequest(requested, rendered, camera, (hat,))
    settings = EditSettings(region_every=6, **changes)
    prior = load_prior(str(BUNDLED_PRIOR), device=device)
    return EditOptimiser(source, prior, request, "a person with a red hat", "a person", settings)
