"""Predicting with what left: the same rows from every format, without PyTorch from an .onnx; and files of an enemy,
which end in one sentence before anything of theirs is run."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from convlens import InputSpec, UserError
from convlens.formats import open_shipped, seal_holds
from convlens.modelfile import save_model
from convlens.onnxexport import export_onnx, onnx_bytes
from convlens.onnxfile import load_onnx, open_session
from convlens.onnxfile import seal_holds as onnx_seal_holds
from convlens.packing import METADATA, pack
from convlens.pt2file import MODEL, OPERATORS, WEIGHTS, _archive, _entries, export_pt2, load_pt2
from convlens.pt2file import seal_holds as pt2_seal_holds
from refusals import refused
from test_modelfile import make_file

pytestmark = pytest.mark.usefixtures("operators_read_once")
SPEC = InputSpec((12, 14), 3, "fit")
FORMATS = "model.safetensors", "model.onnx", "model.pt2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in three formats, and pictures."""
    folder = tmp_path_factory.mktemp("shipped")
    file = make_file("vgg", SPEC, args={"widths": [4, 6], "convs": 1})
    save_model(folder / "model.safetensors", file)
    (folder / "model.onnx").write_bytes(export_onnx(file))
    (folder / "model.pt2").write_bytes(export_pt2(file))
    (folder / "pictures").mkdir()
    random = np.random.default_rng(3)
    for i, shape in enumerate([(12, 14, 3), (40, 31, 3), (9, 80, 3), (64, 64)]):
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / f"pictures/{i}.png")
    (folder / "pictures/broken.png").write_bytes(b"no picture")
    return folder


FLAGS = ["--top", "3"], ["--threshold", "0.3"], ["--target-accuracy", "0.9", "--top", "2"], ["--json"]


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_every_format_gives_the_same_rows(flags: list[str], folder: Path, convlens) -> None:
    done = [convlens("predict", folder / name, folder / "pictures", *flags) for name in FORMATS]
    assert {(one.returncode, one.stderr) for one in done} == {(0, done[0].stderr)}
    reference = [line.split(",") for line in done[0].stdout.splitlines()]
    assert len(reference) >= 6
    for other in done[1:]:
        rows = [line.split(",") for line in other.stdout.splitlines()]
        assert len(rows) == len(reference)
        for row, expected in zip(rows, reference, strict=True):
            assert [_cell(cell) for cell in row] == [_cell(cell) for cell in expected]


def _cell(text: str) -> object:
    """A number to five digits, anything else as it is."""
    number = text.strip(' "[]{}').rpartition(" ")[2]
    try:
        return pytest.approx(float(number), abs=2e-5)
    except ValueError:
        return text


def test_an_onnx_is_used_without_pytorch(folder: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom convlens import cli\n"
        f"sys.argv = ['convlens', 'predict', {str(folder / 'model.onnx')!r}, {str(folder / 'pictures')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"sys.argv = ['convlens', 'verify', {str(folder / 'model.onnx')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "absent = {'torch', 'onnx', 'matplotlib', 'sympy'} & {name for name, here in sys.modules.items() if here}\n"
        "assert not absent, absent\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 6
    assert "is sound" in done.stdout


def sentence(load: Callable[[Path], object], path: Path) -> str:
    """What is said about a file; nothing where it opens. Anything but a UserError ends the test."""
    try:
        load(path)
    except UserError as error:
        return str(error)
    return ""


# An .onnx of an enemy


def npy(header: str, numbers: bytes = bytes(16)) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + numbers


HEADERS = [  # that are Python, and took the reader of such down with them
    b"",
    b"\x93NUMPY",
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), "),
    npy("{'descr': [], 'fortran_order': False, 'shape': (1, 4), }"),
    npy("(" * 5000),
    npy("-" * 60_000 + "1"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4)}".ljust(117) + "\n"),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 4), }".ljust(117) + "\n", bytes(32)),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }".ljust(117) + "\n"),
]


