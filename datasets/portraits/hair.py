"""Hair: a solid cap over the scalp, and strands that fall from it.

The cap carries the volume and the colour, so that no bald spot shines through; the strands give the length,
the outline and the texture.  Lengths are in mesh units.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from .attributes import HAIR_COLOURS, Attributes
from .head import HeadModel, Shape
from .mesh import Part, clip, grid, ribbons, sphere

STYLES = {  # cap thickness, strand length range, curl, gravity, strand count, strand radius
    "short": dict(cap=(0.07, 0.16), length=(0.22, 0.5), curl=0.02, gravity=0.5, count=1500, radius=0.016),
    "bob": dict(cap=(0.10, 0.20), length=(1.5, 2.1), curl=0.05, gravity=3.2, count=1500, radius=0.024),
    "long": dict(cap=(0.09, 0.18), length=(2.5, 3.9), curl=0.10, gravity=3.2, count=1700, radius=0.026),
    "curly": dict(cap=(0.14, 0.26), length=(0.55, 2.6), curl=0.13, gravity=1.2, count=1500, radius=0.026),
    "afro": dict(cap=(0.30, 0.55), length=(0.22, 0.42), curl=0.06, gravity=0.0, count=1800, radius=0.026),
    "ponytail": dict(cap=(0.04, 0.09), length=(1.3, 2.6), curl=0.04, gravity=1.0, count=500, radius=0.018),
    "bun": dict(cap=(0.04, 0.09), length=(0.4, 0.5), curl=0.0, gravity=1.0, count=400, radius=0.018),
}


def hair_colour(a: Attributes, rng: np.random.Generator) -> np.ndarray:
    """Linear RGB with a little individual variation."""
    return np.clip(
        np.array(HAIR_COLOURS[a.hair_colour]) * rng.uniform(0.8, 1.25) * rng.normal(1, 0.04, 3), 0, 0.9
    )


class Surface:
    """The head and shoulders as an obstacle: pushes points out of it, with a margin.

    view (3,): unit direction from the head to the camera.
    """

    def __init__(self, vertices: np.ndarray, normals: np.ndarray, view: np.ndarray) -> None:
        self.view = view
        self.tree = cKDTree(vertices)
        self.vertices, self.normals = vertices, normals

    def push_out(self, points: np.ndarray, margin: float | np.ndarray) -> np.ndarray:
        """points (N, 3) -> the same points, at least `margin` outside."""
        _, nearest = self.tree.query(points)
        normal = self.normals[nearest]
        height = np.sum((points - self.vertices[nearest]) * normal, axis=1)
        return points + normal * np.maximum(margin - height, 0.0)[:, None]

    def onto(self, points: np.ndarray, height: np.ndarray) -> np.ndarray:
        """points (N, 3) -> moved along the nearest vertex's normal to `height` above its tangent plane."""
        _, nearest = self.tree.query(points)
        normal = self.normals[nearest]
        above = np.sum((points - self.vertices[nearest]) * normal, axis=1)
        return points + normal * (height - above)[:, None]


def _smooth_noise(points: np.ndarray, rng: np.random.Generator, frequency: float) -> np.ndarray:
    """Sum of a few random waves at points (N, 3) -> (N,) in about [-1, 1]."""
    waves = rng.normal(0, frequency, (6, 3))
    return np.sin(points @ waves.T + rng.uniform(0, 2 * np.pi, 6)).sum(1) / 3.0


def _cap(
    model: HeadModel,
    shape: Shape,
    a: Attributes,
    colour: np.ndarray,
    thickness: float,
    rng: np.random.Generator,
) -> Part:
    """The scalp, swollen by `thickness`, thin at the hairline."""
    height = model.scalp + 0.03 * _smooth_noise(model.base, rng, 3.0)
    rise = np.clip((height + 0.03) / 0.5, 0, 1) ** 0.6
    swell = 0.012 + thickness * rise
    # More on top and at the back: hair adds height there in every style.
    swell = swell * (1 + 0.35 * np.clip((model.base[:, 1] - 7.9) / 0.5, 0, 1) * rise)
    if a.hair_style in ("curly", "afro"):
        swell = swell * (1 + 0.16 * _smooth_noise(model.base, rng, 9.0))
    vertices = shape.body + shape.normals * swell[:, None]
    shade = 0.78 + 0.22 * _smooth_noise(model.base * [1, 0.3, 1], rng, 10.0)
    faces, vertices, shade = clip(model.faces, height, vertices, shade)
    return Part(vertices, faces, np.clip(colour * 0.85 * shade[:, None], 0, 1), "hair")


