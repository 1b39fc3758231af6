"""The layer table, held against torch's own count, real outputs, and a measurement of what an output depends on."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

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
    assert sum(row.parameters for row in summary.rows) == summary.parameters
    assert summary.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert summary.weight_bytes == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert summary.activation_bytes == sum(row.activation_bytes for row in summary.rows)
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
    assert [(row.name, row.output) for row in summary.rows if not row.kind.endswith("()")] == seen
    for row in summary.rows:
        for text, pixels in ((row.formula, row.output[1:2]), (row.formula_width, row.output[2:])):
            if text:
                assert text.split("  ")[0].endswith(f" = {pixels[0]}"), row
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


def measured(
    model: nn.Module, layers: list[str], channels: int, size: tuple[int, int], side: int = 0
) -> dict[str, tuple[int, int]]:
    """Of every layer: on how many rows (side 0) or columns (1) of the image its middle output depends, and how far on
    the next one's begin."""
    model = positive(model)
    pixels = torch.rand(1, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    pixels.requires_grad_()
    found = {}
    with capture(model, layers) as outputs:
        model(pixels)
    for name, out in outputs.items():
        rows = []
        for next_one in (0, 1):
            y, x = (n // 2 + next_one * (side == i) for i, n in enumerate(out.shape[2:]))
            (grad,) = torch.autograd.grad(out[0, :, y, x].sum(), pixels, retain_graph=True)
            rows.append(grad.abs().amax((0, 1, 3 - side)).nonzero().flatten())
        assert 0 < rows[0][0] < rows[0][-1] + 1 < size[side], f"the image is too small to measure {name}"
        found[name] = (int(rows[0][-1] - rows[0][0]) + 1, int(rows[1][0] - rows[0][0]))
    return found


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("lenet5", {}, (48, 20)),
        ("lenet5", {"pooling": "max", "norm": "local-response"}, (48, 20)),
        ("cnn-mnist", {}, (40, 28)),
        ("deepcnn-mnist", {}, (60, 28)),
        ("cnn-cifar10", {}, (60, 28)),
        ("vgg", {"widths": [4, 6, 8]}, (80, 16)),
        ("speednet", {"widths": [4, 6, 8]}, (96, 16)),
        ("resnet20", {}, (128, 8)),
        ("resnet9", {"width": 2}, (128, 16)),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_receptive_fields_against_gradients(
    name: str, args: dict[str, object], size: tuple[int, int], side: int
) -> None:
    size = (size[side], size[1 - side])
    model = build(name, channels=1, classes=10, size=size, args=args)
    table = {row.name: row for row in summarize(model, 1, size).rows if not row.kind.endswith("()")}
    spatial = [key for key, row in table.items() if len(row.output) == 3 and row.receptive_field is not None]
    layers = [key for key in spatial if table[key].kind not in ("BatchNorm2d", "Normalize", "ReLU") or "relu" in key]
    layers = [key for key in layers if min(table[key].output[1:]) > 1]  # with one unit there is no next one
    assert len(layers) >= 4
    expected = measured(model, layers, 1, size, side)
    found = {key: (table[key].receptive_field, table[key].jump) for key in layers}
    assert {key: (field[side], jump[side]) for key, (field, jump) in found.items() if field and jump} == expected


def test_numbers_of_lenet5_by_hand() -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    rows = {row.name.removeprefix("network."): row for row in summarize(model, 1, (28, 28)).rows}
    first, pool, second = rows["features.0"], rows["features.2"], rows["features.3"]
    assert (first.kind, first.kernel, first.stride, first.padding) == ("Conv2d", "5", "1", "2")
    assert (first.parameters, first.macs) == (156, 28 * 28 * 6 * 25)
    assert first.formula == "floor((28 + 2·2 - 5) / 1) + 1 = 28"
    assert (pool.parameters, pool.macs, pool.receptive_field, pool.jump) == (0, 0, (6, 6), (2, 2))
    assert (second.macs, second.receptive_field, second.jump) == (10 * 10 * 16 * 25 * 6, (14, 14), (2, 2))
    assert (second.input, second.dilation, second.groups) == ((6, 14, 14), "1", 1)
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
    rows = summarize(model, 1, size).rows
    table = {row.name: row for row in rows}
    layers = ["1.first", "1.second", "1.spread", "1.mark"]
    for side, long in enumerate((size, size[::-1])):
        found = {row.name: row for row in summarize(model, 1, long).rows}
        fields = {k: (found[k].receptive_field[side], found[k].jump[side]) for k in layers}  # type: ignore[index]
        assert fields == measured(model, layers, 1, long, side)
    functions = [(row.kind, row.output) for row in rows if row.kind.endswith("()")]
    assert functions == [
        ("avg_pool2d()", (2, 49, 12)),
        ("getitem()", (2, 17, 12)),
        ("getitem()", (2, 9, 12)),
        ("mean()", (2,)),
    ]
    assert (table["1.first"].kernel, table["1.first"].padding) == ("5x3", "2x1")
    assert (table["1.spread"].kernel, table["1.spread"].padding) == ("3", "2")
    assert table["1.end"].receptive_field is None


class Sums(nn.Module):
    """What a table must not read off the layers: sums in place, crops, chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.first = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 5, padding=2)
        self.third, self.fourth = nn.Conv2d(2, 2, 3, stride=2), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        short = self.point(x)
        short += self.second(self.first(x))
        x, y = short.relu_().chunk(2, 1)
        x = self.third(x[:, :, 2:-2, 2:-2] + y[..., 2:-2, 2:-2])
        return self.fourth(x[:, :, 1::2])


def test_sums_in_place_crops_and_chunks_are_followed() -> None:
    model = nn.Sequential(Normalize((0.0,), (1.0,)), Sums())
    for side, size in enumerate(((60, 24), (24, 60))):
        layers = ["1.first", "1.second", "1.third", "1.fourth"]
        table = {row.name: row for row in summarize(model, 1, size).rows}
        found = {name: (table[name].receptive_field[side], table[name].jump[side]) for name in layers}  # type: ignore[index]
        assert found == measured(model, layers, 1, size, side)


def test_what_moves_numbers_is_not_followed() -> None:
    class Moved(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.after = how, nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros_like(x)
            y[:, :, :3] = x[:, :, 5:8]
            return self.after({"flip": x.flip(2), "softmax": x.softmax(3), "written": y}[self.how])

    for how in ("flip", "softmax", "written"):
        rows = summarize(nn.Sequential(Normalize((0.0,), (1.0,)), Moved(how)), 1, (12, 12)).rows
        assert rows[-1].receptive_field is None


@pytest.mark.parametrize("in_place", [False, True])
def test_the_table_of_a_compiled_model(in_place: bool) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    expected = summarize(model, 1, (28, 28))
    compiled = torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
        compiled = model
    compiled(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert summarize(compiled, 1, (28, 28)) == expected
    torch.compiler.reset()


def test_a_plain_network_without_normalisation() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2))
    assert [row.output for row in summarize(model, 1, (12, 12)).rows] == [(2, 10, 10), (2, 10, 10), (200,), (2,)]
    assert summarize(model.double(), 1, (12, 12)).macs == 100 * 18 + 400


def test_an_operation_that_is_not_followed_is_not_guessed() -> None:
    model = nn.Sequential(
        Normalize((0.0,), (1.0,)), nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3)
    )
    fields = [row.receptive_field for row in summarize(model, 1, (12, 12)).rows]
    assert fields == [(1, 1), (3, 3), None, None]


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


class Odd(nn.Module):
    """What a table must bear: a module used twice, tied weights, a weight without a layer, tuples, a layer that never
    runs, memory that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2, dilation=1)
        self.start = nn.Conv2d(1, 4, 1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.weight = nn.Parameter(torch.ones(2, 4, 3, 3))
        self.relu = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.end, self.tied, self.unused = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(7, 7)
        self.tied.weight = self.end.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.start(x)))
        x, _ = self.pool(x)
        x = self.relu(F.conv2d(x, self.weight, stride=2))
        x = x.flatten(2).transpose(1, 2)
        x, _ = self.attention(x, x, x)
        return self.tied(self.end(x.mean(1)))


