"""Pictures to latents, cameras and tuned generators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.recordable import Watch, refuse_tensors_of_the_host
from training.editing import inversion
from training.editing.inversion import InversionSettings, Target, fit, invert, likeness, tune
from training.generator import Generator, Want
from training.graphs import Recorder
from training.networks.encoder import Encoder, EncoderConfig
from training.networks.inputs import one_hot
from training.scene import camera_at, latent_of_seed, ws_of_latent

BUNDLED = Path(__file__).resolve().parents[3] / "pretrained/portraits-64.safetensors"


def picture_of(generator: Generator, seed: int, yaw: float, pitch: float) -> Target:
    ws = ws_of_latent(generator, latent_of_seed(generator, seed), 0.7)
    with torch.no_grad():
        view = generator.synthesise(ws, camera_at(generator, yaw, pitch), deterministic=True)
    return Target(view.image.clamp(-1, 1), view.mask.argmax(1))


def test_camera_of_a_head_is_found() -> None:
    """Of the bundled generator's own picture, from a start 0.35 radians away."""
    generator = Generator.load(BUNDLED)
    target = picture_of(generator, 5, 0.35, 0.1)
    settings = InversionSettings(lr_pose=0.03)
    pose = fit(generator, target, pose=torch.zeros(1, 2), settings=settings, steps=80).pose
    # 0.03 radians are under 2 degrees: less than a pixel at the ears
    assert pose[0].tolist() == pytest.approx([0.35, 0.1], abs=0.03)


