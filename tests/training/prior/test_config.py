import pytest

from dnnlib import config as config_files
from dnnlib.errors import UserError
from training.prior.config import PriorConfig


def test_defaults_survive_an_override_inside_a_section():
    config = config_files.load(
        PriorConfig, {}, ["autoencoder.optimiser.kimg=3", "diffusion.optimiser.lr=0.1"]
    )
    assert config.autoencoder.optimiser.kimg == 3
    assert config.autoencoder.optimiser.batch == PriorConfig().autoencoder.optimiser.batch
    assert config.diffusion.optimiser.lr == 0.1


def test_saved_config_loads_again(tmp_path):
    config = config_files.load(PriorConfig, {}, ["seed=5", "diffusion.channels=[32,64,64]"])
    config_files.save(config, tmp_path / "config.json")
    assert config_files.load(PriorConfig, tmp_path / "config.json") == config


@pytest.mark.parametrize(
    "override",
    [
        "diffusion.condition_channels=[8,8]",
        "diffusion.attention=[true]",
        "diffusion.groups=7",
        "autoencoder.groups=5",
        "resolution=60",
    ],
)
def test_sizes_that_do_not_fit_are_named(override):
    with pytest.raises(UserError, match=override.split("=")[0].split(".")[-1]):
        config_files.load(PriorConfig, {}, [override])
