"""The property kit: laws every model obeys, and logs whose answers are known.

Inherit `NextItemLaws` (or `ClickLaws`, for rankers) in a test module, define `build`, and pytest
runs every law on your model. Public: one's own models are tested with it too.

    class TestMyModel(NextItemLaws):
        def build(self, catalogue_size: int, max_length: int) -> nn.Module:
            return MyModel(catalogue_size, max_length)
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.batch import ClickBatch, HistoryBatch
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
    def test_encode_is_the_newest_event_s_hidden_state(self) -> None:
        """Whatever `encode` leaves out; nothing, as zeros, of an empty history."""
        model, histories = self.model(), self.histories()
        hidden_TD, encoded_BD = model(batch_of(histories)), model.encode(batch_of(histories))
        end = 0
        for history, encoded_D in zip(histories, encoded_BD, strict=True):
            end += len(history)
            newest_D = hidden_TD[end - 1] if history else torch.zeros_like(encoded_D)
            self.close(encoded_D, newest_D.float())

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
        """Everything learns, except the padding rows."""
        model = self.model().train()
        scores = model(batch_of(self.histories())) @ model.item_table()[1:].T
        scores.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                assert module.weight.grad is not None
                assert module.weight.grad[module.padding_idx].abs().sum() == 0

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


def click_batch_of(
    histories: list[list[int]],
    candidates: list[int],
    *,
    catalogue_size: int,
    fields: bool = True,
    extra_padding: int = 0,
) -> ClickBatch:
    """A batch of click questions from lists of item indices.

    With `fields`, users, items, events and context have one code, one bag and one number between
    them, all a function of the row's own history and candidate, so that a row stays the same
    whatever company it has.
    """
    history = batch_of(histories, extra_padding)
    B = len(histories)
    items_I = torch.arange(catalogue_size)
    if not fields:
        nothing: dict[str, Tensor] = {}
        return ClickBatch(
            items_I,
            torch.tensor(candidates),
            history.items_BL,
            history.lengths_B,
            nothing,
            nothing,
            nothing,
            nothing,
        )
    codes_B = 2 + torch.tensor([sum(row) % 3 for row in histories], dtype=torch.int64).view(B)
    bags_I = torch.stack([2 + items_I % 3, (2 + items_I % 2) * (items_I % 4 > 0)], 1)
    return ClickBatch(
        items_I,
        torch.tensor(candidates),
        history.items_BL,
        history.lengths_B,
        user_fields={"user_id": codes_B},
        item_fields={"genres": bags_I, "price": items_I.float() / catalogue_size - 0.5},
        event_fields={"label": (2 + history.items_BL % 2) * (history.items_BL > 0)},
        context_fields={"device": 2 + torch.tensor(candidates) % 2},
    )


CLICK_FIELDS: dict[str, dict[str, int]] = {
    "user_fields": {"user_id": 5},
    "item_fields": {"genres": 5, "price": 0},
    "event_fields": {"label": 4},
    "context_fields": {"device": 4},
}


def planted_clicks(
    questions: int = 6000, items: int = 100, length: int = 20, seed: int = 0
) -> tuple[list[list[int]], list[int], Tensor]:
    """Histories, candidates and labels: a candidate is taken if it stands in the history.

    Half of the candidates do. Whoever compares the candidate with each event knows the answer; a
    mean over 20 events in a few dimensions does not hold it, and the candidate alone says nothing.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    histories, candidates = [], []
    for _ in range(questions):
        order = draw.permutation(items) + 1
        histories.append(order[:length].tolist())
        candidates.append(
            int(draw.choice(order[:length] if draw.random() < 0.5 else order[length:]))
        )
    labels = [item in history for history, item in zip(histories, candidates, strict=True)]
    return histories, candidates, torch.tensor(labels, dtype=torch.float32)


