"""What the page is told of a run, against the library and torch."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convlens import Predictor, Recipe, Run, build, checkpoint, load, walking
from convlens import exhibit as shown
from convlens import picturelists as lists
from convlens.anatomy import dissect
from convlens.attribution import attribute
from convlens.embedding import features_of, nearest
from convlens.errors import UserError
from convlens.evaluation import logits_of
from convlens.exhibit import UPLOADS, Exhibit
from convlens.fitting import advance
from convlens.images import InputSpec
from convlens.live import is_trained
from convlens.modelfile import ModelFile, save_model
from convlens.picturelists import Glance, Later, Neighbourhood
from convlens.recipes import get_recipe
from convlens.run import start
from convlens.snapshots import ReplacedError
from convlens.walking import read_off
from refusals import refused
from runs import fit_undrawn

RECIPE = Recipe(epochs=3, seed=3, keep_epochs=2).override(
    {"model.name": "cnn-mnist", "optim.name": "adam", "optim.lr": 2e-3, "batch_size": 32}
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, load("mnist-5k", RECIPE, limit=1500), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exhibit(run: Run) -> Exhibit:
    return Exhibit(run)


def floats(told: dict) -> torch.Tensor:
    data = np.frombuffer(base64.b64decode(told["data"]), "<f4")
    return torch.from_numpy(data.copy()).reshape(told["size"])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_what_is_said_of_a_run_is_the_runs(run: Run, exhibit: Exhibit) -> None:
    about = json.loads(json.dumps(exhibit.about(), allow_nan=False))
    assert about["accuracy"] == run.metrics["test"]["accuracy"]
    assert about["parameters"] == run.metrics["parameters"]
    assert about["history"] == run.history
    assert about["splits"] == run.environment["data"]["images"]
    assert about["kept"] == [0, 2, 3]
    assert (about["finished"], about["training"], about["digits"]) == (True, False, True)
    calibration = run.model_file().manifest.calibration
    assert (about["temperature"], about["usual"]) == (calibration.temperature, [*calibration.usual])
    rows = {row["name"]: row for row in about["layers"]}
    assert rows["features.0"]["output"][1:] == [28, 28]
    assert rows["features.0"]["formula"].endswith("= 28")
    assert {row["kind"] for row in about["layers"]} >= {"Normalize", "Conv2d", "ReLU", "MaxPool2d", "Linear"}
    assert [row["activation"] for row in about["layers"]] == [row["kind"] == "ReLU" for row in about["layers"]]


def test_probabilities_are_the_predictors(run: Run, exhibit: Exhibit) -> None:
    predictor, test = Predictor.load(run.path), run.load_data().test
    for place in range(0, 40, 4):
        expected = predictor.probabilities(test.at(slice(place, place + 1)).numpy())[0]
        for brief in (True, False):
            told = exhibit.look(f"test:{place}", {}, brief)
            np.testing.assert_allclose(told["probabilities"], expected, rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose([row[2] for row in told["softmax"]], expected, rtol=1e-5, atol=1e-9)
        logits, temperature = np.array(told["logits"]), told["temperature"]
        np.testing.assert_allclose([row[0] for row in told["softmax"]], logits / temperature, rtol=1e-6)
        calibration = run.model_file().manifest.calibration
        assert (temperature, told["calibrated"]) == (calibration.temperature, not calibration.note)
        assert told["predicted"] == expected.argmax()
        assert told["label"] == int(test.labels[place])
        answer = next(iter(predictor.answers(test.at(slice(place, place + 1)).numpy())))
        assert told["energy"] == pytest.approx(answer.energy, abs=1e-4)
        assert told["unusual"] == answer.unusual


def test_a_picture_given_is_seen_as_the_predictor_sees_it(run: Run, exhibit: Exhibit, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    (tmp_path / "it.png").write_bytes(png(picture))
    added = exhibit.add(png(picture))
    assert added["given"] == {"width": 70, "height": 90, "format": "PNG"}
    expected = next(Predictor.load(run.path).predict([tmp_path / "it.png"], top=10))
    told = exhibit.look(added["ref"], {})
    assert told["label"] is None
    assert max(told["probabilities"]) == pytest.approx(expected.probability, rel=1e-5)
    seen = Image.open(io.BytesIO(base64.b64decode(added["seen"].partition(",")[2])))
    assert seen.size == (28, 28)
    np.testing.assert_array_equal(np.asarray(seen), exhibit.image(added["ref"])[0][0].numpy())
    assert exhibit.picture(added["ref"]) == base64.b64decode(added["seen"].partition(",")[2])


def test_the_network_reads_a_drawn_digit_as_it_reads_mnists(run: Run, exhibit: Exhibit) -> None:
    test, random = run.load_data().test, np.random.default_rng(0)
    same = 0
    for place in range(40):
        digit = Image.fromarray(test.at(slice(place, place + 1))[0, 0].numpy())
        canvas = np.zeros((300, 340), dtype=np.uint8)
        top, left = random.integers(0, 100, 2)
        canvas[top : top + 196, left : left + 196] = np.asarray(digit.resize((196, 196), Image.Resampling.BICUBIC))
        drawn = exhibit.look(exhibit.add(png(canvas), digit=True)["ref"], {}, brief=True)
        same += drawn["predicted"] == exhibit.look(f"test:{place}", {}, brief=True)["predicted"]
    assert same >= 38


def test_uploads_are_bounded_and_named_by_their_pixels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Exhibit(run).uploads == UPLOADS[0] >= 1000  # one drawn digit is dozens, and an older one may be looked at
    monkeypatch.setattr(shown, "UPLOADS", (UPLOADS[0], 50 * 28 * 28))
    exhibit = Exhibit(run)
    refs = [exhibit.add(png(np.full((28, 28), level, np.uint8)))["ref"] for level in range(53)]
    assert len(set(refs)) == len(refs)
    assert exhibit.add(png(np.full((28, 28), 40, np.uint8)))["ref"] == refs[40]
    refused(lambda: exhibit.image(refs[0]), "not kept any more")
    assert exhibit.image(refs[40])[0].unique().tolist() == [40]


def test_maps_and_values_are_what_the_layers_gave(run: Run, exhibit: Exhibit) -> None:
    found = exhibit.walk("test:5", {})
    with torch.no_grad():
        model = run.model_file().model
        seen = model.normalize(run.load_data().test.at(slice(5, 6)))
        expected = model.network.features[0](seen)[0]
    for channel in range(len(expected)):
        torch.testing.assert_close(floats(walking.values(found, "features.0", channel)), expected[channel])
    given = floats(walking.values(found, "features.0", side="input"))
    torch.testing.assert_close(given, seen[0, 0])
    pixels = floats(walking.values(found, "input"))
    torch.testing.assert_close(pixels, run.load_data().test.at(slice(5, 6))[0, 0].float())
    told = walking.maps(found, "features.0", first=2, count=5)
    look = next(layer for layer in exhibit.look("test:5", {})["layers"] if layer["name"] == "features.0")
    assert told["channels"] == look["order"][2:7]
    assert (told["low"], told["high"]) == pytest.approx((expected.min().item(), expected.max().item()))
    levels = np.frombuffer(base64.b64decode(told["data"]), np.uint8).reshape(5, *told["size"])
    step = (told["high"] - told["low"]) / 255
    shown = torch.from_numpy(levels.astype(np.float32)) * step + told["low"]
    torch.testing.assert_close(shown, expected[told["channels"]], atol=0.51 * step, rtol=0)
    units = walking.maps(found, "classifier.3")
    assert units["size"] == [1, 1]
    assert sorted(units["channels"]) == list(range(10))


def test_the_arithmetic_of_any_number_is_what_the_layer_gave(exhibit: Exhibit) -> None:
    found = exhibit.walk("test:7", {})
    random = np.random.default_rng(0)
    kinds = set()
    for step in found.anatomy.steps:
        for _ in range(4):
            at = [int(random.integers(n)) for n in step.output.shape]
            told = json.loads(json.dumps(walking.explained(found, step.name, *at), allow_nan=False))
            kinds.add(told["kind"])
            expected = step.output[tuple(at)].item()
            assert told["value"] == pytest.approx(expected, abs=1e-4)
            if told["kind"] == "convolution":
                products = np.multiply(told["inputs"], told["weights"]).sum((1, 2))
                np.testing.assert_allclose(products, told["shares"], atol=1e-5)
                assert products.sum() + told["rest"] + told["bias"] == pytest.approx(expected, abs=1e-4)
            if told["kind"] == "linear":
                total = sum(one["product"] for one in told["strongest"]) + told["rest"] + told["bias"]
                assert total == pytest.approx(expected, abs=1e-4)
                strengths = [abs(one["product"]) for one in told["strongest"]]
                assert strengths == sorted(strengths, reverse=True)
    assert kinds >= {"convolution", "max", "linear", "affine", "pointwise"}


def test_channels_switched_off_are_channels_whose_weights_are_zero(run: Run, exhibit: Exhibit) -> None:
    off = read_off("features.0:1,4")
    told = exhibit.look("test:3", off)
    model = run.model_file().model
    with torch.no_grad():
        for parameter in model.network.features[0].parameters():
            parameter[[1, 4]] = 0
        expected = model(run.load_data().test.at(slice(3, 4)))[0]
    torch.testing.assert_close(torch.tensor(told["logits"]), expected)
    assert told["logits"] != exhibit.look("test:3", {})["logits"]
    one = walking.explained(exhibit.walk("test:3", off), "features.0", 4, 3, 3)
    on = walking.explained(exhibit.walk("test:3", {}), "features.0", 4, 3, 3)
    assert (on["off"], one["off"]) == (False, True)
    assert one["value"] == on["value"] == pytest.approx(sum(one["shares"]) + one["bias"], abs=1e-5)


def test_weights_of_an_earlier_epoch_answer_as_they_did(run: Run, exhibit: Exhibit) -> None:
    test = run.load_data().test
    model = build("cnn-mnist", channels=1, classes=10, size=(28, 28), pretrained=False)
    answers = {}
    for epoch in (0, 2):
        model.load_state_dict(checkpoint.weights(checkpoint.read(run.of_epoch(epoch))))
        with torch.no_grad():
            expected = model.eval()(test.at(slice(0, 1)))[0]
        told = exhibit.look("test:0", {}, brief=True, epoch=epoch)
        torch.testing.assert_close(torch.tensor(told["logits"]), expected)
        answers[epoch] = told["probabilities"]
        kernel = torch.tensor(exhibit.filters("features.0", 2, epoch)["weights"])
        torch.testing.assert_close(kernel, model.network.features[0].weight[2].detach())
    assert max(answers[0]) < 0.5 < max(answers[2])
    refused(lambda: exhibit.look("test:0", {}, epoch=1), "epoch 1 were not kept", "0, 2, 3")


def test_what_belongs_together_is_of_one_network(tmp_path: Path) -> None:
    """While a run is trained, what is asked by a look's stamp is that network's, or refused."""
    data = load("mnist-5k", RECIPE, limit=300)
    going = start(RECIPE, data, tmp_path)
    steps, exhibit = advance(going, data), Exhibit(going)
    next(steps)
    image = data.test.at(slice(0, 1))[0]
    first = exhibit.look("test:0", {})
    assert (first["temperature"], first["calibrated"]) == (1.0, False)
    old = exhibit.network().model
    next(steps)
    second = exhibit.look("test:0", {})
    assert first["stamp"] != second["stamp"]
    assert exhibit.look("test:0", {}, at=first["stamp"])["logits"] == first["logits"] != second["logits"]
    torch.testing.assert_close(exhibit.walk("test:0", {}, at=first["stamp"]).anatomy.logits, dissect(old, image).logits)
    assert exhibit.walk("test:0", {}).anatomy.logits.tolist() == second["logits"]
    with pytest.raises(ReplacedError, match="saved another network"):
        Exhibit(going).walk("test:0", {}, at=first["stamp"])
    with pytest.raises(ReplacedError):
        exhibit.look("test:0", {}, at="last.safetensors-1")
    assert len(list(steps)) == 1


def test_a_run_is_known_by_its_data_and_its_network(run: Run, exhibit: Exhibit, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "elsewhere" / run.path.name)
    copy = Exhibit(Run.open(tmp_path / "elsewhere" / run.path.name))
    assert copy.about()["identity"] == exhibit.about()["identity"]
    file = copy.run.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert copy.identity != exhibit.identity  # also where it is open already
    rows = (run.path / "predictions.csv").read_text().splitlines(keepends=True)
    assert len(copy.outcomes.labels) == len(rows) - 1
    (copy.run.path / "predictions.csv").write_text("".join(rows[:9]))
    assert len(copy.outcomes.labels) == 8
    assert exhibit.identity.startswith(run.environment["data"]["sha256"][:12])


def test_another_kind_of_network_in_its_place_is_said(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    exhibit = Exhibit(Run.open(tmp_path / "run"))
    other = run.model_file()
    changed = replace(other.manifest, builder="lenet5")
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    save_model(tmp_path / "run" / "model.safetensors", ModelFile(model, changed, other.golden))
    for ask in (lambda: exhibit.look("test:0", {}), exhibit.about):
        refused(ask, "another kind of network by now")


def test_a_run_that_is_gone_is_said_and_not_made_anew(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    exhibit = Exhibit(Run.open(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    assert not is_trained(exhibit.run)
    for ask in (lambda: exhibit.look("test:0", {}), exhibit.about):
        refused(ask, "is gone")
    assert not (tmp_path / "run").exists()


def test_data_that_is_gone_is_said(run: Run, exhibit: Exhibit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("CONVLENS_DATA", "CONVLENS_CACHE"):  # where MNIST may lie on this machine
        monkeypatch.setenv(place, str(tmp_path))
    assert (exhibit.about()["data"], exhibit.about()["why"]) == (True, "")
    for changed in ({"folder": str(tmp_path / "gone")}, {"name": "mnist", "data_dir": str(tmp_path)}):
        without = Exhibit(run)
        without.seen = run.environment["data"] | changed
        about = without.about()
        assert about["data"] is False
        assert "--data-dir says where" in about["why"]
        refused(lambda: without.image("test:0"), about["why"])  # noqa: B023 - called at once


def test_the_slices_of_a_filter_are_the_strongest(run: Run, exhibit: Exhibit) -> None:
    weight = run.model_file().model.network.features[3].weight.detach()
    told = exhibit.filters("features.3", 5)
    torch.testing.assert_close(torch.tensor(told["weights"]), weight[5][told["channels"]])
    norms = weight[5].flatten(1).norm(dim=1)[told["channels"]].tolist()
    assert norms == sorted(norms, reverse=True)
    everything = exhibit.filters("features.0")
    assert np.shape(everything["weights"])[1:] == (1, 3, 3)
    unit = exhibit.filters("classifier.3", 1)
    row = run.model_file().model.network.classifier[3].weight.detach()[1]
    torch.testing.assert_close(torch.tensor(unit["weights"]), row[unit["channels"]])
    refused(lambda: exhibit.filters("features.1", 0), "ReLU", "no kernels")
    refused(lambda: exhibit.filters("features.0", 999), "no channel 999")


def test_lists_are_those_of_the_predictions(run: Run, exhibit: Exhibit) -> None:
    logits = logits_of(run.model_file().model, run.load_data().test)
    labels, best = run.load_data().test.labels, logits.argmax(1)
    wrong = lists.images(exhibit, wrong=True, sort="sure")
    assert wrong["total"] == int((labels != best).sum()) > 0
    chances = [row["probability"] for row in wrong["images"]]
    assert chances == sorted(chances, reverse=True)
    for row in wrong["images"]:
        place = int(row["ref"].partition(":")[2])
        assert (row["label"], row["predicted"]) == (int(labels[place]), int(best[place]))
    truth, said = wrong["images"][0]["label"], wrong["images"][0]["predicted"]
    cell = lists.images(exhibit, label=str(truth), predicted=str(said))
    assert (
        cell["total"]
        == lists.confusion(exhibit)["counts"][truth][said]
        == int(((labels == truth) & (best == said)).sum())
    )
    assert lists.confusion(exhibit)["counts"] == run.metrics["test"]["confusion"]
    pages = [lists.images(exhibit, page=page)["images"] for page in range(6)]
    assert [row["ref"] for page in pages for row in page] == [f"test:{i}" for i in range(len(labels))]
    train = lists.images(exhibit, "train", label="3")
    assert train["total"] == int((run.load_data().train.labels == 3).sum())
    assert {row["label"] for row in train["images"]} == {3}
    refused(lambda: lists.images(exhibit, "train", wrong=True), "test images")
    refused(lambda: lists.images(exhibit, sort="best"), "unknown order 'best'")
    refused(lambda: lists.images(exhibit, label="eleven"), "unknown class")


def test_pictures_of_ones_own_have_their_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(("dark", "bright")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            pixels = random.integers(number * 120, number * 120 + 100, (20, 24, 3), dtype=np.uint8)
            (tmp_path / "pictures" / name / f"{i}.png").write_bytes(png(pixels))
    recipe = get_recipe("photos").override({"epochs": 1, "batch_size": 16})
    run = fit_undrawn(recipe, load(tmp_path / "pictures", recipe), tmp_path / "runs")
    exhibit, data = Exhibit(run), run.load_data()
    about = exhibit.about()
    assert (about["digits"], about["classes"]) == (False, ["bright", "dark"])
    for split in ("test", "train", "val"):
        rows = lists.images(exhibit, split)["images"]
        assert len(rows) == about["splits"][split]
        for row in rows:
            place = int(row["ref"].partition(":")[2])
            assert row["file"] == data.files[int(getattr(data, split).index[place])]
            assert row["file"].startswith(data.classes[row["label"]])
            given = exhibit.add((tmp_path / "pictures" / row["file"]).read_bytes())
            assert exhibit.picture(given["ref"]) == exhibit.picture(row["ref"])


def test_neighbours_are_the_nearest_by_the_last_layers_input(
    run: Run, exhibit: Exhibit, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbourhood, train = Neighbourhood(exhibit), run.load_data().train
    monkeypatch.setattr(lists, "WAITED", 0)
    assert neighbourhood.near("test:0") == {"pending": True, "images": []}
    neighbourhood.later.thread.join()
    model = run.model_file().model
    known, asked = features_of(model, train)[0], features_of(model, run.load_data().test)[0]
    expected = nearest(asked[:1], known)
    told = neighbourhood.near("test:0")
    assert [row["ref"] for row in told["images"]] == [f"train:{place}" for place in expected.places[0].tolist()]
    np.testing.assert_allclose([row["distance"] for row in told["images"]], expected.distances[0], atol=1e-5)
    assert told["among"] == len(train)
    own = neighbourhood.near("train:9")["images"]
    assert len(own) == 8
    assert "train:9" not in [row["ref"] for row in own]


def test_mistakes_of_the_moment_are_of_images_held_out(run: Run, exhibit: Exhibit) -> None:
    told = mistakes(exhibit)
    val = run.load_data().val
    best = logits_of(run.model_file().model, val).argmax(1)
    assert (told["split"], told["looked"]) == ("val", len(val))
    assert told["wrong"] == int((best != val.labels).sum())
    for row in told["images"]:
        place = int(row["ref"].partition(":")[2])
        assert (row["label"], row["predicted"]) == (int(val.labels[place]), int(best[place]))
    assert mistakes(exhibit, epoch=0)["wrong"] > told["wrong"]


def mistakes(exhibit: Exhibit, epoch: int | None = None) -> dict:
    told = Glance(exhibit).mistakes(epoch)
    assert not told["pending"]
    return told


def test_what_fails_in_the_background_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "WAITED", 0)
    later = Later[int]()
    later.stay()

    def fail() -> int:
        raise UserError("no data")

    assert later.ask("first", lambda: 1) == (None, False)
    later.thread.join()
    assert later.ask("first", fail) == (1, True)
    assert later.ask("second", fail) == (1, False)
    later.thread.join()
    refused(lambda: later.ask("second", fail), "no data")
    assert later.ask("third", lambda: 3)[1] is False
    later.thread.join()
    assert later.ask("third", fail) == (3, True)
    later.leave()
    refused(later.stay, "shutting down")


def test_heat_is_the_attribution(run: Run, exhibit: Exhibit) -> None:
    image, model = run.load_data().test.at(slice(2, 3)), run.model_file().model
    for method, target in (("grad-cam", ""), ("input-x-gradient", "7")):
        heat = attribute(model, image, method, int(target) if target else None)[0].heat
        found = np.asarray(Image.open(io.BytesIO(exhibit.heat("test:2", method, target))))
        assert found.shape == (28, 28, 4)
        np.testing.assert_allclose(found[..., 3], heat.abs() / heat.abs().max() * 255, atol=1)
        assert (found[..., 2] > found[..., 0]).tolist() == (heat < 0).tolist()
    refused(lambda: exhibit.heat("test:2", "magic"), "unknown method 'magic'")


def test_many_askers_at_once_get_their_own_answers(run: Run, exhibit: Exhibit) -> None:
    """Hooks of one walk must not see another's numbers, nor those of what goes on in the background."""
    questions = [(f"test:{i % 7}", f"features.0:{i % 5}" if i % 2 else "", i % 3) for i in range(60)]
    fresh = Exhibit(run)

    def asked(of: Exhibit, question: tuple[str, str, int]) -> object:
        ref, off, kind = question
        if kind == 0:
            return of.look(ref, read_off(off))
        if kind == 1:
            return walking.maps(of.walk(ref, read_off(off)), "features.3")
        return of.heat(ref, "saliency")

    expected = [asked(exhibit, question) for question in questions]
    threading.Thread(target=Neighbourhood(fresh).near, args=("test:0",)).start()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda question: asked(fresh, question), questions)) == expected


