"""One picture: path-traced colour, and an exact grid of first hits for mask, normals and depth."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.cameras import FOCAL, orbit_camera
from datasets.labels import label_set

from .attributes import Attributes
from .head import INSTALL_HINT, HeadModel, MissingPackage
from .mesh import Part, compact, vertex_normals
from .scene import Portrait, compose

CLASSES = label_set("ffhq-mask")
FOV_DEGREES = float(np.degrees(2 * np.arctan(0.5 / FOCAL)))


@dataclass
class Picture:
    """image (N, N, 3) uint8, mask (N, N) uint8 class, normals (N, N, 3) view space (0 on the background),
    depth (N, N) distance along the ray in world units (0 on the background)."""

    image: np.ndarray
    mask: np.ndarray
    normals: np.ndarray
    depth: np.ndarray


def camera_label(a: Attributes) -> np.ndarray:
    """Camera label (25,) float32."""
    return orbit_camera(a.yaw, a.pitch, CLASSES.pivot)


def pose(a: Attributes) -> np.ndarray:
    """OpenCV camera-to-world matrix (4, 4)."""
    return camera_label(a)[:16].astype(np.float64).reshape(4, 4)


def load_mitsuba() -> Any:
    """The mitsuba module in its portable variant, one thread."""
    try:
        import mitsuba as mi
    except ImportError as error:
        raise MissingPackage(INSTALL_HINT) from error
    if mi.variant() != "scalar_rgb":
        mi.set_variant("scalar_rgb")
        mi.set_log_level(mi.LogLevel.Error)
        importlib.import_module("drjit").set_thread_count(1)  # one process per core does better
    return mi


@dataclass
class PreparedMesh:
    """A part's arrays as mitsuba got them: faces index normals and colours."""

    mesh: Any
    faces: np.ndarray
    normals: np.ndarray
    colours: np.ndarray


def _prepare(mi: Any, name: str, part: Part) -> PreparedMesh:
    normals = vertex_normals(part.vertices, part.faces) if part.normals is None else part.normals
    faces, vertices, normals, colours = compact(part.faces, part.vertices, normals, part.colours)
    texture = {"type": "mesh_attribute", "name": "vertex_color"}
    if part.specular > 0:
        bsdf = {
            "type": "principled",
            "base_color": texture,
            "specular": part.specular,
            "roughness": part.roughness,
        }
    else:
        bsdf = {"type": "diffuse", "reflectance": texture}
    props = mi.Properties()
    props["bsdf"] = mi.load_dict({"type": "twosided", "nested": bsdf})
    mesh = mi.Mesh(name, len(vertices), len(faces), has_vertex_normals=True, props=props)
    mesh.add_attribute("vertex_color", 3, np.ascontiguousarray(colours, dtype=np.float32).ravel())
    params = mi.traverse(mesh)
    params["vertex_positions"] = np.ascontiguousarray(vertices, dtype=np.float32).ravel()
    params["vertex_normals"] = np.ascontiguousarray(normals, dtype=np.float32).ravel()
    params["faces"] = np.ascontiguousarray(faces, dtype=np.uint32).ravel()
    params.update()
    return PreparedMesh(mesh, faces, normals, colours)


def _sensor(mi: Any, cam2world: np.ndarray, size: int, samples: int, seed: int) -> dict[str, Any]:
    # Mitsuba's camera looks along +z with x to the left and y up: OpenCV's axes, two of them turned round.
    matrix = cam2world @ np.diag([-1.0, -1.0, 1.0, 1.0])
    return {
        "type": "perspective",
        "fov": FOV_DEGREES,
        "near_clip": 0.5,
        "far_clip": 10.0,
        "to_world": mi.ScalarTransform4f(matrix),
        "film": {
            "type": "hdrfilm",
            "width": size,
            "height": size,
            "rfilter": {"type": "box"},
            "pixel_format": "rgba",
            "component_format": "float32",
        },
        "sampler": {"type": "multijitter", "sample_count": samples, "seed": seed},
    }


def _lights(mi: Any, a: Attributes) -> dict[str, Any]:
    light = a.light
    warm = np.array([1 + light["warmth"], 1.0, 1 - light["warmth"]])
    direction = np.array([np.sin(light["azimuth"]), light["height"], np.cos(light["azimuth"])])
    direction /= np.linalg.norm(direction)
    target = [0.0, -0.05, 0.1]
    look = mi.ScalarTransform4f().look_at(origin=list(direction * 4.4 + target), target=target, up=[0, 1, 0])
    return {
        "fill": {"type": "constant", "radiance": {"type": "rgb", "value": [light["fill"]] * 3}},
        "key": {
            "type": "rectangle",
            "to_world": look
            @ mi.ScalarTransform4f().scale([1.8, 1.8, 1]),  # beyond the camera, or first hits would see it
            "emitter": {
                "type": "area",
                "radiance": {"type": "rgb", "value": list(map(float, 3.4 * light["key"] * warm))},
            },
        },
    }


