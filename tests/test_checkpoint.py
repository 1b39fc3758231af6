"""A run that is broken off and taken up again ends as the unbroken one, bit for bit; no write leaves half a file."""

from __future__ import annotations

import random
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from convlens import Data, InputSpec, Split, build, checkpoint, train
from convlens.errors import UserError
from convlens.recipe import AugmentConfig, DataConfig, OptimConfig, Recipe
from convlens.training import Position
from interruptions import stop_after
from refusals import refused

STEPS = 5  # of an epoch: 38 images in eights, the last six of them alone


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (38, 3, 10, 12), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(4, (38,), generator=generator), torch.arange(38))
    shape = InputSpec((10, 12), 3)
    return Data("noise", tuple("abcd"), shape, (0.5,) * 3, (0.25,) * 3, True, "", split, None, split)


def make_model() -> nn.Module:
    """Batch norm, whose averages are part of the state; dropout, which draws; convolution weights channels last."""
    args = {"widths": [4, 6], "convs": 1, "dropout": 0.4}
    model = build("vgg", channels=3, classes=4, size=(10, 12), args=args, seed=0)
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.weight.is_contiguous()
    return model


def run_in_parts(recipe: Recipe, data: Data, path: Path, parts: list[int]) -> tuple[nn.Module, list[tuple], Position]:
    """Train in a new model each time, `parts` steps of it and the last time to the end, with only the file between."""
    told: list[tuple] = []
    for count in [*parts, 10_000]:
        model, stop = make_model(), threading.Event()
        saved = checkpoint.read(path)

        def resume(position: Position, saved: Any = saved, model: nn.Module = model) -> None:
            if saved:
                checkpoint.restore(saved, model, position)

        torch.manual_seed(count)  # another process: its generator stands anywhere
        for epoch in train(model, data, recipe, resume, stop, stop_after(stop, count)):
            if epoch.complete:
                told.append((epoch.index, epoch.loss, epoch.accuracy, epoch.lr))
            checkpoint.save(path, model, epoch.position, {"told": told})
            position = epoch.position
            torch.rand(3)
    return model, told, position


