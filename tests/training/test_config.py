"""Values that no run can work with are refused when a configuration is read."""

from __future__ import annotations

import pytest

from dnnlib import config as config_files
from dnnlib.errors import UserError
from training.config import TrainConfig

PORTRAITS = "configs/portraits-64.yaml"


@pytest.mark.parametrize(
    "override",
    [
        "parser.groups=0",
        "parser.widths=[]",
        "parser.widths=[0]",
        "parser.resolution=0",
        "parser.resolution=4",
        "parser.lr=-1",
        "generator.sr_channels=[0]",
        "generator.channel_base=1",
        "generator.part_width=0",
        "generator.mapping_layers=0",
        "generator.z_dim=0",
        "generator.backbone_clamp=-1",
        "generator.beta=0",
        "generator.samples_coarse=3",
        "generator.feature_channels=2",
        "generator.labels=none",
        "generator.camera.box_warp=0",
        "generator.camera.near=4",
        "discriminator.channel_base=0",
        "discriminator.channel_max=0",
        "discriminator.group_size=0",
        "augment.strength=2",
        "augment.target=7",
        "schedule.swap_final=3",
        "seed=99999999999999999999",
    ],
)
def test_what_cannot_be_is_refused_and_named(root, override: str):
    """The message begins with what was given, and goes on with the field."""
    with pytest.raises(UserError) as caught:
        config_files.load(TrainConfig, root / PORTRAITS, [override])
    name = override.partition("=")[0]
    message = str(caught.value)
    assert name in message and "\n" not in message
    if name != "generator.sr_channels":  # which does not fit the resolution either
        assert message.startswith(override)


def test_a_generator_of_published_weights_needs_no_parts():
    from training.config import GeneratorConfig

    assert GeneratorConfig(labels="none", part_width=0).parts == 0
