"""Pickles read as data: an own machine for the opcodes that imports nothing and calls nothing.

A pickle is a program. Here `GLOBAL` names a class without importing it, and calling or building
an instance of it makes a `Record` that stores what it was given. Only the few functions that
PyTorch writes for tensors and dictionaries mean something, and their meaning is in this package.

Python's own unpickler is not used even in restricted form: its memo grows to the largest index a
file names, and dictionary keys that are nested tuples cost exponential time to hash. Limits: every
opcode costs bounded work, and there are at most `MAX_OPCODES` of them.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor

MAX_OPCODES = 2_000_000  # the released FastFoundationStereo file has some 10^5
MAX_KEY = 4096  # characters of a dictionary's key; equal keys are compared character by character
MAX_NAME = 1000  # characters of a class's or a tensor's full name
MAX_DEPTH = 100  # modules inside modules
MAX_TENSORS = 100_000
HASHABLE_INT = 2**61 - 1  # larger integers can be made to collide

PUSH = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)
"""What damaged bytes make the readers of the standard library raise."""


class InertPickleError(ValueError):
    """A pickle that is damaged, or that no honest program writes."""


@dataclass(frozen=True)
class Global:
    """Name of a class or a function; never imported."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """Dotted name."""
        return f"{self.module}.{self.name}"


class Record:
    """Instance of a class that was not imported, or the call of a function that was not made.

    Attributes:
        made_by: what would have been called, a `Global` or another `Record`.
        args: what it would have been called with.
        state: what `__setstate__` would have been given, else None.
        items: what would have been appended or added.
        entries: what would have been set by key.
    """

    __slots__ = ("args", "entries", "items", "made_by", "state")

    def __init__(self, made_by: Any, args: Any) -> None:
        self.made_by = made_by
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    @property
    def path(self) -> str:
        """Dotted name of the class or function."""
        return self.made_by.path if isinstance(self.made_by, Global) else "an unnamed object"


Functions = Mapping[str, Callable[[tuple[Any, ...]], Any]]


class InertUnpickler:
    """Runs one pickle after the other; the memo is per pickle.

    Args:
        persistent: what a persistent id stands for.
        functions: dotted name -> meaning of a call, given the arguments. Must be cheap: a pickle
            can repeat a call for three bytes.
    """

    def __init__(self, persistent: Callable[[Any], Any], functions: Functions) -> None:
        self._persistent = persistent
        self._functions = functions
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_OPCODES

    def load(self, stream: BinaryIO) -> Any:
        """Return the value of the pickle at the stream's position and stop behind it.

        Raises:
            InertPickleError: the pickle is damaged or beyond a limit.
        """
        self._stack, self._marked, self._memo = [], [], {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickletools, about escapes in names
                for opcode, arg, _ in pickletools.genops(stream):
                    self._left -= 1
                    if self._left < 0:
                        raise InertPickleError(f"more than {MAX_OPCODES} pickle operations")
                    self._step(opcode.name, arg)
            return self._stack.pop()
        except InertPickleError:
            raise
        except DAMAGE as error:
            raise InertPickleError("damaged pickle") from error

    def _step(self, name: str, arg: Any) -> None:
        if name in PUSH:
            self._stack.append(arg)
        elif name in CONSTANTS:
            self._stack.append(CONSTANTS[name])
        elif name not in IGNORED:
            handler = HANDLERS.get(name)
            if handler is None:
                raise InertPickleError(f"pickle operation {name} is not read")
            handler(self, arg)

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _mark(self, _arg: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self, _arg: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _arg: Any) -> None:
        self._since_mark()

    def _duplicate(self, _arg: Any) -> None:
        self._stack.append(self._stack[-1])

    def _get(self, arg: Any) -> None:
        self._stack.append(self._memo[int(arg)])

    def _put(self, arg: Any) -> None:
        index = int(arg)
        if not 0 <= index < MAX_OPCODES:
            raise InertPickleError(f"more than {MAX_OPCODES} remembered values")
        self._memo[index] = self._stack[-1]

    def _memoize(self, _arg: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _empty(self, kind: Callable[[], Any]) -> None:
        self._stack.append(kind())

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise InertPickleError("damaged pickle")
        self._stack[-count:] = [items]

    def _tuple(self, _arg: Any) -> None:
        items = tuple(self._since_mark())
        self._stack.append(items)

    def _list(self, _arg: Any) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _dict(self, _arg: Any) -> None:
        items = self._since_mark()
        self._stack.append(dict(_pairs(items)))

    def _frozenset(self, _arg: Any) -> None:
        items = self._since_mark()
        self._stack.append({_key(item) for item in items})

    def _append(self, _arg: Any) -> None:
        item = self._stack.pop()
        _extend(self._stack[-1], [item])

    def _appends(self, _arg: Any) -> None:
        items = self._since_mark()
        _extend(self._stack[-1], items)

    def _set_item(self, _arg: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _update(self._stack[-1], [key, value])

    def _set_items(self, _arg: Any) -> None:
        items = self._since_mark()
        _update(self._stack[-1], items)

    def _global(self, arg: str) -> None:
        self._stack.append(_named(*arg.split(" ", 1)))

    def _stack_global(self, _arg: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_named(module, name))

    def _persistent_id(self, _arg: Any) -> None:
        self._stack.append(self._persistent(self._stack.pop()))

    def _reduce(self, _arg: Any) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, args))

    def _call(self, function: Any, args: Any) -> Any:
        if isinstance(function, Global) and type(args) is tuple:
            meaning = self._functions.get(function.path)
            if meaning is not None:
                return meaning(args)
        return Record(function, args)

    def _new_object_with_keywords(self, _arg: Any) -> None:
        keywords, args, cls = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Record(cls, (args, keywords)))

    def _instance(self, arg: str) -> None:
        args = self._since_mark()
        self._stack.append(Record(_named(*arg.split(" ", 1)), args))

    def _object(self, _arg: Any) -> None:
        cls, *args = self._since_mark()
        self._stack.append(Record(cls, args))

    def _build(self, _arg: Any) -> None:
        """Store a record's state; what tensors and dictionaries carry beside is dropped."""
        state = self._stack.pop()
        if isinstance(self._stack[-1], Record):
            self._stack[-1].state = state


