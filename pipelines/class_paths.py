"""Class paths: a module and a name in it, `mypackage.models.GRU`, found, checked and consented to.

Naming one on the command line is consent to run its code; one that a recorded run names is only
followed with `trusted_modules`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipelines.checking import ConfigError, build, nearest
from pipelines.schemas import (
    Argument,
    OwnClassConfig,
    OwnObjectiveConfig,
    TrainConfig,
)

SEE = "docs/extending.md shows one"


def find(class_path: str, setting: str) -> Any:
    """What a class path names; its module is imported.

    Args:
        class_path: module and name.
        setting: that says so, for messages.

    Raises:
        ConfigError: no such module or name, with the nearest, or the module cannot be imported.
    """
    module_name, _, name = class_path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in class_path.split(".")):
        raise ConfigError(
            f"{setting}={class_path} is no class path: write a module and a name in it, such as "
            f"mypackage.module.{name if name.isidentifier() else 'Name'}"
        )
    module = _import(module_name, class_path, setting)
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        hint = nearest(name, public, f"{module_name}.") or f" It has: {', '.join(public)}."
        raise ConfigError(f"{setting}={class_path}: {module_name} has no '{name}'.{hint}")
    return getattr(module, name)


def _import(name: str, class_path: str, setting: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if missing != name and not name.startswith(f"{missing}."):
            raise _broken(name, class_path, setting, error) from error  # of what it imports
    except Exception as error:
        raise _broken(name, class_path, setting, error) from error
    parent, _, last = missing.rpartition(".")
    folders = getattr(importlib.import_module(parent), "__path__", []) if parent else sys.path
    found = _modules_in(folders)
    if not parent:
        found -= sys.stdlib_module_names
    hint = nearest(last, sorted(found), f"{parent}." if parent else "")
    if not parent:
        hint += f" Modules are looked for in {Path.cwd()}, PYTHONPATH and what is installed."
    raise ConfigError(f"{setting}={class_path}: there is no module '{missing}'.{hint}")


def _modules_in(folders: Iterable[str]) -> set[str]:
    """Modules and packages, those without `__init__.py` too."""
    places = [Path(folder) for folder in folders]
    return {
        entry.stem
        for place in places
        if place.is_dir()
        for entry in place.iterdir()
        if entry.stem.isidentifier() and (entry.suffix == ".py" or entry.is_dir())
    }


def _broken(name: str, class_path: str, setting: str, error: Exception) -> ConfigError:
    return ConfigError(f"{setting}={class_path}: importing {name} failed. {said(error)}")


def said(error: Exception) -> str:
    """What a user's code raised, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} (RECSYS_TRACEBACK=1 shows where)"


