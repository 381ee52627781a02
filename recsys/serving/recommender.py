"""Top-K lists from a trained model.

    store = open_store(ingest("log.parquet", Columns("user", "item", "time"), Cleaning(), cache))
    recommender = Recommender.load(
        Path("model"), store.item_vocabulary, popularity_V=event_counts(store)
    )
    print(recommender.recommend([["sku-7", "sku-3"], []], k=10).frame)

The lists are those that an evaluation judges: scores are exact and float32, equal ones stand by
seeded hash of the raw id (`recsys.evaluation.ranking`).

Dimensions: N histories, R of them scored together, K list length, V catalogue incl. padding (index
0), C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recsys.evaluation.catalogue_scan import best_items, refuse_nan
from recsys.evaluation.ranking import (
    ROWS,
    Encoder,
    Scorer,
    evaluation_mode,
    name_of,
    score_blocks,
)
from recsys.histories.batches import history_batch
from recsys.histories.spans import ragged
from recsys.histories.store import HistoryStore
from recsys.histories.vocabulary import Vocabulary
from recsys.training.saved_model import ModelError, load_model, read_description

POPULARITY = "Popularity"
Seen = Literal["events", "taken"]  # of the history: all items, or those with label 1
# Numbers in one batch's scores: what a model that scores in its own way may make at a time.
SCORES_AT_A_TIME = 1 << 26
USERS_AT_A_TIME = 1 << 14
FEW = 8  # histories whose scores are one product of so many rows in place of `ROWS`


@dataclass(frozen=True)
class TopK:
    """The lists of N histories, in their order.

    Attributes:
        items_NK: int32 item indices, best first; 0 where the candidates ran out.
        scores_NK: float32; -inf where the candidates ran out.
        by_popularity_N: whether a list is the popularity list, for want of a history.
    """

    items_NK: np.ndarray
    scores_NK: np.ndarray
    by_popularity_N: np.ndarray


@dataclass(frozen=True)
class Recommendations:
    """Lists in raw ids.

    Attributes:
        frame: `user`, `rank` (from 1), `item`, `score`, `model`; best first.
        counts: `users`; `users_empty` (without an event the model knows); `events_unknown` (on
            items the model does not know: skipped).
    """

    frame: pl.DataFrame
    counts: dict[str, int]


class Recommender:
    """Top-K lists from one model, over one set of candidates.

    A history of which a model reads no event says nothing to it. It gets the popularity list where
    there is one, and the list then says so in its `model`; without one the model answers as it may.

    Args:
        model: an encoder or a scorer. An `nn.Module` is put into evaluation mode meanwhile.
        items: the model's item vocabulary.
        name: of the model, as it stands beside its lists.
        popularity_V: score of each item for histories without events, such as `event_counts`; None
            asks the model.
        candidates_C: item indices that may be recommended; None for all.
        tie_seed: of the order among equal scores.
        make_batch: `(store, users, ends)` → what the model's `scores` takes; None: histories of
            items, `recsys.histories.batches.history_batch`.

    Raises:
        ValueError: no candidates, or popularity of another catalogue.
    """

    def __init__(
        self,
        model: Encoder | Scorer,
        items: Vocabulary,
        *,
        name: str,
        popularity_V: np.ndarray | None = None,
        candidates_C: np.ndarray | None = None,
        tie_seed: int = 0,
        make_batch: Callable[[HistoryStore, np.ndarray, np.ndarray], Any] | None = None,
    ) -> None:
        V = items.size
        self.model = model
        self.items = items
        self.name = name
        self.popularity_V: torch.Tensor | None = None
        if popularity_V is not None:
            if len(popularity_V) != V:
                raise ValueError(
                    f"popularity_V holds {len(popularity_V) - 1:,} items, the vocabulary {V - 1:,}"
                )
            self.popularity_V = torch.from_numpy(popularity_V.astype(np.float32))
        is_candidate_V = np.ones(V, dtype=bool)
        if candidates_C is not None:
            is_candidate_V = np.bincount(candidates_C, minlength=V) > 0
        is_candidate_V[0] = False
        self.candidates = int(is_candidate_V.sum())
        if self.candidates == 0:
            raise ValueError("there are no candidates to recommend")
        self.no_candidate = torch.from_numpy(np.flatnonzero(~is_candidate_V))
        self.tie_V = torch.from_numpy(items.tie_order(tie_seed))
        self.make_batch = make_batch or self._history_batch

    @classmethod
    def load(
        cls,
        folder: Path,
        items: Vocabulary,
        *,
        popularity_V: np.ndarray | None = None,
        candidates_C: np.ndarray | None = None,
        tie_seed: int = 0,
        trusted_modules: Sequence[str] = (),
    ) -> Recommender:
        """From the folder of a saved model; see the constructor.

        Args:
            folder: that `recsys.training.saved_model.save_model` wrote.
            items: the vocabulary it was trained on.
            popularity_V: see the constructor.
            candidates_C: see the constructor.
            tie_seed: see the constructor.
            trusted_modules: packages besides `recsys` whose classes may be built.

        Raises:
            ModelError: no usable model, or one of another vocabulary.
        """
        check_vocabulary(read_description(folder), items)
        model, described = load_model(folder, trusted_modules)
        if not (hasattr(model, "encode") or hasattr(model, "scores")):
            raise ModelError(
                f"{folder} holds a {described['class']}, which neither encodes histories nor "
                "scores the catalogue"
            )
        return cls(
            model,  # type: ignore[arg-type]
            items,
            name=str(described.get("name", type(model).__name__)),
            popularity_V=popularity_V,
            candidates_C=candidates_C,
            tie_seed=tie_seed,
        )

    def recommend(
        self,
        histories: Sequence[Sequence[Any]] | pl.Series,
        *,
        k: int,
        filter_seen: bool = True,
        users: pl.Series | None = None,
    ) -> Recommendations:
        """Lists for histories given as raw item ids, oldest first.

        Args:
            histories: one list each. Items that the model does not know are skipped and counted.
            k: length of the lists; they are shorter where the candidates run out.
            filter_seen: leave out what the history holds.
            users: ids that stand beside the lists; None numbers the histories from 0.

        Raises:
            ValueError: k below 1, or ids of another number than histories.
        """
        N = len(histories)
        users = pl.Series("user", range(N), dtype=pl.Int64) if users is None else users
        if len(users) != N:
            raise ValueError(f"{len(users):,} user ids stand beside {N:,} histories")
        store, unknown = self.store_of(histories)
        top = self.top_k(store, np.arange(N), store.lengths, k=k, filter_seen=filter_seen)
        counts = {
            "users": N,
            "users_empty": int((store.lengths == 0).sum()),
            "events_unknown": unknown,
        }
        return Recommendations(self.frame(users, top), counts)

    def recommend_all(
        self, store: HistoryStore, *, k: int, filter_seen: bool = True
    ) -> pl.DataFrame:
        """Lists for every user of a store, from all events of each; see `frame`.

        Args:
            store: histories in the model's item indices.
            k: length of the lists; they are shorter where the candidates run out.
            filter_seen: leave out what the history holds.

        Raises:
            ValueError: k below 1, or a store of other items.
        """
        if store.item_vocabulary.fingerprint != self.items.fingerprint:
            raise ValueError(
                f"the store holds {len(store.item_vocabulary):,} items that are not the "
                f"{len(self.items):,} of {self.name}: it can only recommend items it knows"
            )
        users = np.arange(store.users)
        top = self.top_k(store, users, store.lengths, k=k, filter_seen=filter_seen)
        return self.frame(store.user_vocabulary.raw(users), top)

    @torch.no_grad()
    def top_k(
        self,
        store: HistoryStore,
        users_N: np.ndarray,
        ends_N: np.ndarray,
        *,
        k: int,
        filter_seen: bool,
        seen: Seen = "events",
        read_N: np.ndarray | None = None,
    ) -> TopK:
        """Lists for the histories `[0, end)` of users of a store.

        Args:
            store: histories in the model's item indices.
            users_N: int64, user indices.
            ends_N: int64, events of each history.
            k: length of the lists, cut to the number of candidates.
            filter_seen: leave out the items of the history, all of it and not only the newest
                events, which the model reads.
            seen: which items those are: of all "events", or what was "taken" (label 1; all events
                where the store has no labels).
            read_N: int64, events of each history that the model reads; None: all of them.

        Raises:
            ValueError: k below 1, a NaN score, or a model of another catalogue.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        N, V = len(users_N), self.items.size
        K = min(k, self.candidates)
        items_NK = np.zeros((N, K), dtype=np.int32)
        scores_NK = np.full((N, K), -np.inf, dtype=np.float32)
        empty_N = (ends_N if read_N is None else read_N) == 0
        labels = store.labels if seen == "taken" else None
        by_popularity_N = empty_N if self.popularity_V is not None else np.zeros(N, dtype=bool)
        together = max(ROWS, min(256, SCORES_AT_A_TIME // V))
        order = np.argsort(ends_N, kind="stable")  # similar lengths together: little padding
        # Looking first costs less than setting every module of one that is loaded.
        with evaluation_mode(self.model) if _in_training(self.model) else nullcontext():
            blocks = self._score_blocks()
            for begin in range(0, N, together):
                asked = order[begin : begin + together]
                batch = self.make_batch(store, users_N[asked], ends_N[asked])
                for first, scores_RV in blocks(batch):
                    rows = asked[first : first + len(scores_RV)]
                    scores_RV[:, 0] = 0
                    refuse_nan(scores_RV, name_of(self.model))
                    if self.popularity_V is not None and empty_N[rows].any():
                        where = torch.from_numpy(np.flatnonzero(empty_N[rows]))
                        scores_RV[where] = self.popularity_V.to(scores_RV.device)
                    scores_RV[:, self.no_candidate.to(scores_RV.device)] = -torch.inf
                    if filter_seen:
                        row, event = ragged(store.offsets[users_N[rows]], ends_N[rows])
                        if labels is not None:
                            taken = labels[event] == 1
                            row, event = row[taken], event[taken]
                        left_out = torch.from_numpy(store.items[event].astype(np.int64))
                        scores_RV[torch.from_numpy(row), left_out] = -torch.inf
                    values_RK, best_RK = best_items(scores_RV, K, self.tie_V.to(scores_RV.device))
                    items_NK[rows] = best_RK.cpu().numpy()
                    scores_NK[rows] = values_RK.cpu().numpy()
        return TopK(items_NK, scores_NK, by_popularity_N)

    def frame(self, users: pl.Series, top: TopK) -> pl.DataFrame:
        """Lists as rows: `user`, `rank` (Int32, from 1), `item`, `score` (Float32), `model`.

        Args:
            users: raw ids, one for each list.
            top: the lists.
        """
        row, place = np.nonzero(top.items_NK)
        by = pl.Series([self.name, POPULARITY])
        return pl.DataFrame(
            {
                "user": users[row],
                "rank": (place + 1).astype(np.int32),
                "item": self.items.raw(top.items_NK[row, place]),
                "score": top.scores_NK[row, place],
                "model": by[top.by_popularity_N[row].astype(np.int64)],
            }
        )

    def _history_batch(self, store: HistoryStore, users: np.ndarray, ends: np.ndarray) -> Any:
        return history_batch(store, users, ends, self.model.max_length)

    def _score_blocks(self) -> Callable[[Any], Iterator[tuple[int, Tensor]]]:
        """As `recsys.evaluation.ranking.score_blocks`, and faster for a few histories."""
        whole_blocks = score_blocks(self.model, self.items.size)
        if not hasattr(self.model, "encode"):
            return whole_blocks
        encoder = cast(Encoder, self.model)

        def blocks(batch: Any) -> Iterator[tuple[int, Tensor]]:
            if len(batch.lengths_B) > FEW or not self._few_are_exact:
                yield from whole_blocks(batch)
                return
            table_VD = encoder.item_table().float()
            h_BD = encoder.encode(batch.to(table_VD.device)).float()
            with torch.autocast(h_BD.device.type, enabled=False):
                yield 0, _product(h_BD, table_VD, FEW)

        return blocks

    @cached_property
    def _few_are_exact(self) -> bool:
        """Whether a product of `FEW` rows has the bits of one of `ROWS`, on this machine.

        The order in which a product is summed depends on its shape, not on its numbers.
        """
        table_VD = cast(Encoder, self.model).item_table().float()
        draw = torch.Generator().manual_seed(0)
        h_RD = torch.randn(FEW, table_VD.shape[1], generator=draw).to(table_VD.device)
        with torch.no_grad(), torch.autocast(h_RD.device.type, enabled=False):
            few_RV, many_RV = (_product(h_RD, table_VD, rows) for rows in (FEW, ROWS))
        return torch.equal(few_RV, many_RV)

    def store_of(self, histories: Sequence[Sequence[Any]] | pl.Series) -> tuple[HistoryStore, int]:
        """Raw histories in the model's indices, and how many events were skipped."""
        if not isinstance(histories, pl.Series):
            found = self._looked_up(histories)
            if found is not None:
                return self._store(*found)
            # Without rows nothing says that the column would hold lists.
            kind = None if histories else pl.List(pl.String)
            histories = pl.Series("history", [list(history) for history in histories], dtype=kind)
        lengths = histories.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = histories.filter(histories.list.len() > 0).explode()
        indices = self.items.indices(flat) if len(flat) else np.zeros(0, dtype=np.int64)
        return self._store(lengths, indices)

    def _looked_up(
        self, histories: Sequence[Sequence[Any]]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Lengths, and indices id by id, which costs a request much less than a join.

        Returns:
            None where an id is of another type than the vocabulary's, and has to be converted.
        """
        kind = str if self.items.raw_ids.dtype == pl.String else int
        ids = list(chain.from_iterable(histories))
        if not all(type(raw) is kind for raw in ids):
            return None
        found = [self.items.index_of(raw) for raw in ids]
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        return lengths, np.array([-1 if i is None else i for i in found], dtype=np.int64)

    def _store(self, lengths: np.ndarray, indices: np.ndarray) -> tuple[HistoryStore, int]:
        """The store, and the number of unknown events, which are skipped.

        Args:
            lengths: int64, events of each history.
            indices: int64, of all events; -1 where the model does not know the item.
        """
        row = np.repeat(np.arange(len(lengths)), lengths)
        known = indices >= 0
        kept = np.bincount(row[known], minlength=len(lengths))
        store = HistoryStore(
            offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
            items=indices[known].astype(np.int32),
            user_vocabulary=Vocabulary(pl.Series("user", np.arange(len(lengths))), 0),
            item_vocabulary=self.items,
        )
        return store, int((~known).sum())


def _in_training(model: object) -> bool:
    return isinstance(model, nn.Module) and any(module.training for module in model.modules())


def _product(h_BD: Tensor, table_VD: Tensor, rows: int) -> Tensor:
    """[B, V], as part of a product of so many rows."""
    padded_RD = nn.functional.pad(h_BD, (0, 0, 0, rows - len(h_BD)))
    return torch.mm(padded_RD, table_VD.T)[: len(h_BD)]


def check_vocabulary(described: dict[str, Any], items: Vocabulary) -> None:
    """Refuses a vocabulary that is not the one a model was trained on.

    Args:
        described: what the model's `model.json` says.
        items: the vocabulary at hand.

    Raises:
        ModelError: with both sizes.
    """
    if items.fingerprint == described.get("item_vocabulary"):
        return
    there = described.get("arguments", {}).get("catalogue_size")
    sizes = f" ({there - 1:,} there, {len(items):,} here)" if isinstance(there, int) else ""
    raise ModelError(
        f"{described.get('name', 'the model')} was trained on other items than these{sizes}: it "
        "can only recommend items it knows"
    )


def event_counts(
    store: HistoryStore, ends: np.ndarray | None = None, *, taken_only: bool = False
) -> np.ndarray:
    """int64 [V]: how often each item stands in the histories; the plainest popularity.

    Args:
        store: the histories, read a slice at a time.
        ends: int64 [users], count the events `[0, end)` of each user; None counts all.
        taken_only: count events with label 1 only, where the store has labels.
    """
    labels = store.labels if taken_only else None
    counts_V = np.zeros(store.catalogue_size, dtype=np.int64)
    for begin in range(0, store.users, USERS_AT_A_TIME):
        end = min(begin + USERS_AT_A_TIME, store.users)
        offsets = store.offsets[begin : end + 1]
        lengths = np.diff(offsets) if ends is None else ends[begin:end]
        _, event = ragged(offsets[:-1], lengths)
        if labels is not None:
            event = event[labels[event] == 1]
        counts_V += np.bincount(store.items[event], minlength=store.catalogue_size)
    return counts_V
