"""The model card of a finished run: Markdown with YAML in front, in the form that the Hugging Face Hub reads, all of it
filled from what the run measured (Mitchell et al., "Model Cards for Model Reporting", arXiv:1810.03993)."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import tomli_w

from .datasets import DATASETS, DatasetSpec
from .errors import UserError
from .files import write_whole
from .intervals import wilson
from .markup import templates
from .models import own_code
from .recipe import AugmentConfig, Recipe
from .run import Run
from .tensors import DAMAGE, read_metadata

NAME = "MODEL_CARD.md"
LISTED = 30  # classes that are named in a sentence
LEAST = 30  # test images of a class, below which its numbers say little
WEAKEST = 5  # classes that are named as found too seldom
AIMS = 0.99, 0.95, 0.9, 0.8  # accuracies that its user may ask for
TABLED = 100  # classes that have a line in the table
# What the Hub calls the data sets that have a name here
HUB = {
    "mnist": "mnist",
    "mnist-5k": "mnist",
    "fashion-mnist": "fashion_mnist",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
}
HOW = {
    "crop": "what is not as wide is cut off at the centre",
    "fit": "padded with black where the proportions differ",
    "stretch": "stretched where the proportions differ",
}


def model_card(run: Run) -> str:
    """The whole card. No path of the machine is in it, and the license is left to who publishes it.

    Raises:
        UserError: the run is not finished, or its files are damaged.
    """
    measured, seen, recipe = run.metrics, run.environment, run.recipe
    data, test = seen["data"], measured["test"]
    spec = DATASETS.get(data["name"]) if not data["folder"] else None
    file = _model_file(run)
    hub = HUB.get(data["name"]) if spec else None
    own = own_code(recipe.model.name)
    together = {} if own else recipe.model.args  # to a builder of one's own these names may mean anything
    begun = recipe.model.name if ":" in recipe.model.name and recipe.model.args.get("pretrained", True) else ""
    values = _without_paths({key: value for key, value in recipe.to_dict().items() if key != "note"})
    toml = tomli_w.dumps(values).strip()
    words = ["convlens", "train", "FOLDER" if data["folder"] else data["name"], "--recipe", "recipe.toml"]
    words += ["--limit", str(data["limit"])] if data["limit"] else []
    counts = _training_counts(run).most_common() if data["folder"] else []
    classes = [row["name"] for row in test["classes"]]
    environment = templates(keep_trailing_newline=True)  # which escape no Markdown: `plain` and `yaml` do
    environment.filters |= {"plain": plain, "yaml": yaml, "percent": lambda share: f"{100 * share:.2f} %"}
    text = environment.get_template("card.md").render(
        aim=_reachable(file["calibration"]["curve"]),
        again=_printable(shlex.join(words)),
        begun=begun if begun.startswith(("timm:", "torchvision:")) else "",
        calibration=measured["calibration"],
        changes=_augmentation(recipe),
        classes=classes,
        data=data,
        environment={"processes": 1, **seen},
        epoch=measured["epoch"],
        epochs=measured["epochs"],
        few=_listed([row["name"] for row in test["classes"] if row["support"] < LEAST]),
        fence="`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", toml))]),
        fewest=counts[-1] if counts else None,
        how=HOW,
        hub=hub,
        input=file["input"],
        interval=_interval(test["confusion"]),
        least=LEAST,
        members=together.get("members", 1),
        mirror=together.get("mirror", False),
        model=recipe.model.name,
        most=counts[0] if counts else None,
        name=run.path.resolve().name,
        named=_listed(classes),
        own=own,
        own_python=f', "{recipe.model.name}"' if own else "",
        parameters=measured["parameters"],
        recipe=recipe,
        rows=sorted(test["classes"], key=lambda row: row["f1"])[:TABLED] if len(classes) > TABLED else test["classes"],
        seconds=measured["train_seconds"],
        test=test,
        tested=_tested(data, hub, spec),
        toml=toml,
        tta=measured.get("tta"),
        weak=_weak(test),
        what=f"{data['name']} ({spec.title}; {spec.source})" if spec else f"the collection {data['name']}",
    )
    return text.encode(errors="backslashreplace").decode()  # a name need not be UTF-8, a card must


def write_card(text: str, path: Path) -> Path:
    """Write it. A card that is there already and says something else is left alone: a person may have edited it.

    Raises:
        UserError: there is another card, or the disk refuses.
    """
    if path.is_file() and path.read_bytes() != text.encode():
        raise UserError(f"{path} says something else, perhaps edited by hand: move it away, or write to another --out")
    write_whole(path, text)
    return path


def plain(text: str) -> str:
    """A name within a line of Markdown, or a cell of its tables, that means nothing but itself."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", _printable(" ".join(text.split())))


