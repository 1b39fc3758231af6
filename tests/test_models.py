"""One contract for every network, the numbers that the docstrings state, and what is said where a network cannot be."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convlens import MODELS, build
from convlens.errors import UserError
from convlens.models.normalize import Normalize

SIZES = {"28": (28, 28), "32": (32, 32), "64": (64, 64), "32x48": (32, 48)}


def some_images(count: int, channels: int, size: tuple[int, int]) -> Tensor:
    return torch.randint(
        0, 256, (count, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)
    )


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module of the user's own, importable by the name it returns."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(text: str) -> str:
        name = f"own_models_{len(written)}_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text("import torch\nfrom torch import nn\n\n" + text, encoding="utf-8")
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 7), (3, 10)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "resnet18" else ()) for name in MODELS]
)
def test_images_in_logits_out(name: str, channels: int, classes: int, size: tuple[int, int]) -> None:
    model = build(name, channels=channels, classes=classes, size=size)
    out = logits(model, some_images(2, channels, size))
    assert out.shape == (2, classes)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.std() > 0


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str) -> None:
    shape: dict[str, Any] = {"channels": 3, "classes": 7, "size": (28, 36), "mean": (0.4,) * 3, "std": (0.3,) * 3}
    images = some_images(3, 3, (28, 36))
    model = build(name, **shape, seed=1)

    # evaluation: the same twice, the same for an image alone as in a batch, the same for the pixels as floats
    out = logits(model, images)
    assert torch.equal(out, logits(model, images))
    singles = torch.cat([logits(model, image[None]) for image in images])
    torch.testing.assert_close(singles, out, atol=1e-4, rtol=1e-4)
    assert torch.equal(out, logits(model, images.float()))

    # the same seed gives the same weights, another seed others, and their state is all of the model
    again, other = build(name, **shape, seed=1), build(name, **shape, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(logits(other, images), out)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, images), out)

    # gradients reach every parameter that is trained, and the pixels
    model.train()
    pixels = images.float().requires_grad_()
    nn.functional.cross_entropy(model(pixels), torch.arange(3)).backward()
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == trained
    assert len(trained) > len(list(model.parameters())) / 2
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_building_leaves_the_global_generator_where_it_was(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    build(name, channels=1, classes=10, size=(32, 32), seed=99)
    assert torch.equal(torch.rand(4), expected)


def test_building_leaves_the_global_generator_also_after_an_error() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with pytest.raises(UserError):
        build("lenet5", channels=1, classes=10, size=(4, 4))
    assert torch.equal(torch.rand(4), expected)


# Counted by hand: a convolution has k * k * in * out weights and, without a batch norm behind it, out biases; a batch
# norm has 2 * out; a linear layer (in + 1) * out.
def test_parameters_by_hand() -> None:
    def conv(into: int, out: int, kernel: int = 3) -> int:
        return kernel * kernel * into * out + out

    def linear(into: int, out: int) -> int:
        return (into + 1) * out

    def normed(into: int, out: int, kernel: int = 3) -> int:
        return kernel * kernel * into * out + 2 * out

    resnet20 = normed(3, 16) + 6 * normed(16, 16) + normed(16, 32) + 5 * normed(32, 32) + normed(32, 64)
    resnet20 += 5 * normed(64, 64) + linear(64, 10)
    resnet18 = normed(3, 64) + 4 * normed(64, 64) + linear(512, 10)
    for into, out in ((64, 128), (128, 256), (256, 512)):
        resnet18 += normed(into, out) + 3 * normed(out, out) + normed(into, out, 1)
    resnet9 = normed(3, 64) + normed(64, 128) + 2 * normed(128, 128) + normed(128, 256) + normed(256, 512)
    resnet9 += 2 * normed(512, 512) + 512 * 10
    vgg = normed(1, 32) + normed(32, 32) + normed(32, 64) + normed(64, 64) + normed(64, 128) + normed(128, 128)
    speednet = conv(3, 24, 2) + normed(24, 64) + normed(64, 64) + normed(64, 256) + 3 * normed(256, 256) + 256 * 10
    lenet5 = conv(1, 6, 5) + conv(6, 16, 5) + linear(16 * 5 * 5, 120) + linear(120, 84) + linear(84, 10)
    cnn_mnist = conv(1, 32) + conv(32, 64) + linear(64 * 7 * 7, 128) + linear(128, 10)
    deepcnn = conv(1, 32) + conv(32, 64) + conv(64, 128) + linear(128 * 4 * 4, 625) + linear(625, 10)
    cnn_cifar10 = conv(3, 32) + conv(32, 32) + linear(32 * 16 * 16, 512) + linear(512, 10)
    by_hand = {
        "lenet5": (lenet5, 61_706, 1),
        "cnn-mnist": (cnn_mnist, 421_642, 1),
        "deepcnn-mnist": (deepcnn, 1_379_557, 1),
        "cnn-cifar10": (cnn_cifar10, 4_210_090, 3),
        "vgg": (vgg + linear(128, 10), 288_170, 1),
        "resnet9": (resnet9, 6_573_120, 3),
        "resnet18": (resnet18, 11_173_962, 3),
        "resnet20": (resnet20, 269_722, 3),
        "speednet": (speednet, 1_972_792, 3),
    }
    assert set(by_hand) == set(MODELS)
    for name, (counted, stated, channels) in by_hand.items():
        side = 28 if channels == 1 else 32
        model = build(name, channels=channels, classes=10, size=(side, side))
        assert sum(p.numel() for p in model.parameters()) == counted == stated, name
        assert f"{stated:,} parameters" in " ".join((MODELS[name].__doc__ or "").split()), name


@pytest.mark.parametrize("name", MODELS)
def test_too_small_an_image_and_the_smallest_that_works(name: str) -> None:
    def at(side: int) -> nn.Module:
        return build(name, channels=3, classes=10, size=(side, side))

    if name in ("resnet18", "resnet20"):  # padded convolutions and global pooling take any size
        assert logits(at(1), some_images(1, 3, (1, 1))).shape == (1, 10)
        return
    with pytest.raises(UserError) as caught:
        at(1)
    works = int(str(caught.value).split("; images of ")[1].split()[0])
    assert logits(at(works), some_images(1, 3, (works, works))).shape == (1, 10)
    with pytest.raises(UserError) as caught:
        at(works - 1)
    message = str(caught.value)
    assert message.startswith(f"the model {name} does not take images of {works - 1} x {works - 1}: layer ")
    assert re.search(r"layer [\w.]+ \((Conv2d|Whiten|MaxPool2d|AvgPool2d), kernel \d\) does not fit", message)
    assert re.search(r"floor\(\(\d+ \+ 2·\d - \d\) / \d\) \+ 1 = (0|-\d+)", message)
    assert "left over" not in message
    assert message.endswith(f"; images of {works} x {works} pixels or more do")


def test_the_layer_that_does_not_fit_is_named_also_inside_blocks() -> None:
    with pytest.raises(UserError, match=r"layer layer3\.3 \(MaxPool2d, kernel 2\).*1 x 8 there.*images of 8 x 8"):
        build("resnet9", channels=3, classes=10, size=(4, 32))


def test_names_and_arguments_that_do_not_exist() -> None:
    shape: dict[str, Any] = {"channels": 1, "classes": 10, "size": (28, 28)}
    with pytest.raises(UserError, match=r"unknown model 'lenet'; did you mean 'lenet5'\?"):
        build("lenet", **shape)
    with pytest.raises(UserError, match=r"unknown model 'zzz'; there are: lenet5, .*speednet\. `convlens models`"):
        build("zzz", **shape)
    with pytest.raises(UserError, match=r"unknown argument of the model vgg 'width'; did you mean 'widths'\?"):
        build("vgg", **shape, args={"width": [8]})
    with pytest.raises(UserError, match=r"unknown argument of the model resnet18 'widths'; there are: members, mirror"):
        build("resnet18", **shape, args={"widths": [8]})
    with pytest.raises(UserError, match=r"unknown argument of the model vgg 'classes'"):
        build("vgg", **shape, args={"classes": 3})
    for channels in (0, 2, 4):
        with pytest.raises(UserError, match=rf"images have 1 or 3 channels, not {channels}"):
            build("vgg", channels=channels, classes=10, size=(28, 28))


def test_values_that_an_argument_does_not_take() -> None:
    shape: dict[str, Any] = {"channels": 1, "classes": 10, "size": (28, 28)}
    with pytest.raises(UserError, match=r"^unknown activation 'rela'; did you mean 'relu'\?"):
        build("lenet5", **shape, args={"activation": "rela"})
    with pytest.raises(UserError, match=r"^unknown pooling '3'; there are: average, max\."):
        build("lenet5", **shape, args={"pooling": 3})
    with pytest.raises(UserError, match=r"^unknown activation 'gelo'; did you mean 'gelu'\?"):
        build("speednet", **shape, args={"activation": "gelo"})
    with pytest.raises(UserError, match=r"^unknown pool '2'; there are: max, stride\."):
        build("speednet", **shape, args={"pool": [2, "max", "max"]})
    with pytest.raises(
        UserError, match=r"^pool must be max or stride, or a list of these with at least one of them, not \[\]$"
    ):
        build("speednet", **shape, args={"pool": []})
    with pytest.raises(UserError, match=r"^unknown head 'flatt'; did you mean 'flat'\?"):
        build("speednet", **shape, args={"head": "flatt"})
    with pytest.raises(UserError, match=r"^the model vgg cannot be built with \{'dropout': 2\}: dropout probability"):
        build("vgg", **shape, args={"dropout": 2})
    with pytest.raises(UserError, match=r"^the model vgg cannot be built with \{'widths': 'wide'\}"):
        build("vgg", **shape, args={"widths": "wide"})


def test_arguments_reach_the_network() -> None:
    model = build("vgg", channels=1, classes=4, size=(16, 16), args={"widths": [8, 12], "convs": 3, "dropout": 0.25})
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [8, 8, 8, 12, 12, 12]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]
    narrow = build("resnet9", channels=1, classes=4, size=(16, 16), args={"width": 4})
    assert next(m.out_channels for m in narrow.modules() if isinstance(m, nn.Conv2d)) == 4


def test_lenet_variants_are_different_networks() -> None:
    shape: dict[str, Any] = {"channels": 1, "classes": 10, "size": (28, 28)}
    images = some_images(2, 1, (28, 28))
    variants = [{"activation": a} for a in ("relu", "sigmoid", "tanh")] + [{"pooling": "max"}]
    variants += [{"norm": "batch"}, {"norm": "local-response"}]
    kinds = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "max": nn.MaxPool2d, "batch": nn.BatchNorm2d}
    kinds |= {"local-response": nn.LocalResponseNorm, "relu": nn.ReLU}
    outputs = []
    for variant in variants:
        model = build("lenet5", **shape, args=variant)
        (choice,) = variant.values()
        count = sum(isinstance(m, kinds[choice]) for m in model.modules())
        assert count == (4 if "activation" in variant else 2)
        assert sum(p.numel() for p in model.parameters()) == 61_706 + (2 * 6 + 2 * 16) * (choice == "batch")
        outputs.append(model.train()(images))  # a fresh batch norm does nothing in evaluation mode
    for i, one in enumerate(outputs):
        for other in outputs[:i]:
            assert (one - other).abs().max() > 1e-3


def test_local_response_against_the_papers_formula() -> None:
    """b_i = a_i / (2 + 1e-4 * sum of a_j ** 2 over the five maps around i) ** 0.75, as Krizhevsky et al. print it."""
    model = build("lenet5", channels=1, classes=10, size=(28, 28), args={"norm": "local-response"})
    layer = next(m for m in model.modules() if isinstance(m, nn.LocalResponseNorm))
    a = 50 * torch.randn(1, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    for i in range(16):
        around = (a[:, max(i - 2, 0) : i + 3] ** 2).sum(1)
        torch.testing.assert_close(layer(a)[:, i], a[:, i] / (2 + 1e-4 * around) ** 0.75)


def test_the_pieces_of_a_residual_block() -> None:
    """Option A by hand: every second pixel and zeros for the new maps."""
    model = build("resnet20", channels=3, classes=10, size=(32, 32))
    block = next(b for b in model.modules() if getattr(b, "new_channels", 0))
    block.eval()
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inner = block.second(block.relu(block.first(x)))
        short = torch.zeros(2, 32, 4, 4)
        for i in range(4):
            for j in range(4):
                short[:, :16, i, j] = x[:, :, 2 * i, 2 * j]
        assert torch.equal(block(x), (inner + short).clamp(min=0))


def test_normalize_against_the_formula() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    layer = Normalize(mean, std)
    images = some_images(2, 3, (5, 6))
    m, s = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    expected = (images.double() / 255 - m) / s
    torch.testing.assert_close(layer(images).double(), expected, atol=1e-6, rtol=1e-6)
    assert layer(images).dtype == torch.float32
    assert set(layer.state_dict()) == {"scale", "shift"}  # part of the model's file
    assert not list(layer.parameters())  # and not trained
    assert repr(layer) == "Normalize(mean=[0.4914, 0.4822, 0.4465], std=[0.247, 0.2435, 0.2616])"
    for wrong in (images[0], images[:, :1]):
        with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
            layer(wrong)


def test_without_mean_and_std_pixels_become_0_to_1() -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 28, 28)
    out = model.normalize(ends)
    assert out.unique().tolist() == [0.0, 1.0]


def test_a_function_of_the_users_own(own: Callable[[str], str]) -> None:
    module = own("""
