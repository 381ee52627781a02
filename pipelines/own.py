"""Models, objectives, metrics and logs of one's own package: tried out before any work starts.

Of rankers, and what goes with them, `pipelines.own_clicks` tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError
from pipelines.class_paths import (
    SEE,
    check_arguments,
    find,
    find_callable,
    kind_of,
    made_of,
    package,
    said,
)
from pipelines.headings import AT_A_CUT
from pipelines.schemas import (
    DataConfig,
    OwnClassConfig,
    OwnModelConfig,
    OwnObjectiveConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from recsys.evaluation.metrics import Metric
    from recsys.logs.schema import Columns
    from recsys.training.next_item_task import Objective

OF_THE_STORE = ("catalogue_size",)
KEPT = "what it learns or draws must be a parameter or a buffer"
TAKEN_MODELS = ("Popularity", "Markov", "ItemKNN", "EASE", "iALS")


# --- models ---


def own_model(config: OwnModelConfig, catalogue_size: int) -> nn.Module:
    """A next-item model, as its constructor makes it.

    Raises:
        ConfigError: no such class, one of another kind, or arguments that it does not take.
    """
    found = model_class(config)
    path = config.class_path
    taken = check_arguments(found, config.arguments, "model.arguments", path, OF_THE_STORE)
    arguments = {"catalogue_size": catalogue_size, **taken}
    model: nn.Module = made_of(arguments, found, "model.arguments", path)
    return model


def module_class(config: OwnClassConfig) -> type[nn.Module]:
    """The class, once it is one of a torch module.

    Raises:
        ConfigError: it is something else.
    """
    from torch import nn

    found = find(config.class_path, "model.class_path")
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ConfigError(
            f"model.class_path={config.class_path} is {kind_of(found)}: a model is a class that "
            f"inherits from torch.nn.Module; {SEE}"
        )
    return found


def model_class(config: OwnModelConfig) -> type[nn.Module]:
    """The class, once it is one of a next-item model.

    Raises:
        ConfigError: naming what it lacks.
    """
    from torch import nn

    path, found = config.class_path, module_class(config)
    lacking = [name for name in ("encode", "item_table") if not hasattr(found, name)]
    if found.forward is nn.Module.forward:
        lacking.insert(0, "forward")
    if lacking:
        raise ConfigError(
            f"model.class_path={path} has no {' and no '.join(lacking)}: a next-item model gives "
            f"hidden states (forward), vectors of histories (encode) and of items (item_table); "
            f"{SEE}. A ranker, which is asked about clicks, is model=own_ranker"
        )
    if "catalogue_size" not in inspect.signature(found).parameters:
        raise ConfigError(
            f"model.class_path={path}: its constructor must take catalogue_size, the number of "
            "items plus one for padding"
        )
    if found.__name__ in TAKEN_MODELS:
        raise ConfigError(
            f"model.class_path={path}: {found.__name__} is a baseline's name in every table; call "
            "the class otherwise"
        )
    return found


def try_model(config: OwnModelConfig) -> None:
    """Asks a small model about small histories, and saves and loads it.

    Raises:
        ConfigError: what it gives is not what training and evaluation take.
    """
    import torch

    from recsys.batch import HistoryBatch

    path, V = config.class_path, 4
    model: Any = own_model(config, V).eval()
    length = length_of(model, path)
    items_BL = torch.tensor([[1, 3], [2, 0], [0, 0]])[:, : min(2, length)]
    lengths_B = (items_BL > 0).sum(1)
    batch, T = HistoryBatch(items_BL, lengths_B), int(lengths_B.sum())
    with torch.no_grad():
        hidden, encoded, table = (
            _called(path, "forward", lambda: model(batch)),
            _called(path, "encode", lambda: model.encode(batch)),
            _called(path, "item_table", model.item_table),
        )
    D = table.shape[-1]
    for name, tensor, shape, what in (
        ("item_table", table, (V, D), "one row for each item and one for padding"),
        ("forward", hidden, (T, D), "one row for each event, in the order of batch.packed_T"),
        ("encode", encoded, (len(lengths_B), D), "one row for each history"),
    ):
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"{path}: {name} gave {list(tensor.shape)} and must give {list(shape)}, {what}; "
                f"{SEE}"
            )
        if not torch.isfinite(tensor).all():
            raise ConfigError(
                f"{path}: {name} gave numbers that are not finite, for histories of "
                f"{lengths_B.tolist()} events"
            )
    again = saved_and_loaded(model, {"catalogue_size": V, **config.arguments}, path)
    with torch.no_grad():
        if not torch.equal(again.encode(batch), encoded):
            raise ConfigError(
                f"{path}: saved and loaded again it encodes histories otherwise: {KEPT}"
            )


def length_of(model: nn.Module, path: str) -> int:
    """How many of the newest events a model sees.

    Raises:
        ConfigError: it does not say it.
    """
    length = getattr(model, "max_length", None)
    if type(length) is not int or length < 1:
        raise ConfigError(
            f"{path}: its attribute max_length must be the number of newest events it sees, at "
            f"least 1, not {length!r}"
        )
    return length


def saved_and_loaded(model: nn.Module, arguments: Mapping[str, Any], path: str) -> Any:
    """The same model by way of a file.

    Raises:
        ConfigError: there is no such way.
    """
    from recsys.training.saved_model import load_model, save_model

    with TemporaryDirectory() as folder:
        try:
            save_model(Path(folder), model, arguments, {})
            return load_model(Path(folder), [package(type(model).__module__)])[0]
        except Exception as error:
            raise ConfigError(f"{path} cannot be saved and loaded again. {said(error)}") from error


def _called(path: str, name: str, call: Callable[[], Any]) -> Any:
    """What a method gives, a matrix."""
    import torch

    try:
        found = call()
    except Exception as error:
        raise ConfigError(
            f"{path}: {name} failed on a batch of three small histories, one of them empty. "
            f"{said(error)}"
        ) from error
    if not isinstance(found, torch.Tensor) or not found.is_floating_point() or found.ndim < 1:
        raise ConfigError(f"{path}: {name} gave {kind_of(found)}, not a tensor of vectors; {SEE}")
    return found


# --- objectives ---

KNOWN_TO_OBJECTIVES = ("item_counts_V", "touched_rows")
OF_NEXT_ITEMS = ("hidden_TD", "table_VD", "targets_T")
OF_CLICKS = ("logits_B", "labels_B")


def own_objective(
    config: OwnObjectiveConfig, item_counts_V: np.ndarray, touched_rows: bool
) -> Objective:
    """An objective, of its arguments and, where it asks for them, of what `make_objective` knows.

    Raises:
        ConfigError: no such function or class, or arguments that it does not take.
    """
    import torch

    known = (torch.from_numpy(item_counts_V), touched_rows)
    beside = dict(zip(KNOWN_TO_OBJECTIVES, known, strict=True))
    made: Objective = made_objective(config, OF_NEXT_ITEMS, beside)
    return made


def objective_target(
    config: OwnObjectiveConfig, takes: Sequence[str], known: Collection[str] = ()
) -> tuple[Callable[..., Any], list[str]]:
    """The function or class, and which of its parameters are no arguments of the settings.

    Args:
        config: names it.
        takes: what an objective is a function of.
        known: what a class's constructor gets if it asks for it.

    Raises:
        ConfigError: no such function or class, or one of too few parameters.
    """
    path, wanted = config.class_path, f"a function of ({', '.join(takes)})"
    found = find_callable(path, "objective.class_path", wanted)
    parameters = inspect.signature(found).parameters
    if inspect.isclass(found):
        return found, [name for name in known if name in parameters]
    needed = needed_in_order(found)
    if len(needed) < len(takes):
        other = OF_CLICKS if takes == OF_NEXT_ITEMS else OF_NEXT_ITEMS
        kind = "clicks" if other == OF_CLICKS else "next items"
        raise ConfigError(
            f"objective.class_path={path} takes {len(needed)} arguments: an objective is {wanted}, "
            f"or where {kind} are asked of ({', '.join(other)}); {SEE}"
        )
    return found, list(parameters)[: len(takes)]


def needed_in_order(function: Callable[..., Any]) -> list[str]:
    """The parameters that a call must fill by their order."""
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def made_objective(
    config: OwnObjectiveConfig, takes: Sequence[str], known: Mapping[str, Any]
) -> Callable[..., Any]:
    """What gives the loss.

    Args:
        config: names function or class, and its arguments.
        takes: what an objective is a function of.
        known: what a class's constructor gets if it asks for it.

    Raises:
        ConfigError: no such function or class, or arguments that it does not take.
    """
    import torch

    path, setting = config.class_path, "objective.arguments"
    found, given = objective_target(config, takes, known)
    taken = check_arguments(found, config.arguments, setting, path, given)
    if not inspect.isclass(found):
        return partial(found, **taken) if taken else found
    made = made_of({**{name: known[name] for name in given}, **taken}, found, setting, path)
    if not callable(made):
        raise ConfigError(
            f"objective.class_path={path} is a class whose objects cannot be called with "
            f"({', '.join(takes)}); {SEE}"
        )
    if isinstance(made, torch.nn.Module) and any(True for _ in made.parameters()):
        raise ConfigError(
            f"objective.class_path={path} has parameters: only the model's are trained, so they "
            "belong there"
        )
    objective: Callable[..., Any] = made
    return objective


def touches_every_row(config: OwnObjectiveConfig) -> bool:
    """Whether the gradient of the item table holds all rows: unless told `touched_rows`."""
    found = find(config.class_path, "objective.class_path")
    return "touched_rows" not in inspect.signature(found).parameters


def try_objective(config: OwnObjectiveConfig) -> None:
    """Asks for the loss of a few tokens.

    Raises:
        ConfigError: it is no number that can be made smaller.
    """
    import numpy as np
    import torch

    V = 6
    objective = own_objective(config, np.array([0, *[1] * (V - 1)]), touched_rows=False)
    hidden_TD = torch.randn(4, 8).requires_grad_()
    others = torch.randn(V, 8).requires_grad_(), torch.tensor([1, 5, 2, 2])
    check_loss(config, "hidden states", hidden_TD, lambda: objective(hidden_TD, *others))


def check_loss(
    config: OwnObjectiveConfig, what: str, inputs: Tensor, call: Callable[[], object]
) -> None:
    """Refuses anything but a mean loss that can be made smaller.

    Args:
        config: names the objective.
        what: the inputs are, in words.
        inputs: that the model gives, four of them.
        call: gives the loss.

    Raises:
        ConfigError: saying what it gave.
    """
    import torch

    path = config.class_path
    try:
        loss = call()
    except Exception as error:
        raise ConfigError(
            f"objective.class_path={path} failed on four {what}. {said(error)}"
        ) from error
    wanted = "an objective gives the mean loss, a tensor without dimensions"
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        given = kind_of(loss) if not isinstance(loss, torch.Tensor) else f"shape {list(loss.shape)}"
        raise ConfigError(f"objective.class_path={path} gave {given}: {wanted}; {SEE}")
    if not loss.is_floating_point() or not torch.isfinite(loss):
        raise ConfigError(f"objective.class_path={path} gave {loss.item()}: {wanted}; {SEE}")
    if not loss.requires_grad or torch.autograd.grad(loss, inputs, allow_unused=True)[0] is None:
        raise ConfigError(
            f"objective.class_path={path} gave a loss that does not depend on the {what}: there is "
            "nothing to learn from"
        )


def try_own(config: TrainConfig) -> None:
    """Tries a model and an objective of one's own out.

    Raises:
        ConfigError: they cannot be used.
    """
    if isinstance(config.model, OwnModelConfig):
        try_model(config.model)
    if isinstance(config.objective, OwnObjectiveConfig):
        try_objective(config.objective)


# --- metrics ---


def all_metrics(own: Sequence[str]) -> Mapping[str, Metric]:
    """The metrics of an evaluation: ours, and those of one's own."""
    from recsys.evaluation.metrics import METRICS

    return {**METRICS, **{metric_of(path): next_item_metric(path) for path in own}}


