"""How parameters change: Adam with lazy regularisation, the average, the guard against bad gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dnnlib.errors import UserError
from torch_utils import distributed


def all_finite(gradients: list[Tensor]) -> Tensor:
    """Bool (): whether no number of any of them is infinite or none: by their norms, in a few kernels."""
    return torch.stack(torch._foreach_norm(gradients)).isfinite().all()


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of a loss by some leaves, which forget those that they had.

    They lie in memory as what they belong to, which Adam's fused step needs on CUDA: what
    ``torch.autograd.grad`` returns may lie otherwise.
    """
    for parameter in parameters:
        parameter.grad = None
    loss.backward(inputs=list(parameters))
    return tuple(parameter.grad for parameter in parameters)


class FiniteGuard:
    """Counts steps whose gradients are not finite: left out, never patched; too many end the run.

    Nothing here waits for a GPU: the counts stay where the gradients are until :meth:`check` reads them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._before = 0  # of the run that this one goes on from
        self._counts: dict[str, Tensor] = {}

    def failed(self, gradients: list[Tensor], what: str) -> Tensor:
        """Float (): 1 where not all gradients are finite, which is counted, else 0."""
        failed = (~all_finite(gradients)).float()
        if what not in self._counts:
            self._counts[what] = torch.zeros_like(failed)
        self._counts[what] += failed
        if failed.device.type == "cpu":
            self.check()
        return failed

    def check(self) -> None:
        """Raises UserError beyond ``limit`` failures."""
        if self.count > self.limit:
            what = max(self._counts, key=lambda name: float(self._counts[name]))
            raise UserError(
                f"the gradients of the {what} were not finite, step {self.count} of that kind "
                f"(max_nonfinite={self.limit}): lower the learning rates or raise --gamma, then --resume "
                "from the last state"
            )

    @property
    def count(self) -> int:
        """Steps left out so far."""
        return self._before + sum(int(count) for count in self._counts.values())

    @count.setter
    def count(self, count: int) -> None:
        self._before, self._counts = count, {}


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
            self.parameters,
            lr=lr * ratio,
            betas=(betas[0] ** ratio, betas[1] ** ratio),
            eps=1e-8,
            fused=True,
            capturable=any(p.is_cuda for p in self.parameters),  # by training.graphs
        )

    def apply(self) -> None:
        """Takes a step with the accumulated gradients, unless they are not finite, and clears them."""
        distributed.all_reduce_mean_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            # the fused step leaves everything as it is where this is 1, as it does for a GradScaler
            self.optimiser.found_inf = self.guard.failed(gradients, self.what)
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """What the optimiser remembers; rates and betas stay those of the configuration, and so does what
        depends on the device."""
        load_memory(self.optimiser, state, own=("lr", "betas", "capturable"))


def load_memory(optimiser: torch.optim.Optimizer, state: dict, own: Sequence[str]) -> None:
    """Loads what an optimiser remembered; the options named in ``own`` stay, since a resumed run's
    configuration may have changed."""
    kept = [{name: group[name] for name in own} for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, options in zip(optimiser.param_groups, kept, strict=True):
        group.update(options)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current for parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(current.parameters()), 1 - decay)
    torch._foreach_copy_(list(average.buffers()), list(current.buffers()))


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
