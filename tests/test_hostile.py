"""Model files from an enemy: each ends in one sentence, in little time and memory, and nothing of theirs runs."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convlens import InputSpec
from convlens.errors import UserError
from convlens.manifest import DEPTH, IMAGES, SIDE
from convlens.modelfile import load_model, save_model, seal_holds
from convlens.tensors import HEADER
from refusals import refused
from test_modelfile import make_file

MEMORY, SECONDS = 300 * 2**20, 10.0  # an attack's share, beyond what torch itself takes
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = make_file("vgg", InputSpec((12, 14), 3, "fit"), args={"widths": [4, 6], "convs": 1})
    save_model(tmp_path_factory.mktemp("good") / "m.safetensors", file)
    return (tmp_path_factory.getbasetemp() / "good0/m.safetensors").read_bytes()


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header's JSON, its config unpacked in place, and the bytes behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["config"] = json.loads(header["__metadata__"]["config"])
    return header, data[end:]


def whole(header: dict[str, Any], data: bytes) -> bytes:
    config = header["__metadata__"].get("config", "")
    said = {"config": json.dumps(config)} if not isinstance(config, str) else {}
    text = json.dumps({**header, "__metadata__": header["__metadata__"] | said}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def changed(good: bytes, change: Change) -> bytes:
    header, data = parts(good)
    change(header)
    return whole(header, data)


def config(**changes: Any) -> Change:
    return lambda header: header["__metadata__"]["config"].update(changes)


def raw_config(text: str) -> Change:
    return lambda header: header["__metadata__"].update(config=text)


def written(header: dict[str, Any], key: str, value: str) -> None:
    """The value of one key of the config as this text, which json.dumps would not write."""
    values = header["__metadata__"]["config"] | {key: "PLACE"}
    header["__metadata__"]["config"] = json.dumps(values).replace('"PLACE"', value)


def tensor(name: str, **changes: Any) -> Change:
    return lambda header: header[name].update(changes)


def network(builder: str, **args: Any) -> Change:
    return config(builder=builder, args=args)


BIG = 10**9
BUILT: dict[str, Change] = {
    "wide": network("vgg", widths=[BIG], convs=1),
    "wide twice": network("vgg", widths=[BIG, BIG]),
    "wider than numbers go": network("vgg", widths=[2**62], convs=1),
    "long": network("vgg", widths=[4], convs=BIG),
    "long without width": network("vgg", widths=[0], convs=BIG),
    "narrow": network("vgg", widths=[-1]),
    "many widths": network("vgg", widths=[4] * 999, convs=1),
    "only pools": network("vgg", widths=[4] * 1000, convs=0),
    "letters": network("vgg", widths="4" * 1000),
    "wide resnet9": network("resnet9", width=BIG),
    "a fraction": network("resnet9", width=64.5),
    "long speednet": network("speednet", convs=BIG),
    "wide speednet": network("speednet", widths=[BIG, BIG, BIG]),
    "padded speednet": network("speednet", padding=10**6),
    "a large whitening": network("speednet", whiten=BIG),
    "a whitening on the spot": network("speednet", whiten=2, whiten_stride=0),
    "many components": network("speednet", components=BIG),
    "a list for a word": network("lenet5", activation=["relu"]),
    "a table for a list": network("vgg", widths={"4": 1}),
    "dropout": network("vgg", dropout="much"),
}
LIED: dict[str, tuple[Change, str]] = {
    "long list": (network("vgg", widths=[4] * 1001), "args has more than 1,000"),
    "long text": (network("vgg", widths="4" * 1001), "args has more than 1,000"),
    "builder is a number": (config(builder=3), "no 'builder'"),
    "builder is a page": (config(builder="x" * 10**6), "builder has no name"),
    "builder moves the cursor": (config(builder="a\x1b[2J:b"), "builder has no name"),
    "args is a list": (config(args=[1]), "no 'args'"),
    "deep recipe": (raw_config('{"recipe": ' + "[" * 100_000 + "]" * 100_000 + "}"), "nested too deeply"),
    "rather deep": (
        lambda h: written(h, "recipe", '{"a":' * 500 + "1" + "}" * 500),
        f"nested more than {DEPTH} deep",
    ),
    "huge number": (lambda h: written(h, "metrics", '{"a": ' + "9" * 4000 + "}"), "not finite or too large"),
    "a number without end": (lambda h: written(h, "metrics", '{"a": ' + "9" * 9000 + "}"), "is damaged"),
    "infinite": (lambda h: written(h, "metrics", '{"a": 1e999}'), "not finite or too large"),
    "not a number": (config(metrics={"a": float("nan")}), "NaN, which is no number"),
    "config is a list": (raw_config("[1]"), "config is no table"),
    "config is no JSON": (raw_config("{"), "is damaged"),
    "wide images": (config(input={"size": [SIDE + 1, 8], "channels": 3}), f"each from 1 to {SIDE}"),
    "no height": (config(input={"size": [0, 8], "channels": 3}), "each from 1 to"),
    "true": (config(input={"size": [True, 8], "channels": 3}), "each from 1 to"),
    "fractions": (config(input={"size": [8.0, 8], "channels": 3}), "each from 1 to"),
    "three sides": (config(input={"size": [8, 8, 8], "channels": 3}), "each from 1 to"),
    "two channels": (config(input={"size": [12, 14], "channels": 2}), "neither 1 nor 3 channels"),
    "an unknown resize": (config(input={"size": [12, 14], "channels": 3, "resize": "seam"}), "none of fit, crop"),
    "no classes": (config(classes=[]), "classes are none"),
    "twins": (config(classes=["a", "b", "c", "a"]), "two of them have one name"),
    "a nameless class": (config(classes=["a", "b", "c", ""]), "no text, or empty"),
    "numbered classes": (config(classes=[1, 2, 3, 4]), "no text, or empty"),
    "more classes": (config(classes=["a", "b", "c", "d", "e"]), r"golden.logits are float32 (3, 4), not"),
    "warm": (config(calibration={"temperature": "warm"}), "temperature that is no number"),
    "hot": (config(calibration={"temperature": 10**400, "images": 3, "curve": [], "usual": None}), "is no number"),
    "a calibration of nothing": (config(calibration=[]), "calibration is no table"),
    "a flat curve": (config(calibration={"temperature": 1, "images": 400, "curve": 5, "usual": [1, 2]}), "not whole"),
    "unusual": (
        lambda h: written(
            h, "calibration", '{"temperature": 1, "images": 400, "curve": [[0,1,1]], "usual": [1, 1e999]}'
        ),
        "no number",
    ),
    "version": (lambda h: h["__metadata__"].update(version="two"), "version is no number"),
    "a long version": (lambda h: h["__metadata__"].update(version="9" * 5000), "version is no number"),
    "no config": (lambda h: h["__metadata__"].pop("config"), "is damaged: 'config'"),
    "a float for a pixel": (
        tensor("golden.images", dtype="F32", shape=[3, 3, 12, 14 // 4]),
        "is damaged",
    ),
    "flat images": (tensor("golden.images", shape=[3 * 3 * 12 * 14]), "golden"),
    "a picture that lies": (tensor("golden.images", shape=[3, 3, 14, 12]), "golden.images are uint8 (3, 3, 14, 12)"),
    "whole logits": (tensor("golden.logits", dtype="I32"), "golden.logits are int32 (3, 4), not float32"),
    "whole weights": (tensor("model.network.features.0.weight", dtype="I32"), "do not fit the network vgg"),
    "turned weights": (tensor("model.network.features.0.weight", shape=[3, 4, 3, 3]), "do not fit the network vgg"),
    "a large shape": (tensor("model.network.features.0.weight", shape=[2**40, 2**40]), "is damaged"),
    "elsewhere": (tensor("model.network.features.0.weight", data_offsets=[2**50, 2**50 + 432]), "is damaged"),
}
GUARDED = f"""
import json, resource, sys, time, tracemalloc
from pathlib import Path
import convlens.modelfile, convlens.predict
from convlens.errors import UserError

