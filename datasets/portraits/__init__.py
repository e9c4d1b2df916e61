"""Renders the synthetic portrait set: image, mask, camera, normals, depth, caption, attributes."""

from pathlib import Path

# The first 64 pictures of seed 0 at 64 x 64, for tests and a first try.
BUNDLED = Path(__file__).resolve().parent / "bundled"

# Seven views each of four other heads (`python -m datasets.portraits.views --count 4`), without normals.
BUNDLED_VIEWS = BUNDLED.with_name("bundled_views")
