"""A pickle reader that calls nothing: every opcode is arithmetic on a stack of plain values.

Python's unpickler can be told which names it may look up, but it still calls what it finds. Here nothing is
looked up, imported or called: a name is a :class:`Global`, which is two strings, and whatever the file wants
to have called, built or instantiated is an :class:`Inert` that remembers what it was asked. Others interpret
these where they know them (see ``tensors.py``) and leave the rest alone.

What a file can cost is bounded too. Each opcode makes at most one small object, and their number is limited;
lengths are checked against the file before anything is made of them; nothing here recurses; and a key of a
dictionary that might be expensive to hash or compare is replaced by one that is compared by identity.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_OPCODES = 1_000_000  # the tiny published file has 27,000; one with all its networks a few times that
MAX_TEXT = 64 << 20  # bytes of all strings together; the source text in a published file is far less
_MAX_NUMBER = 256  # bytes of an integer or of a line of text that stands for a number
_MAX_LINE = 4096  # bytes of a name or string in the textual opcodes of old protocols
_MAX_KEY = 1 << 60  # larger integers may be made to collide in a dictionary


class MalformedPickle(Exception):
    """What is wrong with the bytes, in a few words."""


@dataclass(frozen=True)
class Global:
    """A name of something that the file refers to. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """Stands for an object that unpickling would have made by calling something. Nothing was called.

    ``callee`` and ``args`` are what would have been called and with what; ``state`` is what the object would
    then have been given; ``items`` and ``members`` are what would have been put into it.
    """

    __slots__ = ("args", "callee", "items", "members", "state")

    def __init__(self, callee: Any, args: Any) -> None:
        self.callee = callee
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] | None = None
        self.members: list[Any] | None = None


class PersistentId:
    """A reference to something that the file keeps elsewhere; ``key`` says to what."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key


class OpaqueKey:
    """A key that is not a short number or text: two of them are never equal."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Mark:
    pass


_MARK = _Mark()


def called(value: Any) -> str:
    """What unpickling would have called to make ``value``, as 'module.name'; '' where that has no name."""
    return str(value.callee) if isinstance(value, Inert) and isinstance(value.callee, Global) else ""


def read_value(
    data: memoryview, start: int = 0, max_opcodes: int = MAX_OPCODES, max_text: int = MAX_TEXT
) -> tuple[Any, int]:
    """The value of the pickle that begins at ``start`` of ``data`` (bytes), and where it ends.

    Byte strings are returned as views of ``data``, without a copy. Raises :class:`MalformedPickle`.
    """
    machine = _Machine(data, start, max_opcodes, max_text)
    try:
        return machine.run(), machine.position
    except MalformedPickle as error:
        raise MalformedPickle(f"{error} at byte {machine.opcode_position}") from None
    except (IndexError, struct.error, UnicodeError, ValueError, OverflowError, TypeError) as error:
        # the machine's own checks come first: these are what a stack of the wrong kind of values leads to
        raise MalformedPickle(
            f"{type(error).__name__} in its instructions at byte {machine.opcode_position}"
        ) from None


