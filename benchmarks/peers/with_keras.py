"""The peer `keras`: Keras 3 on TensorFlow, with its own small networks, compile() and fit() on arrays.

MNIST has the network and the settings of Keras' "Simple MNIST convnet" (Adam, batches of 128, a tenth of the training
images for validation), CIFAR-10 the three convolutions of TensorFlow's tutorial on convolutional networks (Adam,
batches of 32). `compile` is the first step, in which TensorFlow traces and compiles; it is no part of `train`.
`evaluate` is the validation and the test set.

    python benchmarks/peers/with_keras.py --data-dir DIR --data mnist --seed 0 --epochs 15
"""

from __future__ import annotations

import os
import time

from protocol import Peer

# isort: split
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from arrays import Arrays, load
from keras import layers

BATCH = {"mnist": 128, "cifar10": 32}
VALIDATION_SPLIT = {"mnist": 0.1, "cifar10": 0.0}


def mnist_net() -> keras.Model:
    """Two convolutions with max pooling, dropout and one dense layer: 34,826 parameters."""
    return keras.Sequential(
        [
            keras.Input(shape=(28, 28, 1)),
            layers.Conv2D(32, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(64, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def cifar10_net() -> keras.Model:
    """Three convolutions, max pooling after two of them, two dense layers: 122,570 parameters."""
    return keras.Sequential(
        [
            keras.Input(shape=(32, 32, 3)),
            layers.Conv2D(32, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def prepare(arrays: Arrays) -> tuple[np.ndarray, ...]:
    """Float images from 0 to 1 with a channel axis, and one-hot labels: x_train, y_train, x_test, y_test."""
    prepared = []
    for images, labels in (arrays[:2], arrays[2:]):
        x = images.astype("float32") / 255
        prepared += [np.expand_dims(x, -1) if x.ndim == 3 else x, keras.utils.to_categorical(labels, 10)]
    return tuple(prepared)


class Clock(keras.callbacks.Callback):
    """Times an epoch's training and its validation, then looks at the test set."""

    def __init__(self, peer: Peer, x_test: np.ndarray, y_test: np.ndarray, images: int) -> None:
        super().__init__()
        self.peer, self.x_test, self.y_test, self.images = peer, x_test, y_test, images
        self.trained: float | None = None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        self.start, self.trained = time.perf_counter(), None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        if batch == 1 and not self.peer.epochs:
            now = time.perf_counter()
            self.peer.seconds["compile"] = now - self.start
            self.start = now

    def on_test_begin(self, logs: dict | None = None) -> None:  # noqa: ARG002
        self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:  # noqa: ARG002
        trained = self.trained or time.perf_counter()
        _, accuracy = self.model.evaluate(self.x_test, self.y_test, verbose=0)
        if self.peer.epoch(trained - self.start, time.perf_counter() - trained, accuracy, self.images):
            self.model.stop_training = True


def main() -> None:
    peer = Peer("keras", __doc__)
    options = peer.options
    keras.utils.set_random_seed(options.seed)
    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)

    start = time.perf_counter()
    x_train, y_train, x_test, y_test = prepare(load(options.data_dir, options.data, options.limit))
    peer.seconds["data"] = time.perf_counter() - start

    split = VALIDATION_SPLIT[options.data]
    model = mnist_net() if options.data == "mnist" else cifar10_net()
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    model.fit(
        x_train,
        y_train,
        batch_size=BATCH[options.data],
        epochs=options.epochs,
        validation_split=split,
        callbacks=[Clock(peer, x_test, y_test, int(len(x_train) * (1 - split)))],
        verbose=0,
    )
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
    peer.end(threads, "keras", "tensorflow-cpu", "numpy")


if __name__ == "__main__":
    main()