def test_pictures_do_not_influence_each_other(generator: Generator) -> None:
    one, other = picture_of(generator, 1, 0.2, 0.0), picture_of(generator, 2, -0.2, 0.0)
    both = Target(torch.cat([one.image, other.image]), torch.cat([one.classes, other.classes]))
    pose = torch.zeros(2, 2)
    together = fit(generator, both, pose=pose, steps=4)
    alone = fit(generator, one, pose=pose[:1], steps=4)
    # sums in another order, which Adam's division carries on
    torch.testing.assert_close(together.ws[:1], alone.ws, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(together.pose[:1], alone.pose, atol=1e-4, rtol=1e-3)


def test_best_start_goes_on(generator: Generator) -> None:
    """Of a start at the true yaw and one far from it, without steps that could bring both there."""
    target = picture_of(generator, 1, 0.4, 0.0)
    settings = InversionSettings(starts=(-0.5, 0.4), start_steps=1, lr_pose=1e-6, lr=1e-6)
    losses = []
    stages = invert(
        generator,
        target,
        settings=InversionSettings(**{**vars(settings), "fit_steps": 1, "tune_steps": 0}),
        progress=lambda stage, loss: losses.append(stage),
    )
    assert stages.pose == pytest.approx((0.4, 0.0), abs=1e-4)
    assert losses == ["start", "start", "fit"]
    assert stages.generator is generator


def test_tuned_generator_shows_the_picture_and_keeps_its_other_sides(generator: Generator) -> None:
    camera = camera_at(generator, 0.0, 0.0)
    target = picture_of(generator, 1, 0.0, 0.0)
    ws = ws_of_latent(generator, latent_of_seed(generator, 2), 0.7)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    settings = InversionSettings(tune_steps=40, lr_tune=0.01)
    kept, _ = tune(generator, ws, camera, target, settings)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert not any(p.requires_grad for p in kept.parameters())
    assert torch.equal(kept.mapping.fc0.weight, generator.mapping.fc0.weight)

    classes = one_hot(target.classes, generator.parts)

    def lacks(some: Generator) -> float:
        with torch.no_grad():
            rendering = some.synthesise(ws, camera, deterministic=True)
            return likeness(rendering, target.image, classes, settings.mask).item()

    def moved(some: Generator) -> float:
        side = camera_at(generator, 0.5, 0.0)
        with torch.no_grad():
            depths = [
                each.synthesise(ws, side, want=Want(image=False), deterministic=True).depth
                for each in (generator, some)
            ]
        return (depths[0] - depths[1]).abs().mean().item()

    # both shares only tell a change that is there from one that is not, after 40 steps on a random network
    assert lacks(kept) < 0.8 * lacks(generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "_KEPT_DEPTH", 0.0)
        patch.setattr(inversion, "_KEPT_MASK", 0.0)
        free, _ = tune(generator, ws, camera, target, settings)
    assert moved(kept) < 0.7 * moved(free)


@pytest.mark.parametrize("stage", ["start", "fit", "tune"])
def test_ctrl_c_leaves_what_there_is(generator: Generator, stage: str) -> None:
    done = []

    def stop(at: str, loss: float) -> None:
        done.append(at)
        if at == stage:
            raise KeyboardInterrupt

    settings = InversionSettings(start_steps=1, fit_steps=2, tune_steps=2)
    found = invert(generator, picture_of(generator, 1, 0.2, 0.0), settings=settings, progress=stop)
    assert found.interrupted
    assert done.count(stage) == 1 and done[-1] == stage
    assert found.ws.isfinite().all() and found.pose is not None
    assert (found.generator is generator) == (stage != "tune")


def test_w_begins_at_what_the_encoder_reads(generator: Generator) -> None:
    target = picture_of(generator, 1, 0.3, 0.0)
    encoder = Encoder(EncoderConfig(3 + generator.parts, 8, generator.config.z_dim, 8, 8))
    still = InversionSettings(starts=(0.3,), start_steps=1, fit_steps=1, tune_steps=0, lr=1e-8, lr_pose=1e-8)
    with torch.no_grad():
        z = encoder.read(target.image, target.classes).mean
        wanted = generator.map(z, camera_at(generator, 0.3, 0.0))
        mean = generator.mapping.w_avg.expand_as(wanted)
    assert (wanted - mean).abs().max() > 0.01
    for camera in (None, camera_at(generator, 0.3, 0.0)):
        found = invert(generator, target, camera, still, encoder=encoder)
        torch.testing.assert_close(found.ws, wanted, atol=1e-6, rtol=0)  # one or two steps of 1e-8
        torch.testing.assert_close(invert(generator, target, camera, still).ws, mean, atol=1e-6, rtol=0)


def test_steps_read_nothing_back(generator: Generator, monkeypatch) -> None:
    """What :mod:`training.graphs` records, of both stages."""
    found = []

    def watched(self, name, function, *arguments):
        with Watch() as watch, monkeypatch.context() as patched:
            refuse_tensors_of_the_host(patched)
            result = function(*arguments)
        found.append((name, watch.found))
        return result

    monkeypatch.setattr(Recorder, "run", watched)
    settings = InversionSettings(starts=(0.0,), start_steps=1, fit_steps=1, tune_steps=1)
    target = picture_of(generator, 1, 0.2, 0.0)
    invert(generator, target, settings=settings)
    invert(generator, target, camera_at(generator, 0.2, 0.0), settings=settings)
    assert found == [("fit", []), ("fit", []), ("tune", []), ("fit", []), ("tune", [])]


@pytest.mark.cuda
@pytest.mark.parametrize("pose", [False, True])
def test_recorded_steps_are_like_those_that_are_not(pose: bool) -> None:
    generator = Generator.load(BUNDLED, "cuda")
    target, camera = picture_of(generator, 5, 0.2, 0.0), camera_at(generator, 0.2, 0.0)
    begin = {"pose": torch.tensor([[0.1, 0.0]]).cuda()} if pose else {"camera": camera}
    losses = {}
    for graphs in (False, True):
        settings = InversionSettings(cuda_graphs=graphs, tune_steps=8)
        seen = losses[graphs] = []
        found = fit(generator, target, settings=settings, steps=12, progress=seen.append, **begin)
        tune(generator, found.ws, camera, target, settings, seen.append)
    assert losses[True][:5] == pytest.approx(losses[False][:5], rel=1e-2)
    # sums of atomics differ, which steps of Adam magnify
    assert losses[True] == pytest.approx(losses[False], rel=0.1)
    assert losses[True][11] < losses[True][0]
