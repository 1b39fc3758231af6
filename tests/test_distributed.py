"""Two processes train together, on the CPU: the numbers of one process, one message, one end."""

from __future__ import annotations

import copy
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from convlens import Data, InputSpec, Recipe, Run, Split, UserError, build, cache, checkpoint, fit, load, train
from convlens.distributed import in_turn, most, on_main, parallel, rank
from convlens.evaluation import logits_of
from convlens.fitting import advance, finish
from convlens.recipe import AugmentConfig, DataConfig, LossConfig, ModelConfig, OptimConfig
from convlens.run import start
from interruptions import stop_after
from runs import fit_undrawn

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

# ---- the numbers: `everything` runs once in this process and once in each of two others, in double precision

SGD = OptimConfig("sgd", 0.1, weight_decay=0.01, l1=1e-3, schedule="one-cycle", warmup=0.3)
BASE = Recipe(
    epochs=3, batch_size=12, seed=3, precision="fp32", augment=AugmentConfig(flip=True, shift=1, cutout=3), optim=SGD
)
MIXED = AugmentConfig(flip=True, scale=0.4, warp=0.3, colour=0.3, tone=0.3, mixup=0.2, cutmix=1.0)
VGG = ModelConfig("vgg", args={"widths": [4, 6], "convs": 1})
CASES = {
    "uneven": (53, VGG, BASE),  # the last batch of five: three images and two
    "last batch of one image": (49, VGG, BASE),
    "batches of one image": (5, VGG, replace(BASE, batch_size=1)),
    "adam, mse": (50, VGG, replace(BASE, optim=OptimConfig("adam", 0.01), loss=LossConfig("mse"))),
    "muon, fixed filters": (50, ModelConfig("speednet", args={"widths": [8, 8], "convs": 1}), replace(BASE, epochs=2)),
    "frozen filters": (50, VGG, replace(BASE, optim=replace(SGD, freeze=[0.4]))),
    "head first": (50, VGG, replace(BASE, optim=replace(SGD, head_epochs=1, body_lr=0.03))),
    "average, clipped, drawn": (
        50,
        VGG,
        replace(BASE, optim=replace(SGD, ema=0.8, clip=0.5), data=DataConfig(balance="sample")),
    ),
    "norms measured": (53, VGG, replace(BASE, optim=replace(SGD, norm_images=17))),
    # the last batch: parts of two images, of one and of one
    "in parts, weighted classes": (52, VGG, replace(BASE, accumulate=3, data=DataConfig(balance="weights"))),
    "in parts, no batch norm": (50, ModelConfig("lenet5"), replace(BASE, accumulate=5)),
    # last: it ends on a batch that is shared out, as the batch norms that are looked at next
    "no batch norm": (50, ModelConfig("lenet5"), BASE),
}


def make_data(count: int) -> Data:
    generator = torch.Generator().manual_seed(11)

    def split(n: int) -> Split:
        images = torch.randint(0, 256, (n, 1, 14, 14), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(n) % 3, torch.arange(n))

    return Data(
        "noise", ("a", "b", "c"), InputSpec((14, 14), 1), (0.3,), (0.3,), True, "", split(count), None, split(7)
    )


def make_model(config: ModelConfig) -> nn.Module:
    shape: Any = {"channels": 1, "classes": 3, "size": (14, 14), "mean": (0.3,), "std": (0.3,)}
    return build(config.name, args=config.args, **shape).double()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


@contextmanager
def double_precision() -> Iterator[None]:
    """The loop asks for float logits; nothing in these numbers is to be rounded to single precision."""
    single = Tensor.float
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = single  # type: ignore[method-assign]


def trained(count: int, network: ModelConfig, recipe: Recipe, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    model, data = make_model(network).to(dtype), make_data(count)
    epochs = [(e.loss, e.accuracy, e.images) for e in train(model, data, recipe)]
    return {
        "weights": weights(model),
        "epochs": epochs,
        "logits": logits_of(model, data.test, batch_size=2, sharded=True),  # seven images
        "one": logits_of(model, data.test.take(torch.tensor([4])), sharded=True),
    }


def begin(path: Path, steps: int) -> None:
    """Train `steps` steps and save."""
    model, stop = make_model(VGG), threading.Event()
    (*_, epoch) = train(model, make_data(53), BASE, stop=stop, watch=stop_after(stop, steps if rank() == 0 else 10**6))
    on_main(checkpoint.save, path, model, epoch.position, {})


def go_on(path: Path) -> Tensor:
    """Train from there to the end."""
    model, saved = make_model(VGG), checkpoint.read(path)
    assert saved is not None
    list(train(model, make_data(53), BASE, resume=lambda position: checkpoint.restore(saved, model, position)))
    return weights(model)


def normed(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What a batch norm gives on this process's half of a batch, and its gradients."""
    factors = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(5))
    if dist.is_initialized():
        x, factors = x.chunk(2)[rank()], factors.chunk(2)[rank()]
    mine = x.clone().requires_grad_()
    whole = parallel(layer)  # held until the gradients are there: it averages them
    y = whole(mine)
    (y * factors).sum().backward()
    assert mine.grad is not None
    grads = {name: p.grad for name, p in layer.named_parameters()}
    return {"y": y.detach(), "dx": mine.grad, **grads, **dict(layer.named_buffers())}  # type: ignore[dict-item] # all tensors


NORMS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "2d": (nn.BatchNorm2d(3), (6, 3, 4, 5)),
    "1d": (nn.BatchNorm1d(3, eps=0.1), (6, 3)),
    "3d": (nn.BatchNorm3d(3), (2, 3, 2, 2, 2)),
    "without statistics": (nn.BatchNorm2d(3, track_running_stats=False), (6, 3, 4, 5)),
    "average of all batches": (nn.BatchNorm2d(3, momentum=None), (6, 3, 4, 5)),
}


