"""fit(): start a run, advance it epoch by epoch, finish it. A resumed run takes the same last two steps."""

from __future__ import annotations

import json
import logging
import math
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoint
from .calibration import calibrate, report
from .data import Data
from .device import pick_device
from .distributed import on_main
from .errors import FAILED, UserError
from .evaluation import Metrics, answers_of, logits_of, metrics_of
from .files import csv_text, write_json, write_whole, writing_whole
from .manifest import Golden, Manifest
from .modelcard import NAME as CARD
from .modelcard import model_card, write_card
from .modelfile import ModelFile, save_model
from .models import own_code
from .operating import Calibration
from .optim import objective
from .recipe import LossConfig, Recipe
from .run import Run, make_model, only_one, start
from .splits import Split
from .training import Position, Watch, train

GOLDEN = 8  # test images whose logits go into the model file
LOG = logging.getLogger(__name__)  # unless a program says otherwise, warnings go to stderr as they are


def fit(recipe: Recipe, data: Data, out: str | Path = "runs", name: str | None = None) -> Run:
    """Train, keep the best epoch, look at the test set once, save everything; the run folder is returned."""
    run = start(recipe, data, out, name)
    for _ in advance(run, data):
        pass
    finish(run, data)
    return run


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
    recipe = _recipe(run, device)
    data = data.to(pick_device(recipe.device))
    saved = on_main(_saved, run)
    model = make_model(recipe, data, pretrained=saved is None)
    notes: dict[str, Any] = saved.notes if saved else {"history": [], "best": None, "ended": False}
    history: list[dict[str, Any]] = notes["history"]
    on_main(_write_history, run, history)
    if notes["ended"]:
        return

    if not saved:
        _keep_epoch(run, model, recipe, 0)

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
                    on_main(checkpoint.save, run.best, model, None, notes["best"])
            if recipe.data.test_each_epoch:
                row |= _look(model, data.test, recipe, "test")
            row |= {"lr": epoch.lr, "seconds": epoch.seconds, "images_per_second": epoch.images / epoch.seconds}
            history.append(row)
            best = notes["best"]["epoch"] if notes["best"] else epoch.index
            tired = recipe.patience > 0 and epoch.index - best >= recipe.patience
            notes["ended"] = tired or epoch.index == recipe.epochs
            _keep_epoch(run, model, recipe, epoch.index)
        on_main(checkpoint.save, run.last, model, epoch.position, notes)
        if epoch.complete:
            on_main(_write_history, run, history)
            yield row
        if notes["ended"]:
            return


