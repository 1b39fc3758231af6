"""train(), held against a loop written out by hand; and what it promises about seeds, stopping and failing."""

from __future__ import annotations

import itertools
import math
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn

from convlens import Data, Epoch, InputSpec, Split, build, evaluate, train
from convlens.data import batches
from convlens.errors import UserError
from convlens.models.normalize import Normalize
from convlens.recipe import AugmentConfig, DataConfig, LossConfig, OptimConfig, Recipe
from convlens.training import CHECK_EVERY, Position, augmentation, lr_share
from interruptions import stop_after


def make_data(count: int = 46, flip_ok: bool = True) -> Data:
    """Three classes, told apart by which rows are bright; noise everywhere."""
    generator = torch.Generator().manual_seed(11)

    def split(n: int) -> Split:
        images = torch.randint(0, 120, (n, 1, 12, 12), dtype=torch.uint8, generator=generator)
        labels = torch.arange(n) % 3
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * label : 4 * label + 4] += 120
        return Split(images, labels, torch.arange(n))

    shape = InputSpec((12, 12), 1)
    return Data("rows", ("top", "middle", "low"), shape, (0.3,), (0.3,), flip_ok, "", split(count), None, split(60))


def make_model(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    args = {"widths": [4, 6], "convs": 1, "dropout": dropout}
    return build("vgg", channels=1, classes=3, size=(12, 12), mean=(0.3,), std=(0.3,), args=args, seed=seed)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


AUGMENTED = Recipe(
    epochs=3, batch_size=8, seed=3, precision="fp32", augment=AugmentConfig(flip=True, shift=1, cutout=3)
)


@pytest.mark.parametrize(
    ("optim", "lr_at"),
    [
        (OptimConfig("sgd", 0.05, momentum=0.0), lambda _t: 0.05),
        (
            OptimConfig("sgd", 0.1, momentum=0.9, nesterov=True, weight_decay=0.01, schedule="one-cycle", warmup=0.25),
            lambda t: 0.1 * (t / 0.25 if t < 0.25 else 1 - (t - 0.25) / 0.75),
        ),
        (
            OptimConfig("adam", 0.01, schedule="cosine"),
            lambda t: 0.01 * 0.5 * (1 + math.cos(math.pi * t)),
        ),
        (
            OptimConfig("adamw", 0.01, weight_decay=0.1, schedule="step"),
            lambda t: 0.01 * 0.1 ** ((t >= 0.5) + (t >= 0.75)),
        ),
        (OptimConfig("rmsprop", 0.002, momentum=0.5), lambda _t: 0.002),
    ],
    ids=["sgd", "one-cycle", "adam", "adamw", "rmsprop"],
)
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_against_a_loop_by_hand(optim: OptimConfig, lr_at: Any, loss: str) -> None:
    data, recipe = make_data(), replace(AUGMENTED, optim=optim, loss=LossConfig(loss))  # type: ignore[arg-type] # one of the two
    model, reference = make_model(), make_model()
    epochs = list(train(model, data, recipe))

    plain = {
        "sgd": lambda p: torch.optim.SGD(
            p, 0.0, optim.momentum, nesterov=optim.nesterov, weight_decay=optim.weight_decay, fused=False
        ),
        "adam": lambda p: torch.optim.Adam(p, 0.0, fused=False),
        "adamw": lambda p: torch.optim.AdamW(p, 0.0, weight_decay=optim.weight_decay, fused=False),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.0, momentum=optim.momentum),
    }
    optimizer = plain[optim.name](reference.parameters())
    for index in (1, 2, 3):
        reference.train()
        loss_sum, right, seen = 0.0, 0, 0
        steps = 6  # 46 images in eights, the last six of them alone
        for step, (images, labels) in enumerate(batches(data.train, 8, recipe.augment, 3, index)):
            lr = lr_at(((index - 1) * steps + step + 0.5) / (3 * steps))
            optimizer.param_groups[0]["lr"] = lr
            logits = reference(images)
            if loss == "mse":
                value = ((logits.softmax(1) - torch.eye(3)[labels]) ** 2).mean()
            else:
                value = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            loss_sum += value.item() * len(labels)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
        assert seen == 46
        epoch = epochs[index - 1]
        assert (epoch.index, epoch.complete, epoch.images) == (index, True, 46)
        assert epoch.loss == pytest.approx(loss_sum / 46, rel=1e-5)
        assert epoch.accuracy == pytest.approx(right / 46)
        assert epoch.lr == pytest.approx(lr, abs=1e-12)
    torch.testing.assert_close(weights(model), weights(reference), atol=1e-6, rtol=1e-6)
    assert (weights(model) - weights(make_model())).abs().max() > 1e-3


