"""Clothes, hats, glasses, earrings and necklaces: lofted geometry fitted to the head, in mesh units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attributes import CLOTH_COLOURS, Attributes
from .hair import Surface
from .head import HeadModel, Shape
from .mesh import Part, clip, grid, sphere, tubes

METALS = {"gold": (0.75, 0.48, 0.12), "silver": (0.62, 0.63, 0.66)}
FRAMES = {
    "black": (0.01, 0.01, 0.012),
    "brown": (0.09, 0.035, 0.015),
    "red": (0.35, 0.02, 0.02),
    "blue": (0.02, 0.05, 0.3),
    "gray": (0.28, 0.28, 0.3),
}


def cloth_colour(name: str, rng: np.random.Generator) -> np.ndarray:
    """Linear RGB of a named cloth colour, varied a little."""
    return np.clip(np.array(CLOTH_COLOURS[name]) * rng.uniform(0.8, 1.2) * rng.normal(1, 0.04, 3), 0, 0.9)


def garment(model: HeadModel, shape: Shape, a: Attributes, rng: np.random.Generator) -> list[Part]:
    """The torso below a neckline, swollen a little and coloured."""
    x, y, z = model.base.T
    front = np.clip((z - 0.1) / 0.5, 0, 1)
    slope = 0.30 * (z - 0.1)
    line = {
        "crew": 5.86 - slope + 0 * x,
        "v-neck": 5.86 - slope - front * 0.85 * np.clip(1 - np.abs(x) / 0.62, 0, 1),
        "turtleneck": 6.16 - 0.5 * slope,
        "tank": 5.82 - slope - front * 0.55 * np.clip((0.95 - np.abs(x)) / 0.3, 0, 1),
    }[a.garment]
    height = line - y
    if a.garment == "tank":
        height = np.minimum(height, np.maximum((1.25 - np.abs(x)) * 1.0, 5.1 - y))
    thick = {"turtleneck": 0.07}.get(a.garment, 0.045)
    vertices = shape.body + shape.normals * (0.015 + thick * np.clip(height / 0.08, 0, 1))[:, None]
    body = model.regions["neck"]
    faces, vertices = clip(model.faces[body], height, vertices)
    return [Part(vertices, faces, cloth_colour(a.cloth_colour, rng), "cloth")]


@dataclass
class HatFit:
    """Ellipsoid and rim plane of the hat: centre (x = 0), half axes, height of the rim, its slope."""

    centre_y: float
    centre_z: float
    half_x: float
    half_z: float
    top: float
    slope: float

    @classmethod
    def of(cls, model: HeadModel, shape: Shape, a: Attributes) -> HatFit:
        skull = shape.body[model.scalp > 0.0]
        level = skull[(skull[:, 1] > 7.6) & (skull[:, 1] < 8.2)]
        room = 0.10
        low, high = level[:, 2].min(), shape.body[model.scalp > -0.1][:, 2].max()
        eye = float(shape.eye_centres[:, 1].mean())
        slope = {"beanie": 0.28, "cap": 0.14, "hat": 0.12}[a.hat]
        half_z = (high - low) / 2 + room
        middle = (high + low) / 2
        front = eye + {"beanie": 0.58, "cap": 0.62, "hat": 0.62}[a.hat]
        return cls(
            centre_y=front - slope * half_z,
            centre_z=float(middle),
            half_x=float(np.abs(level[:, 0]).max() + room),
            half_z=float(half_z),
            top=float(skull[:, 1].max() + {"beanie": 0.14, "cap": 0.12, "hat": 0.08}[a.hat]),
            slope=slope,
        )

    def rim(self, z: np.ndarray) -> np.ndarray:
        return self.centre_y + self.slope * (z - self.centre_z)

    def tuck(self, points: np.ndarray) -> np.ndarray:
        """Hair points (N, 3): those above the rim are pulled inside the hat."""
        x, y, z = points.T
        up = y - self.rim(z)
        height = self.top - self.centre_y
        q = np.stack([x / self.half_x, np.maximum(up, 0) / height, (z - self.centre_z) / self.half_z], 1)
        size = np.linalg.norm(q, axis=1)
        shrink = np.where((up > 0) & (size > 0.9), 0.9 / np.maximum(size, 1e-6), 1.0)
        out = points.copy()
        out[:, 0] *= shrink
        out[:, 2] = self.centre_z + (z - self.centre_z) * shrink
        out[:, 1] = np.where(up > 0, self.rim(out[:, 2]) + up * shrink, y)
        return out

    def ring(self, angle: np.ndarray, scale: np.ndarray | float, lift: np.ndarray | float) -> np.ndarray:
        """Points at `angle` (0 = front) on the rim ellipse scaled by `scale` and lifted by `lift`."""
        x = self.half_x * scale * np.sin(angle)
        z = self.centre_z + self.half_z * scale * np.cos(angle)
        return np.stack([x, self.rim(z) + lift, z], axis=-1)


def hat(fit: HatFit, a: Attributes, rng: np.random.Generator) -> list[Part]:
    """Beanie, visor cap or brimmed hat."""
    colour = cloth_colour(a.hat_colour, rng)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)[None]
    t = np.linspace(0, 1, 14)[:, None]
    height = fit.top - fit.centre_y
    if a.hat == "hat":
        tall = height + rng.uniform(0.0, 0.15)
        profile = np.array(
            [(1.0, 0.0), (0.99, 0.3), (0.95, 0.7), (0.88, 0.93), (0.75, 1.0), (0.4, 0.97), (0, 0.94)]
        )
        crown = fit.ring(angle, profile[:, :1], profile[:, 1:] * tall)
        vertices, faces = grid(crown, wrap=True)
        shade = np.where(vertices[:, 1:2] < fit.rim(vertices[:, 2:]) + 0.24 * tall, 0.35, 1.0)
        parts = [Part(vertices, faces, np.clip(colour * shade, 0, 1), "hat")]
        wide = rng.uniform(1.4, 1.62)
        s = np.linspace(0, 1, 7)[:, None]
        curl = 0.10 * np.abs(np.sin(angle)) ** 2 * s**2 - 0.10 * s * np.cos(angle) ** 2
        under = fit.ring(angle, 1 + (wide - 1) * s, curl - 0.02)
        over = fit.ring(angle, 1 + (wide - 1) * s, curl + 0.03)
        vertices, faces = grid(np.concatenate([under, over[::-1]]), wrap=True)
        return parts + [Part(vertices, faces, colour, "hat")]
    theta = t * np.pi / 2
    loose = 0.10 if a.hat == "beanie" else 0.03
    lift = np.sin(theta) * (height + (rng.uniform(0, 0.25) if a.hat == "beanie" else 0.0))
    scale = np.maximum(np.cos(theta), 0) ** 0.8 * (1 + loose * np.sin(2 * theta))
    vertices, faces = grid(fit.ring(angle, scale, lift), wrap=True)
    parts = [Part(vertices, faces, colour, "hat")]
    if a.hat == "beanie":
        s = np.linspace(0, 1, 8)[:, None]
        band = fit.ring(angle, 1.0 + 0.07 * np.sin(np.pi * s) ** 0.5, -0.04 + 0.34 * s)
        vertices, faces = grid(band, wrap=True)
        parts.append(Part(vertices, faces, np.clip(colour * 0.75, 0, 1), "hat"))
        if rng.random() < 0.3:
            vertices, faces = sphere(fit.ring(np.zeros(1), 0.0, lift.max() + 0.12)[0], 0.2)
            parts.append(Part(vertices, faces, np.clip(colour * 1.2 + 0.1, 0, 1), "hat"))
        return parts
    fan = np.linspace(-1.05, 1.05, 21)[None]
    s = np.linspace(0, 1, 6)[:, None]
    reach = 0.55 * np.cos(fan * 1.35) ** 0.6 * s
    visor = fit.ring(fan, 1.0, 0.03) + np.stack(
        [0.25 * np.sin(fan) * s, -0.22 * reach - 0.1 * np.sin(fan) ** 2 * s, reach], -1
    )
    lower = visor - [0, 0.05, 0]
    vertices, faces = grid(np.concatenate([lower, visor[::-1]]))
    return parts + [Part(vertices, faces, np.clip(colour * 0.8, 0, 1), "hat")]


@dataclass
class Lens:
    """One flat lens: middle (3,), half width and height, and the power of its superellipse outline."""

    middle: np.ndarray
    half: tuple[float, float]
    power: float

    def outline(self, count: int = 36) -> np.ndarray:
        angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
        c, s = np.cos(angle), np.sin(angle)
        size = (np.abs(c) ** self.power + np.abs(s) ** self.power) ** (-1 / self.power)
        return self.middle + np.stack([self.half[0] * size * c, self.half[1] * size * s, 0 * c], 1)

    def contains(self, points: np.ndarray) -> np.ndarray:
        """points (N, 3) in the lens's plane -> (N,) bool."""
        offset = np.abs(points - self.middle) / np.array([*self.half, 1.0])
        return offset[:, 0] ** self.power + offset[:, 1] ** self.power < 1.0


