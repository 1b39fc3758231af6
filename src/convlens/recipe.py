"""A Recipe is everything that decides a training run: frozen, strict, and the same in Python, TOML and JSON."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from .errors import UserError, nearest, unknown


def _number(default: float, low: float, high: float = math.inf) -> Any:
    """A field that holds a number in [low, high]."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class ModelConfig:
    """Which network. `name` is one of `convlens models` or `package.module:function`; `args` go to its builder."""

    name: str = "vgg"
    # mean/std of the data set; pixels to 0..1; to -1..1. Networks of timm and torchvision keep their own.
    normalize: Literal["dataset", "unit", "signed"] = "dataset"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule. `lr` is the peak learning rate; the schedule multiplies it by a number in 0..1. `muon`
    trains the filters of convolutions; the linear layers and the rest, with their own rates, get SGD beside it."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "muon"] = "sgd"
    lr: float = _number(0.1, 0)
    momentum: float = _number(0.9, 0, 0.9999)  # SGD and RMSprop
    nesterov: bool = False
    beta1: float = _number(0.9, 0, 0.9999)  # Adam and AdamW
    beta2: float = _number(0.999, 0, 0.99999)
    weight_decay: float = _number(0.0, 0)  # L2; not on biases and norms where decay_all is false
    decay_all: bool = True
    l1: float = _number(0.0, 0)
    schedule: Literal["constant", "step", "cosine", "one-cycle"] = "constant"
    warmup: float = _number(0.0, 0, 1)  # share of the run: the rise of one-cycle, a linear warm-up elsewhere
    # shares of the run where `step` multiplies
    step_at: list[float] = field(default_factory=lambda: [0.5, 0.75], metadata={"low": 0, "high": 1})
    step_factor: float = _number(0.1, 0, 1)
    linear_lr: float = _number(0.0, 0)  # of linear layers' weights; 0: lr
    bias_lr: float = _number(0.0, 0)  # of biases and norms; 0: lr
    # shares of the run at which the first, the second ... convolution learns no more
    freeze: list[float] = field(default_factory=list, metadata={"low": 0, "high": 1})
    clip: float = _number(0.0, 0)  # the largest L2 norm of the gradient of all weights together; 0: any
    # Decay of the average of the weights that is evaluated and kept instead of the last weights; 0: no average
    ema: float = _number(0.0, 0, 0.99999)
    # training images, unchanged, that batch norm's statistics are measured on after the last epoch; 0: running averages
    norm_images: int = _number(0, 0, 1_000_000)
    head_epochs: int = _number(0, 0, 100_000)  # first epochs in which only the last layer learns
    body_lr: float = _number(0.0, 0)  # of all that lies before the last layer; 0: as there


