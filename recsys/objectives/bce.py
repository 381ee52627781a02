"""Binary cross-entropy with drawn negatives, the objective of the SASRec paper (arXiv 1808.09781).

T tokens, V catalogue size (padding included), D model width, N negatives of a token.
"""

from __future__ import annotations

from torch import Tensor, nn

from recsys.objectives.negatives import NegativeItems, Sampling, logits_of


class BCE(nn.Module):
    """Mean over the tokens of ``−log σ(s_y) − Σ_j log(1 − σ(s_j))``.

    Draws of the answer itself count nothing. The paper draws one negative, uniformly, and none of
    the user's own items; here only the token's own answer is spared.

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
        softplus = nn.functional.softplus
        answer_T, logits_TN, own_TN = logits_of(
            hidden_TD, table_VD, targets_T, self.draw(targets_T), self.touched_rows
        )
        return (softplus(-answer_T) + softplus(logits_TN).masked_fill(own_TN, 0).sum(1)).mean()
