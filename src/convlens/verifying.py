"""verify(): whether a file that a network left in is whole, and still says what the network said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .errors import UserError
from .formats import EXPORTED, Shipped, open_shipped, read_exported, seal_holds, shipped_file
from .operating import difference, margins, scale
from .replaying import CLOSE, TIE, Check, alike, golden_checks, probabilities_alike
from .webexport import SUMS, check_web, written_by

if TYPE_CHECKING:  # an .onnx is verified without PyTorch, as long as no data set is asked for
    from .data import Data

ROUNDED = 0.25  # how far int8 logits may lie from those in float32: 0.09 was seen; the test set is what judges them
COST = 0.005  # of the accuracy, that int8 may have
FEW = 3  # images: where COST is less, the test set is too small to tell it
AT_ONCE = 1 << 22  # pixels and channels of a batch
LISTED = 10  # of what differs, in one sentence


@dataclass(frozen=True)
class Disagreement:
    """A test image that the file and the run's own model name differently. `margin` is how much the run's model
    prefers its own label, in parts of its largest logit of that image, or of 1; a TIE says nothing."""

    image: str
    label: str
    expected: str
    truth: str
    margin: float
    tie: bool


@dataclass(frozen=True)
class Verification:
    """What was found of a file. `passed` where no check failed; `accuracy` (0..1) on the test set and `expected`, the
    run's own, where it was looked at; `disagreements` where there was a run to compare with."""

    path: Path
    format: str
    precision: str
    checks: tuple[Check, ...]
    accuracy: float | None = None
    expected: float | None = None
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "passed": self.passed} | {
            name: value for name, value in asdict(self).items() if name != "path"
        }


def verify(
    path: str | Path,
    against: str | Path | None = None,
    data: str | Path | None = None,
    data_dir: str | Path | None = None,
    builder: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    test_set: bool = True,
) -> Verification:
    """Look at the seal of a file, and let it answer its golden batch again. `against` names the run, or the model file,
    that it came from: what stands beside the weights must be equal, and the golden batch be answered alike. The test
    set, where it is on this disk, is answered by both; `data` names it where there is no run, or another copy of it.

    Of fp32 the labels must be the run's, but for ties; int8 may lose COST of the accuracy. Without `test_set` no data
    is looked for. For `builder` see `load_model`, for `data`, `data_dir` and `progress` see `load`.

    Raises:
        UserError: there is no such file, or run, or it is none of ConvLens'; or data that has another test set.
    """
    given, path = Path(path), shipped_file(path)
    content = read_exported(path)
    sealed = _seal("seal", path, content)
    try:
        shipped = open_shipped(path, builder, content)
    except UserError as error:
        if sealed.passed is not False:
            raise
        return Verification(path, path.suffix.removeprefix("."), "", (sealed, Check("opened", False, str(error))))
    checks, original = [sealed, *golden_checks(shipped), *_page(given)], None
    if against is not None:
        source = shipped_file(against)
        content = read_exported(source)
        checks += [_seal("the run's seal", source, content)]
        original = open_shipped(source, builder, content)
        checks += [*_manifest(shipped, original), _answers(shipped, original)]
    found, lacking = _data(shipped, against, data, data_dir, progress) if test_set else (None, "")
    if found and found.classes != shipped.manifest.classes:
        apart = _apart(list(shipped.manifest.classes), list(found.classes))
        checks += [Check("names", False, f"the data has others: {apart}")]
    if found and (unlike := _unlike(shipped, original, found)):
        found, lacking = None, unlike
    if found is None:
        checks += [Check("test set", None, f"not looked at: {lacking}")] if lacking else []
        return Verification(shipped.path, shipped.format, shipped.precision, tuple(checks))
    return _test_set(shipped, original, found, checks)


def _seal(name: str, path: Path, content: bytes | None) -> Check:
    holds = seal_holds(path, content)
    said = {
        True: "the file is what was sealed, to the last bit",
        False: "the file was changed after it was sealed",
        None: "it has none",
    }
    # only the model files of format 1 had none
    return Check(name, bool(holds) if path.suffix in EXPORTED else holds, said[holds])


