"""The commands that tell others of finished runs: side by side, and as a model card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import flags
from .errors import UserError, unknown

if TYPE_CHECKING:  # torch takes a second to import, and `--help` needs none of it
    from .comparing import Comparison, Side


def compare(
    runs: flags.RunPaths,
    model: flags.OwnModel = None,
    html: flags.ComparePage = None,
    plot: flags.ComparePlot = None,
    as_json: flags.Json = False,
) -> None:
    """Put runs side by side: what differs, accuracy with its interval, McNemar's test, time, size, curves."""
    from .comparing import compare as find
    from .console import err
    from .files import write_whole

    for file in (html, plot):
        if file and not file.parent.is_dir():
            raise UserError(f"cannot write {file}: there is no folder {file.parent}")
    if plot and plot.suffix not in (".png", ".svg"):
        raise unknown("ending of a picture", plot.suffix, (".png", ".svg"))
    found = find(runs, model)
    if plot:
        from .plots import save
        from .together import both_together

        err.print(f"the curves are in {save(both_together(found.sides), plot)}")
    if html:
        from .comparepage import page

        write_whole(html, page(found))
        err.print(f"the page is {html}")
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        _tables(found)


def card(run: flags.RunPath, to: flags.CardFile = None) -> None:
    """Write a finished run's model card, in the form that the Hugging Face Hub reads."""
    from .console import err
    from .modelcard import NAME, model_card, write_card
    from .run import Run

    opened = Run.open(run)
    written = write_card(model_card(opened), to or opened.path / NAME)
    err.print(f"the model card is {written}; it names no license: that is yours to choose")


def _tables(found: Comparison) -> None:
    from .comparing import shown
    from .console import out, print_table

    for side in found.sides:
        images = f", {side.images:,} test images" if side.images else ", not finished"
        out.print(f"{side.letter}  {side.path}: {side.model} on {side.data}{images}")
    out.print()
    columns = ("run", "accuracy", "95% interval", "loss", "parameters", "multiply-adds", "epochs", "seconds")
    print_table("", columns, [_row(side) for side in found.sides], columns[1:])
    views = [f"{side.letter} {side.tta:.2%}" for side in found.sides if side.tta is not None]
    if views:
        out.print(f"\naccuracy over several views of each image: {', '.join(views)}")
    letters = [side.letter for side in found.sides]
    for title, differences in (("recipe", found.recipe), ("environment", found.environment)):
        if differences:
            out.print(f"\nWhere the {title}s differ")
            rows = [(key, *map(shown, values)) for key, values in differences.items()]
            print_table("", (title, *letters), rows)
    if not found.recipe:
        out.print("\nTheir recipes are the same.")
    if found.tests:
        _test_table(found)
    for sentence in found.said:
        out.print(f"\n{sentence}")


def _row(side: Side) -> tuple[str, ...]:
    interval = f"{100 * side.interval[0]:.2f} to {100 * side.interval[1]:.2f}" if side.interval else "-"
    return (
        side.letter,
        "-" if side.accuracy is None else f"{side.accuracy:.2%}",
        interval,
        "-" if side.loss is None else f"{side.loss:.4f}",
        "-" if side.parameters is None else f"{side.parameters:,}",
        "-" if side.macs is None else f"{side.macs:,}",
        str(side.epochs),
        f"{side.seconds:,.1f}" if side.seconds < 1000 else f"{side.seconds:,.0f}",
    )


def _test_table(found: Comparison) -> None:
    from .comparing import EXACT
    from .console import out, print_table

    several = len(found.tests) > 1
    out.print("\nMcNemar's test, on the same test images")
    rows = []
    for test in found.tests:
        counts = (test.both, test.only_first, test.only_second, test.neither)
        names = f"{test.first}, {test.second}"
        corrected = [f"{test.p_holm:.3g}"] if several else []
        rows.append((names, *(f"{count:,}" for count in counts), f"{test.p:.3g}", *corrected, test.method))
    columns = ["runs", "both right", "only 1st", "only 2nd", "neither", "p", *(["p, Holm"] if several else []), "by"]
    print_table("", columns, rows, columns[1:-1])
    out.print(
        "\np: how likely so uneven a share of the images in dispute is if both networks\n"
        f"are as good; exact: binomial, below {EXACT} in dispute; chi-squared: with continuity\n"
        "correction. It is of these networks, not of what another seed would give."
    )
