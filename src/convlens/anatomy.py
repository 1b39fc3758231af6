"""One image's way through a network, layer by layer, also with channels switched off. Functions that do what a layer
does (`functions`) are layers here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .errors import UserError, unknown
from .evaluation import evaluating
from .explain import INSIDE, as_input, layers_of, uncompiled
from .functions import MARK, Functions
from .models.sizes import WINDOWED, formula, windows
from .receptive import tensors

NOT_LAYERS = (nn.Dropout, nn.Dropout2d, nn.Identity)  # they leave every number as it is, when nothing is trained


@dataclass(frozen=True)
class Step:
    """A layer that ran: `input` and `output` are one image's, float32 (C, H, W) or (F,), on the CPU; `formula` the
    output height with its numbers, where the layer has a window. A layer that ran again has a name ending in #2.
    `effects` (C,), where they were asked for: what every channel, or unit, moved the answer's logit by. `sources` are
    the steps (or `input`, the image) whose very numbers went in, perhaps in another shape; none where the network's own
    code computed something in between: added a shortcut, joined maps. Of a function, named F.relu, `layer` is one that
    does the same."""

    name: str
    layer: nn.Module
    input: Tensor
    output: Tensor
    formula: str = ""
    effects: Tensor | None = None
    sources: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return type(self.layer).__name__


@dataclass(frozen=True)
class Anatomy:
    """All steps in the order in which they ran, and the logits (K,) that they led to."""

    steps: tuple[Step, ...]
    logits: Tensor

    def step(self, name: str) -> Step:
        """Raises UserError where no layer of that name ran."""
        for step in self.steps:
            if step.name == name:
                return step
        raise unknown("layer", name, [step.name for step in self.steps])


@dataclass(frozen=True)
class _Met:
    """A step as it ran, and what its effects are drawn from: the place of its output in the gradient's graph, where it
    has one, and what it made of the image's other views, which lie behind it in the batch (none without a place)."""

    step: Step
    edge: GradientEdge | None
    others: Tensor


def dissect(
    model: nn.Module, image: Tensor, off: Mapping[str, Sequence[int]] | None = None, effects: bool = False
) -> Anatomy:
    """Follow one image (C, H, W) through `model`, in evaluation mode, mode put back.

    `off` switches channels off: of each layer named the numbers of these channels (of a linear layer: these units) are
    zero from there on, which is what ablating a channel means (Morcos et al., arXiv:1803.06959). `effects` asks for
    what every channel moves the largest logit by: activation x gradient, summed over the map, which is, to first order,
    what that logit loses where the channel is switched off (Molchanov et al., arXiv:1611.06440, who take it without its
    sign). Where no gradient comes they are zero.

    Raises:
        UserError: a layer that did not run, or a channel that it does not have.
    """
    met: list[_Met] = []
    made: list[tuple[str, Tensor, _Mark]] = []
    with (
        evaluating(model),
        uncompiled(),
        torch.inference_mode(False),
        torch.set_grad_enabled(effects),
        switched_off(model, off or {}),
    ):
        # a clone with a gradient of its own: there is a graph also where the weights are frozen
        pixels = as_input(model, image[None]).detach().clone().requires_grad_(effects)
        made.append(("input", pixels, _mark(pixels)))
        with followed(model, lambda name: _recorders(name, met, made)):
            logits = model(pixels)[0]
    steps = _with_effects(met, logits) if effects else (each.step for each in met)
    return Anatomy(tuple(steps), logits.detach().float().cpu())


def _with_effects(met: list[_Met], logits: Tensor) -> Iterator[Step]:
    followed = [each.edge for each in met if each.edge is not None]
    reached = followed and logits.requires_grad
    slopes = iter(torch.autograd.grad(logits.max(), followed, allow_unused=True) if reached else ())
    for each in met:
        slope = next(slopes, None) if each.edge is not None else None
        output = each.step.output
        moved = torch.zeros_like(output) if slope is None else output * slope[0].float().cpu()
        if slope is not None and len(each.others):
            moved = moved + (each.others * slope[1:].float().cpu()).sum(0)
        yield replace(each.step, effects=moved.flatten(1).sum(1) if moved.ndim > 1 else moved)


