"""`-b auto`: the batch size by measuring a few steps of the real training at several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .data import Data, steps_per_epoch
from .device import Timer, pick_device
from .errors import UserError
from .graphs import EAGER
from .recipe import Recipe
from .run import make_model
from .training import Batches, Position, train

SIZES = (32, 64, 128, 256, 512, 1024, 2048)
LARGEST_ON_CPU = 512  # its cores are busy long before; a GPU may still gain
STEPS = 30  # that an epoch has at least: weights that move less often learn less in it
CLOSE = 0.95  # of the most images a second: a smaller batch at that speed is preferred
WARM_UP, WINDOW, WINDOWS, SECONDS = EAGER + 1, 256, 3, 3.0  # steps; images, how often, seconds


@dataclass(frozen=True)
class Probe:
    """`batch_size` is the choice, `rates` the images/s of each size that was measured, `why` a sentence's end."""

    batch_size: int
    rates: dict[int, float]
    why: str


def probe(recipe: Recipe, data: Data) -> Probe:
    """The smallest batch size whose images/s are within 5 % of the most, such that an epoch has 30 steps or more.

    Sizes double from 32 until two doublings have brought nothing, or the GPU's memory is full. A data set too small for
    32 gets the largest power of two that makes 30 steps, but 8 at least; nothing is measured then.

    Raises:
        UserError: not even the smallest size fits into the GPU's memory.
    """
    count, device = len(data.train), pick_device(recipe.device)
    largest = min(count // STEPS, LARGEST_ON_CPU if device.type == "cpu" else SIZES[-1])
    sizes = [size for size in SIZES if recipe.accumulate <= size <= largest]
    if len(sizes) < 2:
        size = max(sizes[0] if sizes else 1 << max(largest.bit_length() - 1, 3), recipe.accumulate)
        return Probe(size, {}, f"{count:,} images make {steps_per_epoch(data.train, size)} steps an epoch of it")
    rates: dict[int, float] = {}
    full = ""
    data = data.to(device)
    for size in sizes:
        try:
            rates[size] = images_per_second(replace(recipe, batch_size=size), data)
        except torch.OutOfMemoryError:
            full = f"; {size} does not fit into the GPU's memory"
            break
        if _flat(list(rates.values())):
            break
    torch.cuda.empty_cache()  # does nothing where there is no GPU
    if not rates:
        raise UserError(f"a batch of {sizes[0]} images does not fit into the GPU's memory: set accumulate to 2 or more")
    chosen = min(size for size, rate in rates.items() if rate >= CLOSE * max(rates.values()))
    measured = ", ".join(f"{size}: {rate:,.0f}" for size, rate in rates.items())
    return Probe(chosen, rates, f"the smallest within 5 % of the most images/s ({measured}{full})")


def _flat(rates: list[float]) -> bool:
    """Whether the last two doublings brought less than 5 %."""
    return len(rates) > 2 and max(rates[-2:]) * CLOSE <= max(rates[:-2])


def images_per_second(recipe: Recipe, data: Data) -> float:
    """How fast `train` goes with this recipe, on a model of its own: the best of a few windows of steps, which are over
    before the epoch is.

    The learning rate is 0, so that no size diverges, images have their last size, and nothing is compiled or frozen.
    """
    still = replace(recipe.optim, lr=0.0, linear_lr=0.0, bias_lr=0.0, freeze=[], norm_images=0)
    augment = replace(recipe.augment, crop=recipe.augment.crop[-1:])
    model = make_model(recipe, data)
    device = next(model.parameters()).device
    rates: list[float] = []

    def watch(batches: Batches, _at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        started = window = Timer(device)
        seen = 0
        for step, batch in enumerate(batches, 1):
            yield batch
            seen += len(batch[1])
            if step == WARM_UP:
                window, seen = Timer(device), 0
            elif step > WARM_UP and seen >= WINDOW:
                rates.append(seen / window.seconds())
                if len(rates) == WINDOWS or started.seconds() > SECONDS:
                    return
                window, seen = Timer(device), 0

    next(train(model, data, replace(recipe, epochs=1, compile="off", optim=still, augment=augment), watch=watch))
    return max(rates)