class ClickLaws:
    """What must hold for every ranker. `build` gives a fresh model with random weights.

    The model takes the fields of `CLICK_FIELDS`.
    """

    catalogue_size = 40
    max_length = 24

    def build(
        self,
        catalogue_size: int,
        user_fields: dict[str, int],
        item_fields: dict[str, int],
        event_fields: dict[str, int],
        context_fields: dict[str, int],
        max_length: int,
    ) -> nn.Module:
        """A model of the given sizes."""
        raise NotImplementedError

    def model(self, seed: int = 0) -> Any:
        """In evaluation mode, with weights large enough that nothing is hidden by their size."""
        torch.manual_seed(seed)
        model: Any = self.build(
            self.catalogue_size, max_length=self.max_length, **CLICK_FIELDS
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
            for module in model.modules():
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
        return model

    def questions(self, seed: int = 1) -> tuple[list[list[int]], list[int]]:
        """Histories of many lengths (empty, one event, the longest) and their candidates."""
        draw = np.random.Generator(np.random.PCG64(seed))
        lengths = (5, 0, 1, self.max_length, 7, 2)
        histories = [draw.integers(1, self.catalogue_size, n).tolist() for n in lengths]
        return histories, draw.integers(1, self.catalogue_size, len(lengths)).tolist()

    def batch(self, histories: list[list[int]], candidates: list[int], padding: int = 0) -> Any:
        """A batch with all fields."""
        return click_batch_of(
            histories, candidates, catalogue_size=self.catalogue_size, extra_padding=padding
        )

    @staticmethod
    def close(a: Tensor, b: Tensor) -> None:
        """Equal up to float32 rounding in another order of summation."""
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_more_padding_changes_nothing(self) -> None:
        """Padding is never read."""
        model, (histories, candidates) = self.model(), self.questions()
        self.close(
            model(self.batch(histories, candidates)), model(self.batch(histories, candidates, 9))
        )

    @torch.no_grad()
    def test_batch_order_and_company_change_nothing(self) -> None:
        """A question is answered alike whoever stands beside it."""
        model, (histories, candidates) = self.model(), self.questions()
        together = model(self.batch(histories, candidates))
        self.close(together.flip(0), model(self.batch(histories[::-1], candidates[::-1])))
        for row in range(len(histories)):
            alone = model(self.batch(histories[row : row + 1], candidates[row : row + 1]))
            self.close(together[row : row + 1], alone)

    @torch.no_grad()
    def test_items_that_nobody_asks_about_change_nothing(self) -> None:
        """The list of distinct items is a way of writing, not an input."""
        model, (histories, candidates) = self.model(), self.questions()
        batch = self.batch(histories, candidates)
        occurring = torch.unique(torch.cat([batch.history_BL.flatten(), batch.candidates_B]))
        place = torch.zeros(self.catalogue_size, dtype=torch.int64)
        place[occurring] = torch.arange(len(occurring))
        fewer = replace(
            batch,
            item_ids_I=occurring,
            candidates_B=place[batch.candidates_B],
            history_BL=place[batch.history_BL],
            item_fields={name: field[occurring] for name, field in batch.item_fields.items()},
        )
        self.close(model(batch), model(fewer))

    @torch.no_grad()
    def test_empty_one_event_and_longest_histories_score_finitely(self) -> None:
        """No NaN, whatever the length."""
        model, (histories, candidates) = self.model(), self.questions()
        assert torch.isfinite(model(self.batch(histories, candidates))).all()
        assert torch.isfinite(model(self.batch([[], []], [1, 2]))).all()

    @torch.no_grad()
    def test_candidate_and_history_matter(self) -> None:
        """Both are read."""
        model = self.model()
        a, b, c = model(self.batch([[1, 2, 3], [1, 2, 3], [4, 5, 12]], [7, 8, 7]))
        assert a != b and a != c

    @torch.no_grad()
    def test_item_fields_of_candidate_and_history_matter(self) -> None:
        """Category and price are read of the item asked about, and of each past item."""
        model = self.model()
        batch = self.batch([[1, 2, 3]], [7])
        before = model(batch)
        for name, field in batch.item_fields.items():
            for item in (7, 1, 2, 3):
                other = field.clone()
                other[item] = field[item + 1]
                fields = {**batch.item_fields, name: other}
                assert model(replace(batch, item_fields=fields)) != before, (name, item)

    @torch.no_grad()
    def test_unknown_and_missing_values_score_finitely(self) -> None:
        """Codes 0 and 1 are values like others."""
        model, (histories, candidates) = self.model(), self.questions()
        batch = self.batch(histories, candidates)
        for code in (0, 1):
            other = replace(
                batch,
                user_fields={"user_id": torch.full_like(batch.user_fields["user_id"], code)},
                context_fields={"device": torch.full_like(batch.context_fields["device"], code)},
            )
            assert torch.isfinite(model(other)).all()

    def test_gradients_reach_every_parameter_and_not_the_padding(self) -> None:
        """Everything learns, except the padding rows."""
        model = self.model().train()
        model(self.batch(*self.questions())).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                assert module.weight.grad is not None
                assert module.weight.grad[module.padding_idx].abs().sum() == 0

    @torch.no_grad()
    def test_copied_weights_give_the_same_logits(self) -> None:
        """A model is its class, arguments and weights."""
        model, other = self.model(0), self.model(1)
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        batch = self.batch(*self.questions())
        assert torch.equal(model(batch), other(batch))