def all_norms() -> dict[str, dict[str, Tensor]]:
    found = {}
    for name, (layer, shape) in NORMS.items():
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3 + 100
        layer = copy.deepcopy(layer).double()
        normed(layer, x)  # twice: the statistics are kept from one to the other
        layer.zero_grad()
        found[name] = normed(layer, x)
    return found


def refused(call: Any, *arguments: Any) -> tuple[str, int] | None:
    try:
        call(*arguments)
    except UserError as error:
        return str(error), error.exit_code
    return None


def full(who: int) -> str:
    if rank() == who:
        raise UserError(f"the disk of {who} is full", 1)
    return "written"


def everything(folder: Path) -> dict[str, Any]:
    with double_precision():
        found: dict[str, Any] = {name: trained(*case) for name, case in CASES.items()}
        found["norms"] = all_norms()
        found["went on"] = go_on(folder / "by-one.safetensors") if dist.is_initialized() else None
        begin(folder / ("by-two.safetensors" if dist.is_initialized() else "by-one.safetensors"), 7)
    for precision in ("bf16", "fp32"):  # autocast leaves double precision alone
        found[precision] = trained(53, VGG, replace(BASE, precision=precision, epochs=1), torch.float32)
    found["mixed"] = trained(53, VGG, replace(BASE, augment=MIXED, epochs=1), torch.float32)
    return found


