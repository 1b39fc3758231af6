"""Attributions: which pixels speak for a class, by five methods of captum (the extra `explain`).

    for found in attribute(model, images, "grad-cam", target="rose", against="tulip", classes=data.classes):
        print(found.target, found.probability, found.heat.shape)

All explain a logit, or with `against` the difference of two: why this class and not that one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import markup
from .errors import UserError, unknown
from .evaluation import evaluating
from .explain import NO_GRADIENT, grad_cam_layer, gradient_reaches, in_every_member, layers_of, uncompiled
from .models.normalize import Normalize

AT_ONCE = 32, 1 << 20  # images in one pass of the methods that need many, and their pixels and channels
USUAL = ("grad-cam", "integrated-gradients", "occlusion")  # one by a layer's maps, one by gradients, one by covering
EVERY = "members.*."
COLOURS = ("mean", "black", "white")


@dataclass(frozen=True)
class Attribution:
    """What `method` says of one image. `target` is the class explained, `probability` (0..1) the network's for it,
    `against` the class that it is held against, or None.

    `values` float32 as captum gives them: (C, H, W), of Grad-CAM (1, h, w), the size of the maps of `layer`. `heat`
    float32 (H, W), one number a pixel: the largest absolute gradient over the channels (saliency), their sum
    (input x gradient, integrated gradients), the change of the score while the pixel was covered (occlusion), or the
    map brought to the image's size (Grad-CAM). Where `signed`, positive heat speaks for the class and negative against
    it. `settings` says with what it was computed; colours are in 0..255.
    """

    method: str
    target: int
    probability: float
    values: Tensor
    heat: Tensor
    signed: bool
    against: int | None = None
    layer: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """All but the tensors, for JSON, with the classes by name."""
        return {
            "method": self.method,
            "class": classes[self.target],
            "probability": self.probability,
            "against": None if self.against is None else classes[self.against],
            "layer": self.layer,
            "settings": self.settings,
        }

    def _repr_html_(self) -> str:
        """The heat; `overlays.attributions` lays it over the image, with its scale."""
        than = "" if self.against is None else f" rather than class {self.against}"
        at = f" at {self.layer}" if self.layer else ""
        said = f"why class {self.target}{than} ({self.probability:.1%}){at}"
        return markup.paragraph(said, self.method) + markup.picture(markup.tiles(self.heat[None].numpy(), 280), said)


def attribute(
    model: nn.Module,
    images: Tensor,
    method: str = "grad-cam",
    target: int | str | None = None,
    against: int | str | None = None,
    *,
    classes: Sequence[str] | None = None,
    layer: str | None = None,
    baseline: str | Tensor = "mean",
    steps: int = 50,
    window: int | None = None,
    temperature: float = 1.0,
) -> list[Attribution]:
    """One Attribution an image of `images`, uint8 or float in 0..255, (N, C, H, W).

    - `saliency`: the absolute gradient (Simonyan et al., arXiv:1312.6034).
    - `input-x-gradient`: the pixel times its gradient (Shrikumar et al., arXiv:1605.01713).
    - `integrated-gradients`: the mean gradient on the way from `baseline` in `steps` steps, times the way (Sundararajan
      et al., arXiv:1703.01365). It sums to the change of the score; `settings["gap"]` is by how much it fails to.
    - `grad-cam`: the maps of `layer`, each with the weight of its mean gradient (Selvaraju et al., arXiv:1610.02391);
      below zero cut off, but not with `against`, where what speaks for the other class is half of the answer. Without
      `layer` the last layer to run with maps as fine as those of the last convolution whose maps have more than one
      pixel; of an ensemble that of every member, `members.*.features.9`, whose maps are summed. Of the names in a model
      of ours `network.` may be left out.
    - `occlusion`: the fall of the score while a square of `window` pixels is covered with `baseline`, moved by half of
      its side (Zeiler and Fergus, arXiv:1311.2901); by default an eighth of the image's shorter side.

    `target` and `against` are classes by number, or by name where `classes` is given; by default the class that each
    image is taken for. `baseline`: "mean" is the colour that the model's normalisation takes to zero, the mean of what
    it was trained on (black where it has no normalisation of ours); "black", "white", or float (C, H, W) in 0..255. On
    black nothing black could be found important, but by occlusion. `temperature` is that of calibrated probabilities;
    it changes nothing else.

    The model is left as it was: hooks, gradients, flags and modes, also after an error. Computed in fp32 on the
    model's device, one image at a time; what comes back is on the CPU.

    Raises:
        UserError: captum is not installed; an unknown method, class or layer; a layer without maps; a setting out of
            range; an answer that is not finite; no gradient that reaches the pixels, where the method needs one.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if layer is not None and method != "grad-cam":
        raise UserError(f"{method} explains the pixels: only grad-cam takes a layer, and {layer!r} was given")
    if images.ndim != 4 or not len(images):
        raise UserError(f"images are (N, C, H, W), not {tuple(images.shape)}")
    if steps < 2 or (window is not None and not 1 <= window <= min(images.shape[2:])):
        high = min(images.shape[2:])
        raise UserError(f"steps must be 2 or more and window 1 to {high} pixels, not {steps} and {window}")
    attr = require_captum()
    device = next(model.parameters()).device
    found = []
    exact = torch.autocast(device.type, enabled=False)  # also where the caller is inside autocast
    with evaluating(model), uncompiled(), exact, torch.inference_mode(False), torch.enable_grad():
        for image in images.detach().to(device, torch.float32, copy=True).split(1):
            with torch.no_grad():
                probabilities = (model(image)[0].cpu().double() / temperature).softmax(0)
            if not probabilities.isfinite().all():
                raise UserError("the network's answer to this image is not finite: there is nothing to explain")
            count, best = len(probabilities), int(probabilities.argmax())
            this = best if target is None else class_index(target, count, classes)
            other = None if against is None else class_index(against, count, classes)
            if this == other:
                name = classes[this] if classes else this
                raise UserError(f"class {name} cannot be held against itself: name another, or the class to explain")
            at, names = _layers(model, image, layer) if method == "grad-cam" else (None, [])
            asked = _Asked(
                layers=[layers_of(model)[name] for name in names],
                contrast=other is not None,
                baseline=baseline_of(model, image, baseline),
                steps=steps,
                window=window,
            )
            try:
                raw, settings = METHODS[method](attr, _score(model, this, other), image, asked)
            except RuntimeError as error:
                if gradient_reaches(model, image):
                    raise
                raise UserError(NO_GRADIENT) from error
            values = raw.detach()[0].float().cpu()
            found.append(
                Attribution(
                    method=method,
                    target=this,
                    probability=probabilities[this].item(),
                    values=values,
                    heat=_heat(method, values, image.shape[2:]),
                    signed=method != "saliency" and not settings.get("relu", False),
                    against=other,
                    layer=at,
                    settings=settings,
                )
            )
    return found


