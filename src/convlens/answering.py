"""The commands that ask a trained network: to be measured, looked into, and to classify pictures."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from . import flags
from .errors import GATE, USAGE, UserError, unknown

if TYPE_CHECKING:  # torch is not imported for a page of help
    from torch import Tensor

    from .attribution import Attribution
    from .data import Data
    from .modelfile import ModelFile


def evaluate(
    run: flags.RunPath,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
    min_accuracy: flags.MinAccuracy = None,
    corruptions: flags.Corruptions = False,
    limit: flags.Sample = None,
    plots: flags.PlotsFolder = None,
    as_json: flags.Json = False,
) -> None:
    """Measure a run's model on the test set again: accuracy, loss, every class, and how far to trust it."""
    from .calibration import report
    from .confidence import trust
    from .console import calibration_line, corrupting, decoding, err, metrics_table, out, robustness_table
    from .device import pick_device
    from .evaluation import answers_of, metrics_of
    from .modelfile import golden_difference
    from .robust import robustness
    from .run import Run

    if limit is not None and not corruptions:
        raise UserError("--limit says how many images --corruptions takes; give both, or neither")
    opened = Run.open(run)
    file = opened.model_file(model)
    difference = golden_difference(file)
    if difference > 1e-4:
        err.print(f"convlens: the model file no longer gives its own golden logits (they differ by {difference:.2g})")
        raise typer.Exit(GATE)
    network, data = file.model.to(pick_device()), opened.load_data(data_dir, decoding())
    answers = answers_of(network, data)
    metrics = metrics_of(*answers["test"], file.manifest.classes)
    calibration = report(file.manifest.calibration, answers)
    robust = robustness(network, data.test, limit, progress=corrupting()) if corruptions else None
    if as_json:
        more = {"robustness": robust.to_dict()} if robust else {}
        print(json.dumps({**metrics.to_dict(), "calibration": calibration, **more}))
    else:
        metrics_table(metrics)
        out.print(calibration_line(calibration))
        if robust:
            robustness_table(robust)
    if plots:
        from .trustplots import draw_trust

        drawn = draw_trust(plots, trust(*answers["test"], file.manifest.calibration.temperature), robust)
        err.print(f"{len(drawn)} pictures in {plots}")
    if min_accuracy is not None and metrics.accuracy < min_accuracy:
        err.print(f"convlens: accuracy {metrics.accuracy:.4f} is below {min_accuracy}")
        raise typer.Exit(GATE)


def report(
    run: flags.RunPath,
    language: flags.Language = "en",
    out: flags.Page = None,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
) -> None:
    """Write what a run found as one HTML page, which opens from the disk and needs nothing else."""
    from .console import decoding, err
    from .report import LANGUAGES, open_sources, write_report
    from .run import Run

    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    if out and (not out.parent.is_dir() or out.is_dir()):
        raise UserError(f"cannot write {out}: it must be a file in a folder that exists")
    sources = open_sources(Run.open(run), data_dir, model, decoding())
    for sentence in sources.lacking:
        err.print(f"left out: {sentence}")
    print(write_report(sources, out, language))


def explain(
    run: flags.RunPath,
    images: flags.Images = None,
    method: flags.Method = None,
    target: flags.Explained = None,
    against: flags.Against = None,
    layer: flags.Layer = None,
    channels: flags.Ranked = True,
    examples: flags.Examples = True,
    feature_maps: flags.FeatureMaps = True,
    plane: flags.Plane = "pca",
    wishes: flags.Wishes = False,
    model: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
    out: flags.OutOrNone = None,
    as_json: flags.Json = False,
) -> None:
    """See which pixels of an image speak for a class, which channels, and what every layer makes of it; without an
    image, what is in the network itself."""
    from .console import decoding, visible
    from .gallery import draw_feature_maps
    from .inside import network, walked_if_there
    from .insight import draw_image
    from .operating import probabilities_of
    from .overlays import draw_wishes, settings_line, title
    from .run import Run

    if not images and (method or target or against or layer):
        raise UserError("--method, --class, --against and --layer ask about an image: name one, such as test:0")
    methods = _methods(method, layer, target or against) if images else []
    opened = Run.open(run)
    file, folder = opened.model_file(model), out or opened.path / "explain"
    load = cache(lambda: opened.load_data(data_dir, decoding()))
    look = cache(lambda: walked_if_there(opened, file, load, data_dir))
    classes, said = file.manifest.classes, sys.stderr if as_json else sys.stdout
    found: dict[str, Any] = {"images": []}
    for given, name, image, truth in _images(images or (), load, file):
        probabilities = probabilities_of(file.logits(image[None].numpy()), file.manifest.calibration.temperature)[0]
        best = int(probabilities.argmax())
        caption = f"{classes[best]} ({probabilities[best]:.0%}){f', is {truth}' if truth else ''}"
        print(visible(f"{given}: {caption}"), file=said)
        row = {"image": given, "class": classes[best], "probability": float(probabilities[best]), "truth": truth}
        asked = {"target": target, "against": against, "layer": layer}
        heats = _attributions(folder / name, file, image, truth, methods, asked)
        for heat, path in heats:
            print(visible(f"  {path}: {title(heat, classes)}, {settings_line(heat)}"), file=said)
        row["attributions"] = [{**heat.to_dict(classes), "file": str(path)} for heat, path in heats]
        others = list[Path]()
        if channels:
            over, walk = f"{Path(given).name}: {caption}", look() if examples else None
            number = given.removeprefix("train:")
            itself = int(number) if number != given and number.isdecimal() else None
            others, row["channels"] = draw_image(folder / name, file.model, image, classes, over, walk, itself)
        if feature_maps:
            others += draw_feature_maps(folder / name, file.model, image, caption)
        print(*(f"  {path}" for path in others), sep="\n", end="\n" * bool(others), file=said)
        found["images"].append({**row, "files": [str(path) for path in others]})
    if not images:
        found["network"] = network(opened, file, load, data_dir, out, plane, said)
    if wishes:
        drawn, liked = draw_wishes(folder / "network", file.model, load().train, classes)
        print("what the network wants to see:", *(f"  {path}" for path in drawn), sep="\n", file=said)
        found["wishes"] = {"files": [str(path) for path in drawn], "settings": liked.settings}
    if as_json:
        print(json.dumps(found))


