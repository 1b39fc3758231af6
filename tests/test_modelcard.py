"""The model card: its YAML parses, its numbers are the run's, its code runs, and no class's name or path harms it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from convlens import Data, Recipe, Run, load
from convlens.errors import FAILED
from convlens.fitting import finish
from convlens.intervals import wilson
from convlens.modelcard import NAME, model_card, plain, write_card
from convlens.modelcard import yaml as quoted
from convlens.recipe import DataConfig, ModelConfig
from refusals import refused
from runs import fit_undrawn

RECIPE = Recipe(
    epochs=2, batch_size=64, model=ModelConfig("vgg", args={"widths": [8, 16], "convs": 1}), device="cpu", seed=5
)
HOSTILE = (
    "---",
    '"quoted": {yes}',
    "a|b|c",
    "<script>alert(1)</script>",
    "`code` **bold** [link](http://x.example)",
    "two\nlines\n---\nlicense: mit",
    "naïve 猫 🐈",
    "nul\x00 bell\x07 \x85 \u2028",
    "surrogate \udcff",
    "$x^2$ \\ # ~~~",
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", RECIPE, limit=600)


@pytest.fixture(scope="module")
def run(data: Data, tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, data, tmp_path_factory.mktemp("runs"))


def front(text: str) -> dict[str, Any]:
    """The YAML in front, as the Hub cuts it out."""
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])  # type: ignore[index] # without it the test fails


def edited(run: Run, to: Path, file: str, change: Any) -> Run:
    shutil.copytree(run.path, to)
    values = json.loads((to / file).read_text())
    change(values)
    (to / file).write_text(json.dumps(values))
    return Run.open(to)


def test_a_run_ends_with_its_card(run: Run) -> None:
    assert (run.path / NAME).read_text(encoding="utf-8") == model_card(run)


def test_the_front_is_what_the_hub_asks_for(run: Run) -> None:
    found, test = front(model_card(run)), run.metrics["test"]
    assert found["library_name"] == "convlens"
    assert found["pipeline_tag"] == "image-classification"
    assert found["tags"] == ["image-classification", "convlens", "pytorch"]
    assert found["datasets"] == ["mnist"]
    assert "license" not in found
    (model,) = found["model-index"]
    assert model["name"] == run.path.name
    (result,) = model["results"]
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"name": "mnist-5k", "type": "mnist-5k", "split": "test"}  # and not MNIST's own 10,000
    assert {row["type"]: row["value"] for row in result["metrics"]} == {
        "accuracy": test["accuracy"],
        "f1": test["macro_f1"],
    }


def test_only_a_whole_test_set_goes_under_its_name(run: Run, tmp_path) -> None:
    def changed(name: str, images: int) -> str:
        def change(seen: dict[str, Any]) -> None:
            seen["data"] |= {"name": name}
            seen["data"]["images"]["test"] = images

        card = model_card(edited(run, tmp_path / f"{name}{images}", "environment.json", change))
        return front(card)["model-index"][0]["results"][0]["dataset"]["type"]

    assert changed("mnist", 10_000) == "mnist"
    assert changed("mnist", 100) == "mnist"
    assert changed("fashion-mnist", 10_000) == "fashion_mnist"
    assert changed("from another/package", 10) == "from-another-package"


def test_its_numbers_are_the_runs(run: Run) -> None:
    text, measured = model_card(run), run.metrics
    test = measured["test"]
    low, high = wilson(round(test["accuracy"] * test["images"]), test["images"])
    assert f"{100 * test['accuracy']:.2f} % ({100 * low:.2f} % to {100 * high:.2f} %) |" in text
    for row in test["classes"]:
        cells = " | ".join(f"{100 * row[key]:.2f} %" for key in ("precision", "recall", "f1"))
        assert f"| {row['name']} | {cells} | {row['support']} |" in text
    assert run.environment["data"]["sha256"] in text
    assert "not calibrated: the model has 60 validation images, 100 are needed" in text
    assert f"Fewer than 30 test images are too few to judge a class by: {', '.join('0123456789')}." in text


def test_weak_classes_are_named_with_their_interval_and_what_they_are_taken_for(run: Run, tmp_path) -> None:
    def change(measured: dict[str, Any]) -> None:
        confusion = [[100 if i == j else 0 for j in range(10)] for i in range(10)]
        confusion[3] = [0, 0, 5, 80, 0, 15, 0, 0, 0, 0]  # 80 of 100: 71.1 to 86.7 by Wilson
        confusion[4] = [0, 0, 0, 0, 97, 0, 0, 0, 0, 3]  # 91.5 to 99.0: holds the 97.7 of all
        classes = [
            {"name": str(i), "precision": 1.0, "recall": row[i] / 100, "f1": 1.0, "support": 100}
            for i, row in enumerate(confusion)
        ]
        measured["test"] |= {"images": 1000, "accuracy": 0.977, "confusion": confusion, "classes": classes}

    text = model_card(edited(run, tmp_path / "weak", "metrics.json", change))
    limits = text[text.index("## Limits") : text.index("## Results")]
    assert "  - 3: 80.00 % of 100 (71.12 % to 86.66 %), most often taken for 5\n" in limits
    assert "  - 4:" not in limits
    assert "too few" not in limits


def test_a_calibrated_run_says_its_error_on_the_test_images(run: Run, tmp_path) -> None:
    def change(measured: dict[str, Any]) -> None:
        ece = {"ece": 0.05, "ece_calibrated": 0.0123}
        measured["calibration"] |= {"temperature": 1.5, "note": "", "test": ece}

    text = model_card(edited(run, tmp_path / "calibrated", "metrics.json", change))
    assert "with a temperature of 1.5 fitted on 60 validation images" in text
    assert "is 1.23 %, before it was 5.00 %." in text


def test_hostile_names_break_neither_yaml_nor_tables(run: Run, tmp_path) -> None:
    def change(measured: dict[str, Any]) -> None:
        for row, name in zip(measured["test"]["classes"], HOSTILE, strict=True):
            row["name"] = name

    def rename(seen: dict[str, Any]) -> None:
        seen["data"] |= {"name": '"}\n---\n`x` <b>'}

    odd = edited(run, tmp_path / "classes", "metrics.json", change)
    odd = edited(odd, tmp_path / 'run: "1" | {x} --- \n # <i>', "environment.json", rename)
    text = model_card(odd)
    text.encode()
    found = front(text)
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == '"}�---�`x` <b>'
    assert found["model-index"][0]["name"] == 'run: "1" | {x} --- � # <i>'
    body = text.split("\n---\n", 1)[1]
    assert "\n---\n" not in body
    assert "license: mit\n" not in body
    prose = re.sub(r"^    .*$", "", body, flags=re.MULTILINE)  # an indented line is code, and shown as it is
    assert not re.search(r"(?<!\\)<(script|b|i)>", prose)
    table = body[body.index("| class |") :].split("\n\n")[0].splitlines()
    assert len(table) == 2 + len(HOSTILE)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in table)
    assert r"| a\|b\|c |" in body
    assert "naïve 猫 🐈" in body


@pytest.mark.parametrize("text", [*HOSTILE, "", " ", "yes", "1e3", "null", "\u00a0", "\ufeff", "\x7f", "\U0001f408"])
def test_a_quoted_string_is_read_back_but_for_what_yaml_cannot_hold(text: str) -> None:
    read = yaml.safe_load(f"key: {quoted(text)}")["key"]
    assert read == "".join(c if c.isprintable() else "�" for c in text)


def test_plain_text_stays_readable() -> None:
    assert plain("Ankle boot") == "Ankle boot"
    assert plain("T-shirt/top") == "T-shirt/top"
    assert plain("a_b\n c") == r"a\_b c"


def own_pictures(folder: Path) -> Path:
    """Two classes of unequal size, of 40 and 12 pictures."""
    for label, shade, count in (("dark", 40, 40), ("light", 200, 12)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (12, 12), shade + i).save(folder / label / f"{i}.png")
    return folder


def test_of_own_pictures_no_path_is_told_and_the_sizes_of_classes_are(tmp_path) -> None:
    folder = own_pictures(tmp_path / "secret-place" / "shades")
    recipe = replace(
        RECIPE, epochs=1, data=DataConfig(val=0.2, size=[12, 12], channels=1), note=f"{tmp_path} with x", name="~/own"
    )
    found = fit_undrawn(recipe, load(folder, recipe), tmp_path / "runs")
    text = model_card(found)
    assert str(tmp_path) not in text
    assert "secret-place" not in text
    assert "~/own" not in text
    seen = found.environment
    assert "    convlens train FOLDER --recipe recipe.toml\n" in text
    assert "datasets" not in front(text)
    assert front(text)["model-index"][0]["results"][0]["dataset"] == {
        "name": "shades",
        "type": "imagefolder",
        "split": "test",
    }
    split = (found.path / "split.csv").read_text().splitlines()
    counts = {label: sum(line.endswith(f",{label},train") for line in split) for label in ("dark", "light")}
    assert sum(counts.values()) == seen["data"]["images"]["train"]
    assert f"The training images of a class are from {counts['light']} (light) to {counts['dark']} (dark)." in text


@pytest.mark.slow
def test_its_code_and_its_commands_run(run: Run, convlens, tmp_path) -> None:
    text = model_card(run)
    shutil.copy(run.path / "model.safetensors", tmp_path)
    (tmp_path / "folder").mkdir()
    for place in ("picture.png", "folder/a.png"):
        Image.new("L", (28, 28), 90).save(tmp_path / place)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index] # without it the test fails
    assert len([line for line in code.splitlines() if line]) <= 5
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("picture.png ")
    commands = re.findall(r"^    convlens (predict .*)$", text, re.MULTILINE)
    assert len(commands) == 2
    assert "picture.png" in convlens(*commands[0].split(), cwd=tmp_path).stdout
    assert "target" not in commands[1]  # of 60 validation images no accuracy can be promised
    done = convlens(*commands[1].split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answers.csv").exists()


def test_it_asks_for_an_accuracy_that_can_be_reached(convlens, tmp_path) -> None:
    recipe = replace(RECIPE, epochs=8, data=DataConfig(val=0.4))
    found = fit_undrawn(recipe, load("mnist-5k", recipe, limit=600), tmp_path / "runs")
    curve = found.model_file().manifest.calibration.curve
    (command,) = re.findall(r"^    convlens (predict .* --target-accuracy .*)$", model_card(found), re.MULTILINE)
    asked = float(re.search(r"--target-accuracy (\S+)", command)[1])  # type: ignore[index] # it is what was found
    best = max(point.accuracy for point in curve)
    assert asked == max(aim for aim in (0.99, 0.95, 0.9, 0.8) if aim <= best)
    (tmp_path / "folder").mkdir()
    Image.new("L", (28, 28), 90).save(tmp_path / "folder" / "a.png")
    shutil.copy(found.path / "model.safetensors", tmp_path)
    done = convlens(*command.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_its_recipe_trains_it_again(run: Run, convlens, tmp_path) -> None:
    text = model_card(run)
    toml = re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1]  # type: ignore[index] # without it the test fails
    (tmp_path / "recipe.toml").write_text(toml)
    assert replace(Recipe.from_toml(tmp_path / "recipe.toml"), note="") == replace(run.recipe, note="")
    (command,) = re.findall(r"^    convlens (train .*)$", text, re.MULTILINE)
    done = convlens(*command.split(), "--no-plots", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (again,) = (tmp_path / "runs").iterdir()
    assert Run.open(again).metrics["test"] == run.metrics["test"]


def test_a_network_of_ones_own_is_named_in_the_commands(data: Data, tmp_path, monkeypatch) -> None:
    (tmp_path / "card_net.py").write_text(
        "from torch import nn\n"
        "def net(channels, classes, size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = fit_undrawn(replace(RECIPE, epochs=1, model=ModelConfig("card_net:net")), data, tmp_path)
    text = model_card(found)
    assert "    convlens predict model.safetensors picture.png -m card_net:net\n" in text
    assert 'Predictor.load("model.safetensors", "card_net:net")' in text


def test_networks_that_answer_together_and_for_the_mirror_image_are_told(data: Data, tmp_path) -> None:
    """Not for a data set of digits, which no mirror image is one of."""
    args = {"widths": [4], "convs": 1, "members": 2, "mirror": True}
    told = replace(RECIPE, epochs=1, model=ModelConfig("vgg", args=args))
    pair, mirrored = "2 convolutional networks that answer together", "at the picture and at its mirror image"
    digits = model_card(fit_undrawn(told, data, tmp_path / "digits"))
    assert pair in digits
    assert mirrored not in digits
    either_way = model_card(fit_undrawn(told, replace(data, flip_ok=True), tmp_path / "either-way"))
    assert pair in either_way
    assert mirrored in either_way


def test_the_command_writes_it_and_never_over_an_edited_one(run: Run, convlens, tmp_path) -> None:
    assert convlens("card", run.path).returncode == 0  # the same again
    out = tmp_path / "README.md"
    done = convlens("card", run.path, "--out", out)
    assert done.returncode == 0
    assert "license" in done.stderr
    assert out.read_text(encoding="utf-8") == model_card(run)
    out.write_text("mine")
    refused(lambda: write_card(model_card(run), out), out, "says something else", "--out")
    assert out.read_text() == "mine"
    refused(lambda: write_card("x", tmp_path / "none" / "README.md"), "README.md", exit_code=FAILED)


def test_a_run_that_is_finished_again_keeps_an_edited_card(run: Run, data: Data, tmp_path, caplog) -> None:
    shutil.copytree(run.path, tmp_path / "again")
    (tmp_path / "again" / NAME).write_text("mine")
    finish(Run.open(tmp_path / "again"), data, plots=False, report=False)
    assert (tmp_path / "again" / NAME).read_text() == "mine"
    assert "its model card was left out" in caplog.text


def test_without_a_result_there_is_no_card(run: Run, tmp_path) -> None:
    shutil.copytree(run.path, tmp_path / "begun")
    (tmp_path / "begun" / "metrics.json").unlink()
    refused(lambda: model_card(Run.open(tmp_path / "begun")), "is not finished")
    shutil.copytree(run.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no")
    refused(lambda: model_card(Run.open(tmp_path / "damaged")), "model.safetensors", "missing or damaged")
