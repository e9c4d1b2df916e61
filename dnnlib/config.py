"""Typed configuration: nested frozen dataclasses filled from YAML, JSON and ``a.b=c`` overrides."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dnnlib.errors import UserError, did_you_mean, nearest
from dnnlib.files import atomic_path

T = TypeVar("T")
_EXTENDS = "extends"  # in a file: another one, for what it does not say


def load(
    cls: type[T], source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()
) -> T:
    """Make a ``cls`` (a dataclass) from a YAML or JSON file or a mapping, then from ``a.b=c`` overrides.

    Fields that are not mentioned keep their defaults; in a file with ``extends: OTHER.yaml``, a path from the
    file's folder, they are the other file's. An unknown key is a :class:`UserError` that names the
    nearest one; so is a value of the wrong type. An int is taken for a float, a list for a tuple; neither nan
    nor infinity is a number.
    """
    values = _plain(source) if isinstance(source, Mapping) else _read_whole(Path(source))
    where = "configuration" if isinstance(source, Mapping) else str(source)
    for override in overrides:
        _override(cls, values, override)
    # built once, after all overrides: checks in __post_init__ may concern several fields together
    try:
        return _build(cls, values, cls, "", where)
    except UserError as error:  # a check begins with the name of its field, which tells where it came from
        name, _, rest = str(error).removeprefix(f"{where}: ").partition(" ")
        given = {override.partition("=")[0].strip(): override for override in overrides}
        if name in given:
            raise UserError(f"{given[name]}: {name} {rest}") from error
        raise


def check_least(config: Any, least: float, *names: str) -> None:
    """Raises :class:`UserError` where one of these fields of ``config`` is smaller than ``least``. Names may
    have the section in front that ``config`` is in, for the message."""
    for name in names:
        value = getattr(config, name.rpartition(".")[2])
        if value < least:
            raise UserError(f"{name} is {value:g}; it must be {least:g} or more")


def check_above(config: Any, bound: float, *names: str) -> None:
    """As :func:`check_least`, where a field is not greater than ``bound``."""
    for name in names:
        value = getattr(config, name.rpartition(".")[2])
        if value <= bound:
            raise UserError(f"{name} is {value:g}; it must be above {bound:g}")


def check_share(config: Any, *names: str) -> None:
    """As :func:`check_least`, where a field is not from 0 to 1."""
    for name in names:
        value = getattr(config, name.rpartition(".")[2])
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value:g}; it is a share, from 0 to 1")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars that :func:`load` turns back into an equal ``config``."""
    names = [field.name for field in dataclasses.fields(config) if field.init]
    return {name: _plain(getattr(config, name)) for name in names}


def save(config: Any, path: str | os.PathLike[str]) -> None:
    """Write ``config`` as JSON where ``path`` ends in .json, as YAML elsewhere; atomically."""
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".json":
            text = json.dumps(to_dict(config), indent=2) + "\n"
        else:
            text = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None)
        temporary.write_text(text, encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """A YAML reader for which a key given twice is an error, not a silent choice of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or mapping cannot be a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_whole(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's values, laid over those of the file that it extends; ``above`` are those that extend it."""
    if path.resolve() in above:
        raise UserError(f"{path} extends itself: take one '{_EXTENDS}' line away")
    values = _read(path)
    if _EXTENDS not in values:
        return values
    other = values.pop(_EXTENDS)
    if not isinstance(other, str):
        raise UserError(f"{path}: {_EXTENDS} is {other!r}; it must be the path of another configuration")
    return _merged(_read_whole(path.parent / other, (*above, path.resolve())), values)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both mappings, section by section; where both have a value it is that of ``above``."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        merged[key] = _merged(inner, value) if both else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # JSON is YAML too
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: give a YAML or JSON configuration") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not YAML: {getattr(error, 'problem', None) or error}{place}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; a configuration is 'key: value' lines")
    return values