RECIPES = {
    "sgd-plain": OptimConfig("sgd", 0.05, momentum=0.0),
    "sgd-momentum": OptimConfig("sgd", 0.05, momentum=0.9, nesterov=True, weight_decay=0.01, schedule="one-cycle"),
    "sgd-two-groups": OptimConfig("sgd", 0.05, momentum=0.9, weight_decay=0.01, decay_all=False, l1=1e-4),
    "adam": OptimConfig("adam", 0.01, schedule="cosine", warmup=0.2),
    "adamw": OptimConfig("adamw", 0.01, weight_decay=0.1, decay_all=False, schedule="step"),
    "rmsprop": OptimConfig("rmsprop", 0.002, momentum=0.5, weight_decay=0.01),
    "muon": OptimConfig(
        "muon", 0.05, momentum=0.6, linear_lr=0.01, bias_lr=0.5, weight_decay=0.01, schedule="one-cycle", warmup=0.2
    ),
    "frozen-adam": OptimConfig("adam", 0.01, freeze=[0.4]),
    "head-first": OptimConfig("adam", 0.01, head_epochs=1),
    "head-first-then-frozen": OptimConfig("sgd", 0.05, head_epochs=1, body_lr=0.01, freeze=[0.5]),
    "frozen-from-the-start": OptimConfig("muon", 0.05, bias_lr=0.5, freeze=[0.0]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_taken_up_anywhere_it_ends_bit_for_bit_the_same(name: str, data: Data, tmp_path: Path) -> None:
    augment = AugmentConfig(flip=True, shift=2, cutout=3)
    recipe = Recipe(epochs=3, batch_size=8, seed=6, precision="fp32", optim=RECIPES[name], augment=augment)
    check_parts(recipe, data, tmp_path)


def test_it_does_so_in_bfloat16_with_crops_and_alternate_flips(data: Data, tmp_path: Path) -> None:
    augment = AugmentConfig(flip=True, alternate=True, shift=2, fill="reflect", crop=[8, 10])
    check_parts(
        Recipe(epochs=3, batch_size=8, seed=6, precision="bf16", optim=RECIPES["muon"], augment=augment), data, tmp_path
    )


def test_it_does_so_with_mixed_images_and_labels(data: Data, tmp_path: Path) -> None:
    augment = AugmentConfig(flip=True, scale=0.4, warp=0.3, colour=0.3, tone=0.3, mixup=0.2, cutmix=1.0)
    recipe = Recipe(epochs=3, batch_size=8, seed=6, precision="fp32", optim=RECIPES["adam"], augment=augment)
    check_parts(recipe, data, tmp_path)


@pytest.mark.parametrize("optim", ["sgd-momentum", "frozen-adam"])
def test_it_does_so_with_an_average_clipped_in_parts_and_drawn_with_replacement(
    optim: str, data: Data, tmp_path: Path
) -> None:
    config = replace(RECIPES[optim], ema=0.8, clip=0.5, norm_images=9)
    augment = AugmentConfig(flip=True, shift=2)
    balance = DataConfig(val=0.0, balance="sample")
    recipe = Recipe(
        epochs=3, batch_size=8, accumulate=3, seed=6, precision="fp32", optim=config, augment=augment, data=balance
    )
    check_parts(recipe, data, tmp_path)


def check_parts(recipe: Recipe, data: Data, tmp_path: Path) -> None:
    """Broken off at every kind of place, the run has the losses, the weights and the optimizer of the unbroken one."""
    whole, told, end = run_in_parts(recipe, data, tmp_path / "whole", [])
    assert [row[0] for row in told] == [1, 2, 3]
    for parts in ([2, 3, 3, 2, 4, 1], [1, 1, 1, 4, STEPS]):  # epochs end with the steps 5, 10 and 15
        path = tmp_path / "-".join(map(str, parts))
        model, told_in_parts, end_in_parts = run_in_parts(recipe, data, path, parts)
        assert told_in_parts == told, parts
        for (key, a), b in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
            assert torch.equal(a, b), (parts, key)
            assert a.stride() == b.stride()
        for a, b in zip(end.twin, end_in_parts.twin, strict=True):
            assert torch.equal(a, b), parts
            assert a.stride() == b.stride()
        states = [position.optimizer.state_dict()["state"] for position in (end, end_in_parts)]
        assert states[0].keys() == states[1].keys()
        for index, state in states[0].items():
            for key, value in state.items():
                other = states[1][index][key]
                assert other is None if value is None else torch.equal(value, other), (parts, index, key)


def test_the_position_is_where_the_run_stood(data: Data, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=8, optim=OptimConfig("adam", 0.01))
    model, stop = make_model(), threading.Event()
    (first, cut) = train(model, data, recipe, None, stop, stop_after(stop, STEPS + 2))
    assert (first.complete, cut.complete) == (True, False)
    checkpoint.save(tmp_path / "at", model, cut.position, {"history": [1, 2], "best": None})
    saved = checkpoint.read(tmp_path / "at")
    assert saved is not None
    assert saved.notes.pop("seconds") > 0
    assert saved.notes == {"history": [1, 2], "best": None, "epoch": 2, "step": 2}
    state = model.state_dict()
    assert checkpoint.weights(saved).keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in checkpoint.weights(saved).items())
    assert torch.equal(saved.tensors["losses"], cut.position.losses)
    assert saved.tensors["losses"].count_nonzero() == 2
    assert saved.tensors["correct"] == cut.position.correct
    assert (saved.tensors["optimizer.0.step"]).item() == STEPS + 2
    assert list(tmp_path.iterdir()) == [tmp_path / "at"]


AVERAGED = Recipe(epochs=2, batch_size=8, optim=OptimConfig("sgd", 0.05, ema=0.9))


def test_a_checkpoint_holds_the_average_and_what_the_steps_made(data: Data, tmp_path: Path) -> None:
    model, stop = make_model(), threading.Event()
    (cut,) = train(model, data, AVERAGED, None, stop, stop_after(stop, 3))
    assert not cut.complete
    checkpoint.save(tmp_path / "at", model, cut.position, {})
    saved = checkpoint.read(tmp_path / "at")
    assert saved is not None
    stepped, twice = make_model(), threading.Event()
    list(train(stepped, data, replace(AVERAGED, optim=OptimConfig("sgd", 0.05)), None, twice, stop_after(twice, 3)))
    fresh = make_model()
    fresh.load_state_dict(checkpoint.weights(saved))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(fresh.parameters(), stepped.parameters(), strict=True))
    for index, value in enumerate(stepped.parameters()):
        assert torch.equal(saved.tensors[f"twin.{index}"], value)


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.0), (0.0, 0.9)])
def test_an_average_cannot_begin_or_end_in_the_middle(before: float, after: float, data: Data, tmp_path: Path) -> None:
    def averaged(decay: float) -> Recipe:
        return replace(AVERAGED, optim=OptimConfig("sgd", 0.05, ema=decay))

    model = make_model()
    epoch = next(train(model, data, averaged(before)))
    checkpoint.save(tmp_path / "at", model, epoch.position, {})
    saved = checkpoint.read(tmp_path / "at")
    assert saved is not None
    with pytest.raises(UserError, match=r"another optim.ema, on or off: put the run's recipe.toml back as it was"):
        next(train(model, data, averaged(after), lambda at: checkpoint.restore(saved, model, at)))