@contextmanager
def switched_off(model: nn.Module, off: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Inside the `with` these channels of the layers named are zero. Raises UserError as `dissect` does, of a function
    that is not called at the end of the `with`."""
    layers = layers_of(model)
    handles = []
    functions = {name: channels for name, channels in off.items() if name.startswith(MARK)}
    met: list[str] = []

    def called(name: str, layer: nn.Module, given: Tensor, compute: Callable[[], Any]) -> Any:
        met.append(name)
        return _silencer(name, functions[name])(layer, given, compute()) if name in functions else compute()

    try:
        for given, channels in off.items():
            if given in functions:
                continue
            name = next((name for name in (given, INSIDE + given) if name in layers), None)
            if name is None:
                raise unknown("layer", given, [name.removeprefix(INSIDE) for name in layers if name])
            # in front of the hooks that record: what they see is what the next layer meets
            handles.append(layers[name].register_forward_hook(_silencer(given, channels), prepend=True))
        with Functions([*leaves(model).values()], called) if functions else nullcontext():
            yield
        if missed := set(functions) - set(met):
            raise unknown("layer", min(missed), [*(name.removeprefix(INSIDE) for name in layers if name), *met])
    finally:
        for handle in handles:
            handle.remove()


def _silencer(name: str, channels: Sequence[int]) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(_layer: nn.Module, _inputs: Any, output: Any) -> Any:
        count = output.shape[1] if isinstance(output, Tensor) and output.ndim > 1 else 0
        wrong = next((channel for channel in channels if not 0 <= channel < count), None)
        if wrong is not None:
            raise UserError(f"the layer {name} has no channel {wrong}: they are numbered from 0 to {count - 1}")
        silent = output.clone()
        silent[:, list(channels)] = 0
        return silent

    return hook


Hooks = tuple[Callable[[nn.Module, Any], None], Callable[[nn.Module, Any, Any], None]]


@contextmanager
def followed(model: nn.Module, of: Callable[[str], Hooks]) -> Iterator[None]:
    """Inside the `with`, the hooks `of` a name run in front of the layer, or function, of that name and behind it."""
    handles = []

    def called(name: str, layer: nn.Module, given: Tensor, compute: Callable[[], Any]) -> Any:
        before, behind = of(name)
        before(layer, given)
        out = compute()
        behind(layer, given, out)
        return out

    found = leaves(model)
    try:
        for name, layer in found.items():
            before, behind = of(name.removeprefix(INSIDE))
            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(behind)]
        with Functions([*found.values()], called):
            yield
    finally:
        for handle in handles:
            handle.remove()


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that compute: those without layers inside, by their names in `layers_of`."""
    found = layers_of(model).items()
    return {
        name: layer for name, layer in found if name and not isinstance(layer, NOT_LAYERS) and not [*layer.children()]
    }


_Mark = tuple[int, int, int, int]


def _mark(values: Tensor) -> _Mark:
    """The same of two tensors that are the same numbers, perhaps in another shape: where they lie in memory, how many,
    and how often they were written over. Equal numbers would not do: a block whose last norm is zero adds nothing."""
    storage = values.untyped_storage().data_ptr()
    return storage, int(values.storage_offset()), values.numel(), values._version


def _recorders(name: str, met: list[_Met], made: list[tuple[str, Tensor, _Mark]]) -> Hooks:
    """The hooks in front of a layer and behind it; in front, because a ReLU in place overwrites what it was given.
    `made` holds every step's output, so that no other comes to lie in its place."""
    given: list[tuple[Tensor, tuple[str, ...]]] = []

    def before(_layer: nn.Module, inputs: Any) -> None:
        marks = [_mark(each) for each in tensors(inputs)]
        found = [next((step for step, _, mark in reversed(made) if mark == wanted), "") for wanted in marks]
        given.append((_of_one(inputs), tuple(filter(None, found))))

    def behind(layer: nn.Module, _inputs: Any, output: Any) -> None:
        image, sources = given.pop()
        again = sum(each.step.name.split("#")[0] == name for each in met)
        text = formula(image.shape[1], *windows(layer)[0]) if isinstance(layer, WINDOWED) else ""
        called, first = f"{name}#{again + 1}" if again else name, tensors(output)[0]
        step = Step(called, layer, image, _of_one(output), text, sources=sources)
        edge = get_gradient_edge(first) if first.requires_grad else None
        met.append(_Met(step, edge, (first[1:] if edge else first[:0]).detach().float().cpu().clone()))
        made.append((called, first, _mark(first)))

    return before, behind


def _of_one(values: Any) -> Tensor:
    """The first tensor, of the one image; a copy."""
    return tensors(values)[0][0].detach().float().cpu().clone()
