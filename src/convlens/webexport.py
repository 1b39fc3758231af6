"""A network as a page: a folder of static files that classifies in the browser, with the .onnx that it runs and the
runtime for it. The files of the page itself are in templates/web/, the same for every network."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from . import __version__
from .errors import UserError
from .files import disk_error, make_folder, sha256_of
from .onnxfile import OnnxFile, load_onnx

PAGE = Path(__file__).with_name("templates") / "web"
SUMS = "SHA256SUMS.txt"  # of all other files, as sha256sum writes and reads them
RUNTIME = "1.30.0"  # of the npm package onnxruntime-web
# What is copied of it, under which name, and its sha256. The ending is .js: there are servers that do not know .mjs
COPIED = {
    "dist/ort.wasm.bundle.min.mjs": (
        "runtime/ort.js",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "dist/ort-wasm-simd-threaded.wasm": (
        "runtime/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}


def runtime_files(given: str | Path | None = None) -> dict[str, bytes]:
    """onnxruntime-web's files, by their names in the folder that is written, each checked. The package is looked for in
    `given`, or else in ./node_modules and where npm keeps what is installed globally; nothing is downloaded.

    Raises:
        UserError: it is not there, of another version, or changed.
    """
    package = _package(given)
    found = {}
    for source, (name, sha256) in COPIED.items():
        try:
            found[name] = (package / source).read_bytes()
        except OSError as error:
            raise UserError(f"{package} is not whole: cannot read {source} ({error.strerror}); {_remedy()}") from error
        if hashlib.sha256(found[name]).hexdigest() != sha256:
            raise UserError(f"{package / source} is not the file of onnxruntime-web {RUNTIME}; {_remedy()}")
    return found


def _package(given: str | Path | None) -> Path:
    inside = ("onnxruntime-web", "node_modules/onnxruntime-web")
    if given:
        places = [Path(given), *(Path(given) / name for name in inside)]
    else:
        places = [Path("node_modules/onnxruntime-web"), *(Path(root) / "onnxruntime-web" for root in _global_root())]
    for place in places:
        try:
            said = json.loads((place / "package.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(said, dict) and said.get("name") == "onnxruntime-web":
            if said.get("version") != RUNTIME:
                raise UserError(f"{place} is onnxruntime-web {said.get('version')}; {_remedy()}")
            return place
    raise UserError(f"the page needs onnxruntime-web, which is not in {' or '.join(map(str, places))}; {_remedy()}")


def _remedy() -> str:
    return f"npm install onnxruntime-web@{RUNTIME} puts the right one into ./node_modules (elsewhere: --runtime FOLDER)"


def _global_root() -> list[str]:
    """The folder of what npm has installed globally; none where there is no npm."""
    npm = shutil.which("npm")
    if not npm:
        return []
    try:
        said = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - the npm that the user has
    except (OSError, subprocess.TimeoutExpired):
        return []
    return said.stdout.split("\n")[:1] if said.returncode == 0 else []


def write_web(onnx: Path, folder: Path, runtime: dict[str, bytes]) -> int:
    """Write the page of an .onnx that ConvLens exported to `folder`, whole or not at all, and give its size in bytes.
    A page that stood there is replaced. `runtime` is what `runtime_files` gave.

    Raises:
        UserError: the folder holds anything that is not of a page, or the disk refuses.
    """
    folder = (
        folder.resolve()
    )  # what is written first lies beside it: not in it where it is ".", nor beside a link to it
    part, old = (folder.with_name(f".{folder.name}.{word}") for word in ("part", "old"))
    try:
        if old.exists() and not folder.exists():  # one was killed between its two renames
            old.rename(folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    _require_ours(folder)
    files = _page_files() | runtime | {"model.onnx": onnx.read_bytes()}
    facts = _facts(load_onnx(onnx), hashlib.sha256(files["model.onnx"]).hexdigest())
    files["model.json"] = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False).encode()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files[SUMS] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    make_folder(folder.parent)
    try:
        for left in (part, old):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        for name, data in files.items():
            make_folder((part / name).parent)
            (part / name).write_bytes(data)
        _put(part, folder, old)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return sum(map(len, files.values()))


def _put(part: Path, folder: Path, old: Path) -> None:
    """Move `part` to the place of `folder`, and that to `old`; where the system refuses, all is as it was."""
    had = folder.exists()
    if had:
        folder.rename(old)
    try:
        part.rename(folder)
    except BaseException:
        if had:
            old.rename(folder)
        raise


def _page_files() -> dict[str, bytes]:
    """The files of the page itself, by their names in its folder."""
    return {path.relative_to(PAGE).as_posix(): path.read_bytes() for path in PAGE.rglob("*") if path.is_file()}


def _require_ours(folder: Path) -> None:
    """Raises UserError where a folder holds anything that the list in it does not name: it would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the page")
    listed = _listed(folder)
    names = {SUMS, *listed} if {"index.html", "model.json"} <= listed.keys() else set()
    above = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name not in (above if path.is_dir() else names):
            raise UserError(f"{folder} holds {name}, which is not of a page of ConvLens: give a folder that is new")


