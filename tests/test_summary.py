"""The layer table, held against torch's own count, real outputs, and a measurement of what an output depends on."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convlens import MODELS, build, capture, summarize
from convlens.models.normalize import Normalize


def shape_of(name: str) -> tuple[int, tuple[int, int]]:
    return (1, (28, 28)) if name in ("lenet5", "cnn-mnist", "deepcnn-mnist") else (3, (32, 40))


@pytest.mark.parametrize("name", MODELS)
def test_totals_and_sizes_of_every_model(name: str) -> None:
    channels, size = shape_of(name)
    model = build(name, channels=channels, classes=10, size=size)
    summary = summarize(model, channels, size)
    image = torch.zeros(1, channels, *size, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    assert summary.macs * 2 == counter.get_total_flops()
    assert summary.macs == sum(row.macs for row in summary.rows)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert sum({row.name: row.parameters for row in summary.rows}.values()) == summary.parameters
    assert summary.input == (channels, *size)

    seen: list[tuple[str, tuple[int, ...]]] = []
    handles = [
        layer.register_forward_hook(lambda _m, _x, out, n=key: seen.append((n, tuple(out.shape[1:]))))
        for key, layer in model.named_modules()
        if key and not list(layer.children())
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    assert [(row.name, row.output) for row in summary.rows] == seen
    for row in summary.rows:
        if row.formula:
            assert row.formula.split("  ")[0].endswith(f" = {row.output[1]}"), row
    assert json.loads(json.dumps(summary.to_dict()))["rows"][0]["kind"] == "Normalize"


def positive(model: nn.Module) -> nn.Module:
    """The same windows, with which every input pixel in reach changes the output: weights above zero, no maximum."""
    model = copy.deepcopy(model).double().eval()
    for parameter in model.parameters():
        parameter.data.abs_().add_(0.01)
    for layer in list(model.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(layer, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    return model


def measured(model: nn.Module, layers: list[str], channels: int, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Of every layer: on how many rows of the image its middle output depends, and how far on the next one's begin."""
    model = positive(model)
    pixels = torch.rand(1, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    pixels.requires_grad_()
    found = {}
    with capture(model, layers) as outputs:
        model(pixels)
    for name, out in outputs.items():
        rows = []
        for y in (out.shape[2] // 2, out.shape[2] // 2 + 1):
            (grad,) = torch.autograd.grad(out[0, :, y, out.shape[3] // 2].sum(), pixels, retain_graph=True)
            rows.append(grad.abs().amax((0, 1, 3)).nonzero().flatten())
        assert 0 < rows[0][0] < rows[0][-1] + 1 < size[0], f"the image is too small to measure {name}"
        found[name] = (int(rows[0][-1] - rows[0][0]) + 1, int(rows[1][0] - rows[0][0]))
    return found


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("lenet5", {}, (48, 20)),
        ("lenet5", {"pooling": "max", "norm": "local-response"}, (48, 20)),
        ("vgg", {"widths": [4, 6, 8]}, (80, 16)),
        ("resnet20", {}, (128, 8)),
        ("resnet9", {"width": 2}, (128, 16)),
    ],
)
def test_receptive_fields_against_gradients(name: str, args: dict[str, object], size: tuple[int, int]) -> None:
    model = build(name, channels=1, classes=10, size=size, args=args)
    table = {row.name: row for row in summarize(model, 1, size).rows}
    spatial = [key for key, row in table.items() if len(row.output) == 3 and row.receptive_field is not None]
    layers = [key for key in spatial if table[key].kind not in ("BatchNorm2d", "Normalize", "ReLU") or "relu" in key]
    assert len(layers) >= 4
    expected = measured(model, layers, 1, size)
    assert {key: (table[key].receptive_field, table[key].jump) for key in layers} == expected


def test_numbers_of_lenet5_by_hand() -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    rows = {row.name.removeprefix("network."): row for row in summarize(model, 1, (28, 28)).rows}
    first, pool, second = rows["features.0"], rows["features.2"], rows["features.3"]
    assert (first.kind, first.kernel, first.stride, first.padding) == ("Conv2d", "5", "1", "2")
    assert (first.parameters, first.macs) == (156, 28 * 28 * 6 * 25)
    assert first.formula == "floor((28 + 2·2 - 5) / 1) + 1 = 28"
    assert (pool.parameters, pool.macs, pool.receptive_field, pool.jump) == (0, 0, 6, 2)
    assert (second.macs, second.receptive_field, second.jump) == (10 * 10 * 16 * 25 * 6, 14, 2)
    flat = rows["classifier.0"]
    assert (flat.output, flat.receptive_field, flat.jump, flat.formula) == ((400,), None, None, "")
    assert rows["classifier.5"].receptive_field is None


@pytest.mark.parametrize("name", MODELS)
def test_no_field_after_all_of_the_image_was_gathered(name: str) -> None:
    channels, size = shape_of(name)
    rows = summarize(build(name, channels=channels, classes=10, size=size), channels, size).rows
    gathered = next(i for i, row in enumerate(rows) if row.kind in ("Flatten", "Linear") or "Adaptive" in row.kind)
    assert all(row.receptive_field is not None and row.jump is not None for row in rows[:gathered])
    assert all(row.receptive_field is None and row.jump is None for row in rows[gathered:])


class Tutorial(nn.Module):
    """Poolings as functions, a shortcut of every third row, odd kernels: what a user's own network may do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, (5, 3), padding=(2, 1), dilation=1)
        self.second = nn.Conv2d(2, 2, (3, 1), stride=(3, 1), padding=(1, 0))
        self.spread = nn.Conv2d(2, 2, 3, dilation=2, padding="same")
        self.mark = nn.Identity()
        self.end = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.first(x)), (2, 1))
        x = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        x = self.second(x) + x[:, :, ::3]
        x = x[:, :, ::2]  # 17 rows become 9
        x = self.mark(self.spread(x))
        return self.end(x.mean((2, 3)))


def test_functions_and_sides_of_a_users_own_network() -> None:
    model, size = nn.Sequential(Normalize((0.0,), (1.0,)), Tutorial()), (98, 12)
    table = {row.name: row for row in summarize(model, 1, size).rows}
    layers = ["1.first", "1.second", "1.spread", "1.mark"]
    assert {k: (table[k].receptive_field, table[k].jump) for k in layers} == measured(model, layers, 1, size)
    assert (table["1.first"].kernel, table["1.first"].padding) == ("5x3", "2x1")
    assert (table["1.spread"].kernel, table["1.spread"].padding) == ("3", "2")
    assert table["1.end"].receptive_field is None


def test_an_operation_that_is_not_followed_is_not_guessed() -> None:
    model = nn.Sequential(
        Normalize((0.0,), (1.0,)), nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3)
    )
    fields = [row.receptive_field for row in summarize(model, 1, (12, 12)).rows]
    assert fields == [1, 3, None, None]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = build("resnet20", channels=1, classes=3, size=(16, 16)).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summarize(model, 1, (16, 16))
    assert model.training is training
    assert all(layer.training is training for layer in model.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = build("lenet5", channels=1, classes=3, size=(28, 28)).train()
    with pytest.raises(RuntimeError):
        summarize(model, 1, (32, 32))  # its linear layer is made for 28 x 28
    assert model.training
    assert not any(layer._forward_hooks for layer in model.modules())
