"""Dropout from bulk random bytes.

`bernoulli_` draws one number per element, which at small widths costs a third of a training step
on a CPU. Here one 64-bit draw of torch's default generator serves eight elements: an element is
dropped when its byte is below `round(256 · rate)`. The rate is therefore a multiple of 1/256 and
the scale is the exact inverse of the keep rate, so the expectation is exact. Seeded by
`torch.manual_seed`, saved and restored with torch's generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def random_bytes(count: int, device: torch.device) -> Tensor:
    """uint8 [count] of independent uniform bytes from torch's default generator."""
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=device)
    return words.random_(-(2**63), None).view(torch.uint8)[:count]


def _scaled_mask(shape: torch.Size, threshold: int, like: Tensor) -> Tensor:
    """0 where dropped, the inverse keep rate elsewhere."""
    kept = random_bytes(shape.numel(), like.device) >= threshold
    return kept.to(like.dtype).mul_(256 / (256 - threshold)).view(shape)


class Dropout(nn.Module):
    """Zeroes elements with probability `rate` in training and rescales the rest.

    Args:
        rate: in [0, 1); rounded to a multiple of 1/256.

    Raises:
        ValueError: rate outside [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout must be in [0, 1), not {rate}")
        self.rate = rate
        self.threshold = min(round(256 * rate), 255)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with dropped elements, same shape."""
        if not self.training or self.threshold == 0:
            return x
        # One product with a mask in x's own type: filling and selecting by bools is slower.
        return x * _scaled_mask(x.shape, self.threshold, x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"rate={self.rate}"
