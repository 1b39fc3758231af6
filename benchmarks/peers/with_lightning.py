"""The peer `lightning`: a LightningModule, a Trainer and DataLoaders, with Lightning's own logging and checkpoints.

Network, pictures and settings are those of the peer `article`; the test set stands in for the validation set. The
loaders have as many workers as Lightning suggests, one less than there are cores, but one.

    python benchmarks/peers/with_lightning.py --data-dir DIR --data mnist --seed 0 --epochs 5
"""

from __future__ import annotations

import logging
import tempfile
import time

from protocol import Peer

# isort: split
import lightning as L
import torch
from arrays import load
from lightning.fabric.utilities.data import suggested_max_num_workers
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from with_article import BATCH, LEARNING_RATE, NETWORKS, Pictures


class Classifier(L.LightningModule):
    """A network with its loss, its metric and its optimizer."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:  # noqa: ARG002
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:  # noqa: ARG002
        images, labels = batch
        scores = self(images)
        self.accuracy(scores, labels)
        self.log("val_loss", F.cross_entropy(scores, labels))
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


class Clock(L.Callback):
    """Times an epoch's training and the validation that ends it."""

    def __init__(self, peer: Peer, images: int) -> None:
        self.peer, self.images = peer, images

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        self.trained = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:  # noqa: ARG002
        if trainer.sanity_checking:
            return
        evaluated = time.perf_counter()
        self.peer.weigh_workers()
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        if self.peer.epoch(self.trained - self.start, evaluated - self.trained, accuracy, self.images):
            trainer.should_stop = True


def main() -> None:
    peer = Peer("lightning", __doc__)
    options = peer.options
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(options.seed, verbose=False)
    if options.threads:
        torch.set_num_threads(options.threads)

    start = time.perf_counter()
    arrays = load(options.data_dir, options.data, options.limit)
    train_set = Pictures(arrays.train_images, arrays.train_labels, options.data)
    test_set = Pictures(arrays.test_images, arrays.test_labels, options.data)
    workers = suggested_max_num_workers(local_world_size=1)
    same = {"batch_size": BATCH[options.data], "num_workers": workers, "persistent_workers": True}
    train_loader, test_loader = DataLoader(train_set, shuffle=True, **same), DataLoader(test_set, **same)
    peer.seconds["data"] = time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=options.epochs,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=[Clock(peer, len(train_set))],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(NETWORKS[options.data](), LEARNING_RATE[options.data]), train_loader, test_loader)
    peer.end(torch.get_num_threads(), "lightning", "torchmetrics", "torch", "numpy", "pillow")


if __name__ == "__main__":
    main()
