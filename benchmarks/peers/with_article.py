"""The peer `article`: PyTorch alone, as its tutorials write it.

A Dataset opens every picture with PIL and makes a float tensor of it, a DataLoader shuffles, the loop calls
`loss.item()` in every step, and the test set is looked at after every epoch. The networks and their settings are those
of ConvLens' recipes cnn-mnist and cnn-cifar10, written down once more.

    python benchmarks/peers/with_article.py --data-dir DIR --data mnist --seed 0 --epochs 5
"""

from __future__ import annotations

import time

from protocol import Peer

# isort: split
import numpy as np
import torch
from arrays import load
from PIL import Image
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

BATCH = {"mnist": 64, "cifar10": 32}
LEARNING_RATE = {"mnist": 0.01, "cifar10": 0.001}


class ToTensor:
    """A PIL picture as a float tensor (C, H, W) from 0 to 1."""

    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture))
        pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
        return pixels.float().div(255)


class Normalize:
    """Every channel less `mean`, over `std`."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, image: Tensor) -> Tensor:
        return image.sub(self.mean).div_(self.std)


TRANSFORMS = {"mnist": [ToTensor(), Normalize(0.5, 0.5)], "cifar10": [ToTensor()]}


class Pictures(Dataset[tuple[Tensor, int]]):
    """One picture at a time, through PIL and the transforms of its data set."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, data: str) -> None:
        self.images, self.labels, self.transforms = images, labels.tolist(), TRANSFORMS[data]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = Image.fromarray(self.images[index])
        for transform in self.transforms:
            item = transform(item)
        return item, self.labels[index]


class MnistNet(nn.Module):
    """Two convolutions with max pooling, two linear layers: 421,642 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class CifarNet(nn.Module):
    """Two convolutions with dropout between, max pooling, two linear layers with dropout: 4,210,090 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.dropout1 = nn.Dropout(0.3)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(32 * 16 * 16, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout1(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.dropout2(F.relu(self.fc1(torch.flatten(x, 1))))
        return self.fc2(x)


NETWORKS = {"mnist": MnistNet, "cifar10": CifarNet}


def train(model: nn.Module, loader: DataLoader, criterion: nn.Module, optimizer: optim.Optimizer) -> float:
    """One epoch; its mean loss."""
    model.train()
    running_loss = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss / len(loader)


def test(model: nn.Module, loader: DataLoader) -> float:
    """The share of right answers."""
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            predicted = model(images).argmax(dim=1)
            total += labels.size(0)
            correct += (predicted == labels).sum().item()
    return correct / total


def main() -> None:
    peer = Peer("article", __doc__)
    options = peer.options
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)

    start = time.perf_counter()
    arrays = load(options.data_dir, options.data, options.limit)
    train_set = Pictures(arrays.train_images, arrays.train_labels, options.data)
    test_set = Pictures(arrays.test_images, arrays.test_labels, options.data)
    train_loader = DataLoader(train_set, batch_size=BATCH[options.data], shuffle=True)
    test_loader = DataLoader(test_set, batch_size=BATCH[options.data])
    peer.seconds["data"] = time.perf_counter() - start

    model = NETWORKS[options.data]()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=LEARNING_RATE[options.data], momentum=0.9)
    for _ in range(options.epochs):
        start = time.perf_counter()
        train(model, train_loader, criterion, optimizer)
        trained = time.perf_counter()
        accuracy = test(model, test_loader)
        if peer.epoch(trained - start, time.perf_counter() - trained, accuracy, len(train_set)):
            break
    peer.end(torch.get_num_threads(), "torch", "numpy", "pillow")


if __name__ == "__main__":
    main()