def _page(folder: Path) -> list[Check]:
    """The other files of a folder with a page; nothing where it is none."""
    if not any((folder / name).exists() for name in ("index.html", "model.json", SUMS)):
        return []
    problems, writer = check_web(folder), written_by(folder)
    if problems:
        return [Check("page", False, "; ".join(problems))]
    if writer != __version__:
        said = f"its files are those in {SUMS}; whether its code is ConvLens', only {writer}, which wrote it, can tell"
        return [Check("page", None, said)]
    return [Check("page", True, "all its files are those that were exported")]


def _manifest(shipped: Shipped, original: Shipped) -> list[Check]:
    """What stands beside the weights, part by part."""
    ours, theirs = shipped.manifest, original.manifest
    pairs = {
        "classes": (list(ours.classes), list(theirs.classes)),
        "input": (ours.input, theirs.input),
        "calibration": (ours.calibration.to_dict(), theirs.calibration.to_dict()),
        "network": ((ours.builder, ours.args), (theirs.builder, theirs.args)),
        "history": ((ours.recipe, ours.metrics), (theirs.recipe, theirs.metrics)),
    }
    return [
        Check(name, a == b, "as in the run" if a == b else f"not as in the run: {_apart(a, b)}")
        for name, (a, b) in pairs.items()
    ]


def _apart(a: object, b: object) -> str:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        differing = [f"{x!r} for {y!r}" for x, y in zip(a, b, strict=True) if x != y]
        return ", ".join(differing[:LISTED])
    text, other = repr(a), repr(b)
    first = next((i for i, (x, y) in enumerate(zip(text, other, strict=False)) if x != y), 0)
    start = max(first - 30, 0)
    return f"{text[start : first + 50]} for {other[start : first + 50]}"


def _answers(shipped: Shipped, original: Shipped) -> Check:
    """Whether both answer the golden batches of both alike."""
    name, unlike = "same answers", _unlike(shipped, original)
    if unlike:
        return Check(name, False, unlike)
    images = np.concatenate([shipped.golden.images, original.golden.images])
    logits, expected = shipped.logits(images), original.logits(images)
    if shipped.precision == original.precision == "fp32":
        return alike(name, logits, expected, CLOSE["fp32"])
    apart, differing = difference(logits, expected), int((logits.argmax(1) != expected.argmax(1)).sum())
    said = f"{len(images)} images: logits {apart:.1e} apart, {ROUNDED:g} allowed; {differing} labels differ"
    if apart <= ROUNDED and differing:
        return Check(name, None, f"{said}: whether that is too many only the test set can tell")
    return Check(name, apart <= ROUNDED, said)


def _unlike(shipped: Shipped, original: Shipped | None, data: Data | None = None) -> str:
    """Why the file cannot be compared with the run, or not on the data; empty where it can."""
    takes, classes = shipped.golden.images.shape[1:], len(shipped.manifest.classes)
    others = [("the run", original.golden.images.shape[1:], len(original.manifest.classes))] if original else []
    if data:
        others += [("the data", (data.input.channels, *data.input.size), len(data.classes))]
    for name, images, names in others:
        if images != takes:
            return f"{name} has images of {images}, the file takes {takes}"
        if names != classes:
            return f"{name} has {names:,} classes, the file {classes:,}"
    return ""


