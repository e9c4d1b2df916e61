"""``python -m tests.torch_utils.legacy.fuzz FOLDER COUNT SEED``: damages pickles, reads them, prints counts.

Runs in a process of its own, under limits of memory and time, with an audit hook that ends it when anything
is imported, compiled, executed or started while a file is being read.
"""

from __future__ import annotations

import copyreg
import json
import os
import pickletools
import random
import resource
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from dnnlib.errors import UserError
from tests.published_files import EasyDict, dump, tree, write_mate3d
from torch_utils.legacy import MalformedPickle, read_networks
from training.published import load_published

EVENTS = ("exec", "compile", "import", "marshal.", "pickle.", "os.", "subprocess.", "ctypes.", "socket.")
HOSTILE = (
    b"cos\nsystem\n(Vtouch MARK\ntR",
    b"\x8c\x02os\x8c\x06system\x93(Vtouch MARK\ntR",
    b"cbuiltins\neval\n(Vopen('MARK', 'w')\ntR",
    b"(Vtouch MARK\nios\nsystem\n",
    b"(cos\nsystem\nVtouch MARK\no",
    b"\x82\xf0(Vtouch MARK\ntR",
    b"\x8e" + struct.pack("<Q", 1 << 60),
    b"\x95" + struct.pack("<Q", 1 << 60),
    b"\x8d" + struct.pack("<Q", 1 << 33),
    b"\x8b" + struct.pack("<i", 1 << 30),
    b"]" * 300,
    b")" + b"\x85" * 300,
    b"2" * 50 + b"t",
    b"h\x00",
    b"h\x05b",
    b"0",
    b"1",
    b"(",
)
watching = False


def watch(event: str, args: Any) -> None:
    if watching and event.startswith(EVENTS):
        traceback.print_stack()
        os.write(2, f"while reading a damaged file: {event} {args}\n".encode())
        os._exit(3)


def small_files() -> list[bytes]:
    """Modules with a few tensors, in every protocol that published files may have."""
    tensors = {"a.weight": torch.randn(2, 3), "b.w_avg": torch.randn(4), "bias": torch.ones(1)}
    settings = EasyDict(c_scale=1, pivot=[0, 0, 0.2], names=("x", None, True))
    value = {"G": None, "G_ema": tree(tensors, "Thing", rendering_kwargs=settings, size=2**40)}
    return [dump(value, protocol) for protocol in (2, 3, 4, 5)]


def poisoned(random_: random.Random, data: bytes) -> bytes:
    """``data`` with calls between its instructions, their results dropped or in place of what was there."""
    places = sorted({position for _, _, position in pickletools.genops(data) if position > 2})
    result, last = bytearray(), 0
    for place in sorted(random_.choices(places, k=random_.randrange(1, 4))):
        call = random_.choice(HOSTILE[:6])
        result += data[last:place] + (b"0" + call if random_.random() < 0.3 else call + b"0")
        last = place
    return bytes(result + data[last:])


def damaged(random_: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """``data`` after one to four accidents or attacks."""
    result = bytearray(data)

    def anywhere() -> int:
        return random_.randrange(len(result) + 1)

    def stretch() -> tuple[int, int]:
        start = anywhere()
        return start, start + random_.randrange(1, 40)

    def flip() -> None:
        at = random_.randrange(len(result))
        result[at] ^= 1 << random_.randrange(8)

    def overwrite() -> None:
        start, end = stretch()
        result[start:end] = random_.randbytes(end - start)

    def cut() -> None:
        del result[random_.randrange(1, len(result)) :]

    def remove() -> None:
        start, end = stretch()
        del result[start:end]

    def repeat() -> None:
        start, end = stretch()
        at = anywhere()
        result[at:at] = result[start:end] * random_.randrange(1, 20)

    def splice() -> None:
        other = random_.choice(others)
        start = random_.randrange(len(other))
        at = anywhere()
        result[at:at] = other[start : start + random_.randrange(200)]

    def attack() -> None:
        at = anywhere()
        result[at:at] = random_.choice(HOSTILE)

    def lengthen() -> None:
        at, size = anywhere(), random_.choice((1, 2, 4, 8))
        result[at : at + size] = random_.choice((b"\xff", b"\x7f", b"\x00", b"\x80")) * size

    accidents = (flip, overwrite, cut, remove, repeat, splice, lengthen, attack)
    for _ in range(random_.randrange(1, 5)):
        if result:
            random_.choices(accidents, weights=(2, 1, 1, 1, 1, 1, 1, 2))[0]()
    return bytes(result)


def read_whole(path: Path) -> None:
    for network in read_networks(path).values():
        for tensor in network.tensors().values():
            tensor.read()
        network.attribute("rendering_kwargs")


def main(folder: Path, count: int, seed: int) -> None:
    global watching
    torch.set_num_threads(1)
    random_ = random.Random(seed)
    torch.manual_seed(seed)
    small = small_files()
    write_mate3d(folder / "whole.pkl", seed)
    whole = (folder / "whole.pkl").read_bytes()
    load_published(folder / "whole.pkl")  # and whatever it imports or compiles on its first time
    copyreg.add_extension("os", "system", 0xF0)
    os.chdir(folder)  # where MARK would appear
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory + (512 << 20),) * 2)
    sys.addaudithook(watch)
    path, slowest = Path("m.pkl"), 0.0
    outcomes = {"read": 0, "refused": 0}
    for index in range(count):
        source, reader = (whole, load_published) if index % 50 == 0 else (random_.choice(small), read_whole)
        wrong = poisoned(random_, source) if index % 5 == 1 else damaged(random_, source, small)
        path.write_bytes(wrong)
        started, watching = time.process_time(), True
        try:
            reader(path)
            outcomes["read"] += 1
        except (UserError, MalformedPickle) as error:
            assert "\n" not in str(error), error
            outcomes["refused"] += 1
        finally:
            watching = False
        slowest = max(slowest, time.process_time() - started)
    assert not Path("MARK").exists()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"files": count, "seed": seed, **outcomes, "slowest": slowest, "peak_mb": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
