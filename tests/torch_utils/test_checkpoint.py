"""torch_utils/checkpoint.py: state comes back bit for bit, and broken files say so."""

from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dnnlib.errors import UserError
from torch_utils import checkpoint


def same(a, b) -> bool:
    """Whether two nested states are equal in values, types and order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def round_trip(path, nested):
    tensors, structure = checkpoint.flatten(nested)
    checkpoint.save(path, tensors, {"structure": structure})
    tensors, meta = checkpoint.load(path)
    return checkpoint.unflatten(tensors, meta["structure"])


def test_optimiser_goes_on_as_if_nothing_had_happened(tmp_path) -> None:
    def make():
        torch.manual_seed(1)
        net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Softplus(), torch.nn.Linear(5, 2))
        groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}]
        return net, torch.optim.Adam(groups, lr=0.01, betas=(0.0, 0.99))

    def step(net, optimiser) -> None:
        optimiser.zero_grad()
        net(torch.ones(4, 3)).square().sum().backward()
        optimiser.step()

    net, optimiser = make()
    step(net, optimiser)
    state = {"net": net.state_dict(), "optimiser": optimiser.state_dict()}
    stored = round_trip(tmp_path / "a.safetensors", {**state, "net": dict(state["net"])})

    other, other_optimiser = make()
    other.load_state_dict(stored["net"])
    other_optimiser.load_state_dict(stored["optimiser"])
    for _ in range(3):
        step(net, optimiser)
        step(other, other_optimiser)
    assert same(dict(net.state_dict()), dict(other.state_dict()))
    assert same(optimiser.state_dict(), other_optimiser.state_dict())


def test_random_states(tmp_path) -> None:
    states = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "generator": np.random.default_rng(3).bit_generator.state,  # 128-bit integers
        "python": random.getstate(),
    }
    stored = round_trip(tmp_path / "a.safetensors", states)
    assert same(states, stored)
    drawn = (torch.rand(3), np.random.rand(3), random.random())
    torch.set_rng_state(stored["torch"])
    np.random.set_state(stored["numpy"])
    random.setstate(stored["python"])
    assert same(drawn, (torch.rand(3), np.random.rand(3), random.random()))


def test_all_kinds_of_values(tmp_path) -> None:
    nested = {
        "scalars": [1, -0.5, True, None, "x", float("inf"), float("-inf"), float("nan")],
        "bytes": (b"", b"\x00\xff"),
        1: {"1": torch.zeros(2), 1: torch.ones(2)},  # keys of different types that look alike
        ("a", 2): torch.tensor(3.0),
        "empty": [{}, [], (), torch.empty(0, 3), np.zeros((0, 2))],
        "types": [torch.zeros(2, dtype=t) for t in (torch.bool, torch.int64, torch.bfloat16, torch.float64)],
        "arrays": [np.arange(4, dtype=np.uint32), np.array(2.5)],
    }
    assert same(nested, round_trip(tmp_path / "a.safetensors", nested))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=12,
)


@given(values)
@settings(max_examples=60)
def test_anything_nested_survives_json(value) -> None:
    tensors, structure = checkpoint.flatten(value)
    assert same(value, checkpoint.unflatten(tensors, json.loads(json.dumps(structure, allow_nan=False))))


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot store a .* at 'a/0'"):
        checkpoint.flatten({"a": [object()]})


def test_shared_and_strided_tensors(tmp_path) -> None:
    a = torch.arange(12.0)
    tensors = {"a": a, "same": a, "part": a[2:5], "turned": a.view(3, 4).T, "wide": a[:1].expand(4)}
    checkpoint.save(tmp_path / "a.safetensors", tensors, {})
    stored, _ = checkpoint.load(tmp_path / "a.safetensors")
    assert same(tensors, {name: stored[name] for name in tensors})


def test_meta_travels_with_the_file(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.zeros(1)}, {"kimg": 3.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"kimg": 3.5}
    moved = path.rename(tmp_path / "b.safetensors")  # without its JSON
    assert checkpoint.load(moved)[1] == {"kimg": 3.5} == checkpoint.load_meta(moved)


def test_failed_save_keeps_the_old_file(tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.zeros(1)}, {"version": 1})
    with pytest.raises(TypeError):
        checkpoint.save(path, {"x": torch.zeros(2)}, {"version": object()})
    assert checkpoint.load(path)[1] == {"version": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


@pytest.mark.parametrize("length", [0, 4, 60, -1])
def test_truncated_files(tmp_path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="a.safetensors is not a complete safetensors file"):
        checkpoint.load(path)


def test_foreign_files_are_not_executed(tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('executed')",))

    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a complete safetensors file"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_missing_tensor_is_named() -> None:
    tensors, structure = checkpoint.flatten({"a": {"b": torch.zeros(1)}})
    with pytest.raises(UserError, match="lacks the tensor 'a/b'"):
        checkpoint.unflatten({}, structure)


@pytest.mark.parametrize(("text", "said"), [("{not json", "is not JSON"), ("[1, 2]", "says of itself")])
def test_a_header_that_says_nothing_is_a_user_error(tmp_path, text, said) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata={"meta": text})
    with pytest.raises(UserError, match=said):
        checkpoint.load(file)


def test_a_name_is_checked_before_the_work(tmp_path) -> None:
    checkpoint.check_name(tmp_path / "new" / "x.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").touch()
    for path in ("x.txt", "folder.safetensors", "file/x.safetensors"):
        with pytest.raises(UserError):
            checkpoint.check_name(tmp_path / path)
