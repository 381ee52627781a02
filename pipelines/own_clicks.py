"""Rankers of one's own package, their objectives and metrics: tried out before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.class_paths import SEE, check_arguments, kind_of, made_of, said
from pipelines.headings import OF_ALL_CLICKS, metric_title
from pipelines.own import (
    KEPT,
    OF_CLICKS,
    OF_NEXT_ITEMS,
    check_loss,
    check_names,
    length_of,
    made_objective,
    metric_function,
    metric_of,
    module_class,
    needed_in_order,
    objective_target,
    saved_and_loaded,
)
from pipelines.schemas import (
    ClicksConfig,
    CrossEntropyConfig,
    MultiValuedConfig,
    NumericConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    RankerConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recsys.batch import ClickBatch
    from recsys.evaluation.click_report import ClickMetric
    from recsys.training.click_task import ClickObjective

ENTITIES = ("user", "item", "event", "context")
OF_THE_DATA = ("catalogue_size", *(f"{of}_fields" for of in ENTITIES))
# Names beside those of metrics that reports, files with one row a question, and tables have.
TAKEN_BY_CLICKS = (
    *("calibration_error_mass", "questions", "clicks", "users_counted", "users_excluded"),
    *("requests_counted", "requests_excluded"),
    *("user", "item", "label", "score", "history_length", "request", "time"),
    *("model", "verdict", "trial", "epoch"),
)


# --- rankers ---


def own_ranker(
    config: OwnRankerConfig, catalogue_size: int, sizes: Mapping[str, Mapping[str, int]]
) -> nn.Module:
    """A ranker, as its constructor makes it.

    Args:
        config: names the class and its arguments.
        catalogue_size: items plus one for padding.
        sizes: number of codes, 0 for numbers, of each field of users, items, events and context.

    Raises:
        ConfigError: no such class, one of another kind, or arguments that it does not take.
    """
    found = ranker_class(config)
    path = config.class_path
    taken = check_arguments(found, config.arguments, "model.arguments", path, OF_THE_DATA)
    arguments = {"catalogue_size": catalogue_size, **fields_of(sizes), **taken}
    ranker: nn.Module = made_of(arguments, found, "model.arguments", path)
    return ranker


def fields_of(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The sizes of fields, as a ranker's constructor takes them."""
    return {f"{of}_fields": dict(sizes.get(of, {})) for of in ENTITIES}


def ranker_class(config: OwnRankerConfig) -> type[nn.Module]:
    """The class, once it is one of a ranker.

    Raises:
        ConfigError: naming what it lacks.
    """
    from torch import nn

    path, found = config.class_path, module_class(config)
    hint = f"; {SEE}"
    if hasattr(found, "encode") and hasattr(found, "item_table"):
        hint = f". It has encode and item_table, as models of the next item have: model=own; {SEE}"
    if found.forward is nn.Module.forward:
        raise ConfigError(
            f"model.class_path={path} has no forward: a ranker gives the logits of its "
            f"questions{hint}"
        )
    names = inspect.signature(found).parameters
    if lacking := [name for name in OF_THE_DATA if name not in names]:
        raise ConfigError(
            f"model.class_path={path}: the constructor of a ranker must take "
            f"{', '.join(OF_THE_DATA)}, and {', '.join(lacking)} it does not{hint}"
        )
    return found


def length_seen(config: RankerConfig, sizes: Mapping[str, Mapping[str, int]]) -> int:
    """How many of the newest events a ranker sees; one's own says it itself."""
    if isinstance(config, OwnRankerConfig):
        return length_of(own_ranker(config, 2, sizes), config.class_path)
    return config.max_length


