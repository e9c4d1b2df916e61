"""A configuration of ``train_generator.py`` whose run takes seconds."""

from __future__ import annotations

TINY_RUN = {
    "generator": {
        "labels": "catmask-hq",
        "resolution": 16,
        "z_dim": 8,
        "w_dim": 8,
        "plane_resolution": 16,
        "plane_channels": 4,
        "channel_base": 128,
        "channel_max": 8,
        "decoder_width": 8,
        "part_width": 4,
        "feature_channels": 4,
        "plane_projection": "orthogonal",
        "marching": "sigma",
        "learn_beta": True,
        "raw_resolution": 8,
        "samples_coarse": 4,
        "samples_fine": 4,
        "sr_resolution": 8,
        "sr_channels": [4],
    },
    "discriminator": {"channel_base": 128, "channel_max": 8, "group_size": 2},
    "loss": {"r1_every": 2, "density_regularisation_every": 2, "density_regularisation_points": 16},
    "schedule": {"raw_resolution": 8, "raw_resolution_final": 8},
    "sphere": {"steps": 2, "batch": 2, "points": 16},
    "data": {"workers": 0, "mirror": True},
    "kimg": 0.016,
    "batch": 4,
    "log_kimg": 0.004,
    "image_kimg": 1.0,
    "snapshot_kimg": 1.0,
}
