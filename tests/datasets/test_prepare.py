"""datasets/prepare.py: what it writes can be trained on, and it names everything that is wrong."""

from __future__ import annotations

import errno
import json
import os
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from datasets.cameras import orbit_camera
from datasets.masked_images import MaskedImages
from datasets.prepare import _sink, main
from dnnlib.errors import UserError

SIZE = 16


@pytest.fixture
def cameras(made, tmp_path):
    """The cameras of the set as yaw and pitch."""
    angles = {name: {"yaw": 0.1 * i, "pitch": 0.0} for i, name in enumerate(made.names)}
    path = tmp_path / "cameras.json"
    path.write_text(json.dumps(angles))
    return path


def run(made, cameras, *options, code: int = 0) -> str:
    arguments = ["--images", made.path / "images", "--masks", made.path / "masks", "--cameras", cameras]
    result = CliRunner().invoke(
        main, [str(a) for a in (*arguments, "--size", SIZE, "--workers", 2, *options)]
    )
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_what_is_written_can_be_read(made, cameras, tmp_path, name: str) -> None:
    out = tmp_path / name
    output = run(made, cameras, "--out", out)
    assert f"train on it with `--data {out}`" in output
    ds = MaskedImages(out, None, "ffhq-mask", SIZE)
    assert ds.names == made.names
    for i, sample in enumerate(ds):
        np.testing.assert_array_equal(sample.image, made.images[i].transpose(2, 0, 1))
        np.testing.assert_array_equal(sample.mask, made.masks[i])
        np.testing.assert_allclose(sample.camera, orbit_camera(0.1 * i, 0.0, (0.0, 0.0, 0.2)), atol=1e-6)
    if name.endswith(".zip"):
        with zipfile.ZipFile(out) as archive:
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_labels_captions_and_formats_are_kept(made, tmp_path) -> None:
    for file in (made.path / "images").rglob("*.png"):
        with Image.open(file) as image:
            image.save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    out = tmp_path / "out"
    run(made, made.path / "dataset.json", "--out", out)
    ds = MaskedImages(out, None, "ffhq-mask", SIZE, extras=["caption"])
    np.testing.assert_array_equal(ds.cameras(), made.cameras)
    np.testing.assert_array_equal(ds[0].image, made.images[0].transpose(2, 0, 1))
    assert ds[0].caption == "portrait 0"


def test_resizing_makes_no_new_classes(made, cameras, tmp_path) -> None:
    out = tmp_path / "out"
    run(made, cameras, "--out", out, "--size", 8)
    ds = MaskedImages(out, None, "ffhq-mask", 8)
    for i, sample in enumerate(ds):
        # the nearest of 2 x 2 pixels is one of them
        blocks = made.masks[i].reshape(8, 2, 8, 2).transpose(0, 2, 1, 3).reshape(8, 8, 4)
        assert (blocks == sample.mask[..., None]).any(-1).all()


def test_every_problem_is_reported(made, cameras, tmp_path) -> None:
    images, masks = made.path / "images", made.path / "masks"
    names = made.names
    (images / names[0]).write_bytes((images / names[0]).read_bytes()[:-40])  # cut short
    (masks / names[1]).unlink()
    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(masks / names[2])  # unknown colour
    Image.new("RGB", (SIZE, SIZE - 4)).save(images / names[3])  # not square
    content = json.loads(cameras.read_text())
    content[names[3]] = [1.0] * 25
    content[names[4]] = {"yaw": 45, "pitch": 0}
    content["stranger.png"] = {"yaw": 0, "pitch": 0}
    cameras.write_text(json.dumps(content))
    Image.new("L", (SIZE, SIZE)).save(masks / "left.png")

    output = run(made, cameras, "--out", tmp_path / "out", code=2)
    for part in (
        f"{images / names[0]} is damaged or cut short",
        f"{images / names[1]}: there is no mask",
        f"{masks / names[2]} has the colour 1,2,3",
        f"{images / names[3]}: is 16x12, not square",
        f"{images / names[3]}: the last row of the camera matrix",
        f"{images / names[3]}: the intrinsics are not",
        f"{names[4]} has yaw 45",
        "camera stranger: there is no picture",
        f"{masks / 'left.png'}: there is no picture",
        "1 pictures are ready to use, 9 problems found",
        "Error: nothing was written",
    ):
        assert part in output, part
    assert not (tmp_path / "out").exists()

    run(made, cameras, "--out", tmp_path / "out", "--skip-bad")
    assert MaskedImages(tmp_path / "out", None, "ffhq-mask", SIZE).names == [names[5]]


def test_without_out_it_only_checks(made, cameras, tmp_path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "6 pictures are ready to use, 0 problems found" in run(made, cameras)
    assert sorted(tmp_path.rglob("*")) == before


def test_pictures_that_would_mislead(made, cameras) -> None:
    images, masks = made.path / "images", made.path / "masks"
    Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 99)).save(images / made.names[0])
    Image.new("I;16", (SIZE, SIZE)).save(images / made.names[1])
    Image.new("L", (SIZE, SIZE)).save(masks / made.names[2])
    Image.new("RGB", (SIZE, SIZE)).save((images / made.names[3]).with_suffix(".jpg"))
    output = run(made, cameras, code=2)
    for part in (
        "has transparent pixels",
        "colour mode I;16",
        "is background all over",
        "has the same stem as",
    ):
        assert part in output, part


