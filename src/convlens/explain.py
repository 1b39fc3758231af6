"""Looking inside: the outputs of any layers, the feature maps of an image, the filters of the first convolution, the
layer whose maps show a place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only  # torch has no public name for it

from . import markup
from .errors import UserError, nearest, unknown
from .evaluation import evaluating
from .models.ensemble import Ensemble, members_of
from .models.sizes import WINDOWED, formula, windows

INSIDE = "network."  # what the names of layers begin with in a model of ours; tables leave it out
NO_GRADIENT = (
    "no gradient reaches the pixels of this network, as where its forward pass is under torch.no_grad() or detach(): "
    "ask by occlusion, and for no channels"
)


@contextmanager
def capture(model: nn.Module, layers: Iterable[str], gradients: bool = False) -> Iterator[dict[str, Any]]:
    """Inside the `with`, every forward pass puts the named layers' outputs into the dict, in the order in which they
    ran.

    With `gradients` each keeps its own: after `logits[0, 3].backward()` the gradient is `outputs[name].grad`, also
    where the weights are frozen; `torch.autograd.grad(logits[0, 3], outputs[name])` leaves those of the weights alone.
    An output is recorded as it left the layer, whatever a layer behind changes in place; a tuple, list or dict of
    tensors as such. A layer that runs twice in a pass keeps its last output, and that one's gradient. Under autocast
    outputs have its precision. What was compiled by torch.compile before is computed without it inside the `with`:
    compiled code does not meet hooks that came later.

    No hook stays on the model, also after an error.

    Raises:
        UserError: a layer that the model does not have; a forward pass under `torch.no_grad()` with `gradients`.
    """
    modules = layers_of(model)
    outputs: dict[str, Any] = {}
    handles = []

    def kept(output: Tensor) -> Tensor:
        if gradients and output.is_floating_point():
            if not output.requires_grad:  # a tensor of our own: the output may be the caller's own image
                output = output.detach().requires_grad_()
            output.retain_grad()
        return output

    def record(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if gradients and not torch.is_grad_enabled():
                raise UserError("gradients need a forward pass outside torch.no_grad() and torch.inference_mode()")
            outputs.pop(name, None)
            outputs[name] = tree_map_only(Tensor, kept, output)
            return tree_map_only(Tensor, torch.clone, outputs[name])  # a ReLU in place changes this one

        return hook

    try:
        for name in layers:
            if name not in modules:
                raise unknown("layer", name, [n for n in modules if n])
            handles.append(modules[name].register_forward_hook(record(name)))
        with uncompiled():
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, the model itself by ""; torch.compile does not change the names."""

    def plain(name: str) -> str:
        return ".".join(part for part in name.split(".") if part != "_orig_mod")

    return {plain(name): layer for name, layer in model.named_modules()}


def uncompiled() -> AbstractContextManager[object]:
    """Inside the `with`, what torch.compile made is computed without it. Costs nothing where nothing was compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def as_input(model: nn.Module, images: Tensor) -> Tensor:
    """Images (N, C, H, W) as any network takes them: on its device, and bytes as floats of the same values, because
    only a network that begins with our normalisation takes bytes."""
    like = next(model.parameters(), images)
    kind = like.dtype if like.is_floating_point() else torch.float32
    return images.to(like.device, images.dtype if images.is_floating_point() else kind)


@dataclass(frozen=True)
class FeatureMap:
    """What one convolution or pooling made of an image: `maps` float (C, H, W), `formula` its height in numbers."""

    name: str
    kind: str
    maps: Tensor
    formula: str

    def _repr_html_(self) -> str:
        channels, height, width = self.maps.shape
        what = f"{self.name} ({self.kind}): {channels} maps of {height} x {width}"
        return markup.paragraph(self.formula, what) + markup.picture(markup.tiles(self.maps.numpy()), what)


def feature_maps(model: nn.Module, image: Tensor, convolutions_only: bool = False) -> list[FeatureMap]:
    """The maps of every convolution and pooling for one image uint8 (C, H, W), in the order in which they ran."""
    kinds = nn.Conv2d if convolutions_only else WINDOWED
    layers = {name: layer for name, layer in layers_of(model).items() if isinstance(layer, kinds)}
    heights: dict[str, int] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, x, n=name: heights.__setitem__(n, x[0].shape[-2]))
        for name, layer in layers.items()
    ]
    try:
        with capture(model, layers) as outputs:
            logits_of_image(model, image)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for name, output in outputs.items():
        layer = layers[name]
        text = formula(heights[name], *windows(layer)[0])
        maps = output[0] if isinstance(output, tuple) else output  # a pooling may give the places of its maxima, too
        found.append(FeatureMap(name, type(layer).__name__, maps[0].float().cpu(), text))
    return found


def logits_of_image(model: nn.Module, image: Tensor) -> Tensor:
    """Logits (K,) of one image (C, H, W), in evaluation mode and without gradients; the model's mode is put back."""
    with evaluating(model), torch.no_grad():
        return model(as_input(model, image[None]))[0].float().cpu()


