"""Camera labels as data sets hold them: making, reading, checking and mirroring, in numpy.

A label is 25 floats: the 4 x 4 OpenCV camera-to-world matrix, row-major (camera x right, y down, z forward;
world y up), then the 3 x 3 intrinsics divided by the image size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.storage import is_file_name
from dnnlib.errors import UserError

SIZE = 25  # floats in a label
RADIUS = 2.7  # default distance of orbit cameras from the world's origin, world units
FOCAL = 4.2647  # default focal length divided by the image size

Cameras = dict[str, np.ndarray | None]  # by picture name; None where the file holds something else


@dataclass(frozen=True)
class Orbit:
    """How cameras that are given as yaw and pitch become labels."""

    pivot: tuple[float, float, float]  # point they look at, world units
    radius: float = RADIUS  # distance from the world's origin
    focal: float = FOCAL  # focal length divided by the image size
    degrees: bool = False  # angles are in degrees, not radians


def orbit_camera(
    yaw: float,
    pitch: float,
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0),
    radius: float = RADIUS,
    focal: float = FOCAL,
) -> np.ndarray:
    """Label (25,) float32 of a camera at ``radius`` from the world's origin that looks at ``pivot``.

    ``yaw`` and ``pitch`` are offsets in radians from the frontal view along +z. Positive yaw moves the camera
    towards +x, positive pitch downwards: its height is linear in pitch, radius * -2/pi * pitch, as the
    published cameras have it.
    """
    height = -2.0 / math.pi * pitch
    ring = math.sqrt(max(0.0, 1.0 - height * height))
    origin = radius * np.array([ring * math.sin(yaw), height, ring * math.cos(yaw)])
    forward = np.asarray(pivot, dtype=np.float64) - origin
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, origin
    intrinsics = np.array([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
    return np.concatenate([pose.reshape(-1), intrinsics.reshape(-1)]).astype(np.float32)


def mirror_camera(label: np.ndarray) -> np.ndarray:
    """Label (..., 25) of the camera that sees the mirrored world as the mirror image of the picture.

    The world is mirrored about x = 0 and so is the camera's own x axis, F = diag(-1, 1, 1, 1): the pose
    becomes F E F, again a rotation. The principal point moves to 1 - cx, and the skew changes sign.
    """
    mirrored = np.array(label)
    flip = np.array([-1.0, 1.0, 1.0, 1.0], dtype=mirrored.dtype)
    signs = (flip[:, None] * flip[None, :]).reshape(-1)
    mirrored[..., :16] *= signs
    mirrored[..., 17] *= -1.0  # skew
    mirrored[..., 18] = 1.0 - mirrored[..., 18]  # cx
    return mirrored


def read_cameras(
    content: Any, where: str, orbit: Orbit, problems: list[str]
) -> tuple[Cameras, dict[str, str]]:
    """Cameras (25,) float32 and captions by name, from the JSON ``content`` of the file ``where``.

    Forms: {"labels": [[name, [25 floats]], ...], "captions": {name: text}}, {name: {"yaw": a, "pitch": b}} or
    {name: [25 floats]}. Malformed entries become None and a line of ``problems``.
    """
    captions: dict[str, str] = {}
    if isinstance(content, dict) and "labels" in content:
        entries = content["labels"] or []
        captions = read_captions(content, where)
    elif isinstance(content, dict):
        entries = list(content.items())
    else:
        raise UserError(
            f'{where} is neither {{"labels": [...]}} nor {{"name.png": {{"yaw": 0, "pitch": 0}}}}'
        )
    if not isinstance(entries, list):
        raise UserError(f'{where}: "labels" is not a list of ["name.png", [25 floats]]')
    cameras: Cameras = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            problems.append(f'{where}: label {number} is not ["name.png", [25 floats]]')
            continue
        if not is_file_name(entry[0]):
            problems.append(
                f"{where}: label {number} is for {entry[0]!r}, which is not the name of a picture"
            )
            continue
        name = entry[0]
        if name in cameras:
            problems.append(f"{where}: {name} is given twice")
        try:
            cameras[name] = _camera(entry[1], orbit)
        except UserError as error:
            cameras[name] = None
            problems.append(f"{where}: {name} {error}")
    return cameras, captions


def read_captions(description: dict[str, Any], where: str) -> dict[str, str]:
    """Captions by name, of the content of the dataset.json ``where``; it may have none."""
    captions = description.get("captions") or {}
    if not isinstance(captions, dict):
        raise UserError(f'{where}: "captions" is not {{"name.png": "text", ...}}')
    for name in captions:
        if not is_file_name(name):
            raise UserError(
                f'{where}: "captions" has a text for {name!r}: give the name of its picture, or delete it'
            )
    return {name: str(text) for name, text in captions.items()}


def as_label(values: Any) -> np.ndarray:
    """``values`` as float32; what that cannot hold becomes infinite, without a warning.

    Raises ValueError where they are not numbers.
    """
    try:
        with np.errstate(over="ignore"):
            return np.array(values, dtype=np.float32)
    except (TypeError, OverflowError) as error:  # an integer of 400 digits is not even a float
        raise ValueError(str(error)) from error


def camera_problems(label: np.ndarray) -> list[str]:
    """What is wrong with a label (25,), each problem in one line; empty when it can be used."""
    label = np.asarray(label, dtype=np.float64)
    if label.shape != (SIZE,):
        return [
            f"the camera has {label.size} numbers, expected 25 (4x4 camera-to-world, then 3x3 intrinsics)"
        ]
    if not np.isfinite(label).all():
        return [f"the camera holds {label[~np.isfinite(label)][0]}: its numbers must be finite, below 3e38"]
    pose = [*_texts(label, _pose_faults), *_texts(label, _placement_faults)]
    # of a pose's faults the later ones follow from the first
    return pose[:1] + _texts(label, _intrinsics_faults)


def misshapen(labels: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the finite labels (N, 25) are no cameras, whatever the scale of their world is.

    The others can still have :func:`camera_problems`: a distance that suits one configuration may not suit
    another.
    """
    labels = np.asarray(labels, dtype=np.float64)
    wrong = np.zeros(len(labels), dtype=bool)
    for faults in (_pose_faults, _intrinsics_faults):
        for found, _ in faults(labels):
            wrong |= found
    return wrong