def test_degrees(made, cameras, tmp_path) -> None:
    cameras.write_text(json.dumps({name: {"yaw": 45, "pitch": -10} for name in made.names}))
    assert "or use --degrees" in run(made, cameras, code=2)
    run(made, cameras, "--degrees", "--out", tmp_path / "out", "--radius", 3, "--pivot", 0, 0, 0.1)
    expected = orbit_camera(np.pi / 4, -np.pi / 18, (0.0, 0.0, 0.1), 3.0)
    ds = MaskedImages(tmp_path / "out", None, "ffhq-mask", SIZE)
    np.testing.assert_allclose(ds.cameras()[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "ffhq"], "did you mean 'ffhq-mask'"),
        (["--masks", "nowhere"], "there is no folder or zip nowhere"),
        (["--cameras", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_wrong_options(made, cameras, options: list[str], message: str) -> None:
    output = run(made, cameras, *options, code=2)
    assert message in output and output.startswith("Error: ")


def test_an_existing_folder_is_left_alone(made, cameras) -> None:
    assert "exists already" in run(made, cameras, "--out", made.path, code=2)
    assert (made.path / "dataset.json").is_file()


def test_pictures_and_masks_are_checked_whatever_else_is_missing(made, cameras, tmp_path) -> None:
    """Every problem shows in one run, also of pictures without a camera or without a mask."""
    images, masks, names = made.path / "images", made.path / "masks", made.names
    content = json.loads(cameras.read_text())
    content[names[0]] = {"yaw": 45, "pitch": 0}
    content[names[1]] = "none"
    del content[names[2]]
    content[""] = {"yaw": 0, "pitch": 0}
    cameras.write_text(json.dumps(content))
    Image.new("L", (SIZE, SIZE), 255).save(masks / names[0])
    for name in (names[1], names[3]):
        Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 99)).save(images / name)
    Image.new("L", (SIZE, SIZE), 254).save(masks / names[2])
    (masks / names[3]).unlink()
    output = run(made, cameras, code=2)
    for part in (
        f"{names[0]} has yaw 45",
        f"{masks / names[0]} has index 255",
        f"{names[1]} has neither 25 numbers",
        f"{images / names[1]}: has transparent pixels",
        f"{images / names[2]}: there is no camera",
        f"{masks / names[2]} has index 254",
        f"{images / names[3]}: there is no mask",
        f"{images / names[3]}: has transparent pixels",
        f"{cameras}: label 5 is for '', which is not the name of a picture",
        "2 pictures are ready to use, 9 problems found",
    ):
        assert part in output, part
    run(made, cameras, "--skip-bad", "--out", tmp_path / "out")
    assert MaskedImages(tmp_path / "out", None, "ffhq-mask", SIZE).names == names[4:]


@pytest.mark.parametrize("name", ["file/x", "file/x.zip", "file/deeper/x", "empty.zip"])
def test_where_nothing_can_be_written_is_said_first(made, cameras, tmp_path, name: str) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    (tmp_path / "empty.zip").mkdir()
    before = sorted(tmp_path.rglob("*"))
    output = run(made, cameras, "--out", tmp_path / name, code=2)
    assert str(tmp_path / name) in output and output.startswith("Error: ")
    assert len(output.splitlines()) == 1 and f".{os.getpid()}" not in output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["", ".."])
def test_the_folder_to_write_needs_a_name(made, cameras, tmp_path, monkeypatch, name: str) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "deeper")
    assert "name of a new folder" in run(made, cameras, "--out", name or ".", code=2)


def test_checking_where_to_write_leaves_nothing_behind(made, cameras, tmp_path) -> None:
    (made.path / "masks" / made.names[0]).unlink()
    before = sorted(tmp_path.rglob("*"))
    run(made, cameras, "--out", tmp_path / "new" / "newer" / "out", code=2)
    assert sorted(tmp_path.rglob("*")) == before
    run(made, cameras, "--out", tmp_path / "new" / "newer" / "out", "--skip-bad")
    assert len(MaskedImages(tmp_path / "new" / "newer" / "out", None, "ffhq-mask", SIZE)) == 5


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_full_disk_is_said_with_the_users_path(tmp_path, name: str) -> None:
    with (
        pytest.raises(UserError, match=f"cannot write {tmp_path / name}: No space left"),
        _sink(tmp_path / name),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / ".out.1" / "images"))
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_give_no_camera(made, cameras) -> None:
    cameras.write_text(json.dumps({name: {"yaw": 0, "pitch": 0} for name in made.names}))
    output = run(made, cameras, "--pivot", 0, 0, 2.7, code=2)
    assert "would be at its pivot 0 0 2.7" in output and "Warning" not in output
    for option in ("--radius", "--focal"):
        assert "is not a number to work with" in run(made, cameras, option, "nan", code=2)
