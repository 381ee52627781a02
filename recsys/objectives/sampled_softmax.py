"""Softmax over the answer and drawn negatives, corrected for how they were drawn.

T tokens, V catalogue size (padding included), D model width, N negatives of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recsys.objectives.negatives import NegativeItems, Sampling, logits_of


class SampledSoftmax(nn.Module):
    """Mean cross-entropy whose sum over the catalogue is estimated from N draws.

    With s = h · e / temperature and negatives j drawn with probability q_j, the loss of a token
    with answer y is ``log(exp(s_y) + Σ_j≠y exp(s_j − log(N q_j))) − s_y``. The sum has exactly the
    expectation Σ exp(s_i) over all items that can be drawn, for every N. Its logarithm has not (the
    expected loss is too small, by Jensen's inequality), so loss and gradient are unbiased only in
    the limit: their expectations tend to those of `full_softmax` (of h / temperature), with an
    error in proportion to 1 / N. Draws of the answer itself count nothing, and the answer, which is
    not drawn, is not corrected: with the usual correction of both (Bengio and Senécal, 2008) the
    expectation would be another one (arXiv 2507.09331).

    Args:
        item_counts_V: training events of each item.
        negatives: N.
        sampling: see `NegativeItems`.
        shared_negatives: one draw for all tokens of a batch.
        temperature: divides the scores, before the correction.
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
        temperature: float,
        touched_rows: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"objective.temperature must be positive, not {temperature}")
        self.draw = NegativeItems(
            item_counts_V,
            negatives=negatives,
            sampling=sampling,
            shared_negatives=shared_negatives,
        )
        self.temperature = temperature
        self.touched_rows = touched_rows

    def forward(self, hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        """The mean loss, a float32 scalar; arguments as of `full_softmax`."""
        negatives = self.draw(targets_T)
        expected = self.draw.log_probability_V[negatives] + math.log(self.draw.negatives)
        return sampled_softmax(
            hidden_TD,
            table_VD,
            targets_T,
            negatives,
            expected,
            self.temperature,
            self.touched_rows,
        )


def sampled_softmax(
    hidden_TD: Tensor,
    table_VD: Tensor,
    targets_T: Tensor,
    negatives: Tensor,
    log_expected: Tensor,
    temperature: float,
    touched_rows: bool = False,
) -> Tensor:
    """The loss for given draws.

    Args:
        hidden_TD: hidden states of T tokens.
        table_VD: output table.
        targets_T: int64, answers.
        negatives: int64 [N], shared by all tokens, or [T, N].
        log_expected: log of how often each of them was to be expected among the draws, log(N q).
        temperature: divides the scores.
        touched_rows: the table's gradient holds the touched rows only; see `logits_of`.
    """
    answer_T, logits_TN, own_TN = logits_of(hidden_TD, table_VD, targets_T, negatives, touched_rows)
    corrected_TN = logits_TN / temperature - log_expected
    corrected_TN = corrected_TN.masked_fill(own_TN, -torch.inf)
    answer_T1 = answer_T[:, None] / temperature
    all_logits = torch.cat([answer_T1, corrected_TN], dim=1)
    return (all_logits.logsumexp(1) - answer_T1[:, 0]).mean()