def glasses(shape: Shape, surface: Surface, a: Attributes) -> tuple[list[Part], list[Lens]]:
    """Frames (sunglasses: dark lenses too), and the lens outlines: in the mask their inside is glasses."""
    power = {"round": 2.0, "square": 5.0, "sunglasses": 3.0}[a.glasses]
    half = {"round": (0.245, 0.235), "square": (0.265, 0.19), "sunglasses": (0.27, 0.22)}[a.glasses]
    colour = FRAMES[a.glasses_colour]
    parts, lenses = [], []
    eyes = shape.eye_centres
    depth = float(eyes[:, 2].mean()) + 0.36
    radius = 0.026
    for eye in eyes:
        side = np.sign(eye[0])
        lens = Lens(np.array([eye[0] + 0.03 * side, eye[1] - 0.02, depth]), half, power)
        lenses.append(lens)
        outline = lens.outline()
        vertices, faces, normals = tubes(outline[None], radius, sides=6, closed=True)
        parts.append(Part(vertices, faces, colour, "glasses", normals, specular=0.5))
        if a.glasses == "sunglasses":
            disc = np.stack([outline, np.broadcast_to(lens.middle, outline.shape)])
            disc[1] += [0, 0, 0.03]
            vertices, faces = grid(disc, wrap=True)
            parts.append(Part(vertices, faces, (0.015, 0.014, 0.016), "glasses", specular=0.6, roughness=0.2))
        hinge = lens.middle + [side * half[0], 0.4 * half[1], 0]
        ear = np.array([side * 0.86, eye[1] + 0.06, 0.45])
        share = np.linspace(0, 1, 10)[:, None]
        arm = surface.push_out(hinge * (1 - share) + ear * share, 0.03)
        arm[0] = hinge
        vertices, faces, normals = tubes(arm[None], 0.022, sides=5)
        parts.append(Part(vertices, faces, colour, "glasses", normals))
    inner = [lens.middle - [np.sign(lens.middle[0]) * half[0], -0.3 * half[1], 0] for lens in lenses]
    share = np.linspace(0, 1, 8)[:, None]
    bridge = inner[0] * (1 - share) + inner[1] * share + np.array([0, 0.04, 0.05]) * np.sin(np.pi * share)
    vertices, faces, normals = tubes(bridge[None], radius, sides=6)
    parts.append(Part(vertices, faces, colour, "glasses", normals))
    return parts, lenses


