"""The run directory, and fit(): start, advance epoch by epoch, finish. A resumed run takes the same three steps."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor, nn

from . import checkpoint
from .data import Data, Split, load
from .device import environment, pick_device
from .errors import FAILED, UserError
from .evaluation import Metrics, logits_of, metrics_of
from .files import disk_error, write_json, write_whole
from .modelfile import ModelFile, load_model, save_model
from .models import build
from .optim import objective
from .recipe import LossConfig, Recipe
from .training import Position, train

Watch = Callable[[Iterable[tuple[Tensor, Tensor]], Position], Iterable[tuple[Tensor, Tensor]]]
GOLDEN = 8  # test images whose logits go into the model file


@dataclass(frozen=True)
class Run:
    """A folder that one training left. It opens with nothing but itself: `Run.open(path)`."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Raises UserError where `path` is not a run."""
        run = cls(Path(path))
        for name in ("recipe.toml", "environment.json", "split.csv"):
            if not (run.path / name).is_file():
                raise UserError(f"{path} is not a run folder: it has no {name}")
        try:
            _ = run.recipe, run.environment["data"]["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{run.path / 'environment.json'} is damaged: {error!r}") from error
        return run

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_toml(self.path / "recipe.toml")

    @property
    def environment(self) -> dict[str, Any]:
        return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row an epoch: losses, accuracies, learning rate, seconds."""
        path = self.path / "history.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    @property
    def metrics(self) -> dict[str, Any]:
        """What the finished run measured. Raises UserError where it is not finished."""
        if not self.finished:
            raise UserError(f"the run {self.path} is not finished; go on with: convlens train --resume {self.path}")
        return json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))

    @property
    def ended(self) -> bool:
        """Whether all epochs are done (or patience ran out); the test set may not have been looked at yet."""
        saved = checkpoint.read(self.last)
        return saved is not None and saved.notes["ended"]

    @property
    def finished(self) -> bool:
        return (self.path / "metrics.json").exists()

    @property
    def last(self) -> Path:
        return self.path / "checkpoint" / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "checkpoint" / "best.safetensors"

    def load_data(self, data_dir: str | Path | None = None) -> Data:
        """The data that the run was trained on, with its own validation split.

        Raises:
            UserError: it is not on this disk, or its content is not what the run saw.
        """
        seen = self.environment["data"]
        everything = self.recipe.override({"data.val": 0.0, "patience": 0})
        data = load(seen["name"], everything, data_dir or seen["data_dir"], seen["limit"])
        if data.sha256 != seen["sha256"]:
            raise UserError(
                f"the data set {seen['name']} found now has other content than the one this run was trained on"
            )
        with (self.path / "split.csv").open(newline="") as file:
            rows = [(int(row["index"]), row["split"]) for row in csv.DictReader(file)]
        held = torch.tensor([index for index, split in rows if split == "val"], dtype=torch.int64)
        is_held = torch.isin(data.train.index, held)
        if len(rows) != len(data.train) or int(is_held.sum()) != len(held):
            raise UserError(f"{self.path / 'split.csv'} is damaged: it does not list the data set's training images")
        if not len(held):
            return data
        return replace(data, train=data.train.take(~is_held), val=data.train.take(is_held))

    def model_file(self, builder: str | None = None) -> ModelFile:
        """The finished model, in evaluation mode on the CPU; see `load_model` for `builder`."""
        _ = self.metrics  # the sentence for a run that is not finished
        return load_model(self.path / "model.safetensors", builder)


def make_model(recipe: Recipe, data: Data) -> nn.Sequential:
    """The network that `recipe` names, on its device, for the images of `data`, its normalisation in front."""
    channels = data.input.channels
    mean, std = {
        "dataset": (data.mean, data.std),
        "unit": ((0.0,) * channels, (1.0,) * channels),
        "signed": ((0.5,) * channels, (0.5,) * channels),
    }[recipe.model.normalize]
    model = build(
        recipe.model.name,
        channels=channels,
        classes=len(data.classes),
        size=data.input.size,
        mean=mean,
        std=std,
        args=recipe.model.args,
        seed=recipe.seed,
    )
    return model.to(pick_device(recipe.device))


def fit(recipe: Recipe, data: Data, out: str | Path = "runs", name: str | None = None) -> Run:
    """Train, keep the best epoch, look at the test set once, save everything; the run folder is returned."""
    run = start(recipe, data, out, name)
    for _ in advance(run, data):
        pass
    finish(run, data)
    return run


def start(recipe: Recipe, data: Data, out: str | Path = "runs", name: str | None = None) -> Run:
    """Make the run folder `out/name`, by default `out/<dataset>-<model>-<n>`; it appears under its name complete.

    Raises:
        UserError: the folder exists, or cannot be made; or the model does not take these images, or no such device.
    """
    device = next(make_model(recipe, data).parameters()).device  # what cannot run here leaves no folder behind
    out = Path(out)
    if name and Path(name).name != name:
        raise UserError(f"--name is a folder's name without a path, not {name!r}; --out says where")
    names = [name] if name else (f"{data.name}-{recipe.model.name.rpartition(':')[2]}-{n}" for n in range(1, 100_000))
    part = out / f".part-{os.getpid()}-{threading.get_ident()}"
    try:
        (part / "checkpoint").mkdir(parents=True)
        write_whole(part / "recipe.toml", recipe.to_toml())
        seen = {
            "name": data.name,
            "sha256": data.sha256,
            "classes": data.classes,
            "images": {"train": len(data.train), "val": len(data.val or ()), "test": len(data.test)},
            "data_dir": data.data_dir,
            "limit": data.limit,
        }
        write_json(part / "environment.json", {**environment(device), "data": seen})
        write_whole(part / "split.csv", _split_csv(data))
        for each in names:
            if (out / each).exists():
                continue
            try:
                part.rename(out / each)
            except OSError:
                if (out / each).exists():  # another process took the name in this moment
                    continue
                raise
            return Run(out / each)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # only ever the half-made folder; after the rename there is none
    raise UserError(f"the run {out / str(name)} exists already and is never overwritten; choose another --name")


@contextmanager
def only_one(run: Run) -> Iterator[None]:
    """Raises UserError where another process trains this run; the lock goes with its process, however that ends."""
    lock = filelock.FileLock(run.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"the run {run.path} is being trained by another process: wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


def advance(
    run: Run,
    data: Data,
    stop: threading.Event | None = None,
    watch: Watch | None = None,
    device: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Train from where the run stands to its end, yielding a history row for every epoch done; all is saved before the
    row is yielded. `stop` saves in the middle of an epoch and ends; see `train` for it and for `watch`. `device` wins
    over the recipe's.

    Raises:
        UserError: the checkpoint is damaged or missing, another process trains the run, the disk refused, or the loss
            is not finite.
    """
    with only_one(run):
        yield from _advance(run, data, stop, watch, device)


