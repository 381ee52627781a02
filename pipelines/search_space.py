"""The search space of `tune`: settings of train, with what Optuna draws them from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pipelines.checking import ConfigError, hints_of, nearest
from pipelines.class_paths import argument_hints, check_arguments
from pipelines.entry import as_overrides, choices, compose, in_hydra, shipped
from pipelines.own import (
    KNOWN_TO_OBJECTIVES,
    OF_CLICKS,
    OF_NEXT_ITEMS,
    OF_THE_STORE,
    model_class,
    objective_target,
)
from pipelines.own_clicks import OF_THE_DATA, ranker_class
from pipelines.schemas import (
    OwnClassConfig,
    OwnModelConfig,
    OwnObjectiveConfig,
    OwnRankerConfig,
    RankerConfig,
    SearchConfig,
    Searched,
    TrainConfig,
    TuneConfig,
)
from pipelines.train import check_trainer

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

GROUPS = ("model", "objective", "trainer")
ARGUMENTS = "arguments."  # of one's own class


def distributions(config: TuneConfig, base: TrainConfig) -> dict[str, BaseDistribution]:
    """What Optuna draws from, by setting of train.

    Raises:
        ConfigError: a setting that train does not have, or values that it does not take.
    """
    found: dict[str, BaseDistribution] = {}
    tried: dict[str, list[Any]] = {}
    for group in GROUPS:
        part = getattr(base, group)
        entries = entries_of(getattr(config.space, group))
        known = searchable(part, base, entries)
        for name, entry in entries.items():
            if name not in known:
                front = ARGUMENTS if hasattr(part, "arguments") else ""
                bare = [setting.removeprefix(front) for setting in known]
                near = nearest(name.removeprefix(front), bare, f"space.{group}.{front}")
                near = near or f" Known: {', '.join(known) or 'none'}."
                space = "own" if isinstance(part, OwnClassConfig) else part.name
                if group == "model" and of_a_shipped_space(name, entries):
                    near += f" The space that is shipped for it is space={space}."
                raise ConfigError(
                    f"space.{group}.{name}: {group}={part.name} has nothing of that name to "
                    f"search.{near}"
                )
            key = f"{group}.{name}"
            found[key] = distribution(key, entry, known[name])
            tried[key] = entry.choices or ends_of(entry, known[name])
    if not found:
        raise ConfigError("space holds nothing to search: add space.model.width.choices=[32,64]")
    # Every value is composed once, the last ones of short lists again.
    for nth in range(max(map(len, tried.values()))):
        drawn = {key: values[min(nth, len(values) - 1)] for key, values in tried.items()}
        trial = trial_config(base, drawn)
        check_trainer(trial)
        for group in ("model", "objective"):
            part = getattr(trial, group)
            if (own := own_target(part, trial)) is not None:
                setting, path = f"{group}.arguments", part.class_path
                check_arguments(own[0], part.arguments, setting, path, own[1])
    return found


def of_a_shipped_space(name: str, entries: Collection[str]) -> bool:
    """Whether a setting of the model came with a space that we ship."""
    parts = [shipped("space", choice).get("model", {}) for choice in choices("space")]
    return any(name in part and set(part) <= set(entries) for part in parts)


def entries_of(part: Mapping[str, Searched]) -> dict[str, SearchConfig]:
    """What is searched of a group, by its setting: `arguments.width` of one's own class."""
    found: dict[str, SearchConfig] = {}
    for name, entry in part.items():
        if isinstance(entry, SearchConfig):
            found[name] = entry
        else:
            found |= {f"{name}.{inner}": one for inner, one in entry.items()}
    return found


def searchable(part: Any, base: TrainConfig, entries: Iterable[str]) -> dict[str, Any]:
    """The settings of a group that can be searched, with their types.

    Of one's own class those are its arguments, `arguments.width`, as its signature has them.
    """
    own = own_target(part, base)
    if own is None:
        names = [field.name for field in fields(part) if field.name not in ("name", "monitor")]
        return {name: hints_of(type(part), name)[0] for name in names}
    named = [name.removeprefix(ARGUMENTS) for name in entries if name.startswith(ARGUMENTS)]
    hints = argument_hints(own[0], named, own[1])
    return {ARGUMENTS + name: hint for name, hint in hints.items()}


