"""Triangle meshes as plain arrays, and the few operations that the portraits need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Part:
    """One shape of a scene: a mesh with a class and a colour.

    vertices (V, 3), faces (F, 3) int, colours (V, 3) linear RGB in [0, 1], normals (V, 3) or None (then
    computed), label: name of its class in `ffhq-mask`, specular: strength of its highlight in [0, 1].
    """

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    label: str
    normals: np.ndarray | None = None
    specular: float = 0.0
    roughness: float = 0.4

    def __post_init__(self) -> None:
        colours = np.asarray(self.colours, dtype=float)
        self.colours = np.broadcast_to(colours, self.vertices.shape) if colours.ndim == 1 else colours


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3)."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.stack(
        [
            sum(np.bincount(faces[:, i], face_normals[:, k], len(vertices)) for i in range(3))
            for k in range(3)
        ],
        axis=1,
    )
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def compact(faces: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Drop vertices that no face uses: renumbered faces, then each array's used rows."""
    used, renumbered = np.unique(faces, return_inverse=True)
    return (renumbered.reshape(faces.shape), *(array[used] for array in arrays))


def clip(faces: np.ndarray, value: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Keep the part of a mesh where `value` (V,) is positive, cutting triangles along its zero line.

    Returns the new faces and each per-vertex array, compacted.
    """
    inside = value[faces] > 0
    count = inside.sum(1)
    out = [faces[count == 3]]
    extra: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (from, to, weight) of cut points
    start = len(value)

    def cut(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nonlocal start
        weight = value[a] / (value[a] - value[b])
        extra.append((a, b, weight))
        index = np.arange(start, start + len(a))
        start += len(a)
        return index

    for corners, odd in ((1, True), (2, False)):
        some = faces[count == corners]
        mask = inside[count == corners]
        first = np.argmax(mask == odd, axis=1)  # the corner that is alone on its side
        rows = np.arange(len(some))
        a, b, c = (some[rows, (first + k) % 3] for k in range(3))
        if odd:
            out.append(np.stack([a, cut(a, b), cut(a, c)], axis=1))
        else:
            on_b, on_c = cut(b, a), cut(c, a)
            out.append(np.stack([on_b, b, c], axis=1))
            out.append(np.stack([on_b, c, on_c], axis=1))
    new_faces = np.concatenate(out)
    grown = []
    for array in arrays:
        pieces = [array]
        for a, b, weight in extra:
            w = weight.reshape(-1, *([1] * (array.ndim - 1)))
            pieces.append(array[a] * (1 - w) + array[b] * w)
        grown.append(np.concatenate(pieces))
    return compact(new_faces, *grown)


def tubes(
    paths: np.ndarray, radii: np.ndarray, sides: int = 3, closed: bool = False
) -> tuple[np.ndarray, ...]:
    """Tubes round polylines: paths (N, P, 3), radii broadcastable to (N, P) -> vertices, faces, normals."""
    count, points = paths.shape[:2]
    if closed:
        tangent = np.roll(paths, -1, axis=1) - np.roll(paths, 1, axis=1)
    else:
        tangent = np.gradient(paths, axis=1)
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-9)
    reference = np.where(np.abs(tangent[..., 2:3]) > 0.9, [1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    u = np.cross(tangent, reference)
    u /= np.maximum(np.linalg.norm(u, axis=-1, keepdims=True), 1e-9)
    # Carry the frame along the path so that a tube does not twist where the reference switches.
    for i in range(1, points):
        moved = u[:, i - 1] - tangent[:, i] * np.sum(u[:, i - 1] * tangent[:, i], -1, keepdims=True)
        u[:, i] = moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-9)
    v = np.cross(tangent, u)
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = u[:, :, None] * np.cos(angle)[:, None] + v[:, :, None] * np.sin(angle)[:, None]  # (N, P, S, 3)
    radius = np.broadcast_to(radii, (count, points))[..., None, None]
    vertices = paths[:, :, None] + ring * radius
    segments = points if closed else points - 1
    i = np.arange(segments)[:, None]
    s = np.arange(sides)[None]
    j, t = (i + 1) % points, (s + 1) % sides
    i, j, s, t = np.broadcast_arrays(i, j, s, t)
    one = np.concatenate(
        [
            np.stack([i * sides + s, i * sides + t, j * sides + t], -1).reshape(-1, 3),
            np.stack([i * sides + s, j * sides + t, j * sides + s], -1).reshape(-1, 3),
        ]
    )
    faces = (one[None] + (np.arange(count) * points * sides)[:, None, None]).reshape(-1, 3)
    return vertices.reshape(-1, 3), faces, ring.reshape(-1, 3)


def ribbons(paths: np.ndarray, radii: np.ndarray, towards: np.ndarray) -> tuple[np.ndarray, ...]:
    """Flat strips along polylines (N, P, 3) that face `towards` (3,) -> vertices, faces, normals.

    The normals are those of round strands; from that side the strips look like tubes with three times as
    many triangles.
    """
    count, points = paths.shape[:2]
    tangent = np.gradient(paths, axis=1)
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=-1, keepdims=True), 1e-9)
    across = np.cross(tangent, towards)
    across = across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-3)
    outwards = np.cross(across, tangent)
    width = across * np.broadcast_to(radii, (count, points))[..., None]
    vertices = np.stack([paths - width, paths + width], axis=2)  # (N, P, 2, 3)
    normals = np.stack([0.6 * outwards - 0.8 * across, 0.6 * outwards + 0.8 * across], axis=2)
    i = 2 * np.arange(points - 1)
    one = np.concatenate([np.stack([i, i + 1, i + 3], 1), np.stack([i, i + 3, i + 2], 1)])
    faces = (one[None] + (2 * points * np.arange(count))[:, None, None]).reshape(-1, 3)
    return vertices.reshape(-1, 3), faces, normals.reshape(-1, 3)


def grid(points: np.ndarray, wrap: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Surface through a lattice of points (R, C, 3), columns wrapping round if asked -> vertices, faces."""
    rows, columns = points.shape[:2]
    i = np.arange(rows - 1)[:, None]
    j = np.arange(columns if wrap else columns - 1)[None]
    k = (j + 1) % columns
    i, j, k = np.broadcast_arrays(i, j, k)
    a, b, c, d = i * columns + j, i * columns + k, (i + 1) * columns + k, (i + 1) * columns + j
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return points.reshape(-1, 3), faces


def sphere(
    centre: np.ndarray, radius: float | np.ndarray, rows: int = 10, columns: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """UV sphere or ellipsoid -> vertices, faces."""
    polar = np.linspace(0, np.pi, rows + 1)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    unit = np.stack(
        [
            np.sin(polar) * np.sin(azimuth),
            np.cos(polar) + 0 * azimuth,
            np.sin(polar) * np.cos(azimuth),
        ],
        axis=-1,
    )
    vertices, faces = grid(np.asarray(centre) + unit * radius, wrap=True)
    return vertices, faces[:, ::-1]  # the rows run downwards: turned, so that normals point outwards