def _methods(asked: list[str] | None, layer: str | None, question: str | None) -> list[str]:
    """The methods that the flags name; where they name none the usual ones, and none of those where there is no
    captum."""
    from .attribution import METHODS, USUAL, require_captum
    from .console import err

    if asked is None and not layer and not question:
        try:
            require_captum()
        except UserError as error:
            err.print(f"convlens: {error}")
            return []
    chosen = [name for each in asked or USUAL for name in (METHODS if each == "all" else (each,)) if each != "none"]
    for name in chosen:
        if name not in METHODS:
            raise unknown("method", name, [*METHODS, "all", "none"])
    if layer and "grad-cam" not in chosen:
        raise UserError("--layer says where grad-cam looks: add --method grad-cam")
    if question and not chosen:
        raise UserError("--class and --against are for a method, and --method none was given")
    return list(dict.fromkeys(chosen))


def _attributions(
    folder: Path, file: ModelFile, image: Tensor, truth: str | None, methods: Sequence[str], asked: dict[str, Any]
) -> list[tuple[Attribution, Path]]:
    """The attributions of an image uint8 (C, H, W) by `methods`, and the files that they are drawn in."""
    from .attribution import attribute
    from .overlays import draw_attributions

    asked = {**asked, "classes": file.manifest.classes, "temperature": file.manifest.calibration.temperature}
    heats = []
    for method in methods:
        where = {"layer": asked["layer"] if method == "grad-cam" else None}
        heats += attribute(file.model, image[None], method, **{**asked, **where})
    return list(zip(heats, draw_attributions(folder, image, heats, file.manifest.classes, truth), strict=True))


def _images(
    images: Iterable[str], load: Callable[[], Data], file: ModelFile
) -> Iterator[tuple[str, str, Tensor, str | None]]:
    """Each image as it was given: the name of its folder, its pixels uint8 (C, H, W), and its class if known."""
    import torch

    from .images import preprocess

    used = set[str]()
    for given in images:
        split, _, number = given.partition(":")
        truth = None
        if split in ("train", "val", "test") and number.isdecimal():
            part = getattr(load(), split)
            if part is None or int(number) >= len(part):
                raise UserError(f"{given}: the {split} split has {len(part or ())} images, numbered from 0")
            image, name = part.at(slice(int(number), int(number) + 1))[0], f"{split}-{number}"
            truth = file.manifest.classes[int(part.labels[int(number)])]
        else:
            image, name = torch.from_numpy(preprocess(given, file.manifest.input)), Path(given).stem
        while name in used:  # two folders may each have a 1.png
            name += "-again"
        used.add(name)
        yield given, name, image, truth


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
        calibration = predictor.manifest.calibration
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
    pairs = min(top, len(predictor.manifest.classes)) if top > 1 or threshold is not None else 0
    text = to_json(rows) if as_json or (output and output.suffix == ".json") else to_csv(rows, pairs)
    _write(text, output)
    if output or counts["bad"] or threshold is not None:
        err.print(predictions_line(counts, threshold))
    if passed_over:
        err.print(passed_over_line(passed_over))
    if counts["bad"] == counts["pictures"]:
        raise typer.Exit(USAGE)


def _write(text: Iterator[str], output: Path | None) -> None:
    """To the file, whole or not at all, or to stdout as it comes, and there for a terminal `visible`."""
    from .console import visible
    from .files import writing_whole

    if output is None:
        shown = visible if sys.stdout.isatty() else str
        for part in text:
            print(shown(part), end="")
        return
    with writing_whole(output) as file:
        for part in text:
            file.write(part.encode(errors="backslashreplace"))