def onnx_with(folder: Path, change: Callable[[onnx.ModelProto], None], **metadata: str) -> bytes:
    model = onnx.load(folder / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    for key, value in said.items():
        model.metadata_props.add(key=key, value=value)
    change(model)
    return model.SerializeToString()


def outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def outside_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    node = model.graph.node.add(op_type="Identity", output=["t"])
    node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=body))


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "its numbers elsewhere": (outside, "its tensor has a field 13"),
    "an attribute's numbers elsewhere": (outside_in_an_attribute, "its attribute has a field 5"),
    "a loop": (loop, "the operator 'Loop'"),
    "custom operator": (
        lambda m: m.graph.node.append(helper.make_node("Relu", ["images"], ["z"], domain="evil")),
        "'evil'",
    ),
    "function": (
        lambda m: m.functions.append(helper.make_function("f", "g", ["a"], ["b"], [], [helper.make_opsetid("", 18)])),
        "its model has a field 25",
    ),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "its graph has a field 15"),
    "a graph in an attribute": (
        lambda m: m.graph.node[0].attribute.add(name="body").g.CopyFrom(helper.make_graph([], "g", [], [])),
        "its attribute has a field 6",
    ),
    "maps of any size": (lambda m: setattr(m.graph.node[3], "op_type", "ConstantOfShape"), "'ConstantOfShape'"),
    "names for training": (lambda m: m.training_info.add(), "its model has a field 20"),
    "metadata in a node": (lambda m: m.graph.node[0].metadata_props.add(key="a"), "its node has a field 9"),
    "a type that is none": (lambda m: m.graph.input[0].type.sequence_type.SetInParent(), "its type has a field 4"),
    "output renamed": (lambda m: setattr(m.graph.output[1], "name", "val_0"), "damaged"),
    "one output": (lambda m: m.graph.output.pop(), "takes and gives"),
    "float pixels": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1), "is damaged|cannot open"),
    "unknown operator": (lambda m: setattr(m.graph.node[3], "op_type", "Nonesuch"), "the operator 'Nonesuch'"),
    "lying shape": (lambda m: m.graph.initializer[0].dims.append(10**9), "onnxruntime cannot open"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_onnx_of_an_enemy(name: str, folder: Path, tmp_path: Path) -> None:
    import re

    change, words = HOSTILE[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_with(folder, change))
    message = refused(lambda: load_onnx(path), path)
    assert re.search(words.replace("damaged", "damaged|cannot open"), message), message


def varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits, value = [*digits, value & 127 | 128], value >> 7
    return bytes([*digits, value])


def part(key: int, content: onnx.GraphProto | onnx.StringStringEntryProto) -> bytes:
    data = content.SerializeToString()
    return varint(key) + varint(len(data)) + data


GRAPH, ENTRY, LONG = 7 << 3 | 2, 14 << 3 | 2, 1 << 32  # keys of a model's fields; and what a reader may drop of one


def hidden(name: str) -> bytes:
    """Protobuf makes one message of two; in the second is what the first must not have."""
    graph = onnx.ModelProto().graph
    match name:
        case "loop":
            graph.node.append(helper.make_node("Loop", ["", ""], ["x"], body=helper.make_graph([], "body", [], [])))
        case "outside":
            tensor = graph.initializer.add(name="t", data_type=1, data_location=TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value="/etc/passwd")
        case "metadata":
            return part(ENTRY + LONG, onnx.StringStringEntryProto(key="config", value="{}"))
    return part(GRAPH + LONG, graph)


@pytest.mark.parametrize("name", ["loop", "outside", "metadata", "nothing"])
def test_a_key_of_five_bytes_hides_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    """Of a field's key other readers keep the lowest 32 bits."""
    path, data = tmp_path / "model.onnx", (folder / "model.onnx").read_bytes()
    path.write_bytes(data + hidden(name))
    if name == "nothing":
        assert open_session(path.read_bytes())  # onnxruntime reads it as a graph
    refused(lambda: load_onnx(path), "it is no protobuf")
    refused(lambda: onnx_seal_holds(path), "it is no protobuf")


def test_a_model_has_one_graph_and_no_field_nought(folder: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", (folder / "model.onnx").read_bytes()
    path.write_bytes(data + part(GRAPH, onnx.GraphProto(name="g")))
    refused(lambda: load_onnx(path), "its model has a field 7")
    path.write_bytes(data + b"\x02\x00")
    refused(lambda: load_onnx(path), "it is no protobuf")
    path.write_bytes(b"\x08\x08")
    refused(lambda: load_onnx(path), "it has no graph")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", "other", "not a file that ConvLens exported"),
        ("version", "99", "has format 99"),
        ("version", "two", "its version is no number"),
        ("precision", "fp4", "precision is none of"),
        ("config", "{}", "no 'builder'"),
        ("config", " " * (1 << 22) + "{}", "of its config there are more than 4 MiB"),
        ("classes", "[" + " " * (1 << 22) + "]", "of its classes there are more than 4 MiB"),
        ("more", "a", "its metadata has 'more'"),
        ("classes", '["a"]', "twice, and differ"),
        ("golden.images", "AAAA", "is damaged"),
        ("golden.logits", "not base64!", "is damaged"),
        *(("golden.logits", base64.b64encode(data).decode(), "no array of float32 ('N', 4)") for data in HEADERS),
    ],
)
def test_metadata_of_an_enemy(key: str, value: str, words: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_with(folder, lambda _: None, **{key: value}))
    refused(lambda: load_onnx(tmp_path / "model.onnx"), words)


