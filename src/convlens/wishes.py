"""What a network wants to see: the mean image of every class, and images that are climbed to from noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attribution import baseline_of
from .device import mix_seed
from .errors import UserError
from .evaluation import evaluating
from .explain import as_input, capture, uncompiled
from .faithfulness import gaussian_blur
from .splits import Split

AT_ONCE = 1 << 20  # pixels and channels of the images that are climbed to together


def class_means(split: Split, count: int) -> Tensor:
    """The mean image of each of `count` classes, float32 (count, C, H, W) in 0..255, on the CPU; NaN where the split
    has no image of a class."""
    sums = torch.zeros(count, split.store[0].numel(), dtype=torch.float64)
    for places in split.blocks():
        at = places.to(split.store.device)
        sums.index_add_(0, split.labels[at].cpu(), split.at(at).flatten(1).double().cpu())
    images = split.labels.cpu().bincount(minlength=count)
    return (sums / images[:, None]).float().view(count, *split.store.shape[1:])


@dataclass(frozen=True)
class Wishes:
    """`images` uint8 (N, C, H, W), that each of `targets` was climbed to; `activations` float32 (N,), what the network
    says to them, and `before`, what it said to the noise that they began from. `settings` says how they were made."""

    images: Tensor
    targets: tuple[int, ...]
    activations: Tensor
    before: Tensor
    layer: str | None
    settings: dict[str, Any]


def maximise(
    model: nn.Module,
    size: tuple[int, int, int],
    targets: Sequence[int],
    layer: str | None = None,
    *,
    steps: int = 128,
    rate: float = 0.1,
    jitter: int | None = None,
    blur: float | None = None,
    seed: int = 0,
) -> Wishes:
    """Activation maximisation: images (C, H, W) = `size` that make the logit of each class of `targets` large, or with
    `layer` the mean of each of its channels that they name (Erhan et al., 2009; Simonyan et al., arXiv:1312.6034).

    The pixels are a sigmoid of what is climbed, from the colour that normalisation takes to zero and noise, by `steps`
    of Adam at `rate`. Two things keep them from being noise (Yosinski et al., arXiv:1506.06579; Mordvintsev et al.,
    2015): in each step all images are shifted, around the edges, by up to `jitter` pixels (a sixteenth of the shorter
    side), and seen through a Gaussian of `blur` pixels (a thirty-second of it), which falls to zero over the steps.

    Many targets are climbed together, and each comes out as it would alone; `seed` decides noise and shifts. The model
    is left as it was.

    Raises:
        UserError: an unknown layer, or one without such channels; a class that the network does not know.
    """
    jitter = min(size[1:]) // 16 if jitter is None else jitter
    blur = min(size[1:]) / 32 if blur is None else blur
    if steps < 1 or jitter < 0 or blur < 0 or not targets:
        raise UserError(
            f"steps must be 1 or more, jitter and blur 0 or more, and a target named, not {steps}, {jitter}, {blur:g} "
            f"and {len(targets)} targets"
        )
    device = next(model.parameters()).device
    empty = torch.zeros(1, *size, device=device)
    with evaluating(model), uncompiled(), torch.no_grad():
        count = _answers(model, empty, layer).shape[1]
    if not all(0 <= target < count for target in targets):
        kind = f"channels of {layer}" if layer else "classes"
        raise UserError(f"the {kind} go from 0 to {count - 1}, and {list(targets)} were asked for")
    start = baseline_of(model, empty).clamp(1, 254) / 255
    shifts = torch.randint(-jitter, jitter + 1, (steps, 2), generator=_generator(seed)).tolist()
    parts = []
    for some in torch.tensor(targets).split(max(AT_ONCE // empty.numel(), 1)):
        noise = torch.stack([torch.randn(size, generator=_generator(seed, target)) for target in some.tolist()])
        parts.append(_climb(model, start.logit() + 0.3 * noise.to(device), some, layer, shifts, rate, blur))
    images, before, after = (torch.cat(both).cpu() for both in zip(*parts, strict=True))
    settings = {"steps": steps, "rate": rate, "jitter": jitter, "blur": blur, "seed": seed}
    return Wishes(images, tuple(targets), after.float(), before.float(), layer, settings)


def _climb(
    model: nn.Module, climbed: Tensor, targets: Tensor, layer: str | None, shifts: list[list[int]], rate: float,
    blur: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip # what, whither, how
    """Images uint8 (N, C, H, W) climbed to from (N, C, H, W), and what the network says before and after (N,)."""

    def activations(images: Tensor) -> Tensor:
        return _answers(model, images, layer)[range(len(targets)), targets.tolist()]

    with evaluating(model), uncompiled(), torch.inference_mode(False), torch.enable_grad():
        climbed = climbed.clone().requires_grad_()
        before = activations(_pixels(climbed, blur)).detach()
        adam = torch.optim.Adam([climbed], lr=rate)
        for step, shift in enumerate(shifts):
            pixels = _pixels(climbed, blur * (1 - step / len(shifts)))
            (climbed.grad,) = torch.autograd.grad(-activations(pixels.roll(shift, (2, 3))).sum(), climbed)
            adam.step()
    with evaluating(model), uncompiled(), torch.no_grad():
        images = _pixels(climbed, 0).round().byte()
        return images, before, activations(as_input(model, images))


def _pixels(climbed: Tensor, blur: float) -> Tensor:
    return 255 * gaussian_blur(climbed, blur).sigmoid()


def _answers(model: nn.Module, images: Tensor, layer: str | None) -> Tensor:
    """(N, K): the logits, or the means of the channels of `layer`."""
    with capture(model, [layer] if layer else []) as outputs:
        logits = model(images)
    found = outputs[layer] if layer else logits
    if not isinstance(found, Tensor) or found.ndim not in (2, 4):
        raise UserError(f"layer {layer!r} has no channels: its output is neither (N, C) nor (N, C, H, W)")
    return found.flatten(2).mean(2) if found.ndim == 4 else found


def _generator(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(*seeds))