def test_two_runs_side_by_side(exhibit: Exhibit, tmp_path_factory) -> None:
    other_recipe = RECIPE.override({"model.name": "lenet5", "epochs": 1})
    other = fit_undrawn(other_recipe, load("mnist-5k", other_recipe, limit=1500), tmp_path_factory.mktemp("other"))
    second = Exhibit(other)
    told = lists.compared(exhibit, second)
    assert told["recipe"]["model.name"] == ("cnn-mnist", "lenet5")
    ours, theirs = exhibit.outcomes.right, second.outcomes.right
    total = 0
    for kind, expected in (("first", ours & ~theirs), ("second", theirs & ~ours), ("neither", ~ours & ~theirs)):
        page = lists.compared(exhibit, second, kind)
        assert page["total"] == int(expected.sum())
        for row in page["images"]:
            place = int(row["ref"].partition(":")[2])
            assert expected[place]
            assert row["other"]["predicted"] == int(second.outcomes.predicted[place])
        total += page["total"]
    test = told["tests"][0]
    assert test["both"] + total == len(ours)
    refused(lambda: lists.compared(exhibit, second, "third"), "unknown kind 'third'")


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("test:99999", "numbered from 0"),
        ("test:-1", "named like test:0"),
        ("nowhere:1", "no split 'nowhere'"),
        ("up:ffff", "not kept any more"),
        ("../../etc/passwd", "named like"),
        ("", "named like"),
        ("test:" + "9" * 5000, "numbered from 0"),
    ],
)
def test_a_bad_ref_is_one_sentence(exhibit: Exhibit, ref: str, words: str) -> None:
    refused(lambda: exhibit.look(ref, {}), words)


