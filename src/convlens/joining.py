"""Where the network's own code puts together what its layers made: a shortcut is added, maps are laid side by side, a
gate is multiplied. No layer does it, so no hook sees it: the tensors are followed from function to function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .anatomy import Hooks, followed
from .evaluation import evaluating
from .explain import as_input, uncompiled
from .receptive import overwritten, tensors

HOW = {
    **dict.fromkeys(("add", "iadd", "radd", "sub", "isub", "rsub"), "add"),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"), "join"),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), "multiply"),
}


@dataclass(frozen=True)
class Part:
    """The numbers that the step `name` made (of `input`: the image), or, on its `side` input, those that went in."""

    name: str
    side: str = "output"


@dataclass(frozen=True)
class Join:
    """What was put together, in the code's order, and `how`: add, join (side by side), multiply or mix (all else). One
    part alone: the very sum, or whatever it is, that another step read first."""

    how: str
    parts: tuple[Part, ...]


def joins(model: nn.Module, image: Tensor) -> dict[str, Join]:
    """How the input of a step was put together, by the name that `dissect` gives it, where it was; image (C, H, W).

    A sum that no layer reads before it is summed on is one with that; one that a layer did read is named by that
    layer's input. So a ResNet has one join a block, whether its layers read the sum as it is or behind a function.
    """
    following = _Following()
    with evaluating(model), uncompiled(), torch.no_grad():
        pixels = as_input(model, image[None]).clone()
        following.values[pixels] = _Value(Part("input"))
        with following, followed(model, following.at):
            model(pixels)
    return following.found


@dataclass(eq=False)
class _Value:
    """What a tensor is, perhaps behind functions of it alone: in one `place`, or, until a layer reads it, put together
    of `parts` that all have one."""

    place: Part | None
    how: str = ""
    parts: tuple[_Value, ...] = ()


class _Following(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Join] = {}
        self.values = WeakTensorKeyDictionary()
        self._runs: dict[str, int] = {}

    def at(self, name: str) -> Hooks:
        """The hooks in front of a layer and behind it."""

        def before(_layer: nn.Module, inputs: Any) -> None:
            self._runs[name] = self._runs.get(name, 0) + 1
            value = _together("", [self.values[each] for each in tensors(inputs) if each in self.values])
            if value and value.place is None:
                self.found[called()] = Join(value.how, tuple(part.place for part in value.parts if part.place))
                value.place = Part(called(), "input")
            elif value and value.place and value.place.side == "input":
                self.found[called()] = Join(value.how, (value.place,))

        def behind(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            made = _Value(Part(called()))
            for tensor in tensors(output):
                self.values[tensor] = made

        def called() -> str:
            return name if self._runs[name] == 1 else f"{name}#{self._runs[name]}"

        return before, behind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").strip("_")
        known = [self.values[tensor] for tensor in tensors((args, kwargs)) if tensor in self.values]
        out = func(*args, **kwargs)
        if name.endswith("_as"):  # of the second only its shape or type is taken, ...
            known = known[:1]
        value = None if name.endswith("_like") else _together(name, known)  # ... and here of the first, too
        if value:
            target = overwritten(func, args, kwargs)
            for tensor in tensors(out) if target is None else [target]:
                self.values[tensor] = value
        return out


def _together(name: str, values: Sequence[_Value]) -> _Value | None:
    values = list(dict.fromkeys(values))
    if len(values) < 2:
        return values[0] if values else None
    parts = tuple(dict.fromkeys(part for each in values for part in ([each] if each.place else each.parts)))
    return _Value(None, HOW.get(name, "mix"), parts) if len(parts) > 1 else parts[0]
