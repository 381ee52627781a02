"""Errors about interaction logs, for the people whose logs they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LogError(ValueError):
    """A log, or a setting about it, that cannot be used: what, where, and what to do."""


class UnreadableError(LogError):
    """A file whose content breaks its own format."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Words that point to the choice most like `name`.

    Args:
        name: what was asked for.
        choices: what there is.

    Returns:
        " Did you mean 'x'?", or "" where nothing resembles the name.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" Did you mean {by_lower[matches[0]]!r}?" if matches else ""
