"""Damaged and hostile files, thousands of them, against what reads model files, .onnx and .pt2, and pictures:

    python benchmarks/fuzz.py models --seconds 600
    python benchmarks/fuzz.py shipped --seconds 600
    python benchmarks/fuzz.py pictures --seconds 600

Each input is made from real ones by the seed and its number alone, so that every run has the same ones in the same
order. Allowed are a result and a UserError of one line. Anything else is a failure, as are more than 10 seconds and
more memory than BOUND: its input is kept in --out, and the exit code is 1. Should the process itself be killed, the
input that did it is there as `input`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import faulthandler
import io
import json
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convlens import MODELS, InputSpec, build
from convlens.errors import UserError
from convlens.formats import open_shipped
from convlens.formats import seal_holds as exported_seal_holds
from convlens.images import facts, preprocess, read_picture
from convlens.manifest import Golden, Manifest
from convlens.modelfile import ModelFile, load_model, save_model, seal_holds
from convlens.onnxexport import export_onnx, to_onnx
from convlens.pt2file import export_pt2
from convlens.quantizing import quantised

SECONDS = 10.0  # for one input
DEPTH = 6  # of JSON that is changed
BOUND = {
    "models": 512,
    "shipped": 1024,
    "pictures": 2048,
}  # MiB above what the unharmed ones take; 100 million pixels are allowed
Random = np.random.Generator
Try = Callable[[bytes, Random, Path], str]  # what became of an input

# Values that somebody's reader once stumbled over
ODD: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 1e300, 2**31, 2**53, 2**63, 10**9, 10**30, "", "0", "é"]
ODD += [
    "\x00",
    "\ud800",
    "x" * 5_000,
    [],
    [0],
    [1, 2],
    [-1, 10**9],
    [[[]]],
    [4] * 2_000,
    {},
    {"a": 1},
    {"size": [1, 1]},
]
ODD += ["F32", "U8", "BF16", "F4", "vgg", "lenet5", "os:system", "timm:resnet18", float("nan"), float("inf")]
ARGUMENTS = [
    "widths",
    "convs",
    "dropout",
    "width",
    "whiten",
    "whiten_stride",
    "components",
    "whiten_bias",
    "activation",
]
ARGUMENTS += ["pool", "padding", "head", "momentum", "pooling", "norm", "dropout_hidden"]


def pick(random: Random, among: Sequence[Any]) -> Any:
    return among[int(random.integers(len(among)))]


# Bytes ------------------------------------------------------------------------------------------------------------


def harmed(data: bytes, others: Sequence[bytes], random: Random, head: int) -> bytes:
    """One to three random changes, half of them in the first `head` bytes, where what describes the rest mostly is."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        size = len(changed)
        at = int(random.integers(max(1, min(head, size) if random.random() < 0.5 else size)))
        match int(random.integers(8)):
            case 0:
                for _ in range(int(random.integers(1, 33))):
                    place = int(random.integers(max(1, min(head, size) if random.random() < 0.5 else size)))
                    changed[place : place + 1] = bytes([(changed[place] if size else 0) ^ 1 << int(random.integers(8))])
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + int(random.integers(1, 64))]
            case 3:
                changed[at:at] = random.bytes(int(random.integers(1, 64)))
            case 4:
                word = pick(random, [0, 1, 0x7F, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
                order = pick(random, ["little", "big"])
                changed[at : at + 4] = word.to_bytes(4, order)
            case 5:
                other = pick(random, others)
                start = int(random.integers(len(other)))
                piece = other[start : start + int(random.integers(1, 2_000))]
                changed[at : at + len(piece)] = piece
            case 6:
                changed += changed[at : at + int(random.integers(1, 5_000))]
            case 7:
                changed[at : at + int(random.integers(1, 32))] = bytes([pick(random, [0, 0xFF, 0x20, 0x7B])])
    return bytes(changed)


# Model files ------------------------------------------------------------------------------------------------------


def model_files(folder: Path) -> list[bytes]:
    """A small file of several networks, and the oldest format's."""
    kinds: list[tuple[str, dict[str, Any], InputSpec]] = [
        ("lenet5", {"norm": "batch"}, InputSpec((12, 12), 1, "fit")),
        ("vgg", {"widths": [4, 6], "convs": 1}, InputSpec((12, 14), 3)),
        ("speednet", {"widths": [4, 6], "convs": 1}, InputSpec((12, 12), 3, "stretch")),
        ("resnet9", {"width": 2}, InputSpec((8, 8), 3)),
    ]
    found = []
    for name, args, spec in kinds:
        model = build(name, channels=spec.channels, classes=4, size=spec.size, args=args).eval()
        images = np.arange(2 * spec.channels * spec.size[0] * spec.size[1], dtype=np.uint64).astype(np.uint8)
        images = images.reshape(2, spec.channels, *spec.size)
        with torch.no_grad():
            golden = Golden(images, model(torch.as_tensor(images)).numpy())
        manifest = Manifest(name, args, spec, ("a", "b", "猫", "d"), {"name": "mine"}, {"test_accuracy": 0.5})
        save_model(folder / "m.safetensors", ModelFile(model, manifest, golden))
        found.append((folder / "m.safetensors").read_bytes())
    old = Path(__file__).parent.parent / "tests/model-before-calibration.safetensors"
    return [*found, old.read_bytes()]


def as_file(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def edited(data: bytes, random: Random) -> bytes:
    """The header stays JSON and its length is right; a few values in it or in the config are others."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    config = json.loads(header["__metadata__"]["config"])
    for _ in range(int(random.integers(1, 4))):
        target = config if random.random() < 0.7 else header
        places = list(walked(target))
        holder, key = pick(random, places)
        match int(random.integers(5)):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[pick(random, [*holder, "", "é", "x" * 300, "__metadata__", "model.", "sha256"])] = deepcopy(
                    holder[key]
                )
            case 2:
                other, there = pick(random, places)
                if there in other if isinstance(other, dict) else there < len(other):
                    holder[key] = deepcopy(other[there])
            case 3:
                config["builder"] = pick(random, [*MODELS, "vgh", ":", "a:b"])
                config["args"] = {
                    pick(random, ARGUMENTS): deepcopy(pick(random, ODD)) for _ in range(int(random.integers(3)))
                }
            case _:
                holder[key] = deepcopy(pick(random, ODD))
        if not config or not isinstance(header.get("__metadata__"), dict):
            break
    if isinstance(header.get("__metadata__"), dict) and "config" in header["__metadata__"]:
        text = json.dumps(config)
        if random.random() < 0.1:
            text = pick(
                random, ["[" * 50_000, '{"a":' * 20_000, "9" * 6_000, text + "}", "", "null", '"' + "x" * 10**6]
            )
        header["__metadata__"]["config"] = text
    return as_file(header, data[end:])


def walked(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (dict, key) and (list, index) in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    if depth < DEPTH:
        for key in keys:
            found += walked(value[key], depth + 1)
    return found


def invented(data: bytes, random: Random) -> bytes:
    """A container that is right, or nearly so, with tensors that nobody asked for."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    tensors: dict[str, Any] = {"__metadata__": header["__metadata__"]}
    names = (
        [name for name in header if name != "__metadata__"] + [f"model.{i}" for i in range(5)] + ["", "é", "a" * 999]
    )
    sizes = {"F32": 4, "U8": 1, "I64": 8, "F64": 8, "BF16": 2, "BOOL": 1, "F8_E4M3": 1, "I8": 1, "U16": 2, "C64": 8}
    at = 0
    for _ in range(int(random.integers(1, 20))):
        dtype = pick(random, list(sizes))
        shape = [int(random.integers(0, 9)) for _ in range(int(random.integers(0, 6)))]
        length = sizes[dtype] * int(np.prod(shape, dtype=np.int64))
        tensors[pick(random, names)] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + length]}
        at += length
    return as_file(tensors, random.bytes(at + int(random.random() < 0.1)))


def make_model(seeds: Sequence[bytes], random: Random) -> bytes:
    data = pick(random, seeds)
    match int(random.integers(10)):
        case 0 | 1 | 2:
            return harmed(data, seeds, random, 8 + int.from_bytes(data[:8], "little"))
        case 3:
            length = pick(random, [0, 1, 2, 2**22, 2**22 + 1, 2**32, 2**63, 2**64 - 1, len(data), len(data) - 8])
            return length.to_bytes(8, "little") + data[8:]
        case 4:
            return invented(data, random)
        case _:
            return edited(data, random)


def try_model(data: bytes, random: Random, path: Path) -> str:  # noqa: ARG001 - as try_picture
    """Loads, and then also answers; its seal holds for nothing that was changed."""
    try:
        file = load_model(path)
        file.logits(file.golden.images)
    finally:
        try:
            holds = seal_holds(path)
        except UserError:
            holds = False
        if holds:
            raise AssertionError("the seal holds")
    return "loaded"


# What was exported -------------------------------------------------------------------------------------------------


def exported(folder: Path) -> list[bytes]:
    """Small networks as .onnx, also of 8-bit integers, and as .pt2."""
    found = []
    for data in model_files(folder)[:3]:
        (folder / "m.safetensors").write_bytes(data)
        file = load_model(folder / "m.safetensors")
        found += [export_onnx(file), export_pt2(file)]
    found.append(quantised(file, to_onnx(file), np.repeat(file.golden.images, 8, axis=0)))
    return found


def entries_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def as_archive(entries: dict[str, bytes], random: Random) -> bytes:
    """Nearly always as torch writes it: nothing is compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


TARGETS = [
    "from_file.default",
    "chr.default",
    "add.str",
    "fill_.Scalar",
    "as_strided.default",
    "relu_.default",
    "cat.default",
]
TARGETS += [
    "expand.default",
    "index.Tensor",
    "view.default",
    "batch_norm.default",
    "conv2d.default",
    "unbind.int",
    "pad.default",
]
KEYS = [
    "as_int",
    "as_ints",
    "as_tensor",
    "as_tensors",
    "as_string",
    "as_none",
    "as_float",
    "as_bool",
    "as_operator",
    "as_graph",
]


def other_archive(data: bytes, random: Random) -> bytes:
    """The archive stays one; an entry of it, or a few values of the JSON in one, are others."""
    entries = entries_of(data)
    described = [name for name in entries if name.endswith((".json", "config", "classes"))]
    for _ in range(int(random.integers(1, 3))):
        name = pick(random, list(entries))
        match int(random.integers(8)):
            case 0:
                del entries[name]
            case 1:
                entries[pick(random, [*entries, "archive/data/weights/weight_99", "archive/x.pt", "x", "../x"])] = (
                    entries[name]
                )
            case 2:
                entries[name] = harmed(entries[name] or b"0", [data], random, 200)
            case 3:
                name = pick(random, [name for name in entries if "/golden" in name] or [name])
                entries[name] = other_array(entries[name], random)
            case _:
                name = pick(random, [name for name in described if name in entries] or [name])
                entries[name] = other_json(entries[name], random)
        if not entries:
            break
    return as_archive(entries, random)


def other_json(text: bytes, random: Random) -> bytes:
    try:
        value = json.loads(text)
    except ValueError:
        return text[:-1]
    for _ in range(int(random.integers(1, 4))):
        places = list(walked(value, -8))
        if not places:
            return b"{}"
        targets = [
            place for place in places if place[1] in ("target", "sizes", "strides", "dtype", "as_int", "as_ints")
        ]
        holder, key = pick(random, targets if targets and random.random() < 0.5 else places)
        match int(random.integers(5)):
            case 0 if key == "target":
                holder[key] = f"torch.ops.aten.{pick(random, TARGETS)}"
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[pick(random, KEYS)] = deepcopy(holder[key])
            case 2:
                other, there = pick(random, places)
                if there in other if isinstance(other, dict) else there < len(other):
                    holder[key] = deepcopy(other[there])
            case _:
                holder[key] = deepcopy(pick(random, ODD))
    return json.dumps(value).encode()


def other_array(text: bytes, random: Random) -> bytes:
    """Base64 of a .npy: its header is Python."""
    try:
        data = base64.b64decode(text)
    except ValueError:
        return text[1:]
    words = [b"(", b"-" * 5_000, b"[" * 999, b"9" * 30, b"'", b",", b"True", b"\n", b"<f8", b"|O", b"(1," * 300]
    at = int(random.integers(11, 128))
    word = pick(random, words)
    changed = data[:at] + word + data[at + (len(word) if random.random() < 0.5 else 0) :]
    return base64.b64encode(harmed(data, [data], random, 128) if random.random() < 0.5 else changed)


def fields(data: bytes, start: int, end: int, depth: int = 0) -> list[tuple[int, int, int, int, int]]:
    """(depth, start of the key, start of what it holds, its end, kind) of the fields of protobuf, and of those in them;
    what is no message ends there."""
    found, at = [], start
    while at < end:
        key, inner = number(data, at)
        if key >> 3 == 0 or key >> 3 > 40 or inner > end:
            return found
        kind = key & 7
        length = 0
        if kind == 2:
            length, inner = number(data, inner)
        stop = (
            inner + length
            if kind == 2
            else number(data, inner)[1]
            if kind == 0
            else inner + {1: 8, 5: 4}.get(kind, end)
        )
        if stop > end:
            return found
        found.append((depth, at, inner, stop, kind))
        if kind == 2 and depth < 5 and (depth == 0 or length < 5_000):
            found += fields(data, inner, stop, depth + 1)
        at = stop
    return found


def number(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(data):
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128 or shift > 70:
            break
    return value, at


def base128(value: int) -> bytes:
    digits = []
    while value > 127:
        digits, value = [*digits, value & 127 | 128], value >> 7
    return bytes([*digits, value])


def other_message(data: bytes, random: Random) -> bytes:
    """One field is another one: its key, its number or its bytes; the lengths of those around it stay right, for
    only as many bytes come as go, or the field is one of the model's own."""
    places = fields(data, 0, len(data))
    _, at, inner, end, kind = pick(random, places)
    top = [place for place in places if place[0] == 0]
    match int(random.integers(6)):
        case 0:  # a key of other bytes, which other readers may take for the same
            _, at, _, _, _ = pick(random, top)
            key, after = number(data, at)
            other = pick(random, [key + 2**32, key + 2**35, key ^ 1, key + 8, key & 7, 2**64 - 1, 25 << 3 | 2])
            return data[:at] + base128(other) + data[after:]
        case 1:  # a field twice
            _, at, _, end, _ = pick(random, top)
            return data + data[at:end]
        case 2:  # a key, in its place
            key = bytes([pick(random, [*range(1, 27)]) << 3 & 127 | pick(random, [kind, 0, 2, 5])])
            return data[:at] + key + data[at + 1 :]
        case 3 if kind == 2 and end > inner:  # names, operators, sizes
            others = [place for place in places if place[4] == 2 and place[3] - place[2] == end - inner]
            _, _, start, stop, _ = pick(random, others)
            return data[:inner] + data[start:stop] + data[end:]
        case 4:
            start = int(random.integers(inner, max(inner + 1, end)))
            return (
                data[:start] + random.bytes(min(4, max(end - start, 1))) + data[start + min(4, max(end - start, 1)) :]
            )
        case _:  # an entry of the metadata
            entries = [place for place in top if data[place[1]] == 0x72]
            _, at, inner, end, _ = pick(random, entries)
            inside = fields(data, inner, end)
            if len(inside) < 2:
                return data[:at] + data[end:]
            key, value = (data[start:stop] for _, _, start, stop, _ in inside[:2])
            if key.startswith(b"golden"):
                value = other_array(value, random)
            elif key in (b"config", b"classes"):
                value = other_json(value, random)
            else:
                value = pick(random, [b"", b"0", b"\xff", b"9" * 5_000, value * 2])
            entry = b"\x0a" + base128(len(key)) + key + b"\x12" + base128(len(value)) + value
            return data[:at] + b"\x72" + base128(len(entry)) + entry + data[end:]


def make_exported(seeds: Sequence[bytes], random: Random) -> bytes:
    data = pick(random, seeds)
    if random.random() < 0.25:
        return harmed(data, seeds, random, 400)
    return other_archive(data, random) if data[:2] == b"PK" else other_message(data, random)


def try_exported(data: bytes, random: Random, path: Path) -> str:  # noqa: ARG001 - as try_picture
    """Opens, and then also answers, and prints nothing. torch's own marks in an archive are not sealed, for they are
    never used: so a seal may hold for a .pt2 whose bytes are others."""
    path = path.rename(path.with_suffix(".pt2" if b"archive_format" in data or data[:2] == b"PK" else ".onnx"))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            shipped = open_shipped(path)
            shipped.outputs(shipped.golden.images)
        if path.suffix == ".onnx" and exported_seal_holds(path):
            raise AssertionError("the seal holds")
    finally:
        path.rename(path.with_suffix(""))
        if printed.getvalue():
            raise AssertionError(f"it prints {printed.getvalue()[:200]}")
    return "loaded"


# Pictures ---------------------------------------------------------------------------------------------------------


def pictures(_: Path) -> list[bytes]:
    """Real files of every format, mode and option that matters to a reader."""
    random = np.random.default_rng(0)
    colours = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
    picture = colours.resize((61, 40), Image.Resampling.BICUBIC)
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    frames = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    wanted: list[tuple[Image.Image, dict[str, Any]]] = [
        *((picture.convert(mode), {"format": "JPEG", "exif": exif}) for mode in ("RGB", "L", "CMYK")),
        (picture, {"format": "JPEG", "progressive": True, "subsampling": 2, "icc_profile": b"x" * 200}),
        *((picture.convert(mode), {"format": "PNG"}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        (picture.convert("P"), {"format": "PNG", "transparency": 3, "exif": exif, "optimize": True}),
        (deep, {"format": "PNG"}),
        (picture, {"format": "PNG", **frames}),
        (picture, {"format": "WEBP", "exif": exif}),
        (picture.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        (picture, {"format": "WEBP", **frames}),
        (picture.convert("P"), {"format": "GIF", "transparency": 1}),
        (picture.convert("P"), {"format": "GIF", "interlace": True, **frames}),
        *((picture, {"format": "TIFF", "compression": c}) for c in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate")),
        (picture, {"format": "TIFF", "exif": exif, "big_tiff": True}),
        (picture, {"format": "TIFF", "compression": "packbits", **frames}),
        (picture.convert("1"), {"format": "TIFF", "compression": "group4"}),
        *((picture.convert(mode), {"format": "TIFF"}) for mode in ("F", "I", "CMYK", "LAB", "P")),
        (deep, {"format": "TIFF"}),
        *((picture.convert(mode), {"format": "BMP"}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    ]
    found = []
    for each, settings in wanted:
        out = io.BytesIO()
        each.save(out, **settings)
        found.append(out.getvalue())
    return found


def make_picture(seeds: Sequence[bytes], random: Random) -> bytes:
    return harmed(pick(random, seeds), seeds, random, 200)


def try_picture(data: bytes, random: Random, path: Path) -> str:
    """Its header, its pixels, and from a file: of the size and type that was asked for."""
    side = [1, 3, 28, 64, 500]
    spec = InputSpec(
        (pick(random, side), pick(random, side)), pick(random, [1, 3]), pick(random, ["fit", "crop", "stretch"])
    )
    facts(data)
    pixels, found = read_picture(data, spec)
    same = preprocess(path, spec).transpose(1, 2, 0)
    if (pixels.dtype, pixels.shape) != (np.uint8, (*spec.size, spec.channels)) or not np.array_equal(pixels, same):
        raise AssertionError(f"pixels {pixels.dtype} {pixels.shape} for {spec}, a file's {same.shape}")
    if min(found.size) < 1:
        raise AssertionError(f"a size of {found.size}")
    return "read"


# The loop ---------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[Path], list[bytes]], Callable[[Sequence[bytes], Random], bytes], Try]] = {
    "models": (model_files, make_model, try_model),
    "shipped": (exported, make_exported, try_exported),
    "pictures": (pictures, make_picture, try_picture),
}


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(kind: str, out: Path, seed: int, inputs: int | None = None, seconds: float | None = None) -> Counter[str]:
    """Try so many inputs, or for so long; what became of them, counted. `failed` are those that are kept in `out`."""
    make_seeds, make, attempt = KINDS[kind]
    seeds, path, counted = make_seeds(out), out / "input", Counter[str]()
    for data in seeds:
        path.write_bytes(data)
        if kind == "models":
            load_model(path)
        elif kind == "shipped":
            with contextlib.suppress(AssertionError):  # whose seal holds
                try_exported(data, np.random.default_rng(0), path)
        else:
            read_picture(data, InputSpec((500, 500), 3))
    begun, held, number = time.monotonic(), peak(), 0
    while (inputs is None or number < inputs) and (seconds is None or time.monotonic() - begun < seconds):
        random = np.random.default_rng((seed, number))
        data = make(seeds, random)
        number += 1
        if data in seeds:
            continue
        path.write_bytes(data)
        faulthandler.dump_traceback_later(20 * SECONDS, exit=True, file=sys.__stderr__)
        started, wrong = time.monotonic(), ""
        try:
            counted[attempt(data, random, path)] += 1
        except UserError as error:
            counted["refused"] += 1
            wrong = "a sentence of several lines or pages" if "\n" in str(error) or len(str(error)) > 3_000 else ""
        except KeyboardInterrupt:
            raise
        except BaseException:  # also what a library of another language throws
            wrong = traceback.format_exc()
        took = time.monotonic() - started
        wrong = wrong or (f"{took:.1f} s" if took > SECONDS else "")
        wrong = wrong or (f"{peak() - held:.0f} MiB" if peak() - held > BOUND[kind] else "")
        held = max(held, peak() - BOUND[kind])  # told of once
        if wrong:
            counted["failed"] += 1
            kept = out / f"{kind}-{seed}-{number - 1}"
            kept.write_bytes(data)
            print(f"{kept}: {wrong}", file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    path.unlink()
    counted["inputs"] = sum(counted[key] for key in counted if key != "failed")
    print(
        f"{kind}, seed {seed}: {dict(counted)} in {time.monotonic() - begun:.0f} s; "
        f"the peak of memory {peak() - held:.0f} MiB above the unharmed files'"
    )
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=int, help="so many, however long it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where failures are kept; a new folder if none is given")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # Pillow and torch say much about damaged files
    faulthandler.enable()
    counted = fuzz(given.kind, out, given.seed, given.inputs, None if given.inputs else given.seconds)
    sys.exit(1 if counted["failed"] else 0)


if __name__ == "__main__":
    main()
