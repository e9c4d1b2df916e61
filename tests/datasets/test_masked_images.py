"""datasets/masked_images.py: samples are right whatever the layout, and mirrored in every respect."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from datasets.cameras import mirror_camera
from datasets.masked_images import EXTRAS, MaskedImages, collate, infinite_sampler, mirror_sample
from dnnlib.errors import UserError

SIZE = 16


def open_set(path, masks=None, **options) -> MaskedImages:
    return MaskedImages(path, masks, "ffhq-mask", SIZE, **options)


def assert_same(a, b) -> None:
    """Two samples, or two batches, are equal in everything they hold."""
    for name in ("image", "mask", "camera", "index", "normals", "depth", "caption"):
        x, y = getattr(a, name), getattr(b, name)
        assert type(x) is type(y), name
        if x is None or isinstance(x, (str, tuple)):
            assert x == y, name
        else:
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)
            assert np.asarray(x).dtype == np.asarray(y).dtype, name


def test_samples_hold_what_was_written(made) -> None:
    ds = open_set(made.path, extras=EXTRAS)
    assert len(ds) == ds.count == 6 and ds.names == made.names
    for i, sample in enumerate(ds):
        np.testing.assert_array_equal(sample.image, made.images[i].transpose(2, 0, 1))
        np.testing.assert_array_equal(sample.mask, made.masks[i])
        np.testing.assert_array_equal(sample.camera, made.cameras[i])
        assert (sample.image.dtype, sample.mask.dtype, sample.camera.dtype) == (
            np.uint8,
            np.uint8,
            np.float32,
        )
        assert sample.index == i and sample.caption == f"portrait {int(made.names[i][-8:-4])}"
        background = made.masks[i] == 0
        assert sample.normals.shape == (3, SIZE, SIZE) and np.abs(sample.normals).max() <= 1
        assert not sample.normals[:, background].any() and not sample.depth[:, background].any()
        assert 2.25 <= sample.depth[:, ~background].min() <= sample.depth.max() <= 3.3
    np.testing.assert_array_equal(ds.cameras(), made.cameras)
    plain = open_set(made.path)[0]
    assert plain.normals is plain.depth is plain.caption is None


def test_normals_are_decoded_to_view_space(made) -> None:
    normals = np.zeros((SIZE, SIZE, 3), np.uint8)
    normals[...] = (255, 128, 0)  # x right, y none, z away from the viewer
    Image.fromarray(normals).save(made.path / "normals" / made.names[0])
    sample = open_set(made.path, extras=["normals"])[0]
    inside = sample.normals[:, sample.mask > 0]
    np.testing.assert_allclose(inside, np.array([[1], [0], [-1]]).repeat(inside.shape[1], 1), atol=1 / 127)


def test_zip_equals_folder(made) -> None:
    folder, archive = (open_set(path, extras=EXTRAS, mirror=True) for path in (made.path, made.zipped()))
    assert len(folder) == len(archive) == 12
    for i in range(12):
        assert_same(folder[i], archive[i])


def test_parallel_folders_equal_a_set(made, tmp_path) -> None:
    """dataset.json among the images, masks elsewhere with the same stems but another suffix."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    shutil.copytree(made.path / "images", images)
    shutil.copytree(made.path / "masks", masks)
    shutil.copy(made.path / "dataset.json", images)
    for file in masks.rglob("*.png"):
        with Image.open(file) as mask:
            mask.save(file.with_suffix(".bmp"))
        file.unlink()
    expected = open_set(made.path)
    for one, other in ((images, masks), (images, made.zipped("masks"))):
        ds = open_set(one, other)
        assert len(ds) == 6
        for i in range(6):
            assert_same(ds[i], expected[i])


def test_pictures_of_another_format_keep_cameras_and_captions(made, tmp_path) -> None:
    """A set whose PNGs were made lossless WebP, while dataset.json still has the old names."""
    expected = open_set(made.path, extras=EXTRAS)
    smaller = tmp_path / "smaller"
    shutil.copytree(made.path, smaller)
    for file in (smaller / "images").rglob("*.png"):
        with Image.open(file) as image:
            image.save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    for sample, wanted in zip(open_set(smaller, extras=EXTRAS), expected, strict=True):
        assert_same(sample, wanted)