def _roots(
    model: HeadModel, shape: Shape, count: int, rng: np.random.Generator, region: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random points on faces where region (V,) is positive: position, normal, base-mesh position, region."""
    inside = (region[model.faces] > 0).all(1)
    faces = model.faces[inside]
    a, b, c = (shape.body[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    pick = faces[rng.choice(len(faces), count, p=area / area.sum())]
    weight = rng.dirichlet([1.0, 1.0, 1.0], count)[..., None]

    def mean(values: np.ndarray) -> np.ndarray:
        return np.sum(values[pick] * weight, axis=1)

    normal = mean(shape.normals)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return mean(shape.body), normal, mean(model.base), mean(region[:, None])[:, 0]


def _tint(colour: np.ndarray, strands: int, points_each: int, rng: np.random.Generator) -> np.ndarray:
    """Per-vertex colours: each strand a little lighter or darker."""
    tone = rng.lognormal(0.0, 0.16, (strands, 1)) * colour
    return np.clip(np.repeat(tone, points_each, axis=0), 0, 0.95)


def _strand_part(
    paths: np.ndarray,
    radius: float,
    colour: np.ndarray,
    view: np.ndarray,
    rng: np.random.Generator,
    label: str = "hair",
) -> Part:
    points = paths.shape[1]
    taper = radius * np.interp(np.linspace(0, 1, points), [0, 0.7, 1], [1.0, 0.9, 0.35])
    vertices, faces, normals = ribbons(paths, taper[None], view)
    return Part(vertices, faces, _tint(colour, len(paths), points * 2, rng), label, normals, specular=0.25)


def _grow(
    root: np.ndarray,
    start: np.ndarray,
    comb: np.ndarray,
    length: np.ndarray,
    gravity: float,
    surface: Surface,
    margin: np.ndarray,
    steps: int,
    keep_off_face: np.ndarray,
    eye_y: float,
) -> np.ndarray:
    """Strands (N, steps + 1, 3) that leave along `start`, bend to `comb`, fall, and slide on the head."""
    step = (length / steps)[:, None]
    paths = [root]
    position, direction = root, start
    for i in range(steps):
        share = (i + 1) / steps
        direction = (
            direction + comb * (0.9 * (1 - share)) + np.array([0, -1.0, 0]) * gravity * (0.12 + 0.5 * share)
        )
        direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
        moved = surface.push_out(position + direction * step, margin)
        # Keep the face free: hair in front of it slides to the nearer side.
        front = keep_off_face & (moved[:, 2] > 0.75) & (moved[:, 1] < eye_y + 0.62)
        side = np.where(moved[:, 0] >= 0, 1.0, -1.0)
        wide = np.maximum(np.abs(moved[:, 0]), 0.74)
        moved[front, 0] = (side * wide)[front]
        moved[front, 2] = np.minimum(moved[front, 2], 0.95)
        direction = moved - position
        direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
        position = position + direction * step
        paths.append(position)
    return np.stack(paths, axis=1)


def _curl(
    paths: np.ndarray, size: float, turns: float, rng: np.random.Generator, locks: int = 60
) -> np.ndarray:
    """Wind strands into waves; strands of one lock wave together."""
    count, points = paths.shape[:2]
    centre = paths[rng.choice(count, min(locks, count), replace=False), 0]
    lock = cKDTree(centre).query(paths[:, 0])[1]
    phase = rng.uniform(0, 2 * np.pi, locks)[lock][:, None] + rng.normal(0, 0.25, (count, 1))
    along = np.linspace(0, 1, points)[None]
    angle = phase + 2 * np.pi * turns * along
    grow = size * np.clip(along * 3, 0, 1)
    offset = np.stack([np.cos(angle), 0.3 * np.sin(angle), np.sin(angle)], -1) * grow[..., None]
    return paths + offset


def build(
    model: HeadModel, shape: Shape, surface: Surface, a: Attributes, rng: np.random.Generator
) -> list[Part]:
    """All the hair of the head (not the brows and the beard)."""
    colour = hair_colour(a, rng)
    if a.hair_style == "bald":
        return []
    style = STYLES[a.hair_style]
    under_hat = a.hat != "none"
    low, high = style["cap"]
    thickness = low + (high - low) * a.hair_volume
    if under_hat:
        thickness = min(thickness, 0.06)
    parts = [_cap(model, shape, a, colour, thickness, rng)]
    eye_y = float(shape.eye_centres[:, 1].mean())
    region = model.scalp - 0.02
    root, normal, base, height = _roots(model, shape, style["count"], rng, region)
    short_low, short_high = style["length"]
    reach = short_low + (short_high - short_low) * a.hair_length
    length = reach * rng.uniform(0.82, 1.08, len(root))
    rise = np.clip(height / 0.5, 0, 1) ** 0.6
    root = root + normal * (thickness * rise * 0.8)[:, None]
    parting = 0.35 * a.parting
    across = np.where(base[:, 0] > parting, 1.0, -1.0)
    top = np.clip((base[:, 1] - 7.7) / 0.6, 0, 1)
    comb = np.stack([across * (0.35 + 0.5 * top), -0.1 + 0 * top, -0.35 - 0.35 * top], axis=1)
    bangs = (
        a.fringe & (base[:, 2] > 0.62) & (np.abs(base[:, 0]) < 0.62) & (base[:, 1] > 7.75) & (not under_hat)
    )
    keep_off = ~bangs
    if a.hair_style == "short":
        swept = np.array([0.5 * a.parting, -0.15, -0.9 if a.hair_wave < 0.6 else -0.2])
        comb = swept + np.stack([0.25 * across, -0.4 * (1 - top), 0 * top], 1)
        start = normal * (0.35 + 0.5 * top * a.hair_volume)[:, None] + 0.4 * comb
    elif a.hair_style == "afro":
        comb, start = normal, normal
    elif a.hair_style == "curly":
        comb = comb * 0.4
        start = normal * 0.8
    else:
        start = normal * 0.35 + comb
    if a.hair_style in ("ponytail", "bun"):
        return parts + _tied(shape, a, colour, root, thickness, length, style, surface, rng)
    if a.fringe:
        comb[bangs] = [0.0, -0.5, 0.9]
        start[bangs] = normal[bangs] * 0.3 + [0.0, 0.2, 0.6]
        length[bangs] = np.minimum(length[bangs], 0.62 * rng.uniform(0.85, 1.05, int(bangs.sum())))
    start = start + rng.normal(0, 0.08, start.shape)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    margin = rng.uniform(0.02, 0.06 + thickness * 0.9, len(root))
    steps = 5 if a.hair_style in ("short", "afro") else 9
    gravity = style["gravity"]
    paths = _grow(root, start, comb, length, gravity, surface, margin, steps, keep_off, eye_y)
    if a.hair_style == "long":
        paths = _curl(paths, style["curl"] * a.hair_wave, 2.5, rng)
    elif a.hair_style == "curly":
        paths = _curl(paths, style["curl"], 1.5 + 2.0 * a.hair_length, rng, locks=150)
    elif a.hair_style in ("bob", "afro"):
        paths = _curl(paths, style["curl"] * a.hair_wave, 1.0, rng)
    return parts + [_strand_part(paths, style["radius"], colour, surface.view, rng)]


def _tied(
    shape: Shape,
    a: Attributes,
    colour: np.ndarray,
    root: np.ndarray,
    thickness: float,
    length: np.ndarray,
    style: dict,
    surface: Surface,
    rng: np.random.Generator,
) -> list[Part]:
    """Hair combed flat to a knot; a bun on it, or a tail that hangs from it."""
    eye = shape.eye_centres.mean(0)
    high = a.hair_length
    knot = np.array(
        [0.0, eye[1] + 0.15 + (0.75 if a.hair_style == "bun" else 0.55) * high, eye[2] - 2.0 + 0.4 * high]
    )
    knot = surface.push_out(knot[None], 0.1)[0]
    # Great arcs round the middle of the skull, at a height that stays just above the cap.
    middle = eye + np.array([0, 0.25, -1.0])
    share = np.linspace(0, 0.97, 11)[None, :, None]
    arc = (root - middle)[:, None] * (1 - share) + (knot - middle) * share
    arc = middle + 1.2 * arc / np.maximum(np.linalg.norm(arc, axis=-1, keepdims=True), 1e-9)
    height = 0.012 + thickness * rng.uniform(1.0, 1.5, len(root))
    flat = surface.onto(arc.reshape(-1, 3), np.repeat(height, 11))
    parts = [_strand_part(flat.reshape(arc.shape), style["radius"], colour, surface.view, rng)]
    outward = knot - (eye + np.array([0, 0, -1.1]))
    outward /= np.linalg.norm(outward)
    count = 260
    if a.hair_style == "bun":
        size = 0.27 + 0.16 * a.hair_volume
        centre = knot + outward * size * 0.75
        axis = outward
        u = np.cross(axis, [1.0, 0.0, 0.0])
        u /= np.linalg.norm(u)
        v = np.cross(axis, u)
        t = np.linspace(0, 1, 10)[None]
        turn = rng.uniform(0, 2 * np.pi, (count, 1)) + 2.2 * t
        lift = rng.uniform(-0.9, 0.95, (count, 1)) + 0 * t
        ring = np.sqrt(1 - lift**2)
        unit = (
            (ring * np.cos(turn))[..., None] * u
            + (ring * np.sin(turn))[..., None] * v
            + lift[..., None] * axis
        )
        paths = centre + unit * size
        vertices, faces = sphere(centre, size * 0.98)
        parts.append(Part(vertices, faces, colour * 0.8, "hair"))
        return parts + [_strand_part(paths, 0.03, colour, surface.view, rng)]
    side = np.clip(a.parting * 2.2, -1, 1)  # the tail falls over a shoulder rather than straight behind
    start = knot + rng.normal(0, 0.05, (count, 3))
    direction = outward * 0.9 + np.array([0.6 * side, 0.0, 0]) + rng.normal(0, 0.16, (count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    tail = length[:count] * rng.uniform(0.8, 1.05, count)
    none = np.zeros(count, dtype=bool)
    comb = np.tile([0.3 * side, 0.0, 0.25 * abs(side)], (count, 1)) + rng.normal(0, 0.05, (count, 3))
    paths = _grow(start, direction, comb, tail, 2.2, surface, np.full(count, 0.12), 9, none, float(eye[1]))
    paths = _curl(paths, 0.12 * a.hair_wave, 1.6, rng, locks=12)
    return parts + [_strand_part(paths, 0.032, colour, surface.view, rng)]


def brows(shape: Shape, surface: Surface, a: Attributes, colour: np.ndarray) -> list[Part]:
    """Two brows: thin raised strips along the brow ridge, the image's left first."""
    parts = []
    frown = {"frowning": -0.055, "surprised": 0.03}.get(a.expression, 0.0)
    lift = {"frowning": -0.02, "surprised": 0.08}.get(a.expression, 0.0)
    for side, centre, label in (
        (-1.0, shape.eye_centres[0], "left brow"),
        (1.0, shape.eye_centres[1], "right brow"),
    ):
        t = np.linspace(0, 1, 14)
        half = 0.62 * abs(centre[0]) * a.brow["length"] + 0.06
        x = abs(centre[0]) + half * (2 * t - 1) + 0.02
        bow = a.brow["arch"] * np.sin(np.pi * np.clip(t * 1.05, 0, 1)) + a.brow["tilt"] * (t - 0.5) * 2
        bow = bow - 0.045 * np.clip((t - 0.7) / 0.3, 0, 1) ** 1.5
        y = centre[1] + 0.245 + a.brow["lift"] + lift + bow + frown * (1 - t)
        width = a.brow["thickness"] * np.interp(t, [0, 0.12, 0.5, 1.0], [0.65, 1.0, 0.95, 0.25])
        across = np.linspace(-1, 1, 5)
        points = np.empty((5, 14, 3))
        points[..., 0] = side * x
        points[..., 1] = y + across[:, None] * width
        points[..., 2] = _face_depth(shape, points[..., 0], points[..., 1])
        normal = surface.normals[surface.tree.query(points.reshape(-1, 3))[1]].reshape(points.shape)
        rise = np.array([0.004, 0.03, 0.036, 0.03, 0.004])[:, None, None]
        vertices, faces = grid(points + normal * rise)
        if side < 0:
            faces = faces[:, ::-1]
        parts.append(Part(vertices, faces, colour, label))
    return parts


def _face_depth(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """z of the front of the face at (x, y): inverse-distance mean of the nearest forward vertices."""
    front = (
        (shape.body[:, 2] > 0.55)
        & (shape.normals[:, 2] > 0.05)
        & (shape.body[:, 1] > shape.eye_centres[0, 1] + 0.05)
    )
    points = shape.body[front]
    distance, nearest = cKDTree(points[:, :2]).query(np.stack([x.ravel(), y.ravel()], 1), k=6)
    weight = 1 / np.maximum(distance, 0.01) ** 2
    return (np.sum(points[nearest, 2] * weight, 1) / weight.sum(1)).reshape(x.shape)


def beard(
    model: HeadModel,
    shape: Shape,
    surface: Surface,
    a: Attributes,
    colour: np.ndarray,
    rng: np.random.Generator,
) -> tuple[list[Part], np.ndarray]:
    """Beard or moustache (labelled skin, as in CelebAMask-HQ), and the shade (V,) that it paints on skin."""
    x, y, z = model.base.T
    x = np.abs(x)
    lips = np.zeros(len(x), dtype=bool)
    lips[model.faces[model.regions["upper lip"] | model.regions["lower lip"] | model.regions["mouth"]]] = True
    upper = np.minimum.reduce([(6.86 - y) * 4, (y - 6.66) * 4, (0.36 - x) * 4, (z - 1.2) * 4])
    jaw_top = np.interp(x, [0.0, 0.24, 0.36, 0.6, 0.8], [6.53, 6.53, 6.72, 6.95, 7.2])
    jaw = np.minimum.reduce(
        [(jaw_top - y) * 3, (y - 5.95 - 0.25 * np.clip(1.2 - z, 0, 1)) * 3, (z - 0.5) * 3]
    )
    chosen = {"none": np.full_like(x, -1.0), "mustache": upper}.get(a.beard, np.maximum(upper, jaw))
    chosen = np.where(lips, -0.05, chosen)
    chosen[model._support(["nose/nose-scale-horiz-incr"], 0.25)] = -0.05
    soft = np.clip(chosen / 0.25, 0, 1)
    if a.beard in ("none", "stubble"):
        return [], 0.55 * soft
    full = 0.05 if a.beard == "mustache" else 0.05 + 0.16 * a.hair_volume
    swell = 0.01 + full * np.clip(chosen / 0.6, 0, 1) ** 0.5
    vertices = shape.body + shape.normals * swell[:, None]
    faces, vertices = clip(model.faces, chosen, vertices)
    shell = Part(vertices, faces, np.clip(colour * 0.9, 0, 1), "skin")
    root, normal, _, _ = _roots(model, shape, 900 if a.beard == "beard" else 160, rng, chosen - 0.08)
    down = normal * 0.3 + [0, -0.9, 0.1] + rng.normal(0, 0.1, root.shape)
    down /= np.linalg.norm(down, axis=1, keepdims=True)
    start = root + normal * full * 0.7
    share = np.linspace(0, 1, 4)[None, :, None]
    long = np.where(root[:, 1] < shape.body[model.mouth_vertices, 1].min(), 0.3 * a.hair_length, 0.0)
    reach = (0.09 + long) * rng.uniform(0.7, 1.1, len(root))
    paths = start[:, None] + down[:, None] * share * reach[:, None, None]
    return [shell, _strand_part(paths, 0.02, colour, surface.view, rng, "skin")], 0.5 * soft