def _advance(
    run: Run, data: Data, stop: threading.Event | None, watch: Watch | None, device: str | None
) -> Iterator[dict[str, Any]]:
    recipe = run.recipe if device is None else replace(run.recipe, device=device)
    data = data.to(pick_device(recipe.device))
    model = make_model(recipe, data)
    saved = checkpoint.read(run.last)
    if saved is None and run.history:
        raise UserError(f"{run.last} is missing, so the run cannot be taken up where it stood; start a new one", FAILED)
    notes: dict[str, Any] = saved.notes if saved else {"history": [], "best": None, "ended": False}
    history: list[dict[str, Any]] = notes["history"]
    _write_history(run, history)
    if notes["ended"]:
        return

    def resume(position: Position) -> None:
        if saved:
            checkpoint.restore(saved, model, position)

    for epoch in train(model, data, recipe, resume, stop, watch):
        if epoch.complete:
            row = {"epoch": epoch.index, "train_loss": epoch.loss, "train_accuracy": epoch.accuracy}
            if data.val:
                row |= _look(model, data.val, recipe, "val")
                if notes["best"] is None or row["val_loss"] < notes["best"]["val_loss"]:
                    notes["best"] = {"epoch": epoch.index, "val_loss": row["val_loss"]}
                    checkpoint.save(run.best, model, None, notes["best"])
            if recipe.data.test_each_epoch:
                row |= _look(model, data.test, recipe, "test")
            row |= {"lr": epoch.lr, "seconds": epoch.seconds, "images_per_second": epoch.images / epoch.seconds}
            history.append(row)
            best = notes["best"]["epoch"] if notes["best"] else epoch.index
            tired = recipe.patience > 0 and epoch.index - best >= recipe.patience
            notes["ended"] = tired or epoch.index == recipe.epochs
        checkpoint.save(run.last, model, epoch.position, notes)
        if epoch.complete:
            _write_history(run, history)
            yield row
        if notes["ended"]:
            return


