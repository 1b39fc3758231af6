"""Channels against slow loops: what a unit sees pixel by pixel, what a channel moves by moving it, and what fires it by
looking at every image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import Split, build
from convlens.channels import _Tally, rank_channels, strongest_slices, survey
from convlens.errors import UserError
from convlens.trace import trace


class Residual(nn.Module):
    """Everything that hides a map from hooks: functions for layers, sums in place, a view, every second pixel."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        nn.init.ones_(self.norm.bias)  # so that ReLU lets much through
        self.second = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.third = nn.Conv2d(4, 6, (1, 3), padding="same", dilation=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        out = self.second(x)
        out += x[:, :, ::2, ::2]
        x = torch.tanh(self.third(out.relu_()))
        return self.head(x.mean((2, 3)))


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 5, stride=2, padding=(1, 2)),
        nn.GELU(),
        nn.ZeroPad2d((1, 0, 2, 0)),
        nn.Conv2d(3, 4, 2, padding="same", dilation=3),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        nn.ReLU(inplace=True),
        nn.AvgPool2d((1, 2)),
        nn.Conv2d(4, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


def made(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name in ("residual", "plain"):
        return (Residual() if name == "residual" else plain()).eval()
    return build(name, channels=1, classes=3, size=(20, 24), seed=3).eval()


def hooks(model: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules())


def digits(count: int, size: tuple[int, int] = (20, 24)) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 1, *size), dtype=torch.uint8, generator=generator)


