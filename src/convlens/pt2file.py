"""A .pt2 that ConvLens exported: the network as a graph of torch's own operators, for who has PyTorch and not ConvLens.

To load a .pt2 is to run it: torch unpickles samples and constants where an archive has them, imports modules that it
names, gives its formulas to Python, and calls whatever function below `torch` its graph says. So an archive is looked
through before torch sees it: files without pickles only, the operators that are listed here only, names that are names;
and torch is given an archive made anew from what was looked at.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import FAILED, UserError, one_line
from .manifest import Golden, Manifest
from .modelfile import ModelFile
from .onnxexport import quiet, traced
from .packing import BLANK, METADATA, pack, read, require_answers, unpack

MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
SAMPLE = "data/sample_inputs/model.pt"  # torch asks for it; ours is empty, for it would be a pickle
SEAL = "extra/sha256"
ALLOWED = re.compile(
    rf"{MODEL}|{WEIGHTS}|{CONSTANTS}|{SAMPLE}|data/weights/weight_\d+|data/constants/tensor_\d+|extra/({'|'.join(METADATA)})"
)
WRITTEN = re.compile(r"archive_format|archive_version|byteorder|version|\.data/\w+|\.\w+")  # by torch, in every archive

NAME = re.compile(r"[\w.+:-]{0,300}", re.ASCII)  # nothing that is code where torch makes Python of it
# What the networks here and the usual ones of other packages are made of: arithmetic on tensors, every argument of
# which is a tensor, a number, a list of them, or a type. Of those that write into their input what is traced as such.
NAMES = """
    conv2d.default linear.default matmul.default bmm.default addmm.default addcmul.default
    scaled_dot_product_attention.default
    batch_norm.default layer_norm.default group_norm.default instance_norm.default linalg_vector_norm.default
    relu.default relu_.default gelu.default silu.default silu_.default sigmoid.default sigmoid_.default tanh.default
    tanh_.default hardtanh.default hardtanh_.default hardswish.default hardswish_.default hardsigmoid.default
    hardsigmoid_.default leaky_relu.default leaky_relu_.default elu.default elu_.default mish.default mish_.default
    prelu.default softplus.default softmax.int log_softmax.int dropout.default dropout_.default
    max_pool2d.default avg_pool2d.default avg_pool3d.default adaptive_avg_pool2d.default adaptive_max_pool2d.default
    add.Tensor add_.Tensor sub.Tensor mul.Tensor mul_.Tensor div.Tensor div_.Tensor rsub.Scalar neg.default
    pow.Tensor_Scalar sqrt.default rsqrt.default exp.default log.default abs.default clamp.default clamp_min.default
    mean.dim mean.default sum.dim_IntList amax.default var.correction
    flatten.using_ints unflatten.int view.default reshape.default permute.default transpose.int contiguous.default
    expand.default expand_as.default squeeze.default squeeze.dim unsqueeze.default select.int slice.Tensor index.Tensor
    unbind.int chunk.default split.Tensor split_with_sizes.default cat.default stack.default pad.default roll.default
    flip.default to.dtype clone.default sym_size.int _assert_tensor_metadata.default
"""
OPERATORS = NAMES.split()
OPERATOR = re.compile(
    "|".join(rf"torch\.ops\.aten\.{re.escape(name)}" for name in OPERATORS) + r"|_operator\.(add|sub|mul|floordiv)"
)
ARGUMENT = re.compile(  # and how its arguments are written down
    "as_(tensors?|optional_tensors?|none|bool|ints?|floats?|name|sym_ints?|expr|scalar_type|device|layout|memory_format|"
    "string)"
)
FORMULA = re.compile(  # of a size, such as s34, or Mul(Integer(64), Symbol('s34', positive=True, integer=True))
    # no group in it captures: Python's re fails on those inside of what never gives back (+ after a quantifier)
    r"(?:Symbol\('[su]\d{1,9}+'(?:, (?:positive|nonnegative|integer)=True)*+\)|Integer\(-?\d{1,18}+\)"
    r"|(?:Add|Mul|FloorDiv|PythonMod|Mod|Max|Min)\(|[su]\d{1,9}+|\d{1,18}+|[-+/(), ]|\*(?!\*)){1,100}+"
)
RULES = {  # what a string must be by what it stands for; else a name
    "target": OPERATOR,
    "expr_str": FORMULA,
    "as_string": re.compile("none|tanh"),  # the two kinds of GELU
    "type": re.compile(r"builtins\.(tuple|list|dict)|cpu"),  # of containers, and of devices
    "guards_code": re.compile("(?!)"),  # Python, which torch runs: never
}


@dataclass(frozen=True)
class Pt2File:
    """`module` takes uint8 (N, C, H, W) and gives logits and probabilities, float32 (N, K)."""

    module: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    manifest: Manifest
    golden: Golden

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (N, C, H, W) -> logits and probabilities, float32 (N, K). Raises UserError where the graph fails on
        them, or gives something else."""
        try:
            with torch.no_grad():
                given = self.module(torch.as_tensor(np.ascontiguousarray(images)))
                logits, probabilities = (each.numpy() for each in given)
        except Exception as error:  # a graph that is none fails in torch wherever it may
            raise UserError(f"torch cannot run the network on {len(images)} images: {one_line(error)}") from error
        require_answers(logits, probabilities, (len(images), len(self.manifest.classes)))
        return logits, probabilities


