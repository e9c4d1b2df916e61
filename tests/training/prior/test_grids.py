import numpy as np
import torch
from PIL import Image

from training.prior.data import read_data
from training.prior.grids import grid_indices, save_grid, to_tile


def test_tiles_and_grid(tmp_path):
    tile = to_tile(torch.tensor([-1.0, 0.0, 3.0]).view(3, 1, 1).expand(3, 2, 2))
    assert tile.shape == (2, 2, 3) and tile[0, 0].tolist() == [0, 128, 255]
    save_grid(tmp_path / "grid.png", [[tile, tile, tile], [tile, tile, tile]], scale=2)
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (8, 12, 3)


def test_grid_pictures_are_no_mirror_images(tiny_config):
    data = read_data(tiny_config)
    assert grid_indices(data, 3) == [0, 2, 4]
    assert max(grid_indices(data, 20)) < 6
