"""The layer table: what every layer makes of its input, what it costs, and how much of the image it sees.

Measured by one forward pass, not read off the code: hooks see the sizes, a dispatch mode the arithmetic, and a torch
function mode follows the receptive field through every operation, also those that are not layers (a pooling function,
the sum of a residual block).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import markup
from .evaluation import evaluating
from .explain import as_input, layers_of, uncompiled
from .flops import FlopCount
from .models.sizes import WINDOWED, Window, formula, in_cells, windows
from .receptive import Fields, slides, tensors

ITSELF = "(model)"  # what a row is called whose work is done by the model and none of its layers


@dataclass(frozen=True)
class LayerRow:
    """One layer, or a function that changes a size or multiplies, whose kind then ends in `()`.

    `input` and `output` are (C, H, W) or (C,). `kernel`, `stride`, `padding` and `dilation` are `3`, or `5x3` where
    height and width differ, empty where there is no window; `groups` is 1 but for grouped convolutions. `parameters`
    are those that no row above has; `macs` multiply-adds and `activation_bytes` the memory of its output for one image
    (fp32, 0 where the output is the input's own memory). `receptive_field` and `jump` are pixels of the image (height,
    width), None once a layer sees all of it, or an operation that is not followed came before. `formula` is the output
    height with its numbers, `formula_width` the width where it has other ones.
    """

    name: str
    kind: str
    kernel: str
    stride: str
    padding: str
    dilation: str
    groups: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: tuple[int, int] | None
    jump: tuple[int, int] | None
    formula: str
    formula_width: str


@dataclass(frozen=True)
class Note:
    """What a person should know of a layer. `kind` is `pixels dropped`, `small field`, `large field` or `not run`."""

    kind: str
    layer: str
    text: str


@dataclass(frozen=True)
class Summary:
    """All layers of a model for images of `input` (C, H, W), in the order in which they run, and the totals: parameters
    and those of them that are trained, multiply-adds and activation memory for one image, and the bytes of the weights
    (parameters and buffers, as they are stored)."""

    input: tuple[int, int, int]
    rows: tuple[LayerRow, ...]
    parameters: int
    trainable: int
    macs: int
    activation_bytes: int
    weight_bytes: int
    notes: tuple[Note, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        """A line a layer, the formula of its size last, and the notes."""
        numbers = ("parameters", "multiply-adds", "receptive field")
        columns = ("layer", "kind", "kernel", "stride", "padding", "output", *numbers, "output height")
        rows = []
        for row in self.rows:
            sees = "all" if row.receptive_field is None else " x ".join(map(str, row.receptive_field))
            counts = [f"{count:,}" if count else "" for count in (row.parameters, row.macs)]
            cells = (row.name, row.kind, row.kernel, row.stride, row.padding, " x ".join(map(str, row.output)))
            rows.append((*cells, *counts, sees, row.formula))
        channels, height, width = self.input
        said = f"and {self.macs:,} multiply-adds for one image of {channels} x {height} x {width}"
        notes = "".join(markup.paragraph(note.text, note.layer) for note in self.notes)
        return markup.paragraph(said, f"{self.parameters:,} parameters") + markup.table(columns, rows, numbers) + notes


def summarize(model: nn.Module, channels: int, size: tuple[int, int]) -> Summary:
    """The table of `model` for images of this size: one pass of one empty image, in evaluation mode, mode put back.
    What torch.compile made is computed without it."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    image = as_input(model, torch.zeros(1, channels, *size, dtype=torch.uint8))
    counter = FlopCount()
    seen = _Pass(image, lambda: counter.total)
    handles = []
    for name, layer in layers_of(model).items():
        handles.append(layer.register_forward_pre_hook(lambda m, _, n=name: seen.enter(n or ITSELF, m)))
        handles.append(layer.register_forward_hook(lambda _, inputs, out: seen.leave(inputs, out)))
    try:
        with evaluating(model), uncompiled(), torch.no_grad(), counter, seen:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    rows = tuple(seen.rows)
    return Summary(
        input=(channels, *size),
        rows=rows,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=counter.total // 2,
        activation_bytes=sum(row.activation_bytes for row in rows),
        weight_bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        notes=tuple(_notes(model, seen, size)),
    )


@dataclass
class _Running:
    """A layer whose forward pass is under way, with what had been counted when it began."""

    name: str
    layer: nn.Module
    flops: int
    macs: int