def test_a_golden_batch_takes_no_more_memory_than_it_has_bytes(folder: Path, tmp_path: Path) -> None:
    """Its header claims 10^15 images."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**15, 3, 12, 14)})
    text = base64.b64encode(file.getvalue()).decode()
    (tmp_path / "model.onnx").write_bytes(onnx_with(folder, lambda _: None, **{"golden.images": text}))
    refused(lambda: load_onnx(tmp_path / "model.onnx"), "is damaged")


def test_metadata_of_megabytes_and_of_many_parts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "model.onnx", (folder / "model.onnx").read_bytes()
    path.write_bytes(data + b"\x42\x00" * 2_000_000)  # a field of two bytes, again and again
    start = time.perf_counter()
    refused(lambda: load_onnx(path), "more than 300,000 parts")
    assert time.perf_counter() - start < 10
    path.write_bytes(data)
    monkeypatch.setattr("convlens.onnxfile.LONGEST", 1000)
    refused(lambda: load_onnx(path), "MiB of metadata")
    entry = b"\x0a\x06format\x12\x08convlens"
    path.write_bytes(data + b"\x72" + bytes([len(entry)]) + entry)
    refused(lambda: load_onnx(path), "'format' twice")


def test_an_onnx_cut_short_or_with_other_bytes(folder: Path, tmp_path: Path) -> None:
    """Whatever it becomes, it opens or ends in a sentence."""
    path, data = tmp_path / "model.onnx", (folder / "model.onnx").read_bytes()
    random = np.random.default_rng(1)
    refusals = 0
    for i in range(150):
        other = bytearray(data)
        if i % 3 == 0:
            del other[int(random.integers(len(data))) :]
        else:
            for place in random.integers(0, len(data), 1 + i % 5).tolist():
                other[place] = int(random.integers(256))
        path.write_bytes(other)
        said = sentence(load_onnx, path)
        assert "\n" not in said
        refusals += bool(said)
    assert refusals > 50
    refused(lambda: load_onnx(tmp_path / "absent.onnx"), "absent.onnx")
    refused(lambda: load_onnx(tmp_path), "cannot read")
    path.write_bytes(onnx_bytes(helper.make_model(helper.make_graph([], "g", [], [])), {"sha256": "0" * 64}))
    refused(lambda: load_onnx(path), "not a file that ConvLens exported")


def test_no_onnxruntime_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(lambda: load_onnx(folder / "model.onnx"), "pip install 'convlens[export]'")


# A .pt2 of an enemy


@pytest.fixture
def torch_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export.load is not reached: what is refused is refused before torch sees it."""

    def load(*_: object) -> None:
        raise AssertionError("torch was asked to open the file")

    monkeypatch.setattr(torch.export, "load", load)


