"""MODELS and build(): every network takes uint8 images and gives logits. A new model is a function and a line here."""

from __future__ import annotations

import importlib
import inspect
import shlex
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from torch import nn

from ..errors import UserError, unknown
from .articles import cnn_cifar10, cnn_mnist, deepcnn_mnist
from .ensemble import MOST, Ensemble, members_of
from .lenet import lenet5
from .limits import at_most, without_memory
from .normalize import Normalize
from .resnet import resnet9, resnet18, resnet20
from .sizes import WINDOWED, TooSmallError, check_fits
from .speed import Whiten, speednet
from .transfer import is_transfer, statistics, transfer
from .vgg import vgg

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    "lenet5": lenet5,
    "cnn-mnist": cnn_mnist,
    "deepcnn-mnist": deepcnn_mnist,
    "cnn-cifar10": cnn_cifar10,
    "vgg": vgg,
    "resnet9": resnet9,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "speednet": speednet,
}

TOGETHER = "members", "mirror"  # arguments of every network, unless it has one of that name itself
GROUP = "convlens.models"  # of entry points, in which an installed package offers a network

# What code that is given arguments it was not made for raises
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def build(
    name: str,
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    args: dict[str, Any] | None = None,
    seed: int = 0,
    pretrained: bool = True,
) -> nn.Sequential:
    """A network with its normalisation in front: uint8 (N, channels, *size) -> logits (N, classes).

    `name` is a key of MODELS, an installed package's entry point in the group `convlens.models`, or
    `package.module:function`. The function is called as function(channels=, classes=, size=, **args) and returns an
    nn.Module that takes float images. Without `mean` and `std` the pixels are scaled to 0..1. `seed` decides the
    weights.

    Every network takes two arguments beside its own: `members`, so many of them, with different weights, that answer
    together, their names being `members.0`, `members.1` and so on; and `mirror`, true where they also answer for the
    mirror image (`Ensemble`).

    `timm:NAME` and `torchvision:NAME` are networks of those packages (`transfer`): they keep the mean and std of the
    pictures that they were trained on, and meet a gray image as one of three equal channels. Their weights are fetched
    where neither `args` nor `pretrained` say no; False is for who puts other weights in anyway.

    Raises:
        UserError: an unknown name or argument, channels or a size that the network does not take.
    """
    builder, inside, args = _wanted(name, channels, args, pretrained)
    with _seeded(seed):
        network = _fitting(name, builder, inside, classes, size, args)
    if is_transfer(name):
        mean, std = statistics(name, members_of(network)[0])
    return channels_last(_behind(Normalize(mean or (0.0,) * channels, std or (1.0,) * channels, channels), network))


def rebuild(
    name: str,
    *,
    channels: int,
    classes: int,
    size: tuple[int, int],
    args: dict[str, Any],
    tensors: int,
    numbers: int,
) -> nn.Sequential:
    """The network of `build`, for weights that are about to be put in: so many `tensors` with so many `numbers` in all,
    which is as large as it may be. One of MODELS is made without memory (torch's meta device): nothing is allocated,
    whatever `args` say. Others, which may need values while they are made, are made as in `build`, and tried.

    Raises:
        UserError: as `build` does, or the network is larger than that.
    """
    builder, inside, args = _wanted(name, channels, args, pretrained=False)
    try:
        with at_most(tensors, numbers), _seeded(0):
            if name in MODELS:
                with without_memory():
                    network = _made(name, builder, inside, classes, size, args)
            else:
                network = _try(name, builder, inside, classes, size, args)
    except TooSmallError as error:
        raise _too_small(name, size, error) from error
    return _behind(Normalize((0.0,) * inside, (1.0,) * inside, channels), network)


def channels_last(model: nn.Sequential) -> nn.Sequential:
    """The same in the layout in which convolutions run fastest, 1.4 times here on a CPU; the values are the same."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stubs lack this overload


def fit_whitening(model: nn.Sequential, images: torch.Tensor) -> None:
    """Fit the whitening layers of a network from `build` to uint8 (N, C, H, W) images; most have none."""
    for layer in model.modules():
        if isinstance(layer, Whiten):
            layer.fit(model[0](images))


def is_outside(name: str) -> bool:
    """Whether a model's name leads to code that is not part of ConvLens; asked without importing any of it."""
    return name not in MODELS and (":" in name or bool(metadata.entry_points(group=GROUP, name=name)))


def own_code(name: str) -> str:
    """What a command says for a model outside ConvLens, ` -m NAME`: such code is always named. Empty for others."""
    return f" -m {shlex.quote(name)}" if is_outside(name) else ""


