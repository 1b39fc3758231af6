"""One step of a training: the gradients of a batch, in parts and by several processes if need be, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .device import autocast
from .distributed import by_itself, mine, of_batch
from .graphs import Step
from .shortcuts import wide_convolutions

Forward = Callable[[Tensor], Tensor]
Gradients = Callable[[Forward, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def step_of(
    forward: Forward, gradients: Gradients, optimizer: torch.optim.Optimizer, clip: Callable[[], object]
) -> Step:
    """The function (images, labels) -> mean loss and right answers that makes one step of the optimizer."""

    def step(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        found = gradients(forward, images, labels, 1.0)
        clip()
        optimizer.step()
        return found

    return step


def gradients_of(loss_of: Callable[[Tensor, Tensor], Tensor], device: torch.device, precision: str) -> Gradients:
    """The function (forward, images, labels, share) -> mean loss and right answers, which adds `share` times the
    gradient of that loss to the parameters' gradients. Each process takes its part of the images; the numbers are those
    of all."""
    wide = wide_convolutions(device, precision)

    def gradients(forward: Forward, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        images, labels, weight = mine(images, labels)
        with autocast(device, precision), wide:
            logits = forward(images)
        loss, scale = loss_of(logits.float(), labels), weight * share
        (loss if scale == 1 else loss * scale).backward()
        right = (logits.detach().argmax(1) == answers(labels)).sum()
        return of_batch(loss.detach(), right, weight)

    return gradients


def in_parts(gradients: Gradients, count: int) -> Gradients:
    """The same function, computed on `count` parts of the batch in turn, as even as can be, in the memory of one part.

    What they add up to is the gradient of the whole batch, to rounding; batch norm takes the statistics of each part.
    """

    def added_up(forward: Forward, images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
        parts = min(count, len(labels))
        total, right = torch.zeros((2,), device=labels.device)
        for i, (some, theirs) in enumerate(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)):
            of_all = len(theirs) / len(labels)
            with by_itself(forward, i < parts - 1):  # the last part's exchange is the one of the sum
                loss, hits = gradients(forward, some, theirs, share * of_all)
            total, right = total + loss * of_all, right + hits
        return total, right

    return gradients if count == 1 else added_up


def answers(labels: Tensor) -> Tensor:
    """The right answer to each image (N,): its label, or of its classes' shares (N, K) the greatest one's class."""
    return labels if labels.ndim == 1 else labels.argmax(1)
