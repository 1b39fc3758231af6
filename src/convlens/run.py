"""The run directory: what one training leaves, opened by `Run.open(path)` with nothing but itself."""

from __future__ import annotations

import csv
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import nn

from . import checkpoint, markup
from .data import Data, load
from .device import environment, pick_device
from .distributed import on_main, world
from .errors import UserError
from .files import csv_text, disk_error, write_json, write_whole
from .intervals import wilson
from .manifest import Manifest
from .modelfile import ModelFile, load_model
from .models import build, fit_whitening, unmirrored
from .recipe import Recipe

WHITENED = 5000, 5000 * 64 * 64  # training images, and their pixels, that a whitening layer is fitted to at most


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

    def of_epoch(self, epoch: int) -> Path:
        """Where the weights of an epoch are, if they were kept."""
        return self.path / "checkpoint" / f"epoch-{epoch:04}.safetensors"

    def load_data(self, data_dir: str | Path | None = None, progress: Callable[[int, int], None] | None = None) -> Data:
        """The data that the run was trained on, with its own validation split. Your own pictures are read from where
        they were, or from `data_dir` in its place; `progress` is that of `load`.

        Raises:
            UserError: it is not on this disk, or its content is not what the run saw.
        """
        seen = self.environment["data"]
        if seen.get("folder"):
            with (self.path / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                pinned = {row["path"]: row["split"] for row in csv.DictReader(file)}
            data = load(Path(data_dir or seen["folder"]), self.recipe, pinned=pinned, progress=progress)
            if data.sha256 != seen["sha256"]:
                raise UserError(
                    f"the pictures in {data.folder} are not those that this run was trained on: some were changed, or "
                    "their labels were"
                )
            return data
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

    def _repr_html_(self) -> str:
        """What was trained on what, the result first, and the curves."""
        from .plots import curves, rendered  # matplotlib takes half a second, which only a notebook need pay

        recipe, seen, history = self.recipe, self.environment["data"], self.history
        counts = ", ".join(f"{count:,} {split}" for split, count in seen["images"].items() if count)
        rows = [("trained", f"{recipe.model.name} on {seen['name']} ({counts} images)")]
        rows += [("recipe", f"{recipe.name}, seed {recipe.seed}")]
        said = f"is not finished; go on with: convlens train --resume {self.path}"
        if self.finished:
            measured = self.metrics
            test = measured["test"]
            low, high = wilson(sum(row[i] for i, row in enumerate(test["confusion"])), test["images"])
            said = f"test accuracy {test['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%})"
            rows += [("parameters", f"{measured['parameters']:,}"), ("test loss", f"{test['loss']:.4f}")]
            rows += [("weights", f"of epoch {measured['epoch']} of {measured['epochs']}")]
        rows += [("training", f"{sum(row['seconds'] for row in history):,.1f} s")]
        pictures = [
            markup.picture(rendered(curves(history, quantity), dpi=60), f"{quantity} over the epochs")
            for quantity in ("loss", "accuracy")
            if len(history) > 1
        ]
        return markup.paragraph(said, str(self.path)) + markup.table(("", ""), rows) + "".join(pictures)


def make_model(recipe: Recipe, data: Data, pretrained: bool = True) -> nn.Sequential:
    """The network that `recipe` names, on its device, for the images of `data`, its normalisation in front. With
    `pretrained` false no weights are fetched for it, because others will be put in."""
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
        args=_for_images(recipe, data).model.args,
        seed=recipe.seed,
        pretrained=pretrained,
    )
    device, (height, width) = pick_device(recipe.device), data.input.size
    model = model.to(device)
    count = min(WHITENED[0], max(WHITENED[1] // (height * width), 1))
    places = torch.linspace(0, len(data.train) - 1, min(count, len(data.train))).long()  # a folder is sorted by class
    fit_whitening(model, data.train.at(places.to(data.train.labels.device)).to(device))
    return model


def _for_images(recipe: Recipe, data: Data) -> Recipe:
    """The recipe, without a mirror in its network where that makes these images wrong."""
    args = recipe.model.args if data.flip_ok else unmirrored(recipe.model.name, recipe.model.args)
    return replace(recipe, model=replace(recipe.model, args=args))


def start(recipe: Recipe, data: Data, out: str | Path = "runs", name: str | None = None) -> Run:
    """Make the run folder `out/name`, by default `out/<dataset>-<model>-<n>`; it appears under its name complete.

    Raises:
        UserError: the folder exists, or cannot be made; or the model does not take these images, or no such device; or
            no model file could hold it: two classes of one name, say.
    """
    device = next(make_model(recipe, data).parameters()).device  # what cannot run here leaves no folder behind
    recipe = _for_images(recipe, data)
    try:  # nor what could not be saved in the end
        Manifest(recipe.model.name, recipe.model.args, data.input, data.classes, recipe.to_dict(), {}).to_json()
    except (TypeError, ValueError) as error:
        raise UserError(f"what is trained here could not be saved: {error}") from error
    if data.folder:  # what was chosen from the pictures is written down: more of them must not choose otherwise
        spec = data.input
        chosen = replace(recipe.data, size=list(spec.size), channels=spec.channels, resize=spec.resize)
        recipe = replace(recipe, data=chosen)
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
            "folder": data.folder,
        }
        write_json(part / "environment.json", {**environment(device), "processes": world(), "data": seen})
        write_whole(part / "split.csv", _split_csv(data))
        if data.folder:
            write_whole(part / "bad_files.csv", _names_csv(["path", "reason"], data.bad.items()))
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

    def take() -> None:
        try:
            lock.acquire(timeout=0.2)  # who only looks whether it is taken (live.py) has it for a moment
        except filelock.Timeout as error:
            raise UserError(
                f"the run {run.path} is being trained by another process: wait for it, or stop it"
            ) from error

    on_main(take)
    try:
        yield
    finally:
        lock.release()


def _split_csv(data: Data) -> str | bytes:
    """Which training image went where: its place in the data set's file, and the split; of your own pictures all."""
    if data.files:
        splits = {"train": data.train, "val": data.val, "test": data.test}
        named = [
            (data.files[i], data.classes[label], name)
            for name, split in splits.items()
            if split
            for i, label in zip(split.index.tolist(), split.labels.tolist(), strict=True)
        ]
        return _names_csv(["path", "label", "split"], named)
    rows = [(i, "train") for i in data.train.index.tolist()]
    rows += [(i, "val") for i in (data.val.index.tolist() if data.val else [])]
    return "index,split\n" + "".join(f"{index},{split}\n" for index, split in sorted(rows))


def _names_csv(columns: Sequence[str], rows: Iterable[tuple[str, ...]]) -> bytes:
    return csv_text([columns, *sorted(rows)]).encode(errors="surrogateescape")