def own_target(part: Any, base: TrainConfig) -> tuple[Callable[..., Any], Collection[str]] | None:
    """The class or function that a group names by class path, and what is no argument of it.

    Raises:
        ConfigError: there is none, or it is of another kind.
    """
    if isinstance(part, OwnModelConfig):
        return model_class(part), OF_THE_STORE
    if isinstance(part, OwnRankerConfig):
        return ranker_class(part), OF_THE_DATA
    if isinstance(part, OwnObjectiveConfig):
        if isinstance(base.model, RankerConfig):
            return objective_target(part, OF_CLICKS)
        return objective_target(part, OF_NEXT_ITEMS, KNOWN_TO_OBJECTIVES)
    return None


def first_arguments(space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """A value of each argument that is searched, without which one's own class may not be made."""
    from optuna.distributions import CategoricalDistribution

    return {
        key: drawn.choices[0] if isinstance(drawn, CategoricalDistribution) else drawn.low  # type: ignore[attr-defined]
        for key, drawn in space.items()
        if key.partition(".")[2].startswith(ARGUMENTS)
    }


def ends_of(entry: SearchConfig, hint: Any) -> list[float]:
    """The least and the greatest value."""
    assert entry.low is not None and entry.high is not None
    ends = [entry.low, entry.high]
    return [int(end) for end in ends] if is_whole(hint) else ends


def is_whole(hint: Any) -> bool:
    """Whether a setting takes whole numbers, and no others."""
    members = set(getattr(hint, "__args__", (hint,)))
    return int in members and float not in members


def distribution(key: str, entry: SearchConfig, hint: Any) -> BaseDistribution:
    """What one setting is drawn from.

    Raises:
        ConfigError: an entry that says too little, or too much.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    where = f"space.{key}"
    ends = (entry.low, entry.high)
    if (entry.choices is None) == (ends == (None, None)) or ends.count(None) == 1:
        raise ConfigError(f"{where} takes choices=[…], or low= and high=, and not both")
    if entry.choices is not None:
        if entry.log or entry.step is not None:
            raise ConfigError(f"{where}: log and step are of low and high, not of choices")
        plain = [choice for choice in entry.choices if not isinstance(choice, list)]
        if len(plain) < len(entry.choices):
            raise ConfigError(
                f"{where}.choices={entry.choices}: a list cannot be searched, only numbers, text, "
                "true, false and null"
            )
        if not entry.choices or len(set(map(repr, entry.choices))) < len(entry.choices):
            raise ConfigError(f"{where}.choices={entry.choices} must hold different values")
        return CategoricalDistribution(plain)
    low, high = entry.low, entry.high
    assert low is not None and high is not None
    if not low < high:
        raise ConfigError(f"{where}.low={low:g} must be less than {where}.high={high:g}")
    if entry.log and (entry.step is not None or low <= 0):
        raise ConfigError(f"{where}: log takes a low above 0, and no step")
    if entry.step is not None and not 0 < entry.step <= high - low:
        raise ConfigError(f"{where}.step must be positive and at most high - low, not {entry.step}")
    if not is_whole(hint):
        return FloatDistribution(low, high, log=entry.log, step=entry.step)
    step = 1 if entry.step is None else entry.step
    if any(number != int(number) for number in (low, high, step)):
        raise ConfigError(f"{where}: {key} is a whole number, and so are low, high and step")
    return IntDistribution(int(low), int(high), log=entry.log, step=int(step))


def trial_config(base: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The settings of a trial, composed as if they had been typed.

    Raises:
        ConfigError: a value that train does not take.
    """
    drawn = [f"{key}={in_hydra(value)}" for key, value in values.items()]
    return compose("train", TrainConfig, [*as_overrides("train", base), *drawn])
