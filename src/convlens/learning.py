"""The commands that train: once, in search of a rate or of settings, or against the clock."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import flags, opening
from .errors import UserError


def train(
    data: flags.DataOrNone = None,
    model: flags.ModelName = None,
    recipe: flags.RecipeName = None,
    size: flags.PictureSize = None,
    gray: flags.Gray = False,
    resize: flags.Resize = None,
    strict: flags.Strict = False,
    path_column: flags.PathColumn = None,
    label_column: flags.LabelColumn = None,
    split_column: flags.SplitColumn = None,
    group_column: flags.GroupColumn = None,
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
    report: flags.WithReport = True,
    open_page: flags.OpenPage = False,
    print_recipe: flags.PrintRecipe = False,
    as_json: flags.Json = False,
) -> None:
    """Train a network, keep the best epoch, look at the test set once, save everything in a run folder."""
    given: dict[str, Any] = {
        "model.name": model,
        **flags.reading(size, gray, resize),
        **flags.columns(path_column, label_column, split_column, group_column),
        "data.max_bad": 0.0 if strict else None,
        "epochs": epochs,
        "batch_size": None if batch_size == "auto" else batch_size and flags.number(batch_size),
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
        "keep_epochs": opening.KEPT if open_page and not resume else None,
    }
    from .console import decoding
    from .distributed import in_turn, on_main, rank
    from .run import start
    from .session import data_for, measured_batch_size, recipe_from, resumable, train_to_the_end, usual_recipe

    auto = batch_size == "auto"
    if resume:
        others = [batch_size, *(value for key, value in given.items() if key not in ("device", "model.name"))]
        if data or recipe or name or limit or settings or print_recipe or any(value is not None for value in others):
            raise UserError("--resume goes on with the run's own recipe and data: give it no others")
        run = resumable(resume, model)
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
        loaded = data_for(made, data, data_dir, limit)
        if auto:
            given["batch_size"] = measured_batch_size(made, loaded)
            made = recipe_from(base, given, settings or ())
        run = on_main(start, made, loaded, out, name)
    own = run.recipe.model.name
    builder = own if ":" in own else None  # code outside ConvLens is always named
    with opening.opened(run.path, builder, data_dir) if open_page and not rank() else nullcontext():
        train_to_the_end(run, loaded, plots, report, as_json, device if resume else None, finish)


def lr_find(
    data: flags.DataName,
    model: flags.ModelName = None,
    recipe: flags.RecipeName = None,
    batch_size: flags.BatchNumber = None,
    opt: flags.Opt = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    path_column: flags.PathColumn = None,
    label_column: flags.LabelColumn = None,
    split_column: flags.SplitColumn = None,
    group_column: flags.GroupColumn = None,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    limit: flags.Limit = None,
    steps: flags.RangeSteps = 40,
    out: flags.Out = Path("lr-find"),
    as_json: flags.Json = False,
) -> None:
    """Find a learning rate: let it rise until the loss diverges, draw the losses, say which to take."""
    from .files import make_folder
    from .lr_find import find_lr
    from .plots import range_test, save
    from .run import make_model
    from .session import data_for, recipe_from, say_rate, usual_recipe

    given = {"model.name": model, "batch_size": batch_size, "optim.name": opt, "seed": seed, "device": device}
    columns = flags.columns(path_column, label_column, split_column, group_column)
    made = recipe_from(recipe or usual_recipe(data), given | columns, settings or ())
    loaded = data_for(made, data, data_dir, limit)
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
    said |= {"--path-column": path_column, "--label-column": label_column}
    said |= {"--split-column": split_column, "--group-column": group_column}
    said |= {"--data-dir": data_dir, "--limit": limit}
    say_rate(found, made, picture, ["convlens", "train", data], said, settings or ())


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
    path_column: flags.PathColumn = None,
    label_column: flags.LabelColumn = None,
    split_column: flags.SplitColumn = None,
    group_column: flags.GroupColumn = None,
    settings: flags.Settings = None,
    data_dir: flags.DataDir = None,
    limit: flags.Limit = None,
    out: flags.Searched = None,
    as_json: flags.Json = False,
) -> None:
    """Search a recipe's settings by the validation accuracy; the same command goes on with a search that was cut."""
    from .session import data_for, recipe_from, search_to_the_end, usual_recipe
    from .tune import usual_space
    from .tune import vary as read_vary

    given = {"model.name": model, "epochs": epochs, "batch_size": batch_size, "optim.name": opt, "seed": seed}
    columns = flags.columns(path_column, label_column, split_column, group_column)
    made = recipe_from(recipe or usual_recipe(data), {**given, "device": device, **columns}, settings or ())
    space = dict(read_vary(text, made) for text in vary or ())
    loaded = data_for(made, data, data_dir, limit)
    folder = out or Path("tuned") / f"{loaded.name}-{made.name}"
    trials = trials or (20 if timeout is None else None)
    search_to_the_end(made, loaded, space or usual_space(made, loaded), folder, trials, timeout, as_json)


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
