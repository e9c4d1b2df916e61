"""datasets/cameras.py: orbit cameras equal the published ones, mirroring is what a mirror does."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from datasets.cameras import Orbit, camera_problems, mirror_camera, misshapen, orbit_camera, read_cameras
from dnnlib.errors import UserError

PIVOT = (0.0, 0.0, 0.2)


def project(label: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points (M, 3) to image coordinates (M, 2) in [0, 1]."""
    pose, intrinsics = label[:16].reshape(4, 4).astype(np.float64), label[16:].reshape(3, 3)
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    return (local @ intrinsics.T)[:, :2] / local[:, 2:]


def test_orbit_cameras_equal_the_published_ones(parity) -> None:
    expected = parity("cameras")
    focal = float(expected["intrinsics"][0, 0])
    for i, (yaw, pitch) in enumerate(zip(expected["yaw"], expected["pitch"], strict=True)):
        label = orbit_camera(yaw, pitch, tuple(expected["pivot"]), float(expected["radius"]), focal)
        np.testing.assert_allclose(label[:16].reshape(4, 4), expected["cam2world"][i], atol=1e-6)
        np.testing.assert_allclose(label[16:].reshape(3, 3), expected["intrinsics"], atol=1e-6)


def test_orbit_camera_by_hand() -> None:
    front = orbit_camera(0.0, 0.0)
    # at (0, 0, 2.7), right is +x, down is -y, forward is -z
    np.testing.assert_allclose(
        front[:16].reshape(4, 4),
        [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 2.7], [0, 0, 0, 1]],
        atol=1e-7,
    )
    np.testing.assert_allclose(project(front, np.zeros((1, 3))), [[0.5, 0.5]], atol=1e-6)
    assert orbit_camera(0.3, 0.0)[3] > 0  # positive yaw: towards +x
    assert orbit_camera(0.0, 0.3)[7] < 0  # positive pitch: downwards
    x, y = project(front, np.array([[0.1, 0.2, 0.0]]))[0]
    assert x > 0.5 > y  # +x is right in the picture, +y is up


def off_centre() -> np.ndarray:
    """A camera that is rolled, off centre and has skew: nothing about it is symmetric."""
    label = orbit_camera(0.4, -0.2, PIVOT)
    c, s = np.cos(0.3), np.sin(0.3)
    pose = label[:16].reshape(4, 4).copy()
    pose[:3, :3] = pose[:3, :3] @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    label[:16] = pose.reshape(-1)
    label[16:] = [4.0, 0.05, 0.45, 0.0, 4.2, 0.52, 0.0, 0.0, 1.0]
    return label


def test_mirrored_camera_sees_the_mirrored_world() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3)) * 0.3
    label = off_centre()
    seen = project(label, points)
    mirrored = project(mirror_camera(label), points * [-1, 1, 1])
    np.testing.assert_allclose(mirrored[:, 0], 1 - seen[:, 0], atol=1e-5)
    np.testing.assert_allclose(mirrored[:, 1], seen[:, 1], atol=1e-5)


def test_mirroring_twice_changes_nothing() -> None:
    labels = np.stack([off_centre(), orbit_camera(0.1, 0.2, PIVOT)])
    np.testing.assert_allclose(mirror_camera(mirror_camera(labels)), labels, atol=1e-7)
    assert np.linalg.det(mirror_camera(labels)[0, :16].reshape(4, 4)[:3, :3]) == pytest.approx(1, abs=1e-5)
    # of an orbit camera it is the one from the other side
    np.testing.assert_allclose(mirror_camera(labels[1]), orbit_camera(-0.1, 0.2, PIVOT), atol=1e-6)


def changed(change) -> np.ndarray:
    label = orbit_camera(0.4, 0.1, PIVOT).astype(np.float64)
    pose, intrinsics = label[:16].reshape(4, 4), label[16:].reshape(3, 3)  # views
    change(pose, intrinsics)
    return label


def opengl(pose, intrinsics) -> None:
    pose[:3, 1:3] *= -1


def world_to_camera(pose, intrinsics) -> None:
    pose[:] = np.linalg.inv(pose)


def transposed(pose, intrinsics) -> None:
    pose[:] = pose.T.copy()


def pixels(pose, intrinsics) -> None:
    intrinsics[:2] *= 512


def scaled(pose, intrinsics) -> None:
    pose[:3, :3] *= 2


def far_away(pose, intrinsics) -> None:
    pose[:3, 3] *= 100


def mirror(pose, intrinsics) -> None:
    pose[:3, 0] *= -1


def upside_down(pose, intrinsics) -> None:
    pose[:3, :2] *= -1


