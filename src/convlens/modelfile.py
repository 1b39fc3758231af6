"""The file that leaves: one safetensors with the weights and, in its metadata, all that is needed to rebuild the
network, prepare a picture for it, name its answers, and check that it still gives the same numbers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from .calibration import Calibration
from .errors import UserError
from .images import InputSpec
from .models import build
from .tensors import model_tensors, read_metadata, read_tensors, state_dict, write_tensors

FORMAT = 1


@dataclass(frozen=True)
class ModelFile:
    """`model` takes uint8 (N, C, H, W) and gives logits (N, len(classes)). `golden_images` and `golden_logits` are a
    few inputs and what the model said to them when it was saved: raw logits, which `calibration` has not touched."""

    model: nn.Module
    name: str
    args: dict[str, Any]
    input: InputSpec
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    metrics: dict[str, Any]
    golden_images: Tensor
    golden_logits: Tensor
    calibration: Calibration = field(default_factory=Calibration)


def save_model(path: Path, file: ModelFile) -> None:
    """Write `file` to `path`, whole or not at all."""
    config = {
        "builder": file.name,
        "args": file.args,
        "input": dataclasses.asdict(file.input),
        "classes": file.classes,
        "recipe": file.recipe,
        "metrics": file.metrics,
        "calibration": file.calibration.to_dict(),
    }
    golden = {"golden.images": file.golden_images, "golden.logits": file.golden_logits}
    metadata = {"format": "convlens", "version": str(FORMAT), "config": json.dumps(config, ensure_ascii=False)}
    write_tensors(path, model_tensors(file.model) | golden, metadata)


def load_model(path: str | Path, builder: str | None = None) -> ModelFile:
    """Read a model file; the model is in evaluation mode, on the CPU.

    A file that was built by a function outside ConvLens is only rebuilt where `builder` names that same function: a
    file must not decide what code is imported.

    Raises:
        UserError: no such file, not a model file, a newer format, or a builder that was not named.
    """
    try:
        metadata = read_metadata(path)
        if metadata.get("format") != "convlens":
            raise UserError(f"{path} is a safetensors file, but not a ConvLens model file")
        if int(metadata["version"]) > FORMAT:
            raise UserError(f"{path} has format {metadata['version']}; this ConvLens reads up to {FORMAT}: update it")
        config = json.loads(metadata["config"])
        tensors = read_tensors(path)
        found = ModelFile(
            model=nn.Identity(),
            name=str(config["builder"]),
            args=dict(config["args"]),
            input=InputSpec(**{**config["input"], "size": tuple(config["input"]["size"])}),
            classes=tuple(config["classes"]),
            recipe=config["recipe"],
            metrics=config["metrics"],
            golden_images=tensors["golden.images"],
            golden_logits=tensors["golden.logits"],
            # files from before it was written have none; their probabilities are those of temperature 1, as then
            calibration=Calibration.from_dict(config["calibration"]) if "calibration" in config else Calibration(),
        )
    except FileNotFoundError as error:
        raise UserError(f"there is no model file {path}") from error
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a ConvLens model file, or is damaged: {error}") from error
    name, spec = found.name, found.input
    if ":" in name and builder != name:
        raise UserError(
            f"{path} was built by {name}, which is not part of ConvLens; if you trust that code, name it: -m {name}"
        )
    model = build(name, channels=spec.channels, classes=len(found.classes), size=spec.size, args=found.args)
    try:
        model.load_state_dict(state_dict(tensors))
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the network {name} that it names") from error
    return dataclasses.replace(found, model=model.eval())


def golden_difference(file: ModelFile) -> float:
    """The largest difference between the golden logits and what the model says to the golden images now."""
    with torch.inference_mode():
        return (file.model(file.golden_images).float() - file.golden_logits).abs().max().item()