HANDLERS: dict[str, Callable[[InertUnpickler, Any], None]] = {
    "MARK": InertUnpickler._mark,
    "POP": InertUnpickler._pop,
    "POP_MARK": InertUnpickler._pop_mark,
    "DUP": InertUnpickler._duplicate,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), InertUnpickler._get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), InertUnpickler._put),
    "MEMOIZE": InertUnpickler._memoize,
    "EMPTY_LIST": lambda machine, _: machine._empty(list),
    "EMPTY_DICT": lambda machine, _: machine._empty(dict),
    "EMPTY_TUPLE": lambda machine, _: machine._empty(tuple),
    "EMPTY_SET": lambda machine, _: machine._empty(set),
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "TUPLE": InertUnpickler._tuple,
    "LIST": InertUnpickler._list,
    "DICT": InertUnpickler._dict,
    "FROZENSET": InertUnpickler._frozenset,
    "APPEND": InertUnpickler._append,
    **dict.fromkeys(("APPENDS", "ADDITEMS"), InertUnpickler._appends),
    "SETITEM": InertUnpickler._set_item,
    "SETITEMS": InertUnpickler._set_items,
    "GLOBAL": InertUnpickler._global,
    "STACK_GLOBAL": InertUnpickler._stack_global,
    "BINPERSID": InertUnpickler._persistent_id,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), InertUnpickler._reduce),
    "NEWOBJ_EX": InertUnpickler._new_object_with_keywords,
    "INST": InertUnpickler._instance,
    "OBJ": InertUnpickler._object,
    "BUILD": InertUnpickler._build,
}


def _named(module: Any, name: Any) -> Global:
    for part in (module, name):
        if type(part) is not str or len(part) > MAX_NAME:
            raise InertPickleError("a class without a proper name")
    return Global(module, name)


