"""Schedules at hand-computed moments."""

from __future__ import annotations

import pytest
import torch

from dnnlib import config as config_files
from dnnlib.errors import UserError
from training.config import ScheduleConfig, TrainConfig, WarmStartConfig
from training.launch import CONFIGS
from training.schedules import average_decay, crossed, lowered_beta, moment, warm_up_share

CONFIG = ScheduleConfig(
    swap_kimg=1000,
    swap_final=0.5,
    blur_sigma=10,
    blur_kimg=200,
    raw_resolution=64,
    raw_resolution_final=128,
    raw_switch_kimg=1000,
    raw_fade_kimg=1000,
)


@pytest.mark.parametrize(
    ("kimg", "swap", "blur", "raw"),
    [(0, 1.0, 10, 64), (100, 0.95, 5, 64), (200, 0.9, 0, 64), (1500, 0.5, 0, 96), (9000, 0.5, 0, 128)],
)
def test_published_schedules(kimg: float, swap: float, blur: float, raw: int):
    now = moment(CONFIG, round(kimg * 1000), batch=32)
    assert now.swap_probability == pytest.approx(swap)
    assert now.blur * 512 == pytest.approx(blur)
    assert now.raw_resolution == raw


def test_blur_fades_in_proportion_to_the_batch():
    assert moment(CONFIG, 50_000, batch=16).blur * 512 == pytest.approx(5)


def test_noise_on_masks_goes_from_one_level_to_another():
    config = ScheduleConfig(mask_noise=0.6, mask_noise_final=0.2, mask_noise_kimg=100)
    levels = [moment(config, images, batch=32).mask_noise for images in (0, 50_000, 200_000)]
    assert levels == pytest.approx([0.6, 0.4, 0.2])
    assert moment(ScheduleConfig(), 50_000, batch=32).mask_noise == 0


def test_average_has_the_half_life_of_its_batch():
    # half-life 5 kimg at batch 16: after 312.5 steps of 16 images half of the old average is left
    assert average_decay(10, 0.05, 10**9, 16) ** 312.5 == pytest.approx(0.5)


def test_average_forgets_the_start():
    assert average_decay(10, 0.05, 0, 32) == 0
    assert average_decay(10, 0.05, 6400, 32) == pytest.approx(0.5 ** (32 / 320))


def test_crossing_a_multiple_of_so_many_kimg():
    assert crossed(996, 1000, 1.0) and not crossed(1000, 1004, 1.0)
    assert crossed(1996, 2004, 1.0) and crossed(0, 4, 0.0004)  # less than an image: every step
    assert not crossed(0, 10**6, 0.0)


def test_beta_needs_time_to_fall():
    for config in (WarmStartConfig, ScheduleConfig):
        with pytest.raises(UserError, match="beta_kimg is 0"):
            config(beta=0.02, beta_kimg=0)


def test_beta_is_halved_until_it_is_small_enough_and_never_raised():
    config = ScheduleConfig(beta=0.01, beta_kimg=0.1)
    beta = torch.tensor(0.04, dtype=torch.float64)
    for _ in range(10):
        beta = lowered_beta(beta, config, batch=10)
    assert float(beta) == pytest.approx(0.02)  # 100 images
    for _ in range(20):
        beta = lowered_beta(beta, config, batch=10)
    assert beta == 0.01
    small = torch.tensor(0.004)
    assert lowered_beta(small, config, batch=10) == small


@pytest.mark.parametrize("steps", [9, 10, 11, 20, 100])
def test_one_cycle_schedules_of_any_length(steps: int):
    for share in (0.05, 0.1):
        optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, 1.0, steps, pct_start=warm_up_share(share, steps)
        )
        for _ in range(steps):
            optimiser.step()
            rate.step()
        assert rate.get_last_lr()[0] < 0.1
    assert warm_up_share(0.05, 100) == 0.05


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_configurations_end_at_the_resolution_that_their_generators_render_at(path):
    config = config_files.load(TrainConfig, path)
    end = moment(config.schedule, round(1000 * config.kimg), config.batch)
    assert end.raw_resolution == config.generator.raw_resolution
    assert end.blur == 0
