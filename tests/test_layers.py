"""The map of the package, held: a file imports from lower layers, or from files before it in its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src" / "convlens"
LAYERS = [
    ["errors", "markup", "files", "device", "distributed", "download"],
    [
        "recipe",
        "recipes",
        "datasets",
        "images",
        "digits",
        "operating",
        "manifest",
        "packing",
        "readers",
        "listing",
        "cache",
    ],
    [
        "colour",
        "augment",
        "corruptions",
        "splits",
        "pictures",
        "data",
        "models",
        "shortcuts",
        "muon",
        "optim",
        "graphs",
    ],
    [
        "flops",
        "steps",
        "intervals",
        "evaluation",
        "norms",
        "training",
        "lr_find",
        "calibration",
        "tensors",
        "checkpoint",
        "modelfile",
        "onnxfile",
        "onnxexport",
        "pt2file",
        "quantizing",
        "explain",
        "confidence",
        "robust",
        "attribution",
        "receptive",
        "faithfulness",
        "wishes",
        "trace",
        "channels",
        "embedding",
        "functions",
        "anatomy",
        "joining",
        "arithmetic",
        "summary",
    ],
    [
        "plots",
        "trustplots",
        "drawing",
        "gallery",
        "overlays",
        "closeup",
        "insight",
        "run",
        "outcomes",
        "live",
        "snapshots",
        "walking",
        "exhibit",
        "repeating",
        "thumbnails",
        "charts",
        "pagecharts",
        "pageinside",
        "report",
        "probe",
        "modelcard",
        "fitting",
        "album",
        "findings",
        "quality",
        "duplicates",
        "mislabels",
        "checking",
    ],
    [
        "formats",
        "webexport",
        "replaying",
        "verifying",
        "exporting",
        "predict",
        "trial",
        "bench",
        "tune",
        "checkpage",
        "comparing",
        "together",
        "comparepage",
        "batching",
        "uploads",
        "meters",
        "guard",
        "door",
        "wire",
        "service",
        "apidoc",
        "app",
        "picturelists",
        "pageroutes",
        "workers",
    ],
    [
        "console",
        "layertable",
        "session",
        "flags",
        "inside",
        "hosting",
        "opening",
        "looking",
        "learning",
        "answering",
        "telling",
        "shipping",
        "cli",
        "__main__",
    ],
]
ORDER = [name for layer in LAYERS for name in layer]


def imports(path: Path) -> set[str]:
    """The names of the package's own modules that `path` imports, at any depth of the code."""
    found = set()
    inside_models = path.parent.name == "models"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if inside_models and node.level == 1:
                continue  # among the models' own files
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("convlens"):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("convlens")}
    return found


def test_every_file_has_a_place() -> None:
    files = {path.stem for path in SRC.glob("*.py")} | {path.parent.name for path in SRC.glob("*/__init__.py")}
    assert files - {"__init__"} == set(ORDER)


def test_files_import_only_what_lies_below() -> None:
    wrong = []
    for path in SRC.rglob("*.py"):
        name = "models" if path.parent.name == "models" else path.stem
        if name == "__init__":
            continue
        for other in imports(path) - {"__version__"}:
            if other not in ORDER or ORDER.index(other) >= ORDER.index(name):
                wrong.append(f"{path.name} imports {other}")
    assert not wrong


def test_public_names_are_literal_and_exist() -> None:
    import convlens

    assert sorted(convlens.__all__) == sorted({*convlens._HOME, "__version__"})
    for name in convlens.__all__:
        value = getattr(convlens, name)
        assert not isinstance(value, type(sys)), f"convlens.{name} is a module"


def test_importing_the_package_and_its_help_does_not_import_torch() -> None:
    code = (
        "import sys, convlens\nfrom convlens import cli\nsys.argv = ['convlens', 'train', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules), 'something slow was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--recipe" in result.stdout
