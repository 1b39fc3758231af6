"""The exact state of a run in one safetensors file: weights, optimizer, position, random numbers, history.

One file, because one rename is atomic and two are not: a kill at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import FAILED, UserError
from .tensors import DAMAGE, model_tensors, reading, state_dict, write_tensors
from .training import Position

HEADER = 64 * 2**20  # bytes: the history of a run is in it, a line an epoch


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: its tensors by name, and `notes`, the JSON beside them."""

    tensors: dict[str, Tensor]
    notes: dict[str, Any]


def save(path: Path, model: nn.Module, position: Position | None, notes: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` atomically. Without a position only the weights are kept (the best epoch's).

    Raises:
        UserError: the disk refused; the older checkpoint is whole.
    """
    tensors = model_tensors(model)
    if position:
        notes = {**notes, "epoch": position.epoch, "step": position.step, "seconds": position.seconds}
        tensors |= {"losses": position.losses, "correct": position.correct, "random": position.random}
        tensors |= {f"twin.{index}": tensor for index, tensor in enumerate(position.twin)}
        for index, state in position.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:  # SGD without momentum keeps an empty place for it
                    tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    write_tensors(path, tensors, {"notes": json.dumps(notes)})


def read(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None where none was written yet. Raises UserError where the file is damaged."""
    if not path.exists():
        return None
    try:
        with reading(path, HEADER) as file:
            notes = json.loads(file.metadata()["notes"])
            if not isinstance(notes, dict):
                raise TypeError("its notes are none")
            # clone: else they lie in the mapped file, which Windows would not let anybody replace
            return Checkpoint({name: file.get_tensor(name).clone() for name in file.keys()}, notes)  # noqa: SIM118 - not a dict
    except DAMAGE as error:
        raise UserError(
            f"the checkpoint {path} is damaged ({error}); the run cannot be taken up from it", FAILED
        ) from error


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's state dict in a checkpoint."""
    return state_dict(checkpoint.tensors)


def restore(checkpoint: Checkpoint, model: nn.Module, position: Position) -> None:
    """Put weights, optimizer and position back, bit for bit.

    Raises:
        UserError: the checkpoint was written with another batch size, data set or average.
    """
    if checkpoint.tensors["losses"].shape != position.losses.shape:
        raise UserError(
            f"the checkpoint was written in epochs of {len(checkpoint.tensors['losses'])} steps, the recipe now makes "
            f"{len(position.losses)}: put the run's recipe.toml back as it was"
        )
    if sum(name.startswith("twin.") for name in checkpoint.tensors) != len(position.twin):
        raise UserError(
            "the checkpoint was written with another optim.ema, on or off: put the run's recipe.toml back as it was"
        )
    model.load_state_dict(weights(checkpoint))
    for place, tensor in enumerate(position.twin):
        tensor.copy_(checkpoint.tensors[f"twin.{place}"])
    position.epoch, position.step = checkpoint.notes["epoch"], checkpoint.notes["step"]
    position.seconds = checkpoint.notes["seconds"]
    position.losses.copy_(checkpoint.tensors["losses"])
    position.correct.copy_(checkpoint.tensors["correct"])
    position.random = checkpoint.tensors["random"]
    parameters = [p for group in position.optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:  # the fused optimizers walk through memory: same layout as the weights
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            states.setdefault(int(index), {})[name] = value
    position.optimizer.load_state_dict({**position.optimizer.state_dict(), "state": states})
