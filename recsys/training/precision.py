"""Which precision the machine really has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "32", "bf16"]


def has_fast_bf16() -> bool:
    """Whether bfloat16 products are faster than float32 ones here: detected, never assumed."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = cpuinfo.read_text(errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def resolve(precision: Precision) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's name of the precision to train in; ranking is float32 always.

    Args:
        precision: "auto" takes bfloat16 products (float32 weights, sums and losses) where the
            machine has them, else float32.

    Raises:
        ValueError: another word.
    """
    if precision not in ("auto", "32", "bf16"):
        raise ValueError(f"trainer.precision must be 'auto', '32' or 'bf16', not {precision!r}")
    low = precision == "bf16" or (precision == "auto" and has_fast_bf16())
    return "bf16-mixed" if low else "32-true"