def _tone(linear: np.ndarray) -> np.ndarray:
    """Linear radiance -> sRGB in [0, 1] with a soft shoulder."""
    soft = np.where(linear < 0.6, linear, 0.6 + 0.4 * np.tanh((linear - 0.6) / 0.4))
    return np.where(soft <= 0.0031308, 12.92 * soft, 1.055 * np.maximum(soft, 1e-8) ** (1 / 2.4) - 0.055)


@dataclass
class Hits:
    """What the rays through the middle of every cell of an n x n grid meet first.

    shape (n, n) index of the part or -1, distance (n, n) along the ray (infinite on a miss),
    normal (n, n, 3) world space, unit, towards the camera, albedo (n, n, 3) linear RGB.
    """

    shape: np.ndarray
    distance: np.ndarray
    normal: np.ndarray
    albedo: np.ndarray


def view_rays(cam2world: np.ndarray, n: int) -> np.ndarray:
    """Unit directions (n, n, 3) in the world of the rays through the middle of n x n cells."""
    centre = ((np.arange(n) + 0.5) / n - 0.5) / FOCAL
    x, y = np.meshgrid(centre, centre)
    rays = np.stack([x, y, np.ones_like(x)], -1)
    return (rays / np.linalg.norm(rays, axis=-1, keepdims=True)) @ cam2world[:3, :3].T


def _first_hits(mi: Any, scene: Any, meshes: list[PreparedMesh], cam2world: np.ndarray, n: int) -> Hits:
    # A loop of single rays is ten times faster here than mitsuba's `aov` integrator in its scalar variant.
    rays = view_rays(cam2world, n)
    origin = mi.Point3f(*map(float, cam2world[:3, 3]))
    order = [shape.id() for shape in scene.shapes()]
    number = {f"part{i:03d}": i for i in range(len(meshes))}
    trace, make_ray = scene.ray_intersect_preliminary, mi.Ray3f
    found: list[tuple[int, int, int, float, float, float]] = []
    for k, direction in enumerate(rays.reshape(-1, 3).tolist()):
        hit = trace(make_ray(origin, direction))
        if hit.is_valid():
            uv = hit.prim_uv
            found.append((k, hit.shape_index, hit.prim_index, uv.x, uv.y, hit.t))
    shape = np.full(n * n, -1)
    distance = np.full(n * n, np.inf)
    normal = np.zeros((n * n, 3))
    albedo = np.zeros((n * n, 3))
    table = np.array(found).reshape(-1, 6)
    pixel, place, primitive = table[:, :3].astype(int).T
    where = np.array([number.get(name, -1) for name in order])[place]
    u, v = table[:, 3:4], table[:, 4:5]
    distance[pixel] = np.where(where >= 0, table[:, 5], np.inf)
    shape[pixel] = where
    for i in np.unique(where[where >= 0]):
        rows = where == i
        corners = meshes[i].faces[primitive[rows]]
        for target, values in ((normal, meshes[i].normals), (albedo, meshes[i].colours)):
            a, b, c = (values[corners[:, j]] for j in range(3))
            target[pixel[rows]] = a * (1 - u[rows] - v[rows]) + b * u[rows] + c * v[rows]
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    away = np.sum(normal * rays.reshape(-1, 3), axis=1) > 0
    # A surface seen from behind (under a brim) is turned round; one that only grazes is a silhouette.
    normal[away] *= np.where(np.sum(normal * rays.reshape(-1, 3), axis=1)[away] > 0.3, -1.0, 1.0)[:, None]
    return Hits(shape.reshape(n, n), distance.reshape(n, n), normal.reshape(n, n, 3), albedo.reshape(n, n, 3))


