"""The network that every ranker ends with.

Dimensions: B questions, F width of the input.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.attention.activations import Activate, Activation
from recsys.attention.dropout import Dropout

DEFAULT_HIDDEN = [256, 128]  # of arXiv 1706.06978's kind; never changed in place


class Perceptron(nn.Module):
    """Hidden layers with an activation and dropout each, and one logit.

    Args:
        width: F.
        hidden: widths of the hidden layers.
        activation: of the hidden layers.
        dropout: after each.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(
        self, width: int, hidden: list[int], activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        if min(hidden, default=1) < 1:
            raise ValueError(f"hidden must hold widths from 1, not {hidden}")
        widths = [width, *hidden]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), Activate(activation, after), Dropout(dropout))
            for before, after in zip(widths, hidden, strict=False)
        )
        self.logit = nn.Linear(widths[-1], 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Logits [B], in float32."""
        for layer in self.layers:
            x_BF = layer(x_BF)
        logits_B: Tensor = self.logit(x_BF).squeeze(1).float()
        return logits_B
