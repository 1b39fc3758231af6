"""The program as people call it: its output, its exit codes, what it leaves; in real processes where they matter."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import convlens as api
from convlens.attribution import METHODS

SMALL = ("--limit", "600", "--epochs", "2", "-b", "64")


@pytest.fixture(scope="module")
def trained(convlens, tmp_path_factory):
    """A run on 600 digits, with its JSON."""
    out = tmp_path_factory.mktemp("runs")
    result = convlens("train", "mnist-5k", *SMALL, "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    return out / "mnist-5k-vgg-1", json.loads(result.stdout), result.stderr


def sentence(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a failed call says."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_train_prints_one_json_object(trained) -> None:
    path, printed, stderr = trained
    assert printed["run"] == str(path)
    assert [row["epoch"] for row in printed["epochs"]] == [1, 2]
    assert 0 <= printed["test"]["accuracy"] <= 1
    assert printed["seconds"] > 0
    assert sum(line.startswith("epoch ") and "images/s" in line for line in stderr.splitlines()) == 2


def test_a_run_leaves_everything(trained) -> None:
    path, printed, _ = trained
    run = api.Run.open(path)
    assert run.recipe.epochs == 2
    assert run.metrics["test"]["accuracy"] == printed["test"]["accuracy"]
    assert len(run.environment["data"]["sha256"]) == 64
    assert run.history == printed["epochs"]
    splits = [row["split"] for row in csv.DictReader((path / "split.csv").read_text().splitlines())]
    assert (splits.count("train"), splits.count("val")) == (540, 60)
    rows = list(csv.DictReader((path / "predictions.csv").read_text().splitlines()))
    assert sum(int(row["correct"]) for row in rows) / len(rows) == printed["test"]["accuracy"]
    pictures = {p.name for p in (path / "plots").iterdir()}
    assert {"loss.png", "accuracy.png", "confusion.png", "predictions.png", "filters.png"} <= pictures
    assert len([p for p in pictures if p.startswith("maps-")]) == 4  # the image and three convolutions
    assert not list(path.rglob("*.part"))
    assert not list(path.parent.glob(".part*"))


def test_the_model_file_gives_the_run_its_accuracy(trained, convlens) -> None:
    path, printed, _ = trained
    result = convlens("evaluate", path, "--json")
    assert json.loads(result.stdout)["accuracy"] == printed["test"]["accuracy"]
    missed = convlens("evaluate", path, "--min-accuracy", "1")
    assert "below 1.0" in sentence(missed, 3)


def test_evaluate_tells_what_corruptions_leave_and_draws_it(trained, convlens, tmp_path) -> None:
    path, _, _ = trained
    result = convlens("evaluate", path, "--corruptions", "--limit", "50", "--plots", tmp_path / "new", "--json")
    found = json.loads(result.stdout)["robustness"]
    assert (found["images"], found["of"], len(found["rows"])) == (50, 100, 8)
    assert {p.stem for p in (tmp_path / "new").iterdir()} == {"reliability", "confidence", "coverage", "corruptions"}
    text = convlens("evaluate", path, "--corruptions", "--limit", "50").stdout
    assert "on 50 of 100 test images" in text
    assert f"mean of all {found['mean']:.2%}, clean {found['clean']:.2%}" in text
    (noise,) = (line.split() for line in text.splitlines() if line.startswith("noise"))
    row = found["rows"][0]
    assert noise[1:] == [f"{share:.2%}" for share in (*row["accuracy"], row["mean"])]
    assert "robustness" not in json.loads(convlens("evaluate", path, "--json").stdout)
    assert "--corruptions" in sentence(convlens("evaluate", path, "--limit", "50"), 2)


def test_summary_of_a_run_as_json_and_drawn(trained, convlens, tmp_path) -> None:
    path, _, _ = trained
    result = convlens("summary", path, "--json", "--draw", tmp_path / "net.svg")
    found = json.loads(result.stdout)
    assert found["macs"] == sum(row["macs"] for row in found["rows"])
    assert found["rows"][1]["receptive_field"] == [3, 3]
    assert "</svg>" in (tmp_path / "net.svg").read_text()
    assert f"drawn in {tmp_path / 'net.svg'}" in result.stderr


def test_a_run_is_never_overwritten(trained, convlens) -> None:
    path, _, _ = trained
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    result = convlens("train", "mnist-5k", *SMALL, "--out", path.parent, "--name", path.name)
    assert "never overwritten" in sentence(result, 2)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before
    assert "finished" in sentence(convlens("train", "--resume", path), 2)


def test_predict_files_folders_csv_json_and_bad_ones(trained, convlens, tmp_path) -> None:
    path, _, _ = trained
    data = api.load("mnist-5k")
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(data.test.images[i, 0].numpy()).save(folder / f"{i}.png")
    Image.fromarray(data.test.images[3, 0].numpy()).save(folder / "deep" / "3.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not a picture, and not asked for")

    result = convlens("predict", path, folder, "--top", "2")
    assert result.returncode == 0
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png", "broken.png", "3.png"]
    assert "1 could not be read" in result.stderr
    assert rows[3]["label"] == ""
    assert "damaged" in rows[3]["error"]

    # the same numbers as the model says to the very pixels it was tested on
    model = api.Run.open(path).model_file()
    logits = model.model(data.test.images[:4])
    for row, logit in zip([rows[0], rows[1], rows[2], rows[4]], logits, strict=True):
        assert row["label"] == model.manifest.classes[int(logit.argmax())]
        assert float(row["probability"]) == pytest.approx(logit.softmax(0).max().item(), abs=1e-5)
        assert float(row["probability_2"]) <= float(row["probability"])

    out = tmp_path / "out.json"
    assert convlens("predict", path / "model.safetensors", folder / "0.png", "-o", out).returncode == 0
    assert json.loads(out.read_text())[0]["top"][0][0] == rows[0]["label"]
    assert "ending" in sentence(convlens("predict", path, folder, "-o", tmp_path / "x.xls"), 2)
    assert "no file or folder" in sentence(convlens("predict", path, tmp_path / "nothing"), 2)


def test_explain_draws_every_convolution(trained, convlens, tmp_path) -> None:
    path, _, _ = trained
    result = convlens("explain", path, "test:3", "--feature-maps", "--method", "none", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("test:3: ")
    assert len(list((tmp_path / "test-3").glob("maps-*.png"))) == 4
    assert "numbered from 0" in sentence(convlens("explain", path, "test:100000"), 2)


def test_explain_answers_with_attributions(trained, convlens, tmp_path) -> None:
    path, _, _ = trained
    asked = ("explain", path, "test:3", "test:4", "--no-feature-maps", "--no-channels", "--out", tmp_path)
    result = convlens(*asked, "--class", "7", "--against", "1", "--method", "all", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["images"]
    assert [row["image"] for row in rows] == ["test:3", "test:4"]
    for row in rows:
        assert row["truth"] == "0"
        assert 0 < row["probability"] <= 1
        assert [found["method"] for found in row["attributions"]] == list(METHODS)
        for found in row["attributions"]:
            assert (found["class"], found["against"]) == ("7", "1")
            assert Path(found["file"]).read_bytes().startswith(b"\x89PNG")
            assert bool(found["layer"]) == (found["method"] == "grad-cam")
        assert row["attributions"][-1]["settings"] == {"baseline": [33.33], "window": 4, "stride": 2}
    layer = rows[0]["attributions"][3]["layer"]

    usual = convlens(*asked)
    assert [line.split(":")[0] for line in usual.stdout.splitlines() if not line.startswith(" ")] == ["test", "test"]
    assert len(list((tmp_path / "test-4").glob("*.png"))) == 5 + 3
    assert f"Grad-CAM at {layer}" in usual.stdout
    assert "did you mean 'grad-cam'?" in sentence(convlens(*asked, "--method", "gradcam"), 2)
    assert "no class 12" in sentence(convlens(*asked, "--class", "12"), 2)
    assert "held against itself" in sentence(convlens(*asked, "--class", "1", "--against", "1"), 2)
    assert f"did you mean {layer!r}?" in sentence(convlens(*asked, "--layer", layer + "0"), 2)
    assert "has no maps" in sentence(convlens(*asked, "--layer", "network.classifier"), 2)
    assert "add --method grad-cam" in sentence(convlens(*asked, "--layer", layer, "--method", "saliency"), 2)
    assert "--method none was given" in sentence(convlens(*asked, "--class", "1", "--method", "none"), 2)


def test_explain_draws_what_the_network_wants_to_see(trained, convlens, tmp_path) -> None:
    path, _, _ = trained
    result = convlens("explain", path, "--wishes", "--out", tmp_path, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["images"] == []
    assert [Path(file).name for file in found["wishes"]["files"]] == ["class-means.png", "wishes.png"]
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in found["wishes"]["files"])
    assert set(found["wishes"]["settings"]) == {"steps", "rate", "jitter", "blur", "seed"}
    assert "dead" in found["network"]["layers"][0]
    assert "name one, such as test:0" in sentence(convlens("explain", path, "--class", "3"), 2)


def test_explain_without_captum_draws_what_it_can(trained, convlens, tmp_path, monkeypatch) -> None:
    path, _, _ = trained
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    result = convlens("explain", path, "test:3", "--no-channels", "--out", tmp_path)
    assert result.returncode == 0
    assert "pip install 'convlens[explain]'" in result.stderr
    assert len(list((tmp_path / "test-3").glob("maps-*.png"))) == 4
    assert "pip install 'convlens[explain]'" in sentence(convlens("explain", path, "test:3", "--method", "saliency"), 2)


def test_lists_and_tables(convlens, tmp_path) -> None:
    rows = json.loads(convlens("datasets", "--json", "--data-dir", tmp_path).stdout)
    assert {r["name"] for r in rows} == {"mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "mnist-5k"}
    assert "61,706" in convlens("summary", "lenet5").stdout
    text = convlens("summary", "lenet5", "--formula").stdout
    assert "floor((28 + 2·2 - 5) / 1) + 1 = 28" in text
    shown = convlens("show", "mnist-5k", "--out", tmp_path, "--json")
    assert json.loads(shown.stdout)["test"] == [100] * 10
    assert {p.name for p in (tmp_path / "mnist-5k").iterdir()} == {"samples.png", "class-counts.png"}


def test_flags_win_over_the_recipe_and_the_recipe_prints_as_toml(convlens, tmp_path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('epochs = 3\n[optim]\nlr = 0.5\nname = "adam"\n')
    result = convlens("train", "--recipe", file, "--lr", "0.25", "--set", "optim.l1=1e-5", "--print-recipe")
    recipe = tomllib.loads(result.stdout)
    assert (recipe["epochs"], recipe["optim"]["lr"], recipe["optim"]["name"], recipe["optim"]["l1"]) == (
        3,
        0.25,
        "adam",
        1e-5,
    )
    again = tmp_path / "again.toml"
    again.write_text(result.stdout)
    assert convlens("train", "--recipe", again, "--print-recipe").stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "mnistt"], "did you mean 'mnist'?"),
        (["train"], "say what to train on"),
        (["train", "mnist-5k", "--recipe", "lenet5-mnis"], "did you mean 'lenet5-mnist'?"),
        (["train", "mnist-5k", "-m", "resnet10"], "did you mean"),
        (["train", "mnist-5k", "--set", "optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["train", "mnist-5k", "--set", "optim.lr"], "KEY=VALUE"),
        (["train", "mnist-5k", "--epochs", "many"], "--epochs"),
        (["train", "mnist-5k", "-b", "many"], "-b takes a whole number of images a step, or auto, not 'many'"),
        (["train", "mnist-5k", "-b", "0"], "batch_size must be 1 to 1000000, not 0"),
        (["train", "-b", "auto", "--print-recipe"], "-b auto is measured on images"),
        (["train", "-b", "auto", "--resume", "nowhere"], "give it no others"),
        (["train", "mnist-5k", "--balance", "sampel"], "did you mean 'sample'?"),
        (["train", "mnist-5k", "--set", "accumulate=200"], "accumulate splits a batch of 128 images"),
        (["train", "mnist-5k", "--epochs", "-1"], "epochs must be 0"),
        (["train", "mnist-5k", "--aug", "stron"], "did you mean 'strong'?"),
        (["train", "--resume", "nowhere", "--aug", "light"], "give it no others"),
        (["train", "mnist-5k", "--name", "a/b"], "without a path"),
        (["train", "mnist-5k", "--data-dir", "nowhere"], "does not exist"),
        (["train", "--resume", "nowhere"], "not a run folder"),
        (["train", "mnist-5k", "--resume", "nowhere"], "give it no others"),
        (["train", "mnist-5k", "--device", "toaster"], "device 'toaster'"),
        (["summary", "lenet5", "--size", "8"], "images of 12 x 12 pixels or more do"),
        (["summary", "lenet5", "--size", "big"], "32x48"),
        (["summary", "lenet5", "--draw", "net.jpg"], "did you mean '.png'?"),
        (["summary", "lenet5", "--draw", "nowhere/net.png"], "no folder nowhere"),
        (["predict", "nowhere.safetensors", "x.png"], "no model file"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(convlens, tmp_path, arguments, said) -> None:
    result = convlens(*arguments, cwd=tmp_path)
    assert said in sentence(result, 2) or said in result.stderr
    assert list(tmp_path.iterdir()) == [], "it left something behind"


def test_a_diverging_run_fails_with_a_remedy(convlens, tmp_path) -> None:
    result = convlens("train", "mnist-5k", *SMALL, "--recipe", "cnn-mnist", "--lr", "1e9", "--out", tmp_path)
    text = sentence(result, 1)
    assert "epoch 1, step" in text
    assert "learning rate" in text


def test_debug_shows_the_traceback(convlens) -> None:
    assert "Traceback" in convlens("train", "mnistt", "--debug").stderr


LONG = ("mnist-5k", "--limit", "1200", "--epochs", "8", "--no-plots", "--no-report")


@pytest.fixture(scope="module")
def unbroken(convlens, tmp_path_factory) -> api.Run:
    out = tmp_path_factory.mktemp("unbroken")
    result = convlens("train", *LONG, "--out", out, "--name", "whole")
    assert result.returncode == 0, result.stderr
    return api.Run.open(out / "whole")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_says_how_to_go_on_and_ends_like_an_unbroken_one(
    unbroken, convlens, tmp_path, number, code
) -> None:
    command = [sys.executable, "-m", "convlens", "train", *LONG, "--out", str(tmp_path), "--name", "cut"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == code
    assert f"Go on with: convlens train --resume {tmp_path / 'cut'}" in rest
    assert not (tmp_path / "cut" / "metrics.json").exists()
    resumed = convlens("train", "--resume", tmp_path / "cut", "--no-plots", "--no-report")
    assert resumed.returncode == 0, resumed.stderr
    cut = api.Run.open(tmp_path / "cut")
    assert (cut.path / "predictions.csv").read_bytes() == (unbroken.path / "predictions.csv").read_bytes()
    drop = {"seconds", "images_per_second"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in cut.history] == [
        {k: v for k, v in r.items() if k not in drop} for r in unbroken.history
    ]


def test_patience_stops_early_and_keeps_the_best_epoch(convlens, tmp_path) -> None:
    flags = ("--limit", "300", "--epochs", "40", "--patience", "2", "--lr", "0.5", "--sched", "constant")
    result = convlens("train", "mnist-5k", *flags, "--out", tmp_path, "--no-plots", "--no-report", "--json")
    assert result.returncode == 0, result.stderr
    losses = [row["val_loss"] for row in json.loads(result.stdout)["epochs"]]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) < 40
    assert len(losses) - 1 - best == 2
    assert api.Run.open(tmp_path / "mnist-5k-vgg-1").metrics["epoch"] == best + 1


@pytest.mark.data
def test_one_epoch_on_the_whole_of_mnist(convlens, tmp_path) -> None:
    result = convlens("train", "mnist", "--epochs", "1", "--json", "--out", tmp_path)
    printed = json.loads(result.stdout)
    assert set(printed) == {"run", "epochs", "test", "seconds"}
    assert printed["test"]["accuracy"] > 0.97


def test_a_network_of_ones_own_from_the_folder_one_is_in(convlens, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net(channels, classes, size):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(4 * (size[0] - 2) * (size[1] - 2), classes))\n"
    )
    command = [str(Path(sys.executable).with_name("convlens"))]  # the installed program: its sys.path has no cwd
    train = ("train", "mnist-5k", "-m", "mine:net", "--lr", "0.01", *SMALL, "--no-plots", "--no-report")
    result = subprocess.run([*command, *train], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "-m mine:net" in result.stderr  # in the commands that it says to type next
    run = "runs/mnist-5k-net-1"
    assert "if you trust that code, name it: -m mine:net" in sentence(convlens("evaluate", run, cwd=tmp_path), 2)
    assert convlens("evaluate", run, "-m", "mine:net", cwd=tmp_path).returncode == 0
    del sys.modules["mine"]


def test_a_changed_weight_is_noticed(trained, convlens, tmp_path) -> None:
    import shutil

    import safetensors.torch

    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    file = path / "model.safetensors"
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load(file.read_bytes())
    tensors["model.network.features.0.weight"][0] += 1
    file.write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    assert "golden logits" in sentence(convlens("evaluate", path), 3)


def test_version(process) -> None:
    assert process("--version").stdout == f"convlens {api.__version__}\n"


@pytest.mark.data
@pytest.mark.slow
def test_the_first_articles_figure(convlens, tmp_path) -> None:
    result = convlens(
        "train", "mnist", "--recipe", "lenet5-mnist", "--json", "--out", tmp_path, "--no-plots", "--no-report"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["test"]["accuracy"] > 0.983  # about 98.5 %, less what one seed may differ
