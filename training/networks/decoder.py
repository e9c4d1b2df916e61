"""The decoder: features of a point to its colour, its signed distance and one signed distance per part.

Method section 2.3. Every head is a two-layer perceptron with softplus in between and equalised weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from training.networks.perceptrons import PartPerceptrons, Perceptron

# Colour features may leave [0, 1] by this much, so that black and white need no saturated sigmoid.
_COLOUR_MARGIN = 0.001
_BETA_FLOOR = 1e-4
SURFACE_DENSITY = 10.0  # level at which the surface of a plain EG3D generator is usually drawn


class TriplaneDecoder(nn.Module):
    """Texture head, global SDF head and P local SDF heads.

    Args:
        channels: features per point, the mean over the three planes; texture and shape have as many.
        width: hidden units of the texture head and the global SDF head.
        parts: number P of local heads, background included.
        part_width: hidden units of each local head.
        feature_channels: colour features F; the first three are RGB.
        beta: width of the step from empty to full, in world units (see :meth:`density`).
        learn_beta: make beta a parameter; the published models keep it as a buffer.
        direct: the global head gives the density itself, as ``SURFACE_DENSITY - density`` (plain EG3D).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        parts: int,
        part_width: int,
        feature_channels: int,
        beta: float = 0.1,
        learn_beta: bool = False,
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.parts = parts
        self.feature_channels = feature_channels
        self.texture = Perceptron(channels, width, feature_channels)
        self.shape = Perceptron(channels, width, 1)
        self.part_shapes = PartPerceptrons(parts, channels, part_width) if parts else None
        self.direct = direct
        sigmoid_beta = torch.full((1,), float(beta))
        if learn_beta:
            self.sigmoid_beta = nn.Parameter(sigmoid_beta)
        else:
            self.register_buffer("sigmoid_beta", sigmoid_beta)

    def sdf(self, shape_features: Tensor) -> Tensor:
        """Global signed distance s, negative inside. (..., C) -> (..., 1)."""
        return self.shape(shape_features)

    def part_sdf(self, shape_features: Tensor) -> Tensor:
        """Signed distances s_p of the parts. (..., C) -> (..., P)."""
        return self.part_shapes(shape_features)

    def colour(self, texture_features: Tensor) -> Tensor:
        """Colour features, in (-0.001, 1.001). (..., C) -> (..., F)."""
        return torch.sigmoid(self.texture(texture_features)) * (1 + 2 * _COLOUR_MARGIN) - _COLOUR_MARGIN

    def density(self, sdf: Tensor) -> Tensor:
        """sigma = sigmoid(-s / b) / b with b = |beta| + 1e-4, per world unit of ray length; any shape."""
        if self.direct:
            return SURFACE_DENSITY - sdf
        sharpness = 1 / (self.sigmoid_beta.abs() + _BETA_FLOOR)
        return torch.sigmoid(sdf * -sharpness) * sharpness

    def published_names(self) -> dict[str, Tensor]:
        """All tensors under the names and shapes of the published models (detached views of ours)."""
        named = {"sigmoid_beta": self.sigmoid_beta}
        named |= _published("net_tex", self.texture) | _published("net_main_shp", self.shape)
        for part in range(self.parts):
            named |= _published(f"net_main_shp_bbbb_{part}", self.part_shapes, part)
        return {name: tensor.detach() for name, tensor in named.items()}

    def load_published(self, params: Mapping[str, Tensor]) -> None:
        """Copies tensors given under their published names; every one must be there, with its shape."""
        wanted = self.published_names()
        missing = sorted(wanted.keys() - params.keys())
        unknown = sorted(params.keys() - wanted.keys())
        if missing or unknown:
            problem = f"lack {missing[0]}" if missing else f"have an unknown {unknown[0]}"
            raise UserError(f"decoder weights {problem}; was the model made with {self.parts} parts?")
        for name, target in wanted.items():
            value = torch.as_tensor(params[name])
            if value.shape != target.shape:
                raise UserError(
                    f"decoder weight {name} is {tuple(value.shape)}, expected {tuple(target.shape)}"
                )
            target.copy_(value)  # `target` is a view of our own tensor


def _published(prefix: str, head: nn.Module, part: int | None = None) -> dict[str, Tensor]:
    """Published names (layer 1 is the softplus) to the tensors of a head, or of one part of a batched one."""
    layers = {"0": (head.weight1, head.bias1), "2": (head.weight2, head.bias2)}
    named = {}
    for layer, (weight, bias) in layers.items():
        named[f"{prefix}.{layer}.weight"] = weight if part is None else weight[part]
        named[f"{prefix}.{layer}.bias"] = bias if part is None else bias[part]
    return named
