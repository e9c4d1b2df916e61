"""Did the edit do what was asked, and leave the rest alone? Scores of finished edits, from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.labels import LabelSet, label_set, read_mask
from dnnlib.files import read_json
from training.editing.export import load_edit
from training.editing.region import EditRequest, RegionSettings
from training.editing.report import mask_ious, outside_region, psnr
from training.generator import Generator
from training.judges.attributes import claims, satisfied
from training.judges.clip import PortraitClip, directional_similarity
from training.judges.identity import Identifier, IdentityNet
from training.judges.reader import Reader
from training.metrics.edit_cases import FIXED_CASES
from training.metrics.geometry import score_consistency, sights_of_scene
from training.metrics.perceptual import perceptual_distance
from training.metrics.portrait_set import PortraitSet, to_float
from training.pictures import look
from training.scene import Scene, latent_of_seed, scene_of, ws_of_latent

OTHER_SEED = 999  # whose portrait stands in for an edit that kept nothing
_YAWS = (-40.0, -20.0, 0.0, 20.0, 40.0)  # degrees, for the consistency of views


@dataclass(frozen=True)
class EditJudges:
    """The networks that judge edits."""

    reader: Reader
    clip: PortraitClip
    identifier: Identifier

    @classmethod
    def load(cls, device: str = "cpu") -> EditJudges:
        """The bundled ones."""
        reader = Reader.load(device=device)
        return cls(
            reader, PortraitClip.load(device=device), Identifier(reader, IdentityNet.load(device=device))
        )


@dataclass(frozen=True)
class EditScore:
    """Of one picture that claims to be an edit, at the mask's camera."""

    success: bool  # all that the sentence says is read off the picture
    claims: dict[str, bool]  # attribute by attribute
    mask_iou: float  # own mask against the requested one, mean over the edited classes; the edit's loss
    mask_read: float  # the same of the mask that the reader finds in the picture
    clip: float  # cosine of picture and sentence
    clip_gain: float  # the same, less that of the picture before
    clip_directional: float  # cosine of the changes of picture and sentence
    psnr_outside: float  # dB, pixels that should have been left alone
    perceptual_outside: float  # the same by features, 0 is best
    identity: float  # cosine of the faces' embeddings before and after
    identity_shared: float  # the same of the pixels that are face before and after
    depth_warp: float  # agreement of views, see Consistency
    mask_agreement: float


@dataclass(frozen=True)
class _Task:
    """What an edit was asked."""

    prompt: str
    source_prompt: str
    request: EditRequest
    outside: Tensor  # (H, W) bool
    before: Scene


def score_folder(folder: Path, judges: EditJudges, device: str = "cpu") -> dict[str, Any]:
    """Scores by source: the 'edit', the portrait 'unedited', and that of 'other' people in its place.

    ``folder``: of an edit, with requested.png (as ``training.editing.cases.run_case`` leaves it).
    """
    portrait = load_edit(folder, device=device)
    report = read_json(folder / "report.json")
    generator = portrait.source.generator
    labels = label_set(generator.config.labels)
    request = _request(folder, report, labels, device)
    task = _Task(
        report["prompt"],
        report["source_prompt"],
        request,
        outside_region(request, RegionSettings()),
        portrait.source,
    )
    with torch.no_grad():
        scenes = {
            "edit": portrait.scene(),
            "unedited": portrait.source,
            "other": _other(generator),
        }
        scores = {name: asdict(score(task, scene, judges)) for name, scene in scenes.items()}
    cost = {"seconds": report["seconds"]["total"], "peak_memory_mb": report["peak_memory_mb"]}
    scores["edit"] |= cost
    return scores


def _other(generator: Generator) -> Scene:
    ws = ws_of_latent(generator, latent_of_seed(generator, OTHER_SEED), 0.7)
    return scene_of(generator, ws)


