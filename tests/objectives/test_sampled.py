"""Objectives with drawn negatives: what they tend to, equal, and never count."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recsys.objectives import negatives as module_of_negatives
from recsys.objectives.bce import BCE
from recsys.objectives.bpr import BPR
from recsys.objectives.full_softmax import full_softmax_reference
from recsys.objectives.gbce import GBCE, beta
from recsys.objectives.negatives import (
    NegativeItems,
    Sampling,
    logits_of,
    own_negatives_reference,
)
from recsys.objectives.sampled_softmax import SampledSoftmax, sampled_softmax
from tests.objectives.test_full_softmax import case

SAMPLINGS: tuple[Sampling, ...] = ("uniform", "popularity", "batch")


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


# --- sampled softmax ---


COUNTS_V = torch.tensor([9, 4, 1, 3])  # of padding and a catalogue of three items


def share_V(sampling: Sampling) -> Tensor:
    """With what probability each item is drawn, float64."""
    weight_V = (COUNTS_V if sampling != "uniform" else torch.ones(4)).double()
    weight_V[0] = 0
    return weight_V / weight_V.sum()


def all_draws(q_V: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Every outcome of N draws with replacement, and its probability: int64 [M, N], float64 [M].

    The order of the draws changes nothing, so an outcome is a multiset.
    """
    outcomes_MN = torch.tensor(list(combinations_with_replacement(range(1, len(q_V)), N)))
    times_MV = nn.functional.one_hot(outcomes_MN, len(q_V)).sum(1)
    log_orders_M = math.lgamma(N + 1) - torch.lgamma(times_MV.double() + 1).sum(1)
    probability_M = (log_orders_M + q_V.log()[outcomes_MN].sum(1)).exp()
    assert math.isclose(probability_M.sum(), 1, rel_tol=1e-9)
    return outcomes_MN, probability_M


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("N", [1, 2, 5])
def test_the_expected_sum_is_that_of_the_full_softmax_exactly(
    N: int, sampling: Sampling, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E[exp(s_y) + Σ_j≠y exp(s_j) / (N q_j)] = Σ exp(s_i), over all outcomes of the draws."""
    temperature = 0.6
    hidden, table, _ = case(1, 4, 3, seed=1)
    objective = SampledSoftmax(
        COUNTS_V, negatives=N, sampling=sampling, shared_negatives=shared, temperature=temperature
    )
    outcomes, probabilities = all_draws(share_V(sampling), N)
    scores = (hidden @ table.T)[0] / temperature
    for target in (1, 2, 3):
        sums = []
        for drawn in outcomes:
            as_drawn = drawn if shared else drawn[None]
            monkeypatch.setattr(objective.draw, "forward", lambda _, drawn=as_drawn: drawn)
            loss = objective(hidden, table, torch.tensor([target]))
            sums.append((loss + scores[target]).exp())
        expected = (torch.stack(sums).double() * probabilities).sum()
        torch.testing.assert_close(expected.float(), scores[1:].exp().sum())


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_the_expected_gradient_tends_to_that_of_the_full_softmax(sampling: Sampling) -> None:
    """Over all outcomes of the draws: twice as many negatives, half the error."""
    hidden, table, _ = case(1, 4, 3, seed=1)
    hidden, table, targets = hidden.detach(), table.detach(), torch.tensor([2])
    q_V = share_V(sampling)

    def full(hidden: Tensor, table: Tensor) -> Tensor:
        return full_softmax_reference(hidden / 0.6, table, targets)

    def sampled(hidden: Tensor, table: Tensor, drawn_N: Tensor) -> Tensor:
        log_expected_N = (len(drawn_N) * q_V).log().float()[drawn_N]
        return sampled_softmax(hidden, table, targets, drawn_N, log_expected_N, 0.6)

    wanted = torch.func.grad(full, argnums=(0, 1))(hidden, table)
    each_outcome = torch.func.vmap(torch.func.grad(sampled, argnums=(0, 1)), (None, None, 0))
    errors = []
    for N in (4, 8, 16, 32, 64):
        outcomes, probabilities = all_draws(q_V, N)
        found = each_outcome(hidden, table, outcomes)
        differences = [
            torch.einsum("m,m...->...", probabilities, part.double()) - whole
            for part, whole in zip(found, wanted, strict=True)
        ]
        errors.append(math.hypot(*(float(part.norm()) for part in differences)))
    size = math.hypot(*(float(part.norm()) for part in wanted))
    assert errors[0] > 0.1 * size  # with few negatives it is another gradient
    assert all(1.95 < few / many < 2.15 for few, many in pairwise(errors)), errors
    assert errors[-1] < 0.01 * size


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), temperature=st.floats(0.5, 5))
def test_draws_in_their_expected_numbers_give_the_full_softmax_exactly(
    seed: int, temperature: float
) -> None:
    hidden, table, targets = case(9, 6, 4, seed)
    weights = torch.tensor([0.0, 3, 1, 1, 2, 5])  # of 12 draws
    negatives = torch.repeat_interleave(torch.arange(6), weights.long())
    log_expected = weights.log()[negatives]
    for drawn, log in (
        (negatives, log_expected),
        (negatives.expand(9, -1), log_expected.expand(9, -1)),
    ):
        loss = sampled_softmax(hidden, table, targets, drawn, log, temperature)
        wanted = full_softmax_reference(hidden / temperature, table, targets)
        torch.testing.assert_close(loss, wanted)
        for a, b in zip(
            gradients(loss, hidden, table), gradients(wanted, hidden, table), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


# --- gBCE, BCE, BPR ---


def official_gbce(answer: Tensor, negatives: Tensor, beta: float) -> Tensor:
    """As in the authors' code: float64 and clamps (arXiv 2308.07192, section 5)."""
    eps = 1e-10
    largest = torch.finfo(torch.float64).max
    p = torch.sigmoid(answer.double()).clamp(eps, 1 - eps)
    odds = p.pow(-beta).clamp(1 + eps, largest)
    transformed = torch.log((1 / (odds - 1)).clamp(eps, largest))
    logits = torch.cat([transformed[:, None], negatives.double()], dim=1)
    truth = torch.zeros_like(logits)
    truth[:, 0] = 1
    return nn.functional.binary_cross_entropy_with_logits(logits, truth)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    t=st.floats(0, 1),
    scale=st.floats(0.1, 2),
    N=st.integers(1, 20),
    shared=st.booleans(),
)
def test_gbce_equals_the_authors_formula(
    seed: int, t: float, scale: float, N: int, shared: bool
) -> None:
    V = 30
    hidden, table, targets = case(8, V, 4, seed, scale)
    objective = GBCE(torch.ones(V), negatives=N, t=t, shared_negatives=shared)
    torch.manual_seed(seed)
    loss = objective(hidden, table, targets)
    torch.manual_seed(seed)
    drawn = objective.draw(targets)
    drawn = drawn.expand(8, -1) if shared else drawn
    answer, logits, own = logits_of(hidden, table, targets, drawn)
    alpha = N / (V - 2)
    wanted = official_gbce(
        answer,
        logits.masked_fill(own, -torch.inf).clamp(min=-1e30),
        alpha * (t * (1 - 1 / alpha) + 1 / alpha),
    )
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)


