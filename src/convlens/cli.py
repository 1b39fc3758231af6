"""The command line: the program, and the commands that it has. What is imported slowly is imported where it is used."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__, answering, hosting, learning, looking, opening, shipping, telling
from .errors import FAILED, UserError

app = typer.Typer(
    name="convlens",
    help="From images to a convolutional network that you can trust.",
    epilog="--debug anywhere shows the whole traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The program. Exit codes: 0 done, 1 failed, 2 usage or data, 3 a gate said no, 130 and 143 interrupted."""
    if not _one_of_several():
        _main()
    else:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what fails is said once, and not by torch's C++
        from .distributed import joined

        joined(_main)


def _one_of_several() -> bool:
    """Whether torchrun, or what sets the same variables, started this process and others beside it."""
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys() and os.environ.get("WORLD_SIZE", "1") != "1"


def _main() -> None:
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.path.append(str(Path.cwd()))  # so that -m my_file:network finds the file beside one
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        if debug:
            raise
        from .console import visible

        print(f"convlens: {visible(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away: `convlens predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _version(asked: bool) -> None:
    if asked:
        print(f"convlens {__version__}")
        raise typer.Exit


@app.callback()
def convlens(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it all
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """From images to a convolutional network that you can trust."""
    if context.invoked_subcommand != "train" and _one_of_several():
        raise UserError(f"torchrun starts `convlens train` only; run convlens {context.invoked_subcommand} by itself")


for command in (
    looking.datasets,
    looking.show,
    looking.check,
    looking.cache,
    looking.models,
    looking.recipes,
    looking.summary,
    learning.train,
    learning.lr_find,
    learning.tune,
    learning.bench,
    answering.evaluate,
    answering.explain,
    answering.report,
    answering.predict,
    shipping.export,
    shipping.verify,
    telling.compare,
    telling.card,
    hosting.serve,
):
    app.command()(command)
app.command("open")(opening.open_)  # the word is Python's own