def export_pt2(file: ModelFile) -> bytes:
    """A model file as the bytes of a .pt2, sealed. Raises UserError as `traced` does, and where the network has
    operators that are not torch's own on tensors."""
    program, buffer = traced(file), io.BytesIO()
    program.example_inputs = None
    torch.export.save(program, buffer, extra_files=pack(file.manifest, file.golden))
    entries = _entries(buffer.getvalue(), "the archive that torch wrote")
    model = json.loads(entries[MODEL])
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # the source line of every operator, with the path of the file
    entries[MODEL] = json.dumps(model).encode()
    try:
        _look_through(entries)
    except ValueError as error:
        raise UserError(f"the network {file.manifest.builder} cannot be exported as .pt2: {error}", FAILED) from error
    entries[SEAL] = _sha256(entries).encode()
    return _archive(entries)


def load_pt2(path: str | Path, data: bytes | None = None) -> Pt2File:
    """Open a .pt2 that ConvLens exported, on the CPU, once it was looked through. `data` are the bytes of the file,
    where they were read already.

    Raises:
        UserError: no such file, not ours, or damaged.
    """
    entries = _entries(read(path) if data is None else data, path)
    try:
        texts = {name.removeprefix("extra/"): entries[name].decode() for name in entries if name.startswith("extra/")}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: its metadata is not text") from error
    manifest, golden, _ = unpack(texts, path)
    try:
        _look_through(entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged, or not what ConvLens exports: {one_line(error)}") from error
    try:
        with quiet():
            file = Pt2File(torch.export.load(io.BytesIO(_archive(entries))).module(), manifest, golden)
            file.outputs(golden.images[:1])
    except Exception as error:  # see `outputs`
        raise UserError(f"torch cannot open {path}: {one_line(error)}") from error
    return file


def seal_holds(path: str | Path, data: bytes | None = None) -> bool | None:
    """Whether all that is in the archive is what was sealed; None where it has no seal. Raises UserError as `load_pt2`
    does."""
    entries = _entries(read(path) if data is None else data, path, checked=False)
    if SEAL not in entries:
        return None
    return entries[SEAL] == _sha256(entries).encode()


def _sha256(entries: dict[str, bytes]) -> str:
    """Of all names and contents, the seal itself blank."""
    digest = hashlib.sha256()
    for name, content in sorted({**entries, SEAL: BLANK.encode()}.items()):
        digest.update(f"{len(name)} {name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _entries(data: bytes, name: object, checked: bool = True) -> dict[str, bytes]:
    """What the archive holds, by name, torch's own marks left out. Only names that ConvLens writes, none of them twice,
    and nothing compressed: then it takes no more memory than it has bytes. `checked` asks for the checksums, too."""
    entries: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = archive.infolist()
            if sum(info.file_size for info in listed) > len(data) or any(info.compress_type for info in listed):
                raise ValueError("it is compressed, or says that it is larger than it is")
            for info in listed:
                entry = info.filename.partition("/")[2]
                if WRITTEN.fullmatch(entry):
                    continue
                if not ALLOWED.fullmatch(entry) or entry in entries:
                    raise ValueError(f"it holds {info.filename[:100]!r}")
                start = info.header_offset + 30  # behind the entry's own header, whose name and extra field follow
                start += sum(int.from_bytes(data[start - at : start - at + 2], "little") for at in (4, 2))
                entries[entry] = data[start : start + info.file_size]
                if len(entries[entry]) != info.file_size or (checked and zlib.crc32(entries[entry]) != info.CRC):
                    raise ValueError(f"the bytes of {entry} are not those that were written")
        if entries.get(SAMPLE):
            raise ValueError("it holds a pickle")
    except (ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{name} is not a .pt2 that ConvLens exported, or is damaged: {one_line(error)}") from error
    return entries


def _archive(entries: dict[str, bytes]) -> bytes:
    """The way back, in the layout that torch's reader asks for."""
    from torch.export.pt2_archive._package import PT2ArchiveWriter  # torch has no public way to write entries

    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, content in sorted(entries.items()):
            writer.write_bytes(name, content)
    return buffer.getvalue()


def _look_through(entries: dict[str, bytes]) -> None:
    """Raises ValueError where torch would do more than build a graph of operators on the tensors in the archive; also
    KeyError, TypeError, AttributeError or RecursionError where it would not even do that."""
    _require_plain(json.loads(entries[MODEL]))
    for config, folder in ((WEIGHTS, "data/weights"), (CONSTANTS, "data/constants")):
        for payload in json.loads(entries[config])["config"].values():
            _require_plain(payload)
            content = entries[f"{folder}/{payload['path_name']}"]
            sizes = [size["as_int"] for size in payload["tensor_meta"]["sizes"]]
            if payload["use_pickle"] is not False:
                raise ValueError("it holds a pickle")
            # torch would make zeros of any size of an empty entry, and of a few bytes a view of any size
            if not all(type(size) is int and size >= 0 for size in sizes) or math.prod(sizes) > len(content):
                raise ValueError(f"it has a tensor of {sizes} in {len(content)} bytes")


def _require_plain(value: Any, key: str = "") -> None:
    """Raises ValueError where a string in the description of a graph is more than a name; `key` is what it stands
    for."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name.startswith("as_") and not ARGUMENT.fullmatch(name):
                raise ValueError(f"it has an argument {name[:60]!r}")
            if not NAME.fullmatch(name) or (key == "range_constraints" and not FORMULA.fullmatch(name)):
                raise ValueError(f"it has an entry {name[:60]!r}")
            _require_plain(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _require_plain(inner, key)
    elif isinstance(value, str):
        if key not in RULES and value[:1] in ("[", "{"):  # JSON inside of JSON
            _require_plain(json.loads(value))
        elif not RULES.get(key, NAME).fullmatch(value):
            raise ValueError(f"its {key or 'graph'} says {value[:60]!r}")