def test_mirroring_changes_image_mask_camera_and_normals(made) -> None:
    ds = open_set(made.path, mirror=True, extras=EXTRAS)
    assert len(ds) == 12 and ds.count == 6
    permutation = ds.labels.mirror_permutation()
    for i in range(6):
        a, b = ds[i], ds[i + 6]
        assert b.index == i + 6 and a.caption == b.caption
        np.testing.assert_array_equal(b.image, a.image[:, :, ::-1])
        np.testing.assert_array_equal(b.mask, permutation[a.mask][:, ::-1])
        np.testing.assert_array_equal(b.camera, mirror_camera(a.camera))
        np.testing.assert_array_equal(b.normals[0], -a.normals[0, :, ::-1])
        np.testing.assert_array_equal(b.normals[1:], a.normals[1:, :, ::-1])
        np.testing.assert_array_equal(b.depth, a.depth[..., ::-1])
    np.testing.assert_array_equal(ds.cameras(), [sample.camera for sample in ds])


def test_mirroring_twice_is_the_identity(made) -> None:
    ds = open_set(made.path, extras=EXTRAS)
    permutation = ds.labels.mirror_permutation()
    for sample in ds:
        twice = mirror_sample(mirror_sample(sample, permutation), permutation)
        np.testing.assert_allclose(twice.camera, sample.camera, atol=1e-7)  # 1 - (1 - cx) rounds
        assert_same(twice, type(sample)(**{**vars(sample), "camera": twice.camera}))


def test_two_workers_equal_none(made) -> None:
    ds = open_set(made.zipped(), mirror=True, extras=EXTRAS)
    ds[0]  # the zip is open before the workers fork: they must not share its file position
    batches = [
        list(DataLoader(ds, batch_size=4, num_workers=workers, collate_fn=collate)) for workers in (0, 2)
    ]
    assert len(batches[0]) == len(batches[1]) == 3
    for a, b in zip(*batches, strict=True):
        assert_same(a, b)
    assert batches[0][0].image.shape == (4, 3, SIZE, SIZE) and batches[0][0].image.dtype == torch.uint8
    assert batches[0][0].index.tolist() == [0, 1, 2, 3] and len(batches[0][0]) == 4


def test_batches_move_as_a_whole(made) -> None:
    batch = collate([open_set(made.path, extras=EXTRAS)[i] for i in range(2)])
    moved = batch.to("meta")
    assert moved.image.device.type == moved.depth.device.type == "meta"
    assert moved.caption == batch.caption


def test_cache_returns_the_same_and_reads_once(made) -> None:
    expected = list(open_set(made.path, mirror=True, extras=EXTRAS))
    ds = open_set(made.path, mirror=True, extras=EXTRAS, cache=True)
    ds.preload()
    shutil.rmtree(made.path)
    for a, b in zip(expected, ds, strict=True):
        assert_same(a, b)


def test_a_set_that_is_being_rendered_is_as_long_as_its_labels(made) -> None:
    extra = made.path / "images" / "00000" / "img9999.png"
    Image.new("RGB", (SIZE, SIZE)).save(extra)
    assert len(open_set(made.path)) == 6


def test_pictures_without_a_camera_are_left_out_with_a_warning(made, tmp_path) -> None:
    shutil.copy(made.path / "dataset.json", made.path / "images")
    Image.new("RGB", (SIZE, SIZE)).save(made.path / "images" / "new.png")
    with pytest.warns(UserWarning, match="1 pictures without a camera"):
        assert len(open_set(made.path / "images", made.path / "masks")) == 6


def rewrite(made, change) -> None:
    path = made.path / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_mistakes_are_one_clear_line(made) -> None:
    cases = [
        (lambda: open_set(made.path / "nowhere"), "there is no folder or zip"),
        (lambda: open_set(made.path / "dataset.json"), "neither a folder nor a complete zip"),
        (lambda: open_set(made.path / "images"), "has no dataset.json"),
        (lambda: open_set(made.path.parent), "dataset.json further down: give .*/set$"),
        (lambda: MaskedImages(made.path, None, "ffhq-mask", 32), "is 16x16, expected 32x32"),
        (lambda: MaskedImages(made.path, None, "catmask-hq", SIZE), "not in the catmask-hq palette"),
        (lambda: MaskedImages(made.path, None, "ffhq", SIZE), "did you mean 'ffhq-mask'"),
    ]
    for action, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)


