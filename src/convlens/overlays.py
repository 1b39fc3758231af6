"""Explanations as figures. Attributions, all in one style: the image, the heat, the heat laid over the image, and its
scale; and what the network wants to see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from torch import Tensor, nn

from .attribution import Attribution
from .files import make_folder
from .plots import image_grid, new_axes, save
from .splits import Split
from .wishes import Wishes, class_means, maximise

NAMES = {  # of a method, and of what its heat is
    "saliency": ("Saliency", "|gradient| of the {}"),
    "input-x-gradient": ("Input x gradient", "part of the {}"),
    "integrated-gradients": ("Integrated gradients", "part of the {}"),
    "grad-cam": ("Grad-CAM", "weighted maps"),
    "occlusion": ("Occlusion", "fall of the {}"),
}
# Inches: the longer side of a picture, between pictures, for the words above them, for the scale with its numbers
SIDE, GAP, ABOVE, BESIDE = 2.3, 0.1, 0.5, 0.95
HOTTEST = 0.995  # the quantile of |heat| at which the scale ends: a few pixels would leave the rest dark


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a class's name begins no formula
def draw_attributions(
    folder: Path, image: Tensor, found: Sequence[Attribution], classes: Sequence[str], truth: str | None = None
) -> list[Path]:
    """A PNG for each attribution of `image` uint8 (C, H, W), called by its method and classes: in their order."""
    make_folder(folder)
    return [
        save(attributions(image, [one], classes, truth), folder / f"{_file_name(one, classes)}.png") for one in found
    ]


@matplotlib.rc_context({"text.parse_math": False})
def draw_wishes(folder: Path, model: nn.Module, train: Split, classes: Sequence[str]) -> tuple[list[Path], Wishes]:
    """The mean training image of every class, and the image that the network would like best: two PNGs."""
    make_folder(folder)
    channels, height, width = train.store.shape[1:]
    found = maximise(model, (channels, height, width), range(len(classes)))
    means = class_means(train, len(classes)).nan_to_num()
    columns = min(len(classes), 5 if len(classes) <= 10 else 10)
    mean_title = f"The mean training image of every class ({len(train):,} in all)"
    drawn = [
        save(image_grid(means.round().byte(), classes, title=mean_title, columns=columns), folder / "class-means.png"),
        save(wish_grid(found, classes, columns), folder / "wishes.png"),
    ]
    return drawn, found


def wish_grid(found: Wishes, names: Sequence[str], columns: int = 5) -> Axes:
    """What was climbed to, with what the network said before and after; `names` of the targets, in their order."""
    captions = [
        f"{name}\n{before:.1f} → {after:.1f}"
        for name, before, after in zip(names, found.before.tolist(), found.activations.tolist(), strict=True)
    ]
    what = f"the mean of channels of {found.layer}" if found.layer else "the logit"
    settings = ", ".join(f"{key} {_short(value)}" for key, value in found.settings.items())
    return image_grid(
        found.images, captions, title=f"What maximises {what} (in noise → in this image)\n{settings}", columns=columns
    )


def attributions(image: Tensor, found: Sequence[Attribution], classes: Sequence[str], truth: str | None = None) -> Axes:
    """A row for each attribution of `image` uint8 (C, H, W), with a scale of its own: dark to bright, or where heat is
    of both signs blue and red around zero. `truth` is the name of its true class, where that is known."""
    longer = max(image.shape[1:])
    height, width = (SIDE * side / longer for side in image.shape[1:])
    whole, pitch = 3 * width + 2 * GAP, height + ABOVE
    axes = new_axes(whole + BESIDE, pitch * len(found), left=0.1, below=0.1)
    for i, one in enumerate(reversed(found)):
        top = pitch * i + height
        axes.text(
            0, top + 0.24, title(one, classes) + (f"; in truth {truth}" if truth else ""), fontsize=11, va="bottom"
        )
        axes.text(0, top + 0.06, settings_line(one) + _colours(one, classes), fontsize=8, va="bottom", color="0.35")
        places = [(x, x + width, pitch * i, top) for x in (0, width + GAP, 2 * (width + GAP))]
        _panels(axes, image, one, places)
    axes.set(xlim=(0, whole + BESIDE), ylim=(0, pitch * len(found)), xticks=(), yticks=())
    axes.set_aspect("equal")
    axes.set_axis_off()
    return axes


def title(found: Attribution, classes: Sequence[str]) -> str:
    """`cat (83.1%)`, or `cat (83.1%) and not dog`."""
    against = "" if found.against is None else f" and not {classes[found.against]}"
    return f"{classes[found.target]} ({found.probability:.1%}){against}"


def settings_line(found: Attribution) -> str:
    """`Grad-CAM at network.features.3`, `Occlusion: baseline 33, window 4, stride 2`."""
    shown = [f"{key} {_short(value)}" for key, value in found.settings.items() if key != "relu"]
    where = f" at {found.layer}" if found.layer else ""
    return f"{NAMES[found.method][0]}{where}{': ' * bool(shown)}{', '.join(shown)}"


def _colours(found: Attribution, classes: Sequence[str]) -> str:
    if not found.signed:
        return ""
    this, other = (classes[i] if i is not None else None for i in (found.target, found.against))
    return f"; red speaks for {this}, blue {f'for {other}' if other is not None else 'against it'}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{v:.0f}" for v in value)
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _panels(axes: Axes, image: Tensor, found: Attribution, places: Sequence[tuple[float, float, float, float]]) -> None:
    pixels, heat = image.permute(1, 2, 0).cpu().numpy(), found.heat.numpy()
    gray = pixels.mean(2)
    strength = np.abs(heat)
    end = float(np.quantile(strength, HOTTEST)) or float(strength.max()) or 1.0
    scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -end, "vmax": end}
    if not found.signed:
        scale = {"cmap": "inferno", "vmin": 0, "vmax": end}
    tone: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    axes.imshow(gray if pixels.shape[2] == 1 else pixels, extent=places[0], **tone)
    picture = axes.imshow(heat, extent=places[1], interpolation="nearest", **scale)
    axes.imshow(96 + gray * (255 - 96) / 255, extent=places[2], **tone)  # lighter: black would swallow the colours
    axes.imshow(heat, extent=places[2], interpolation="nearest", alpha=np.clip(strength / end, 0, 1) * 0.85, **scale)
    _, right, bottom, top = places[2]
    beside = axes.inset_axes((right + GAP, bottom, 0.13, top - bottom), transform=axes.transData)
    cut = strength.max() > end
    numbers = ScalarFormatter()
    numbers.set_powerlimits((-2, 3))
    extend = ("both" if found.signed else "max") if cut else "neither"
    bar = axes.figure.colorbar(picture, cax=beside, extend=extend, ticks=MaxNLocator(4), format=numbers)
    score = "logit" if found.against is None else "difference of logits"
    bar.set_label(NAMES[found.method][1].format(score), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)


def _file_name(found: Attribution, classes: Sequence[str]) -> str:
    names = [classes[i] for i in (found.target, found.against) if i is not None]
    return "-".join([found.method, "-not-".join(re.sub(r"[^\w-]+", "_", name)[:40] for name in names)])