def _key(value: Any) -> Any:
    """Return `value` as a key that is cheap to hash and to compare; others by identity."""
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and -HASHABLE_INT < value < HASHABLE_INT:
        return value
    if type(value) is str and len(value) <= MAX_KEY:
        return value
    return value if isinstance(value, Record) else Record(Global("builtins", "key"), (value,))


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(items) % 2:
        raise InertPickleError("damaged pickle")
    return ((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is set:
        target.update(map(_key, items))
    else:
        (target.items if isinstance(target, Record) else _of(list, target)).extend(items)


def _update(target: Any, items: list[Any]) -> None:
    entries = target.entries if isinstance(target, Record) else _of(dict, target)
    entries.update(_pairs(items))


def _of(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise InertPickleError("damaged pickle")
    return value


def is_module(value: Any) -> bool:
    """Whether `value` is the record of a network or of a part of one."""
    return (
        isinstance(value, Record)
        and type(value.state) is dict
        and type(value.state.get("_parameters")) is dict
        and type(value.state.get("_modules")) is dict
    )


def walk(root: Record) -> Iterator[tuple[str, Record]]:
    """Every module below and including `root` with its name, in the order of `state_dict`.

    Modules may be shared, so a small pickle can describe an exponential tree.
    """
    waiting = [("", root, 0)]
    left = MAX_TENSORS
    while waiting:
        prefix, module, depth = waiting.pop()
        members = module.state["_modules"]
        left -= 1 + len(members)
        if left < 0:
            raise InertPickleError(f"more than {MAX_TENSORS} modules")
        if depth > MAX_DEPTH:
            raise InertPickleError(f"modules nested deeper than {MAX_DEPTH}")
        yield prefix, module
        waiting += [
            (_join(prefix, name), child, depth + 1)
            for name, child in reversed(members.items())
            if is_module(child)
        ]


def module_state(root: Record) -> dict[str, Tensor]:
    """Return the tensors that `root.state_dict()` would have held, by name.

    Raises:
        InertPickleError: a parameter is no plain tensor, or the tree is beyond a limit.
    """
    state: dict[str, Tensor] = {}
    left = MAX_TENSORS
    for prefix, module in walk(root):
        skipped = _members(module.state.get("_non_persistent_buffers_set"))
        buffers = module.state.get("_buffers")
        groups = (module.state["_parameters"], buffers if type(buffers) is dict else {})
        left -= len(skipped) + sum(map(len, groups))
        if left < 0:
            raise InertPickleError(f"more than {MAX_TENSORS} tensors")
        for name, tensor in (member for group in groups for member in group.items()):
            if tensor is None or name in skipped:
                continue
            full = _join(prefix, name)
            if not isinstance(tensor, Tensor):
                kind = tensor.path if isinstance(tensor, Record) else type(tensor).__name__
                raise InertPickleError(f"{full} is no plain tensor but {kind}")
            state[full] = tensor
    return state


def module_settings(root: Record) -> dict[str, dict[str, Any]]:
    """Plain attributes of every module that has a weight (stride, padding, eps), by its name."""
    return {
        name: {
            key: value
            for key, value in module.state.items()
            if type(key) is str and not key.startswith("_") and _is_setting(value)
        }
        for name, module in walk(root)
        if isinstance(module.state["_parameters"].get("weight"), Tensor)
    }


def _is_setting(value: Any) -> bool:
    if type(value) is tuple:
        return len(value) <= 3 and all(type(n) is int and abs(n) < 2**31 for n in value)
    return type(value) in (bool, float) or (type(value) is int and abs(value) < 2**31)


def _members(value: Any) -> set[str]:
    """Names in a set, which older protocols write as the call `set([...])`."""
    if isinstance(value, Record) and type(value.args) is tuple and value.args:
        value = value.args[0]
    names: Iterable[Any] = value if isinstance(value, (set, list)) else ()
    return {name for name in names if type(name) is str and len(name) <= MAX_KEY}


def _join(prefix: str, name: Any) -> str:
    full = f"{prefix}.{name}" if prefix else name
    if type(name) is not str or len(full) > MAX_NAME:
        raise InertPickleError("a module or tensor without a proper name")
    return full
