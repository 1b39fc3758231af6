"""Is a heat map right? Take the hottest pixels away first, or put them in first, and watch the probability (Petsiuk,
Das and Saenko, arXiv:1806.07421)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attribution import baseline_of
from .errors import UserError
from .evaluation import evaluating

AT_ONCE = 1 << 20  # pixels and channels in one pass


@dataclass(frozen=True)
class Curves:
    """Of N images: `probabilities` float64 (N, S), 0..1, that of the class explained while `shares` float64 (S,), 0..1,
    of the pixels are changed. `areas` float64 (N,), under the curve, 0..1: a faithful map has a small one in deletion
    and a large one in insertion; a random order is what to compare it with."""

    shares: Tensor
    probabilities: Tensor

    @property
    def areas(self) -> Tensor:
        return torch.trapezoid(self.probabilities, self.shares)


def deletion(
    model: nn.Module, images: Tensor, heats: Tensor, targets: Tensor, steps: int = 20, baseline: str | Tensor = "mean"
) -> Curves:
    """The curve while pixels are covered with `baseline` (see `attribute`), the hottest first.

    `images` uint8 or float in 0..255 (N, C, H, W), `heats` (N, H, W), `targets` int64 (N,); of equally hot pixels the
    upper left comes first. In evaluation mode, without gradients, many images in a pass.

    Raises:
        UserError: shapes that do not belong together, or no steps.
    """
    _check(images, heats, targets, steps)
    pixels = images.to(next(model.parameters()).device, torch.float32)
    empty = torch.cat([baseline_of(model, image, baseline).expand_as(image) for image in pixels.split(1)])
    return _curves(model, pixels, empty, heats, targets, steps)


def insertion(model: nn.Module, images: Tensor, heats: Tensor, targets: Tensor, steps: int = 20) -> Curves:
    """The curve while pixels are put back into a blurred image (Gaussian, its deviation an eighth of the shorter side),
    the hottest first; the rest is as with `deletion`. Blurred and not empty, because sharp edges on an empty canvas
    are shapes of their own."""
    _check(images, heats, targets, steps)
    pixels = images.to(next(model.parameters()).device, torch.float32)
    return _curves(model, gaussian_blur(pixels, min(images.shape[2:]) / 8), pixels, heats, targets, steps)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """float (N, C, H, W), with a Gaussian of `sigma` pixels, cut off at three times that; behind the edge its pixels go
    on. `sigma` 0 changes nothing."""
    reach = math.ceil(3 * sigma)
    if not reach:
        return images
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-((places / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    channels = images.shape[1]
    rows = F.conv2d(F.pad(images, (reach, reach, 0, 0), "replicate"), kernel[:, :, None], groups=channels)
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), "replicate"), kernel[..., None], groups=channels)


def _check(images: Tensor, heats: Tensor, targets: Tensor, steps: int) -> None:
    n, _, height, width = images.shape
    if heats.shape != (n, height, width) or targets.shape != (n,) or steps < 1:
        raise UserError(
            f"{n} images of {height} x {width} need heats ({n}, {height}, {width}), targets ({n},) and a step or more, "
            f"not {tuple(heats.shape)}, {tuple(targets.shape)} and {steps}"
        )


def _curves(model: nn.Module, before: Tensor, after: Tensor, heats: Tensor, targets: Tensor, steps: int) -> Curves:
    """While `before` becomes `after`."""
    n, _, height, width = before.shape
    order = heats.to(before.device).flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).view(n, 1, height, width)
    counts = torch.linspace(0, height * width, steps + 1, dtype=torch.float64).round().long()
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(steps + 1)).to(before.device)
    found = []
    with evaluating(model), torch.inference_mode():
        for part in pairs.split(max(AT_ONCE // before[0].numel(), 1)):
            which, step = part.unbind(1)
            changed = ranks[which] < counts.to(before.device)[step].view(-1, 1, 1, 1)
            logits = model(torch.where(changed, after[which], before[which])).cpu().double()
            found.append(logits.softmax(1).gather(1, targets.cpu()[which.cpu()][:, None]))
    return Curves(counts.double() / (height * width), torch.cat(found).view(n, steps + 1))