def split_of(images: Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def bounds(seen: Tensor) -> tuple[int, int, int, int]:
    """The box (top, left, bottom, right) around what is true in (H, W)."""
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # what torch does inside is our question
@pytest.mark.parametrize("name", ["residual", "plain", "lenet5", "deepcnn-mnist", "resnet20", "speednet"])
def test_what_a_unit_sees_against_changing_every_pixel(name: str) -> None:
    model, (height, width) = made(name).double(), (20, 24)
    for key, values in model.state_dict().items():  # with positive weights nothing that is seen is cancelled
        if values.is_floating_point():
            values.fill_({"running_mean": 0.0, "bias": 0.1}.get(key.rpartition(".")[2], 0.5))
    lit = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    with torch.no_grad():
        _, dark = trace(model, torch.zeros(1, 1, height, width, dtype=torch.float64))
        parts = [trace(model, part)[1] for part in lit.split(96)]
    checked = 0
    for i, layer in enumerate(dark):
        maps = torch.cat([part[i].maps[:, 0] for part in parts])
        if layer.activation == "tanh":  # so flat where all is bright that a pixel more is lost to rounding
            continue
        changed = (maps - layer.maps[:, 0]).abs() > 1e-9 * layer.maps.abs().max()
        rows, columns = maps.shape[1:]
        for row, column in {(0, 0), (rows // 2, columns // 3), (rows - 1, columns - 1), (rows - 1, 0)}:
            seen = changed[:, row, column].view(height, width)
            if seen.any():
                assert layer.field.pixels(row, column) == bounds(seen), layer.name
                checked += 1
    assert checked >= 3 * len(dark) - 8


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", ["residual", "plain", "lenet5", "resnet20"])
def test_the_gradient_of_a_unit_stays_inside_what_it_sees(name: str) -> None:
    model, image = made(name), (digits(1).float() / 255).requires_grad_()
    _, layers = trace(model, image)
    for layer in layers:
        row, column = layer.maps.shape[2] // 2, layer.maps.shape[3] // 2
        (slope,) = torch.autograd.grad(layer.maps[0, :, row, column].sum(), image, retain_graph=True, allow_unused=True)
        top, left, bottom, right = layer.field.pixels(row, column)
        assert slope is not None
        assert slope.abs().sum() > 0
        outside = slope[0, 0].clone()
        outside[top:bottom, left:right] = 0
        assert not outside.any(), layer.name


def test_maps_are_followed_to_their_activation() -> None:
    model, image = made("residual"), digits(2).float()
    with torch.no_grad():
        logits, layers = trace(model, image)
        first = F.relu(model.norm(model.first(image)))
        second = model.second(first)
        third = torch.tanh(model.third(F.relu(second + first[:, :, ::2, ::2])))
    assert [(layer.name, layer.activation) for layer in layers] == [
        ("first", "relu"),
        ("second", ""),
        ("third", "tanh"),
    ]
    for layer, expected in zip(layers, (first, second, third), strict=True):
        torch.testing.assert_close(layer.maps, expected)
    torch.testing.assert_close(logits, model.head(third.mean((2, 3))))
    assert [layer.formula for layer in layers][1] == "floor((20 + 2·1 - 3) / 2) + 1 = 10  (1 px left over)"


class Read(nn.Module):
    """A convolution whose map has several readers, or is overwritten behind its activation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.norm = how, nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.more = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the map is to be, and what goes on, written without a sum in place."""
        y = self.conv(x)
        if self.how == "swish":
            return y, y * y.sigmoid()
        if self.how == "pre-activation":
            return y, y + self.more(self.norm(y).relu())
        if self.how == "shortcut first":
            short = self.more(y)
            return y, short + self.norm(y).relu()
        if self.how == "norm twice":
            y = self.norm(y)
            return y, y.relu() + y.tanh()
        y = F.silu(y)
        return y, y + x if self.how == "in place" else torch.cat([y[:, :2] + x, y[:, 2:]], 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in place":
            y = F.silu(self.conv(x))
            y += x
        elif self.how == "a part in place":
            y = F.silu(self.conv(x))
            y[:, :2] += x
        else:
            y = self.stages(x)[1]
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize(
    "how", ["swish", "pre-activation", "shortcut first", "norm twice", "in place", "a part in place"]
)
def test_a_map_ends_at_its_second_reader_and_before_it_is_overwritten(how: str) -> None:
    torch.manual_seed(1)
    model, images = Read(how).eval(), digits(2).float() / 255
    layer = next(layer for layer in rank_channels(model, images).layers if layer.name == "conv")
    maps, on = model.stages(images)
    (slope,) = torch.autograd.grad(model.head(on.mean((2, 3))).amax(1).sum(), maps)
    torch.testing.assert_close(layer.maps, maps.detach())
    torch.testing.assert_close(layer.scores, (maps * slope).sum((2, 3)).detach())
    assert layer.activation == ("silu" if "in place" in how else "")


class Then(nn.Module):
    """A convolution, a function of its square map, and a convolution of 1 x 1, which sees what that left."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(1, 4, 3, padding=1), function
        self.last = nn.LazyConv2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x).tanh()))


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "@": lambda x: x @ x,
    "linear": lambda x: F.linear(x, torch.ones(9, 9)),
    "einsum": lambda x: torch.einsum("nchw,nchv->nchv", x, x),
    "bmm": lambda x: torch.bmm(x[0], x[0])[None],
    "fft": lambda x: torch.fft.ifft2(torch.fft.fft2(x).abs()).abs(),
    "grid_sample": lambda x: F.grid_sample(x, torch.linspace(1, -1, 9).expand(1, 9, 2, 9).mT, align_corners=True),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "swapaxes": lambda x: x.swapaxes(2, 3),
    "mT": lambda x: x.mT,
    "sort": lambda x: x.sort(2).values,
    "topk": lambda x: x.topk(9, 3)[0],
    "index_select": lambda x: x.index_select(2, torch.arange(8, -1, -1)),
    "log_softmax": lambda x: x.log_softmax(2),
    "softmax": lambda x: F.softmax(x, dim=3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(3, 3),
    "cumsum": lambda x: x.cumsum(3),
    "median": lambda x: x.median(2, keepdim=True).values.expand(-1, -1, 9, -1),
    "unbind": lambda x: torch.stack(x.unbind(2)[::-1], 2),
}
STILL: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: x.split(1, 1)[2] * 2,
    "max of channels": lambda x: x.max(1, keepdim=True)[0],
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "softmax of channels": lambda x: F.softmax(x, 1),
    "a slice": lambda x: x[:, 1:],
    "a crop": lambda x: x[..., 2:-2, 2:-2],
    "arithmetic": lambda x: (1 - x) / (2 + x**2).sqrt(),
    "reflected": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "reflect"), 3, 1),
    "replicated": lambda x: F.avg_pool2d(F.pad(x, (2, 2, 2, 2), "replicate"), 5, 1),
    "padded around": lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "circular"), 3, 1),
    "maxima and places": lambda x: F.max_pool2d(x, 3, 2, return_indices=True)[0],
}


@pytest.mark.parametrize("name", [*MIXED, *STILL])
def test_no_pixel_outside_of_what_a_unit_is_said_to_see_changes_it(name: str) -> None:
    torch.manual_seed(2)
    model, image = Then((MIXED | STILL)[name]).eval(), torch.rand(1, 1, 9, 9)
    with torch.no_grad():
        model(image)
    image.requires_grad_()
    found = trace(model, image)[1][-1]
    for row, column in ((0, 0), (2, 3), (found.maps.shape[2] - 1, found.maps.shape[3] - 1)):
        (slope,) = torch.autograd.grad(found.maps[0, :, row, column].sum(), image, retain_graph=True)
        top, left, bottom, right = found.field.pixels(row, column)
        outside = slope[0, 0].clone()
        outside[top:bottom, left:right] = 0
        assert not outside.any()
    if name in STILL and name != "padded around":
        assert max(found.field.largest) <= 7  # and not all of the image


def test_a_unit_that_sees_only_padding_sees_no_pixels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, padding=2), nn.Flatten(), nn.Linear(2 * 8 * 9, 2))
    with torch.no_grad():
        model[0].bias.fill_(9.0)
        model[0].weight.fill_(-1.0)  # so that it is the padding that fires it most
    image = torch.full((1, 1, 4, 5), 3, dtype=torch.uint8)
    ranking = rank_channels(model, image)
    assert ranking.layers[0].field.pixels(0, 3) == (0, 0, 0, 0)
    assert ranking.layers[0].field.pixels(2, 3) == (0, 1, 1, 2)
    assert ranking.layers[0].field.largest == (1, 1)
    assert [top["sees"] for top in ranking.to_dict()["layers"][0]["top"]] == [[0, 0, 0, 0]] * 2


@pytest.mark.parametrize("way", ["wrapped", "in place", "a part"])
def test_what_was_compiled_is_followed_by_its_own_names(way: str) -> None:
    model, images = made("lenet5"), digits(4)
    expected, surveyed = rank_channels(model, images), survey(model, split_of(images))
    if way == "wrapped":
        model = torch.compile(model, backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
    else:
        model.network.features = torch.compile(model.network.features, backend="eager")
    model(images)
    found = rank_channels(model, images)
    assert [layer.name for layer in found.layers] == [layer.name for layer in expected.layers]
    for layer, plain in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(layer.scores, plain.scores)
    assert survey(model, split_of(images)).to_dict() == surveyed.to_dict()
    torch.compiler.reset()


def test_maxima_with_their_places() -> None:
    class Unpacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 3, 3), nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x))[0].relu().mean((2, 3))

    model = Unpacked()
    layer = rank_channels(model, digits(2)).layers[1]
    torch.testing.assert_close(layer.maps, F.max_pool2d(model.conv(digits(2).float()), 2).relu().detach())
    assert (layer.activation, layer.field.largest) == ("relu", (4, 4))
    assert len(survey(model, split_of(digits(3))).layers) == 2


@pytest.mark.parametrize("kind", [nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.Hardtanh, nn.ReLU, nn.GELU])
def test_only_behind_relu_and_its_like_is_a_channel_below_zero_dead(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), kind(), nn.Flatten(), nn.Linear(2 * 480, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([-0.1, 1.0]).view(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([-0.1, 0.0]))
    (layer,) = survey(model, split_of(digits(5).float() / 255)).layers
    assert layer.dead == ((0,) if kind in (nn.ReLU, nn.GELU) else ())


def test_a_tally_keeps_no_maps() -> None:
    found = trace(made("lenet5"), digits(2))[1][0]
    assert _Tally(found, 9).found.maps.untyped_storage().nbytes() == 0


@pytest.mark.parametrize("where", ["no_grad", "detach"])
def test_where_no_gradient_reaches_the_pixels_that_is_said(where: str) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(where != "no_grad"):
                maps = self.body(x).relu()
            return self.head(maps.detach().mean((2, 3)))

    with pytest.raises(UserError, match=r"no gradient reaches the pixels .* ask by occlusion"):
        rank_channels(Cut(), digits(2))


class Dimmed:
    """A model in which one channel of a map is multiplied by `factor`, where the map is what a layer gives."""

    def __init__(self, layer: nn.Module, channel: int, factor: float) -> None:
        def dim(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            scale = torch.ones(output.shape[1], dtype=output.dtype)
            scale[channel] = factor
            return output * scale[:, None, None]

        self.handle = layer.register_forward_hook(dim)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        self.handle.remove()


def test_scores_against_dimming_a_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(5 * 7 * 9, 3),
    ).double()  # fmt: skip # as one reads a network
    images = digits(3).double() / 255
    ranking = rank_channels(model, images, torch.tensor([0, 2, 1]))
    ends = {"0": model[2], "3": model[3], "4": model[5]}  # the layer behind which each map is taken
    assert [layer.name for layer in ranking.layers] == [*ends]
    by, model = 1e-6, model.eval()
    for layer in ranking.layers:
        for channel in range(layer.scores.shape[1]):
            with torch.no_grad():
                whole = model(images)
                with Dimmed(ends[layer.name], channel, 1 - by):
                    less = model(images)
            lost = ((whole - less) / by)[torch.arange(3), [0, 2, 1]]
            torch.testing.assert_close(layer.scores[:, channel].double(), lost, atol=1e-4, rtol=1e-4)
        order = layer.top(3, image=1)
        assert order == sorted(range(len(layer.scores[1])), key=lambda c: -abs(layer.scores[1, c].item()))[:3]
        row, column = layer.peak(order[0], image=1)
        assert layer.maps[1, order[0], row, column] == layer.maps[1, order[0]].max()


def test_a_sum_in_place_does_not_spoil_the_scores() -> None:
    model, images = made("residual"), digits(2).float() / 255
    scores = {layer.name: layer.scores for layer in rank_channels(model, images).layers}
    first = F.relu(model.norm(model.first(images)))
    second = model.second(first)
    logits = model.head(torch.tanh(model.third(F.relu(second + first[:, :, ::2, ::2]))).mean((2, 3)))
    slopes = torch.autograd.grad(logits.amax(1).sum(), (first, second))
    for name, maps, slope in zip(("first", "second"), (first, second), slopes, strict=True):
        torch.testing.assert_close(scores[name], (maps * slope).sum((2, 3)).detach())


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_left_as_it_was(frozen: bool) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28)).train().requires_grad_(not frozen)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = digits(2, (28, 28))
    with torch.inference_mode():
        ranking = rank_channels(model, images)
    survey(model, split_of(images))
    assert any(layer.scores.abs().sum() > 0 for layer in ranking.layers)
    assert torch.equal(ranking.classes, ranking.logits.argmax(1))
    assert model.training
    assert hooks(model) == 0
    assert all(parameter.grad is None and parameter.requires_grad is not frozen for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="images must be"):
        trace(model, torch.zeros(1, 3, 28, 28))
    assert hooks(model) == 0
    assert model.training


def test_a_ranking_as_json() -> None:
    model, images = made("lenet5"), digits(2)
    ranking = rank_channels(model, images)
    found = ranking.to_dict(count=2, image=1)
    assert found["class"] == int(ranking.logits[1].argmax())
    assert found["logit"] == ranking.logits[1].max().item()
    assert [len(row["top"]) for row in found["layers"]] == [2] * len(ranking.layers)
    first, layer = found["layers"][0]["top"][0], ranking.layers[0]
    channel, (row, column) = first["channel"], first["at"]
    assert first["peak"] == layer.maps[1, channel].max().item() == layer.maps[1, channel, row, column].item()
    top, left, bottom, right = first["sees"]
    assert (top, bottom) == (max(row - 2, 0), min(row + 3, 20))
    assert (left, right) == (max(column - 2, 0), min(column + 3, 24))


def test_the_strongest_slices_of_a_filter() -> None:
    layer = nn.Conv2d(6, 4, 3, groups=2)
    with torch.no_grad():
        layer.weight[3] = torch.tensor([1.0, -3.0, 2.0])[:, None, None].expand(3, 3, 3)
    inputs, slices = strongest_slices(layer, 3, 2)
    assert inputs == [4, 5]  # the second group begins with channel 3
    assert slices[:, 0, 0].tolist() == [-3.0, 2.0]


@pytest.mark.parametrize("name", ["lenet5", "residual"])
def test_a_survey_against_looking_at_every_image(name: str) -> None:
    model, images = made(name), digits(150)
    images[40] = images[90] = images[10]  # ties: the first comes first
    if name == "residual":
        images = images.float() / 255
    found = survey(model, split_of(images), best=9)
    assert (found.images, found.of) == (150, 150)
    with torch.no_grad():
        _, layers = trace(model, images)
    for layer, whole in zip(found.layers, layers, strict=True):
        peaks = whole.maps.flatten(2).amax(2)
        for channel in range(peaks.shape[1]):
            values = peaks[:, channel].tolist()
            order = sorted(range(150), key=lambda i: (-values[i], i))[:9]
            assert layer.images[channel].tolist() == order
            for place, image in enumerate(order):
                row, column = layer.spots[channel, place].tolist()
                torch.testing.assert_close(layer.peaks[channel, place], whole.maps[image, channel].max())
                torch.testing.assert_close(whole.maps[image, channel, row, column], whole.maps[image, channel].max())


def test_a_survey_of_some_images_is_spread_over_the_split() -> None:
    images = digits(50)
    some = survey(made("lenet5"), split_of(images), most=7)
    assert (some.images, some.of) == (7, 50)
    assert set(some.layers[0].images.unique().tolist()) == {0, 8, 16, 24, 32, 40, 49}
    assert some.layers[0].peaks.shape == (6, 7)


def test_dead_and_duplicate_channels_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.Flatten(), nn.Linear(5 * 18 * 22, 2)
    )
    with torch.no_grad():
        weight, bias = model[0].weight, model[0].bias
        bias.zero_()
        weight[:2] = weight[:2].abs()
        weight[2], bias[2] = -1.0, -0.1  # never above 0
        weight[3], bias[3] = 0, 0.7  # constant, and alive by its value alone
        weight[4] = weight[1]  # equal
        weight[5], bias[5] = 2 * weight[0], 0.25  # the same maps, brighter: ReLU is the identity here
        weight[6] = weight[1].clone()
        weight[6, 0, 1, 1] *= 1.01  # nearly equal
        weight[7] = weight[0] * torch.tensor([1, -1, 1])  # sees edges that channel 0 does not
    found = survey(model, split_of(digits(40).float() / 255))
    first, second = found.layers
    assert first.dead == (2, 3)
    assert [(d.channel, d.of, d.equal) for d in first.duplicates] == [(4, 1, True), (5, 0, False), (6, 1, False)]
    assert (second.dead, second.duplicates) == ((), ())

    with torch.no_grad():
        maps = F.relu(model[0](digits(40).float() / 255)).transpose(0, 1).flatten(1).double().numpy()
    alive = [0, 1, 4, 5, 6, 7]
    expected = np.corrcoef(maps[alive])
    for duplicate in first.duplicates:
        reference = expected[alive.index(duplicate.channel), alive.index(duplicate.of)]
        assert duplicate.correlation == pytest.approx(min(reference, 1.0), abs=1e-9)
        assert duplicate.correlation >= 0.99
    as_json = found.to_dict()
    assert as_json["layers"][0]["dead"] == [2, 3]
    assert as_json["layers"][0]["duplicates"][0] == {
        "channel": 4,
        "of": 1,
        "correlation": pytest.approx(1),
        "equal": True,
    }


def test_a_network_without_convolutions_has_no_channels() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(480, 2))
    assert rank_channels(model, digits(1).float()).layers == ()
    assert survey(model, split_of(digits(3).float())).layers == ()
