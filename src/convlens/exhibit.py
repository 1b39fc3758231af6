"""A run on show: its pictures, its network as it is now or was at an epoch, and the walks through it.

One thread at a time asks the network, whose hooks must not meet. The last walks are kept, because a person looks at the
layers of one picture one after the other.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .arithmetic import softmax
from .attribution import attribute, class_index, require_captum
from .data import Data
from .datasets import get_spec
from .digits import prepare_digit
from .errors import UserError
from .files import sha256_of
from .images import InputSpec, facts, preprocess
from .live import is_trained
from .operating import energy, probabilities_of
from .outcomes import Outcomes, read_outcomes
from .readers import find
from .run import Run
from .snapshots import ReplacedError, Snapshot, kept_epochs, snapshot, stamp, there, untrained
from .splits import Split
from .walking import Off, Walk, filters, layers, ranked, walk

UPLOADS = 4096, 1 << 26  # pictures that are kept of those that were drawn (many a stroke) or dropped, and their bytes
NETWORKS = 1 << 25  # weights that are kept of the newest network and of the last epochs that were asked for, 128 MiB
WALKS = 1 << 26  # numbers of the walks that are kept, about 256 MiB
PIXELS = 25_000_000  # of a picture that is given
DRAWN = ("mnist", "mnist-5k")  # data sets whose images were prepared as digits.py does
FOR, AGAINST = (255, 140, 0), (60, 140, 255)
_Read = TypeVar("_Read")


class Exhibit:
    """A run, finished or not. `builder` is that of `load_model`, `data_dir` where its data lies, if elsewhere."""

    def __init__(self, run: Run, builder: str | None = None, data_dir: Path | None = None) -> None:
        self.run, self.builder, self.data_dir = run, builder, data_dir
        self.recipe, self.seen = run.recipe, run.environment["data"]
        model, manifest = untrained(run, builder)
        self.spec, self.classes = manifest.input, manifest.classes
        self._made_of = manifest.builder, manifest.args, manifest.input, manifest.classes
        self.uploads = max(min(UPLOADS[0], UPLOADS[1] // (self.spec.channels * math.prod(self.spec.size))), 8)
        self.layers, self.parameters = layers(model, self.spec), sum(each.numel() for each in model.parameters())
        self._networks: OrderedDict[str, Snapshot] = OrderedDict()
        self._walks: OrderedDict[tuple[str, str, str], Walk] = OrderedDict()
        self._uploads: OrderedDict[str, Tensor] = OrderedDict()
        self._heated: tuple[str, nn.Module] = "", model
        self._read: dict[str, tuple[int, Any]] = {}  # of the run's files: when they were written, and what is in them
        self._unread = ""  # why the data could not be loaded
        self.asking = threading.RLock()
        self._loading, self._keeping, self._heating = threading.Lock(), threading.Lock(), threading.Lock()

    def about(self) -> dict[str, Any]:
        """The run as it stands, and the layers of its network in the order in which they run."""
        there(self.run)
        run, finished = self.run, self.run.finished
        calibration = self.network().manifest.calibration if finished else None
        missing = self.missing() or self._unread
        return {
            "name": run.path.name,
            "identity": self.identity,
            "data": not missing,
            "why": missing,
            "dataset": self.seen["name"],
            "model": self.recipe.model.name,
            "recipe": self.recipe.name,
            "classes": [*self.classes],
            "input": {"size": [*self.spec.size], "channels": self.spec.channels, "resize": self.spec.resize},
            "digits": self.seen["name"] in DRAWN,
            "temperature": calibration.temperature if calibration else 1.0,
            "threshold": self.threshold(self.network()) if finished else None,
            "usual": calibration.usual if calibration else None,
            "parameters": self.parameters,
            "accuracy": run.metrics["test"]["accuracy"] if finished else None,
            "finished": finished,
            "training": is_trained(run),
            "epoch": run.metrics["epoch"] if finished else None,
            "epochs": self.recipe.epochs,
            "kept": kept_epochs(run),
            "history": run.history,
            "splits": {name: count for name, count in self.seen["images"].items() if count},
            "layers": self.layers,
        }

    @property
    def identity(self) -> str:
        """What tells this run's data and, once it is finished, its network from all others: the first 12 digits of the
        sha256 of both, whatever the folder is called."""
        data = self.seen["sha256"][:12]
        whole = self._of("model.safetensors", sha256_of) if self.run.finished else ""
        return f"{data}-{whole[:12] or self.run.path.name}"

    def _of(self, name: str, read: Callable[[Path], _Read]) -> _Read:
        """What `read` makes of a file of the run; anew only where another was written since."""
        path = self.run.path / name
        written = path.stat().st_mtime_ns if path.exists() else 0
        if self._read.get(name, (None,))[0] != written:
            self._read[name] = written, read(path)
        return self._read[name][1]

    def network(self, epoch: int | None = None, at: str = "") -> Snapshot:
        """As it is now, read anew where the training has saved another; or of an epoch; or the very one whose stamp
        is `at`. Raises ReplacedError where that one is gone, and UserError, see `snapshot`."""
        with self.asking:
            name = stamp(self.run, epoch)
            if at and at != name:
                if at not in self._networks:
                    raise ReplacedError(
                        "the training has gone on and saved another network since: ask for its answer anew"
                    )
                name = at
            if not name or name not in self._networks:
                found = snapshot(self.run, epoch, self.builder)
                of = found.manifest
                if (of.builder, of.args, of.input, of.classes) != self._made_of:
                    raise UserError(f"{self.run.path} holds another kind of network by now: start convlens open anew")
                self._networks[found.stamp] = found
                while len(self._networks) > 2 and len(self._networks) * self.parameters > NETWORKS:
                    self._networks.popitem(last=False)
                return found
            self._networks.move_to_end(name)
            return self._networks[name]

    def copied(self, network: Snapshot) -> nn.Module:
        """A network of one's own, which needs no lock."""
        with self.asking:  # no hooks are on it now
            return copy.deepcopy(network.model)

    def threshold(self, network: Snapshot) -> float | None:
        """The probability from which on 99 % of the validation answers were right, where it is known."""
        try:
            return network.manifest.calibration.reaching(0.99).threshold
        except UserError:
            return None

    def warm(self) -> None:
        """Have ready what takes long the first time: the data, and what heat maps need."""
        with suppress(UserError):
            self.data()
        with suppress(UserError):
            require_captum()

    # Pictures

    def missing(self) -> str:
        """Why there are no pictures of the run's data, where it does not lie on this disk; nothing is read for that."""
        folder = self.seen.get("folder")
        if folder and not Path(self.data_dir or folder).exists():
            return f"the pictures are not at {self.data_dir or folder} any more; --data-dir says where they are"
        spec = None if folder else get_spec(self.seen["name"])
        if spec and spec.kind != "sample" and find(spec, self.data_dir or self.seen["data_dir"]) is None:
            return f"the data set {spec.name} is not on this disk; --data-dir says where it is"
        return ""

    def data(self) -> Data:
        """The run's data, loaded once; nothing is downloaded for it. Raises UserError where it is not there."""
        with self._loading:
            try:
                found, self._unread = self._data, ""
            except UserError as error:
                self._unread = str(error)
                raise
            return found

    @cached_property
    def _data(self) -> Data:
        if missing := self.missing():
            raise UserError(missing)
        return self.run.load_data(self.data_dir)

    def split(self, name: str) -> Split:
        """Raises UserError where there is none of that name."""
        found = getattr(self.data(), name) if name in ("train", "val", "test") else None
        if found is None:
            there = ", ".join(name for name, count in self.seen["images"].items() if count)
            raise UserError(f"there is no split {name[:40]!r}: there are {there}")
        return found

    @property
    def outcomes(self) -> Outcomes:
        """What the run said to its test set. Raises UserError where it is not finished."""
        _ = self.run.metrics
        return self._of("predictions.csv", lambda path: read_outcomes(path, self.classes))

    def class_number(self, given: str) -> int:
        """A class by its name or number. Raises UserError where there is none."""
        return class_index(given, len(self.classes), self.classes)

    def add(self, picture: bytes, digit: bool = False) -> dict[str, Any]:
        """Keep a picture that was drawn or dropped: its ref, and what the network sees of it. With `digit` it gets
        MNIST's preparation first. Raises UserError where it is no picture, or without ink."""
        found = facts(picture)
        if digit:
            whole = preprocess(picture, InputSpec(found.size, 1), PIXELS)[0]
            pixels = preprocess(Image.fromarray(prepare_digit(whole)), self.spec)
        else:
            pixels = preprocess(picture, self.spec, PIXELS)
        ref = f"up:{hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}"
        with self._keeping:
            self._uploads[ref] = torch.from_numpy(pixels)
            self._uploads.move_to_end(ref)
            while len(self._uploads) > self.uploads:
                self._uploads.popitem(last=False)
        given = {"width": found.size[1], "height": found.size[0], "format": found.format}
        return {"ref": ref, "seen": f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode()}", "given": given}

    def image(self, ref: str) -> tuple[Tensor, int | None]:
        """uint8 (C, H, W), and its class where it is known. Raises UserError where there is none of that name."""
        kind, _, place = ref.partition(":")
        if kind == "up":
            with self._keeping:
                if ref not in self._uploads:
                    raise UserError(
                        f"the picture is not kept any more, the last {self.uploads:,} are: give it once more"
                    )
                self._uploads.move_to_end(ref)
                return self._uploads[ref], None
        if not place.isdecimal():
            raise UserError(f"an image is named like test:0, not {ref[:40]!r}")
        split, at = self.split(kind), int(place[:18])
        if at >= len(split):
            raise UserError(f"{kind}:{at}: the {kind} split has {len(split):,} images, numbered from 0")
        return split.at(slice(at, at + 1))[0].cpu(), int(split.labels[at])

    def picture(self, ref: str) -> bytes:
        """A PNG of the very pixels."""
        return _png(self.image(ref)[0].numpy())

    # What the network makes of them

    def walk(self, ref: str, off: Off, epoch: int | None = None, at: str = "") -> Walk:
        """The picture's way through the network, from among the last ones or anew. For `at` see `network`."""
        return self._walked(self.network(epoch, at), ref, off)

    def _walked(self, network: Snapshot, ref: str, off: Off) -> Walk:
        image = self.image(ref)[0]
        with self.asking:
            key = network.stamp, ref, str(sorted(off.items()))
            if key not in self._walks:
                self._walks[key] = walk(network.model, image, off)
            self._walks.move_to_end(key)
            while len(self._walks) > 1 and sum(each.numbers for each in self._walks.values()) > WALKS:
                self._walks.popitem(last=False)
            return self._walks[key]

    def look(self, ref: str, off: Off, brief: bool = False, epoch: int | None = None, at: str = "") -> dict[str, Any]:
        """The answer with its arithmetic and, unless `brief`, of every layer which channels move it most; and the
        stamp of the network that gave it."""
        network, (image, label) = self.network(epoch, at), self.image(ref)
        found = None if brief and not off else self._walked(network, ref, off)
        if found is None:
            with self.asking, torch.inference_mode():
                logits = network.model(image[None])[0].float()
        else:
            logits = found.anatomy.logits
        calibration = network.manifest.calibration
        probabilities = probabilities_of(logits[None].numpy(), calibration.temperature)[0]
        if not np.isfinite(probabilities).all():
            raise UserError("the network's answer to this picture is not finite")
        best, strength = int(probabilities.argmax()), float(energy(logits[None].numpy(), calibration.temperature)[0])
        threshold = self.threshold(network)
        return {
            "stamp": network.stamp,
            "temperature": calibration.temperature,
            "calibrated": not calibration.note,
            "probabilities": probabilities.tolist(),
            "logits": logits.tolist(),
            "softmax": softmax(logits, calibration.temperature).tolist(),
            "label": label,
            "predicted": best,
            "energy": strength,
            "unusual": calibration.unusual(strength),
            "unknown": threshold is not None and float(probabilities[best]) < threshold,
            "layers": [] if brief or found is None else ranked(found),
        }

    def filters(self, layer: str, channel: int | None = None, epoch: int | None = None) -> dict[str, Any]:
        """See `walking.filters`."""
        return filters(self.network(epoch).model, layer, channel)

    def heat(self, ref: str, method: str = "grad-cam", target: str = "", epoch: int | None = None) -> bytes:
        """A PNG of the image's size, transparent where nothing speaks for the class: orange for it, blue against it.
        Computed on a copy of the network: who draws need not wait for it."""
        image, chosen = self.image(ref)[0], self.class_number(target) if target else None
        network = self.network(epoch)
        with self._heating:
            if self._heated[0] != network.stamp:
                self._heated = network.stamp, self.copied(network)
            heat = attribute(self._heated[1], image[None], method, chosen)[0].heat.numpy()
        share = heat / (np.abs(heat).max() or 1)
        rgba = np.concatenate(
            [np.where(share < 0, *np.reshape([AGAINST, FOR], (2, 3, 1, 1))), np.abs(share)[None] * 255]
        )
        return _png(rgba.round().astype(np.uint8))


def _png(pixels: np.ndarray) -> bytes:
    """uint8 (C, H, W) -> a PNG of 1, 3 or 4 channels."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, "PNG", compress_level=1)
    return file.getvalue()