def test_bad_layers_numbers_and_pictures_are_sentences(exhibit: Exhibit) -> None:
    found = exhibit.walk("test:0", {})
    refused(lambda: walking.maps(found, "nope"), "unknown layer 'nope'")
    refused(lambda: walking.values(found, "features.0", 99), "no channel 99")
    refused(lambda: walking.values(found, "input", 1), "no channel 1")
    refused(lambda: walking.explained(found, "features.0", 0, 28, 0), "has no number at 0 x 28 x 0")
    refused(lambda: exhibit.look("test:0", read_off("nope:1")), "unknown layer 'nope'")
    refused(lambda: exhibit.look("test:0", read_off("features.0:99")), "no channel 99")
    for text in ("features.0", ":1", "features.0:", "features.0:x", "a:1;;b", "a:-1", "a:" + "9" * 30):
        refused(lambda text=text: read_off(text), "off is layer:3,5")
    refused(lambda: exhibit.add(b""), "empty")
    refused(lambda: exhibit.add(b"no picture"), "not a picture")
    refused(lambda: exhibit.add(png(np.zeros((40, 40), np.uint8)), digit=True), "no ink")
    assert read_off("") == {}
    assert read_off("features.0:3,1;network.features.0:3;b:2;") == {"features.0": (1, 3), "b": (2,)}


