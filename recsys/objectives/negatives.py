"""Negative items for objectives that do not look at the whole catalogue.

T tokens, V catalogue size (padding included), D model width, N negatives of a token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Sampling = Literal["uniform", "popularity", "batch"]


class NegativeItems(nn.Module):
    """Draws negatives with replacement, from torch's seeded generator.

    Args:
        item_counts_V: training events of each item; `item_counts_V[0]` is padding's and not looked
            at.
        negatives: N.
        sampling: "uniform" over all items; "popularity", in proportion to the training events, so
            that items without any are never drawn; "batch", the answers of tokens of the same
            batch drawn uniformly, which is popularity again, without a table to draw from.
        shared_negatives: all tokens of a batch have the same N, and no T × N × D is made.

    Raises:
        ValueError: an unknown sampling, no negatives, or no item to draw.
    """

    cumulative_V: Tensor
    log_probability_V: Tensor

    def __init__(
        self, item_counts_V: Tensor, *, negatives: int, sampling: Sampling, shared_negatives: bool
    ) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"objective.negatives must be at least 1, not {negatives}")
        if sampling not in ("uniform", "popularity", "batch"):
            raise ValueError(
                f"objective.sampling must be 'uniform', 'popularity' or 'batch', not {sampling!r}"
            )
        weight_V = item_counts_V.to(torch.float64, copy=True)
        if sampling == "uniform":
            weight_V.fill_(1)
        weight_V[0] = 0
        if not weight_V.sum() > 0:
            raise ValueError("there is no item with training events to draw negatives from")
        cumulative_V = weight_V.cumsum(0)
        self.negatives = negatives
        self.sampling = sampling
        self.shared_negatives = shared_negatives
        # Not part of a checkpoint: made from the log each time.
        self.register_buffer("cumulative_V", cumulative_V / cumulative_V[-1], persistent=False)
        log_probability_V = (weight_V / weight_V.sum()).log().float()
        self.register_buffer("log_probability_V", log_probability_V, persistent=False)

    def forward(self, targets_T: Tensor) -> Tensor:
        """int64 [N] if shared, else [T, N]: items from 1; a token's own answer may be among them.

        Args:
            targets_T: the answers of the batch's tokens.
        """
        shape = (self.negatives,) if self.shared_negatives else (len(targets_T), self.negatives)
        device = targets_T.device
        if self.sampling == "batch":
            return targets_T[torch.randint(len(targets_T), shape, device=device)]
        if self.sampling == "uniform":
            return torch.randint(1, len(self.cumulative_V), shape, device=device)
        drawn = torch.rand(shape, dtype=torch.float64, device=device)
        return torch.searchsorted(self.cumulative_V, drawn, right=True)


def logits_of(
    hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor, negatives: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of answers and negatives, and which negatives are the token's own answer.

    Args:
        hidden_TD: hidden states.
        table_VD: output table.
        targets_T: int64, answers.
        negatives: int64 [N], shared by all tokens, or [T, N].

    Returns:
        float32 [T], float32 [T, N], bool [T, N].
    """
    embedding = nn.functional.embedding
    answer_T = (hidden_TD * embedding(targets_T, table_VD)).float().sum(1)
    own_TN = negatives == targets_T[:, None]
    if negatives.ndim == 1:
        logits_TN = hidden_TD @ embedding(negatives, table_VD).T
    elif len(table_VD) <= negatives.shape[1] * hidden_TD.shape[1]:
        # All T × V scores are fewer numbers than the T × N × D of the negatives' vectors.
        logits_TN = (hidden_TD @ table_VD.T).gather(1, negatives)
    else:
        vectors_TND = embedding(negatives, table_VD)
        logits_TN = torch.matmul(vectors_TND, hidden_TD[:, :, None]).squeeze(2)
    return answer_T, logits_TN.float(), own_TN
