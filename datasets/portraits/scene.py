"""From attributes to the parts of a scene, in the world frame of the cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.cameras import orbit_camera

from . import accessories, hair
from .attributes import EYE_COLOURS, SKIN_TONES, Attributes
from .head import EYE_MIDDLE, HeadModel, Shape
from .mesh import Part, sphere

SCALE = 0.167  # world units per mesh unit: head with hair fills the picture as FFHQ's do
EYES_AT = np.array([0.0, 0.012, 0.225])  # world position of the eye midpoint


@dataclass
class Portrait:
    """Parts in world units, and the lenses that only the mask knows."""

    parts: list[Part]
    lenses: list[accessories.Lens]


def _skin(
    model: HeadModel, shape: Shape, a: Attributes, beard_shade: np.ndarray, rng: np.random.Generator
) -> list[Part]:
    """Face, nose, ears, lips, mouth and neck, cut from one mesh with shared normals."""
    low = int(min(a.skin_tone, 5))
    tone = SKIN_TONES[low] + (SKIN_TONES[low + 1] - SKIN_TONES[low]) * (a.skin_tone - low)
    tone = tone * rng.uniform(0.93, 1.07)
    x, y, z = model.base.T

    def blob(centre: tuple[float, float, float], size: float) -> np.ndarray:
        distance = (np.abs(x) - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        return np.exp(-distance / size**2)[:, None]

    flush = np.array([1.06, 0.80, 0.78]) - [0, 0.10 * a.makeup, 0.08 * a.makeup]
    rosy = np.clip(blob((0.42, 6.92, 1.3), 0.24) + 0.7 * blob((0.0, 6.85, 1.65), 0.16), 0, 1)
    colours = tone * (1 - rosy + rosy * flush)
    # Lash line: lids where they touch the eyeball.
    gap = (
        np.min([np.linalg.norm(shape.body - c, axis=1) for c in shape.eye_centres], axis=0) / shape.eye_radius
    )
    rim = np.clip((1.22 - gap) / 0.12, 0, 1)[:, None] * model.eyelid_vertices[:, None]
    colours = colours * (1 - (0.6 + 0.2 * a.makeup) * rim)
    shadow = blob((0.32, 7.42, 1.38), 0.13) * a.makeup
    colours = colours * (1 - shadow * [0.25, 0.5, 0.35])
    beard_colour = 0.35 * hair.hair_colour(a, rng) + 0.25 * tone
    colours = colours * (1 - beard_shade[:, None]) + beard_colour * beard_shade[:, None]
    natural = tone * [0.98, 0.55, 0.56] + [0.05, 0.0, 0.01]
    painted = np.array([0.48, 0.03, 0.06]) * rng.uniform(0.6, 1.1)
    paint = np.clip(1.4 * a.makeup - 0.2, 0, 0.9)
    lips = natural * (1 - paint) + painted * paint
    flat = {"upper lip": lips * 0.88, "lower lip": lips, "mouth": np.array([0.10, 0.018, 0.02])}
    parts = []
    for name, chosen in model.regions.items():
        if name in flat:
            part_colours = np.broadcast_to(flat[name], shape.body.shape)
        else:
            part_colours = np.clip(colours, 0, 0.95)
        gloss = 0.0 if name == "mouth" else 0.35 if "lip" in name else 0.2
        parts.append(Part(shape.body, model.faces[chosen], part_colours, name, shape.normals, gloss, 0.5))
    for name in ("upper teeth", "lower teeth"):
        parts.append(Part(shape.body, model.helpers[name], (0.68, 0.62, 0.53), "mouth"))
    return parts


def _eyes(shape: Shape, a: Attributes) -> list[Part]:
    """Eyeballs with painted iris and pupil; larger irises than life, so that they show in few pixels."""
    parts = []
    iris = np.array(EYE_COLOURS[a.eye_colour])
    for centre, label in zip(shape.eye_centres, ("left eye", "right eye"), strict=True):
        vertices, faces = sphere((0, 0, 0), shape.eye_radius * 0.985, 40, 48)
        vertices = vertices[:, [0, 2, 1]] * [-1, 1, 1]  # pole to the front: rings of vertices round the pupil
        yaw, pitch = a.gaze
        look = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        angle = np.arccos(np.clip(vertices @ look / (shape.eye_radius * 0.985), -1, 1))[:, None]
        colours = np.where(angle < 0.66, iris * np.where(angle > 0.54, 0.45, 1.0), [0.72, 0.70, 0.68])
        colours = np.where(angle < 0.26, [0.004, 0.004, 0.004], colours)
        parts.append(Part(vertices + centre, faces, colours, label, vertices / shape.eye_radius, 0.6, 0.12))
    return parts


def compose(model: HeadModel, a: Attributes) -> Portrait:
    """Everything that is in the picture."""
    rng = np.random.default_rng([a.seed, a.index, 1])
    shape = model.shape(a.morphs)
    view = orbit_camera(a.yaw, a.pitch)[:16].reshape(4, 4)[:3, 3].astype(float)
    surface = hair.Surface(shape.body, shape.normals, view / np.linalg.norm(view))
    tint = hair.hair_colour(a, rng)
    beard_parts, shade = hair.beard(model, shape, surface, a, tint * 0.9, rng)
    parts = _skin(model, shape, a, shade, rng) + _eyes(shape, a) + beard_parts
    parts += hair.brows(shape, surface, a, np.clip(tint * 0.55, 0, 0.35))
    strands = hair.build(model, shape, surface, a, rng)
    if a.hat != "none":
        fit = accessories.HatFit.of(model, shape, a)
        for part in strands:
            part.vertices = fit.tuck(part.vertices)
        parts += accessories.hat(fit, a, rng)
    parts += strands + accessories.garment(model, shape, a, rng)
    lenses: list[accessories.Lens] = []
    if a.glasses != "none":
        frames, lenses = accessories.glasses(shape, surface, a)
        parts += frames
    if a.earrings != "none":
        parts += accessories.earrings(model, shape, a, rng)
    if a.necklace:
        parts += accessories.necklace(surface, a, rng)
    scale, origin = world_frame(a)
    for part in parts:
        part.vertices = (part.vertices - EYE_MIDDLE) * scale + origin
    for lens in lenses:
        lens.middle = (lens.middle - EYE_MIDDLE) * scale + origin
        lens.half = (lens.half[0] * scale, lens.half[1] * scale)
    return Portrait([_boxed(part) for part in parts if len(part.faces)], lenses)


def world_frame(a: Attributes) -> tuple[float, np.ndarray]:
    """Scale and position of the mesh frame in the world."""
    return SCALE * a.jitter["scale"], EYES_AT + [a.jitter["x"], a.jitter["y"], 0.0]


def _boxed(part: Part) -> Part:
    """Drop faces outside the field-of-view box, whose side is 1."""
    middle = part.vertices[part.faces].mean(1)
    part.faces = part.faces[(np.abs(middle) < 0.49).all(1)]
    return part