class _Pass(TorchFunctionMode):
    """One forward pass: rows as layers end, and as functions are called outside of torch's own layers."""

    def __init__(self, image: Tensor, flops: Callable[[], int]) -> None:
        super().__init__()
        self.rows: list[LayerRow] = []
        self.fields = Fields(image)
        self.counted: set[int] = set()  # parameters, by id: a layer that runs twice has them once
        self._flops, self._macs = flops, 0  # of the whole pass so far, and those that are in rows
        self._running: list[_Running] = []

    def enter(self, name: str, layer: nn.Module) -> None:
        self._running.append(_Running(name, layer, self._flops(), self._macs))

    def leave(self, inputs: Any, out: Any) -> None:
        now = self._running.pop()
        layer = now.layer
        macs = (self._flops() - now.flops) // 2 - (self._macs - now.macs)  # less what is in rows of its own
        parts = list(layer.parameters(recurse=_of_torch(layer)))  # attention has layers within that never run by name
        own = [p for p in parts if id(p) not in self.counted]
        self.counted |= {id(p) for p in own}
        if not list(layer.children()) or own or macs:
            slide = windows(layer) if isinstance(layer, WINDOWED) else None
            groups = getattr(layer, "groups", 1) if slide else 1
            weights = sum(p.numel() for p in own)
            self._add(now.name, type(layer).__name__, inputs, out, slide, groups, weights, macs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, before = kwargs or {}, self._flops()
        out = func(*args, **kwargs)
        now = self._running[-1] if self._running else _Running(ITSELF, nn.Identity(), 0, 0)
        self.fields.follow(func, args, kwargs, out, now.name)
        macs = (self._flops() - before) // 2
        if not _of_torch(now.layer) and (macs or _resized((args, kwargs), out)):
            kind = f"{func.__name__.strip('_')}()"
            self._add(now.name, kind, (args, kwargs), out, slides(func, args, kwargs), 1, 0, macs)
        return out

    def _add(
        self,
        name: str,
        kind: str,
        inputs: Any,
        out: Any,
        slide: tuple[Window, Window] | None,
        groups: int,
        parameters: int,
        macs: int,
    ) -> None:
        given, made = tensors(inputs), tensors(out)
        old = {tensor.untyped_storage().data_ptr() for tensor in given}
        new = {t.untyped_storage().data_ptr(): t for t in made}
        texts, cells = ["", ""], in_cells(slide)
        if slide:
            texts = [formula(n, *window) for n, window in zip(given[0].shape[2:], slide, strict=True)]
        field = self.fields.of(made[0] if made else None)
        self._macs += macs
        self.rows.append(
            LayerRow(
                name=name,
                kind=kind,
                kernel=cells[0],
                stride=cells[1],
                padding=cells[2],
                dilation=cells[3],
                groups=groups,
                input=tuple(given[0].shape[1:]) if given else (),
                output=tuple(made[0].shape[1:]) if made else (),
                parameters=parameters,
                macs=macs,
                activation_bytes=4 * sum(t.numel() for place, t in new.items() if place not in old),
                receptive_field=field and field[0],
                jump=field and field[1],
                formula=texts[0],
                formula_width=texts[1] if texts[1] != texts[0] else "",
            )
        )


def _of_torch(layer: nn.Module) -> bool:
    """Whether what a layer calls is its own affair: torch's layers, and convolutions and poolings made of them."""
    of_torch = type(layer).__module__.startswith("torch.nn.") and not isinstance(layer, nn.Sequential)
    return of_torch or isinstance(layer, WINDOWED)


def _resized(inputs: Any, out: Any) -> bool:
    """Whether a function made maps of another height or width, or one number of each."""
    before, after = tensors(inputs), tensors(out)
    if not before or not after or before[0].ndim != 4:
        return False
    if after[0].ndim == 4:
        return before[0].shape[2:] != after[0].shape[2:]
    return before[0].numel() != after[0].numel()


def _notes(model: nn.Module, seen: _Pass, size: tuple[int, int]) -> list[Note]:
    notes = []
    for unseen in seen.fields.unseen():
        names = " and ".join(unseen.layers)
        never = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((unseen.rows, "row"), (unseen.columns, "column")) if n]
        of = f"of the {unseen.size[0]} x {unseen.size[1]} pixels that come in"
        notes.append(Note("pixels dropped", names, f"{names} never sees {' and '.join(never)} {of}"))
    followed = [(row, row.receptive_field) for row in seen.rows if row.receptive_field]
    convolutions = [(row, field) for row, field in followed if "conv" in row.kind.lower() or row.macs]
    of = f"{size[0]} x {size[1]} pixels"
    if convolutions and (field := convolutions[-1][1]) and (field[0] < size[0] or field[1] < size[1]):
        name = convolutions[-1][0].name
        notes.append(
            Note("small field", name, f"{name}, the last convolution, sees {field[0]} x {field[1]} of the {of}")
        )
    larger = next(((row, field) for row, field in followed if field[0] > size[0] or field[1] > size[1]), None)
    if larger:
        name, field = larger[0].name, larger[1]
        text = f"from {name} on a receptive field ({field[0]} x {field[1]}) is larger than the image of {of}"
        notes.append(Note("large field", name, text))
    idle = [(name, p.numel()) for name, p in model.named_parameters() if id(p) not in seen.counted]
    if idle:
        text = f"{sum(n for _, n in idle):,} parameters are in no layer that ran: {', '.join(n for n, _ in idle[:3])}"
        notes.append(Note("not run", idle[0][0].rpartition(".")[0], text + (", ..." if len(idle) > 3 else "")))
    return notes