def require_captum() -> ModuleType:
    """captum.attr. Raises UserError where captum is not installed."""
    try:
        import captum.attr
    except ImportError as error:
        raise UserError("attributions need captum: pip install 'convlens[explain]'") from error
    return captum.attr


def class_index(given: int | str, count: int, classes: Sequence[str] | None = None) -> int:
    """The number of a class given by name, which wins, or by number. Raises UserError where there is none."""
    if isinstance(given, str):
        if classes and given in classes:
            return list(classes).index(given)
        if not given.isdecimal():
            raise unknown("class", given, classes or [str(i) for i in range(count)])
    if not 0 <= int(given) < count:
        raise UserError(f"there is no class {given}: the network knows {count}, numbered from 0")
    return int(given)


def baseline_of(model: nn.Module, image: Tensor, colour: str | Tensor = "mean") -> Tensor:
    """What stands for nothing to see, float32 (1, C, 1, 1) or (1, C, H, W) in 0..255, on the image's device: see
    `attribute`. Raises UserError for another word or shape."""
    if isinstance(colour, Tensor):
        if colour.shape != image.shape[1:]:
            raise UserError(
                f"the baseline must have the image's shape {tuple(image.shape[1:])}, not {(*colour.shape,)}"
            )
        return colour.to(image.device, torch.float32)[None]
    if colour not in COLOURS:
        raise unknown("baseline", colour, COLOURS)
    plain = image.new_full((1, image.shape[1], 1, 1), 255.0 if colour == "white" else 0.0)
    norm = next((layer for layer in model.modules() if isinstance(layer, Normalize)), None)
    if colour != "mean" or norm is None:
        return plain
    mean = (-norm.shift / norm.scale).to(plain).view(1, -1, 1, 1)
    return mean if mean.shape == plain.shape else plain + mean.mean()  # a gray image in a network of three channels


