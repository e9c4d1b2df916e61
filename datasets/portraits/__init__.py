"""Renders the bundled synthetic portrait set: image, mask, camera, normals, depth, caption, attributes."""