def test_gbce_is_finite_where_probabilities_are_not() -> None:
    V = 1000
    table = torch.ones(V, 1)
    for score in (-1e4, -200.0, 200.0, 1e4):
        hidden = torch.full((3, 1), score, requires_grad=True)
        objective = GBCE(torch.ones(V), negatives=1, t=1.0, shared_negatives=False)
        loss = objective(hidden, table, torch.tensor([1, 2, 3]))
        (gradient,) = gradients(loss, hidden)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    # Where σ(s)^β underflows, or is 1 in float32, the gradient still points up.
    answer = torch.tensor([-200.0, 30.0], dtype=torch.float64, requires_grad=True)
    (slope,) = gradients(beta(1, V - 1, 1.0) * nn.functional.softplus(-answer).sum(), answer)
    assert (slope < 0).all()


@given(negatives=st.integers(1, 500), items=st.integers(2, 10**7), t=st.floats(0, 1))
def test_beta_lies_between_alpha_and_one(negatives: int, items: int, t: float) -> None:
    alpha = min(1.0, negatives / (items - 1))
    assert alpha * (1 - 1e-12) <= beta(negatives, items, t) <= 1 + 1e-12
    assert beta(negatives, items, 0.0) == 1
    assert beta(negatives, items, 1.0) == alpha
    assert math.isclose(
        beta(negatives, items, t), alpha * (t * (1 - 1 / alpha) + 1 / alpha), rel_tol=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), N=st.integers(1, 9), shared=st.booleans())
