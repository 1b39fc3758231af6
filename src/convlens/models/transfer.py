"""Networks that somebody else has trained: `timm:resnet18` (Wightman's timm), `torchvision:resnet18`.

ConvLens depends on neither package and imports them only where such a name is built. A network comes with its
pretrained weights, with the statistics of the pictures that it was trained on, and with a new last layer.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import UserError

SOURCES = ("timm", "torchvision")
AUXILIARY = (
    "googlenet",
    "inception_v3",
)  # more logits than one row an image, and other pixels with weights than without


def is_transfer(name: str) -> bool:
    """Whether a model's name is one of timm's or torchvision's."""
    return ":" in name and name.partition(":")[0] in SOURCES


def transfer(name: str) -> Callable[..., nn.Module]:
    """The function (channels, classes, size, pretrained=True, ...) behind `timm:NAME` or `torchvision:NAME`; the
    network takes three channels.

    Raises:
        UserError: the package is not there, or has no such network; the nearest ones are named.
    """
    source, _, network = name.partition(":")
    package = _package(source)
    if source == "timm":
        _require(network, network.partition(".")[0], package.list_models(), source)  # resnet18.a1_in1k: its weights
        return functools.partial(_timm, network)
    _require(network, network, package.list_models(module=package), source)
    if network in AUXILIARY:
        raise UserError(f"{name} gives more than one row of logits while it trains: choose another, such as resnet18")
    return functools.partial(_torchvision, network)


def statistics(name: str, network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels (0..1, red, green, blue) that `network`, called `name`, was trained
    on."""
    source, _, model = name.partition(":")
    if source == "timm":
        config: Any = network.pretrained_cfg
        return tuple(config["mean"]), tuple(config["std"])
    preprocessing = _package(source).get_model_weights(model).DEFAULT.transforms()
    return tuple(preprocessing.mean), tuple(preprocessing.std)


def head_of(model: nn.Module) -> nn.Module:
    """The last layer that has weights: the one that knows the classes."""
    return [layer for layer in model.modules() if next(layer.parameters(recurse=False), None) is not None][-1]


def _timm(
    network: str,
    channels: int,  # noqa: ARG001 - three
    classes: int,
    size: tuple[int, int],  # noqa: ARG001 - most take any; the others say so, and take img_size
    pretrained: bool = True,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    img_size: int | None = None,
) -> nn.Module:
    given = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "img_size": img_size}
    given = {key: value for key, value in given.items() if value is not None}
    try:
        model = _package("timm").create_model(network, pretrained=pretrained, num_classes=classes, **given)
    except OSError as error:
        raise _not_fetched(f"timm:{network}", error) from error
    if pretrained:
        model.reset_classifier(classes)  # timm keeps the old one where it has as many classes
    head = model.get_classifier()
    if not isinstance(head, nn.Module) or head_of(model) not in head.modules():
        raise UserError(f"timm:{network} has more than one last layer, or none: choose another network")
    return model


def _torchvision(
    network: str,
    channels: int,  # noqa: ARG001 - three
    classes: int,
    size: tuple[int, int],  # noqa: ARG001 - most take any, and the others say so
    pretrained: bool = True,
) -> nn.Module:
    try:
        model = _package("torchvision").get_model(network, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise _not_fetched(f"torchvision:{network}", error) from error
    old = head_of(model)
    if not isinstance(old, nn.Linear):
        raise UserError(f"torchvision:{network} does not end in a linear layer: choose another network")
    where, _, name = next(name for name, layer in model.named_modules() if layer is old).rpartition(".")
    setattr(model.get_submodule(where), name, nn.Linear(old.in_features, classes, bias=old.bias is not None))
    return model


def _package(source: str) -> Any:
    """timm, or torchvision.models."""
    try:
        return importlib.import_module("timm" if source == "timm" else "torchvision.models")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # the latter: a build for another torch
        needed = "timm, and the torchvision" if source == "timm" else "the torchvision"
        raise UserError(
            f"networks of {source} need {needed} that was built for torch {torch.__version__} (see "
            f"https://pytorch.org/get-started/locally), which cannot be imported here: {error}"
        ) from error


def _require(given: str, name: str, known: Iterable[str], source: str) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"the nearest are {', '.join(near)}" if near else f"it lists {len(known):,}, none of them like it"
        raise UserError(f"{source} has no network {given!r}; {hint}")


def _not_fetched(name: str, error: OSError) -> UserError:
    return UserError(
        f"the pretrained weights of {name} could not be fetched: {error}; they are needed once, or begin without: "
        "--set model.args.pretrained=false"
    )