def test_any_users_network() -> None:
    model = nn.Sequential(Normalize((0.0,), (1.0,)), Odd())
    summary = summarize(model, 1, (15, 12))
    twice = [row for row in summary.rows if row.name == "1.twice"]
    assert [row.parameters for row in twice] == [4 * 2 * 9 + 4, 0]
    assert [row.macs for row in twice] == [15 * 12 * 4 * 2 * 9] * 2
    assert [row.groups for row in twice] == [2, 2]
    rows = {row.name: row for row in summary.rows if not row.kind.endswith("()")}
    assert rows["1.pool"].output == (4, 7, 6)
    assert rows["1.pool"].activation_bytes == 4 * 2 * 4 * 7 * 6  # the indices, too, counted as four bytes
    assert (rows["1.pool"].formula, rows["1.pool"].formula_width) == (
        "floor((15 + 2·0 - 2) / 2) + 1 = 7  (1 px left over)",
        "floor((12 + 2·0 - 2) / 2) + 1 = 6",
    )
    (function,) = (row for row in summary.rows if row.kind == "conv2d()")
    assert (function.name, function.kernel, function.stride, function.output) == ("1", "3", "2", (2, 3, 2))
    assert (function.macs, function.parameters) == (3 * 2 * 2 * 4 * 9, 0)
    assert rows["1.relu"].activation_bytes == 0
    assert rows["1.attention"].parameters == sum(p.numel() for p in model[1].attention.parameters())
    assert (rows["1.end"].parameters, rows["1.tied"].parameters) == (4 + 2, 2)
    assert rows["1"].parameters == 2 * 4 * 9  # the weight that no layer has
    assert summary.parameters - sum(row.parameters for row in summary.rows) == 56
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 1, 15, 12, dtype=torch.uint8))
    assert sum(row.macs for row in summary.rows) * 2 == counter.get_total_flops() == summary.macs * 2
    texts = {note.kind: note.text for note in summary.notes}
    assert texts["not run"] == "56 parameters are in no layer that ran: 1.unused.weight, 1.unused.bias"


