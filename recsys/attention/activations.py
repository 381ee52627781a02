"""Activations that learn: PReLU and Dice, beside the plain ones.

Dimensions: N rows of any leading shape, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "sigmoid", "prelu", "dice"]


class Dice(nn.Module):
    """Data-adaptive PReLU (DIN, arXiv 1706.06978, eq. 8): the kink moves with the data's mean.

    f(s) = p(s) · s + (1 − p(s)) · α s, with p(s) = σ((s − E[s]) / √(Var[s] + ε)); mean and variance
    are the batch's in training and running averages afterwards, α is learned per channel. Rows of
    padding take no part in mean and variance.

    `reference` reads like the formula; `forward` is the same, in portions that fit the cache.

    Args:
        width: D.
        epsilon: added to the variance.
        momentum: weight of the newest batch in the running averages.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, epsilon: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.epsilon = epsilon
        self.momentum = momentum

    def forward(self, x_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
        """Activate.

        Args:
            x_ND: any leading shape.
            valid_N: False on padding, of the leading shape; None: all rows count.
        """
        if torch.compiler.is_compiling() and not self.training:
            return self.reference(x_ND, valid_N)  # portions are for a cache, not for a tracer
        rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
        mask_N1 = None if valid_N is None else valid_N.reshape(-1, 1)
        mean_D, variance_D, count = self.mean, self.variance, 0
        if self.training:
            count = len(rows_ND) if mask_N1 is None else int(mask_N1.sum())
            if count > 1:
                mean_D, variance_D = _moments(rows_ND.detach(), mask_N1, count)
                self.mean.lerp_(mean_D.to(self.mean.dtype), self.momentum)
                self.variance.lerp_(variance_D.to(self.variance.dtype), self.momentum)
        scale_D = torch.rsqrt(variance_D + self.epsilon)
        out_ND: Tensor = _GatedLine.apply(
            rows_ND, mask_N1, self.alpha, mean_D, scale_D, count if count > 1 else 0
        )
        return out_ND.view(x_ND.shape)

    def reference(self, x_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
        """The same as the formula is written; in training without touching the running averages."""
        mean_D, variance_D = self.mean, self.variance
        if self.training:
            rows_ND = x_ND.flatten(0, -2) if valid_N is None else x_ND[valid_N]
            if len(rows_ND) > 1:
                variance_D, mean_D = torch.var_mean(rows_ND, 0, correction=0)
        p_ND = torch.sigmoid((x_ND - mean_D) * torch.rsqrt(variance_D + self.epsilon))
        return p_ND * x_ND + (1 - p_ND) * self.alpha * x_ND


PORTION = 2**17  # numbers that are worked on at once: with what is made of them they fit the cache


def _portions(rows: int, width: int) -> Iterator[slice]:
    step = max(1, PORTION // width)
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def _moments(x_ND: Tensor, mask_N1: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the valid rows, in float32 at least, whatever the type of the layers.

    Args:
        x_ND: the rows.
        mask_N1: False on padding; None: all count.
        count: of valid rows.
    """
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    # From a point near the mean, so that the squares cancel nothing.
    near_D = x_ND[: max(1, PORTION // x_ND.shape[1])].to(wide).mean(0)
    sums_D = torch.zeros(x_ND.shape[1], dtype=torch.float64, device=x_ND.device)
    squares_D = torch.zeros_like(sums_D)
    for portion in _portions(*x_ND.shape):
        away_ND = x_ND[portion].to(wide) - near_D
        if mask_N1 is not None:
            away_ND *= mask_N1[portion]
        sums_D += away_ND.sum(0)
        squares_D += away_ND.square_().sum(0)
    shift_D = sums_D / count
    variance_D = (squares_D / count - shift_D.square()).clamp_(min=0)
    return (near_D + shift_D).to(wide), variance_D.to(wide)


class _GatedLine(torch.autograd.Function):
    """y = x · (α + (1 − α) p), p = σ(z), z = (x − μ) r: Dice, with mean μ and 1 / deviation r.

    Where μ and r are the batch's own, they depend on each of its n valid rows. With
    g = ∂L/∂z = G x (1 − α) p (1 − p) and G = ∂L/∂y,

        ∂L/∂x = G (α + (1 − α) p) + r g − [valid] r/n (Σ g + z Σ g z),  ∂L/∂α = Σ G x (1 − p).

    Nothing but x is kept; p is computed again, a portion at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        mask_N1: Tensor | None,
        alpha_D: Tensor,
        mean_D: Tensor,
        scale_D: Tensor,
        count: int,
    ) -> Tensor:
        """`count` is the number of valid rows that μ and r are made from; 0: they are constants."""
        ctx.save_for_backward(x_ND, mask_N1, alpha_D, mean_D, scale_D)
        ctx.count = count
        out_ND = torch.empty_like(x_ND)
        rest_D, offset_D = 1 - alpha_D, -mean_D * scale_D
        for portion in _portions(*x_ND.shape):
            own_ND = x_ND[portion].to(scale_D.dtype)
            gate_ND = torch.addcmul(offset_D, own_ND, scale_D).sigmoid_()
            out_ND[portion] = torch.addcmul(alpha_D, gate_ND, rest_D).mul_(own_ND)
        return out_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of x and α."""
        (gradient_ND,) = gradients
        x_ND, mask_N1, alpha_D, mean_D, scale_D = ctx.saved_tensors
        rest_D, offset_D = 1 - alpha_D, -mean_D * scale_D
        grad_x_ND = torch.empty_like(x_ND)
        grad_alpha_D, gate_sum_D, gate_z_sum_D = (torch.zeros_like(scale_D) for _ in range(3))
        for portion in _portions(*x_ND.shape):
            own_ND, above_ND = x_ND[portion].to(scale_D.dtype), gradient_ND[portion]
            z_ND = torch.addcmul(offset_D, own_ND, scale_D)
            gate_ND = torch.sigmoid(z_ND)
            direct_ND = torch.addcmul(alpha_D, gate_ND, rest_D).mul_(above_ND)
            closed_ND = (own_ND * above_ND).mul_(1 - gate_ND)  # G x (1 − p)
            grad_alpha_D += closed_ND.sum(0)
            through_ND = closed_ND.mul_(gate_ND).mul_(rest_D)  # g
            gate_sum_D += through_ND.sum(0)
            grad_x_ND[portion] = direct_ND.addcmul_(through_ND, scale_D)
            gate_z_sum_D += through_ND.mul_(z_ND).sum(0)
        if ctx.count:
            # r/n (Σ g + z Σ g z) as a line in x
            slope_D = scale_D * scale_D * gate_z_sum_D / ctx.count
            constant_D = scale_D * gate_sum_D / ctx.count - mean_D * slope_D
            for portion in _portions(*x_ND.shape):
                common_ND = torch.addcmul(constant_D, x_ND[portion].to(slope_D.dtype), slope_D)
                if mask_N1 is not None:
                    common_ND *= mask_N1[portion]
                grad_x_ND[portion] -= common_ND
        return grad_x_ND, None, grad_alpha_D.to(alpha_D.dtype), None, None, None


class Activate(nn.Module):
    """An activation chosen by name.

    Args:
        name: "relu", "sigmoid", "prelu" (one slope per channel) or "dice".
        width: channels.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, name: Activation, width: int) -> None:
        super().__init__()
        if name not in ("relu", "sigmoid", "prelu", "dice"):
            raise ValueError(
                f"activation must be 'relu', 'sigmoid', 'prelu' or 'dice', not {name!r}"
            )
        if name == "dice":
            self.dice = Dice(width)
        elif name == "prelu":
            self.slopes = nn.Parameter(torch.full((width,), 0.25))
        self.name = name

    def forward(self, x_ND: Tensor, valid_N: Tensor | None = None) -> Tensor:
        """Activate; `valid_N` is False on padding, which must not move Dice's statistics."""
        if self.name == "dice":
            activated_ND: Tensor = self.dice(x_ND, valid_N)
            return activated_ND
        if self.name == "prelu":
            return torch.where(x_ND >= 0, x_ND, x_ND * self.slopes)
        return torch.relu(x_ND) if self.name == "relu" else torch.sigmoid(x_ND)
