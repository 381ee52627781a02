"""Bayesian personalised ranking (Rendle et al., UAI 2009; arXiv 1205.2618).

T tokens, V catalogue size (padding included), D model width, N negatives of a token.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.objectives.negatives import NegativeItems, Sampling, logits_of


class BPR(nn.Module):
    """Mean of ``−log σ(s_y − s_j)`` over all pairs of an answer y and a negative j.

    Draws of the answer itself make no pair; where there is no pair at all the loss is 0.

    Args:
        item_counts_V: training events of each item.
        negatives: N.
        sampling: see `NegativeItems`.
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
        sampling: Sampling,
        shared_negatives: bool,
        touched_rows: bool = False,
    ) -> None:
        super().__init__()
        self.draw = NegativeItems(
            item_counts_V,
            negatives=negatives,
            sampling=sampling,
            shared_negatives=shared_negatives,
        )
        self.touched_rows = touched_rows

    def forward(self, hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        """The mean loss, a float32 scalar; arguments as of `full_softmax`."""
        answer_T, logits_TN, own_TN = logits_of(
            hidden_TD, table_VD, targets_T, self.draw(targets_T), self.touched_rows
        )
        loss_TN = nn.functional.softplus(logits_TN - answer_T[:, None]).masked_fill(own_TN, 0)
        return loss_TN.sum() / (~own_TN).sum().clamp(min=1)
