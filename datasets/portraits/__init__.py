"""Renders the synthetic portrait set: image, mask, camera, normals, depth, caption, attributes."""

from pathlib import Path

BUNDLED = (
    Path(__file__).resolve().parent / "bundled"
)  # its first 64 pictures, 64 x 64, for tests and a first try