def first_filters(model: nn.Module) -> tuple[str, Tensor]:
    """The name and the weights (out, in, kH, kW) of the first convolution. Raises UserError where there is none."""
    for name, layer in layers_of(model).items():
        if isinstance(layer, nn.Conv2d):
            return name, layer.weight.detach().float().cpu()
    raise UserError("this network has no convolution")


def gradient_reaches(model: nn.Module, images: Tensor) -> bool:
    """Whether the logits of float images (N, C, H, W) have a gradient at the pixels."""
    pixels = images.detach().requires_grad_()
    logits = model(pixels).sum()
    return logits.requires_grad and torch.autograd.grad(logits, pixels, allow_unused=True)[0] is not None


def grad_cam_layer(model: nn.Module, image: Tensor, layer: str | None = None) -> str:
    """The name of the layer whose maps Grad-CAM weighs for `image` (1, C, H, W): `layer`, where it has maps. Without it
    the last convolution to run whose maps have more than one pixel says how fine, and of all layers with maps of that
    size the last to run is taken: behind norm, activation and shortcut. (Before them, and at finer maps further in
    front, the weighted sum of a speednet's maps was often nowhere above zero: nothing was left to see.)

    Raises:
        UserError: there is none.
    """
    layers = layers_of(model)
    layer = f"{INSIDE}{layer}" if layer not in layers and f"{INSIDE}{layer}" in layers else layer
    asked = [*filter(None, layers)] if layer is None or layer in layers else [layer]
    with capture(model, asked) as outputs, torch.no_grad():
        model(image)
    maps = {name: out.shape[2:] for name, out in outputs.items() if _has_maps(out)}
    fitting = [name for name in maps if isinstance(layers[name], nn.Conv2d)]
    if layer is None and fitting:
        size = maps[fitting[-1]]
        return [name for name in maps if maps[name] == size and not isinstance(layers[name], nn.Identity)][-1]
    if layer in maps:
        return layer
    if layer is None:
        raise UserError("no convolution of this network has maps of more than one pixel: grad-cam has nothing to show")
    hint = f"take {nearest(layer, fitting) or fitting[-1]!r}" if fitting else "and no convolution of this network has"
    if layer not in outputs:
        raise UserError(f"layer {layer!r} takes no part in this network's answer; {hint}")
    shape = tuple(outputs[layer].shape) if isinstance(outputs[layer], Tensor) else type(outputs[layer]).__name__
    raise UserError(f"layer {layer!r} has no maps of more than one pixel, its output is {shape}; {hint}")


def in_every_member(model: nn.Module, name: str) -> tuple[str, list[str]]:
    """The layers of an ensemble that stand where `name` stands in its member, with the one name for all of them,
    `members.*.features.10`; of another layer itself alone."""
    start = next((f"{each}.members." for each, layer in layers_of(model).items() if isinstance(layer, Ensemble)), None)
    if start is None or not name.startswith(start) or len(members_of(model)) == 1:
        return name, [name]
    rest = name.removeprefix(start).partition(".")[2]
    return f"{start}*.{rest}", [f"{start}{number}.{rest}" for number in range(len(members_of(model)))]


def _has_maps(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1
