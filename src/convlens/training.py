"""train(): the loop, as a generator of one Epoch a pass. Logging, evaluating, saving and stopping are the caller's
`for` body; there is no other loop in ConvLens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .augment import augmented_size
from .data import Data, batches, draw, steps_per_epoch
from .device import (
    Timer,
    choose_kernels,
    keep_memory,
    mix_seed,
    pick_precision,
    random_state,
    set_random_state,
)
from .distributed import most, on_main, parallel, rank, world
from .errors import FAILED, UserError
from .flops import forward_flops
from .graphs import Step, recorded
from .models.ensemble import is_mirrored, members_of
from .norms import measure_norms
from .optim import (
    averaging,
    body_of,
    class_weights,
    clipping,
    exchanged,
    freezable,
    hold,
    make_optimizer,
    objective,
    schedule,
    set_rates,
    train_mode,
)
from .recipe import AugmentConfig, Recipe
from .shortcuts import hooked, shortcut
from .splits import Split
from .steps import gradients_of, in_parts, step_of

COMPILE_FROM = 1e15  # floating point operations of a run's forward passes: about a minute of an eager GPU
CHECK_EVERY = 100  # steps between looks at the loss: a run that diverged is not trained to the end of its epoch


@dataclass
class Position:
    """Where a run stands, all that a resumed one needs beside the weights: `epoch` and `step` are the next to be done,
    `losses` the loss of each step of the current epoch, `correct` its right answers."""

    epoch: int
    step: int
    losses: Tensor
    correct: Tensor
    optimizer: torch.optim.Optimizer
    random: Tensor  # the state of torch's generator on the device, which dropout draws from
    seconds: float = 0.0  # already spent on the current epoch, before an interruption
    # With `optim.ema` the weights that the model does not hold: in the caller's hands it holds their average, and these
    # are the ones that the last step left; while steps are made it is the other way round
    twin: list[Tensor] = field(default_factory=list)


Batches = Iterable[tuple[Tensor, Tensor]]
Watch = Callable[[Batches, Position], Batches]  # what wraps the batches of an epoch, as a progress bar does


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images. `loss` is the mean over its images and `accuracy` the share that was right,
    both as they were met (augmented, in training mode). `complete` is False where `stop` cut it short.

    Of an image that mixup or cutmix made of two, the right answer is the class with the greater share in it. Where the
    shares are near each other even a good network is often wrong: this accuracy is no measure of that on whole images.
    """

    index: int
    complete: bool
    loss: float
    accuracy: float
    lr: float
    seconds: float
    images: int
    position: Position


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    resume: Callable[[Position], None] | None = None,
    stop: threading.Event | None = None,
    watch: Watch | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place on `data.train` as `recipe` says, yielding after every epoch; `break` stops early.

    Epochs count from 1. The images are moved to the model's device. The order and the augmentation of a step come from
    (seed, epoch, step) alone; dropout draws from torch's own generator, which is seeded anew for every epoch.

    What is computed is a view of the model with the same numbers (`shortcuts`). Convolutions that `optim.freeze` has
    stopped require no gradients until the training ends, which gives them back. In the first `optim.head_epochs` only
    the last layer learns, on features that are those of evaluation.

    With `optim.ema` the model holds the average of its weights whenever the caller has it, also after a `break` or an
    error: it is what the caller evaluates and keeps.

    With `optim.norm_images` it has, after the last epoch, the statistics of batch norm that the images themselves have
    (`norms`); the epochs before it are yielded with the running averages.

    On a GPU a step is recorded and played back (`graphs`): Python in the model's forward pass runs in the first steps
    only, so a model that decides anything there, and not on the GPU, wants `recipe.cuda_graph` off.

    Where several processes train (`distributed`), each takes its share of every batch and yields the same epochs.

    Args:
        resume: fills the position (and the model) from a checkpoint before the first step.
        stop: set from anywhere (a signal, a page), ends the epoch after the step under way; it is yielded incomplete.
        watch: wraps the batches of an epoch, as a progress bar does.

    Raises:
        UserError: the loss is not a finite number, the recipe freezes more convolutions than there are, or the model
            does not take the smaller images that the recipe trains on.
    """
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, recipe.optim)
    split, sampled = data.train.to(device), recipe.data.balance == "sample"
    weights = class_weights(split.labels, len(data.classes)) if recipe.data.balance == "weights" else None
    loss_of = objective(model, recipe.loss, recipe.optim.l1, weights)
    steps = steps_per_epoch(split, recipe.batch_size)
    stop = stop or threading.Event()
    flops = seen_flops(model, split.at(slice(1)))
    require_sizes(model, split, recipe.augment)
    precision = on_main(pick_precision, recipe.precision, device, flops)
    compiled = compiles(recipe, device, flops * len(split) * recipe.epochs)
    layers, body, frozen, placed = freezable(model, recipe.optim), body_of(model), (-1, False), places_of(model)
    step: Step
    gradients = in_parts(gradients_of(loss_of, device, precision), recipe.accumulate)
    keep_memory()
    choose_kernels(device)
    clip, (averaged, twin, average) = clipping(optimizer, recipe.optim.clip), averaging(model, recipe.optim.ema)
    losses, correct = torch.zeros(steps, device=device), torch.zeros((), device=device)
    at = Position(1, 0, losses, correct, optimizer, random_state(device), twin=twin)
    if resume:
        resume(at)

    try:
        while at.epoch <= recipe.epochs:
            timer, first = Timer(device), at.step
            # another process drops other units; the state that a checkpoint holds is the main one's
            torch.manual_seed(mix_seed(recipe.seed, at.epoch, 1 << 32, *((rank(), first) if rank() else ())))
            if first and rank() == 0:
                set_random_state(device, at.random)
            only_head = at.epoch <= recipe.optim.head_epochs
            train_mode(model, only_head)
            if placed != (placed := places_of(model)):  # the caller moved the model: what was recorded knows it no more
                frozen = (-1, False)
            changes = augmentation(recipe, at.epoch, data.flip_ok)
            size, seed, classes = recipe.batch_size, recipe.seed, len(data.classes)
            todo: Batches = batches(split, size, changes, seed, at.epoch, first, classes, sampled)
            with exchanged(averaged, twin):
                for images, labels in watch(todo, at) if watch else todo:
                    share = lr_share(recipe, at.epoch, at.step, steps)
                    if frozen != (frozen := (frozen_layers(recipe, at.epoch, at.step, steps), only_head)):
                        hold(body, layers, *frozen)
                        whole = parallel(shortcut(model))
                        forward = torch.compile(whole) if compiled else whole
                        step = step_of(forward, gradients, optimizer, clip)
                        step = recorded(step, device) if records(recipe, model, device) else step
                    set_rates(optimizer, share)
                    at.losses[at.step], right = step(images, labels)
                    average((at.epoch - 1) * steps + at.step)
                    at.correct += right
                    at.step += 1
                    if at.step % CHECK_EVERY == 0:
                        _require_finite(at, recipe, steps)
                    if _stopped(stop):
                        break
            _require_finite(at, recipe, steps)
            if (at.epoch, at.step) == (recipe.epochs, steps):
                some = draw(split, seed, at.epoch, sampled)[: recipe.optim.norm_images]
                measure_norms(model, split, some.to(device))
            at.seconds += timer.seconds()
            at.random = random_state(device)
            yield _end_of_epoch(at, recipe, len(split), share)
            if _stopped(stop):
                return
    finally:
        hold(body, layers, 0, False)  # what comes after this training may train on


def _end_of_epoch(at: Position, recipe: Recipe, images: int, share: float) -> Epoch:
    """The epoch that ends here, complete or not; the position moves on to the next where it is complete."""
    steps, index, seconds = len(at.losses), at.epoch, at.seconds
    done = at.step == steps
    seen = min(at.step * recipe.batch_size, images)
    sizes = torch.full((at.step,), recipe.batch_size, device=at.losses.device)
    sizes[-1] = seen - (at.step - 1) * recipe.batch_size  # the last batch may be smaller
    loss_sum, correct = (at.losses[: at.step] * sizes).sum().item(), at.correct.item()
    if done:
        at.epoch, at.step, at.seconds = at.epoch + 1, 0, 0.0
        at.losses.zero_(), at.correct.zero_()
    return Epoch(index, done, loss_sum / seen, correct / seen, recipe.optim.lr * share, seconds, seen, at)


def _stopped(stop: threading.Event) -> bool:
    """Whether it is set, in this process or in another: then it is in all. It may be set while this runs; what the
    processes told each other counts, else they would part."""
    stopped = bool(most(stop.is_set()))
    if stopped:
        stop.set()
    return stopped


def lr_share(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """What the learning rates are multiplied by in one step (counted from 0) of one epoch (from 1): the schedule's
    value in the middle of the step, such that a cycle neither begins nor ends with a step that does nothing."""
    return schedule(recipe.optim, (epoch - 1 + (step + 0.5) / steps) / recipe.epochs)


def frozen_layers(recipe: Recipe, epoch: int, step: int, steps: int) -> int:
    """How many convolutions learn no more in one step (counted from 0) of one epoch (from 1)."""
    return sum((epoch - 1 + step / steps) / recipe.epochs >= share for share in recipe.optim.freeze)


def augmentation(recipe: Recipe, epoch: int, flip_ok: bool) -> AugmentConfig:
    """What is done to the images of one epoch (from 1): no flips where the data set forbids them, one side to crop."""
    config, sides = recipe.augment, recipe.augment.crop
    last = len(sides) - 1
    side = sides[last - (recipe.epochs - epoch) * len(sides) // recipe.epochs] if sides else None
    return replace(config, flip=config.flip and flip_ok, crop=[side] if side else [])


def seen_flops(model: nn.Module, images: Tensor) -> int:
    """`forward_flops` of an image of a training step: one member of an ensemble sees it, and not its mirror image."""
    return forward_flops(model, images) // (len(members_of(model)) * (2 if is_mirrored(model) else 1))


def compiles(recipe: Recipe, device: torch.device, run_flops: float) -> bool:
    """Whether the model goes through torch.compile: where the recipe says so, and with `auto` on a GPU where the
    forward passes of the run are so much arithmetic that the half minute or so of compiling is won back. On a CPU it
    was not: kernels that dominate a step are the same, and what it fuses is cheap once memory is kept."""
    return recipe.compile == "on" or (recipe.compile == "auto" and device.type == "cuda" and run_flops > COMPILE_FROM)


def require_sizes(model: nn.Module, split: Split, augment: AugmentConfig) -> None:
    """Try the model on the sizes that the images are brought to for training."""
    height, width = split.store.shape[2:]
    crops = [[side] for side in augment.crop] or [[]]
    sizes = {augmented_size((height, width), replace(augment, crop=crop)) for crop in crops}
    for high, wide in sorted(sizes - {(height, width)}):
        try:
            forward_flops(model, split.at(slice(1))[:, :, :high, :wide])
        except RuntimeError as error:
            raise UserError(
                f"the model does not take images of {high} x {wide}, to which they are brought for training ({error}): "
                "--set augment.reduce=1 --set augment.crop=[]"
            ) from error


def places_of(model: nn.Module) -> list[int]:
    """Where in memory its parameters and buffers lie."""
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


def records(recipe: Recipe, model: nn.Module, device: torch.device) -> bool:
    """Whether steps become CUDA graphs: on a GPU, in one process, where the recipe does not forbid it and nothing hooks
    into the model that would have to run in every step."""
    plain = world() == 1 and not any(hooked(module) for module in model.modules())
    return recipe.cuda_graph == "auto" and device.type == "cuda" and plain


def _require_finite(at: Position, recipe: Recipe, steps: int) -> None:
    bad = (~at.losses[: at.step].isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        lr = recipe.optim.lr * lr_share(recipe, at.epoch, step, steps)
        raise UserError(
            f"the loss is {at.losses[step].item()} in epoch {at.epoch}, step {step + 1} of {steps}, at a learning rate "
            f"of {lr:.4g}: try a third of it (--lr {recipe.optim.lr / 3:.2g}), a warm-up (--set optim.warmup=0.2), or "
            "fp32",
            FAILED,
        )
