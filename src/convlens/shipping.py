"""The commands that send a network on its way, and those that look at what arrived."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from . import flags
from .errors import GATE

if TYPE_CHECKING:
    from .exporting import Exported
    from .verifying import Verification

LISTED = 20  # disagreements that are printed; --json has all


def export(
    model: flags.ModelPath,
    to: flags.To = None,
    out: flags.Exported = None,
    builder: flags.OwnModel = None,
    data_dir: flags.DataDir = None,
    runtime: flags.WebRuntime = None,
    as_json: flags.Json = False,
) -> None:
    """Write a trained network in other formats, each verified before it is kept."""
    from .console import decoding, err
    from .exporting import export as write

    done = write(model, to or ["onnx"], out, builder, data_dir, decoding(), runtime)
    if as_json:
        print(json.dumps([each.to_dict() for each in done]))
        return
    for each in done:
        print(each.path)
        err.print(_exported_line(each))


def _exported_line(done: Exported) -> str:
    """What was proved of a file: `its golden batch is answered alike (logits 1e-06 apart)`, and the cost of int8."""
    files = [path for path in (done.path, *done.path.rglob("*")) if path.is_file()]
    found, size = done.verification, f"{sum(path.stat().st_size for path in files) / 1e6:,.2f} MB"
    size += f" in {len(files)} files; to look at it: python -m http.server -d {done.path}" if len(files) > 1 else ""
    if found.accuracy is None or found.expected is None:
        said = next(check.said for check in found.checks if check.name == "same answers")
        return f"  {size}; verified: {said}"
    return (
        f"  {size}, {done.smaller:.1f} times smaller and {done.faster:.1f} times as fast as float32 here; test "
        f"accuracy {found.accuracy:.2%}, float32 has {found.expected:.2%}"
    )


def verify(
    file: flags.ShippedFile,
    against: flags.Original = None,
    data: flags.TestData = None,
    data_dir: flags.DataDir = None,
    builder: flags.OwnModel = None,
    as_json: flags.Json = False,
) -> None:
    """Check that a file that left is whole and says what the network said; exit with 3 where it does not."""
    from .console import decoding
    from .verifying import verify as look

    found = look(file, against, data, data_dir, builder, decoding())
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        _verification(found)
    if not found.passed:
        raise typer.Exit(GATE)


def _verification(found: Verification) -> None:
    from .console import out, print_table

    words = {True: "ok", False: "FAILED", None: "-"}
    print_table("", ("check", "", "what was found"), [(c.name, words[c.passed], c.said) for c in found.checks])
    if found.disagreements:
        out.print()
        rows = [
            (each.image, each.label, each.expected, each.truth, f"{each.margin:.1e}", "tie" if each.tie else "")
            for each in found.disagreements[:LISTED]
        ]
        columns = ("image", "here", "the run", "truth", "margin", "")
        print_table("Where the file and the run differ", columns, rows, ("margin",))
        if len(found.disagreements) > LISTED:
            out.print(f"and {len(found.disagreements) - LISTED:,} more, which --json lists")
    out.print(f"\n{found.path} {'is sound' if found.passed else 'is NOT sound'}")
