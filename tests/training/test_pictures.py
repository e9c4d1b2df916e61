"""Pictures, sheets and videos."""

from __future__ import annotations

import numpy as np
import torch

from training.pictures import depth_to_uint8, sheet, tile, tile_side, to_uint8, write_png


def test_values_map_to_the_ends_of_the_range() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 4).expand(3, 1, 4)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 128, 255, 255]
    assert depth_to_uint8(torch.tensor([[[2.0, 3.0, 9.0]]]), 2.0, 3.0).tolist() == [[255, 0, 0]]


def test_a_sheet_has_every_picture_in_its_place() -> None:
    page = sheet([[np.full((4, 4, 3), 10 * i + j, dtype=np.uint8) for j in range(3)] for i in range(2)])
    assert page.shape == (10, 16, 3)
    assert page[0, 0, 0] == 0 and page[6, 12, 0] == 12 and page[4, 4, 0] == 255


def test_tiles_keep_the_colours_of_a_mask() -> None:
    mask = np.zeros((8, 8, 3), dtype=np.uint8)
    mask[:, 4:] = 204
    assert set(np.unique(tile(mask, 32, nearest=True))) == {0, 204}
    assert [tile_side(r) for r in (16, 64, 192, 512)] == [128, 128, 192, 256]


def test_a_picture_is_written_with_its_folder(tmp_path) -> None:
    write_png(tmp_path / "new" / "a.png", np.zeros((2, 2, 3), dtype=np.uint8))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
