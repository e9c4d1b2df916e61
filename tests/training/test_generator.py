"""Files of generators: what is refused, in one line that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dnnlib import config as config_files
from dnnlib.errors import UserError
from tests.tiny_generator import TINY_GENERATOR
from torch_utils import checkpoint
from training.generator import FORMAT, Generator

CONFIG = config_files.to_dict(TINY_GENERATOR)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"config": CONFIG}, "not a generator of this project"),
        ({"format": FORMAT}, "config"),
        ({"format": FORMAT, "config": None}, "of another version"),
        ({"format": FORMAT, "config": {**CONFIG, "foo": 1}}, "foo"),
        ({"format": FORMAT, "config": {**CONFIG, "plane_resolution": 0}}, "plane_resolution is 0"),
        ({"format": FORMAT, "config": {**CONFIG, "samples_coarse": -3}}, "samples_coarse is -3"),
        ({"format": FORMAT, "config": {**CONFIG, "w_dim": 16}}, "of another version"),
    ],
)
def test_a_file_that_is_no_such_generator_says_so(tmp_path: Path, meta: dict, said: str) -> None:
    file = tmp_path / "g.safetensors"
    checkpoint.save(file, Generator(TINY_GENERATOR).state_dict(), meta)
    with pytest.raises(UserError, match=said) as caught:
        Generator.load(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    generator = Generator(TINY_GENERATOR)
    with torch.no_grad():
        generator.decoder.shape.bias2.fill_(float("nan"))
    generator.save(tmp_path / "g.safetensors")
    with pytest.raises(UserError, match="not numbers"):
        Generator.load(tmp_path / "g.safetensors")