def test_gbce_without_calibration_is_bce(seed: int, N: int, shared: bool) -> None:
    hidden, table, targets = case(6, 20, 3, seed)
    counts = torch.ones(20)
    losses = []
    for objective in (
        GBCE(counts, negatives=N, t=0.0, shared_negatives=shared),
        BCE(counts, negatives=N, sampling="uniform", shared_negatives=shared),
    ):
        torch.manual_seed(seed)
        losses.append(objective(hidden, table, targets))
    torch.testing.assert_close(losses[0] * (N + 1), losses[1])


def test_bce_and_bpr_by_hand() -> None:
    # One other item: what is drawn is known.
    counts, targets = torch.tensor([0, 0, 4]), torch.tensor([1, 1])
    hidden, table = torch.tensor([[1.0], [-2.0]]), torch.tensor([[9.0], [0.5], [3.0]])
    s = torch.tensor([[0.5, 3.0], [-1.0, -6.0]])
    sampled: dict[str, object] = {
        "negatives": 2,
        "sampling": "popularity",
        "shared_negatives": True,
    }
    log_sigmoid = nn.functional.logsigmoid
    torch.testing.assert_close(
        BCE(counts, **sampled)(hidden, table, targets),  # type: ignore[arg-type]
        (-log_sigmoid(s[:, 0]) - 2 * log_sigmoid(-s[:, 1])).mean(),
    )
    torch.testing.assert_close(
        BPR(counts, **sampled)(hidden, table, targets),  # type: ignore[arg-type]
        -log_sigmoid(s[:, 0] - s[:, 1]).mean(),
    )


# --- what holds for all ---

MakeObjective = Callable[[Tensor, int, bool], nn.Module]
ALL: dict[str, MakeObjective] = {
    "sampled_softmax": lambda counts, N, shared: SampledSoftmax(
        counts, negatives=N, sampling="uniform", shared_negatives=shared, temperature=0.5
    ),
    "gbce": lambda counts, N, shared: GBCE(counts, negatives=N, t=0.7, shared_negatives=shared),
    "bce": lambda counts, N, shared: BCE(
        counts, negatives=N, sampling="uniform", shared_negatives=shared
    ),
    "bpr": lambda counts, N, shared: BPR(
        counts, negatives=N, sampling="uniform", shared_negatives=shared
    ),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_laws_of_every_objective(make: MakeObjective, shared: bool) -> None:
    hidden, table, targets = case(50, 12, 5, seed=3)
    objective = make(torch.ones(12), 7, shared)
    assert list(objective.parameters()) == [] and objective.state_dict() == {}
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(objective(hidden, table, targets))
    assert losses[0].dtype == torch.float32 and torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], objective(hidden, table, targets))  # drawn anew
    grad_hidden, grad_table = gradients(losses[0], hidden, table)
    assert torch.isfinite(grad_hidden).all() and grad_hidden.abs().sum(1).min() > 0
    assert grad_table[0].abs().sum() == 0  # padding takes no part
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(5)
        low = objective(hidden, table, targets)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, losses[0], rtol=0.05, atol=0.05)
    # A step along the gradient helps.
    torch.manual_seed(5)
    assert objective(hidden - 0.1 * grad_hidden, table, targets) < losses[0]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_an_answer_is_never_its_own_negative(make: MakeObjective, shared: bool) -> None:
    # A catalogue of one item: every draw is the answer.
    hidden, table, _ = case(4, 2, 3, seed=0)
    loss = make(torch.ones(2), 5, shared)(hidden, table, torch.ones(4, dtype=torch.int64))
    grad_hidden, _ = gradients(loss, hidden, table)
    assert torch.isfinite(loss) and torch.isfinite(grad_hidden).all()
    assert (grad_hidden @ table[1] <= 0).all()  # pushed up, if anywhere
    if make in (ALL["sampled_softmax"], ALL["bpr"]):
        assert loss == 0  # there is nothing to be told apart from


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_frequencies_of_the_draws(sampling: Sampling) -> None:
    counts = torch.tensor([99, 0, 1, 4, 5])
    targets = torch.tensor([2, 3, 3, 3, 3, 4, 4, 4, 4, 4])
    weights = torch.tensor([0.0, 1, 1, 1, 1] if sampling == "uniform" else [0.0, 0, 1, 4, 5])
    probability = (weights / weights.sum()).double()
    for shared in (True, False):
        draw = NegativeItems(counts, negatives=3000, sampling=sampling, shared_negatives=shared)
        torch.manual_seed(0)
        drawn = draw(targets)
        assert drawn.shape == ((3000,) if shared else (10, 3000))
        frequency = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
        torch.testing.assert_close(frequency.double(), probability, atol=0.03, rtol=0)
        assert (frequency[probability == 0] == 0).all()
        torch.testing.assert_close(draw.log_probability_V.exp().double(), probability)


