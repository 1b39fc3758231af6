"""One exception for everything that the user can mend: one sentence, and the exit code that goes with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USAGE = 2  # wrong usage, configuration or data
FAILED = 1  # the run itself failed
GATE = 3  # a check said no
LETTERS = 600  # of what another program's exception says


class UserError(Exception):
    """A mistake that the user can mend. The message is one sentence: what was given, what is allowed, the remedy."""

    def __init__(self, message: str, exit_code: int = USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most LETTERS: torch's sentences have several lines, and a file's own
    names, which are in some, may be pages."""
    text = " ".join(str(error).split()) or repr(error)
    return text if len(text) <= LETTERS else text[:LETTERS] + " ..."


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like `name`, or None where nothing is close."""
    close = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return close[0] if close else None


def unknown(kind: str, given: str, choices: Iterable[str], remedy: str = "") -> UserError:
    """The error for a name that is not among `choices`, with the nearest one or, failing that, all of them."""
    choices = list(choices)
    match = nearest(given, choices)
    hint = f"did you mean {match!r}?" if match else f"there are: {', '.join(choices)}."
    return UserError(f"unknown {kind} {given!r}; {hint}{' ' + remedy if remedy else ''}")
