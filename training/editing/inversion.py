"""A picture to a scene of a generator: its latent, its camera, and a generator tuned to it.

First w is sought, one per layer, whose rendering looks like the picture and has its mask, from the mean or
from what an encoder reads in the picture; where the camera is not known, yaw and pitch are sought with it,
from several starting points. Then the generator itself is tuned while w stays (pivotal tuning, Roich et al.
2022), which brings what no latent can say. One picture says nothing of the head's other sides: there the
tuned generator must keep the depth and the mask that it had.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dnnlib.config import check_least
from dnnlib.errors import UserError
from training.generator import Generator, Rendering, Want
from training.graphs import Recorder
from training.networks.encoder import Encoder
from training.networks.inputs import one_hot
from training.reconstruction import image_terms, mask_loss, pixel_weights
from training.scene import camera_at, device_of
from training.schedules import warm_up_share
from training.updates import gradients

Progress = Callable[[str, float], None]  # which stage, and the loss after one more of its steps

_PULL = 0.01  # weight of the squared distance from the mean w: keeps the fit among plausible heads
_BETAS = (0.9, 0.99)  # the first is cycled between 0.95 and 0.85 while w is fitted (OneCycleLR)
_WARM_UP = 0.1  # share of the steps in which the rate rises, as a cosine
_BALANCE = 0.5  # as :func:`pixel_weights` has it: eyes and lips are small, and are what people look at
_SIDES = (0.6, 0.2)  # largest yaw and pitch (radians) of the views whose shape is kept
_KEPT_DEPTH, _KEPT_MASK = 10.0, 0.5  # weights of their L1: world units are small


@dataclass(frozen=True)
class Target:
    """N pictures (N, 3, H, H) in [-1, 1] and their classes (N, H, H), H the generator's resolution."""

    image: Tensor
    classes: Tensor


@dataclass(frozen=True)
class InversionSettings:
    """How a picture is inverted."""

    start_steps: int = 40  # of each starting yaw, where the camera is sought
    starts: tuple[float, ...] = (-0.4, 0.0, 0.4)  # these yaws, in radians
    fit_steps: int = 200  # of w, and of the camera
    tune_steps: int = 200  # of the generator; 0 leaves it as it is
    lr: float = 0.03  # of w
    lr_pose: float = 0.01  # of yaw and pitch
    lr_tune: float = 0.002  # of the generator
    mask: float = 0.5  # weight of the mask's cross-entropy
    chunk: int = 8192  # rays that are evaluated at once; gradients recompute them: memory against time
    seed: int = 0  # of the views that keep the shape
    cuda_graphs: bool = True  # record steps on CUDA: faster where models are small, more memory

    def __post_init__(self) -> None:
        check_least(self, 1, "start_steps", "fit_steps", "chunk")
        check_least(self, 0, "tune_steps", "lr", "lr_pose", "lr_tune", "mask", "seed")
        if not self.starts:
            raise UserError("starts is empty: give at least one yaw to begin from")


@dataclass(frozen=True)
class Inversion:
    """A picture as a scene: ``generator`` renders it from ``ws`` at ``camera``."""

    generator: Generator  # tuned, where that was asked for
    ws: Tensor  # (1, num_ws, w_dim)
    camera: Tensor  # (1, 25)
    pose: tuple[float, float] | None  # yaw and pitch in radians, where they were sought
    interrupted: bool = False  # by Ctrl-C; the scene is as it was then


@dataclass(frozen=True)
class Fitted:
    """Latents of N pictures."""

    ws: Tensor  # (N, num_ws, w_dim)
    pose: Tensor | None  # (N, 2) yaw and pitch in radians, where they were sought
    interrupted: bool = False


