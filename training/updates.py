"""How parameters change: Adam with lazy regularisation, the average, the guard against bad gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils import distributed


class FiniteGuard:
    """Counts steps whose gradients are not finite: left out, never patched; too many end the run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def finite(self, gradients: list[Tensor], what: str) -> bool:
        """Whether all gradients are finite numbers. Raises UserError beyond ``limit`` failures."""
        if not gradients:
            return True
        norms = torch.stack(torch._foreach_norm(gradients))
        if bool(norms.isfinite().all()):
            return True
        self.count += 1
        if self.count > self.limit:
            raise UserError(
                f"the gradients of the {what} were not finite, step {self.count} of that kind "
                f"(max_nonfinite={self.limit}): lower the learning rates or raise --gamma, then --resume "
                "from the last state"
            )
        return False


class Updater:
    """Adam on the parameters of one network, with gradients averaged over the processes.

    A regulariser that runs as a step of its own after every ``lazy_every`` steps makes more steps of the same
    optimiser: lr and the betas are adjusted by n / (n + 1) so that it forgets at the same pace (StyleGAN2,
    appendix B). The regulariser's loss must be multiplied by ``lazy_every``.
    """

    def __init__(
        self,
        what: str,
        parameters: Iterable[nn.Parameter],
        guard: FiniteGuard,
        *,
        lr: float,
        betas: tuple[float, float] = (0.0, 0.99),
        lazy_every: int = 0,
    ) -> None:
        self.what = what
        self.guard = guard
        self.parameters = [p for p in parameters if p.requires_grad]
        ratio = lazy_every / (lazy_every + 1) if lazy_every else 1.0
        self.optimiser = torch.optim.Adam(
            self.parameters, lr=lr * ratio, betas=(betas[0] ** ratio, betas[1] ** ratio), eps=1e-8, fused=True
        )

    def apply(self) -> bool:
        """Takes a step with the accumulated gradients and clears them; False: not finite, so no step."""
        distributed.all_reduce_mean_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        finite = self.guard.finite(gradients, self.what)
        if finite:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return finite

    def state_dict(self) -> dict:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """What the optimiser remembers; rates and betas stay those of the configuration, which a resumed run
        may have changed."""
        own = [{name: group[name] for name in ("lr", "betas")} for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state)
        for group, options in zip(self.optimiser.param_groups, own, strict=True):
            group.update(options)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current for parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), current.buffers(), strict=True):
        kept.copy_(buffer)


def forget(optimiser: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Makes an Adam forget the moments of some parameters, as if they were new."""
    for parameter in parameters:
        for value in optimiser.state[parameter].values():
            value.zero_()


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradients for the modules' parameters inside the block; gradients still pass through them."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