def find_builder(name: str) -> Builder:
    """The function behind a model's name. Raises UserError where there is none."""
    if name in MODELS:
        return MODELS[name]
    if is_transfer(name):
        return transfer(name)
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            builder = getattr(importlib.import_module(module), function)
            if not callable(builder):
                raise UserError(f"{name} is not a function that makes a network")
            return builder
        except (ImportError, AttributeError, ValueError) as error:  # ValueError: nothing before the colon
            raise UserError(f"cannot load the model {name!r}: {error}") from error
    for entry in metadata.entry_points(group=GROUP, name=name):
        return entry.load()
    raise unknown("model", name, MODELS, "`convlens models` lists them; your own is package.module:function.")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Building a model must not move anybody's random numbers."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _behind(normalize: Normalize, network: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def _wanted(
    name: str, channels: int, args: dict[str, Any] | None, pretrained: bool
) -> tuple[Builder, int, dict[str, Any]]:
    """The builder, the channels that its network gets, and its arguments."""
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, not {channels}")
    builder, args = find_builder(name), args or {}
    _check_args(name, builder, args)
    if is_transfer(name):
        channels, args = 3, {**args, "pretrained": pretrained and args.get("pretrained", True)}
    ours = {key: args[key] for key in TOGETHER if key in args and not _is_own(builder, key)}
    return _together(builder, **ours), channels, {key: value for key, value in args.items() if key not in ours}


def _together(builder: Builder, members: Any = 1, mirror: Any = False) -> Builder:
    if type(members) is not int or not 1 <= members <= MOST:
        raise UserError(f"members must be a whole number from 1 to {MOST}, not {members!r:.40}")
    if type(mirror) is not bool:
        raise UserError(f"mirror must be true or false, not {mirror!r:.40}")
    if members == 1 and not mirror:
        return builder
    return lambda **given: Ensemble([builder(**given) for _ in range(members)], mirror)


def _is_own(builder: Builder, key: str) -> bool:
    parameters = inspect.signature(builder).parameters
    return key in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def unmirrored(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """The arguments for images that a mirror makes wrong, as it does digits."""
    asked = args.get("mirror", False) is not False and not _is_own(find_builder(name), "mirror")
    return {**args, "mirror": False} if asked else args


def _check_args(name: str, builder: Builder, args: dict[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    allowed = [*(p for p in parameters if p not in ("channels", "classes", "size")), *TOGETHER]
    for key in args:
        if key not in allowed:
            raise unknown(f"argument of the model {name}", key, allowed)


def _fitting(
    name: str, builder: Builder, channels: int, classes: int, size: tuple[int, int], args: dict[str, Any]
) -> nn.Module:
    """The network, tried on two black images of the size; where it does not fit, the sizes that would."""
    try:
        return _try(name, builder, channels, classes, size, args)
    except TooSmallError as error:
        # others' networks take seconds to build, and this would build many
        works = None if is_transfer(name) else _smallest(name, builder, channels, classes, args)
        hint = f"; images of {works} x {works} pixels or more do" if works else ""
        raise _too_small(name, size, error, hint) from error


def _too_small(name: str, size: tuple[int, int], error: TooSmallError, hint: str = "") -> UserError:
    return UserError(f"the model {name} does not take images of {size[0]} x {size[1]}: {error}{hint}")


def _made(
    name: str, builder: Builder, channels: int, classes: int, size: tuple[int, int], args: dict[str, Any]
) -> nn.Module:
    try:
        return builder(channels=channels, classes=classes, size=size, **args)
    except BROKEN as error:
        given = f" with {args}"[:200] if args else ""
        raise UserError(f"the model {name} cannot be built{given}: {error}") from error


def _try(
    name: str, builder: Builder, channels: int, classes: int, size: tuple[int, int], args: dict[str, Any]
) -> nn.Module:
    network = _made(name, builder, channels, classes, size, args)
    mode = network.training
    handles = [
        layer.register_forward_pre_hook(lambda m, x, n=layer_name: check_fits(m, n, x[0].shape[-2:]) and None)
        for layer_name, layer in network.named_modules()
        if isinstance(layer, WINDOWED)
    ]
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, channels, *size))
    except BROKEN as error:
        shape = f"{channels} x {size[0]} x {size[1]}"
        raise UserError(f"the model {name} fails on images of {shape}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        network.train(mode)
    if logits.shape != (2, classes):
        raise UserError(
            f"the model {name} gives {tuple(logits.shape)} for 2 images and {classes} classes, not (2, {classes})"
        )
    return network


def _smallest(name: str, builder: Builder, channels: int, classes: int, args: dict[str, Any]) -> int | None:
    for side in range(1, 257):
        try:
            _try(name, builder, channels, classes, (side, side), args)
        except TooSmallError:
            continue
        return side
    return None
