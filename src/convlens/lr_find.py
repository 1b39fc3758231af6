"""The learning-rate range test: train while the rate rises, until the loss diverges (Smith, arXiv:1506.01186).

There is no second loop here: `train` is driven from outside. What wraps its batches sets every group's rate before a
step and reads the step's loss after it.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from .data import Data, steps_per_epoch
from .device import random_state, set_random_state
from .errors import FAILED, UserError
from .optim import parameter_groups
from .recipe import Recipe
from .training import Batches, Position, train

LOWEST, DECADES = 1e-5, 9  # from this share of the recipe's rate, at most so many times tenfold
STEPS = 40  # for every tenfold
REMEMBERED = 0.9  # of the average of the losses, from step to step
DIVERGED = 4  # times the lowest average


@dataclass(frozen=True)
class RangeTest:
    """The steps of one test: `rates` is what optim.lr was, `losses` (nats for cross-entropy) what each step met, and
    `smoothed` their running average. `lowest` is the rate where that was lowest, `suggestion` a third of it."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    lowest: float
    suggestion: float
    diverged: bool


def find_lr(model: nn.Module, data: Data, recipe: Recipe, steps: int = STEPS) -> RangeTest:
    """Train a copy of `model` on `data.train` with a rate that rises tenfold in `steps`, and stop where the running
    average of the loss is above four times its lowest value, as fastai does.

    All that the recipe says of batches, augmentation, optimizer and loss holds; its schedule, and what it freezes, do
    not. Groups with a rate of their own (`optim.linear_lr` ...) rise in the same ratio to `optim.lr`. The model, its
    mode and torch's random numbers stay as they were.

    The suggestion is a third of the rate with the lowest average. That rate is the largest that still converges, and a
    third or a quarter of it is Smith's rule of thumb (section 3.3), after Bengio's, that the best rate is within a
    factor of two of it (arXiv:1206.5533). fastai's `minimum` takes a tenth.

    Raises:
        UserError: `optim.lr` is 0, or the loss fell at no rate.
    """
    if recipe.optim.lr == 0:
        raise UserError("optim.lr is 0, and the test begins at a share of it: give it a value, such as --lr 0.1")
    optim = replace(recipe.optim, schedule="constant", warmup=0.0, freeze=[], head_epochs=0, norm_images=0)
    most = DECADES * steps
    test = replace(
        recipe,
        epochs=-(-most // steps_per_epoch(data.train, recipe.batch_size)),
        compile="off",
        optim=optim,
        augment=replace(recipe.augment, crop=recipe.augment.crop[-1:]),  # one size, or the losses are no one curve
    )
    peaks = [group["peak"] for group in parameter_groups(model, optim)]
    losses: list[float] = []
    stop = threading.Event()

    def climb(batches: Batches, at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            for group, peak in zip(at.optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak * share(len(losses), steps)
            yield batch
            loss = at.losses[at.step - 1].item()
            if not math.isfinite(loss):
                return  # train() says so, and ends
            losses.append(loss)
            if len(losses) == most or has_diverged(running_average(losses), steps):
                stop.set()
                return

    diverged = False
    device = next(model.parameters()).device
    states = random_state(torch.device("cpu")), random_state(device)
    try:
        for _ in train(copy.deepcopy(model), data, test, stop=stop, watch=climb):
            pass
    except UserError as error:
        diverged = error.exit_code == FAILED  # a loss that is not finite: what the test is looking for
        if not diverged:
            raise
    finally:
        set_random_state(torch.device("cpu"), states[0])
        set_random_state(device, states[1])
    smoothed = running_average(losses)
    rates = [recipe.optim.lr * share(step, steps) for step in range(len(losses))]
    return read_off(rates, losses, steps, diverged or has_diverged(smoothed, steps))


def share(step: int, steps: int) -> float:
    """What the recipe's rates are multiplied by in a step, counted from 0, where they rise tenfold in `steps`."""
    return LOWEST * 10 ** (step / steps)


def read_off(rates: Sequence[float], losses: Sequence[float], steps: int, diverged: bool) -> RangeTest:
    """The suggestion from the curve; its first tenfold only fills the average.

    Raises:
        UserError: the average fell nowhere by a twentieth of where it began.
    """
    smoothed = running_average(losses)
    begun = smoothed[steps:]
    if not begun or min(begun) > 0.95 * begun[0]:
        reached = f"from {rates[0]:.2g} to {rates[-1]:.2g}" if rates else "tried"
        raise UserError(
            f"the loss fell at no learning rate {reached}: let it rise more slowly (--steps {5 * steps}), or look at "
            "the data (`convlens show`) and the precision",
            FAILED,
        )
    lowest = rates[steps + begun.index(min(begun))]
    return RangeTest(tuple(rates), tuple(losses), tuple(smoothed), lowest, lowest / 3, diverged)


def running_average(losses: Iterable[float]) -> list[float]:
    """Of all losses up to each: the newest weighs a tenth, the others what is left, less for each step that they are
    old. Divided by the sum of the weights, such that the first few do not count from zero."""
    sums = accumulate(losses, lambda total, loss: REMEMBERED * total + (1 - REMEMBERED) * loss, initial=0.0)
    return [total / (1 - REMEMBERED**count) for count, total in enumerate(sums) if count]


def has_diverged(smoothed: Sequence[float], steps: int) -> bool:
    """Whether the last average is above four times the lowest; the first tenfold of rates only fills the average."""
    begun = smoothed[steps:]
    return bool(begun) and begun[-1] > DIVERGED * min(begun)