def earrings(model: HeadModel, shape: Shape, a: Attributes, rng: np.random.Generator) -> list[Part]:
    """A ball or a hoop under each ear lobe."""
    parts = []
    hoop = rng.random() < 0.5
    for side in ("left ear", "right ear"):
        ear = shape.body[np.unique(model.faces[model.regions[side]])]
        lobe = ear[np.argmin(ear[:, 1])] + [0.02 * np.sign(ear[0, 0]), 0.0, 0.02]
        if hoop:
            angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            ring = (
                lobe
                + [0, -0.11, 0]
                + 0.13 * np.stack([0.35 * np.sin(angle), np.cos(angle), np.sin(angle)], 1)
            )
            vertices, faces, normals = tubes(ring[None], 0.026, sides=5, closed=True)
        else:
            vertices, faces = sphere(lobe - [0, 0.06, 0], 0.075)
            normals = None
        parts.append(
            Part(vertices, faces, METALS[a.earrings], "earring", normals, specular=0.6, roughness=0.3)
        )
    return parts


def necklace(surface: Surface, a: Attributes, rng: np.random.Generator) -> list[Part]:
    """A chain that lies on the base of the neck."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    front = np.clip(np.cos(angle), 0, 1)
    ring = np.stack([0.62 * np.sin(angle), 5.98 - 0.32 * front - 0.0 * angle, 0.05 + 0.75 * np.cos(angle)], 1)
    for _ in range(3):
        ring = surface.push_out(ring, 0.035)
        height = np.sum((ring - surface.vertices[surface.tree.query(ring)[1]]) ** 2, 1) ** 0.5
        middle = np.array([0.0, 0.0, 0.05])
        ring[:, [0, 2]] -= ((ring - middle) * np.clip(height - 0.06, 0, 0.3)[:, None])[:, [0, 2]]
        ring = (np.roll(ring, 1, 0) + 2 * ring + np.roll(ring, -1, 0)) / 4
    vertices, faces, normals = tubes(surface.push_out(ring, 0.03)[None], 0.03, sides=5, closed=True)
    return [
        Part(
            vertices, faces, METALS["gold" if rng.random() < 0.6 else "silver"], "necklace", normals, 0.6, 0.3
        )
    ]
