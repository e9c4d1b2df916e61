"""What ``app.py`` does, apart from its page: opens portraits, takes repainted masks, runs edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np

from datasets.labels import LabelSet, write_mask
from dnnlib.files import make_folder
from training.editing.inversion import InversionSettings
from training.editing.photo import GENERATOR, LATENT, PhotoOptions, run_inversion
from training.editing.report import Report
from training.editing.session import EditOptions, SourceOptions, open_source, run_edit
from training.editing.settings import EditSettings
from training.pictures import to_uint8
from training.scene import class_map

Say = Callable[[str], None]

CANVAS = 512  # side of the picture that is painted on: masks may be small
_OPAQUE = 128  # alpha from which a pixel counts as painted: a brush's edge is soft


@dataclass(frozen=True)
class Sitting:
    """A portrait that is open, as it is seen from one camera."""

    source: SourceOptions
    labels: LabelSet
    portrait: np.ndarray  # (H, H, 3) uint8
    mask: np.ndarray  # (H, H) uint8 classes


@dataclass(frozen=True)
class Edited:
    """An edit's files and scores."""

    folder: Path
    report: Report


class Studio:
    """Opens and edits portraits of one generator with one prior; results go to numbered folders."""

    def __init__(
        self, source: SourceOptions, prior: str, controlnet: str | None, outdir: Path, say: Say
    ) -> None:
        self.source = source
        self.prior = prior
        self.controlnet = controlnet
        self.outdir = outdir
        self.say = say

    def open_seed(self, seed: int, truncation: float, yaw: float, pitch: float) -> Sitting:
        """A sampled portrait."""
        return _sitting(replace(self.source, seed=seed, truncation=truncation, yaw=yaw, pitch=pitch))

    def open_picture(
        self, image: Path, mask: Path | None, settings: InversionSettings | None = None
    ) -> Sitting:
        """A picture of one's own, inverted; without ``mask`` the bundled reader makes one."""
        folder = self._folder("picture")
        options = PhotoOptions(
            network=self.source.network,
            image=image,
            mask=mask,
            outdir=folder,
            pose=None,
            settings=settings or InversionSettings(),
            device=self.source.device,
        )
        report = run_inversion(options, self.say)
        tuned = folder / GENERATOR
        network = tuned if tuned.exists() else self.source.network
        pose = {"yaw": report.yaw, "pitch": report.pitch}
        return _sitting(replace(self.source, network=network, latent=folder / LATENT, **pose))

    def edit(
        self,
        sitting: Sitting,
        mask: np.ndarray,
        prompt: str,
        source_prompt: str,
        classes: Sequence[str] = (),
        settings: EditSettings | None = None,
    ) -> Edited:
        """Edits the open portrait. ``mask`` (H, H) has the requested classes; ``classes`` says what to edit
        where their outline stays."""
        folder = self._folder("edit")
        path = self.outdir / f"{folder.name}-mask.png"
        make_folder(self.outdir)
        write_mask(path, mask, sitting.labels)  # beside the folder, which an edit makes once all is well
        options = EditOptions(
            mask=path,
            prompt=prompt,
            outdir=folder,
            prior=self.prior,
            controlnet=self.controlnet,
            source_prompt=source_prompt,
            classes=tuple(classes),
            settings=settings or EditSettings(),
            command="app.py",
        )
        return Edited(folder, run_edit(sitting.source, options, self.say))

    def _folder(self, kind: str) -> Path:
        """A new one: nothing that was made is written over."""
        folders = (self.outdir / f"{kind}-{number:03d}" for number in count(1))
        return next(folder for folder in folders if not folder.exists())


def _sitting(source: SourceOptions) -> Sitting:
    opened = open_source(source)
    mask = class_map(opened.view)[0].byte().cpu().numpy()
    return Sitting(source, opened.labels, to_uint8(opened.view.image[0]), mask)


def canvas(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Classes (H, H) to the picture (S, S, 3) uint8 that is painted on: the palette's colours, and H divides
    its side S, which is at least ``CANVAS``."""
    scale = -(-CANVAS // len(mask))
    return labels.colourise(mask).repeat(scale, axis=0).repeat(scale, axis=1)


def repainted(mask: np.ndarray, layers: Sequence[np.ndarray], labels: LabelSet) -> np.ndarray:
    """Classes (H, H) after layers (S, S, 4) uint8 RGBA, in the order in which they lie on each other.

    Painted pixels take the palette's nearest colour, in whatever size the page hands layers over; a class of
    the mask takes over where it covers most of its pixel.
    """
    for layer in layers:
        mask = _painted_over(mask, layer, labels)
    return mask


def _painted_over(mask: np.ndarray, layer: np.ndarray, labels: LabelSet) -> np.ndarray:
    if not (layer[..., 3] >= _OPAQUE).any():
        return mask
    side = len(mask)
    palette = np.array(labels.palette, dtype=np.int32)
    fine = -(-max(layer.shape[:2]) // side) * side  # as many pixels of the layer to each of the mask
    rows, columns = ((np.arange(fine) * length) // fine for length in layer.shape[:2])
    layer = layer[rows][:, columns]
    below = mask.repeat(fine // side, axis=0).repeat(fine // side, axis=1)
    painted = layer[..., 3] >= _OPAQUE
    distance = np.square(layer[painted][:, None, :3].astype(np.int32) - palette).sum(-1)
    above = below.copy()
    above[painted] = distance.argmin(1)
    cells = above.reshape(side, fine // side, side, fine // side)
    votes = np.stack([(cells == index).sum((1, 3)) for index in range(labels.count)])
    return votes.argmax(0).astype(np.uint8)


def legend(labels: LabelSet) -> str:
    """The palette as HTML: which colour stands for which class."""
    chip = (
        '<span style="display:inline-block;margin:2px;padding:2px 8px;border-radius:4px;'
        'background:{colour};color:{text}">{name}</span>'
    )
    return "".join(
        chip.format(colour=hex_colour(colour), text="#fff" if sum(colour) < 384 else "#000", name=name)
        for name, colour in zip(labels.names, labels.palette, strict=True)
    )


def hex_colour(colour: Sequence[int]) -> str:
    """(204, 0, 0) to '#cc0000'."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)