def finish(run: Run, data: Data, plots: bool = True) -> Metrics:
    """Look at the test set with the kept weights (the best epoch's, or the last one's where nothing was held out) and
    write metrics, predictions, the model file and the plots."""
    with only_one(run):
        return _finish(run, data, plots)


def _finish(run: Run, data: Data, plots: bool) -> Metrics:
    recipe = run.recipe
    model, epoch = kept_model(run, data)
    logits = logits_of(model, data.test)
    test = metrics_of(logits, data.test.labels.cpu(), data.classes)
    _require_finite(test.loss, f"the test loss of the weights of epoch {epoch}")
    history = run.history
    measured = {
        "epoch": epoch,
        "epochs": len(history),
        "train_seconds": sum(row["seconds"] for row in history),
        "parameters": sum(p.numel() for p in model.parameters()),
        "test": test.to_dict(),
    }
    golden = torch.linspace(0, len(data.test) - 1, min(GOLDEN, len(data.test))).long()
    images = data.test.images[golden].cpu()
    with torch.inference_mode():
        golden_logits = model.cpu().eval()(images)
    file = ModelFile(
        model=model,
        name=recipe.model.name,
        args=recipe.model.args,
        input=data.input,
        classes=data.classes,
        recipe=recipe.to_dict(),
        metrics={"test_accuracy": test.accuracy, "test_loss": test.loss, "images": test.images},
        golden_images=images,
        golden_logits=golden_logits,
    )
    save_model(run.path / "model.safetensors", file)
    write_whole(run.path / "predictions.csv", _predictions_csv(data, logits))
    write_json(run.path / "metrics.json", measured)  # it is what says that the run is finished
    if plots:
        from .gallery import draw_run  # matplotlib takes half a second that a run without plots need not pay

        draw_run(run.path / "plots", model, data, history, logits, test)
    return test


def kept_model(run: Run, data: Data) -> tuple[nn.Module, int]:
    """The model with the weights that count, and the epoch they are of. Raises UserError before the first epoch."""
    recipe = run.recipe
    model = make_model(recipe, data)
    kept = checkpoint.read(run.best if data.val else run.last)
    if kept is None:
        if recipe.epochs == 0:
            return model, 0
        raise UserError(f"the run {run.path} has no epoch yet; go on with: convlens train --resume {run.path}")
    model.load_state_dict(checkpoint.weights(kept))
    return model, kept.notes["epoch"] if data.val else len(kept.notes["history"])


def _look(model: nn.Module, split: Split, recipe: Recipe, prefix: str) -> dict[str, float]:
    """Loss and accuracy on a split: the recipe's own loss, so that it lies on the same axis as the training's, but
    without label smoothing and penalties, which are means of training and no part of the result."""
    logits, labels = logits_of(model, split), split.labels.cpu()
    loss = objective(model, LossConfig(recipe.loss.name))(logits, labels).item()
    _require_finite(loss, f"the loss on the {prefix} split")
    return {f"{prefix}_loss": loss, f"{prefix}_accuracy": (logits.argmax(1) == labels).double().mean().item()}


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise UserError(f"{what} is {loss}: the last step of training overflowed; try a smaller learning rate", FAILED)


def _write_history(run: Run, history: list[dict[str, Any]]) -> None:
    write_whole(run.path / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def _split_csv(data: Data) -> str:
    """Which training image went where: its place in the data set's file, and the split."""
    rows = [(i, "train") for i in data.train.index.tolist()]
    rows += [(i, "val") for i in (data.val.index.tolist() if data.val else [])]
    return "index,split\n" + "".join(f"{index},{split}\n" for index, split in sorted(rows))


def _predictions_csv(data: Data, logits: Tensor) -> str:
    """A line a test image: its place, the truth, what it was taken for, and every class's probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "predicted", "correct", *(f"p_{name}" for name in data.classes)])
    probabilities = logits.softmax(1)
    indices, labels = data.test.index.tolist(), data.test.labels.tolist()
    for i, label, row in zip(indices, labels, probabilities.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        name, truth = data.classes[best], data.classes[label]
        writer.writerow([i, truth, name, int(best == label), *(f"{p:.6f}" for p in row)])
    return text.getvalue()
