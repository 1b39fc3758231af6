"""Named tensors and the JSON beside them, in one safetensors file: what checkpoints and model files are made of."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from .files import write_whole


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write all of them, whole or not at all. Raises UserError where the disk refuses; an older file stays whole."""
    # contiguous: safetensors knows one layout; clone: a model may hold one tensor under two names
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_whole(path, safetensors.torch.save(flat, metadata=metadata))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings beside the tensors. Raises safetensors.SafetensorError or OSError where it is no such file."""
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors, on the CPU. Raises safetensors.SafetensorError or OSError where it is no such file."""
    with safetensors.safe_open(path, framework="pt") as file:
        # clone: else they lie in the mapped file, which Windows would not let anybody replace
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict under the names that it has in a file."""
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the model's state dict among a file's tensors."""
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
