"""The diffusion prior that edits are distilled from: Stable Diffusion + ControlNet, or a small one."""

from training.prior.models import NORMAL_PREFIX
from training.prior.prior import Prior, PriorPrediction, load_prior

__all__ = ["NORMAL_PREFIX", "Prior", "PriorPrediction", "load_prior"]