def _data(
    shipped: Shipped,
    against: str | Path | None,
    data: str | Path | None,
    data_dir: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Data | None, str]:
    """The data set with the test images; or None, and why there is none."""
    if data is not None:
        from .data import load
        from .recipe import Recipe

        found = load(data, Recipe.from_dict(shipped.manifest.recipe), data_dir, progress=progress)
        if found.input != shipped.manifest.input:
            raise UserError(f"{data} has images of {found.input}, and {shipped.path} takes {shipped.manifest.input}")
        measured = len(found.test) if against else _measured(shipped)[1]
        if len(found.test) != measured:
            raise UserError(
                f"{data} has {len(found.test):,} test images, and {shipped.path} was measured on {measured:,}: give "
                "the data that it was trained on, or the run (--against RUN)"
            )
        return found, ""
    if against is None or not Path(against).is_dir() or not (Path(against) / "recipe.toml").exists():
        return None, ""
    from .run import Run

    try:
        return Run.open(against).load_data(data_dir, progress), ""
    except UserError as error:  # the run's data may be on another machine
        return None, str(error)


def _test_set(shipped: Shipped, original: Shipped | None, data: Data, checks: list[Check]) -> Verification:
    """The accuracy on the test set beside the run's; with the run's model, image by image."""
    (logits, probabilities), truth = outputs_on(shipped, data), data.test.labels.numpy()
    labels = logits.argmax(1)
    accuracy = float((labels == truth).mean())
    disagreements: tuple[Disagreement, ...] = ()
    if original:
        reference, _ = outputs_on(original, data)
        expected = float((reference.argmax(1) == truth).mean())
        disagreements = _disagreements(labels, reference, data)
        ties = sum(each.tie for each in disagreements)
    else:
        expected = _measured(shipped)[0]
        second = np.partition(logits, -2, axis=1)[:, -2]
        ties = int(((logits.max(1) - second) / scale(logits) <= TIE).sum())
    said = f"{len(truth):,} images: accuracy {accuracy:.2%}, the run's {expected:.2%}"
    if original:
        said += f"; {len(disagreements)} labels differ, {ties} of them ties"
    if shipped.precision == "int8":
        allowed = allowance(len(truth), expected)
        good = round((expected - accuracy) * len(truth)) <= allowed
        said += f"; int8 may lose {allowed / len(truth):.1%}"
    elif original:
        good = ties == len(disagreements)
    else:
        good = abs(accuracy - expected) * len(truth) <= ties + 0.5
    checks = [*checks, Check("test set", bool(good), said)]
    checks += probabilities_alike("test set's probabilities", shipped, logits, probabilities)
    return Verification(
        shipped.path, shipped.format, shipped.precision, tuple(checks), accuracy, expected, disagreements
    )


def allowance(images: int, accuracy: float) -> float:
    """How many images of a test set int8 may lose: COST of them. Where those are fewer than FEW, a standard error of
    the run's accuracy (0..1) if that is more: the test set cannot tell less."""
    cost = COST * images
    return cost if cost >= FEW else max(cost, (images * accuracy * (1 - accuracy)) ** 0.5)


def _measured(shipped: Shipped) -> tuple[float, int]:
    """The accuracy that the file names, and of how many images."""
    try:
        return float(shipped.manifest.metrics["test_accuracy"]), int(shipped.manifest.metrics["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{shipped.path} does not say what accuracy it had on how many test images") from error


def outputs_on(shipped: Shipped, data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    """What a network says to the test set: logits, and probabilities where its file has them, float32 (N, K)."""
    said = [shipped.outputs(data.test.at(part).contiguous().numpy()) for part in data.test.blocks(AT_ONCE)]
    probabilities = [given for _, given in said if given is not None]
    return np.concatenate([given for given, _ in said]), np.concatenate(probabilities) if probabilities else None


def _disagreements(labels: np.ndarray, reference: np.ndarray, data: Data) -> tuple[Disagreement, ...]:
    apart, names, index = margins(reference, labels), data.classes, data.test.index.tolist()
    return tuple(
        Disagreement(
            image=data.files[index[i]] if data.files else f"test:{i}",
            label=names[labels[i]],
            expected=names[reference[i].argmax()],
            truth=names[int(data.test.labels[i])],
            margin=float(apart[i]),
            tie=bool(apart[i] <= TIE),
        )
        for i in np.flatnonzero(labels != reference.argmax(1)).tolist()
    )
