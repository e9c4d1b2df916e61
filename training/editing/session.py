"""What ``edit.py`` does, apart from its command line."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.labels import LabelSet, label_set, read_mask, write_mask
from dnnlib import config as config_files
from dnnlib.errors import UserError
from dnnlib.files import make_folder
from torch_utils.device import peak_memory_mb, reset_peak_memory
from training.acceleration import Acceleration, open_accelerated
from training.editing.export import save_edit, write_meshes, write_pictures, write_video
from training.editing.keep import Embeddings
from training.editing.latents import load_latent
from training.editing.optimise import EditOptimiser, EditResult, StepLosses
from training.editing.region import EditRequest, edited_classes, in_classes
from training.editing.report import (
    REPORT,
    Report,
    losses_as_json,
    mask_ious,
    outside_region,
    psnr,
    versions,
)
from training.editing.settings import EditSettings
from training.generator import Generator, Rendering
from training.network_source import find_network, is_edit
from training.pictures import look, to_uint8, write_png
from training.prior import PriorMemory, load_prior, quickest_predictions
from training.scene import Scene, camera_at, class_map, latent_of_seed, scene_of, ws_of_latent

Say = Callable[[str], None]


@dataclass(frozen=True)
class SourceOptions:
    """Whom to edit, and from where it is seen."""

    network: Path | str  # whatever training.network_source finds a generator by
    seed: int = 0
    latent: Path | None = None  # .npz instead of the seed
    truncation: float = 0.7
    yaw: float = 0.0  # radians
    pitch: float = 0.0
    device: str = "cpu"
    acceleration: Acceleration = Acceleration()


_STRAY = 0.02  # share of the repainted pixels that may belong to no named class unsaid
_MANY_CLASSES = 3  # what one change moves; masks of another portrait move more, three times in four


@dataclass(frozen=True)
class EditOptions:
    """What to make of it."""

    mask: Path
    prompt: str
    outdir: Path
    prior: str  # folder or Hub name
    source_prompt: str
    controlnet: str | None = None
    prior_memory: PriorMemory = PriorMemory()
    classes: tuple[str, ...] = ()  # empty: those that differ between the masks
    refuse_absent: bool = (
        False  # classes that neither mask has; lists of cases count such an edit as it comes
    )
    settings: EditSettings = EditSettings()
    command: str = ""


@dataclass(frozen=True)
class Source:
    """The portrait to edit, and the view that masks are painted on."""

    scene: Scene
    camera: torch.Tensor  # (1, 25)
    view: Rendering

    @property
    def labels(self) -> LabelSet:
        return label_set(self.scene.generator.config.labels)


def open_source(options: SourceOptions) -> Source:
    """Loads the network and renders the portrait."""
    generator = open_accelerated(options.network, options.device, options.acceleration)
    refuse_without_parts(generator, options.network)
    if options.latent is None:
        ws = ws_of_latent(generator, latent_of_seed(generator, options.seed), options.truncation)
    else:
        ws = load_latent(options.latent, generator, options.truncation, of_edit=is_edit(options.network))
    scene = scene_of(generator, ws)
    camera = camera_at(generator, options.yaw, options.pitch)
    return Source(scene, camera, look(scene, camera, normals=True))


def refuse_without_parts(generator: Generator, network: Path | str) -> None:
    """A generator without masks cannot be edited."""
    if not generator.parts:
        raise UserError(
            f"{network} is a plain EG3D generator: it has no masks, and an edit needs one; "
            "`python generate.py` renders it, and a MaTe3D generator can be edited"
        )


def export_mask(options: SourceOptions, path: Path) -> Path:
    """Writes the portrait's mask to ``path`` and its picture beside it; returns the picture's path."""
    source = open_source(options)
    picture = path.with_name(f"{path.stem}_portrait.png")
    classes = class_map(source.view)[0].byte().cpu()
    if path.is_file() and not _holds_mask(path, classes, source.labels):
        raise UserError(
            f"{path} exists and is another picture, painted perhaps: give --export-mask another name"
        )
    write_mask(path, classes.numpy(), source.labels)
    write_png(picture, to_uint8(source.view.image[0]))
    return picture


def _holds_mask(path: Path, classes: torch.Tensor, labels: LabelSet) -> bool:
    """Whether a file is this very mask (H, W)."""
    try:
        found = torch.from_numpy(read_mask(path, labels))
    except UserError:
        return False
    return found.shape == classes.shape and bool((found == classes).all())


def run_edit(source_options: SourceOptions, options: EditOptions, say: Say) -> Report:
    """The whole edit; ``say`` gets a line now and then. Writes everything into ``options.outdir``."""
    started = time.monotonic()
    reset_peak_memory(source_options.device)  # a process may make many edits
    source_options = replace(source_options, network=find_network(source_options.network))
    source = open_source(source_options)
    request = read_request(source, options, say)
    device = source_options.device
    prior = load_prior(
        options.prior,
        options.controlnet,
        device=device,
        memory=options.prior_memory,
        predictions=quickest_predictions(device, options.settings.bfloat16),
    )
    prior.vocabulary.refuse_unknown(options.prompt, "--prompt")
    make_folder(options.outdir)
    names = [source.labels.names[c] for c in request.classes]
    say(f"editing {', '.join(names)}: {options.prompt}")
    clip = _load_clip(source_options.device) if options.settings.weights.clip else None
    sentences, settings = (options.prompt, options.source_prompt), options.settings
    optimiser = EditOptimiser(
        source.scene, prior, request, *sentences, settings, clip, source_options.acceleration
    )
    prior.free_text_encoder()  # all prompts are embedded
    prepared = time.monotonic()
    result = _optimise(optimiser, options.settings.steps)
    optimised = time.monotonic()
    if result.interrupted:
        say(f"stopped after {len(result.losses)} steps: writing what there is")

    def write_report() -> Report:
        seconds = {
            "prepare": round(prepared - started, 2),
            "optimise": round(optimised - prepared, 2),
            "export": round(time.monotonic() - optimised, 2),
        }
        report = _report(options, result, views, source.labels, seconds, torch.device(device))
        report.save(options.outdir / REPORT)
        return report

    with torch.no_grad():
        after = result.after.scene()
        views = write_pictures(options.outdir, source.scene, after, source.camera)
        save_edit(options.outdir, result, source_options.network)
        if not result.interrupted:  # measurements know by a missing report which edit they make again
            write_report()  # what follows takes long, and who stops it keeps the edit
        if not write_meshes(options.outdir, after, options.settings.export.mesh_resolution):
            say("the edited portrait has no surface in its box: no mesh is written")
        write_video(options.outdir, source.scene, after, options.settings.export.frames)
    return write_report()  # again, with the whole time and memory


def read_request(source: Source, options: EditOptions, say: Say) -> EditRequest:
    """The mask file and the classes, checked against the portrait."""
    rendered = class_map(source.view)[0]
    mask = read_square_mask(options.mask, source.labels, rendered.shape[-1], say)
    if not mask.any():
        raise UserError(f"{options.mask} is background all over: leave something of the portrait")
    requested = mask.to(rendered.device)
    if options.classes:
        classes = tuple(sorted({source.labels.index(name) for name in options.classes}))
        if 0 in classes:
            raise UserError("background cannot be edited as a class: repaint it as what should grow there")
        _check_named(requested, rendered, classes, options, source.labels, say)
    else:
        classes = edited_classes(requested, rendered)
        if len(classes) > _MANY_CLASSES:
            say(
                f"{options.mask} moves {len(classes)} classes of this portrait: if it was painted on another "
                "one's mask, give that one's --seed or --latent; --classes names what to edit"
            )
    return EditRequest(requested, rendered, source.camera, classes)


def _check_named(
    requested: torch.Tensor,
    rendered: torch.Tensor,
    classes: tuple[int, ...],
    options: EditOptions,
    labels: LabelSet,
    say: Say,
) -> None:
    """What can be wrong once classes are named: a mask is not repainted then, or with other classes."""
    seen = in_classes(requested, classes) | in_classes(rendered, classes)
    if options.refuse_absent and not seen.any():
        absent = " or ".join(labels.names[c] for c in classes)
        raise UserError(
            f"--classes: no {absent} in the portrait or in {options.mask}: paint it, or name what is there"
        )
    changed = requested != rendered
    if not changed.any() and _plain(options.prompt) == _plain(options.source_prompt):
        raise UserError(
            "--prompt says what --source-prompt says, and nothing is repainted: there is nothing to change"
        )
    left = changed & ~seen
    if int(left.sum()) > _STRAY * int(changed.sum()):
        # what was painted, and of what was erased what it was
        painted = torch.where(requested == 0, rendered, requested)[left].unique()
        others = ", ".join(labels.names[int(c)] for c in painted)
        say(
            f"{options.mask} also repaints {others}, which --classes does not name: the edit is not about "
            "that and mask_iou does not count it; name it too, or leave --classes out"
        )


def _plain(prompt: str) -> str:
    """A prompt without what makes no difference."""
    return " ".join(prompt.split()).casefold()


@contextmanager
def any_size(path: Path) -> Iterator[None]:
    """Around the reading of a picture: no warning where it is large, one line where it is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except UserError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            raise
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(f"{path} is too large, more than {most} million pixels: make it smaller") from error