@dataclass(frozen=True)
class _Asked:
    """What the methods need beside the score and the image."""

    layers: list[nn.Module]
    contrast: bool
    baseline: Tensor
    steps: int
    window: int | None


_Score = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> (N,)
_Found = tuple[Tensor, dict[str, Any]]  # captum's values, (1, ...), and the settings


def _score(model: nn.Module, target: int, against: int | None) -> _Score:
    def score(images: Tensor) -> Tensor:
        logits = model(images)
        return logits[:, target] if against is None else logits[:, target] - logits[:, against]

    return score


def _at_once(image: Tensor) -> int:
    return max(min(AT_ONCE[0], AT_ONCE[1] // image.numel()), 1)


def _layers(model: nn.Module, image: Tensor, asked: str | None) -> tuple[str, list[str]]:
    """What Grad-CAM looks at, under one name, and the names of its layers."""
    at = grad_cam_layer(model, image, asked and asked.replace(EVERY, "members.0."))
    return in_every_member(model, at) if asked is None or EVERY in asked else (at, [at])


def _saliency(attr: Any, score: _Score, image: Tensor, _asked: _Asked) -> _Found:
    return attr.Saliency(score).attribute(image.requires_grad_()), {}


def _input_x_gradient(attr: Any, score: _Score, image: Tensor, _asked: _Asked) -> _Found:
    return attr.InputXGradient(score).attribute(image.requires_grad_()), {}


def _integrated_gradients(attr: Any, score: _Score, image: Tensor, asked: _Asked) -> _Found:
    values, gap = attr.IntegratedGradients(score).attribute(
        image.requires_grad_(),
        baselines=asked.baseline.expand_as(image),
        n_steps=asked.steps,
        internal_batch_size=_at_once(image),
        return_convergence_delta=True,
    )
    return values, {"baseline": _colour(asked.baseline), "steps": asked.steps, "gap": gap.item()}


def _grad_cam(attr: Any, score: _Score, image: Tensor, asked: _Asked) -> _Found:
    image.requires_grad_()
    values = sum(attr.LayerGradCam(score, layer).attribute(image) for layer in asked.layers)
    return values if asked.contrast else F.relu(values), {"relu": not asked.contrast}


def _occlusion(attr: Any, score: _Score, image: Tensor, asked: _Asked) -> _Found:
    channels, *size = image.shape[1:]
    window = asked.window or max(math.floor(min(size) / 8 + 0.5), 1)
    stride = max(window // 2, 1)
    values = attr.Occlusion(score).attribute(
        image,
        sliding_window_shapes=(channels, window, window),
        strides=(channels, stride, stride),
        baselines=asked.baseline.expand_as(image),
        perturbations_per_eval=_at_once(image),
    )
    return values, {"baseline": _colour(asked.baseline), "window": window, "stride": stride}


METHODS: dict[str, Callable[[Any, _Score, Tensor, _Asked], _Found]] = {
    "saliency": _saliency,
    "input-x-gradient": _input_x_gradient,
    "integrated-gradients": _integrated_gradients,
    "grad-cam": _grad_cam,
    "occlusion": _occlusion,
}


def _heat(method: str, values: Tensor, size: torch.Size) -> Tensor:
    if method == "saliency":
        return values.amax(0)
    if method == "occlusion":
        return values[0]  # a window covers all channels, so all have the same value
    if method == "grad-cam":
        return F.interpolate(values[None], tuple(size), mode="bilinear", align_corners=False)[0, 0]
    return values.sum(0)


def _colour(baseline: Tensor) -> list[float] | str:
    return [round(v, 2) for v in baseline.flatten().tolist()] if baseline.shape[2:] == (1, 1) else "an image"
