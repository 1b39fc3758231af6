"""Building a network as somebody else's file says: a bound on what it may hold, and no memory for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from ..errors import UserError

# A network may be built with a layer that is replaced at once, as torchvision's last one is: of 22,000 classes, it has
# some twenty million weights.
SPARE_TENSORS, SPARE_NUMBERS = 100, 50_000_000

# Of torch.Tensor and of nn.init: what fills a tensor with random numbers
DRAWS = {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"}


@contextmanager
def at_most(tensors: int, numbers: int) -> Iterator[None]:
    """Inside the `with` no modules are built, by this thread, with more parameters and buffers, or more numbers in
    them, than these (and a little to spare). Layers are counted one by one, before their weights are drawn: a builder
    whose arguments ask for a billion of them is stopped after a few.

    Raises:
        UserError: the network is larger.
    """
    thread, left = threading.get_ident(), [tensors + SPARE_TENSORS, numbers + SPARE_NUMBERS]

    def count(_: nn.Module, __: str, value: Tensor | None) -> None:
        if value is None or threading.get_ident() != thread:
            return
        left[0] -= 1
        left[1] -= value.numel()
        if min(left) < 0:
            held = f"{tensors:,} tensors with {numbers:,} numbers"
            raise UserError(f"the network that it names is larger than the {held} that it holds")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside the `with` modules are built on torch's meta device: tensors have a shape and a type, and no values."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Random numbers for what has no values are not drawn: for the normal ones torch would import its compiler first,
    which takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