def read_square_mask(
    path: Path, labels: LabelSet, side: int, say: Say, *, enlarge: bool = False
) -> torch.Tensor:
    """The classes (side, side) int64 of a square mask file; a smaller one only with ``enlarge``, because an
    edit would take its coarse outlines for repainted ones."""
    with any_size(path):
        if _is_black_and_white(path):
            raise UserError(
                f"{path} is black and white, 1 bit a pixel: paint the classes in their colours "
                "(--export-mask writes a mask that has them) and save it as palette or RGB PNG"
            )
        mask = read_mask(path, labels)
    size = f"{path} is {mask.shape[1]}x{mask.shape[0]}"
    if mask.shape[0] != mask.shape[1]:
        raise UserError(f"{size}; masks are square, {side}x{side} for this network")
    if mask.shape[0] < side and not enlarge:
        raise UserError(
            f"{size}, smaller than the {side}x{side} of this network: get one of that size with --export-mask"
        )
    if mask.shape[0] != side:
        say(f"{size}: resized to {side}x{side} by nearest neighbours")
        mask = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    return torch.from_numpy(mask.astype(np.int64))


def _is_black_and_white(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.mode == "1"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # who reads it to its end says what is wrong


def _load_clip(device: str) -> Embeddings:
    """The bundled CLIP. Its package takes seconds to import, and few edits want it."""
    from training.judges.clip import PortraitClip

    return PortraitClip.load(device=device)


def _optimise(optimiser: EditOptimiser, steps: int) -> EditResult:
    with tqdm(total=steps, desc="edit", unit="step") as bar:

        def show(losses: StepLosses) -> None:
            bar.set_postfix(t=losses.timestep, mask=f"{losses.mask:.3f}", texture=f"{losses.texture:.2f}")
            bar.update()

        return optimiser.run(show)


def _report(
    options: EditOptions,
    result: EditResult,
    views: tuple[Rendering, Rendering],
    labels: LabelSet,
    seconds: dict[str, float],
    device: torch.device,
) -> Report:
    before, after = views
    rendered = class_map(after)[0]
    ious = mask_ious(rendered, result.request, labels)
    outside = outside_region(result.request, options.settings.region)
    return Report(
        command=options.command,
        prompt=options.prompt,
        source_prompt=options.source_prompt,
        objective=options.settings.objective,
        classes=[labels.names[c] for c in result.request.classes],
        steps=len(result.losses),
        interrupted=result.interrupted,
        seconds={**seconds, "total": round(sum(seconds.values()), 2)},
        peak_memory_mb=round(peak_memory_mb(device), 1),
        mask_iou=round(sum(ious.values()) / len(ious), 4),
        mask_iou_by_class={name: round(iou, 4) for name, iou in ious.items()},
        psnr_outside_region=round(psnr(before.image[0], after.image[0], outside), 2),
        outside_share=round(outside.float().mean().item(), 4),
        region_share=round(result.after.region.share, 4),
        versions=versions(),
        settings=config_files.to_dict(options.settings),
        losses=losses_as_json(result.losses),
    )
