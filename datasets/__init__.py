"""Pictures, masks and cameras coming in."""

import torch_utils  # noqa: F401  before torch: it sets what torch reads once