def test_without_a_position_only_the_weights_are_kept(data: Data, tmp_path: Path) -> None:
    model = make_model()
    list(train(model, data, Recipe(epochs=1, batch_size=8)))
    checkpoint.save(tmp_path / "best", model, None, {"epoch": 7})
    saved = checkpoint.read(tmp_path / "best")
    assert saved is not None
    assert saved.notes == {"epoch": 7}
    assert {key.split(".")[0] for key in saved.tensors} == {"model"}
    fresh = make_model()
    fresh.load_state_dict(checkpoint.weights(saved))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


def test_saving_changes_nothing(data: Data, tmp_path: Path) -> None:
    model = make_model()
    epochs = list(train(model, data, Recipe(epochs=1, batch_size=8)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    strides = [p.stride() for p in model.parameters()]
    checkpoint.save(tmp_path / "at", model, epochs[0].position, {})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.stride() for p in model.parameters()] == strides


def test_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path / "none") is None


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "at.safetensors"
    checkpoint.save(path, make_model(), None, {"epoch": 1})
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match=r"the checkpoint .*at\.safetensors is damaged \(.+\); the run cannot"):
            checkpoint.read(path)
    for bad in (b"not a checkpoint at all", b"\0" * 4096, good + b"more", b"\xff" * 8 + good[8:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="is damaged") as caught:
            checkpoint.read(path)
        assert caught.value.exit_code == 1
    # other people's safetensors files: no notes, or none that are JSON
    for metadata in (None, {"format": "pt"}, {"notes": "{"}):
        safetensors.torch.save_file({"a": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(UserError, match="is damaged"):
            checkpoint.read(path)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.read(tmp_path)  # a folder


def test_flipped_bits_in_the_header_never_end_in_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "at.safetensors"
    checkpoint.save(path, make_model(), None, {"epoch": 1})
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    chance = random.Random(0)
    found = 0
    for _ in range(300):
        bad = bytearray(good)
        bad[chance.randrange(header)] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        try:
            checkpoint.read(path)
        except UserError:
            found += 1
    assert found > 100  # the rest hit a name or a note, which stays readable


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "at"
    checkpoint.save(path, nn.Linear(2, 2), None, {"epoch": 1})
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # Python ignores the signal that comes with it
    try:
        refused(
            lambda: checkpoint.save(path, nn.Linear(200, 200), None, {"epoch": 2}),
            f"no room left to write {path}",
            "what was saved before is whole",
            exit_code=1,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["at"]  # no half file is left to fill the disk


def test_a_resumed_run_ends_the_same_whatever_its_new_model_began_with(data: Data, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=8, optim=OptimConfig("sgd", 0.05))
    model, stop = make_model(), threading.Event()
    (cut,) = train(model, data, recipe, None, stop, stop_after(stop, 3))
    checkpoint.save(tmp_path / "at", model, cut.position, {})
    saved = checkpoint.read(tmp_path / "at")
    assert saved is not None
    ends = []
    for seed in (1, 2):
        args = {"widths": [4, 6], "convs": 1, "dropout": 0.4}
        fresh = build("vgg", channels=3, classes=4, size=(10, 12), args=args, seed=seed)
        list(train(fresh, data, recipe, lambda at, fresh=fresh: checkpoint.restore(saved, fresh, at)))
        ends.append([p.detach() for p in fresh.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