def test_activation_memory_by_hand() -> None:
    rows = summarize(build("cnn-cifar10", channels=3, classes=10, size=(32, 32)), 3, (32, 32)).rows
    for row in rows:
        numbers = math.prod(row.output)
        assert row.activation_bytes == (0 if row.kind.startswith("Dropout") else 4 * numbers), row
    lenet = summarize(build("lenet5", channels=1, classes=10, size=(28, 28)), 1, (28, 28))
    maps = 28 * 28 * (1 + 6 + 6) + 14 * 14 * 6 + 10 * 10 * (16 + 16) + 5 * 5 * 16
    assert lenet.activation_bytes == 4 * (maps + 400 + 120 + 120 + 84 + 84 + 10)


def dropped(*layers: nn.Module, size: tuple[int, int]) -> list[str]:
    model = nn.Sequential(Normalize((0.0,), (1.0,)), *layers)
    return [note.text for note in summarize(model, 1, size).notes if note.kind == "pixels dropped"]


@pytest.mark.parametrize(
    ("layer", "never"),
    [
        (nn.MaxPool2d(2), "1 row and 1 column of the 7 x 9"),
        (nn.AvgPool2d((2, 3)), "1 row of the 7 x 9"),
        (nn.MaxPool2d(2, ceil_mode=True), ""),
        (nn.Conv2d(1, 1, 3, stride=2), ""),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), ""),
        (nn.Conv2d(1, 1, 2, stride=3, padding=1), "2 rows and 3 columns of the 7 x 9"),
        (nn.Conv2d(1, 1, 1, stride=2), "3 rows and 4 columns of the 7 x 9"),
        (nn.Conv2d(1, 1, 3, stride=4, dilation=2), "4 rows and 4 columns of the 7 x 9"),
        (nn.Conv2d(1, 1, 3, padding="same", dilation=2), ""),
    ],
)
def test_dropped_pixels_against_gradients(layer: nn.Module, never: str) -> None:
    pixels = torch.rand(1, 1, 7, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    same = nn.AvgPool2d(2, ceil_mode=layer.ceil_mode) if isinstance(layer, nn.MaxPool2d) else positive(layer).float()
    (grad,) = torch.autograd.grad(same(pixels).sum(), pixels)
    rows, columns = (int((grad.abs().amax(dims) == 0).sum()) for dims in ((0, 1, 3), (0, 1, 2)))
    parts = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((rows, "row"), (columns, "column")) if n]
    expected = f"1 never sees {' and '.join(parts)} of the 7 x 9 pixels that come in"
    assert dropped(layer, size=(7, 9)) == ([expected] if parts else [])
    assert (never in expected) if never else not parts


def test_what_one_of_two_readers_sees_is_not_dropped() -> None:
    notes = summarize(build("resnet20", channels=1, classes=3, size=(32, 32)), 1, (32, 32)).notes
    assert "pixels dropped" not in {note.kind for note in notes}  # its shortcuts take every second pixel
    notes = summarize(build("resnet18", channels=1, classes=3, size=(32, 32)), 1, (32, 32)).notes
    assert "pixels dropped" not in {note.kind for note in notes}


def test_notes_on_fields() -> None:
    small = summarize(build("lenet5", channels=1, classes=10, size=(28, 32)), 1, (28, 32)).notes
    assert [(note.kind, note.layer) for note in small] == [("small field", "network.features.3")]
    assert "14 x 14 of the 28 x 32 pixels" in small[0].text
    large = summarize(build("resnet20", channels=1, classes=10, size=(40, 24)), 1, (40, 24))
    (note,) = large.notes
    first = next(row for row in large.rows if row.receptive_field and row.receptive_field[1] > 24)
    assert (note.kind, note.layer) == ("large field", first.name)


def test_a_network_without_parameters() -> None:
    summary = summarize(nn.Sequential(Normalize((0.0,), (1.0,)), nn.AvgPool2d(2), nn.Flatten()), 1, (4, 6))
    assert (summary.parameters, summary.macs, summary.rows[-1].output) == (0, 0, (6,))


def test_the_compiler_is_not_imported_to_count() -> None:
    code = (
        "import sys\nfrom convlens.models import build\nfrom convlens.summary import summarize\n"
        "assert summarize(build('lenet5', channels=1, classes=10, size=(28, 28)), 1, (28, 28)).macs\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
