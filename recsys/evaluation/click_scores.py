"""Scoring click questions with a ranker."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from recsys.histories.click_batches import Columns, click_batch
from recsys.histories.clicks import ClickQuestions, HistoryView

ROWS = 8192  # questions scored at once


@torch.inference_mode()
def score_clicks(
    model: nn.Module,
    view: HistoryView,
    questions: ClickQuestions,
    columns: Columns | None,
    max_length: int,
) -> np.ndarray:
    """The probability of each candidate, by a ranker in evaluation mode.

    Args:
        model: gives logits [B] of a `ClickBatch`.
        view: the histories.
        questions: N questions.
        columns: the fields; None for none.
        max_length: newest events of each history the model sees.

    Returns:
        float64 [N], σ(logit).
    """
    assert not model.training
    device = next(model.parameters()).device
    parts = [np.zeros(0)]
    for begin in range(0, len(questions), ROWS):
        asked = questions.take(np.arange(begin, min(begin + ROWS, len(questions))))
        batch = click_batch(view, asked, columns, max_length).to(device)
        parts.append(torch.sigmoid(model(batch).double()).cpu().numpy())
    return np.concatenate(parts)
