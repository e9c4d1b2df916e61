"""The app without its page: what is painted becomes a mask, results get folders of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.labels import label_set, read_mask
from dnnlib import config
from dnnlib.errors import UserError
from tests.test_edit import SMALL, models  # noqa: F401 - the fixture
from training.editing.inversion import InversionSettings
from training.editing.session import SourceOptions
from training.editing.settings import EditSettings
from training.editing.studio import CANVAS, Studio, canvas, hex_colour, legend, repainted

LABELS = label_set("ffhq-mask")
HAT, SKIN = LABELS.index("hat"), LABELS.index("skin")


def layer(side: int) -> np.ndarray:
    return np.zeros((side, side, 4), dtype=np.uint8)


def test_canvas_shows_each_pixel_as_a_square_of_its_class() -> None:
    mask = np.random.RandomState(0).randint(0, LABELS.count, (48, 48)).astype(np.uint8)
    shown = canvas(mask, LABELS)
    assert len(shown) >= CANVAS and len(shown) % 48 == 0
    step = len(shown) // 48
    assert (shown[step // 2 :: step, step // 2 :: step] == LABELS.colourise(mask)).all()


@pytest.mark.parametrize("side", [512, 500, 64, 40])
def test_what_is_painted_becomes_its_class_and_nothing_else_changes(side: int) -> None:
    """In whatever size the page hands a layer over."""
    mask = np.full((64, 64), SKIN, dtype=np.uint8)
    painted = layer(side)
    painted[: side // 2] = (*LABELS.palette[HAT], 255)
    found = repainted(mask, [painted], LABELS)
    assert (found[:31] == HAT).all() and (found[33:] == SKIN).all()
    assert found.dtype == np.uint8


def test_soft_edges_make_no_new_classes() -> None:
    """A browser blends the edge of a stroke: its colour is a little off, its alpha falls."""
    mask = np.full((64, 64), SKIN, dtype=np.uint8)
    painted = layer(512)
    rows, columns = np.mgrid[:512, :512]
    distance = np.hypot(rows - 255.5, columns - 255.5)
    painted[..., :3] = np.array(LABELS.palette[HAT]) - 5
    painted[..., 3] = np.clip(255 * (120 - distance) / 4, 0, 255)
    found = repainted(mask, [painted], LABELS)
    assert set(np.unique(found)) == {SKIN, HAT}
    # the disc of the alpha's half has a radius of 118 canvas pixels, 8 to a pixel of the mask
    assert (found == HAT).sum() == pytest.approx(np.pi * (118 / 8) ** 2, rel=0.02)


def test_later_layers_lie_above() -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    first, second = layer(8), layer(8)
    first[:] = (*LABELS.palette[HAT], 255)
    second[0] = (*LABELS.palette[SKIN], 255)
    found = repainted(mask, [first, second], LABELS)
    assert (found[0] == SKIN).all() and (found[1:] == HAT).all()
    assert repainted(mask, [layer(8)], LABELS) is mask


def test_legend_names_all_classes() -> None:
    text = legend(LABELS)
    assert all(name in text for name in LABELS.names)
    assert hex_colour((204, 0, 10)) == "#cc000a"


@pytest.fixture
def studio(models: Path, tmp_path: Path) -> Studio:  # noqa: F811
    source = SourceOptions(models / "network.safetensors", device="cpu")
    return Studio(source, str(models / "prior"), None, tmp_path / "out", say=lambda text: None)


def test_two_edits_of_a_sampled_portrait(studio: Studio) -> None:
    sitting = studio.open_seed(3, 0.7, 0.1, 0.0)
    assert sitting.portrait.shape == (16, 16, 3)
    painted = layer(512)
    painted[32:192, 128:384] = (*LABELS.palette[HAT], 255)
    mask = repainted(sitting.mask, [painted], LABELS)
    settings = config.load(EditSettings, {"steps": 2}, SMALL)
    folders = []
    for _ in range(2):
        edited = studio.edit(sitting, mask, "a red hat", "a portrait", settings=settings)
        assert edited.report.classes == ["hat"]
        assert (edited.folder / "after.png").is_file()
        folders.append(edited.folder.name)
    assert folders == ["edit-001", "edit-002"]
    assert (read_mask(studio.outdir / "edit-001-mask.png", LABELS) == mask).all()


def test_refused_edit_leaves_no_folder(studio: Studio) -> None:
    sitting = studio.open_seed(3, 0.7, 0.0, 0.0)
    with pytest.raises(UserError, match="repaint"):
        studio.edit(sitting, sitting.mask, "a red hat", "a portrait")
    assert not (studio.outdir / "edit-001").exists()


def test_picture_is_opened_as_a_scene(studio: Studio, tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "me.png")
    settings = InversionSettings(start_steps=1, fit_steps=2, tune_steps=1)
    sitting = studio.open_picture(tmp_path / "me.png", None, settings)
    folder = studio.outdir / "picture-001"
    assert sitting.source.network == folder / "generator.safetensors"
    shown = np.asarray(Image.open(folder / "portrait.png"), dtype=float)
    # the pose goes through four digits
    assert np.abs(shown - sitting.portrait).max() <= 2