def _listed(folder: Path) -> dict[str, str]:
    """The sha256 of each file that a page's own list names; none where the list cannot be read."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def _facts(file: OnnxFile, sha256: str) -> dict[str, Any]:
    """What the page must know: model.json. The golden batch is there as its bytes, and its first image as a PNG too:
    whether the browser gives the pixels of a picture as they are in its file is checked with it."""
    manifest, golden = file.manifest, file.golden
    first = golden.images[0].transpose(1, 2, 0)
    png = io.BytesIO()
    Image.fromarray(first if first.shape[2] == 3 else first[:, :, 0]).save(png, "png")
    return {
        "convlens": __version__,
        "onnxruntime_web": RUNTIME,
        "sha256": sha256,
        "classes": list(manifest.classes),
        "input": {**dataclasses.asdict(manifest.input), "size": list(manifest.input.size)},
        "calibration": manifest.calibration.to_dict(),
        "metrics": {name: manifest.metrics[name] for name in ("test_accuracy", "images") if name in manifest.metrics},
        "golden": {
            "count": len(golden.images),
            "images": _base64(golden.images.tobytes()),
            "logits": _base64(golden.logits.astype(np.dtype("<f4")).tobytes()),
            "picture": _base64(png.getvalue()),
        },
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def check_web(folder: str | Path) -> list[str]:
    """What is wrong with a page's folder, a sentence each: files that are missing, too many, or not those that were
    exported, and a model.json that does not say what model.onnx says. Not only the folder's own list is asked, which
    anybody can make anew: the runtime has to be the pinned one, and where this version wrote the page (`written_by`),
    its code to be this version's. Whether model.onnx still gives its numbers is `verify`'s to see.

    Raises:
        UserError: model.onnx is none of ConvLens'.
    """
    folder = Path(folder)
    listed = _listed(folder)
    if not listed:
        return [f"{SUMS} cannot be read"]
    known = {name: (sha256, f"onnxruntime-web {RUNTIME}") for name, sha256 in COPIED.values()}
    needed = {*known, "index.html", "model.json", "model.onnx"}
    if written_by(folder) == __version__:
        ours = {name: hashlib.sha256(data).hexdigest() for name, data in _page_files().items()}
        known |= {name: (sha256, f"ConvLens {__version__}") for name, sha256 in ours.items()}
        needed |= ours.keys()
    else:  # another version may have had other files
        needed |= listed.keys()
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    problems = [f"{SUMS} does not list {name}" for name in sorted(needed - listed.keys())]
    problems += [f"{name} is not of the page" for name in sorted(found.keys() - needed - {SUMS})]
    for name in sorted(needed & listed.keys()):
        if name not in found or not found[name].is_file():
            problems.append(f"{name} is missing")
            continue
        try:
            sha256 = sha256_of(found[name])
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
            continue
        expected, source = known.get(name, (sha256, ""))
        if sha256 != listed[name]:
            problems.append(f"{name} is not the file that was exported")
        elif sha256 != expected:
            problems.append(f"{name} is not the file of {source}")
    return problems or _contradictions(folder)


def written_by(folder: Path) -> str | None:
    """The version of ConvLens that a page says it was written by; None where it does not say."""
    version = _said(folder).get("convlens")
    return version if isinstance(version, str) else None


def _said(folder: Path) -> dict[str, Any]:
    """What a page's model.json says; nothing where it is none."""
    try:
        said = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _contradictions(folder: Path) -> list[str]:
    """Where model.json, as listed, says something else than model.onnx: somebody made the list anew."""
    said = _said(folder)
    if written_by(folder) is None:
        return ["model.json is not what ConvLens writes"]
    facts = json.loads(json.dumps(_facts(load_onnx(folder / "model.onnx"), sha256_of(folder / "model.onnx"))))
    of_the_writer = ("convlens", "onnxruntime_web")
    return [
        f"model.json and model.onnx differ in {name}"
        for name in facts
        if name not in of_the_writer and said.get(name) != facts[name]
    ]
