"""Mappings from a file -> dataclasses, checked by the annotations; every mistake is collected.

Understands nested dataclasses, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, unions with
None, `Literal` and the scalars. Whole numbers are accepted where a float is expected.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, cast

from automl.errors import Problem


def build(cls: type[Any], tree: Any, source: str, at: str, problems: list[Problem]) -> Any:
    """Return a dataclass made from a mapping, or None when it holds mistakes.

    Args:
        cls: a dataclass whose annotations are checked.
        tree: the mapping, as parsed from YAML.
        source: the file, for messages.
        at: dotted path of the mapping with a dot at its end, or empty.
        problems: mistakes are added here.
    """
    if not isinstance(tree, Mapping):
        problems.append(Problem(source, at, f"got {tree!r}, expected a mapping"))
        return None
    mapping = cast("Mapping[str, Any]", tree)
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in fields(cls)}
    before = len(problems)
    for key in mapping:
        if key not in known:
            problems.append(_unknown_key(source, f"{at}{key}", str(key), list(known)))
    values: dict[str, Any] = {}
    for key in known:
        if key in mapping:
            values[key] = _convert(hints[key], mapping[key], source, f"{at}{key}", problems)
        elif _required(known[key]):
            problems.append(Problem(source, f"{at}{key}", "is missing", "It has no default"))
    return cls(**values) if len(problems) == before else None


def _required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _unknown_key(source: str, key: str, name: str, known: list[str]) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    if name in ("automl_policy", "workflow"):
        remedy = "It is an option of one run: automl train TARGET --automl-policy auto|on|off"
    elif near:
        remedy = f"Did you mean {near[0]}?"
    else:
        remedy = f"Known here: {', '.join(sorted(known))}"
    return Problem(source, key, "unknown key", remedy)


def _convert(hint: Any, value: Any, source: str, key: str, problems: list[Problem]) -> Any:
    try:
        return _cast(hint, value, source, key, problems)
    except _WrongTypeError as error:
        problems.append(Problem(source, key, f"got {value!r}, expected {error}"))
        return None


class _WrongTypeError(Exception):
    """Carries the words for what was expected."""


def _cast(hint: Any, value: Any, source: str, key: str, problems: list[Problem]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _cast_union(arguments, value, source, key, problems)
    if origin is Literal:
        if value not in arguments:
            raise _WrongTypeError(f"one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _cast_tuple(arguments, value, source, key, problems)
    if origin is not None:
        return _cast_mapping(arguments, value, source, key, problems)
    if is_dataclass(hint):
        return build(cast("type[Any]", hint), value, source, f"{key}.", problems)
    return _cast_scalar(hint, value)


def _cast_union(
    arguments: tuple[Any, ...], value: Any, source: str, key: str, problems: list[Problem]
) -> Any:
    if value is None and type(None) in arguments:
        return None
    expected: list[str] = []
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return _cast(argument, value, source, key, problems)
        except _WrongTypeError as error:
            expected.append(str(error))
    raise _WrongTypeError(" or ".join(expected))


def _cast_tuple(
    arguments: tuple[Any, ...], value: Any, source: str, key: str, problems: list[Problem]
) -> Any:
    if not isinstance(value, list | tuple):
        raise _WrongTypeError("a list")
    items = cast("Sequence[Any]", value)
    if arguments[-1] is Ellipsis:
        return tuple(_cast(arguments[0], item, source, key, problems) for item in items)
    if len(items) != len(arguments):
        raise _WrongTypeError(f"a list of {len(arguments)}")
    pairs = zip(arguments, items, strict=True)
    return tuple(_cast(argument, item, source, key, problems) for argument, item in pairs)


def _cast_mapping(
    arguments: tuple[Any, ...], value: Any, source: str, key: str, problems: list[Problem]
) -> Any:
    if not isinstance(value, Mapping):
        raise _WrongTypeError("a mapping")
    mapping = cast("Mapping[Any, Any]", value)
    return {
        str(name): _convert(arguments[1], item, source, f"{key}.{name}", problems)
        for name, item in mapping.items()
    }


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _cast_scalar(hint: Any, value: Any) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise _WrongTypeError(_WORDS[hint])
    return value
