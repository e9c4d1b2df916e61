"""The reader of published pickles: what it understands, and that nothing in a file ever runs."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dnnlib.errors import UserError
from tests.published_files import EasyDict, dump, tree, write_mate3d
from torch_utils.legacy import read_networks
from torch_utils.legacy.__main__ import main
from torch_utils.legacy.machine import Global, Inert, MalformedPickle, read_value
from torch_utils.legacy.modules import as_dict, plain
from torch_utils.legacy.tensors import TensorReader, parse_storage

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def value_of(data: bytes):
    return read_value(memoryview(data))[0]


def tensor_of(data: bytes) -> torch.Tensor:
    return TensorReader(len(data)).find(value_of(data)).read()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_survive_every_protocol(protocol: int) -> None:
    shared = [1, "x"]
    value = {
        "numbers": [0, 255, 65535, -1, 2**40, -(2**70), 1.5, -0.0, True, False, None],
        "texts": ["", "plain", "ä\n\U0001f600", "long " * 100],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "shared": [shared, shared],
    }
    got = value_of(pickle.dumps(value, protocol))
    assert got == value and got["shared"][0] is got["shared"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS[3:])  # before, Python had no bytes to pickle
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t()[1:],  # a view with strides and an offset
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.randn(3).bfloat16(),
        torch.randn(3).half(),
        torch.tensor([True, False]),
        torch.tensor([-(2**40), 2]),
        torch.nn.Parameter(torch.randn(2)),
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}",
)
def test_tensors_are_copied_as_they_were(protocol: int, tensor: torch.Tensor) -> None:
    got = tensor_of(pickle.dumps(tensor, protocol))
    assert got.dtype == tensor.dtype and got.shape == tensor.shape and torch.equal(got, tensor.detach())


def test_arrays_and_scalars_of_numpy() -> None:
    for array in (np.arange(6, dtype=">i2").reshape(2, 3), np.asfortranarray(np.eye(2, 3)), np.ones(1)):
        got = tensor_of(pickle.dumps(array, 4))
        np.testing.assert_array_equal(got.numpy(), array)
    assert plain(value_of(pickle.dumps(np.float64(1.5), 4)), TensorReader(0)) == 1.5
    with pytest.raises(MalformedPickle, match="not numbers"):
        tensor_of(pickle.dumps(np.array([None, 1], dtype=object), 4))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_dictionaries_of_other_classes(protocol: int) -> None:
    ordered = OrderedDict([("b", 1), ("a", 2)])
    easy = EasyDict(x=1)
    for value in (ordered, easy):
        assert list(as_dict(value_of(dump(value, protocol))).items()) == list(value.items())


@pytest.mark.parametrize("protocol", PROTOCOLS[3:])
def test_a_module_is_its_tensors_and_settings(protocol: int, tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(2, 3), "a.b.bias": torch.randn(4), "a.resample_filter": torch.ones(2)}
    module = tree(tensors, "Thing", size=3, options=EasyDict(rate=0.5, names=["x"], other=print))
    (tmp_path / "m.pkl").write_bytes(dump({"G_ema": module, "D": None}, protocol))
    (found,) = read_networks(tmp_path / "m.pkl").values()
    assert found.kind == "Thing" and found.attribute("size") == 3
    assert found.attribute("options") == {"rate": 0.5, "names": ["x"], "other": None}
    read = {name: tensor.read() for name, tensor in found.tensors().items()}
    assert read.keys() == tensors.keys() and all(torch.equal(read[k], tensors[k]) for k in tensors)


# what a hostile file may try; MARK stands for the path of a file that appears if anything runs

COMMAND = "touch MARK"
TRICKS = {
    "reduce of a global": b"cos\nsystem\n(VCOMMAND\ntR.",
    "reduce of a stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(VCOMMAND\ntR.",
    "eval": b"cbuiltins\neval\n(V__import__('os').system('COMMAND')\ntR.",
    "exec": b"c__builtin__\nexec\n(Vimport os; os.system('COMMAND')\ntR.",
    "inst": b"(VCOMMAND\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nVCOMMAND\no.",
    "newobj": b"\x80\x02cos\nsystem\n(VCOMMAND\nt\x81.",
    "newobj with keywords": b"\x80\x04cos\nsystem\n(VCOMMAND\nt}\x92.",
    "build with setstate": b"cbuiltins\nobject\n)R}V__setstate__\ncos\nsystem\nsbVCOMMAND\nb.",
    "copyreg": b"ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\nNtR.",
    "attributes of attributes": b"\x80\x04\x8c\x02os\x8c\x0fsystem.__call__\x93(VCOMMAND\ntR.",
    "extension registry": b"\x80\x02\x82\xf0(VCOMMAND\ntR.",
    "functools.partial": b"cfunctools\npartial\n(cos\nsystem\nVCOMMAND\ntR)R.",
    "map": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cos\nsystem\n(VCOMMAND\nltRtR.",
    "persistent id": b"(cos\nsystem\n(VCOMMAND\ntRtQ.",
    "key of a dictionary": b"}cos\nsystem\n(VCOMMAND\ntRNs.",
    "member of a set": b"\x80\x04\x8f(cos\nsystem\n(VCOMMAND\ntR\x90.",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_nothing_runs(trick: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "m.pkl"
    copyreg.add_extension("os", "system", 0xF0)
    try:
        path.write_bytes(TRICKS[trick].replace(b"COMMAND", f"touch {mark}".encode()))
        assert read_networks(path) == {}
        result = CliRunner().invoke(main, ["convert", str(path), str(tmp_path / "o.safetensors")])
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1, result.output
    assert "holds no generator" in result.output
    assert not mark.exists() and not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("trick", TRICKS)
def test_nothing_runs_inside_a_storage(trick: str, tmp_path: Path) -> None:
    """A storage is a pickle inside the pickle; torch.load would have read it."""
    mark, path = tmp_path / "mark", tmp_path / "m.pkl"
    hostile = TRICKS[trick].replace(b"COMMAND", f"touch {mark}".encode())

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (hostile * 5,)

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, (1,), (1,), False, OrderedDict())

    module = tree({})
    module.state["_parameters"] = {"weight": Tensor()}
    path.write_bytes(dump({"G_ema": module}))
    result = CliRunner().invoke(main, ["convert", str(path), str(tmp_path / "o.safetensors")])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1, result.output
    assert not mark.exists()


def persistent_storage(**changes) -> bytes:
    """A storage file of two floats whose description is changed."""
    facts = {"count": 2, "kind": torch.FloatStorage, "key": "1", "little": True, **changes}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) else None

    file = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": facts["little"]}):
        pickle.dump(value, file, 2)
    Pickler(file, 2).dump(("storage", facts["kind"], facts["key"], "cpu", 2, None))
    pickle.dump(["1"], file, 2)
    return file.getvalue() + struct.pack("<q2f", facts["count"], 1.5, 2.5)


def test_a_storage_is_read_as_it_is_described() -> None:
    assert parse_storage(memoryview(persistent_storage())).count == 2
    for change in ({"count": 3}, {"count": -1}, {"kind": dict}, {"key": "2"}, {"little": False}):
        with pytest.raises(MalformedPickle):
            parse_storage(memoryview(persistent_storage(**change)))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((3,), (1,), 0),
        ((2,), (1,), 1),
        ((2,), (2,), 0),
        ((1 << 40,), (0,), 0),
        ((1,), (1,), -1),
        ((-1,), (1,), 0),
        ((1 << 62, 0), (1, 1), 0),
        ((2,), (), 0),
        ([2], (1,), 0),
        ((2.0,), (1,), 0),
    ],
)
def test_a_tensor_stays_within_its_storage(size, stride, offset) -> None:
    storage = Inert(Global("torch.storage", "_load_from_bytes"), (memoryview(persistent_storage()),))
    rebuilt = Inert(Global("torch._utils", "_rebuild_tensor_v2"), (storage, offset, size, stride))
    with pytest.raises(MalformedPickle, match="senseless|beyond"):
        TensorReader(100).find(rebuilt)


MALFORMED = {
    "nothing but zeros": bytes(100),
    "text": b"this is not a model\n",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60),
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", (1 << 63) + 5),
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"x.",
    "negative length": b"T" + struct.pack("<i", -5) + b"abc.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
    "huge integer": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\xff" * (1 << 20) + b".",
    "long decimal": b"I" + b"9" * 5000 + b"\n.",
    "endless line": b"c" + b"x" * 100_000,
    "unknown memo": b"\x80\x02h\x07.",
    "stack underflow": b"\x80\x02R.",
    "no mark": b"\x80\x02N.t",
    "mark as a value": b"(\x85.",
    "odd items": b"}(Nu.",
    "append to a number": b"K\x01Na.",
    "build on a list": b"]}b.",
    "protocol 9": b"\x80\x09N.",
    "out of band": b"\x80\x05\x97.",
    "not UTF-8": b"\x80\x04\x8c\x02\xff\xfe.",
    "too many instructions": b"]" + b"0]" * 600_000 + b".",
    "too much text": b"X" + struct.pack("<I", 65 << 20) + bytes(65 << 20) + b".",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(MALFORMED[kind])
    result = CliRunner().invoke(main, ["convert", str(path), str(tmp_path / "o.safetensors")])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1, result.output
    if kind != "no mark":  # that one ends before its mistake
        assert "cannot be read as a model" in result.output


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    write_mate3d(tmp_path / "whole.pkl")
    whole = (tmp_path / "whole.pkl").read_bytes()
    for length in [0, 1, 2, 11, *range(20, len(whole), len(whole) // 50)]:
        (tmp_path / "m.pkl").write_bytes(whole[:length])
        with pytest.raises(UserError, match="m.pkl") as error:
            read_networks(tmp_path / "m.pkl")
        assert "\n" not in str(error.value)


def test_depth_and_cycles_end(tmp_path: Path) -> None:
    """Lists inside lists, keys that recurse when hashed, and modules that contain themselves."""
    path, depth = tmp_path / "m.pkl", 100_000
    for data in (b"]" * depth + b"a" * (depth - 1) + b".", b"})" + b"\x85" * depth + b"Ns."):
        path.write_bytes(data)
        assert read_networks(path) == {}
    module = tree({})
    module.state = {"_parameters": {}, "_modules": {}}
    data = dump({"G_ema": module})
    endless = data.replace(b"_modules\x94}", b"_modules\x94h\x00")  # its submodules are the whole file
    assert endless != data
    path.write_bytes(endless)
    (network,) = read_networks(path).values()
    with pytest.raises(MalformedPickle, match="without an end"):
        network.tensors()


def test_a_diamond_of_modules_ends(tmp_path: Path) -> None:
    """Thirty modules, each of which holds the next one twice, would be a thousand million."""
    module = tree({"weight": torch.ones(1)})
    for _ in range(30):
        above = tree({})
        above.state["_modules"] = {"a": module, "b": module}
        module = above
    (tmp_path / "m.pkl").write_bytes(dump({"G_ema": module}))
    (network,) = read_networks(tmp_path / "m.pkl").values()
    with pytest.raises(MalformedPickle, match="without an end"):
        network.tensors()


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            read_networks(path)
    assert os.listdir(tmp_path) == []
