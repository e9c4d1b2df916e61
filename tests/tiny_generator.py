"""A generator that is made and rendered in a moment, for all tests that need one whatever it shows."""

from __future__ import annotations

from training.config import GeneratorConfig

TINY_GENERATOR = GeneratorConfig(
    labels="ffhq-mask",
    resolution=16,
    z_dim=8,
    w_dim=8,
    plane_resolution=8,
    plane_channels=4,
    channel_base=64,
    channel_max=8,
    decoder_width=8,
    part_width=4,
    feature_channels=4,
    marching="sigma",
    raw_resolution=8,
    samples_coarse=6,
    samples_fine=4,
    sr_resolution=8,
    sr_channels=(8,),
)
