"""The property kit: laws every next-item model obeys, and a log whose answer is known.

Inherit `NextItemLaws` in a test module, define `build`, and pytest runs every law on your model.
Public: one's own models are tested with it too.

    class TestMyModel(NextItemLaws):
        def build(self, catalogue_size: int, max_length: int) -> nn.Module:
            return MyModel(catalogue_size, max_length)
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.batch import HistoryBatch
from recsys.histories.store import HistoryStore


def batch_of(histories: list[list[int]], extra_padding: int = 0) -> HistoryBatch:
    """A batch from lists of item indices, optionally padded further than needed."""
    L = max([len(history) for history in histories] + [1]) + extra_padding
    items = torch.zeros(len(histories), L, dtype=torch.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history, dtype=torch.int64)
    return HistoryBatch(items, torch.tensor([len(history) for history in histories]))


def planted_log(users: int = 1500, seed: int = 0) -> HistoryStore:
    """A log whose next item is known to whoever attends by content, and to almost nobody else.

    There are 5 families of 5 keys. A history opens with one key of each family among stray signals,
    stray answers and noise, in random order. Then come four rounds of 2 to 4 noise items, the
    signal of a family, and the answer: that of the family's key, 5 to 30 events back.

    Popularity sees 25 answers alike; a Markov chain sees the signal and has 5 answers to guess
    from; a mean of the history holds all five keys and does not say which signal came last.

    Args:
        users: histories.
        seed: of the log.
    """
    families, keys_each = 5, 5
    draw = np.random.Generator(np.random.PCG64(seed))
    signals = np.arange(1, 1 + families)
    keys = signals[-1] + 1 + np.arange(families * keys_each).reshape(families, keys_each)
    answers = keys + keys.size
    noise = answers.max() + 1 + np.arange(4)
    histories = []
    for _ in range(users):
        own = draw.integers(keys_each, size=families)
        opening = [
            keys[np.arange(families), own],
            draw.choice(signals, 2),
            draw.choice(answers.ravel(), 2),
            draw.choice(noise, 2),
        ]
        history = draw.permutation(np.concatenate(opening)).tolist()
        for _ in range(4):
            family = int(draw.integers(families))
            history += draw.choice(noise, int(draw.integers(2, 5))).tolist()
            history += [int(signals[family]), int(answers[family, own[family]])]
        histories.append(history)
    return HistoryStore.from_lists(histories, items=int(noise[-1]))


class NextItemLaws:
    """What must hold for every next-item model. `build` gives a fresh model with random weights."""

    catalogue_size = 40
    max_length = 24
    prefix_invariant = False  # only of models with relative or no positions

    def build(self, catalogue_size: int, max_length: int) -> nn.Module:
        """A model of the given sizes."""
        raise NotImplementedError

    def model(self, seed: int = 0) -> Any:
        """In evaluation mode, with weights large enough that nothing is hidden by their size."""
        torch.manual_seed(seed)
        model: Any = self.build(self.catalogue_size, self.max_length).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        return model

    def histories(self, seed: int = 1) -> list[list[int]]:
        """Histories of many lengths: empty, one item, the longest."""
        draw = np.random.Generator(np.random.PCG64(seed))
        return [
            draw.integers(1, self.catalogue_size, length).tolist()
            for length in (5, 0, 1, self.max_length, 7, 2)
        ]

    @staticmethod
    def close(a: Tensor, b: Tensor) -> None:
        """Equal up to float32 rounding in another order of summation."""
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_causality_replacing_later_events_leaves_earlier_outputs(self) -> None:
        """Changing what comes later changes nothing earlier, and does change what is later."""
        model = self.model()
        history = self.histories()[3]
        for cut in (1, 5, len(history) - 1):
            other = history[:cut] + [1 + i % (self.catalogue_size - 1) for i in history[cut:]]
            assert other != history
            self.close(model(batch_of([history]))[:cut], model(batch_of([other]))[:cut])
            assert not torch.allclose(
                model(batch_of([history]))[cut:], model(batch_of([other]))[cut:]
            )

    @torch.no_grad()
    def test_prefix_invariance_where_claimed(self) -> None:
        """Removing what comes later changes nothing earlier, exactly where the model claims it."""
        model = self.model()
        history = self.histories()[3]
        same = torch.allclose(
            model(batch_of([history]))[:6], model(batch_of([history[:6]])), rtol=1e-4, atol=1e-5
        )
        assert same == self.prefix_invariant

    @torch.no_grad()
    def test_more_padding_changes_nothing(self) -> None:
        """Padding is never read."""
        model, histories = self.model(), self.histories()
        self.close(model.encode(batch_of(histories)), model.encode(batch_of(histories, 9)))

    @torch.no_grad()
    def test_batch_order_and_company_change_nothing(self) -> None:
        """A history is encoded alike whoever stands beside it."""
        model, histories = self.model(), self.histories()
        together = model.encode(batch_of(histories))
        self.close(together.flip(0), model.encode(batch_of(histories[::-1])))
        for row, history in enumerate(histories):
            self.close(together[row : row + 1], model.encode(batch_of([history])))

    @torch.no_grad()
    def test_empty_one_item_and_longest_histories_score_finitely(self) -> None:
        """No NaN, whatever the length."""
        model = self.model()
        scores = model.encode(batch_of(self.histories())) @ model.item_table().T
        assert torch.isfinite(scores).all()
        assert torch.isfinite(model.encode(batch_of([[], []]))).all()

    @torch.no_grad()
    def test_history_matters(self) -> None:
        """Order is read."""
        model = self.model()
        a, b = model.encode(batch_of([[1, 2, 3], [3, 2, 1]]))
        assert not torch.allclose(a, b)

    def test_gradients_reach_every_parameter_and_not_the_padding(self) -> None:
        """Everything learns, except the padding row."""
        model = self.model().train()
        model(batch_of(self.histories())).square().sum().backward()
        for name, parameter in model.named_parameters():
            if name.startswith("output"):
                continue  # scores, not hidden states
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert model.items.weight.grad is not None
        assert model.items.weight.grad[0].abs().sum() == 0

    @torch.no_grad()
    def test_copied_weights_give_the_same_scores(self) -> None:
        """A model is its class, arguments and weights."""
        model, other = self.model(0), self.model(1)
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        batch = batch_of(self.histories())
        assert torch.equal(model.encode(batch), other.encode(batch))

    def test_training_mode_is_seeded(self) -> None:
        """Dropout draws from the seeded generator only."""
        model = self.model().train()
        batch = batch_of(self.histories())
        outputs = []
        for _ in range(2):
            torch.manual_seed(7)
            outputs.append(model(batch))
        assert torch.equal(outputs[0], outputs[1])