def test_a_pt2_holds_no_pickle_and_no_path(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        entries = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
    assert entries["data/sample_inputs/model.pt"] == b""
    assert not any(content.startswith(b"\x80") or content.startswith(b"PK") for content in entries.values())
    assert {f"extra/{key}" for key in METADATA} <= set(entries)
    assert b"site-packages" not in entries[MODEL]
    assert b".py" not in entries[MODEL]
    assert json.loads(entries["extra/classes"]) == ["cat", "dog", "猫", "a “b”"]


def test_others_can_open_a_pt2_with_torch_alone(folder: Path) -> None:
    with open(folder / "model.pt2", "rb") as file:  # noqa: PTH123 - torch takes a file
        module = torch.export.load(file).module()
    images = torch.randint(0, 256, (5, 3, 12, 14), dtype=torch.uint8)
    logits, probabilities = module(images)
    assert torch.allclose(logits, torch.from_numpy(load_pt2(folder / "model.pt2").outputs(images.numpy())[0]))
    assert torch.allclose(probabilities, (logits / 1.5).softmax(1))


def pt2_with(folder: Path, change: Callable[[dict[str, Any]], None], entry: str = MODEL) -> bytes:
    entries = _entries((folder / "model.pt2").read_bytes(), "it")
    value = json.loads(entries[entry])
    change(value)
    return _archive({**entries, entry: json.dumps(value).encode()})


def nodes(model: dict[str, Any]) -> list[dict[str, Any]]:
    return model["graph_module"]["graph"]["nodes"]


def formula(model: dict[str, Any], text: str) -> None:
    sizes = model["graph_module"]["graph"]["tensor_values"]["images"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = text


def swap(model: dict[str, Any], old: str, new: str) -> None:
    """Everywhere, also in the JSON that stands in strings of it."""
    model.update(json.loads(json.dumps(model).replace(old, new)))


def operator(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda model: nodes(model)[1].update(target=f"torch.ops.aten.{name}")


# of ATen's own, but no arithmetic: letters that become the name of a file, memory that nobody has filled, settings
REFUSED = "from_file.default chr.default add.str join.default fill_.Scalar set_.source_Storage resize_.default"
REFUSED += (
    " _sparse_coo_tensor_unsafe.default _to_dense.default manual_seed.default set_data.default as_strided.default"
)
EVIL = {
    **{name: operator(name) for name in REFUSED.split()},
    "operator as an argument": lambda m: nodes(m)[2]["inputs"].append(
        {"name": "f", "arg": {"as_operator": "torch.ops.aten.relu.default"}, "kind": 2}
    ),
    "function": lambda m: nodes(m)[1].update(target="torch.os.system"),
    "extension": lambda m: nodes(m)[1].update(target="#evil:run"),
    "operator": lambda m: nodes(m)[1].update(target="_operator.methodcaller"),
    "file name": lambda m: nodes(m)[2]["inputs"].append({"name": "f", "arg": {"as_string": "/etc/x"}, "kind": 2}),
    "formula": lambda m: formula(m, "__import__('os').system('true')"),
    "power": lambda m: formula(m, "9**9**9**9"),
    "long formula": lambda m: formula(m, "1" * 100_000 + "!"),
    "range": lambda m: m.update(range_constraints={"exit()": {"min_val": 1, "max_val": None}}),
    "guard": lambda m: m.update(guards_code=["exit()"]),
    "name": lambda m: nodes(m)[1].update(name='x"); import os #'),
    "parameter": lambda m: swap(m, "normalize.scale", "a';exit()#"),
    "module": lambda m: swap(m, "builtins.tuple", "os.path"),
}


@pytest.mark.usefixtures("torch_never")
@pytest.mark.parametrize("name", EVIL)
def test_a_pt2_of_an_enemy(name: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    data = pt2_with(folder, EVIL[name])
    before, after = (_entries(each, "it")[MODEL] for each in ((folder / "model.pt2").read_bytes(), data))
    assert json.loads(before) != json.loads(after)
    path.write_bytes(data)
    start = time.perf_counter()
    refused(lambda: load_pt2(path), "not what ConvLens exports")
    assert time.perf_counter() - start < 5
    assert pt2_seal_holds(path) is False


def test_operators_of_a_pt2_take_tensors_and_numbers() -> None:
    """No names of files, no storages, no generators; and torch has them all."""
    kinds = set()
    for name in OPERATORS:
        packet, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        taken = {str(argument.real_type) for argument in schema.arguments}
        if name in ("gelu.default", "pad.default"):  # the kind of approximation, and of padding
            taken.remove("str")
        kinds |= {kind.replace("Optional[", "").replace("List[", "").rstrip("]") for kind in taken}
    assert kinds <= {
        "Tensor",
        "number",
        "Scalar",
        "bool",
        "int",
        "SymInt",
        "float",
        "ScalarType",
        "Device",
        "Layout",
        "MemoryFormat",
    }


@pytest.mark.usefixtures("torch_never")
def test_pickles_and_false_sizes_in_a_pt2(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"

    def first(config: dict[str, Any]) -> dict[str, Any]:
        return next(iter(config["config"].values()))

    path.write_bytes(pt2_with(folder, lambda c: first(c).update(use_pickle=True), WEIGHTS))
    refused(lambda: load_pt2(path), "a pickle")
    path.write_bytes(pt2_with(folder, lambda c: first(c)["tensor_meta"].update(sizes=[{"as_int": 1 << 40}]), WEIGHTS))
    refused(lambda: load_pt2(path), "a tensor of")
    entries = _entries((folder / "model.pt2").read_bytes(), "it")
    for name, words in (
        ("data/sample_inputs/model.pt", "a pickle"),
        ("data/constants/custom_obj_0", "custom_obj_0"),
        ("data/weights/model.pt", "model.pt"),
        ("data/aotinductor/model/a.so", "a.so"),
        ("extra/more", "extra/more"),
    ):
        path.write_bytes(_archive({**entries, name: b"\x80\x04."}))
        refused(lambda: load_pt2(path), words)
    for kind, again in ((zipfile.ZIP_DEFLATED, ""), (zipfile.ZIP_STORED, MODEL)):
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, content in entries.items():
                archive.writestr(f"archive/{name}", content)
            if again:
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr(f"archive/{again}", entries[again])
        refused(lambda: load_pt2(path), "compressed" if kind else MODEL)


def test_a_pt2_cut_short_or_with_other_bytes(folder: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "model.pt2", (folder / "model.pt2").read_bytes()
    random = np.random.default_rng(2)
    for i in range(60):
        other = bytearray(data)
        if i % 3 == 0:
            del other[int(random.integers(len(data))) :]
        else:
            other[int(random.integers(len(data)))] ^= 255
        path.write_bytes(other)
        assert "\n" not in sentence(load_pt2, path)
    refused(lambda: load_pt2(tmp_path / "absent.pt2"), "absent.pt2")
    path.write_bytes(_archive({MODEL: b"{}"}))
    refused(lambda: load_pt2(path), "not a file that ConvLens exported")


def test_what_fails_in_onnxruntime_or_torch_is_said_once(folder: Path, tmp_path: Path, capfd) -> None:
    """Neither prints anything by itself: predict's rows go to the same place."""
    path = tmp_path / "model.onnx"
    path.write_bytes((folder / "model.onnx").read_bytes().replace(b"\x0a\x06images", b"\x0a\x06image\xff"))
    refused(lambda: load_onnx(path), "'utf-8' codec can't decode")
    path.write_bytes(onnx_with(folder, lambda m: m.graph.initializer[0].dims.append(7)))
    refused(lambda: load_onnx(path), "onnxruntime cannot open")
    path = tmp_path / "model.pt2"
    path.write_bytes(pt2_with(folder, lambda m: nodes(m)[1].update(outputs=0)))
    refused(lambda: load_pt2(path), "torch cannot open")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    for call in (open_shipped, seal_holds):
        refused(lambda call=call: call(tmp_path / name), "cannot read", "it is no file")


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_images_that_a_graph_cannot_take_are_a_sentence(name: str, folder: Path) -> None:
    shipped = open_shipped(folder / name)
    for shape in ((1, 1, 12, 14), (2, 3, 9, 9), (3,)):
        refused(lambda shape=shape: shipped.logits(np.zeros(shape, np.uint8)), "cannot run the network on")
    assert shipped.logits(np.zeros((2, 3, 12, 14), np.uint8)).shape == (2, 4)


def test_what_stands_beside_the_graph_is_the_same_in_both(folder: Path) -> None:
    file = make_file("vgg", SPEC, args={"widths": [4, 6], "convs": 1})
    packed = pack(file.manifest, file.golden)
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    entries = _entries((folder / "model.pt2").read_bytes(), "it")
    for key in METADATA:
        if key != "sha256":
            assert packed[key] == metadata[key] == entries[f"extra/{key}"].decode()
