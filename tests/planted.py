"""Images on whose class one small bright object at a random place decides, and a network that has learned them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens.models.normalize import Normalize

SIDE, OBJECT = 24, 6


def planted(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 (N, 1, 24, 24) of dark noise with a square of bright stripes, upright or lying; their classes (N,),
    0 or 1; and where the square is, bool (N, 24, 24)."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 61, (count, 1, SIDE, SIDE), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count,), generator=g)
    places = torch.randint(0, SIDE - OBJECT + 1, (count, 2), generator=g).tolist()
    upright = ((torch.arange(OBJECT) % 2) * 200 + 40).byte().expand(OBJECT, OBJECT)
    boxes = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for image, box, (y, x), label in zip(images, boxes, places, labels.tolist(), strict=True):
        image[0, y : y + OBJECT, x : x + OBJECT] = upright.T if label else upright
        box[y : y + OBJECT, x : x + OBJECT] = True
    return images, labels, boxes


def network(seed: int = 0) -> nn.Sequential:
    """Three convolutions, not trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            Normalize((0.15,), (0.15,)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 2),
        )


def trained_network() -> nn.Sequential:
    """In evaluation mode; it knows all of another thousand such images."""
    model = network()
    images, labels, _ = planted(512, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(6):
        for part in torch.arange(512).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()