def _request(folder: Path, report: dict, labels: LabelSet, device: str) -> EditRequest:
    requested, rendered = (
        torch.from_numpy(read_mask(folder / f"{name}.png", labels)).long().to(device)
        for name in ("requested", "mask_before")
    )
    camera = torch.tensor(read_json(folder / "generator.json")["edit"]["camera"], device=device)[None]
    classes = tuple(sorted(labels.index(name) for name in report["classes"]))
    return EditRequest(requested, rendered, camera, classes)


@torch.no_grad()
def score(task: _Task, after: Scene, judges: EditJudges) -> EditScore:
    """One scene as the result of a task."""
    labels = label_set(after.generator.config.labels)
    request = task.request
    views = look(task.before, request.camera), look(after, request.camera)
    images = torch.cat([view.image.clamp(-1, 1) for view in views])
    wanted = claims(task.prompt)
    told = satisfied(wanted, judges.reader(images[1:]).words()[0])
    pictures = judges.clip.encode_images(images)
    words = judges.clip.encode_texts([task.source_prompt, task.prompt])
    similar = pictures @ words[1]
    direction = directional_similarity(pictures[:1], pictures[1:], words[:1], words[1:])
    features = outside_features(judges.reader, images, task.outside)
    faces, shared = judges.identifier(images), judges.identifier.shared(images)
    consistency = score_consistency([sights_of_scene(after, _YAWS)], None)
    own, read = (
        list(mask_ious(classes, request, labels).values())
        for classes in (views[1].mask[0].argmax(0), judges.reader.masks(images[1:])[0])
    )
    return EditScore(
        success=all(told.values()),
        claims=told,
        mask_iou=sum(own) / len(own),
        mask_read=sum(read) / len(read),
        clip=similar[1].item(),
        clip_gain=(similar[1] - similar[0]).item(),
        clip_directional=direction.item(),
        psnr_outside=psnr(images[0], images[1], task.outside),
        perceptual_outside=perceptual_distance(*features, task.outside),
        identity=(faces[0] @ faces[1]).item(),
        identity_shared=(shared[0] @ shared[1]).item(),
        depth_warp=consistency.depth_warp,
        mask_agreement=consistency.mask_agreement,
    )


def outside_features(reader: Reader, images: Tensor, outside: Tensor) -> list[list[Tensor]]:
    """The reader's features of two pictures (2, 3, H, H) that differ only ``outside`` (H, W) bool.

    The features of a place depend on all of the picture: inside, the second is made equal to the first.
    """
    blended = torch.where(outside, images[1], images[0])
    return [reader.features(image[None]) for image in (images[0], blended)]


@torch.no_grad()
def score_true(pictures: PortraitSet, judges: EditJudges) -> dict[str, float]:
    """What true portraits get with their own captions: as good as success and CLIP can be read.

    Of the captions only what the fixed edits ask for counts, so neither age nor expression.
    """
    asked = {name for case in FIXED_CASES for name in claims(case.prompt)}
    images = to_float(pictures.images).to(judges.reader.device)
    read = [words for part in images.split(64) for words in judges.reader(part).words()]
    told = []
    for caption, words in zip(pictures.captions, read, strict=True):
        wanted = {name: values for name, values in claims(caption).items() if name in asked}
        if wanted:
            told.append(list(satisfied(wanted, words).values()))
    each = [value for values in told for value in values]
    embedded = torch.cat([judges.clip.encode_images(part) for part in images.split(64)])
    cosines = (embedded * judges.clip.encode_texts(pictures.captions)).sum(1)
    return {
        "success": sum(all(values) for values in told) / max(1, len(told)),
        "claims": sum(each) / max(1, len(each)),
        "clip": cosines.mean().item(),
    }


def means(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over cases of every number; 'success' becomes a share, 'claims' the share of all of them."""
    found: dict[str, float] = {}
    for name in scores[0]:
        values = [score[name] for score in scores if name in score]
        if name == "claims":
            values = [told for each in values for told in each.values()]
        found[name] = sum(float(value) for value in values) / max(1, len(values))
    return found
