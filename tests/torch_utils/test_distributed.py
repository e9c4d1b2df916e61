"""torch_utils/distributed.py: two processes do what one would, and one process needs no group."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from dnnlib.errors import UserError
from torch_utils import distributed

WORKER = """
import json, sys, torch
from torch_utils import distributed
torch.set_num_threads(1)
device = distributed.init("cpu")
rank, world = distributed.rank(), distributed.world_size()
torch.manual_seed(rank)  # the processes start differently
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
net[1].running_mean.normal_()
unused, half_used = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
distributed.broadcast_module(net)
net.eval()
x = torch.arange(24.0).view(8, 3) / 24
loss = net(x[rank::world]).square().mean()
if rank == 0:
    loss = loss + half_used.sum()
loss.backward()
distributed.all_reduce_mean_gradients([*net.parameters(), unused, half_used])
mean = distributed.all_reduce_mean(torch.tensor(float(rank)))
distributed.barrier()
result = {
    "rank": rank, "world": world, "main": distributed.is_main(), "mean": mean.item(),
    "weights": [p.tolist() for p in net.parameters()], "buffer": net[1].running_mean.tolist(),
    "gradients": [p.grad.tolist() for p in net.parameters()],
    "unused": unused.grad is None, "half_used": half_used.grad.tolist(),
}
open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(result))
distributed.shutdown()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory, root) -> list[dict]:
    """What each of two processes under torchrun saw."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, str(script), str(folder)], check=True, env=env, timeout=120, capture_output=True
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_group(two) -> None:
    assert [r["rank"] for r in two] == [0, 1]
    assert [r["main"] for r in two] == [True, False]
    assert [r["world"] for r in two] == [2, 2]
    assert [r["mean"] for r in two] == [0.5, 0.5]


def test_broadcast_makes_modules_equal(two) -> None:
    assert two[0]["weights"] == two[1]["weights"]
    assert two[0]["buffer"] == two[1]["buffer"] != [0.0] * 4


def test_gradients_are_those_of_the_whole_batch(two) -> None:
    assert two[0]["gradients"] == two[1]["gradients"]
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    for parameter, values in zip(net.parameters(), two[0]["weights"], strict=True):
        parameter.data = torch.tensor(values)
    net[1].running_mean = torch.tensor(two[0]["buffer"])
    net.eval()(torch.arange(24.0).view(8, 3) / 24).square().mean().backward()
    for parameter, values in zip(net.parameters(), two[0]["gradients"], strict=True):
        # sums in another order: a few units in the last place of float32
        torch.testing.assert_close(parameter.grad, torch.tensor(values), rtol=1e-5, atol=1e-7)


def test_parameters_without_a_gradient(two) -> None:
    assert [r["unused"] for r in two] == [True, True]
    assert [r["half_used"] for r in two] == [[0.5, 0.5], [0.5, 0.5]]


def test_a_single_process_needs_no_group(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.init("cpu") == torch.device("cpu")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    distributed.all_reduce_mean_gradients([parameter])
    distributed.broadcast_module(torch.nn.Linear(1, 1))
    distributed.barrier()
    assert parameter.grad.tolist() == [1.0, 1.0]
    assert distributed.all_reduce_mean(torch.tensor(2.0)) == 2.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_a_user_error() -> None:
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        distributed.init("cuda")
