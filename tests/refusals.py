"""What a refusal must look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from convlens.errors import USAGE, UserError


def refused(call: Callable[[], object], *words: str | Path, exit_code: int = USAGE) -> str:
    """`call` raises UserError with this exit code and one line, which is returned, that has all `words` in it."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.exit_code == exit_code
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message
