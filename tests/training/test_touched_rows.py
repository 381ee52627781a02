"""Steps that move touched rows only: AdamW where they touch a row, nothing where they do not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.batch import ClickBatch
from recsys.histories.batches import TrainingBatches
from recsys.histories.questions import leave_one_out
from recsys.models.click.din import DIN
from recsys.models.next_item.sasrec import SASRec
from recsys.objectives.clicks import OccurrenceDecay, binary_cross_entropy
from recsys.objectives.full_softmax import full_softmax
from recsys.objectives.sampled_softmax import SampledSoftmax
from recsys.testing import batch_of, planted_log
from recsys.training.averaging import AverageWeights
from recsys.training.click_task import ClickTask
from recsys.training.fit import fit
from recsys.training.next_item_task import NextItemTask
from recsys.training.optimizer import Optimization, adamw
from recsys.training.plan import expected_memory, probe
from recsys.training.reporting import Silent
from recsys.training.touched_rows import (
    RowUpdates,
    TouchedRowsAdamW,
    choose_row_updates,
    touched_tables,
)

HOW = Optimization(1e-2, 0.1, 2, 200, "linear", beta2=0.98)
V, D = 30, 8


def rows_adamw(table: nn.Parameter) -> TouchedRowsAdamW:
    group = {"params": [table], "weight_decay": 0.0}
    return TouchedRowsAdamW([group], {"table": table}, 0.01, (0.9, 0.98))


def start(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(V, D, generator=torch.Generator().manual_seed(seed)))


def sparse(rows_R: Tensor, values_RD: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(rows_R[None], values_RD, (V, D), check_invariants=True)


# --- the optimizer ---


def test_where_every_step_touches_every_row_it_is_adamw_to_the_last_digit() -> None:
    own, wanted = start(), start()
    optimizer = rows_adamw(own)
    dense = torch.optim.AdamW([wanted], 0.01, (0.9, 0.98), weight_decay=0.0, fused=True)
    for step in range(20):
        for one in (optimizer, dense):
            one.param_groups[0]["lr"] = 0.01 * (20 - step) / 20
        gradient_VD = torch.randn(V, D) * 10.0 ** (-step % 7)
        order_V = torch.randperm(V)
        own.grad = sparse(order_V, gradient_VD[order_V])
        wanted.grad = gradient_VD
        optimizer.step()
        dense.step()
        assert own.grad is None
        assert torch.equal(own, wanted), step
    assert not torch.equal(own, start())
    for name, value in dense.state[wanted].items():
        assert torch.equal(optimizer.state[own][name], value), name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), most=st.integers(1, 20))
def test_it_is_torchs_sparse_adam(seed: int, most: int) -> None:
    """Which lets rows occur more than once, as here, and puts its epsilon elsewhere: so none."""
    draw = torch.Generator().manual_seed(seed)
    own, wanted = start(), start()
    optimizer = rows_adamw(own)
    reference = torch.optim.SparseAdam([wanted], 0.01, (0.9, 0.98))
    for one in (optimizer, reference):
        one.param_groups[0]["eps"] = 1e-30
    touched: set[int] = set()
    for _ in range(12):
        rows_R = torch.randint(V, (most,), generator=draw)
        touched |= set(rows_R.tolist())
        own.grad = sparse(rows_R, torch.randn(most, D, generator=draw))
        wanted.grad = own.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)
    never = [row for row in range(V) if row not in touched]
    assert torch.equal(own[never], start()[never])  # not moved at all


def test_a_rare_row_goes_as_far_as_the_docstring_says() -> None:
    ways = []
    for optimizer_of in (
        rows_adamw,
        lambda table: torch.optim.AdamW([table], 0.01, (0.9, 0.98), weight_decay=0.0),
    ):
        table = start()
        optimizer = optimizer_of(table)
        begin = 0.0
        for step in range(400):
            gradient_VD = torch.zeros(V, D)
            gradient_VD[0] = 1.0  # touched in every step; row 1 once
            gradient_VD[1] = float(step == 300)
            rows_R = torch.tensor([0, 1] if step == 300 else [0])
            by_rows = isinstance(optimizer, TouchedRowsAdamW)
            table.grad = sparse(rows_R, gradient_VD[rows_R]) if by_rows else gradient_VD
            if step == 300:
                begin = table[1, 0].item()
            optimizer.step()
        ways.append((begin - table[1, 0].item()) / 0.01)
    assert ways == pytest.approx([0.7, 8], rel=0.05)


def test_a_gradient_of_all_rows_is_refused() -> None:
    table = start()
    table.grad = torch.ones(V, D)
    with pytest.raises(ValueError, match=r"touches every row of table in .*row_updates=all"):
        rows_adamw(table).step()


# --- which tables ---


def marked(model: nn.Module, updates: RowUpdates, every_row: bool = False) -> set[str]:
    choose_row_updates(model, updates, every_row)
    return set(touched_tables(model))


def test_large_tables_of_codes_are_chosen() -> None:
    with torch.device("meta"):
        small, large = (SASRec(size, 10, width=8, tied_output=False) for size in (200_000, 200_001))
        ranker = DIN(300_000, {"user_id": 400_000, "age": 7, "n": 0}, {}, {}, {}, 5, biases=True)
    tables = {"items.weight", "output.weight"}
    assert marked(large, "auto") == marked(large, "touched") == marked(small, "touched") == tables
    assert marked(small, "auto") == marked(large, "auto", every_row=True) == set()
    assert marked(large, "all") == set()
    assert marked(ranker, "auto") == {
        "inputs.items.weight",
        "inputs.user_fields.user_id_.table.weight",
        "biases.items.weight",
        "biases.users.table.weight",
    }
    more = {"inputs.user_fields.age_.table.weight"}  # a number has no rows
    assert marked(ranker, "touched") == marked(ranker, "auto") | more


def test_what_makes_no_sense_is_refused() -> None:
    model = SASRec(V, 10, width=8)
    with pytest.raises(ValueError, match=r"touched does not go with objective=full_softmax"):
        choose_row_updates(model, "touched", every_row=True)
    with pytest.raises(ValueError, match=r"must be 'auto', 'all' or 'touched', not 'some'"):
        choose_row_updates(model, "some")  # type: ignore[arg-type]


# --- training ---


class Killed(Exception):
    """Stands for a process that is gone."""


class Trial:
    """A small training with sampled softmax whose pieces a test can look at."""

    def __init__(
        self,
        folder: Path,
        updates: RowUpdates,
        negatives: int = 5,
        seed: int = 0,
        tokens: int = 40,
    ) -> None:
        torch.manual_seed(seed)
        store = planted_log(60)
        ends = leave_one_out(store).training_ends
        self.V = store.catalogue_size
        self.model = SASRec(self.V, 40, width=8, heads=2, dropout=0.2)
        choose_row_updates(self.model, updates)
        self.batches = TrainingBatches(store, ends, 40, tokens, seed=0)
        self.sampled = SampledSoftmax(
            torch.from_numpy(np.bincount(store.items, minlength=self.V)),
            negatives=negatives,
            sampling="uniform",
            shared_negatives=True,
            temperature=1.0,
            touched_rows=updates == "touched",
        )
        self.checkpoint = folder / f"{updates}{seed}.ckpt"
        self.tables: list[Tensor] = []  # before each step
        self.losses: list[float] = []
        self.validated: list[Tensor] = []
        self.kill_at: int | None = None
        self.seed = seed

    def objective(self, hidden_TD: Tensor, table_VD: Tensor, targets_T: Tensor) -> Tensor:
        if len(self.losses) + 1 == self.kill_at:
            raise Killed
        self.tables.append(table_VD.detach().clone())
        loss: Tensor = self.sampled(hidden_TD, table_VD, targets_T)
        self.losses.append(loss.item())
        return loss

    def validate(self, model: Any) -> Mapping[str, float]:
        self.validated.append(model.item_table().clone())
        return {"score": float(len(self.validated))}

    def fit(
        self,
        epochs: int,
        resume: Path | None = None,
        average: float = 0.9,
        seconds: float = 1e9,  # between checkpoints
    ) -> None:
        torch.manual_seed(self.seed)
        fit(
            NextItemTask(self.model, self.objective, HOW),
            self.batches,
            validate=self.validate,
            monitor="score",
            max_epochs=epochs,
            patience=None,
            validate_every=1,
            precision="32",
            checkpoint=self.checkpoint,
            resume=resume,
            reporter=Silent(),
            progress=False,
            checkpoint_seconds=seconds,
            average_weights=average,
        )


def test_every_row_in_every_step_trains_as_all_rows_do(tmp_path: Path) -> None:
    trials = [
        Trial(tmp_path, updates, negatives=2000, tokens=215) for updates in ("all", "touched")
    ]
    for trial in trials:
        trial.fit(1)
    wanted, found = trials
    assert wanted.losses == pytest.approx(found.losses, rel=1e-4)
    torch.testing.assert_close(found.validated, wanted.validated, rtol=1e-3, atol=1e-4)


def test_steps_move_the_rows_of_their_batch_alone(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "touched")
    trial.fit(1)
    few, batches = 0, Trial(tmp_path, "touched").batches
    for (inputs, targets_T), before, after in zip(
        batches, trial.tables, trial.tables[1:], strict=False
    ):
        moved = set((after != before).any(1).nonzero().flatten().tolist())
        own = set(inputs.items_BL.flatten().tolist()) | set(targets_T.tolist())
        assert own - {0} <= moved | {0}
        assert 0 not in moved and len(moved - own) <= 5  # negatives
        few += len(moved) < trial.V - 1
    assert few > 10


def test_the_average_is_the_one_over_every_step(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "touched", tokens=100)
    trial.fit(2)
    steps = len(trial.batches)
    average = trial.tables[0].double()
    for step, weights in enumerate(trial.tables[1:]):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
        if step + 1 == steps:
            torch.testing.assert_close(trial.validated[0].double(), average, rtol=1e-5, atol=1e-7)
    assert len(trial.validated) == 2 and torch.equal(trial.model.item_table(), trial.validated[1])


@pytest.mark.parametrize("kill_at", [3, 8, 9, 12])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, kill_at: int) -> None:
    average = 0.0 if kill_at == 12 else 0.9
    whole = Trial(tmp_path, "touched", tokens=215)
    assert len(whole.batches) == 8
    whole.fit(2, average=average)  # keeps a checkpoint after each epoch, not after each step
    cut = Trial(tmp_path, "touched", tokens=215)
    cut.checkpoint = tmp_path / "cut.ckpt"
    cut.kill_at = kill_at
    with pytest.raises(Killed):
        cut.fit(2, average=average, seconds=0.0)
    second = Trial(tmp_path, "touched", seed=5, tokens=215)  # all must come from the file
    second.checkpoint = cut.checkpoint
    second.fit(2, resume=cut.checkpoint, average=average)
    assert cut.losses + second.losses == whole.losses
    assert len(whole.validated) == 2
    for one, other in zip(cut.validated + second.validated, whole.validated, strict=True):
        assert torch.equal(one, other)
    found, wanted = (torch.load(t.checkpoint, weights_only=True) for t in (second, whole))
    for part in ("state_dict", "optimizer_states"):
        assert same(found[part], wanted[part]), part
    if average:
        assert same(found["callbacks"]["AverageWeights"], wanted["callbacks"]["AverageWeights"])


def same(one: Any, other: Any) -> bool:
    """Nested containers whose tensors and numbers are equal."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Largest(TorchDispatchMode):
    """The most numbers in any new dense tensor."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            dense = isinstance(one, Tensor) and one.layout == torch.strided
            if dense and one.untyped_storage().data_ptr() not in self.known:
                self.numel = max(self.numel, one.numel())
        return result


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_makes_nothing_as_long_as_the_catalogue(shared: bool) -> None:
    large = 20_000
    model = SASRec(large, 10, width=8)
    choose_row_updates(model, "touched")
    objective = SampledSoftmax(
        torch.ones(large),
        negatives=20,
        sampling="popularity",
        shared_negatives=shared,
        temperature=1.0,
        touched_rows=True,
    )
    task = NextItemTask(model, objective, HOW)
    optimizer, module = task.configure_optimizers()["optimizer"], SimpleNamespace(model=model)
    average: Any = AverageWeights(0.9)
    average.on_train_start(None, module)

    def step() -> None:
        loss = task.training_step((batch_of([[1, 2, 3], [4, 5]]), torch.arange(5) + 2), 0)
        optimizer.zero_grad()
        loss.backward()
        average.on_before_optimizer_step(None, module, optimizer)
        optimizer.step()
        average.on_train_batch_end(None, module, None, None, 0)

    step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    of_average = [*average.average.values(), *average.right_until.values()]
    known = [*model.parameters(), *task.objective.buffers(), *moments, *of_average]  # type: ignore[attr-defined]
    with Largest(known) as largest:
        step()
    assert 0 < largest.numel < large / 10
    choose_row_updates(model, "all")
    objective.touched_rows = False
    average.right_until.clear()
    optimizer = adamw(model, HOW)["optimizer"]
    with Largest(known) as largest:
        step()
    assert largest.numel >= large * 8  # so the measure would tell


# --- rankers ---


def ranker(updates: RowUpdates) -> ClickTask:
    torch.manual_seed(0)
    model = DIN(V, {"user_id": 9}, {}, {}, {}, 5, width=4, hidden=[6], biases=True)
    choose_row_updates(model, updates)
    return ClickTask(model, binary_cross_entropy, OccurrenceDecay(0.1), HOW)


def test_rankers_get_the_same_gradients_in_rows() -> None:
    batch = ClickBatch(
        item_ids_I=torch.tensor([0, 4, 7, 9]),
        candidates_B=torch.tensor([1, 2, 2]),
        history_BL=torch.tensor([[3, 1, 0], [0, 0, 0], [1, 2, 3]]),
        lengths_B=torch.tensor([2, 0, 3]),
        user_fields={"user_id": torch.tensor([3, 5, 3])},
        item_fields={},
        event_fields={},
        context_fields={},
    )
    gradients = []
    for updates in ("all", "touched"):
        task = ranker(updates)  # type: ignore[arg-type]
        task.training_step((batch, torch.tensor([1.0, 0.0, 1.0])), 0).backward()
        names = dict(task.model.named_parameters())
        assert {name for name, p in names.items() if p.grad is not None and p.grad.is_sparse} == (
            set(touched_tables(task.model))
        )
        gradients.append(
            {name: p.grad.to_dense() for name, p in names.items() if p.grad is not None}
        )
        if updates == "touched":
            before = copy.deepcopy(task.model.state_dict())["inputs.items.weight"]
            made = task.configure_optimizers()
            made["optimizer"].step()
            after = task.model.state_dict()["inputs.items.weight"]
            assert (after != before).any(1).nonzero().flatten().tolist() == [4, 7, 9]
    torch.testing.assert_close(gradients[1], gradients[0])


# --- the plan ---


def test_a_plan_counts_no_gradient_of_touched_tables(tmp_path: Path) -> None:
    sizes = []
    for updates in ("all", "touched"):
        trial = Trial(tmp_path, updates)  # type: ignore[arg-type]
        task = NextItemTask(trial.model, trial.sampled, HOW)
        sizes.append(expected_memory(task, trial.batches.largest(), "32", 0.9))
        assert probe(task, trial.batches, "32", seconds=0.0).steps == 2
    dense, by_rows = sizes
    assert dense.tables - by_rows.tables == 4 * trial.V * 8
    assert by_rows.copies - dense.copies == 8 * trial.V
    assert dense.optimizer == by_rows.optimizer


def test_full_softmax_on_a_marked_table_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path, "touched")
    trial.objective = full_softmax  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match=r"every row of items\.weight in .*row_updates=all"):
        trial.fit(1, average=0.0)