def flip(camera: list[float]) -> None:
    """OpenGL's axes."""
    for row in range(3):
        camera[4 * row + 1] *= -1
        camera[4 * row + 2] *= -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["labels"].append(["zz.png", c["labels"][0][1]]), "lacks 1 of the 7 files .* zz"),
        (lambda c: c["labels"].append(["", c["labels"][0][1]]), "label 6 is for '', which is not the name"),
        (lambda c: c["labels"].append([None, c["labels"][0][1]]), "label 6 is for None, which is not"),
        (lambda c: c["captions"].update({".": "a man"}), "\"captions\" has a text for '.'"),
        (lambda c: c["labels"][2].__setitem__(1, [0.0] * 25), "img0002.png: the last row .*1 of 6 cameras"),
        (lambda c: flip(c["labels"][4][1]), "img0004.png: the camera looks away .*1 of 6 cameras"),
        (lambda c: c["labels"].append(["zz.png", [1e300] * 25]), "camera of zz.png is not 25 finite"),
        (lambda c: c["labels"].append(["zz.png", [10**400] * 25]), "label 6 is not"),
        (lambda c: c["labels"].append(["zz.png", [0.0] * 16]), "camera of zz.png is not 25"),
        (lambda c: c["labels"].append(["zz.png", [float("nan")] * 25]), "camera of zz.png is not 25 finite"),
        (lambda c: c["labels"].append("zz.png"), "label 6 is not"),
        (lambda c: c["labels"].clear(), "has no cameras"),
        (lambda c: c.update(labels=5), "has no cameras"),
        (lambda c: c.update(captions=["a man"]), '"captions" is not'),
    ],
)
def test_wrong_descriptions(made, change, message: str) -> None:
    rewrite(made, change)
    with warnings.catch_warnings(), pytest.raises(UserError, match=message):
        warnings.simplefilter("error")  # numpy's, with a line of code
        open_set(made.path)


def test_only_depth_of_sixteen_bits_is_read(made) -> None:
    ds = open_set(made.path, extras=["depth"])
    for mode in ("RGB", "L"):
        Image.new(mode, (SIZE, SIZE)).save(made.path / "depth" / made.names[2])
        with pytest.raises(UserError, match=f"depth/{made.names[2]} has colour mode {mode}: .* 16 bits"):
            ds[2]


@pytest.mark.parametrize("kind", ["normals", "depth"])
def test_who_has_normals_and_depth(made, kind: str) -> None:
    shutil.rmtree(made.path / kind)
    with pytest.raises(UserError, match=f"only rendered portraits .*datasets.portraits`. have {kind}$"):
        open_set(made.path, extras=[kind])


def test_cameras_of_worlds_of_another_scale_are_read(made) -> None:
    """What suits no default configuration can suit another."""

    def enlarge(content) -> None:
        for _, camera in content["labels"]:
            for row in range(3):
                camera[4 * row + 3] *= 10

    rewrite(made, enlarge)
    assert len(open_set(made.path)) == 6


def test_masks_must_be_given_unless_they_are_beside_the_images(made) -> None:
    shutil.copy(made.path / "dataset.json", made.path / "images")
    with pytest.raises(UserError, match="give the masks' folder or zip too"):
        open_set(made.path / "images")


def test_a_zipped_folder_instead_of_its_content(made, tmp_path) -> None:
    shutil.make_archive(str(tmp_path / "outer"), "zip", tmp_path, "set")
    with pytest.raises(UserError, match="in set/dataset.json: zip the folder's content"):
        open_set(tmp_path / "outer.zip")


def test_damaged_files_are_named_when_they_are_read(made) -> None:
    ds = open_set(made.path)
    for kind in ("images", "masks"):
        file = made.path / kind / made.names[3]
        whole = file.read_bytes()
        file.write_bytes(whole[:-30])
        with pytest.raises(UserError, match=f"{kind}/{made.names[3]} is damaged or cut short"):
            ds[3]
        file.write_bytes(whole)
    (made.path / "masks" / made.names[3]).unlink()
    with pytest.raises(UserError, match="cannot read"):
        ds[3]


def test_a_truncated_zip_is_named(made) -> None:
    archive = made.zipped()
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match="nor a complete zip"):
        open_set(archive)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 3))
def test_every_sample_once_per_epoch(n: int, world: int, seed: int) -> None:
    """n draws by each of `world` processes are `world` epochs, and hold every sample `world` times."""
    drawn = [list(islice(infinite_sampler(n, rank, world, seed), n)) for rank in range(world)]
    assert Counter(i for share in drawn for i in share) == {i: world for i in range(n)}
    # dealt in turn: side by side they are what one process draws
    together = [share[k] for k in range(n) for share in drawn]
    assert together == list(islice(infinite_sampler(n, 0, 1, seed), n * world))


def test_epochs_and_seeds_differ() -> None:
    first, second = np.array(list(islice(infinite_sampler(100), 200))).reshape(2, 100)
    assert (np.sort(first) == np.sort(second)).all() and (first != second).any()
    assert list(islice(infinite_sampler(100, seed=1), 100)) != first.tolist()


def test_a_resumed_sampler_goes_on() -> None:
    whole = list(islice(infinite_sampler(7, seed=3), 40))
    assert list(islice(infinite_sampler(7, seed=3, start=16), 24)) == whole[16:]
    shares = [list(islice(infinite_sampler(7, rank, 2, 3, start=16), 12)) for rank in range(2)]
    assert [i for pair in zip(*shares, strict=True) for i in pair] == whole[16:]