def try_ranker(config: TrainConfig) -> None:
    """Asks a small ranker a few questions with the fields of the data, and saves and loads it.

    Raises:
        ConfigError: what it gives is not what training and evaluation take.
    """
    import torch

    model = config.model
    assert isinstance(model, OwnRankerConfig)
    path, V = model.class_path, 4
    sizes, bags = fields_to_come(config)
    ranker: Any = own_ranker(model, V, sizes)
    batch = small_batch(sizes, bags, length_of(ranker, path))
    with torch.no_grad():
        logits_B = _logits(path, ranker.eval(), batch)
    wanted = (len(batch.candidates_B),)
    if tuple(logits_B.shape) != wanted:
        raise ConfigError(
            f"{path}: forward gave {list(logits_B.shape)} and must give {list(wanted)}, one logit "
            f"for each question; {SEE}"
        )
    if not torch.isfinite(logits_B).all():
        raise ConfigError(
            f"{path}: forward gave {logits_B.tolist()}, of which not all are finite, for histories "
            f"of {batch.lengths_B.tolist()} events, with fields missing, unknown and known"
        )
    _check_gradients(path, ranker.train(), batch)
    ranker.eval()
    with torch.no_grad():
        logits_B = _logits(path, ranker, batch)  # training may have moved its buffers
        arguments = {"catalogue_size": V, **fields_of(sizes), **model.arguments}
        again = saved_and_loaded(ranker, arguments, path)
        if not torch.equal(again(batch), logits_B):
            raise ConfigError(f"{path}: saved and loaded again it scores otherwise: {KEPT}")
    if isinstance(config.objective, CrossEntropyConfig):
        check_regularised(model, ranker, config.objective)


def _check_gradients(path: str, ranker: Any, batch: ClickBatch) -> None:
    import torch

    logits_B = _logits(path, ranker, batch)
    learning = [parameter for parameter in ranker.parameters() if parameter.requires_grad]
    found: tuple[Tensor | None, ...] = ()
    if logits_B.requires_grad:
        found = torch.autograd.grad(logits_B.sum(), learning, allow_unused=True)
    gradients = [gradient for gradient in found if gradient is not None]
    if not gradients:
        raise ConfigError(
            f"{path}: forward gave logits that do not depend on its parameters: there is nothing "
            "to learn"
        )
    if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        raise ConfigError(
            f"{path}: its gradients are not finite, though its logits are, for histories of "
            f"{batch.lengths_B.tolist()} events"
        )


def _logits(path: str, ranker: Any, batch: ClickBatch) -> Tensor:
    import torch

    try:
        found = ranker(batch)
    except Exception as error:
        raise ConfigError(
            f"{path}: forward failed on three small questions, one of them of an empty history. "
            f"{said(error)}"
        ) from error
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise ConfigError(f"{path}: forward gave {kind_of(found)}, not a tensor of logits; {SEE}")
    return found


def fields_to_come(config: TrainConfig) -> tuple[dict[str, dict[str, int]], set[str]]:
    """The fields that the settings say the data will have: sizes, and which are bags of codes."""
    data, questions = config.data, config.questions
    assert isinstance(questions, ClicksConfig)
    sizes: dict[str, dict[str, int]] = {of: {} for of in ENTITIES}
    if questions.user_id:
        sizes["user"]["user_id"] = 4
    labelled = data.columns.label is not None or data.label_from_rating is not None
    if questions.history == "events" and labelled:
        sizes["event"]["label"] = 4
    for name, feature in data.features.items():
        is_number = isinstance(feature, NumericConfig)
        sizes[getattr(feature, "of", "event")][name] = 0 if is_number else 4
    bags = {name for name, f in data.features.items() if isinstance(f, MultiValuedConfig)}
    return sizes, bags


def small_batch(
    sizes: Mapping[str, Mapping[str, int]], bags: set[str], max_length: int
) -> ClickBatch:
    """Three questions, with histories of two, one and no events and all kinds of codes.

    Args:
        sizes: of the fields, by what they are of.
        bags: names of those that hold several codes.
        max_length: of the histories.
    """
    import torch

    from recsys.batch import ClickBatch

    history_BL = torch.tensor([[1, 3], [2, 0], [0, 0]])[:, :max_length]
    shapes = {"user": (3,), "item": (4,), "event": tuple(history_BL.shape), "context": (3,)}

    def field(of: str, name: str, size: int) -> Tensor:
        shape = (*shapes[of], 2) if name in bags else shapes[of]
        count = int(torch.tensor(shape).prod())
        # Missing, unknown, and two that are known, in turn.
        values = torch.arange(count).view(shape) % max(size, 1)
        return values if size else 0.5 * torch.arange(count).view(shape) - 1.0

    fields = {
        f"{of}_fields": {name: field(of, name, size) for name, size in sizes[of].items()}
        for of in ENTITIES
    }
    return ClickBatch(
        item_ids_I=torch.arange(4),
        candidates_B=torch.tensor([2, 3, 1]),
        history_BL=history_BL,
        lengths_B=(history_BL > 0).sum(1),
        **fields,
    )