# of labels (N, 25) float64: which of them have it (N,) bool, and the line that says so of one of those (25,)
Fault = tuple[np.ndarray, Callable[[np.ndarray], str]]


def _texts(label: np.ndarray, faults: Callable[[np.ndarray], Iterator[Fault]]) -> list[str]:
    return [text(label) for wrong, text in faults(label[None]) if wrong[0]]


def _pose(labels: np.ndarray) -> np.ndarray:
    return labels[..., :16].reshape(*labels.shape[:-1], 4, 4)


def _distance(labels: np.ndarray) -> np.ndarray:
    """(N,) distance of the cameras from the subject at the origin."""
    return np.linalg.norm(_pose(labels)[..., :3, 3], axis=-1)


def _facing(labels: np.ndarray) -> np.ndarray:
    """(N,) cosine between the viewing direction and the direction to the subject at the origin."""
    pose = _pose(labels)
    along = -(pose[..., :3, 2] * pose[..., :3, 3]).sum(-1)
    return along / np.maximum(_distance(labels), 1e-9)


def _miss(labels: np.ndarray) -> np.ndarray:
    """(N,) distance of the optical axes from the origin; the subject fills a box of side 1."""
    return _distance(labels) * np.sqrt(np.maximum(0.0, 1.0 - _facing(labels) ** 2))