def render(model: HeadModel, a: Attributes, size: int, samples: int) -> Picture:
    """Attributes -> picture of size x size with `samples` paths per pixel."""
    mi = load_mitsuba()
    portrait = compose(model, a)
    cam2world = pose(a)
    meshes = [_prepare(mi, f"part{i:03d}", part) for i, part in enumerate(portrait.parts)]
    shapes = {f"part{i:03d}": prepared.mesh for i, prepared in enumerate(meshes)}
    scene = mi.load_dict({"type": "scene", **shapes, **_lights(mi, a)})
    integrator = mi.load_dict({"type": "path", "max_depth": 3, "rr_depth": 8, "hide_emitters": True})
    sensor = mi.load_dict(_sensor(mi, cam2world, size, samples, a.index))
    colour = np.array(mi.render(scene, sensor=sensor, integrator=integrator, seed=a.index))
    factor = max(2, -(-192 // size))
    hits = _first_hits(mi, scene, meshes, cam2world, size * factor)
    return _assemble(a, portrait, colour, hits, cam2world, size, factor)


def _cells(values: np.ndarray, factor: int) -> np.ndarray:
    """(N f, N f, ...) -> (N, N, f f, ...): the subsamples of every pixel."""
    n = values.shape[0] // factor
    rest = values.shape[2:]
    moved = values.reshape(n, factor, n, factor, *rest).swapaxes(1, 2)
    return moved.reshape(n, n, factor * factor, *rest)


def _assemble(
    a: Attributes,
    portrait: Portrait,
    colour: np.ndarray,
    hits: Hits,
    cam2world: np.ndarray,
    size: int,
    factor: int,
) -> Picture:
    """Vote each pixel's class, average normals and depth of the winner, composite over the background."""
    lookup = np.array([CLASSES.index(part.label) for part in portrait.parts] + [0])
    fine = _fill_lenses(lookup[hits.shape], hits.distance, portrait, cam2world)
    cells = _cells(fine, factor)
    votes = np.stack([(cells == c).sum(-1) for c in range(CLASSES.count)], -1)
    # Small features win ties against the skin round them.
    mask = (votes + 0.5 * (np.arange(CLASSES.count) > 1) * (votes > 0)).argmax(-1)
    seen = _cells(hits.shape, factor) >= 0
    chosen = (cells == mask[..., None]) & seen

    def mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        total = (np.nan_to_num(_cells(values, factor), posinf=0.0) * weight[..., None]).sum(2)
        return total / np.maximum(weight.sum(-1), 1)[..., None]

    solid = (mask > 0)[..., None]
    to_view = cam2world[:3, :3] @ np.diag([1.0, -1.0, -1.0])  # x right, y up, z towards the viewer
    normals = mean(hits.normal, chosen) @ to_view
    normals = solid * normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    depth = (mean(hits.distance[..., None], chosen) * solid)[..., 0]
    covered = seen.mean(-1)[..., None]
    light = colour[..., :3] / np.maximum(colour[..., 3:4], 1e-3)
    light = _denoise(light, mean(hits.albedo, seen), mean(hits.normal, seen), covered[..., 0])
    share = np.linspace(0, 1, size)[:, None, None]
    top, bottom = np.array(a.background)
    image = _tone(light) * covered + (top * (1 - share) + bottom * share) * (1 - covered)
    image8 = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Picture(image8, mask.astype(np.uint8), normals.astype(np.float32), depth.astype(np.float32))


def _denoise(colour: np.ndarray, albedo: np.ndarray, normal: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Average the illumination of neighbours with a like normal; the albedo, which is exact, stays sharp."""
    floor = 0.02
    light = colour / (albedo + floor)
    light = np.minimum(light, 4.0)
    total = np.zeros_like(light)
    weights = np.zeros(light.shape[:2] + (1,))
    pad = 2

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((pad, pad), (pad, pad)) + ((0, 0),) * (values.ndim - 2), mode="edge")

    big_light, big_normal, big_covered = padded(light), padded(normal), padded(covered)
    big_albedo = padded(albedo)
    n = len(light)
    for dy in range(-pad, pad + 1):
        for dx in range(-pad, pad + 1):
            window = (slice(pad + dy, pad + dy + n), slice(pad + dx, pad + dx + n))
            gap = ((big_normal[window] - normal) ** 2).sum(-1)
            tone = ((big_albedo[window] - albedo) ** 2).sum(-1) / (0.01 + (albedo**2).sum(-1))
            weight = np.exp(-gap / 0.02 - tone / 0.3 - (dx * dx + dy * dy) / 4.0) * big_covered[window]
            total += weight[..., None] * big_light[window]
            weights += weight[..., None]
    return np.where(weights > 1e-6, total / np.maximum(weights, 1e-6), light) * (albedo + floor)


def _fill_lenses(
    fine: np.ndarray, distance: np.ndarray, portrait: Portrait, cam2world: np.ndarray
) -> np.ndarray:
    """Skin seen through a lens counts as glasses (eyes and brows stay), as in CelebAMask-HQ."""
    if not portrait.lenses:
        return fine
    n = fine.shape[0]
    rays = view_rays(cam2world, n)
    origin = cam2world[:3, 3]
    through = np.isin(fine, [CLASSES.index("skin"), CLASSES.index("nose")])
    fine = fine.copy()
    for lens in portrait.lenses:
        t = (lens.middle[2] - origin[2]) / rays[..., 2]
        points = origin + rays * t[..., None]
        inside = lens.contains(points.reshape(-1, 3)).reshape(n, n) & (t < distance)
        fine[inside & through] = CLASSES.index("glasses")
    return fine