convlens.modelfile.load_model(sys.argv[1] + "/good")
held = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + {MEMORY},) * 2)
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    begun = time.perf_counter()
    try:
        convlens.modelfile.load_model(path)
        said = "it was loaded"
    except UserError as error:
        said = str(error)
    print(json.dumps([path.stem, said, time.perf_counter() - begun]), flush=True)
"""


def attack(folder: Path, good: bytes, files: dict[str, bytes]) -> dict[str, str]:
    """What load_model says to each of them in a process whose memory is limited."""
    (folder / "good").write_bytes(good)
    for name, data in files.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", GUARDED, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-300:] + ended.stderr
    said = {}
    for name, sentence, seconds in map(json.loads, ended.stdout.splitlines()):
        assert seconds < SECONDS, (name, seconds)
        assert len(sentence) < 1500, name
        assert "\n" not in sentence, name
        said[name] = sentence
    assert said.keys() == files.keys()
    return said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's own memory")
def test_arguments_that_ask_for_everything_are_refused_in_little_memory(good: bytes, tmp_path: Path) -> None:
    said = attack(tmp_path, good, {name: changed(good, change) for name, change in BUILT.items()})
    for name, sentence in said.items():
        assert sentence.startswith(f"{tmp_path}/{name}.safetensors: "), sentence
    assert "larger than the 16 tensors with 400 numbers" in said["wide"]
    assert "larger than the 16 tensors with 400 numbers" in said["long"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's own memory")
def test_containers_that_lie_are_refused_in_little_memory(good: bytes, tmp_path: Path) -> None:
    header, data = parts(good)
    end = len(good) - len(data)
    many = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    long_names = header | {"__metadata__": header["__metadata__"] | {"more": "x" * (HEADER + 1)}}
    said = attack(
        tmp_path,
        good,
        {
            "header of eleven gigabytes": (11 * 10**9).to_bytes(8, "little") + good[8:],
            "header of everything": b"\xff" * 8 + good[8:],
            "metadata of megabytes": whole(long_names, data),
            "many tensors": whole(header | many, data),
            "deep header": (200_000).to_bytes(8, "little") + b"[" * 200_000,
            "nothing but a length": (2).to_bytes(8, "little"),
            "more behind": good + b"\0" * 100,
            "one short": good[:-1],
            "header alone": good[:end],
        },
    )
    assert "claims 11,000,000,000 bytes; 4,194,304 are allowed" in said["header of eleven gigabytes"]
    assert "bytes; 4,194,304 are allowed" in said["metadata of megabytes"]
    assert "20,016 tensors; 10,000 are allowed" in said["many tensors"] or "tensors; 10,000" in said["many tensors"]


@pytest.mark.parametrize("name", LIED)
def test_every_field_is_checked(name: str, good: bytes, tmp_path: Path) -> None:
    change, words = LIED[name]
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed(good, change))
    refused(lambda: load_model(path), path, words)
    with suppress(UserError):  # where the container itself is damaged
        assert seal_holds(path) is False


def test_many_golden_images(tmp_path: Path) -> None:
    file = make_file("vgg", InputSpec((12, 14), 3), args={"widths": [4, 6], "convs": 1})
    golden = replace(
        file.golden,
        images=np.zeros((IMAGES + 1, 3, 12, 14), np.uint8),
        logits=np.zeros((IMAGES + 1, 4), np.float32),
    )
    refused(lambda: save_model(tmp_path / "m", replace(file, golden=golden)), "1 to 64 are allowed")
    wrong = replace(file.golden, logits=np.full((3, 4), np.nan, np.float32))
    refused(lambda: save_model(tmp_path / "m", replace(file, golden=wrong)), "golden logits are not finite")
    assert not list(tmp_path.iterdir())


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero")):
        begun = time.perf_counter()
        refused(lambda path=path: load_model(path), "it is no file")
        refused(lambda path=path: seal_holds(path), "it is no file")
        assert time.perf_counter() - begun < 1


def test_a_network_of_ones_own_is_bounded_too(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is trusted once it is named; the arguments are still the file's."""
    (tmp_path / "my_own_net.py").write_text(
        "from torch import nn\ndef net(channels, classes, size, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.Flatten(), nn.LazyLinear(classes))\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed(good, network("my_own_net:net", width=10**8)))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lambda: load_model(path, "my_own_net:net"), "larger than the 16 tensors with 400 numbers")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < MEMORY / 1024
    sys.modules.pop("my_own_net", None)


def test_the_bound_is_lifted_afterwards(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed(good, network("vgg", widths=[BIG])))
    refused(lambda: load_model(path), "larger than")
    assert torch.nn.Linear(8_000, 8_000, device="meta").weight.numel() == 64_000_000
