"""What `convlens explain` needs a run's data for: a walk over training images, and the look at the network itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .errors import UserError, unknown

if TYPE_CHECKING:  # torch comes with them
    from .data import Data
    from .insight import Walk
    from .modelfile import ModelFile
    from .run import Run


def walked(run: Run, file: ModelFile, load: Callable[[], Data], data_dir: Path | None = None) -> Walk:
    """What a walk over a sample of the run's training images found, which `load` loads; nothing is downloaded for it.

    Raises:
        UserError: the data is not on this disk as it was.
    """
    from .console import err
    from .datasets import get_spec
    from .insight import walk
    from .readers import find

    seen = run.environment["data"]
    spec = None if seen.get("folder") else get_spec(seen["name"])
    if spec and spec.kind != "sample" and find(spec, data_dir or seen["data_dir"]) is None:
        raise UserError(f"the data set {spec.name} is not on this disk; --data-dir says where it is")
    found = walk(file.model, load())
    err.print(f"what fires a channel, and neighbours: looked for in {found.extent}, spread evenly")
    return found


def walked_if_there(run: Run, file: ModelFile, load: Callable[[], Data], data_dir: Path | None = None) -> Walk | None:
    """The same; None, and a sentence on stderr, where the data is not there."""
    from .console import err

    try:
        return walked(run, file, load, data_dir)
    except UserError as error:
        err.print(f"convlens: what else fires a channel, and neighbours, are left out: {error}")
        return None


def network(
    run: Run,
    file: ModelFile,
    load: Callable[[], Data],
    data_dir: Path | None,
    out: Path | None,
    method: str,
    said: TextIO | None = None,
) -> dict[str, Any]:
    """Draw the network itself, its test images on a map by `method`, say to `said` (stdout) which channels are dead or
    duplicate, and give all of it as JSON takes it. Raises UserError where its data is not there, or `method` is neither
    pca nor umap, or UMAP is not installed."""
    from .console import err, visible
    from .embedding import require_umap
    from .insight import draw_network, findings

    if method not in ("pca", "umap"):
        raise unknown("map", method, ("pca", "umap"))
    if method == "umap":
        require_umap()  # before the long walk
    found, folder = walked(run, file, load, data_dir), (out or run.path / "explain") / "network"
    drawn, result = draw_network(folder, file.model, found, method)
    text = "\n".join(findings(found.survey)) or f"no channel is dead, and none a duplicate, on {found.extent}"
    print(visible(text), file=said)
    err.print(f"{len(drawn)} pictures in {folder}")
    return result
