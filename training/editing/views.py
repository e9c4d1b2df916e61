"""The fixed views that an edit works on: what the source looks like from each, and what is wanted there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from datasets.labels import LabelSet, label_set
from training.distillation import NoisePredictor
from training.editing.region import EditRequest, RegionSettings, dilate, footprint_dilation, in_classes
from training.editing.relevance import concerned, relevance
from training.editing.settings import EditSettings
from training.generator import Want
from training.scene import Scene, camera_at, class_map, normal_picture


class EditPrior(NoisePredictor, Protocol):
    """What an edit needs of :class:`training.prior.Prior`."""

    def encode(self, images: Tensor) -> Tensor: ...
    def embed(self, prompts: list[str]) -> Tensor: ...
    def negative_prompt(self, normals: bool) -> str: ...
    def condition(self, masks: Tensor, labels: LabelSet) -> Tensor | None: ...


@dataclass(frozen=True)
class View:
    """A camera with what never changes about the source there, cached, and what the edit currently wants."""

    camera: Tensor  # (1, 25)
    source_image: Tensor  # (1, 3, H, W)
    source_classes: Tensor  # (1, H, W)
    source_latents: Tensor  # (1, C, h, w) of the picture
    source_normal_latents: Tensor  # (1, C, h, w) of its normal map
    source_condition: Tensor | None  # (1, 3, S, S); None where the prior sees no masks
    condition: Tensor | None  # the same of the requested mask, or of the edited model's own
    footprint: Tensor  # (1, H, W) bool: where the edit may show, dilated
    concerned: Tensor | None = None  # (1, H, W) bool: what the sentence is about; None: the mask says it


@torch.no_grad()
def source_views(
    source: Scene,
    prior: EditPrior,
    request: EditRequest,
    settings: EditSettings,
    sentences: tuple[Tensor, Tensor],
) -> list[View]:
    """M's camera first, then the fixed ones of the settings; their condition is the source's mask so far.

    ``sentences``: embedded (1, L, D), of the edited portrait and of the source.
    """
    labels = label_set(source.generator.config.labels)
    yaw, pitch = torch.tensor(settings.views).reshape(-1, 2).T
    cameras = torch.cat([request.camera, camera_at(source.generator, yaw, pitch)])
    views = []
    random = torch.Generator().manual_seed(settings.seed)
    spoken = settings.relevance > 0 and not request.changed.any()
    for index, camera in enumerate(cameras.split(1)):
        rendering = source.render(camera, Want(normals=True), deterministic=True)
        classes = class_map(rendering) if index else request.rendered[None]
        condition = prior.condition(classes, labels)
        footprint = _footprint(classes, classes, request, settings.region)
        view = View(
            camera=camera,
            source_image=rendering.image,
            source_classes=classes,
            source_latents=prior.encode(rendering.image),
            source_normal_latents=prior.encode(normal_picture(rendering)),
            source_condition=condition,
            condition=condition,
            footprint=footprint,
        )
        if index == 0:
            pixels = footprint_dilation(settings.region, classes.shape[-1])
            view = replace(
                view,
                condition=prior.condition(request.requested[None], labels),
                footprint=dilate(request.footprint, pixels)[None],
            )
        if spoken:
            view = _narrowed(view, prior, settings, sentences, random)
        views.append(view)
    return views


def _narrowed(
    view: View,
    prior: EditPrior,
    settings: EditSettings,
    sentences: tuple[Tensor, Tensor],
    random: torch.Generator,
) -> View:
    """The view with a footprint that holds no more than what the sentences differ about."""
    found = relevance(prior, view.source_latents, view.source_condition, *sentences, random)
    near = concerned(found, settings.relevance, view.footprint[0])
    near = dilate(near, footprint_dilation(settings.region, near.shape[-1]))[None]
    return replace(view, footprint=view.footprint & near, concerned=near)


def renewed(
    view: View,
    classes: Tensor,
    prior: EditPrior,
    labels: LabelSet,
    request: EditRequest,
    settings: EditSettings,
) -> View:
    """Condition updating: the view with its mask condition, and its footprint, after classes (1, H, W).

    These are the arg-max of what was just rendered: the condition follows the geometry and has no gradient.
    Without ``update_condition`` only the footprint follows.
    """
    condition = prior.condition(classes, labels) if settings.update_condition else view.condition
    footprint = _footprint(view.source_classes, classes, request, settings.region)
    if view.concerned is not None:
        footprint = footprint & view.concerned
    return replace(view, condition=condition, footprint=footprint)


def _footprint(before: Tensor, now: Tensor, request: EditRequest, settings: RegionSettings) -> Tensor:
    """(1, H, W): pixels of an edited class, before or now, dilated."""
    shown = in_classes(before, request.classes) | in_classes(now, request.classes)
    return dilate(shown[0], footprint_dilation(settings, shown.shape[-1]))[None]