@dataclass(frozen=True)
class LossConfig:
    """`mse` compares probabilities (softmax) with the one-hot label; `cross-entropy` takes label smoothing."""

    name: Literal["cross-entropy", "mse"] = "cross-entropy"
    label_smoothing: float = _number(0.0, 0, 1)


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images. `flip` is done only where the data set says that mirroring is harmless.

    `scale`, `warp`, `colour`, `tone`, `mixup` and `cutmix` do not depend on the size of an image. The last two mix an
    image with another of its batch, and their labels with them; where both are set, half of the images get each.
    """

    flip: bool = False
    shift: int = _number(0, 0, 1024)  # pixels, in both directions
    cutout: int = _number(0, 0, 1024)  # side of the erased square in pixels
    alternate: bool = False  # flip: a coin for each image once, then its other side every second epoch
    fill: Literal["black", "reflect"] = "black"  # what a shift or a warp brings in
    # Sides of random squares to train on, spread evenly over the epochs, the last to the end: [24, 28, 32];
    # none: whole images
    crop: list[int] = field(default_factory=list, metadata={"low": 1, "high": 1024})
    scale: float = _number(1.0, 0.01, 1)  # least share of the area that is cropped and resized to the whole; 1: off
    reduce: float = _number(1.0, 0.5, 1)  # times the image's sides: what crops are brought to, to no less than 32
    warp: float = _number(0.0, 0, 1)  # turns, shears, moves, zooms: up to this times 30 degrees, 0.3, 0.3 sides, 1.41
    colour: float = _number(0.0, 0, 1)  # brightness, contrast, saturation times 1 - colour to 1 + colour
    tone: float = _number(0.0, 0, 1)  # share of the images: posterize, solarize, autocontrast or equalize, one of them
    mixup: float = _number(0.0, 0, 10)  # alpha: the shares of two images are drawn from Beta(alpha, alpha); 0: off
    cutmix: float = _number(0.0, 0, 10)  # the same for the share of the area that a rectangle of another image takes


@dataclass(frozen=True)
class DataConfig:
    """`val` is the share of the training images that is held out to choose the best epoch; 0 trains on all of them.
    `test_each_epoch` looks at the test set after every epoch, as tutorials do; nothing is ever chosen by it. `balance`
    makes classes count alike however many images they have: `weights` in the training loss, `sample` by how often an
    image is drawn.

    The others are for pictures of your own: `test` the share that becomes the test set where they have none, `max_bad`
    the share of files that may be unusable, `size` [height, width] and `channels` what they are brought to ([] and 0:
    chosen from the pictures), `resize` how (see `InputSpec`); the columns are those of a CSV.
    """

    val: float = _number(0.1, 0, 0.9)
    test_each_epoch: bool = False
    balance: Literal["none", "weights", "sample"] = "none"
    test: float = _number(0.15, 0, 0.9)
    max_bad: float = _number(0.05, 0, 1)
    size: list[int] = field(default_factory=list, metadata={"low": 1, "high": 4096})
    channels: int = _number(0, 0, 3)
    resize: Literal["fit", "crop", "stretch"] = "crop"
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"

    def __post_init__(self) -> None:
        if len(self.size) not in (0, 2):
            raise UserError(f"data.size is [height, width], or [] to choose it from the pictures, not {self.size}")
        if self.channels == 2:
            raise UserError("data.channels is 1 (gray), 3 (colour) or 0 to choose it from the pictures, not 2")


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field has a default; `Recipe.from_toml` and `override` refuse what they do not know."""

    name: str = "custom"
    note: str = ""
    epochs: int = _number(8, 0, 100_000)
    batch_size: int = _number(128, 1, 1_000_000)  # images a step
    accumulate: int = _number(1, 1, 1_000_000)  # parts that a batch is computed in, in turn, for less memory
    seed: int = _number(0, 0, 2**32 - 1)
    patience: int = _number(0, 0)  # epochs without a better validation loss before it stops; 0: never
    keep_epochs: int = _number(0, 0, 10_000)  # weights of so many epochs stay in checkpoint/, evenly spread; 0: none
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: on a GPU, where the run is long enough
    cuda_graph: Literal["auto", "off"] = "auto"  # on a GPU a step is recorded once and played back
    # Test-time augmentation: views of a test image whose logits are averaged, measured beside the plain accuracy
    tta: Literal["none", "mirror", "mirror-shift"] = "none"
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        _check(self, "")
        if self.optim.nesterov and self.optim.momentum == 0:
            raise UserError("optim.nesterov needs optim.momentum above 0")
        if self.patience and self.data.val == 0:
            raise UserError("patience needs a validation split: set data.val, for example to 0.1")
        if self.accumulate > self.batch_size:
            raise UserError(f"accumulate splits a batch of {self.batch_size} images: it cannot be {self.accumulate}")
        if self.data.balance == "weights" and self.loss.name == "mse":
            raise UserError("data.balance=weights weighs cross-entropy: with loss.name=mse take data.balance=sample")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any], base: Recipe | None = None) -> Recipe:
        """`base` (default: the defaults) with `values`, a nested dict, laid over it.

        Raises:
            UserError: a key that does not exist (its nearest neighbour is named), a value of the wrong type or range.
        """
        return _merge(base or cls(), values, "")

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file. Raises UserError where it is missing, not TOML, or holds what a recipe does not."""
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
        except ValueError as error:  # TOML's own error, and text that is not UTF-8
            raise UserError(f"{path} is not TOML: {error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def override(self, settings: dict[str, Any]) -> Recipe:
        """A recipe with dotted keys replaced, such as {"optim.lr": 0.05}."""
        changes: dict[str, Any] = {}  # all at once: halfway, one setting may not yet fit the others
        for key, value in settings.items():
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            changes = _overlay(changes, nested)
        return Recipe.from_dict(changes, self)


def parse_setting(text: str) -> tuple[str, Any]:
    """`optim.lr=0.1` -> ("optim.lr", 0.1). The value is read as TOML; what is not TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes KEY=VALUE such as optim.lr=0.05, not {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # TOML's own error is one, a number of 5,000 digits another
        bare = re.fullmatch(r"\s*(-?\d*\.\d*(?:e-?\d+)?)\s*", value)  # .1 and 1. are numbers to all but TOML
        return key.strip(), float(bare[1]) if bare and bare[1] != "." else value.strip()


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, the ones above winning."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _overlay(below[key], above[key])
    return merged


def _unknown_key(where: str, key: str, names: list[str]) -> UserError:
    """The error for a key that a section does not have: it belongs to another section, or is misspelt."""
    meant = [known for known in _keys(Recipe()) if known.rpartition(".")[2] == key]
    meant = meant or [where + name for name in names if name == nearest(key, names)]
    hint = f"did you mean {meant[0]!r}?" if meant else f"there are: {', '.join(where + name for name in names)}"
    return UserError(f"unknown recipe key {where + key!r}; {hint}")


def _keys(config: Any, where: str = "") -> Iterator[str]:
    """Every dotted key that can be set."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from _keys(value, f"{where}{f.name}.")
        else:
            yield where + f.name


def _merge(config: Any, values: dict[str, Any], where: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    changes = {}
    for key, value in values.items():
        if key not in names:
            raise _unknown_key(where, key, names)
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(
                    f"{where}{key} is a section, such as {where}{key}.{dataclasses.fields(current)[0].name}"
                )
            changes[key] = _merge(current, value, f"{where}{key}.")
        elif isinstance(current, dict) and isinstance(value, dict):
            changes[key] = {**current, **value}  # model.args: one argument can be set without naming the others
        else:
            changes[key] = value
    merged = {f.name: changes.get(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)}
    _check_types(type(config), merged, where)
    return type(config)(**merged)


def _check_types(cls: type, values: dict[str, Any], where: str) -> None:
    hints = typing.get_type_hints(cls)
    for name, value in list(values.items()):
        hint = hints[name]
        origin = typing.get_origin(hint) or hint
        if hint is float and type(value) is int:
            values[name] = float(value)
        elif origin is Literal:
            choices = typing.get_args(hint)
            if not isinstance(value, str):
                raise UserError(f"{where}{name} must be one of {', '.join(choices)}, not {value!r}")
            if value not in choices:
                raise unknown(where + name, value, choices)
        elif not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
            raise UserError(f"{where}{name} must be {_NAMES.get(origin, f'a {origin.__name__}')}, not {value!r}")
        elif origin is list:
            whole = typing.get_args(hint) == (int,)
            if any(isinstance(v, bool) or not isinstance(v, int if whole else (int, float)) for v in value):
                kind = "whole numbers" if whole else "numbers"
                raise UserError(f"{where}{name} must be a list of {kind}, not {value!r}")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def _check(config: Any, where: str) -> None:
    _check_types(type(config), dict(vars(config)), where)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            _check(value, f"{where}{f.name}.")
        elif "low" in f.metadata:
            low, high = f.metadata["low"], f.metadata["high"]
            bounds = f"{low} or more, but finite" if high == math.inf else f"{low} to {high}"
            for number in value if isinstance(value, list) else [value]:
                if not low <= number <= high or number == math.inf:  # also true for nan
                    raise UserError(f"{where}{f.name} must be {bounds}, not {number}")