def fit(
    generator: Generator,
    target: Target,
    *,
    camera: Tensor | None = None,
    pose: Tensor | None = None,
    ws: Tensor | None = None,
    settings: InversionSettings | None = None,
    steps: int | None = None,
    balance: float = 0.0,
    progress: Callable[[float], None] = lambda loss: None,
) -> Fitted:
    """ws (N, num_ws, w_dim) whose renderings look like N pictures, and their poses. Ctrl-C ends it early.

    Adam on one w per layer, from ``ws`` or the mean w, by the losses of the warm start on picture and mask.
    The cameras are ``camera`` (N, 25), or ``pose`` (N, 2), yaw and pitch to begin from, which are fitted too.
    Pictures do not influence each other.
    """
    settings = settings or InversionSettings()
    steps = settings.fit_steps if steps is None else steps
    count = len(target.image)
    mean = generator.mapping.w_avg.detach()
    start = start_ws(generator, target, None, camera) if ws is None else ws
    ws = start.detach().clone().requires_grad_(True)
    groups = [{"params": [ws], "lr": settings.lr}]
    if pose is not None:
        pose = pose.detach().clone().requires_grad_(True)
        groups.append({"params": [pose], "lr": settings.lr_pose})
    optimiser = torch.optim.Adam(groups, betas=_BETAS, fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], steps, pct_start=warm_up_share(_WARM_UP, steps)
    )
    classes = one_hot(target.classes, generator.parts)

    def step(seen_from: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and its gradients by ws and, where that is sought, by the camera."""
        seen_from = seen_from.detach().requires_grad_(pose is not None)
        rendering = generator.synthesise(ws, seen_from, deterministic=True, chunk=settings.chunk)
        loss = likeness(rendering, target.image, classes, settings.mask, balance)
        loss = loss + _PULL * (ws - mean).square().mean()
        wanted = [ws] if pose is None else [ws, seen_from]
        return loss.detach(), gradients(loss * count, wanted)

    recorder = Recorder(ws.device, settings.cuda_graphs, used_at_once=True)
    interrupted = False
    try:
        for _ in range(steps):
            seen_from = camera if pose is None else camera_at(generator, *pose.unbind(1))
            with recorder.stream():
                loss, (ws.grad, *by_camera) = recorder.run("fit", step, seen_from.detach())
            if pose is not None:
                (pose.grad,) = torch.autograd.grad(seen_from, pose, by_camera)
            optimiser.step()
            rate.step()
            progress(_finite(loss))
    except KeyboardInterrupt:
        interrupted = True
    return Fitted(ws.detach(), None if pose is None else pose.detach(), interrupted)


def _finite(loss: Tensor) -> float:
    """Its value. Nothing comes back from a nan: better no latent than one of those."""
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(f"the fit has diverged (its loss is {value}): give smaller learning rates")
    return value


def likeness(
    rendering: Rendering, image: Tensor, classes: Tensor, mask_weight: float, balance: float = 0.0
) -> Tensor:
    """What renderings of N scenes lack to be images (N, 3, H, H) with one-hot classes (N, P, H, H)."""
    pixels = pixel_weights(classes, balance) if balance else None
    terms = image_terms(1.0, 1.0, rendering, image, pixels)
    loss = sum(term.weight * term.value for term in terms)
    return loss + mask_weight * mask_loss(rendering, classes, pixels)


def invert(
    generator: Generator,
    target: Target,
    camera: Tensor | None = None,
    settings: InversionSettings | None = None,
    progress: Progress = lambda stage, loss: None,
    encoder: Encoder | None = None,
) -> Inversion:
    """A picture as a scene. Without ``camera`` (1, 25) yaw and pitch are sought; with an ``encoder`` of this
    generator's latents w begins at what that reads.

    ``generator`` is left as it is: what is tuned is a copy.
    """
    settings = settings or InversionSettings()
    start = None if camera is not None else _nearest_start(generator, target, settings, progress, encoder)
    if start is not None and start.interrupted:
        found = start
    else:
        found = fit(
            generator,
            target,
            camera=camera,
            pose=None if start is None else start.pose,
            ws=start_ws(generator, target, encoder, camera) if start is None else start.ws,
            settings=settings,
            balance=_BALANCE,
            progress=lambda loss: progress("fit", loss),
        )
    pose, interrupted = None, found.interrupted
    if camera is None:
        camera, pose = camera_at(generator, *found.pose.unbind(1)), tuple(found.pose[0].tolist())
    if settings.tune_steps and not interrupted:
        generator, interrupted = tune(
            generator, found.ws, camera, target, settings, lambda loss: progress("tune", loss)
        )
    return Inversion(generator, found.ws, camera, pose, interrupted)


@torch.no_grad()
def start_ws(generator: Generator, target: Target, encoder: Encoder | None, camera: Tensor | None) -> Tensor:
    """ws (N, num_ws, w_dim) to begin with: what the encoder reads in N pictures from ``camera`` (N, 25), or
    the mean, for which no camera is needed."""
    if encoder is None or camera is None:
        mean = generator.mapping.w_avg.detach()
        return mean.expand(len(target.image), generator.synthesis.num_ws, -1)
    return generator.map(encoder.read(target.image, target.classes).mean, camera)


def _nearest_start(
    generator: Generator,
    target: Target,
    settings: InversionSettings,
    progress: Progress,
    encoder: Encoder | None = None,
) -> Fitted:
    """Of several starting yaws, that from which the picture came out best."""
    classes = one_hot(target.classes, generator.parts)
    tried = []
    for yaw in settings.starts:  # one after the other: three at once take three times the memory
        found = fit(
            generator,
            target,
            pose=torch.tensor([[yaw, 0.0]], device=device_of(generator)),
            ws=start_ws(generator, target, encoder, camera_at(generator, yaw, 0.0)),
            settings=settings,
            steps=settings.start_steps,
            progress=lambda loss: progress("start", loss),
        )
        with torch.no_grad():
            camera = camera_at(generator, *found.pose.unbind(1))
            rendering = generator.synthesise(found.ws, camera, deterministic=True, chunk=settings.chunk)
            loss = likeness(rendering, target.image, classes, settings.mask)
        tried.append((loss.item(), found))
        if found.interrupted:
            break
    best = min(tried, key=lambda each: each[0])[1]
    return replace(best, interrupted=tried[-1][1].interrupted)


def tune(
    generator: Generator,
    ws: Tensor,
    camera: Tensor,
    target: Target,
    settings: InversionSettings,
    progress: Callable[[float], None] = lambda loss: None,
) -> tuple[Generator, bool]:
    """A copy of ``generator``, frozen again, that renders ws (1, num_ws, w_dim) at ``camera`` (1, 25) more
    like the picture, and has the same shape and mask as before from other sides. And whether Ctrl-C ended it
    early."""
    tuned = copy.deepcopy(generator).requires_grad_(True)
    tuned.mapping.requires_grad_(False)  # w is fixed
    optimiser = torch.optim.Adam(
        [p for p in tuned.parameters() if p.requires_grad], lr=settings.lr_tune, betas=_BETAS, fused=True
    )
    classes = one_hot(target.classes, generator.parts)
    random = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        planes = generator.planes(ws)
    raw = Want(image=False)
    options = {"deterministic": True, "chunk": settings.chunk}
    learned = optimiser.param_groups[0]["params"]

    def step(side: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The loss, and its gradients by what is tuned."""
        field = tuned.field(tuned.planes(ws))
        rendering = tuned.synthesise(ws, camera, field=field, **options)
        loss = likeness(rendering, target.image, classes, settings.mask, _BALANCE)
        after = tuned.synthesise(ws, side, field=field, want=raw, **options)
        with torch.no_grad():
            before = generator.synthesise(ws, side, planes=planes, want=raw, **options)
        loss = loss + _KEPT_DEPTH * (after.depth - before.depth).abs().mean()
        loss = loss + _KEPT_MASK * (after.mask_raw - before.mask_raw).abs().mean()
        return loss.detach(), gradients(loss, learned)

    recorder = Recorder(ws.device, settings.cuda_graphs, used_at_once=True)
    interrupted = False
    try:
        for _ in range(settings.tune_steps):
            yaw, pitch = (torch.rand(2, generator=random) * 2 - 1).mul(torch.tensor(_SIDES)).tolist()
            with recorder.stream():
                loss, found = recorder.run("tune", step, camera_at(generator, yaw, pitch))
            for parameter, gradient in zip(learned, found, strict=True):
                parameter.grad = gradient
            optimiser.step()
            progress(_finite(loss))
    except KeyboardInterrupt:
        interrupted = True
    return tuned.eval().requires_grad_(False), interrupted
