"""Where the network's own code adds, joins or multiplies: against the numbers themselves, and counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import build
from convlens.anatomy import dissect
from convlens.joining import Join, Part, joins

OPERATIONS = {"add": sum, "multiply": math.prod, "join": lambda parts: torch.cat([*parts])}


def some_image() -> Tensor:
    return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def told(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Of each join, how and of what; what a step was given is told as >step."""
    found = joins(model.eval(), some_image().float() / 255)
    return {
        name: (join.how, *(">" * (part.side == "input") + part.name for part in join.parts))
        for name, join in found.items()
    }


def conv(into: int = 4, out: int = 4) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet20", 9), ("resnet18", 8), ("resnet9", 2), ("lenet5", 0), ("vgg", 0)]
)
def test_a_residual_network_adds_once_a_block(name: str, blocks: int) -> None:
    model, image = build(name, channels=3, classes=5, size=(16, 16)).eval(), some_image()
    found = joins(model, image)
    assert len(found) == blocks
    assert all(join.how == "add" and len(join.parts) == 2 for join in found.values())
    steps = {step.name: step for step in dissect(model, image).steps}
    for step, join in found.items():
        made = [steps[part.name].output for part in join.parts]
        if made[0].shape == made[1].shape:  # else every second pixel of the shortcut, and maps of zeros
            torch.testing.assert_close(steps[step].input, made[0] + made[1])
    assert model.training is False
    assert not any(layer._forward_hooks for layer in model.modules())


class Mixed(nn.Module):
    """A gate, maps side by side, a sum in place, a sum of three, one that two layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = conv(3), nn.ReLU(inplace=True)
        self.squeeze, self.gate = nn.AdaptiveAvgPool2d(1), nn.Sigmoid()
        self.left, self.right, self.third = conv(), conv(), conv()
        self.wide, self.after, self.beside = conv(8), conv(), conv()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x * self.gate(self.squeeze(x)).expand_as(x)
        x = self.left(x)
        x = self.wide(torch.cat([x, self.right(x)], 1))
        out = self.third(x)
        out += x
        out = F.relu(out + torch.zeros_like(x)) * 2
        return self.head(torch.cat([self.after(out), self.beside(out)], 1).mean((2, 3)))


def test_what_is_multiplied_joined_and_added_in_place_is_found() -> None:
    assert told(Mixed()) == {
        "left": ("multiply", "act", "gate"),
        "wide": ("join", "left", "right"),
        "F.relu": ("add", "third", "wide"),
        "F.mean": ("join", "after", "beside"),
    }
    model, image = Mixed().eval(), some_image().float() / 255
    steps = {step.name: step for step in dissect(model, image).steps}
    for name in ("left", "wide"):
        join = joins(model, image)[name]
        made = (steps[part.name].output for part in join.parts)
        torch.testing.assert_close(steps[name].input, OPERATIONS[join.how](made))


class Stream(nn.Module):
    """A stream that blocks add to and that is normalised before each reads it, as in later residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms, self.blocks = conv(3), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3)), conv()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = x + self.blocks(norm(x).relu())
        return (x + 1).mean((2, 3))


def test_a_sum_that_goes_on_is_named_by_the_layer_that_read_it_first() -> None:
    """Not by all that was ever added to it, which would be a shortcut from every block to every later one."""
    assert told(Stream()) == {
        "norms.1": ("add", "stem", "blocks"),
        "norms.2": ("add", ">norms.1", "blocks#2"),
        "F.mean": ("add", ">norms.2", "blocks#3"),
    }


def test_a_sum_that_no_layer_reads_is_one_with_the_next() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = conv(3), conv(3), conv(3), conv()

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.a(x) + self.b(x) + self.c(x))

    assert joins(Three(), some_image().float()) == {"d": Join("add", (Part("a"), Part("b"), Part("c")))}
