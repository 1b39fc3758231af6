"""Looking inside: the outputs of any layers, the feature maps of an image, the filters of the first convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import markup
from .errors import UserError, unknown
from .evaluation import evaluating
from .models.sizes import WINDOWED, formula, windows


@contextmanager
def capture(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, every forward pass puts the named layers' outputs into the dict, in the order in which they
    ran.

    No hook stays on the model, also after an error. A layer that runs twice in a pass keeps its last output.

    Raises:
        UserError: a layer that the model does not have.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    handles = []

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs.pop(name, None)
            outputs[name] = output

        return hook

    try:
        for name in layers:
            if name not in modules:
                raise unknown("layer", name, [n for n in modules if n])
            handles.append(modules[name].register_forward_hook(record(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


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
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
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
        found.append(FeatureMap(name, type(layer).__name__, output[0].float().cpu(), text))
    return found


def logits_of_image(model: nn.Module, image: Tensor) -> Tensor:
    """Logits (K,) of one image (C, H, W), in evaluation mode and without gradients; the model's mode is put back."""
    with evaluating(model), torch.no_grad():
        return model(image[None].to(next(model.parameters()).device))[0].float().cpu()


def first_filters(model: nn.Module) -> tuple[str, Tensor]:
    """The name and the weights (out, in, kH, kW) of the first convolution. Raises UserError where there is none."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer.weight.detach().float().cpu()
    raise UserError("this network has no convolution")