def _pose_faults(labels: np.ndarray) -> Iterator[Fault]:
    pose = _pose(labels)
    corner = np.array([0.0, 0.0, 0.0, 1.0])

    def bottom(label: np.ndarray) -> str:
        transposed = np.abs(_pose(label)[:, 3] - corner).max() < 1e-4
        hint = "it looks transposed" if transposed else "the matrix is row-major camera-to-world"
        return f"the last row of the camera matrix is not 0 0 0 1: {hint}"

    yield np.abs(pose[:, 3] - corner).max(-1) > 1e-4, bottom
    rotation = pose[:, :3, :3]
    # 1e-2: labels written with few digits are still fine
    skewed = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((-1, -2)) > 1e-2
    yield skewed, lambda _: "the camera's rotation is not orthonormal"
    yield (
        np.linalg.det(rotation) < 0,
        lambda _: "the camera's rotation is a mirror (determinant -1): one axis points the wrong way",
    )
    # 1: from outside the box that the subject fills nothing of it is seen so
    yield (
        (_distance(labels) > 1) & (_facing(labels) < 0),
        lambda _: (
            "the camera looks away from the subject: OpenCV cameras look along +z, OpenGL ones along -z"
        ),
    )


def _placement_faults(labels: np.ndarray) -> Iterator[Fault]:
    distance = _distance(labels)
    yield (
        ~((distance > 1) & (distance < 10)),  # rays run from 2.25 to 3.3 by default
        lambda label: (
            f"the camera is {_distance(label):.3g} from the subject at the origin; "
            "scale the world so that it is 2.7"
        ),
    )
    yield (
        _pose(labels)[:, 1, 1] > 0,  # camera y points down, world y up
        lambda _: "the camera is upside down (OpenCV cameras have y down, the world has y up)",
    )
    yield (
        _miss(labels) > 0.6,
        lambda label: (
            f"the camera looks past the subject, by {_miss(label):.2g}: is the matrix world-to-camera?"
        ),
    )


def _intrinsics_faults(labels: np.ndarray) -> Iterator[Fault]:
    fx, skew, cx, below, fy, cy = labels[:, 16:22].T
    yield (
        (np.maximum(fx, fy) > 100) | (np.maximum(abs(cx), abs(cy)) > 2),
        lambda label: (
            f"the intrinsics (focal {label[16]:g}, centre {label[18]:g}) look like pixels: "
            "divide them by the image size"
        ),
    )
    yield (
        np.minimum(fx, fy) <= 0,
        lambda label: f"the focal length is {min(label[16], label[20]):g}, it must be positive",
    )
    yield (
        (np.abs(labels[:, 22:] - [0, 0, 1]).max(-1) > 1e-4) | (abs(below) > 1e-4),
        lambda _: "the intrinsics are not [[fx, s, cx], [0, fy, cy], [0, 0, 1]], row-major",
    )


def _camera(value: Any, orbit: Orbit) -> np.ndarray:
    """A label from a list of numbers or from {'yaw', 'pitch'}; what it holds is not checked."""
    if not isinstance(value, dict):
        try:
            return as_label(value).reshape(-1)
        except ValueError as error:
            raise UserError("has neither 25 numbers nor yaw and pitch") from error
    if set(value) != {"yaw", "pitch"}:
        raise UserError(f"has the keys {', '.join(map(str, value)) or 'none'}; expected yaw and pitch")
    try:
        yaw, pitch = float(value["yaw"]), float(value["pitch"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"has yaw {value['yaw']!r}, pitch {value['pitch']!r}: both must be numbers"
        ) from error
    if orbit.degrees:
        yaw, pitch = math.radians(yaw), math.radians(pitch)
    if not (abs(yaw) <= math.pi and abs(pitch) < math.pi / 2):
        raise UserError(
            f"has yaw {value['yaw']}, pitch {value['pitch']}, out of range: give radians, or use --degrees"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        label = orbit_camera(yaw, pitch, orbit.pivot, orbit.radius, orbit.focal)
    if not np.isfinite(label).all():
        pivot = " ".join(f"{x:g}" for x in orbit.pivot)
        raise UserError(
            f"would be at its pivot {pivot}, or straight above or below it: give another --pivot or --radius"
        )
    return label