def _build(cls: type[Any], values: Mapping[str, Any], root: type[Any], prefix: str, where: str) -> Any:
    """A ``cls`` from ``values``; ``prefix`` is the dotted path of ``cls`` inside ``root``."""
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{where}: unknown key '{prefix}{key}'; {_suggest(f'{prefix}{key}', root)}")
        arguments[key] = _convert(value, hints[key], root, prefix + key, where)
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in arguments:
            raise UserError(f"{where}: '{prefix}{name}' is missing; it has no default")
    try:
        return cls(**arguments)
    except UserError as error:  # a check in __post_init__ knows the value, but not which file it came from
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from error


def _override(cls: type[Any], values: dict[str, Any], override: str) -> None:
    """Put one ``a.b=c`` into ``values``, the nested mapping that a ``cls`` will be made of."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"'{override}' is not an override: write key=value, for example batch=16")
    names = key.split(".")
    hint: Any = cls
    inner = values
    for depth, name in enumerate(names):
        hints = get_type_hints(hint) if _is_config(hint) else {}
        if name not in hints:
            raise UserError(f"{override}: unknown key '{key}'; {_suggest(key, cls)}")
        hint = hints[name]
        if depth < len(names) - 1:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise UserError(f"{override}: '{name}' is {inner!r} in the configuration, not a section")
    # converted here too, so that the error names the override and not the file
    inner[names[-1]] = _plain(_convert(_parse(text.strip(), hint, override), hint, cls, key, override))


def _parse(text: str, hint: Any, override: str) -> Any:
    """The value that ``text`` stands for; left as it is where the field takes a string ('on', '0010')."""
    options = _options(hint)
    if str in options or (get_origin(hint) is Literal and text in get_args(hint)):
        return None if text in ("null", "None") and type(None) in options else text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{override}: '{text}' is not a value; quote it or check its brackets") from error


def _convert(value: Any, hint: Any, root: type[Any], key: str, where: str) -> Any:
    """``value`` as the type ``hint``, or a UserError that names the key."""
    if hint is Any:
        return value
    if _is_config(hint):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return _build(hint, value, root, f"{key}.", where)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, root, key, where)
    if origin is Literal and value in arguments:
        return value
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        items = arguments[:1] * len(value) if origin is list or arguments[-1] is Ellipsis else arguments
        if len(items) == len(value):
            pairs = enumerate(zip(value, items, strict=True))
            return origin(_convert(v, t, root, f"{key}[{i}]", where) for i, (v, t) in pairs)
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(v, arguments[1], root, f"{key}.{k}", where) for k, v in value.items()}
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is float and type(value) in (int, float, str):  # YAML reads 1e-4, without a point, as a string
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    raise UserError(f"{where}: '{key}' is {value!r}; it must be {_describe(hint)}")


def _convert_union(value: Any, hint: Any, root: type[Any], key: str, where: str) -> Any:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:  # the message is about the one type it could be
        return _convert(value, options[0], root, key, where)
    exact = [option for option in options if type(value) is option]
    for option in (*exact, *options):
        try:
            return _convert(value, option, root, key, where)
        except UserError:
            continue
    raise UserError(f"{where}: '{key}' is {value!r}; it must be {_describe(hint)}")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _describe(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        items = get_args(hint)
        if get_origin(hint) is list or items[-1] is Ellipsis:
            return f"a list of {_describe(items[0])}"
        return f"a list of {len(items)}: {', '.join(map(_describe, items))}"
    if get_origin(hint) is dict or _is_config(hint):
        return "'key: value' lines"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, str(hint))


def _keys(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """All dotted keys below ``cls``, sections included."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            yield prefix + field.name
            if _is_config(hints[field.name]):
                yield from _keys(hints[field.name], f"{prefix}{field.name}.")


def _suggest(key: str, root: type[Any]) -> str:
    """Name the known key that is nearest: a sibling first, then the same word in another section."""
    known = list(_keys(root))
    section, _, leaf = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    elsewhere = [k for k in known if k.rpartition(".")[2] == leaf]
    near = nearest(leaf, siblings)
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    if near:
        return f"did you mean '{siblings[near]}'?"
    leaves = {k.rpartition(".")[2]: k for k in known}
    near = nearest(leaf, leaves)
    if near:
        return f"did you mean '{leaves[near]}'?"
    sections = [k for k in known if "." not in k]
    return did_you_mean(key, siblings.values() or sections)


def _plain(value: Any) -> Any:
    if _is_config(type(value)):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