def one_of_two(me: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=me, world_size=2)
    found = everything(folder)
    found["most"] = [most(3 + me), most(me == 0)]
    found["main"] = [on_main(full, 5), refused(on_main, full, 0), on_main(full, 1)]
    found["turns"] = [in_turn(full, 5), refused(in_turn, full, 0), refused(in_turn, full, 1)]
    found["unexpected"] = refused(in_turn, lambda: 1 // (me - 1)) if me == 0 else None
    if me:
        with pytest.raises(ZeroDivisionError):
            in_turn(lambda: 1 // (me - 1))
    torch.save(found, folder / f"{me}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("two")
    alone = everything(folder)
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_of_two, args=(me, folder)) for me in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return alone, [torch.load(folder / f"{me}.pt") for me in (0, 1)], folder


close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_steps_of_one(numbers, case) -> None:
    alone, two, _ = numbers
    for process in two:
        close(process[case]["weights"], alone[case]["weights"])
        for (loss, accuracy, images), expected in zip(process[case]["epochs"], alone[case]["epochs"], strict=True):
            assert loss == pytest.approx(expected[0], rel=1e-6)  # kept in single precision
            assert (accuracy, images) == expected[1:]
    assert torch.equal(two[0][case]["weights"], two[1][case]["weights"])


@pytest.mark.parametrize("case", CASES)
def test_evaluation_takes_each_image_once(numbers, case) -> None:
    alone, two, _ = numbers
    assert alone[case]["logits"].shape == (7, 3)
    assert alone[case]["one"].shape == (1, 3)
    for process in two:
        close(process[case]["logits"], alone[case]["logits"])
        close(process[case]["one"], alone[case]["one"])


@pytest.mark.parametrize("name", NORMS)
def test_batch_norm_over_all_processes(numbers, name) -> None:
    alone, two, _ = numbers
    expected, (first, second) = alone["norms"][name], [process["norms"][name] for process in two]
    assert expected.keys() == first.keys()
    for key, value in expected.items():
        found = torch.cat([first[key], second[key]]) if key in ("y", "dx") else first[key]
        # the parameters' gradients are averaged, as the losses of the processes are means
        close(2 * found if key in ("weight", "bias") else found, value, rtol=1e-7, atol=1e-8)


def test_in_parts_without_batch_norm_it_is_the_same_training(numbers) -> None:
    alone, two, _ = numbers
    for found in (alone, *two):
        close(found["in parts, no batch norm"]["weights"], alone["no batch norm"]["weights"])


def test_a_run_goes_on_in_another_number_of_processes(numbers) -> None:
    alone, two, folder = numbers
    unbroken = alone["uneven"]["weights"]
    for process in two:
        close(process["went on"], unbroken)
    with double_precision():
        close(go_on(folder / "by-two.safetensors"), unbroken)
    saved = checkpoint.read(folder / "by-two.safetensors")
    assert saved is not None
    assert (saved.notes["epoch"], saved.notes["step"]) == (2, 2)  # stopped in both, though one was told


def apart(first: dict[str, Any], second: dict[str, Any]) -> float:
    return float((first["weights"] - second["weights"]).norm() / first["weights"].norm())


def test_mixed_labels_are_shared_out_with_their_images(numbers) -> None:
    alone, two, _ = numbers
    for process in two:
        assert apart(alone["mixed"], process["mixed"]) < 1e-5
        (loss, accuracy, images), *_ = process["mixed"]["epochs"]
        assert loss == pytest.approx(alone["mixed"]["epochs"][0][0], rel=1e-5)
        assert (accuracy, images) == alone["mixed"]["epochs"][0][1:]
    assert apart(alone["mixed"], alone["fp32"]) > 1e-3


def test_bfloat16_is_close(numbers) -> None:
    alone, two, _ = numbers

    assert apart(alone["fp32"], two[0]["fp32"]) < 1e-5
    assert 1e-5 < apart(alone["fp32"], alone["bf16"]) < 0.05  # it really was bf16
    assert apart(alone["bf16"], two[0]["bf16"]) < 0.05
    assert two[0]["bf16"]["epochs"][0][0] == pytest.approx(alone["bf16"]["epochs"][0][0], rel=0.05)


def test_an_error_of_one_is_everybodys(numbers) -> None:
    _, two, _ = numbers
    for process in two:
        assert process["most"] == [4, 1]
        assert process["main"] == ["written", ("the disk of 0 is full", 1), "written"]
        assert process["turns"] == ["written", ("the disk of 0 is full", 1), ("the disk of 1 is full", 1)]
    assert two[0]["unexpected"] == ("process 1 of 2 failed: ZeroDivisionError('integer division or modulo by zero')", 1)


# ---- the program

RECIPE = Recipe(
    epochs=30,
    batch_size=50,
    precision="fp32",
    device="cpu",
    model=ModelConfig("vgg", args={"widths": [8, 16], "convs": 1}),
    optim=OptimConfig("sgd", 0.01),
)
SHORT = replace(RECIPE, epochs=2)
LIMIT = 330


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", RECIPE, limit=LIMIT)


class Two:
    """Two processes of the program, as torchrun starts them. `before` runs first in one of them, the `where`-th."""

    def __init__(self, *arguments: object, before: Any = None, where: int = 0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "convlens", *map(str, arguments)],
                env={**os.environ, **common, "RANK": str(me), "LOCAL_RANK": str(me)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=before if me == where else None,
            )
            for me in (0, 1)
        ]

    def end(self) -> tuple[list[int], list[str]]:
        """Exit codes, and what each said on stderr."""
        said = [process.communicate(timeout=60)[1] for process in self.processes]
        return [process.returncode for process in self.processes], said

    def trained_an_epoch(self) -> None:
        stream = self.processes[0].stderr
        assert stream is not None
        assert any("epoch  1/30" in line for line in itertools.takewhile(bool, iter(stream.readline, "")))


def flags(recipe: Recipe, out: Path, *more: object) -> tuple[object, ...]:
    file = out / "given.toml"
    out.mkdir(exist_ok=True)
    file.write_text(recipe.to_toml())
    return ("train", "mnist-5k", "--recipe", file, "--limit", LIMIT, "--out", out, "--no-plots", "--no-report", *more)


def test_the_program_in_two_processes_and_its_files(data, tmp_path) -> None:
    codes, said = Two(*flags(SHORT, tmp_path / "two", "--name", "run")).end()
    assert codes == [0, 0]
    assert said[0].count("epoch 1/2") == 1
    assert said[1] == ""
    run, alone = Run.open(tmp_path / "two" / "run"), fit_undrawn(SHORT, data, tmp_path / "one")
    assert {p.name for p in run.path.rglob("*")} == {p.name for p in alone.path.rglob("*")}
    assert run.environment["processes"] == 2
    for row, other in zip(run.history, alone.history, strict=True):
        for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[key] == pytest.approx(other[key], rel=1e-4)
    lines = [(run_.path / "predictions.csv").read_text().splitlines() for run_ in (run, alone)]
    for line, other_line in zip(*(x[1:] for x in lines), strict=True):
        mine, theirs = line.split(","), other_line.split(",")
        assert mine[:2] == theirs[:2]
        assert [float(p) for p in mine[4:]] == pytest.approx([float(p) for p in theirs[4:]], abs=1e-4)
    assert run.metrics["test"]["loss"] == pytest.approx(alone.metrics["test"]["loss"], rel=1e-4)
    assert run.metrics["test"]["images"] == len(data.test)


@pytest.mark.slow
def test_a_folder_trains_in_two_processes_and_is_decoded_once(tmp_path, monkeypatch) -> None:
    """Both map the cache that the main process fills; the other could not: its files end at 1,000 bytes."""
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for i in range(90):
        folder = tmp_path / "album" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(random.normal(60 * (i % 3 + 1), 40, (24, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    recipe = replace(SHORT, batch_size=17, augment=AugmentConfig(flip=True, scale=0.6))
    (tmp_path / "given.toml").write_text(recipe.to_toml())
    mute = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))
    named = ("--recipe", tmp_path / "given.toml", "--out", tmp_path, "--name", "two", "--no-plots", "--no-report")
    codes, said = Two("train", tmp_path / "album", *named, before=mute, where=1).end()
    assert codes == [0, 0], said
    assert said[0].count("decoded 90 pictures in") == 1
    assert said[1] == ""
    assert [entry.pictures for entry in cache.entries()] == [90]
    made = cache.entries()[0].path.stat().st_ino
    told: list[int] = []
    alone = fit(recipe, load(tmp_path / "album", recipe, progress=lambda done, _: told.append(done)), tmp_path, "one")
    assert not told
    assert [entry.path.stat().st_ino for entry in cache.entries()] == [made]
    two = Run.open(tmp_path / "two")
    assert (two.path / "split.csv").read_text() == (alone.path / "split.csv").read_text()
    for row, other in zip(two.history, alone.history, strict=True):
        for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert row[key] == pytest.approx(other[key], rel=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_both(data, tmp_path) -> None:
    two = Two(*flags(RECIPE, tmp_path, "--name", "run"))
    two.trained_an_epoch()
    two.processes[1].send_signal(signal.SIGTERM)
    codes, said = two.end()
    assert codes == [143, 143]
    assert said[0].count("interrupted; all is saved") == 1
    assert said[1] == ""
    run = Run.open(tmp_path / "run")
    done = len(run.history)
    assert 1 <= done < 30
    assert len(list(advance(run, data))) == 30 - done
    assert finish(run, data, plots=False, report=False).images == len(data.test)


@pytest.mark.slow
def test_torchrun_interrupted_then_resumed_in_two(data, tmp_path) -> None:
    """Begun by one process, taken up by torchrun with two, Ctrl-C, and finished by one."""
    run = start(RECIPE, data, tmp_path)
    next(advance(run, data))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    with subprocess.Popen(
        [*torchrun, "-m", "convlens", "train", "--resume", str(run.path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any("epoch  2/30" in line for line in itertools.takewhile(bool, iter(process.stderr.readline, "")))
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert said.count("interrupted; all is saved") == 1
    done = len(run.history)
    assert 2 <= done < 30
    assert len(list(advance(run, data))) == 30 - done


@pytest.mark.slow
def test_a_disk_that_is_full_ends_both_with_one_message(tmp_path) -> None:
    small = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (9000, 9000))
    codes, said = Two(*flags(SHORT, tmp_path, "--name", "run"), before=small).end()
    assert codes == [1, 1]
    assert said[0].count("convlens: no room left to write") == 1
    assert "Traceback" not in said[0]
    assert said[1] == ""


@pytest.mark.slow
def test_what_fails_in_the_other_process_only_is_said_by_the_main_one(data, tmp_path) -> None:
    """The other one, as on a machine that does not see the folder, is gone while the main one waits for it."""
    start(SHORT, data, tmp_path, "run")
    codes, said = Two("train", "--resume", "run", before=partial(os.chdir, tmp_path), where=0).end()
    assert codes == [2, 2]
    assert said == ["convlens: run is not a run folder: it has no recipe.toml\n", ""]


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_other_with_it(tmp_path) -> None:
    two = Two(*flags(RECIPE, tmp_path, "--name", "run"))
    two.trained_an_epoch()
    two.processes[1].kill()
    codes, said = two.end()
    assert codes == [1, -signal.SIGKILL]
    assert "convlens: another process of this training ended without a word" in said[0]
    assert "Traceback" not in said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("datasets",), "torchrun starts `convlens train` only; run convlens datasets by itself"),
        (("train", "mnist-5k", "--epochs", "many"), "Invalid value"),
    ],
)
def test_refusals_are_said_once(arguments, message) -> None:
    codes, said = Two(*arguments).end()
    assert codes == [2, 2]
    assert message in said[0]
    assert said[1] == ""