def check_regularised(
    config: OwnRankerConfig, model: nn.Module, objective: CrossEntropyConfig
) -> None:
    """Refuses to regularise embeddings that nobody knows where to find.

    Args:
        config: of the ranker.
        model: the ranker.
        objective: with its regularisers.

    Raises:
        ConfigError: saying what to set.
    """
    from recsys.models.click.inputs import ClickInputs

    for name in ("l2", "mini_batch_aware"):
        weight = getattr(objective, name)
        if weight > 0 and not isinstance(getattr(model, "inputs", None), ClickInputs):
            raise ConfigError(
                f"objective.{name}={weight} holds the embeddings of a ranker's `inputs` small, a "
                f"recsys.models.click.inputs.ClickInputs, and {config.class_path} has none: set "
                f"objective.{name}=0"
            )


# --- objectives ---


def own_click_objective(config: OwnObjectiveConfig) -> ClickObjective:
    """An objective of rankers.

    Raises:
        ConfigError: no such function or class, or arguments that it does not take.
    """
    found, given = objective_target(config, OF_CLICKS)
    needed = needed_in_order(found)
    if given and len(needed) == len(OF_NEXT_ITEMS) and needed[-1] not in config.arguments:
        raise ConfigError(
            f"objective.class_path={config.class_path} takes {', '.join(needed)}: where clicks are "
            f"asked an objective is a function of ({', '.join(OF_CLICKS)}), and where next items "
            f"are (model=own) of ({', '.join(OF_NEXT_ITEMS)}); objective.arguments.{needed[-1]} is "
            "missing"
        )
    made: ClickObjective = made_objective(config, OF_CLICKS, {})
    return made


def try_click_objective(config: OwnObjectiveConfig) -> None:
    """Asks for the loss of four logits.

    Raises:
        ConfigError: it is no number that can be made smaller.
    """
    import torch

    objective = own_click_objective(config)
    logits_B = torch.randn(4).requires_grad_()
    labels_B = torch.tensor([1.0, 0.0, 0.0, 1.0])
    check_loss(config, "logits", logits_B, lambda: objective(logits_B, labels_B))


# --- metrics ---


def own_click_metrics(own: Sequence[str]) -> dict[str, ClickMetric]:
    """The metrics of one's own among those of an evaluation, by name."""
    return {metric_of(path): click_metric(path) for path in own}


def check_click_metrics(own: Sequence[str]) -> None:
    """Finds metrics of one's own and tries them.

    Raises:
        ConfigError: no such function, or a name that is taken.
        MetricError: it gives anything but a number for each question.
    """
    for path in own:
        click_metric(path)
    check_click_names(own)


def check_click_names(own: Sequence[str]) -> None:
    """Refuses metrics of one's own that tables could not tell from others.

    Raises:
        ConfigError: naming the metric.
    """
    at_a_cut = [name for name in map(metric_of, own) if metric_title(name.lower()) != name.lower()]
    taken = (*TAKEN_BY_CLICKS, *OF_ALL_CLICKS, *OF_ALL_CLICKS.values(), *at_a_cut)
    check_names(own, taken)


@cache
def click_metric(path: str) -> ClickMetric:
    """A metric of clicks, once it gave numbers for a few questions.

    Raises:
        ConfigError: no such function, or it fails.
        MetricError: it gives anything but a number for each question.
    """
    from recsys.evaluation.click_metrics import LABELS, PROBABILITIES
    from recsys.evaluation.metrics import checked

    metric: ClickMetric = metric_function(path, "labels, probabilities")
    try:
        values = metric(LABELS, PROBABILITIES)
    except Exception as error:
        raise ConfigError(
            f"evaluation.metrics={path} failed on {len(LABELS)} questions. {said(error)}"
        ) from error
    checked(metric_of(path), values, len(LABELS))
    return metric