def yaml(text: str) -> str:
    """A string as YAML writes it in double quotes."""
    return json.dumps(_printable(text), ensure_ascii=False)


def _printable(text: str) -> str:
    """With what breaks lines, or what YAML or UTF-8 cannot hold, replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(map(plain, names[:LISTED])) + more


def _tested(data: dict[str, Any], hub: str | None, spec: DatasetSpec | None) -> str:
    """What the Hub takes the test images for: its own set where they are that one's, all of them."""
    if hub and spec and hub.replace("_", "-") == spec.name and data["images"]["test"] == spec.counts[1]:
        return hub
    return "imagefolder" if data["folder"] else re.sub(r"[^\w.-]", "-", data["name"])


def _augmentation(recipe: Recipe) -> str:
    """`flip, shift 2`: what the recipe sets, by the names of its keys."""
    usual = vars(AugmentConfig())
    chosen = {key: value for key, value in vars(recipe.augment).items() if value != usual[key]}
    return ", ".join(key if value is True else f"{key} {value}" for key, value in chosen.items())


def _reachable(curve: Sequence[Sequence[float]]) -> float | None:
    """An accuracy to ask for that the validation split says some threshold has, the highest of a few."""
    return next((aim for aim in AIMS if any(accuracy >= aim for _, accuracy, _ in curve)), None)


def _model_file(run: Run) -> dict[str, Any]:
    """What stands in the model file beside the weights."""
    path = run.path / "model.safetensors"
    try:
        return json.loads(read_metadata(path)["config"])
    except DAMAGE as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error


def _interval(confusion: Sequence[Sequence[int]]) -> tuple[float, float]:
    return wilson(sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion)))


def _weak(test: dict[str, Any]) -> list[dict[str, Any]]:
    """The classes whose recall lies, with its whole interval, below the accuracy of all; the lowest first."""
    found = []
    for i, row in enumerate(test["classes"]):
        counts = test["confusion"][i]
        low, high = wilson(counts[i], row["support"])
        if high < test["accuracy"]:
            others = [count if j != i else 0 for j, count in enumerate(counts)]
            taken = test["classes"][others.index(max(others))]["name"] if any(others) else ""
            found.append({**row, "interval": (low, high), "taken": taken})
    return sorted(found, key=lambda row: row["recall"])[:WEAKEST]


def _training_counts(run: Run) -> Counter[str]:
    """Of one's own pictures, the training images of each class."""
    with (run.path / "split.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return Counter(row["label"] for row in csv.DictReader(file) if row["split"] == "train")


def _without_paths(value: Any) -> Any:
    """Settings with the folders taken out of those that are paths of this machine."""
    if isinstance(value, dict):
        return {key: _without_paths(of) for key, of in value.items()}
    if isinstance(value, list):
        return [_without_paths(of) for of in value]
    if not isinstance(value, str):
        return value
    for kind in (PureWindowsPath, PurePosixPath):
        if kind(value).is_absolute() or value.startswith("~"):
            return kind(value).name
    return value