def metric_of(class_path: str) -> str:
    """The name of a metric of one's own in tables and files.

    >>> metric_of("mypackage.metrics.reach")
    'reach'
    """
    return class_path.rpartition(".")[2]


def check_metrics(own: Sequence[str]) -> None:
    """Finds metrics of one's own and tries them.

    Raises:
        ConfigError: no such function, or a name that is taken.
        MetricError: it gives anything but a number for each question.
    """
    for path in own:
        next_item_metric(path)
    check_names(own, AT_A_CUT)


def check_names(own: Sequence[str], taken: Collection[str]) -> None:
    """Refuses metrics that tables could not tell apart.

    Args:
        own: class paths of metrics.
        taken: names and headings that tables have already.

    Raises:
        ConfigError: naming the metric.
    """
    names = [metric_of(path) for path in own]
    # Nobody tells ECE from ece, and not every file system does.
    small, theirs = [name.lower() for name in names], {name.lower() for name in taken}
    for path, name in zip(own, names, strict=True):
        if not name.isascii():
            raise ConfigError(f"evaluation.metrics={path}: MLflow takes no such name as '{name}'")
        if name.lower() in theirs:
            raise ConfigError(
                f"evaluation.metrics={path}: '{name}' is a name that tables have already; call the "
                "function otherwise"
            )
        if small.count(name.lower()) > 1:
            raise ConfigError(f"evaluation.metrics: two metrics are called '{name}'")


