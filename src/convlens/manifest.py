"""What leaves with a network, whatever format it leaves in: how pictures are prepared for it, what its answers are
called, how far they can be trusted, and a few images with the logits that it gave to them. NumPy alone.

What is read here may come from anywhere: everything is checked against docs/model-file.md before it is used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import UserError
from .images import InputSpec
from .operating import Calibration

FORMAT = 2  # of the file's metadata; docs/model-file.md has the history
SIDE = 4096  # pixels, the longest side of an image that a network takes
IMAGES = 64  # in a golden batch
DEPTH = 8  # tables and lists in one another
ITEMS = 1_000  # in a list or table of the builder's arguments, and letters in a string of them
NAME = 200  # letters of the builder's name
WHOLE = 2**63  # a whole number lies between this and its negative


def format_of(metadata: dict[str, str]) -> int:
    """The number of the format that a file's metadata names. Raises KeyError or ValueError where there is none."""
    version = metadata["version"]
    if not re.fullmatch("[1-9][0-9]{0,8}", version):
        raise ValueError("its version is no number")
    return int(version)


def require_format(metadata: dict[str, str], name: object) -> None:
    """Raises UserError where the format of the file `name` is newer than FORMAT, else as `format_of` does."""
    if (version := format_of(metadata)) > FORMAT:
        raise UserError(f"{name} has format {version}; this ConvLens reads up to {FORMAT}: update it")


@dataclass(frozen=True)
class Manifest:
    """Everything but the weights. `builder` is the name and `args` the arguments that `models.build` made the network
    with; `recipe` and `metrics` are what it was trained by and what it reached, for people to read."""

    builder: str
    args: dict[str, Any]
    input: InputSpec
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    calibration: Calibration = field(default_factory=Calibration)

    def to_json(self) -> str:
        """JSON that any UTF-8 holds. Raises ValueError where `from_json` would not take it back."""
        values = {name: getattr(self, name) for name in ("builder", "args", "classes", "recipe", "metrics")}
        beside = {"input": dataclasses.asdict(self.input), "calibration": self.calibration.to_dict()}
        text = json.dumps(values | beside, ensure_ascii=False, allow_nan=False)
        # a class may have a folder's name that is not UTF-8, in Python lone surrogates: they become JSON's own escapes
        text = text.encode(errors="backslashreplace").decode()
        self.from_json(text)
        return text

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ValueError, with a sentence, where that is not what `to_json` gives."""
        try:
            config = json.loads(text, parse_constant=_no_number)
        except RecursionError as error:
            raise ValueError("its config is nested too deeply") from error
        _require(isinstance(config, dict), "its config is no table")
        for key, kind in _KINDS.items():
            _require(isinstance(config.get(key), kind), f"its config has no {key!r}, or one that is no {kind.__name__}")
        # printable: it stands in messages, and on a terminal
        _require(config["builder"].isprintable() and len(config["builder"]) <= NAME, "its builder has no name")
        for key in ("args", "recipe", "metrics"):
            _check_plain(config[key], key, ITEMS if key == "args" else None)
        return cls(
            builder=config["builder"],
            args=config["args"],
            input=_input(config["input"]),
            classes=_classes(config["classes"]),
            recipe=config["recipe"],
            metrics=config["metrics"],
            # files from before it was written have none; their probabilities are those of temperature 1, as then
            calibration=_calibration(config["calibration"]) if "calibration" in config else Calibration(),
        )


@dataclass(frozen=True)
class Golden:
    """A few `images`, uint8 (N, C, H, W), and what the network said to them when it was saved: raw `logits`, float32
    (N, K), which no temperature has touched."""

    images: np.ndarray
    logits: np.ndarray

    def check(self, manifest: Manifest) -> None:
        """Raises ValueError where they are not of the shapes and types that the network takes and gives, are none or
        more than IMAGES, or where a logit is not finite."""
        spec = manifest.input
        count = len(self.images) if self.images.ndim else 0
        _require(1 <= count <= IMAGES, f"its golden batch has {count:,} images; 1 to {IMAGES} are allowed")
        for name, array, dtype, shape in (
            ("images", self.images, np.uint8, (count, spec.channels, *spec.size)),
            ("logits", self.logits, np.float32, (count, len(manifest.classes))),
        ):
            _require(
                array.dtype == dtype and array.shape == shape,
                f"its golden.{name} are {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}",
            )
        _require(bool(np.isfinite(self.logits).all()), "its golden logits are not finite")


_KINDS = {"builder": str, "args": dict, "input": dict, "classes": list, "recipe": dict, "metrics": dict}


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _no_number(name: str) -> None:
    raise ValueError(f"its config says {name}, which is no number of JSON")


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < WHOLE


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (type(value) is float and math.isfinite(value))


def _check_plain(value: Any, where: str, items: int | None, depth: int = DEPTH) -> None:
    """Tables, lists, strings, finite numbers, true, false and null, none of them larger than `items`."""
    _require(depth > 0, f"{where} is nested more than {DEPTH} deep")
    if isinstance(value, dict | list | str):
        _require(items is None or len(value) <= items, f"{where} has more than {ITEMS:,} items or letters")
    inside: Iterable[Any] = (*value, *value.values()) if isinstance(value, dict) else value
    for each in inside if isinstance(value, dict | list) else ():
        _check_plain(each, where, items, depth - 1)
    plain = value is None or isinstance(value, bool | str | dict | list) or _is_number(value)
    _require(plain, f"{where} has a number that is not finite or too large")


def _input(values: dict[str, Any]) -> InputSpec:
    known = [f.name for f in dataclasses.fields(InputSpec)]
    _require(set(values) <= set(known), f"its input has keys other than {', '.join(known)}")
    size, channels, resize = values.get("size"), values.get("channels"), values.get("resize", "crop")
    sides = isinstance(size, list) and len(size) == 2 and all(_is_whole(n) and 1 <= n <= SIDE for n in size)
    _require(sides, f"its input size is not [height, width], each from 1 to {SIDE}")
    _require(_is_whole(channels) and channels in (1, 3), "its input has neither 1 nor 3 channels")
    choices = typing.get_args(typing.get_type_hints(InputSpec)["resize"])
    _require(isinstance(resize, str) and resize in choices, f"its input resize is none of {', '.join(choices)}")
    return InputSpec((size[0], size[1]), channels, resize)  # type: ignore[index,arg-type] # which was checked


def _classes(names: list[Any]) -> tuple[str, ...]:
    _require(all(isinstance(name, str) and name for name in names), "its classes have a name that is no text, or empty")
    _require(bool(names) and len(set(names)) == len(names), "its classes are none, or two of them have one name")
    return tuple(names)


def _calibration(values: Any) -> Calibration:
    _require(isinstance(values, dict), "its calibration is no table")
    try:
        _require(_is_number(values["temperature"]), "its calibration has a temperature that is no number")
        _require(_is_whole(values["images"]), "its calibration has a number of images that is none")
        for numbers in (*values["curve"], values["usual"] or ()):
            _require(all(map(_is_number, numbers)), "its calibration has something that is no number")
        return Calibration.from_dict(values)
    except (KeyError, TypeError) as error:
        raise ValueError("its calibration is not whole") from error
