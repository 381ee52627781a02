"""How training speaks to whoever keeps the books."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Reporter(Protocol):
    """Takes numbers as they arise. The MLflow side of it is handed in by the pipelines."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Named values at a step."""


class Silent:
    """A reporter that keeps nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""