def test_every_image_once_an_epoch_in_another_order_each_time() -> None:
    data = make_data()
    marked = data.train.images.clone()
    marked[:, 0, 0, 0] = torch.arange(46, dtype=torch.uint8)
    data = replace(data, train=replace(data.train, store=marked))
    orders: dict[int, list[int]] = {}
    sizes: list[int] = []

    def watch(todo: Iterable[tuple[Tensor, Tensor]], at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in todo:
            met = images[:, 0, 0, 0].tolist()
            assert data.train.labels[met].tolist() == labels.tolist()
            orders.setdefault(at.epoch, []).extend(met)
            sizes.append(len(met))
            yield images, labels

    list(train(make_model(), data, Recipe(epochs=2, batch_size=8), watch=watch))
    assert sizes == [8, 8, 8, 8, 8, 6] * 2
    assert sorted(orders[1]) == sorted(orders[2]) == list(range(46))
    assert list(range(46)) != orders[1] != orders[2]


def test_mirroring_only_where_the_data_set_allows_it() -> None:
    recipe = Recipe(epochs=1, batch_size=46, augment=AugmentConfig(flip=True))

    def first_batch(data: Data) -> tuple[Tensor, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []

        def watch(todo: Iterable[tuple[Tensor, Tensor]], _at: Position) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in todo:
                seen.append(batch)
                yield batch

        list(train(make_model(), data, recipe, watch=watch))
        plain = next(batches(data.train, 46, AugmentConfig(), 0, 1))
        return seen[0][0], plain[0]

    got, plain = first_batch(make_data(flip_ok=False))
    assert torch.equal(got, plain)
    got, plain = first_batch(make_data(flip_ok=True))
    mirrored = (got == plain.flip(3)).flatten(1).all(1)
    assert 10 < mirrored.sum() < 36
    assert torch.equal(got[~mirrored], plain[~mirrored])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_seed_decides_every_bit(dropout: float) -> None:
    data = make_data()
    recipe = replace(AUGMENTED, optim=OptimConfig("adam", 0.01))

    def run(recipe: Recipe, disturb: int) -> tuple[Tensor, list[tuple[float, float]]]:
        model = make_model(dropout=dropout)
        torch.manual_seed(disturb)
        told = []
        for epoch in train(model, data, recipe):
            told.append((epoch.loss, epoch.accuracy))
            torch.rand(disturb)  # what the loop's body draws is none of its business
            evaluate(model, data.test)
        return weights(model), told

    (first, told), (again, told_again) = run(recipe, 1), run(recipe, 2)
    assert torch.equal(first, again)
    assert told == told_again
    other, _ = run(replace(recipe, seed=4), 1)
    assert not torch.equal(first, other)


def test_dropout_is_on_in_training() -> None:
    data = make_data()
    with_it, without = make_model(dropout=0.5), make_model(dropout=0.0)
    assert torch.equal(weights(with_it), weights(without))
    for model in (with_it, without):
        model.eval()  # as an evaluation leaves it
        list(train(model, data, replace(AUGMENTED, epochs=1)))
    assert (weights(with_it) - weights(without)).abs().max() > 1e-4


def test_breaking_the_loop_stops() -> None:
    data, recipe = make_data(), replace(AUGMENTED, optim=OptimConfig("sgd", 0.05))
    broken, short = make_model(), make_model()
    for epoch in train(broken, data, recipe):
        assert isinstance(epoch, Epoch)
        if epoch.index == 2:
            break
    two = list(itertools.islice(train(short, data, recipe), 2))
    assert [e.index for e in two] == [1, 2]
    assert torch.equal(weights(broken), weights(short))
    whole = make_model()
    list(train(whole, data, recipe))
    assert not torch.equal(weights(broken), weights(whole))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1, False, 8)]),
        (5, [(1, False, 40)]),
        (6, [(1, True, 46)]),  # the last step of the epoch: nothing is cut short
        (8, [(1, True, 46), (2, False, 16)]),
        (18, [(1, True, 46), (2, True, 46), (3, True, 46)]),
    ],
)
def test_stop_ends_after_the_step_under_way(count: int, expected: list[tuple[int, bool, int]]) -> None:
    data, stop = make_data(), threading.Event()
    model, reference = make_model(), make_model()
    recipe = replace(AUGMENTED, optim=OptimConfig("sgd", 0.05, momentum=0.0))
    epochs = list(train(model, data, recipe, stop=stop, watch=stop_after(stop, count)))
    assert [(e.index, e.complete, e.images) for e in epochs] == expected

    optimizer = torch.optim.SGD(reference.parameters(), 0.05)
    loss_sum = right = 0.0
    for step in range(count):
        images, labels = list(batches(data.train, 8, recipe.augment, 3, step // 6 + 1))[step % 6]
        if step % 6 == 0:
            loss_sum = right = 0.0
        logits = reference.train()(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        right += (logits.argmax(1) == labels).sum().item()
    torch.testing.assert_close(weights(model), weights(reference), atol=1e-6, rtol=1e-6)
    # an epoch cut short tells of the images that it met
    met = expected[-1][2]
    assert epochs[-1].loss == pytest.approx(loss_sum / met, rel=1e-5)
    assert epochs[-1].accuracy == pytest.approx(right / met)


def test_stop_set_in_the_loop_ends_it() -> None:
    stop = threading.Event()
    seen = []
    for epoch in train(make_model(), make_data(), AUGMENTED, stop=stop):
        seen.append((epoch.index, epoch.complete))
        stop.set()
    assert seen == [(1, True)]


def test_no_epochs_is_no_training() -> None:
    model = make_model()
    before = weights(model)
    assert list(train(model, make_data(), replace(AUGMENTED, epochs=0))) == []
    assert torch.equal(weights(model), before)


def test_a_loss_that_is_not_finite_ends_with_a_remedy() -> None:
    data = make_data()
    recipe = replace(AUGMENTED, optim=OptimConfig("sgd", 1e30, momentum=0.0, schedule="cosine"))
    losses: list[float] = []
    model = make_model()

    def note(model: nn.Module, _images: Any, logits: Tensor) -> None:
        if model.training:  # and not where a copy of it is counted
            losses.append(float(logits.detach().logsumexp(1).mean()))  # finite as the loss is

    model.register_forward_hook(note)
    with pytest.raises(UserError) as caught:
        list(train(model, data, recipe))
    step = next(i for i, value in enumerate(losses) if not math.isfinite(value))
    lr = 1e30 * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / 18))
    message = str(caught.value)
    assert f"in epoch 1, step {step + 1} of 6, at a learning rate of {lr:.4g}:" in message
    assert "the loss is nan" in message or "the loss is inf" in message
    assert "--lr 3.3e+29" in message
    assert "--set optim.warmup=0.2" in message
    assert "fp32" in message
    assert caught.value.exit_code == 1


def test_a_diverged_run_is_not_trained_to_the_end_of_its_epoch() -> None:
    data = make_data(300)
    done = 0

    def watch(todo: Iterable[tuple[Tensor, Tensor]], _at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal done
        for batch in todo:
            done += 1
            yield batch

    recipe = Recipe(epochs=1, batch_size=2, optim=OptimConfig("sgd", 1e30))
    with pytest.raises(UserError, match=r"step [23] of 150"):
        list(train(make_model(), data, recipe, watch=watch))
    assert done == CHECK_EVERY == 100


@pytest.mark.parametrize(
    ("name", "lr", "schedule"),
    [
        ("sgd", 0.05, "constant"),
        ("sgd", 0.05, "step"),
        ("sgd", 0.05, "cosine"),
        ("adam", 0.02, "one-cycle"),
        ("adamw", 0.02, "one-cycle"),
        ("rmsprop", 0.005, "one-cycle"),
        ("muon", 0.05, "one-cycle"),
    ],
)
def test_everything_learns_what_is_easy(name: str, lr: float, schedule: str) -> None:
    data, model = make_data(60), make_model(seed=1)
    assert evaluate(model, data.test).accuracy < 0.7
    optim = OptimConfig(name, lr, schedule=schedule, warmup=0.1)  # type: ignore[arg-type] # names of the recipe
    epochs = list(train(model, data, Recipe(epochs=10, batch_size=10, optim=optim)))
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    assert evaluate(model, data.test).accuracy >= 0.95


def test_bfloat16_is_close_to_full_precision() -> None:
    data = make_data()
    exact, rough = make_model(), make_model()
    told = [
        next(train(model, data, replace(AUGMENTED, precision=precision, optim=OptimConfig("sgd", 0.01))))  # type: ignore[arg-type] # names of the recipe
        for model, precision in ((exact, "fp32"), (rough, "bf16"))
    ]
    assert weights(rough).dtype == weights(exact).dtype
    assert not torch.equal(weights(exact), weights(rough))
    assert told[0].loss == pytest.approx(told[1].loss, rel=0.02)


def test_bfloat16_learns_what_is_easy() -> None:
    data, model = make_data(60), make_model(seed=1)
    recipe = Recipe(epochs=10, batch_size=10, precision="bf16", optim=OptimConfig("sgd", 0.05))
    epochs = list(train(model, data, recipe))
    assert epochs[-1].loss < 0.7 * epochs[0].loss
    assert evaluate(model, data.test).accuracy >= 0.95
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("native", "same_as"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_one_of_the_two(native: bool, same_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.device.BF16_FROM", 1)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    data, ends = make_data(), []
    for precision in ("auto", same_as):
        model = make_model()
        list(train(model, data, replace(AUGMENTED, epochs=1, precision=precision)))
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_each_group_follows_the_schedule_from_its_own_peak() -> None:
    optim = OptimConfig("muon", 0.1, linear_lr=0.02, bias_lr=3.0, schedule="one-cycle", warmup=0.25)
    recipe = replace(AUGMENTED, optim=optim)
    rates: list[list[float]] = []

    def watch(todo: Iterable[tuple[Tensor, Tensor]], at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in todo:
            yield batch
            rates.append([group["lr"] for group in at.optimizer.param_groups])  # of the step that was just done

    epochs = list(train(make_model(), make_data(), recipe, watch=watch))
    shares = [lr_share(recipe, epoch, step, 6) for epoch in (1, 2, 3) for step in range(6)]
    assert rates == [pytest.approx([0.1 * share, 0.02 * share, 3.0 * share]) for share in shares]
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.1 * shares[i] for i in (5, 11, 17)])
    middles = [(i + 0.5) / 18 for i in range(18)]
    assert shares == pytest.approx([t / 0.25 if t < 0.25 else 1 - (t - 0.25) / 0.75 for t in middles])


@pytest.mark.parametrize(
    ("sides", "epochs", "expected"),
    [
        ([2, 3], 4, [2, 2, 3, 3]),
        ([2, 3], 5, [2, 2, 3, 3, 3]),
        ([2, 3], 2, [2, 3]),
        ([9, 10, 11], 3, [9, 10, 11]),
        ([9, 10, 11], 7, [9, 9, 10, 10, 11, 11, 11]),
        ([9, 10, 11], 2, [10, 11]),
        ([9, 10, 11], 1, [11]),
        ([9], 3, [9, 9, 9]),
    ],
)
def test_sides_of_crops_are_spread_over_the_epochs(sides: list[int], epochs: int, expected: list[int]) -> None:
    recipe = Recipe(epochs=epochs, augment=AugmentConfig(flip=True, shift=1, crop=sides))
    got = [augmentation(recipe, epoch, flip_ok=True) for epoch in range(1, epochs + 1)]
    assert got == [AugmentConfig(flip=True, shift=1, crop=[side]) for side in expected]
    assert not augmentation(recipe, 1, flip_ok=False).flip
    plain = Recipe(epochs=epochs, augment=AugmentConfig(shift=1))
    assert augmentation(plain, epochs, flip_ok=True) == AugmentConfig(shift=1)


def test_training_on_growing_crops() -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def watch(todo: Iterable[tuple[Tensor, Tensor]], at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in todo:
            seen.append((at.epoch, tuple(images.shape[2:])))
            yield images, labels

    recipe = replace(AUGMENTED, batch_size=46, epochs=4, augment=AugmentConfig(crop=[8, 10]))
    list(train(make_model(), make_data(), recipe, watch=watch))
    assert seen == [(1, (8, 8)), (2, (8, 8)), (3, (10, 10)), (4, (10, 10))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# torch's own compiler imports what torch itself calls deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_it_learns_the_same() -> None:
    data, told = make_data(), []
    for choice in ("off", "on"):
        model = make_model()
        optim = OptimConfig("sgd", 0.02, momentum=0.9)
        epochs = list(train(model, data, replace(AUGMENTED, compile=choice, optim=optim)))  # type: ignore[arg-type] # one of the two
        told.append(([epoch.loss for epoch in epochs], weights(model)))
        assert not any("_orig_mod" in key for key in model.state_dict())
    assert told[0][0] == pytest.approx(told[1][0], rel=1e-3)
    torch.testing.assert_close(told[0][1], told[1][1], atol=1e-3, rtol=1e-3)


FROZEN = Recipe(epochs=4, batch_size=8, optim=OptimConfig("sgd", 0.05, weight_decay=0.1, freeze=[0.25]))


def test_frozen_convolutions_learn_no_more_and_the_others_do() -> None:
    """The first of two from the second of four epochs on, with its norm, weight decay and momentum or not."""
    model = make_model()
    conv, other = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    norm, _ = (layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d))
    linear = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    watched = (conv.weight, norm.weight, norm.bias, other.weight, linear.weight)
    start = [p.detach().clone() for p in watched]
    seen = []
    for _ in train(model, make_data(), FROZEN):
        seen.append([p.detach().clone() for p in watched])
    assert not any(torch.equal(a, b) for a, b in zip(start, seen[0], strict=True))
    for before, after in itertools.pairwise(seen):
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, True, False, False]
    assert all(p.requires_grad for p in model.parameters())


def test_freezing_from_the_start_is_not_training_that_convolution() -> None:
    """Held against torch's own way: requires_grad off before the training begins."""
    found = []
    for recipe in (replace(FROZEN, optim=replace(FROZEN.optim, freeze=[0.0])), replace(FROZEN, optim=OptimConfig())):
        model = make_model()
        if not recipe.optim.freeze:
            recipe = replace(recipe, optim=replace(FROZEN.optim, freeze=[]))
            first = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)][:2]
            for layer in first:
                layer.requires_grad_(False)
        list(train(model, make_data(), recipe))
        found.append(weights(model))
    assert torch.equal(*found)


def test_a_broken_off_training_leaves_nothing_frozen() -> None:
    model = make_model()
    for epoch in train(model, make_data(), FROZEN):
        if epoch.index == 3:
            assert not all(p.requires_grad for p in model.parameters())
            break
    assert all(p.requires_grad for p in model.parameters())


def test_more_frozen_than_there_is() -> None:
    recipe = replace(FROZEN, optim=replace(FROZEN.optim, freeze=[0.2, 0.5]))
    with pytest.raises(UserError, match=r"optim.freeze has 2 shares, but the model has 2 convolutions that learn"):
        next(train(make_model(), make_data(), recipe))


# Average, clipping, parts, balance ------------------------------------------------------------------------------

SGD = OptimConfig("sgd", 0.05, momentum=0.9)
AVERAGED = replace(AUGMENTED, optim=replace(SGD, ema=0.8))
PLAIN = replace(AUGMENTED, optim=SGD)


def by_hand(recipe: Recipe, model: nn.Module, each_step: Any, before_step: Any = lambda: None) -> None:
    """The training of `recipe` (SGD, cross-entropy, constant rate) by plain torch."""
    optimizer = torch.optim.SGD(model.parameters(), recipe.optim.lr, recipe.optim.momentum)
    model.train()
    for index in range(1, recipe.epochs + 1):
        for images, labels in batches(make_data().train, recipe.batch_size, recipe.augment, recipe.seed, index):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            before_step()
            optimizer.step()
            each_step()


def test_the_average_is_torchs_own_and_the_steps_are_the_plain_ones() -> None:
    """Held against swa_utils.AveragedModel, which starts from a copy; batch norm's statistics are averaged too."""
    model, stepped, reference = make_model(), make_model(), make_model()
    position = list(train(model, make_data(), AVERAGED))[-1].position
    list(train(stepped, make_data(), PLAIN))

    def mean(average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return value
        decay = min(0.8, int(count) / (int(count) + 9))  # it has counted the copy, so step t is its t + 1
        return decay * average + (1 - decay) * value

    averaged = torch.optim.swa_utils.AveragedModel(reference, avg_fn=mean, use_buffers=True)
    averaged.update_parameters(reference)
    by_hand(AVERAGED, reference, lambda: averaged.update_parameters(reference))
    torch.testing.assert_close(weights(model), weights(averaged.module), atol=1e-6, rtol=1e-6)
    assert (weights(model) - weights(stepped)).abs().max() > 1e-3
    floats = [value for value in (*stepped.parameters(), *stepped.buffers()) if value.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in zip(position.twin, floats, strict=True))
    counts = [[v for k, v in m.state_dict().items() if k.endswith("num_batches_tracked")] for m in (model, stepped)]
    assert counts[0] == counts[1] == [18, 18]


def test_whoever_has_the_model_has_its_average() -> None:
    """After each epoch, a break, a stop in mid-epoch, an error, and at the end."""
    data = make_data()
    ends = []
    model = make_model()
    for _ in train(model, data, AVERAGED):
        ends.append(weights(model))
    assert torch.equal(weights(model), ends[2])
    assert len({tuple(end.tolist()) for end in ends}) == 3

    broken = make_model()
    for epoch in train(broken, data, AVERAGED):
        if epoch.index == 2:
            break
    assert torch.equal(weights(broken), ends[1])

    def fails(todo: Iterable[tuple[Tensor, Tensor]], _at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        yield from itertools.islice(todo, 4)
        raise KeyboardInterrupt

    stopped, failed, stop = make_model(), make_model(), threading.Event()
    list(train(stopped, data, AVERAGED, stop=stop, watch=stop_after(stop, 4)))
    with pytest.raises(KeyboardInterrupt):
        list(train(failed, data, AVERAGED, watch=fails))
    averaged = torch.optim.swa_utils.AveragedModel(make_model(), avg_fn=lambda a, w, n: a + (w - a) * 9 / (n + 9))
    averaged.update_parameters(reference := make_model())
    by_hand(replace(AVERAGED, epochs=1), reference, _first(4, lambda: averaged.update_parameters(reference)))
    for found in (stopped, failed):
        for p, expected in zip(found.parameters(), averaged.module.parameters(), strict=True):
            torch.testing.assert_close(p, expected, atol=1e-6, rtol=1e-6)


def _first(count: int, call: Any) -> Any:
    """A function that does `call` the first `count` times only."""
    done = itertools.count(1)
    return lambda: call() if next(done) <= count else None


@pytest.mark.parametrize("limit", [0.3, 1000.0])
def test_clipped_it_is_the_loop_that_clips(limit: float) -> None:
    model, reference, norms = make_model(), make_model(), []

    def clip() -> None:
        norms.append(torch.nn.utils.clip_grad_norm_(reference.parameters(), limit).item())

    list(train(model, make_data(), replace(PLAIN, optim=replace(SGD, clip=limit))))
    by_hand(PLAIN, reference, lambda: None, clip)
    torch.testing.assert_close(weights(model), weights(reference), atol=1e-6, rtol=1e-6)
    assert max(norms) > 0.3  # the smaller limit did something
    plain = make_model()
    list(train(plain, make_data(), PLAIN))
    assert torch.equal(weights(plain), weights(model)) is (limit == 1000)


def without_norm() -> nn.Module:
    """A network whose outputs for an image do not depend on the rest of its batch."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 3))
    return nn.Sequential(Normalize((0.3,), (0.3,)), *layers)


@pytest.mark.parametrize("parts", [2, 3, 8])
@pytest.mark.parametrize(
    ("loss", "l1", "balance"), [("cross-entropy", 1e-3, "weights"), ("mse", 0.0, "none"), ("cross-entropy", 0, "none")]
)
def test_in_parts_the_steps_are_those_of_whole_batches(parts: int, loss: Any, l1: float, balance: Any) -> None:
    data, sizes, ends = make_data(), [], []
    data = replace(data, train=replace(data.train, labels=(torch.arange(46) % 9).clamp(max=2)))
    optim = replace(SGD, l1=float(l1), clip=0.5)
    recipe = replace(AUGMENTED, loss=LossConfig(loss), optim=optim, data=DataConfig(0.0, balance=balance))
    for count in (1, parts):
        model = without_norm()
        model.register_forward_hook(lambda m, x, _: sizes.append(len(x[0])) if m.training else None)
        told = [(e.loss, e.accuracy) for e in train(model, data, replace(recipe, accumulate=count))]
        ends.append((told, weights(model)))
    (told, end), (told_in_parts, end_in_parts) = ends
    assert told_in_parts == [pytest.approx(row, rel=1e-5) for row in told]
    torch.testing.assert_close(end_in_parts, end, atol=1e-5, rtol=1e-5)
    epoch = {2: [4, 4] * 5 + [3, 3], 3: [3, 3, 2] * 5 + [2, 2, 2], 8: [1] * 46}[parts]
    assert sizes == ([8] * 5 + [6]) * 3 + epoch * 3


def test_weights_of_classes_are_those_of_the_training_images() -> None:
    """The loss of an epoch of one batch, before its step, by scikit-learn."""
    data = make_data()
    labels = torch.tensor([0] * 30 + [1] * 12 + [2] * 4)
    data = replace(data, train=replace(data.train, labels=labels))
    recipe = Recipe(epochs=1, batch_size=46, precision="fp32", data=DataConfig(balance="weights"))
    model = without_norm()
    with torch.no_grad():
        losses = F.cross_entropy(model(data.train.images), labels, reduction="none")
    expected = (losses.numpy() * compute_sample_weight("balanced", labels.numpy())).mean()
    assert next(train(model, data, recipe)).loss == pytest.approx(expected, rel=1e-5)


def test_drawn_such_that_classes_are_alike() -> None:
    data = make_data()
    labels = torch.tensor([0] * 40 + [1] * 4 + [2] * 2)
    data = replace(data, train=replace(data.train, labels=labels))
    seen: list[list[int]] = []

    def watch(todo: Iterable[tuple[Tensor, Tensor]], _at: Position) -> Iterator[tuple[Tensor, Tensor]]:
        seen.append([])
        for images, labels in todo:
            seen[-1] += labels.tolist()
            yield images, labels

    recipe = Recipe(epochs=20, batch_size=23, data=DataConfig(balance="sample"))
    list(train(without_norm(), data, recipe, watch=watch))
    assert {len(epoch) for epoch in seen} == {46}
    counts = torch.tensor(seen).flatten().bincount() / (20 * 46)
    assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.06)  # four deviations