def metric_function(path: str, takes: str) -> Callable[..., Any]:
    """What measures, in a call with (`takes`).

    Raises:
        ConfigError: no such function.
    """
    wanted = f"a function of ({takes}) that gives one number a question"
    metric = find_callable(path, "evaluation.metrics", wanted)
    if inspect.isclass(metric):
        raise ConfigError(f"evaluation.metrics={path} is a class, not {wanted}; {SEE}")
    return metric


@cache
def next_item_metric(path: str) -> Metric:
    """A metric of next items, once it gave numbers for three questions.

    Raises:
        ConfigError: no such function, or it fails.
        MetricError: it gives anything but a number for each question.
    """
    from recsys.evaluation.metrics import EXAMPLE, checked

    metric: Metric = metric_function(path, "answers, k")
    for k in (1, 10):
        try:
            values = metric(EXAMPLE, k)
        except Exception as error:
            raise ConfigError(
                f"evaluation.metrics={path} failed on three questions. {said(error)}"
            ) from error
        checked(metric_of(path), values, EXAMPLE.questions)
    return metric


# --- logs ---


def own_log(data: DataConfig, columns: Columns, folder: Path) -> str:
    """The path of the log that a function of one's own gives.

    Args:
        data: names the function and its arguments.
        columns: that the log must have.
        folder: where a log is kept that is no file.

    Raises:
        ConfigError: no such function, arguments that it does not take, or no log.
        LogError: the log lacks a column.
    """
    import polars as pl

    from recsys.logs.frames import keep_frame
    from recsys.logs.schema import resolve

    path = data.class_path
    assert path is not None
    for name in ("path", "source"):
        if getattr(data, name) is not None:
            raise ConfigError(
                f"data.{name} and data.class_path both say where the log comes from: leave one out"
            )
    wanted = "a function that gives a Polars DataFrame or LazyFrame, or the path of a log"
    source = find_callable(path, "data.class_path", wanted)
    if inspect.isclass(source):
        raise ConfigError(f"data.class_path={path} is a class, not {wanted}; {SEE}")
    made = source(**check_arguments(source, data.arguments, "data.arguments", path))
    if isinstance(made, str | Path):
        return str(made)
    if not isinstance(made, pl.DataFrame | pl.LazyFrame):
        raise ConfigError(
            f"data.class_path={path} gave {kind_of(made)}: it must be {wanted}; {SEE}"
        )
    resolve(columns, made.collect_schema(), path)
    frame = made.collect() if isinstance(made, pl.LazyFrame) else made
    if len(frame) == 0:
        raise ConfigError(f"data.class_path={path} gave no rows")
    return str(keep_frame(frame, folder))
