"""Activations that learn: PReLU and Dice, beside the plain ones.

Dimensions: N rows of any leading shape, D channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "sigmoid", "prelu", "dice"]


class Dice(nn.Module):
    """Data-adaptive PReLU (DIN, arXiv 1706.06978, eq. 8): the kink moves with the data's mean.

    f(s) = p(s) · s + (1 − p(s)) · α s, with p(s) = σ((s − E[s]) / √(Var[s] + ε)); mean and variance
    are the batch's in training and running averages afterwards, α is learned per channel. Rows of
    padding take no part in mean and variance.

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
        mean_D, variance_D = self.mean, self.variance
        if self.training:
            rows_ND = x_ND.flatten(0, -2) if valid_N is None else x_ND[valid_N]
            if len(rows_ND) > 1:
                # Statistics in float32, whatever the type of the layers.
                variance_D, mean_D = torch.var_mean(rows_ND.float(), 0, correction=0)
                with torch.no_grad():
                    self.mean.lerp_(mean_D, self.momentum)
                    self.variance.lerp_(variance_D, self.momentum)
        p_ND = torch.sigmoid((x_ND - mean_D) * torch.rsqrt(variance_D + self.epsilon))
        return x_ND * (p_ND + (1 - p_ND) * self.alpha)


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
