"""Low precision where it is asked for, or where the machine is fast at it."""

from __future__ import annotations

import pytest

from recsys.training import precision


@pytest.mark.parametrize("fast", [True, False])
def test_which_precision_is_taken(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: fast)
    assert precision.resolve("32") == "32-true"
    assert precision.resolve("bf16") == "bf16-mixed"
    assert precision.resolve("auto") == ("bf16-mixed" if fast else "32-true")


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="'auto', '32' or 'bf16', not 'fp16'"):
        precision.resolve("fp16")  # type: ignore[arg-type]
