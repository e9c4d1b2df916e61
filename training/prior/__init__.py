"""The diffusion prior that edits are distilled from: Stable Diffusion + ControlNet, or a small one."""

from training.prior.load import PriorMemory, load_prior, quickest_predictions
from training.prior.models import NORMAL_PREFIX
from training.prior.prior import Prior, PriorPrediction

__all__ = [
    "NORMAL_PREFIX",
    "Prior",
    "PriorMemory",
    "PriorPrediction",
    "load_prior",
    "quickest_predictions",
]