@settings(max_examples=20, deadline=None)
@given(V=st.integers(2, 40), N=st.integers(1, 6), D=st.integers(1, 4), seed=st.integers(0, 9))
def test_scores_of_negatives_are_dot_products(V: int, N: int, D: int, seed: int) -> None:
    hidden, table, targets = case(5, V, D, seed)  # V both below and above N · D
    for shape in ((N,), (5, N)):
        negatives = torch.randint(1, V, shape)
        answer, logits, own = logits_of(hidden, table, targets, negatives)
        each = negatives.expand(5, N)
        torch.testing.assert_close(logits, torch.einsum("td,tnd->tn", hidden, table[each]))
        torch.testing.assert_close(answer, (hidden * table[targets]).sum(1))
        assert torch.equal(own, each == targets[:, None])


@pytest.mark.parametrize("low", [False, True], ids=["32", "bf16"])
@pytest.mark.parametrize("chunk", [1, 7 * 6 * 4, 1 << 18], ids=["a token", "7 tokens", "all"])
def test_own_negatives_in_chunks_have_the_digits_of_the_definition(
    chunk: int, low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_negatives, "NUMBERS_PER_CHUNK", chunk)
    T, N, D, V = 30, 6, 4, 40  # V above N · D, and each item drawn about four times
    hidden, table, targets = case(T, V, D, seed=0)
    drawn = torch.randint(1, V, (T, N))
    weight = torch.randn(T, N)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        _, found, _ = logits_of(hidden, table, targets, drawn)
        wanted = own_negatives_reference(hidden, table, drawn)
    assert wanted.dtype == (torch.bfloat16 if low else torch.float32)
    assert torch.equal(found, wanted.float())
    for one, other in zip(
        gradients((found * weight).sum(), hidden, table),
        gradients((wanted.float() * weight).sum(), hidden, table),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("V", [30, 80])  # below N · D and above
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_gradients_in_touched_rows_are_the_same_gradients(
    make: MakeObjective, shared: bool, V: int
) -> None:
    hidden, table, targets = case(9, V, 5, seed=2)
    objective: Any = make(torch.ones(V), 7, shared)
    found = []
    for objective.touched_rows in (False, True):
        torch.manual_seed(5)
        loss = objective(hidden, table, targets)
        found.append((loss, *gradients(loss, hidden, table)))
        torch.manual_seed(5)
        touched = set(objective.draw(targets).flatten().tolist()) | set(targets.tolist())
    (loss, of_hidden, of_table), (own_loss, own_hidden, own_table) = found
    torch.testing.assert_close(own_loss, loss)
    torch.testing.assert_close(own_hidden, of_hidden)
    assert own_table.is_sparse and not of_table.is_sparse
    assert set(own_table.coalesce().indices()[0].tolist()) == touched
    torch.testing.assert_close(own_table.to_dense(), of_table)


class Largest(TorchDispatchMode):
    """The most numbers in any dense tensor that is made, in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.layout == torch.strided:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_tokens_times_negatives_times_width_is_never_made(
    make: MakeObjective, shared: bool, touched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_negatives, "NUMBERS_PER_CHUNK", 4096)
    T, V, D, N = 64, 600, 32, 16
    hidden, table, targets = case(T, V, D, seed=0)
    objective: Any = make(torch.ones(V), N, shared)
    objective.touched_rows = touched
    with Largest() as largest:
        gradients(objective(hidden, table, targets), hidden, table)
    assert T * (N + 1) <= largest.numel <= V * D < T * N * D
    if shared and touched:
        assert largest.numel <= (2 * T + N) * D


def test_numbers_out_of_range_are_refused() -> None:
    counts = torch.ones(5)
    for make in ALL.values():
        with pytest.raises(ValueError, match=r"objective.negatives must be at least 1, not 0"):
            make(counts, 0, True)
    with pytest.raises(ValueError, match=r"objective.sampling must be .* not 'random'"):
        BPR(counts, negatives=1, sampling="random", shared_negatives=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"objective.temperature must be positive, not 0"):
        SampledSoftmax(
            counts, negatives=1, sampling="uniform", shared_negatives=True, temperature=0
        )
    with pytest.raises(ValueError, match=r"objective.t must be from 0 to 1, not 1.5"):
        GBCE(counts, negatives=1, t=1.5, shared_negatives=True)
    with pytest.raises(ValueError, match="no item with training events"):
        BPR(torch.zeros(5), negatives=1, sampling="popularity", shared_negatives=True)