class _Machine:
    """One run over the bytes. ``_OPCODES`` at the end of this file says which method serves which byte."""

    def __init__(self, data: memoryview, start: int, max_opcodes: int, max_text: int) -> None:
        self.data = data
        self.position = start
        self.opcode_position = start
        self.budget = max_opcodes
        self.text_left = max_text
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data, end = self.data, len(self.data)
        while True:
            if self.position >= end:
                raise MalformedPickle("it ends too early")
            if self.budget <= 0:
                raise MalformedPickle("it has more instructions than any model needs")
            self.budget -= 1
            self.opcode_position = self.position
            opcode = data[self.position]
            self.position += 1
            if opcode == _STOP:
                return self.pop()
            handler = _OPCODES.get(opcode)
            if handler is None:
                raise MalformedPickle(f"unknown instruction 0x{opcode:02x}")
            handler(self)

    # reading bytes

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if not 0 <= count <= len(self.data) - self.position:
            raise MalformedPickle(f"a length of {count} bytes goes beyond its end")
        start = self.position
        self.position += count
        return self.data[start : self.position]

    def number(self, layout: str) -> Any:
        """A number in the ``struct`` layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """The bytes up to the next newline, which is passed over."""
        window = bytes(self.data[self.position : self.position + limit])
        length = window.find(b"\n")
        if length < 0:
            raise MalformedPickle("a line of text without an end")
        self.position += length + 1
        return window[:length]

    def text(self, raw: bytes | memoryview, encoding: str = "utf-8") -> str:
        self.text_left -= len(raw)
        if self.text_left < 0:
            raise MalformedPickle("it has more text than any model needs")
        return _DECODE[encoding](raw)[0]

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise MalformedPickle("a mark where a value is needed")
        return value

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise MalformedPickle("a mark where a value is needed")
        return value

    def pop_to_mark(self) -> list[Any]:
        """All values above the last mark; each was pushed by an opcode of its own, so this is linear."""
        stack = self.stack
        index = len(stack) - 1
        while index >= 0 and stack[index] is not _MARK:
            index -= 1
        if index < 0:
            raise MalformedPickle("no mark")
        values = stack[index + 1 :]
        del stack[index:]
        return values

    def fill(self, target: Any, flat: list[Any]) -> None:
        """Keys and values in turn into a dictionary, or into what stands for one."""
        if len(flat) % 2:
            raise MalformedPickle("a key without a value")
        items = _container(target, dict, "items")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            items[_safe_key(key)] = value

    # opcodes

    def frame(self) -> None:
        length = self.number("<Q")  # only a hint for buffering, but a wrong one means a damaged file
        if length > len(self.data) - self.position:
            raise MalformedPickle(f"a frame of {length} bytes goes beyond its end")

    def protocol(self) -> None:
        version = self.number("<B")
        if version > 5:
            raise MalformedPickle(f"protocol {version}, which does not exist")

    def int_line(self) -> None:
        raw = self.line(_MAX_NUMBER)
        self.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else int(raw))

    def long_line(self) -> None:
        self.push(int(self.line(_MAX_NUMBER).rstrip(b"L")))

    def float_line(self) -> None:
        self.push(float(self.line(_MAX_NUMBER)))

    def long(self, layout: str) -> None:
        length = self.number(layout)
        if length > _MAX_NUMBER:
            raise MalformedPickle(f"an integer of {length} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def string_line(self) -> None:
        raw = self.line()
        if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[-1:] != raw[:1]:
            raise MalformedPickle("a string without its quotes")
        self.push(self.text(codecs.escape_decode(raw[1:-1])[0], "latin-1"))

    def unicode_line(self) -> None:
        self.push(self.text(self.line(), "raw-unicode-escape"))

    def string(self, layout: str, encoding: str) -> None:
        self.push(self.text(self.take(self.number(layout)), encoding))

    def bytes(self, layout: str) -> None:
        self.push(self.take(self.number(layout)))

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append(self) -> None:
        value = self.pop()
        _container(self.top(), list, "members").append(value)

    def appends(self) -> None:
        values = self.pop_to_mark()
        _container(self.top(), list, "members").extend(values)

    def add_items(self) -> None:
        values = self.pop_to_mark()
        target = self.top()
        if isinstance(target, set):
            target.update(map(_safe_key, values))
        else:
            _container(target, list, "members").extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.fill(self.top(), [key, value])

    def set_items(self) -> None:
        flat = self.pop_to_mark()
        self.fill(self.top(), flat)

    def dict_of_mark(self) -> None:
        flat = self.pop_to_mark()
        made: dict[Any, Any] = {}
        self.fill(made, flat)
        self.push(made)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise MalformedPickle(f"nothing is remembered as number {index}")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def global_line(self) -> None:
        module, name = self.line(), self.line()
        self.push(Global(self.text(module), self.text(name)))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise MalformedPickle("a name that is no text")
        self.push(Global(module, name))

    def extension(self, layout: str) -> None:
        self.push(Global("copyreg", f"extension {self.number(layout)}"))

    def reduce(self) -> None:
        args, callee = self.pop(), self.pop()
        self.push(Inert(callee, args))

    def new_with_keywords(self) -> None:
        keywords, args, callee = self.pop(), self.pop(), self.pop()
        made = Inert(callee, args)
        if isinstance(keywords, dict):
            made.items = dict(keywords)
        self.push(made)

    def instance(self) -> None:
        module, name = self.line(), self.line()
        args = tuple(self.pop_to_mark())
        self.push(Inert(Global(self.text(module), self.text(name)), args))

    def object_of_mark(self) -> None:
        callee, *args = self.pop_to_mark()
        self.push(Inert(callee, tuple(args)))

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, Inert):
            raise MalformedPickle(f"state for a {type(target).__name__}")
        target.state = state

    def out_of_band(self) -> None:
        raise MalformedPickle("its data lie in another file")


def _container(target: Any, kind: type, attribute: str) -> Any:
    if type(target) is kind:
        return target
    if isinstance(target, Inert):
        if getattr(target, attribute) is None:
            setattr(target, attribute, kind())
        return getattr(target, attribute)
    raise MalformedPickle(f"contents for a {type(target).__name__}")


def _safe_key(key: Any) -> Any:
    """A key that is cheap to hash and to compare, whatever the file put there."""
    kind = type(key)
    if kind in (str, bool, float) or key is None or (kind is int and abs(key) < _MAX_KEY):
        return key
    return OpaqueKey(key)


# by name, the first use would import the codec
_DECODE: dict[str, Callable[[Any], tuple[str, int]]] = {
    "utf-8": lambda raw: codecs.utf_8_decode(raw, "surrogatepass", True),
    "latin-1": codecs.latin_1_decode,
    "raw-unicode-escape": codecs.raw_unicode_escape_decode,
}
_STOP = ord(".")
_M = _Machine
_OPCODES: dict[int, Callable[[_Machine], None]] = {
    ord(code) if isinstance(code, str) else code: handler
    for code, handler in (
        (0x80, _M.protocol),
        (0x95, _M.frame),
        # values
        ("N", lambda m: m.push(None)),
        (0x88, lambda m: m.push(True)),
        (0x89, lambda m: m.push(False)),
        ("I", _M.int_line),
        ("L", _M.long_line),
        ("F", _M.float_line),
        ("J", lambda m: m.push(m.number("<i"))),
        ("K", lambda m: m.push(m.number("<B"))),
        ("M", lambda m: m.push(m.number("<H"))),
        ("G", lambda m: m.push(m.number(">d"))),
        (0x8A, lambda m: m.long("<B")),
        (0x8B, lambda m: m.long("<i")),
        ("S", _M.string_line),
        ("T", lambda m: m.string("<i", "latin-1")),
        ("U", lambda m: m.string("<B", "latin-1")),
        ("V", _M.unicode_line),
        ("X", lambda m: m.string("<I", "utf-8")),
        (0x8C, lambda m: m.string("<B", "utf-8")),
        (0x8D, lambda m: m.string("<Q", "utf-8")),
        ("B", lambda m: m.bytes("<I")),
        ("C", lambda m: m.bytes("<B")),
        (0x8E, lambda m: m.bytes("<Q")),
        (0x96, lambda m: m.bytes("<Q")),
        # containers
        (")", lambda m: m.push(())),
        ("]", lambda m: m.push([])),
        ("}", lambda m: m.push({})),
        (0x8F, lambda m: m.push(set())),
        (0x85, lambda m: m.tuple_of(1)),
        (0x86, lambda m: m.tuple_of(2)),
        (0x87, lambda m: m.tuple_of(3)),
        ("t", lambda m: m.push(tuple(m.pop_to_mark()))),
        ("l", lambda m: m.push(m.pop_to_mark())),
        ("d", _M.dict_of_mark),
        (0x91, lambda m: m.push(frozenset(map(_safe_key, m.pop_to_mark())))),
        ("a", _M.append),
        ("e", _M.appends),
        ("s", _M.set_item),
        ("u", _M.set_items),
        (0x90, _M.add_items),
        # the stack and the memo
        ("(", lambda m: m.push(_MARK)),
        ("0", lambda m: m.stack.pop()),
        ("1", lambda m: m.pop_to_mark()),
        ("2", lambda m: m.push(m.top())),
        ("g", lambda m: m.get(int(m.line(_MAX_NUMBER)))),
        ("h", lambda m: m.get(m.number("<B"))),
        ("j", lambda m: m.get(m.number("<I"))),
        ("p", lambda m: m.put(int(m.line(_MAX_NUMBER)))),
        ("q", lambda m: m.put(m.number("<B"))),
        ("r", lambda m: m.put(m.number("<I"))),
        (0x94, lambda m: m.put(len(m.memo))),
        # what unpickling would import and call
        ("c", _M.global_line),
        (0x93, _M.stack_global),
        (0x82, lambda m: m.extension("<B")),
        (0x83, lambda m: m.extension("<H")),
        (0x84, lambda m: m.extension("<i")),
        ("R", _M.reduce),
        (0x81, _M.reduce),
        (0x92, _M.new_with_keywords),
        ("i", _M.instance),
        ("o", _M.object_of_mark),
        ("b", _M.build),
        ("P", lambda m: m.push(PersistentId(m.text(m.line())))),
        ("Q", lambda m: m.push(PersistentId(m.pop()))),
        (0x97, _M.out_of_band),
        (0x98, _M.out_of_band),
    )
}
