"""How much `convlens check` finds of faults that were planted, and how much else it reports.

    python benchmarks/planted.py FOLDER [--each 100] [--limit N] [--seed 0] [--no-labels]

FOLDER has a folder a class. Its pictures are copied to a temporary folder, one of five into `test`, the rest into
`train`; `check` looks at them once as they are (but not at the labels, which would take long) and once with `--each`
faults of every kind. What it reports and was not planted is counted as another alarm: some of these are real faults of
the data set, which only looking can tell. So the precision, the share of planted ones in what is reported, is a lower
bound, and depends on how many are planted.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from convlens.checking import Report, check

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def _cut(share: float) -> Change:
    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        width, height = image.size
        x, y = round(width * share), round(height * share)
        return image.crop((x, y, width - x, height - y))

    return change


def _noisy(value: int) -> Change:
    """One colour with the noise of a sensor."""

    def change(image: Image.Image, random: np.random.Generator) -> Image.Image:
        return Image.fromarray((value + random.normal(0, 2, (*image.size[::-1], 3))).clip(0, 255).astype(np.uint8))

    return change


# Of a picture in train a copy goes into test, saved as JPEG of the given quality
COPIES: dict[str, tuple[Change, int]] = {
    "compressed anew (quality 40)": (lambda image, _: image, 40),
    "half the size": (lambda image, _: image.resize((max(image.width // 2, 1), max(image.height // 2, 1))), 90),
    "1.3 times as bright": (lambda image, _: ImageEnhance.Brightness(image).enhance(1.3), 90),
    "2 % cut off each side": (_cut(0.02), 90),
    "5 % cut off each side": (_cut(0.05), 90),
    "mirrored": (lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90),
}
# What a picture of train becomes, and the kind of finding that must name it
LOOKS: dict[str, tuple[Change, str]] = {
    "one colour": (
        lambda image, random: Image.new("RGB", image.size, tuple(random.integers(0, 256, 3).tolist())),
        "blank",
    ),
    "one colour with noise": (_noisy(128), "blank"),
    "an eighth as bright": (lambda image, _: image.point(lambda value: value // 8), "dark"),
    "blurred (4 % of the side)": (
        lambda image, _: image.filter(ImageFilter.GaussianBlur(0.04 * min(image.size))),
        "blurred",
    ),
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut off in the middle": lambda data: data[: len(data) // 2],
    "no picture": lambda _: b"<html>404</html>",
}
WRONG = "wrong labels"
Planted = dict[str, tuple[str, list[str]]]  # fault -> kind of finding, files that it must name


def plant(source: Path, target: Path, counts: dict[str, int], seed: int = 0, limit: int | None = None) -> Planted:
    """Copy the pictures of `source` into train and test below `target`, and plant so many faults of each name, each in
    a picture of its own."""
    random = np.random.default_rng(seed)
    pictures = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    classes = sorted({path.parent.name for path in pictures})
    places = random.permutation(len(pictures))[:limit]
    trained = []
    for rank, place in enumerate(places):
        path = pictures[place]
        name = f"{'test' if rank % 5 == 0 else 'train'}/{path.parent.name}/{place:05}{path.suffix.lower()}"
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
        if name.startswith("train"):
            trained.append(name)
    rest = iter(trained)
    planted: Planted = {}
    for fault, count in counts.items():
        chosen = [next(rest) for _ in range(count)]
        files = []
        for name in chosen:
            label, stem = Path(name).parent.name, Path(name).stem
            if fault == "identical":
                files.append(f"test/{label}/{stem}-copy{Path(name).suffix}")
                shutil.copyfile(target / name, target / files[-1])
            elif fault in COPIES:
                change, quality = COPIES[fault]
                files.append(f"test/{label}/{stem}-copy.jpg")
                changed = change(Image.open(target / name).convert("RGB"), random)
                changed.save(target / files[-1], quality=quality)
            elif fault in LOOKS:
                changed = LOOKS[fault][0](Image.open(target / name).convert("RGB"), random)
                file = io.BytesIO()
                changed.save(file, "PNG" if name.endswith("png") else "JPEG", quality=90)
                (target / name).write_bytes(file.getvalue())
                files.append(name)
            elif fault in DAMAGE:
                (target / name).write_bytes(DAMAGE[fault]((target / name).read_bytes()))
                files.append(name)
            else:
                other = random.choice([each for each in classes if each != label])
                files.append(f"train/{other}/{stem}-wrong{Path(name).suffix}")
                (target / name).rename(target / files[-1])
        kinds = {WRONG: "wrong-labels", **dict.fromkeys(DAMAGE, "bad-files")} | {k: v[1] for k, v in LOOKS.items()}
        planted[fault] = kinds.get(fault, "copies-across-splits"), files
    return planted


def named(report: Report) -> dict[str, set[str]]:
    """The files that findings of each kind name."""
    found: dict[str, set[str]] = defaultdict(set)
    for finding in report.findings:
        for item in finding.items:
            found[finding.kind].update(item.files)
    return found


def other_alarms(report: Report, planted: Planted) -> dict[str, int]:
    """How often each kind of finding names nothing that was planted for it to name."""
    files: dict[str, set[str]] = defaultdict(set)
    for kind, names in planted.values():
        files[kind].update(names)
    files["blank"] |= files["dark"]
    counted = {
        finding.kind: sum(not files[finding.kind] & set(item.files) for item in finding.items if item.files)
        for finding in report.findings
    }
    return {kind: count for kind, count in counted.items() if count}


def _from_the_top(report: Report, planted: Planted, share: float) -> int:
    """How many of the planted wrong labels are in the first `share` of those that are reported."""
    listed = [item.files[0] for finding in report.findings if finding.kind == "wrong-labels" for item in finding.items]
    return len(set(listed[: round(share * len(listed))]) & set(planted[WRONG][1]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-labels", action="store_true")
    given = parser.parse_args(arguments)
    faults = ["identical", *COPIES, *LOOKS, *DAMAGE, *([] if given.no_labels else [WRONG])]
    with tempfile.TemporaryDirectory() as folder:
        plant(given.folder, Path(folder) / "before", {}, given.seed, given.limit)
        before = check(Path(folder) / "before", labels=False, mirrored=True)
        planted = plant(
            given.folder, Path(folder) / "after", dict.fromkeys(faults, given.each), given.seed, given.limit
        )
        after = check(Path(folder) / "after", labels=not given.no_labels, mirrored=True)
    found = named(after)
    found["dark"] |= found["blank"]  # a dark picture without contrast is called blank: it is named all the same
    results = [
        {"fault": fault, "kind": kind, "planted": len(files), "found": len(found[kind] & set(files))}
        for fault, (kind, files) in planted.items()
    ]
    others, at_first = other_alarms(after, planted), other_alarms(before, {})
    for row in results:
        print(f"{row['fault']:<30} {row['kind']:<22} {row['found']:>5} of {row['planted']}")
    for kind in sorted(others.keys() | at_first.keys() | {row["kind"] for row in results}):
        right, other = sum(row["found"] for row in results if row["kind"] == kind), others.get(kind, 0)
        precision = f"{right / (right + other):.0%}" if right else "-"
        print(
            f"{kind:<22} precision {precision:>5}, other alarms {other:>5}, before planting {at_first.get(kind, 0):>5}"
        )
    for share in (0.25, 0.5, 1.0) if WRONG in planted else ():
        print(
            f"{share:>4.0%} of the wrong-labels list, from the top: {_from_the_top(after, planted, share)} planted ones"
        )
    told = {
        "pictures": len(after.album),
        "seconds": after.seconds,
        "planted": results,
        "others": others,
        "before": at_first,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
