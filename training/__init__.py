"""Everything that learns: networks, rendering, losses, the loop, the prior and the edit."""