def check_arguments(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    setting: str,
    class_path: str,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """The arguments, once each is one that the target takes, of the type it says.

    Args:
        target: class or function.
        arguments: from the settings.
        setting: that holds them, such as "model.arguments".
        class_path: of the target, for messages.
        given: parameters that are filled in by the command.

    Raises:
        ConfigError: an unknown argument, with the nearest, a missing one, or one of another type.
    """
    parameters = inspect.signature(target).parameters
    fields: list[Any] = []
    for name, hint in argument_hints(target, arguments, given).items():
        needed = name not in parameters or parameters[name].default is inspect.Parameter.empty
        fields.append((name, hint) if needed else (name, hint, field(default=None)))
    # The signature as a schema: the errors are those of every other setting.
    fields.sort(key=len)
    group, last = setting.split(".")
    inner = make_dataclass("Arguments", fields)
    schema = make_dataclass("Own", [(group, make_dataclass("Group", [(last, inner)]))])
    values = {group: {last: dict(arguments)}}
    built = getattr(getattr(build(schema, values, lambda key: f" in {class_path}"), group), last)
    return {name: getattr(built, name) for name in arguments}


def made_of(arguments: Mapping[str, Any], target: type, setting: str, class_path: str) -> Any:
    """An object of a class, made of arguments that were checked and what the command fills in.

    Args:
        arguments: all that the constructor is called with.
        target: the class.
        setting: that holds those of the user, such as "model.arguments".
        class_path: of the class, for messages.

    Raises:
        ConfigError: the constructor raised.
    """
    try:
        return target(**arguments)
    except Exception as error:
        raise ConfigError(f"{setting}: {class_path} cannot be made of them. {said(error)}") from (
            error
        )


def argument_hints(
    target: Callable[..., Any], named: Iterable[str], given: Collection[str] = ()
) -> dict[str, Any]:
    """The types of what a class or function may be given, by name.

    Args:
        target: class or function.
        named: what a user gives, any of which is taken where it takes `**more`.
        given: parameters that are filled in by the command.
    """
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # annotations that cannot be read say nothing
        hints = {}
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if name in given or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= {extra: Argument for extra in named if extra not in (*found, *given)}
        else:
            found[name] = _hint(hints.get(name))
    return found


def _hint(hint: Any) -> Any:
    """The type that an argument is checked for: any at all where the checker knows it not."""
    return hint if hint is not None and _is_checked(hint) else Argument


def _is_checked(hint: Any) -> bool:
    if hint in (str, int, float, bool, type(None)) or get_origin(hint) is Literal:
        return True
    if get_origin(hint) in (Union, types.UnionType, list):
        return all(_is_checked(member) for member in get_args(hint))
    return False


def find_callable(path: str, setting: str, wanted: str) -> Callable[..., Any]:
    """The class or function that a class path names; `wanted` says what it should be.

    Raises:
        ConfigError: it is neither.
    """
    found = find(path, setting)
    if not callable(found):
        raise ConfigError(f"{setting}={path} is {kind_of(found)}, not {wanted}; {SEE}")
    called: Callable[..., Any] = found
    return called


def kind_of(value: Any) -> str:
    """What a value is, in words.

    >>> kind_of(int), kind_of(len), kind_of(3), kind_of(None)
    ('the class int', 'the function len', 'a value of type int', 'nothing (None)')
    """
    if value is None:
        return "nothing (None)"
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    if inspect.ismodule(value):
        return f"the module {value.__name__}"
    return f"a value of type {type(value).__name__}"


# --- consent ---


def class_paths(config: TrainConfig) -> dict[str, str]:
    """The class paths in the settings of a run: path → the setting that names it."""
    found = {}
    if isinstance(config.model, OwnClassConfig):
        found[config.model.class_path] = "model.class_path"
    if isinstance(config.objective, OwnObjectiveConfig):
        found[config.objective.class_path] = "objective.class_path"
    found |= dict.fromkeys(config.evaluation.metrics, "evaluation.metrics")
    if config.data.class_path is not None:
        found[config.data.class_path] = "data.class_path"
    return found


def check_trusted(named: Mapping[str, str], trusted_modules: Sequence[str], run: str) -> None:
    """Refuses to follow what a recorded run names, unless the user said so.

    Args:
        named: class path → the setting of the run that names it.
        trusted_modules: packages that the user trusts.
        run: for messages.

    Raises:
        ConfigError: saying what to add.
    """
    for module in trusted_modules:
        if not module.isidentifier():
            raise ConfigError(
                f"trusted_modules={module}: name a package, such as "
                f"trusted_modules=[{module.partition('.')[0] or 'mypackage'}]"
            )
    strangers = {
        path: setting for path, setting in named.items() if package(path) not in trusted_modules
    }
    strangers = {path: s for path, s in strangers.items() if package(path) != "recsys"}
    if strangers:
        code = ", ".join(f"{path} ({setting})" for path, setting in strangers.items())
        packages = ",".join(sorted({package(path) for path in strangers} | set(trusted_modules)))
        raise ConfigError(
            f"{run} uses {code}: code that is not of recsys is only run with your consent; add "
            f"trusted_modules=[{packages}] if you trust it"
        )


def check_consent(
    trained: TrainConfig,
    trusted_modules: Sequence[str],
    run: str,
    *,
    data: bool,
    metrics: Sequence[str] = (),
) -> None:
    """Refuses to use a recorded run whose model, log or metrics are not trusted code.

    Args:
        trained: the run's settings.
        trusted_modules: packages that the user trusts.
        run: for messages.
        data: whether the run's own log is read.
        metrics: that are measured; those that the run does not name were named by the user.

    Raises:
        ConfigError: saying what to add.
    """
    used = {"model.class_path"} | ({"data.class_path"} if data else set())
    named = {
        path: setting
        for path, setting in class_paths(trained).items()
        if setting in used or path in metrics
    }
    check_trusted(named, trusted_modules, run)


def package(class_path: str) -> str:
    """The package at the front of a class path."""
    return class_path.partition(".")[0]
