"""The example notebooks: committed without outputs, and each runs from its first cell to its last without a warning."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
# Runs before the first cell: warnings are errors, but for those of the kernel's own code, and nothing is left behind
STRICT = """
import tempfile, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module="ipykernel")
tempfile.tempdir = {!r}
"""


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_they_are_committed_clean(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 10 <= len(code) <= 15
    assert len(notebook.cells) - len(code) >= 8  # a story, and not a listing
    for cell in code:
        assert not cell.outputs
        assert cell.execution_count is None
        ast.parse(cell.source)
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^):]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / target).exists(), target


def test_there_are_two() -> None:
    assert [path.stem for path in EXAMPLES] == ["lenet-on-mnist", "your-own-folder"]


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_they_run(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    notebook.cells.insert(0, new_code_cell(STRICT.format(str(tmp_path))))
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises with the cell's own traceback
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    drawn = [kind for output in outputs for kind in output.get("data", {})]
    assert drawn.count("image/png") >= 3
    assert drawn.count("text/html") >= 4
    (accuracy,) = re.findall(r"<strong>accuracy ([\d.]+)%", "".join(str(o.get("data", "")) for o in outputs))
    assert float(accuracy) > 90
    if path.stem == "lenet-on-mnist":
        assert "the same curve to the last digit: True" in "".join(o.get("text", "") for o in outputs)