class Wide(nn.Module):
    """A hundred layers, 512 channels, tokens, numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 512, 3, stride=4)
        block = (nn.Conv2d(512, 512, 1, groups=8), nn.ReLU())
        self.body = nn.Sequential(*(layer for _ in range(49) for layer in (nn.Conv2d(512, 512, 1, groups=8), block[1])))
        self.mix = nn.Conv2d(512, 512, 3, padding=1)
        self.tokens, self.head = nn.Linear(512, 20), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.mix(self.body(self.stem(x / 255)))
        return self.head(self.tokens(maps.flatten(2).transpose(1, 2)).mean(1))


def test_a_network_of_a_hundred_layers_is_told_in_parts() -> None:
    torch.manual_seed(0)
    model, spec = Wide().eval(), InputSpec((32, 32), 3)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    rows = walking.layers(model, spec)
    assert len(rows) == 102
    found = walking.walk(model, image, {})
    ranked = walking.ranked(found)
    assert len(json.dumps(ranked)) < 200_000
    assert all(len(layer["order"]) == len(layer["scores"]) <= 64 for layer in ranked)
    told = walking.explained(found, "mix", 3, 2, 2)
    assert len(told["channels"]) == 64
    assert sum(told["shares"]) + told["rest"] + told["bias"] == pytest.approx(told["value"], abs=1e-4)
    mix, step = model.mix, found.anatomy.step("mix")
    for given in (0, 77, 511):  # also a channel that adds little is told, at its own place in every list
        told = walking.explained(found, "mix", 3, 2, 2, given)
        at = told["channels"].index(given)
        assert len(told["channels"]) in (64, 65)
        assert told["channels"] == sorted(told["channels"])
        patch, kernel = step.input[given, 1:4, 1:4], mix.weight[3, given].detach()
        torch.testing.assert_close(torch.tensor(told["inputs"][at]), patch)
        torch.testing.assert_close(torch.tensor(told["weights"][at]), kernel)
        assert told["shares"][at] == pytest.approx((patch * kernel).sum().item(), abs=1e-5)
        assert sum(told["shares"]) + told["rest"] + told["bias"] == pytest.approx(step.output[3, 2, 2].item(), abs=1e-4)
    refused(lambda: walking.explained(found, "mix", 3, 2, 2, 512), "reads the channels 0 to 511, not 512")
    refused(lambda: walking.explained(found, "body.0", 64, 0, 0, 3), "reads the channels 64 to 127, not 3")
    pages = [walking.maps(found, "mix", first=first, count=200)["channels"] for first in (0, 200, 400, 600)]
    assert sorted(channel for page in pages for channel in page) == list(range(512))
    tokens = walking.maps(found, "tokens")
    assert (tokens["size"], tokens["total"]) == ([1, 20], 64)
    assert walking.explained(found, "tokens", 5, 0, 7)["value"] == pytest.approx(
        found.anatomy.step("tokens").output[5, 7].item(), abs=1e-4
    )
    assert len(walking.filters(model, "mix", 0)["channels"]) == 64


def test_what_reads_its_neighbours_is_no_activation() -> None:
    """The page says of an activation that its numbers go one by one."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    told = walking.layers(model.append(nn.LogSoftmax(1)).eval(), InputSpec((8, 8), 1))
    assert [row["kind"] for row in told if row["activation"]] == ["GELU"]