def _keep_epoch(run: Run, model: nn.Module, recipe: Recipe, epoch: int) -> None:
    """Where the recipe wants it: the untrained weights, the last ones, and evenly spread ones between."""
    apart = -(-recipe.epochs // max(recipe.keep_epochs, 1)) or 1
    if recipe.keep_epochs and (epoch % apart == 0 or epoch == recipe.epochs):
        on_main(checkpoint.save, run.of_epoch(epoch), model, None, {"epoch": epoch})


def finish(run: Run, data: Data, plots: bool = True, report: bool = True, device: str | None = None) -> Metrics:
    """Look at the test set with the kept weights (the best epoch's, or the last one's where nothing was held out) and
    write metrics, predictions, the model file, the plots and the report. `device` wins over the recipe's."""
    with only_one(run):
        return _finish(run, data, plots, report, device)


def _finish(run: Run, data: Data, plots: bool, page: bool, device: str | None) -> Metrics:
    recipe = _recipe(run)
    model, epoch = kept_model(run, data, device)
    answers = answers_of(model, data, sharded=True)
    test = metrics_of(*answers["test"], data.classes)
    _require_finite(test.loss, f"the test loss of the weights of epoch {epoch}")
    tta = None
    if recipe.tta != "none":  # beside the plain accuracy, which is what the model file alone gives
        tta = metrics_of(logits_of(model, data.test, tta=recipe.tta, sharded=True), data.test.labels.cpu())
    on_main(_write_results, run, data, model, epoch, answers, test, tta, plots, page)
    return test


def _write_results(
    run: Run,
    data: Data,
    model: nn.Module,
    epoch: int,
    answers: dict[str, tuple[Tensor, Tensor]],
    test: Metrics,
    tta: Metrics | None,
    plots: bool,
    page: bool,
) -> None:
    recipe, history = run.recipe, run.history
    calibration = calibrate(*answers["val"]) if "val" in answers else Calibration()
    calibrated = answers["test"][0] / calibration.temperature  # as the model file's user will see them
    measured = {
        "epoch": epoch,
        "epochs": len(history),
        "train_seconds": sum(row["seconds"] for row in history),
        "parameters": sum(p.numel() for p in model.parameters()),
        "test": test.to_dict(),
        "calibration": report(calibration, answers),
    }
    if tta:
        measured["tta"] = {"views": recipe.tta, "accuracy": tta.accuracy, "loss": tta.loss}
    chosen = torch.linspace(0, len(data.test) - 1, min(GOLDEN, len(data.test))).long()
    images = data.test.at(chosen.to(data.test.labels.device)).cpu()
    with torch.inference_mode():
        golden_logits = model.cpu().eval()(images)
    manifest = Manifest(
        builder=recipe.model.name,
        args=recipe.model.args,
        input=data.input,
        classes=data.classes,
        recipe=recipe.to_dict(),
        metrics={"test_accuracy": test.accuracy, "test_loss": test.loss, "images": test.images},
        calibration=calibration,
    )
    golden = Golden(images.numpy(), golden_logits.float().numpy())
    file = ModelFile(model, manifest, golden)
    save_model(run.path / "model.safetensors", file)
    with writing_whole(run.path / "predictions.csv") as csv_file:
        for lines in _predictions_csv(data, calibrated):
            csv_file.write(lines)
    write_json(run.path / "metrics.json", measured)  # it is what says that the run is finished
    own = own_code(recipe.model.name)
    path = shlex.quote(str(run.path))
    _add("model card", f"convlens card {path}", lambda: write_card(model_card(run), run.path / CARD))
    if plots:

        def draw() -> None:
            from .gallery import draw_run  # matplotlib takes half a second that a run without plots need not pay

            draw_run(run.path / "plots", model, data, history, calibrated, test)

        _add("plots", f"convlens report {path}{own}", draw)  # which has the same curves
    if page:

        def write() -> None:
            from .report import Sources, write_report  # likewise

            write_report(Sources(run, data, file))

        _add("report", f"convlens report {path}{own}", write)


def _add(what: str, command: str, make: Callable[[], object]) -> None:
    """Make what a run that is finished has beside its results: where that fails they are no less there."""
    try:
        make()
    except Exception as error:
        why = " ".join(str(error).split()) if isinstance(error, UserError) else repr(error)
        LOG.warning(
            "convlens: the run is finished, but its %s was left out: %s; to make it anew: %s", what, why, command
        )
    except BaseException:
        LOG.warning("convlens: stopped; the run is finished, only its %s was left out; to make it: %s", what, command)
        raise


def kept_model(run: Run, data: Data, device: str | None = None) -> tuple[nn.Module, int]:
    """The model with the weights that count, and the epoch they are of. Raises UserError before the first epoch."""
    recipe = _recipe(run, device)
    kept = on_main(checkpoint.read, run.best if data.val else run.last)
    model = make_model(recipe, data, pretrained=kept is None)
    if kept is None:
        if recipe.epochs == 0:
            return model, 0
        raise UserError(f"the run {run.path} has no epoch yet; go on with: convlens train --resume {run.path}")
    model.load_state_dict(checkpoint.weights(kept))
    return model, kept.notes["epoch"] if data.val else len(kept.notes["history"])


def _recipe(run: Run, device: str | None = None) -> Recipe:
    recipe = on_main(lambda: run.recipe)
    return recipe if device is None else replace(recipe, device=device)


def _saved(run: Run) -> checkpoint.Checkpoint | None:
    """What the run is to be taken up from; None where it has not begun."""
    saved = checkpoint.read(run.last)
    if saved is None and run.history:
        raise UserError(f"{run.last} is missing, so the run cannot be taken up where it stood; start a new one", FAILED)
    return saved


def _look(model: nn.Module, split: Split, recipe: Recipe, prefix: str) -> dict[str, float]:
    """Loss and accuracy on a split: the recipe's own loss, so that it lies on the same axis as the training's, but
    without label smoothing and penalties, which are means of training and no part of the result."""
    logits, labels = logits_of(model, split, sharded=True), split.labels.cpu()
    loss = objective(model, LossConfig(recipe.loss.name))(logits, labels).item()
    _require_finite(loss, f"the loss on the {prefix} split")
    return {f"{prefix}_loss": loss, f"{prefix}_accuracy": (logits.argmax(1) == labels).double().mean().item()}


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise UserError(f"{what} is {loss}: the last step of training overflowed; try a smaller learning rate", FAILED)


def _write_history(run: Run, history: list[dict[str, Any]]) -> None:
    write_whole(run.path / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))


def _predictions_csv(data: Data, logits: Tensor) -> Iterator[bytes]:
    """A line a test image: its place or file, the truth, what it was taken for, and every class's probability, to nine
    digits: what lies far below the others counts where they are told from before calibration."""
    columns = ["file" if data.files else "index", "label", "predicted", "correct"]
    yield _names_csv([[*columns, *(f"p_{name}" for name in data.classes)]])
    for places in torch.arange(len(logits)).split(1000):  # in parts: as text they take many times the memory
        probabilities = logits[places].double().softmax(1)
        chosen = zip(data.test.index[places].tolist(), data.test.labels[places].tolist(), strict=True)
        rows: list[list[object]] = []
        for (i, label), row, best in zip(
            chosen, probabilities.tolist(), logits[places].argmax(1).tolist(), strict=True
        ):
            place = data.files[i] if data.files else i
            names = data.classes[label], data.classes[best]
            rows.append([place, *names, int(best == label), *(f"{p:.9g}" for p in row)])
        yield _names_csv(rows)


def _names_csv(rows: Sequence[Sequence[object]]) -> bytes:
    return csv_text(rows).encode(errors="surrogateescape")
