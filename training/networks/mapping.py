"""Latent and camera label to w (method sections 2.1 and 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_utils import distributed
from training.networks.layers import FullyConnectedLayer, normalize_second_moment


class MappingNetwork(nn.Module):
    """z (N, z_dim) and label (N, c_dim) -> w (N, num_ws, w_dim).

    ``z_dim`` or ``c_dim`` may be 0. ``num_ws=None`` (a discriminator's mapping) returns (N, w_dim) and keeps
    no average.
    """

    w_avg: Tensor | None

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        if z_dim + c_dim == 0:
            raise ValueError("a mapping needs a latent or a label: z_dim and c_dim are both 0")
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        embedded = w_dim if c_dim > 0 else 0
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embedded)
        widths = [z_dim + embedded] + [w_dim] * num_layers
        for index, (width, following) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layer = FullyConnectedLayer(width, following, activation="lrelu", lr_multiplier=lr_multiplier)
            self.add_module(f"fc{index}", layer)
        self.register_buffer("w_avg", torch.zeros(w_dim) if num_ws is not None else None)

    def forward(
        self,
        z: Tensor | None,
        c: Tensor | None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_average: bool = False,
    ) -> Tensor:
        """Maps; ``update_average`` lets the batches of all processes move ``w_avg`` (training only, not
        differentiated).

        Truncation: w_avg + psi (w - w_avg) on the first ``truncation_cutoff`` of the w's (None: on all).
        """
        parts = []
        if self.z_dim > 0:
            parts.append(normalize_second_moment(z.float()))
        if self.c_dim > 0:
            parts.append(normalize_second_moment(self.embed(c.float())))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        for index in range(self.num_layers):
            x = getattr(self, f"fc{index}")(x)
        if self.num_ws is None:
            return x
        if update_average:
            self.w_avg.copy_(distributed.all_reduce_mean(x.mean(dim=0)).lerp(self.w_avg, self.w_avg_beta))
        ws = x[:, None].expand(-1, self.num_ws, -1)
        if truncation_psi == 1:
            return ws
        cutoff = self.num_ws if truncation_cutoff is None else truncation_cutoff
        truncated = self.w_avg.lerp(ws[:, :cutoff], truncation_psi)
        return torch.cat([truncated, ws[:, cutoff:]], dim=1)
