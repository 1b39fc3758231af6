"""The peer `fastai`: a folder of PNG files through ImageDataLoaders, a small net of ConvLayers, fit_one_cycle.

As in fastai's MNIST tutorials: five ConvLayers of stride 2 with batch norm, batches of 512, one cycle of Adam up to a
learning rate of 0.06, and fastai's own number of worker processes. The folder of PNG files is written first, once, to
benchmarks/peers/.cache; that is counted nowhere.

    python benchmarks/peers/with_fastai.py --data-dir DIR --data mnist --seed 0 --epochs 5
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

from protocol import Peer

# isort: split
import numpy as np
import torch
from arrays import load
from PIL import Image

try:
    import torchvision
except RuntimeError:  # its compiled half does not fit this torch; fastai needs none of it, the names are enough
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        sys.exit(f"fastai needs a torchvision that fits torch {torch.__version__}, and this one does not: {error}")

from fastai.vision.all import (
    Callback,
    CancelFitException,
    ConvLayer,
    CrossEntropyLossFlat,
    Flatten,
    ImageDataLoaders,
    Learner,
    Normalize,
    PILImage,
    PILImageBW,
    Recorder,
    accuracy,
    default_device,
    set_seed,
)
from torch import nn

BATCH = 512
LEARNING_RATE = 0.06
CACHE = Path(__file__).parent / ".cache"
PICTURES = {"mnist": PILImageBW, "cifar10": PILImage}
WIDTHS = {"mnist": (1, 8, 16, 32, 64), "cifar10": (3, 32, 64, 128, 256)}


def write_pictures(folder: Path, data_dir: Path, data: str, limit: int | None) -> None:
    """Files train/LABEL/*.png and test/LABEL/*.png in `folder`, which appears under its name complete."""
    arrays = load(data_dir, data, limit)
    CACHE.mkdir(exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=CACHE))
    try:
        for part, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
            for label in np.unique(labels):
                (unfinished / part / str(label)).mkdir(parents=True)
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                Image.fromarray(image).save(unfinished / part / str(label) / f"{i:05}.png")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


def small_net(widths: tuple[int, ...]) -> nn.Module:
    """A ConvLayer of stride 2 for each width, the first 5 x 5, and one more for the ten classes."""
    blocks = [ConvLayer(widths[i], widths[i + 1], ks=5 if i == 0 else 3, stride=2) for i in range(len(widths) - 1)]
    return nn.Sequential(*blocks, ConvLayer(widths[-1], 10, stride=2, norm_type=None, act_cls=None), Flatten())


class Clock(Callback):
    """Times an epoch's training and its validation, which is the test set."""

    order = Recorder.order + 1  # that it finds the metrics of the epoch

    def __init__(self, peer: Peer, images: int) -> None:
        self.peer, self.images = peer, images

    def before_train(self) -> None:
        self.start = time.perf_counter()

    def after_train(self) -> None:
        self.trained = time.perf_counter()

    def after_batch(self) -> None:
        if self.training and self.iter == self.n_iter // 2 and not self.peer.workers_bytes:
            self.peer.weigh_workers()

    def after_epoch(self) -> None:
        evaluated = time.perf_counter()
        test_accuracy = float(self.recorder.values[-1][-1])
        if self.peer.epoch(self.trained - self.start, evaluated - self.trained, test_accuracy, self.images):
            raise CancelFitException


def main() -> None:
    peer = Peer("fastai", __doc__)
    options = peer.options
    default_device(use=False)
    set_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = CACHE / (f"{options.data}-{options.limit}" if options.limit else options.data)
    if not folder.is_dir():  # in a process of its own, so that its memory is not counted either
        writer = Process(target=write_pictures, args=(folder, options.data_dir, options.data, options.limit))
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(f"the folder of PNG files {folder} could not be written")

    start = time.perf_counter()
    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="test",
        bs=BATCH,
        img_cls=PICTURES[options.data],
        batch_tfms=Normalize(),
    )
    peer.seconds["data"] = time.perf_counter() - start

    learner = Learner(loaders, small_net(WIDTHS[options.data]), CrossEntropyLossFlat(), metrics=accuracy)
    learner.add_cb(Clock(peer, loaders.train.n // BATCH * BATCH))
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(options.epochs, LEARNING_RATE)
    peer.end(torch.get_num_threads(), "fastai", "torch", "torchvision", "numpy", "pillow")


if __name__ == "__main__":
    main()