def not_a_number(pose, intrinsics) -> None:
    pose[0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (opengl, "looks away from the subject"),
        (world_to_camera, "world-to-camera"),
        (transposed, "looks transposed"),
        (pixels, "look like pixels"),
        (scaled, "not orthonormal"),
        (mirror, "is a mirror"),
        (far_away, "is 270 from the subject"),
        (upside_down, "upside down"),
        (not_a_number, "holds nan"),
    ],
)
def test_usual_mistakes_are_named(change, message: str) -> None:
    problems = camera_problems(changed(change))
    assert len(problems) == 1 and message in problems[0]


def test_misshapen_cameras_are_found_among_many() -> None:
    """Those whose world has another scale or another up are still cameras."""
    changes = [opengl, transposed, pixels, scaled, mirror, world_to_camera, far_away, upside_down]
    labels = np.stack([changed(change) for change in changes] + [np.zeros(25), off_centre()])
    assert misshapen(labels).tolist() == [True] * 5 + [False] * 3 + [True, False]
    assert misshapen(np.full((1, 25), 3e38)).all()


def test_every_fault_of_the_intrinsics_is_named() -> None:
    assert [problem.split()[1] for problem in camera_problems(np.zeros(25))] == [
        "last",
        "focal",
        "intrinsics",
    ]


def test_good_cameras_have_no_problems() -> None:
    for yaw in np.linspace(-1.5, 1.5, 7):
        for pitch in (-0.7, 0.0, 0.7):
            assert camera_problems(orbit_camera(yaw, pitch, PIVOT)) == []
    assert camera_problems(off_centre()) == []
    assert camera_problems(np.round(off_centre(), 3)) == []  # few digits are fine
    assert "16 numbers" in camera_problems(np.zeros(16))[0]


def test_camera_files() -> None:
    label = orbit_camera(0.1, 0.0, PIVOT)
    orbit, problems = Orbit(PIVOT), []
    listed, captions = read_cameras(
        {"labels": [["a.png", label.tolist()]], "captions": {"a.png": "a face"}}, "f", orbit, problems
    )
    by_name, _ = read_cameras({"a.png": label.tolist()}, "f", orbit, problems)
    angles, _ = read_cameras({"a.png": {"yaw": 0.1, "pitch": 0}}, "f", orbit, problems)
    degrees, _ = read_cameras(
        {"a.png": {"yaw": np.degrees(0.1), "pitch": 0}}, "f", Orbit(PIVOT, degrees=True), problems
    )
    assert problems == [] and captions == {"a.png": "a face"}
    for cameras in (listed, by_name, angles, degrees):
        np.testing.assert_allclose(cameras["a.png"], label, atol=1e-6)


def test_every_wrong_entry_is_reported() -> None:
    problems: list[str] = []
    content = {
        "labels": [
            ["a.png"],
            ["b.png", "x"],
            ["c.png", {"yaw": 30, "pitch": 0}],
            ["d.png", {"yaw": 0, "pich": 0}],
            ["e.png", {"yaw": None, "pitch": 0}],
            ["f.png", {"yaw": 0, "pitch": 0}],
            ["f.png", {"yaw": 0, "pitch": 0}],
            ["g.png", {"yaw": float("nan"), "pitch": 0}],
            ["", {"yaw": 0, "pitch": 0}],
            [5, {"yaw": 0, "pitch": 0}],
            ["h.png", [10**400] * 25],
            ["i.png", {"yaw": 10**400, "pitch": 0}],
        ]
    }
    cameras, _ = read_cameras(content, "c.json", Orbit(PIVOT), problems)
    expected = [
        "label 0",
        "b.png has neither",
        "radians",
        "pich",
        "e.png has yaw None",
        "f.png is given",
        "g.png",
        "c.json: label 8 is for '', which is not the name of a picture",
        "label 9 is for 5",
        "h.png has neither",
        "i.png has yaw 1000",
    ]
    assert len(problems) == len(expected)
    assert all(part in problem for part, problem in zip(expected, problems, strict=True))
    assert [name for name, camera in cameras.items() if camera is not None] == ["f.png"]
    with pytest.raises(UserError, match="c.json is neither"):
        read_cameras([1, 2], "c.json", Orbit(PIVOT), problems)


def test_cameras_without_a_direction_are_reported_without_a_warning() -> None:
    problems: list[str] = []
    front = {"a.png": {"yaw": 0, "pitch": 0}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pivot in ((0.0, 0.0, 2.7), (0.0, 5.0, 2.7)):
            assert read_cameras(front, "f", Orbit(pivot), problems)[0] == {"a.png": None}
        huge, _ = read_cameras({"a.png": [1e300] * 25}, "f", Orbit(PIVOT), problems)
        assert "holds inf" in camera_problems(huge["a.png"])[0]
    assert len(problems) == 2
    assert "a.png would be at its pivot 0 0 2.7" in problems[0] and "--pivot" in problems[1]
