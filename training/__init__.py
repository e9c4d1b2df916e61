"""Everything that learns: networks, rendering, losses, the loop, the prior and the edit."""

import torch_utils  # noqa: F401  before torch: it sets what torch reads once