def small(channels, classes, size, width=4):
    assert size == (20, 24)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(nn.Conv2d(channels, width, 3), head)

def anything(**settings):
    return small(settings["channels"], settings["classes"], settings["size"], settings.get("maps", 4))
""")
    shape: dict[str, Any] = {"channels": 3, "classes": 5, "size": (20, 24)}
    model = build(f"{module}:small", **shape, args={"width": 6}, seed=3)
    assert logits(model, some_images(2, 3, (20, 24))).shape == (2, 5)
    again = build(f"{module}:anything", **shape, args={"maps": 6}, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(UserError, match=r"unknown argument of the model .*:small 'widht'; did you mean 'width'\?"):
        build(f"{module}:small", **shape, args={"widht": 6})
    for name in (f"{module}:absent", "no_such_module_anywhere:small", ":small"):
        with pytest.raises(UserError, match=f"cannot load the model '{name}'"):
            build(name, **shape)


def test_a_function_that_gives_the_wrong_number_of_logits(own: Callable[[str], str]) -> None:
    module = own("""
def short(channels, classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes - 1))
""")
    with pytest.raises(UserError) as caught:
        build(f"{module}:short", channels=1, classes=10, size=(8, 8))
    message = str(caught.value)
    assert message == f"the model {module}:short gives (2, 9) for 2 images and 10 classes, not (2, 10)"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def broken(channels, classes, size):\n    raise ValueError('a mistake of mine')\n", "a mistake of mine"),
        ("def broken():\n    return None\n", "unexpected keyword argument"),
        ("broken = 3\n", "not a function"),
        (
            "from torch import nn\n\n"
            "def broken(channels, classes, size):\n    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))\n",
            "fails on images of 1 x 8 x 8",
        ),
    ],
)
def test_a_mistake_in_the_users_own_network_is_one_sentence(own: Callable[[str], str], source: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build(f"{own(source)}:broken", channels=1, classes=10, size=(8, 8))
    assert "broken" in str(caught.value)


def test_an_installed_packages_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[convlens.models]\nmine = convlens.models.vgg:vgg\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    model = build("mine", channels=1, classes=3, size=(16, 16), args={"widths": [4], "convs": 1})
    assert logits(model, some_images(1, 1, (16, 16))).shape == (1, 3)
