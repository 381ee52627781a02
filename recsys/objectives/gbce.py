"""Generalised binary cross-entropy, the objective of gSASRec (arXiv 2308.07192).

T tokens, V catalogue size (padding included), D model width, N negatives of a token.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.objectives.negatives import NegativeItems, logits_of


class GBCE(nn.Module):
    """Binary cross-entropy whose answer's probability is taken to the power β.

    With few negatives, binary cross-entropy learns probabilities that are too high; β undoes it.
    The loss of a token is ``(−β log σ(s_y) − Σ_j log(1 − σ(s_j))) / (N + 1)`` over N uniform
    draws j, of which those of the answer itself count nothing. With α the share of the other items
    that is drawn (at most 1), β = α (t (1 − 1/α) + 1/α): 1 for t = 0 (plain binary cross-entropy)
    and α for t = 1 (calibrated).

    Two differences to the authors' code: they also draw the answer itself as a negative, and they
    compute σ^β in float64 with clamps; −β log σ(s) = β softplus(−s) needs neither.

    Args:
        item_counts_V: training events of each item; only their number counts here.
        negatives: N, k in the paper.
        t: calibration, from 0 to 1.
        shared_negatives: one draw for all tokens of a batch.
        touched_rows: the table's gradient holds the touched rows only; see `logits_of`.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        item_counts_V: Tensor,
        *,
        negatives: int,
        t: float,
        shared_negatives: bool,
        touched_rows: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= t <= 1:
            raise ValueError(f"objective.t must be from 0 to 1, not {t}")
        self.draw = NegativeItems(
            item_counts_V,
            negatives=negatives,
            sampling="uniform",
            shared_negatives=shared_negatives,
        )
        self.touched_rows = touched_rows
        self.beta = beta(negatives, len(item_counts_V) - 1, t)

    def forward(self, hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        """The mean loss, a float32 scalar; arguments as of `full_softmax`."""
        softplus = nn.functional.softplus
        answer_T, logits_TN, own_TN = logits_of(
            hidden_TD, table_VD, targets_T, self.draw(targets_T), self.touched_rows
        )
        negative_T = softplus(logits_TN).masked_fill(own_TN, 0).sum(1)
        return (self.beta * softplus(-answer_T) + negative_T).mean() / (self.draw.negatives + 1)


def beta(negatives: int, items: int, t: float) -> float:
    """β = α (t (1 − 1/α) + 1/α), written so that no small α is divided by.

    >>> beta(5, 11, 0.0), beta(5, 11, 1.0), beta(5, 11, 0.5)
    (1.0, 0.5, 0.75)
    >>> beta(1, 10**9 + 1, 1.0)
    1e-09

    Args:
        negatives: of a token.
        items: in the catalogue.
        t: calibration.
    """
    alpha = min(1.0, negatives / max(1, items - 1))
    return (1 - t) + t * alpha
