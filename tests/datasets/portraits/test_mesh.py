"""Small meshes whose answers are known by hand."""

import numpy as np

from datasets.portraits.mesh import clip, ribbons, sphere, tubes, vertex_normals


def area(vertices, faces):
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2


def test_sphere_is_closed_and_points_outwards():
    vertices, faces = sphere(np.array([1.0, 2.0, 3.0]), 2.0, 40, 60)
    assert abs(area(vertices, faces) / (16 * np.pi) - 1) < 0.01  # facets cut the corners
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    outwards = np.sum(np.cross(b - a, c - a) * (a - [1, 2, 3]), axis=1)
    assert (outwards > -1e-9).all()


def test_clip_cuts_along_the_zero_line():
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    new_faces, cut = clip(faces, 0.25 - vertices[:, 0], vertices)
    assert abs(area(cut, new_faces) - 0.25) < 1e-12
    assert cut[:, 0].max() <= 0.25 + 1e-12
    assert (vertex_normals(cut, new_faces)[:, 2] > 0).all()  # the winding is kept


def test_tube_keeps_its_radius():
    path = np.stack([np.linspace(0, 1, 5), np.zeros(5), np.zeros(5)], 1)[None]
    vertices, _, normals = tubes(path, 0.1, sides=6)
    assert np.allclose(np.linalg.norm(vertices[:, 1:], axis=1), 0.1)
    assert np.allclose(normals[:, 0], 0)


def test_ribbon_faces_the_viewer():
    path = np.stack([np.zeros(4), np.linspace(0, 1, 4), np.zeros(4)], 1)[None]
    vertices, faces, normals = ribbons(path, 0.1, np.array([0.0, 0.0, 1.0]))
    assert np.allclose(vertices[:, 2], 0) and abs(area(vertices, faces) - 0.2) < 1e-12
    assert (normals[:, 2] > 0).all()
