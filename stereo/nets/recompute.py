"""Activations that the backward pass computes again from what is kept anyway.

Autograd keeps every tensor that an operation needs for its gradient. Many of them follow from
another kept tensor by a cheap step: normalised and activated maps, gated volumes, the matching
volume, samples of the lookup. Inside `cheap_ones_recomputed` a tensor that was announced with
`announce` or `recomputable` is kept as that step, and computed when its gradient is due.

Values do not change: the step is the one that the forward pass made.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor


class _Step:
    """How to compute a tensor again; its inputs may be steps themselves."""

    def __init__(self, function: Callable[..., Tensor], inputs: list[Any]) -> None:
        self.function = function
        self.inputs = inputs
        self.made: Callable[[], Tensor | None] = lambda: None  # while an operation uses it

    def __call__(self) -> Tensor:
        tensor = self.made()
        if tensor is None:
            with torch.no_grad():
                tensor = self.function(*map(_unpack, self.inputs))
            self.made = weakref.ref(tensor)
        return tensor


class _View:
    """A part of a step's tensor, or all of it in another shape."""

    def __init__(self, step: _Step, view: Tensor) -> None:
        self.step = step
        self.layout = view.size(), view.stride(), view.storage_offset()

    def __call__(self) -> Tensor:
        return self.step().as_strided(*self.layout)


class _Announced:
    """Steps by the memory that their tensors use."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[weakref.ref[Tensor], int, _Step]] = {}

    def add(self, tensor: Tensor, step: _Step) -> None:
        self.steps[tensor.untyped_storage().data_ptr()] = (
            weakref.ref(tensor),
            tensor._version,
            step,
        )

    def pack(self, tensor: Tensor) -> Tensor | _View:
        """Return what to keep of a tensor."""
        reference, version, step = self.steps.get(
            tensor.untyped_storage().data_ptr(), (None, 0, None)
        )
        whole = None if reference is None else reference()
        # A dead tensor may have left its memory to another one.
        if step is None or whole is None or tensor._version != version:
            return tensor
        return _View(step, tensor)


def _unpack(kept: Any) -> Any:
    return kept() if isinstance(kept, _View) else kept


_ANNOUNCED: ContextVar[_Announced | None] = ContextVar("announced", default=None)


@contextmanager
def cheap_ones_recomputed() -> Iterator[None]:
    """Keep tensors that are announced inside as the steps that made them."""
    announced = _Announced()
    token = _ANNOUNCED.set(announced)
    try:
        with torch.autograd.graph.saved_tensors_hooks(announced.pack, _unpack):
            yield
    finally:
        _ANNOUNCED.reset(token)


def announce(tensor: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Say that `tensor` is `function(*inputs)`, in the same memory layout."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler decides itself
        return
    announced = _ANNOUNCED.get()
    if announced is not None:
        announced.add(tensor, _Step(function, [announced.pack(x) for x in inputs]))


def recomputable(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `function(*inputs)`, and say so for those who keep it."""
    tensor = function(*inputs)
    announce(tensor, function, *inputs)
    return tensor


def join(*parts: Tensor) -> Tensor:
    """Concatenate along the channels; a step for `recomputable`."""
    return torch.cat(parts, dim=1)
