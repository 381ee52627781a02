"""The way into every command: compose its settings, check them, run it, say what went wrong.

A command is `main(name, schema, run, __doc__)`. Settings come from `conf/NAME.yaml` and the groups
it names, through Hydra's compose API (which, unlike `hydra.main`, leaves nothing in the working
directory), and reach `run` as one checked dataclass.

Exit codes: 0 done, 1 the machine refused (disk full, no permission), 2 a wrong setting or input,
3 a decision against (promote, reproduce), 130 Ctrl-C. Hydra is imported late: nothing heavy stands
between a user and `--help`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from pipelines.checking import REQUIRED, ConfigError, build, hints_of, keys_of, nearest, takes_text

C = TypeVar("C")
CONF = Path(__file__).resolve().parent.parent / "conf"
OPTIONS = ["--help", "--cfg", "--config-dir"]


def main(
    name: str,
    schema: type[C],
    run: Callable[[C], int | None],
    description: str,
    implied: Callable[[list[str]], list[str]] | None = None,
) -> NoReturn:
    """Run a command with the process's arguments and leave with its exit code.

    Args:
        name: of the command; its settings are `conf/NAME.yaml`.
        schema: dataclass of its settings.
        run: takes the checked settings; returns an exit code, None for 0.
        description: the text of `--help`, with examples.
        implied: the choices that the given settings bring with them.
    """
    try:
        code = _command(name, schema, run, description, implied, sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        print("\n".join(["Interrupted.", *getattr(stopped, "__notes__", [])]), file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        explained = explain(error)
        if explained is None or os.environ.get("RECSYS_TRACEBACK"):
            raise
        message, code = explained
        print(f"Error: {message}", file=sys.stderr)
    sys.exit(code)


def _command(
    name: str,
    schema: type[C],
    run: Callable[[C], int | None],
    description: str,
    implied: Callable[[list[str]], list[str]] | None,
    arguments: list[str],
) -> int:
    overrides: list[str] = []
    folders: list[Path] = []
    show = False
    rest = iter(arguments)
    for argument in rest:
        option, _, value = argument.partition("=")
        if option in ("--help", "-h"):
            print(help_text(name, schema, description))
            return 0
        if option == "--cfg":
            show = True
            if not value and "job" in arguments:
                next(rest, None)
        elif option == "--config-dir":
            folders.append(Path(value or next(rest, "")))
        elif argument.startswith("-"):
            plain = argument.lstrip("-")
            hint = f" Settings are written without dashes: {plain}" if "=" in plain else ""
            raise ConfigError(f"unknown option '{argument}'.{hint or nearest(option, OPTIONS)}")
        else:
            overrides.append(argument)
    if implied is not None:  # it reads a run
        for override in overrides:
            key, _, value = override.partition("=")
            if key == "tracking.uri":
                _check_store(value.strip("'\""))
        overrides = [*implied(overrides), *overrides]
    config = compose(name, schema, overrides, folders)
    if show:
        print(as_yaml(config), end="")
        return 0
    tracking = getattr(config, "tracking", None)
    if tracking is not None:
        _check_store(tracking.uri)
    return run(config) or 0


def _check_store(uri: str | None) -> None:
    """Refuses what is no address of a store before any work starts."""
    if uri is not None and uri not in ("", "null"):
        from recsys.tracking.store import check_address

        check_address(uri)


def compose(
    name: str, schema: type[C], overrides: Iterable[str] = (), folders: Iterable[Path] = ()
) -> C:
    """The settings of a command.

    Args:
        name: of the command.
        schema: dataclass of its settings.
        overrides: `key=value` and `group=choice`, in Hydra's grammar, except that the value of a
            text setting is taken as it stands (a path may hold commas, spaces and brackets).
        folders: with groups of the user's own, looked through after the shipped `conf/`.

    Raises:
        ConfigError: naming the key, where it was set, and the nearest valid name.
    """
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException, MissingConfigException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = [CONF, *(folder.resolve() for folder in folders)]
    for folder in search:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir: there is no folder {folder}.")
    settings = [_Setting.read(text, name, schema, search) for text in overrides]
    for_hydra = [setting.for_hydra for setting in settings if setting.for_hydra]
    if len(search) > 1:
        places = ",".join(f"'file://{folder}'" for folder in search[1:])
        for_hydra.append(f"hydra.searchpath=[{places}]")
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            values = OmegaConf.to_container(hydra_compose(name, for_hydra), resolve=True)
            assert isinstance(values, dict)
            values |= {s.key: s.outside for s in settings if s.is_outside}
        except MissingConfigException as error:
            raise ConfigError(_no_such_choice(error.missing_cfg_file or "", search)) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"a file is not readable as YAML: {_flat(error)}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_flat(error.__cause__ or error)) from error

        @cache
        def sources() -> list[_Source]:
            loader = GlobalHydra.instance().config_loader()
            return _sources(loader.compute_defaults_list(name, for_hydra, RunMode.RUN), search)

        if _mention_hydra(search):  # Hydra would take its settings from there, and do nothing
            for source in sources():
                if _mention_hydra([source.file]):
                    raise ConfigError(f"unknown key 'hydra' in {_shown(source.file)}.")
        return build(
            schema, cast("dict[str, Any]", values), lambda key: _where(key, settings, sources)
        )


def groups(name: str) -> dict[str, str | None]:
    """The config groups of a command and the choice each has by default."""
    import yaml

    primary = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in primary["defaults"] if isinstance(entry, dict)]
    return {group: choice for entry in entries for group, choice in entry.items()}


def choices(group: str, folders: Iterable[Path] = (CONF,)) -> list[str]:
    """The choices of a config group: its YAML files."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def shipped(group: str, choice: str) -> dict[str, Any]:
    """The values of a file of ours, `conf/GROUP/CHOICE.yaml`."""
    import yaml

    values: dict[str, Any] = yaml.safe_load(
        (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")
    )
    return values


def help_text(name: str, schema: type, description: str) -> str:
    """What `--help` prints: description, groups with their choices, settings, options."""
    lines = [description.strip(), "", "Config groups (GROUP=CHOICE):"]
    for group, choice in groups(name).items():
        lines.append(f"  {group}: {', '.join(choices(group))}  [{choice or 'none'}]")
    lines += ["", "Settings (KEY=VALUE; those of a group as GROUP.KEY=VALUE):"]
    attributes = (schema.__doc__ or "").partition("Attributes:")[2]
    fields = set(groups(name))
    lines += [
        f"  {line.strip()}"
        for line in attributes.strip().splitlines()
        if line.strip().partition(":")[0] not in fields
    ]
    lines += [
        "",
        "Options:",
        "  --cfg job         print the settings and stop",
        "  --config-dir DIR  more choices from DIR/GROUP/*.yaml",
        "  --help            this text",
    ]
    return "\n".join(lines)


def as_yaml(config: Any) -> str:
    """The settings as YAML, in their order."""
    import yaml

    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def as_overrides(name: str, config: Any) -> list[str]:
    """Overrides with which a command has just these settings, whatever its defaults are.

    Args:
        name: of the command.
        config: its settings.
    """
    overrides = []
    for group, usual in groups(name).items():
        if (value := getattr(config, group, None)) is not None:
            choice = "log" if group == "data" else getattr(value, "name", usual)
            overrides.append(f"{group}={choice}")
    return overrides + [f"{key}={in_hydra(value)}" for key, value in _leaves(asdict(config))]


def in_hydra(value: Any) -> str:
    """A plain value in Hydra's grammar.

    >>> in_hydra("a b"), in_hydra(None), in_hydra([1, "a"])
    ("'a b'", 'null', "[1,'a']")
    """
    if isinstance(value, list):
        return f"[{','.join(in_hydra(element) for element in value)}]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that is no mapping, with its dotted key."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def explain(error: BaseException) -> tuple[str, int] | None:
    """A message for the user and an exit code, or None for an error that is ours to mend.

    A `ValueError` that our own code raised is about the user's settings or input. An `OSError` is
    about the machine. Libraries that write files say "disk full" in errors of their own.
    """
    if _disk_is_full(error):
        return f"the disk is full, or a file may not grow so large ({_flat(error)}).", 1
    if isinstance(error, ValueError) and _is_ours(error):
        return str(error), 2
    if isinstance(error, OSError):
        return _flat(error), 1
    return None


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return True
    words = r"No space left|File too large|disk is full|os error (27|28)\b|PytorchStreamWriter"
    cause = error.__cause__ or error.__context__
    return bool(re.search(words, str(error))) or (cause is not None and _disk_is_full(cause))


def _is_ours(error: BaseException) -> bool:
    """Whether the error's class, or the function that raised it, is of this project."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return any(
        module.split(".")[0] in ("recsys", "pipelines")
        for module in (type(error).__module__, raised_in)
    )


def _flat(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class _Setting:
    """One `key=value` of the command line.

    Attributes:
        text: as the user wrote it.
        key: without sign and package.
        for_hydra: as Hydra gets it, "" where there is nothing to tell. Values are always
            *added*, so that Hydra refuses no key and every unknown one is found, and explained, in
            the same place.
        is_choice: whether it is a choice of a config group.
        is_outside: whether Hydra must not see it: a text setting that is called as a group of other
            commands, which Hydra would take it for (`evaluate model=NAME@champion`).
        outside: the value of such a setting.
    """

    text: str
    key: str
    for_hydra: str
    is_choice: bool = False
    is_outside: bool = False
    outside: str | None = None

    @classmethod
    def read(cls, text: str, name: str, schema: type, search: list[Path]) -> _Setting:
        sign, key, value = _split(text)
        group = key.partition("@")[0]
        known = choices(group, search)
        if known and group not in groups(name) and _is_text(schema, key) and sign != "~" and value:
            whole = None if value == "=null" else value[1:]
            return cls(text, key, "", is_outside=True, outside=whole)
        if known and not value.startswith("={"):
            if group.partition("/")[0] not in groups(name):
                raise ConfigError(
                    f"unknown key '{group}' on the command line ({text}): {name} has no such group."
                    f" Its groups: {', '.join(groups(name))}."
                )
            if value == "=null" and groups(name).get(group, "") is None:
                return cls(text, group, "", True)  # the default of an optional group
            if sign != "~" and value in ("=null", "=", ""):
                raise ConfigError(f"'{text}' chooses nothing. {group}: {', '.join(known)}.")
            return cls(text, group, f"{'~' if sign == '~' else ''}{key}{value}", True)
        if key.partition(".")[0] == "hydra":
            raise ConfigError(f"unknown key '{key}' on the command line ({text}).")
        if "." not in key and not hints_of(schema, key):  # a group may be no setting: experiment
            settings = [one for one, _ in keys_of(schema) if "." not in one]
            if (near := nearest(key, [*settings, *groups(name)])) != nearest(key, settings):
                raise ConfigError(f"unknown key '{key}' on the command line ({text}).{near}")
        if sign == "~":
            return cls(text, key, text)
        if not value:
            raise ConfigError(f"'{text}' is no setting: settings are written KEY=VALUE.")
        return cls(text, key, f"++{key}={_hydra_value(text, value[1:], _is_text(schema, key))}")


def _split(text: str) -> tuple[str, str, str]:
    """Sign ('', '+', '++', '~'), key, and '=value' (or '')."""
    key, equals, value = text.partition("=")
    sign = re.match(r"\+\+|\+|~|", key).group()  # type: ignore[union-attr]
    return sign, key[len(sign) :].strip(), equals + value


def _is_text(schema: type, key: str) -> bool:
    """Whether a key takes text, or one of some words, and nothing else but null."""
    hints = hints_of(schema, key)
    return bool(hints) and all(takes_text(hint) for hint in hints)


def _hydra_value(text: str, value: str, is_text: bool) -> str:
    """The value in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if is_text and value not in ("null", REQUIRED) and not value.startswith(("'", '"', "${")):
        return _quoted(value)
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException as error:
        raise ConfigError(f"cannot read '{text}': {_flat(error)}") from error
    if override.is_sweep_override():
        raise ConfigError(f"'{text}' holds several values. A list stands in brackets: [{value}]")
    return value


def _quoted(value: str) -> str:
    """Text as it stands, in Hydra's grammar."""
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)  # backslashes count only before a quote
    quoted = re.sub(r"(\\+)$", r"\1\1", quoted)
    return f"'{quoted}'"


@dataclass(frozen=True)
class _Source:
    """A YAML file that takes part, and the dotted key under which its contents go."""

    file: Path
    package: str

    def sets(self, key: str) -> bool:
        """Whether the file says something about a key."""
        from omegaconf import OmegaConf

        prefix = f"{self.package}." if self.package else ""
        if not f"{key}.".startswith(prefix):
            return f"{self.package}.".startswith(f"{key}.")  # the key is the package, or above it
        values: Any = OmegaConf.to_container(OmegaConf.load(self.file), resolve=False)
        parts = key[len(prefix) :].split(".") if key != self.package else []
        for i, part in enumerate(parts):
            if not isinstance(values, dict):
                return False
            if ".".join(parts[i:]) in values:  # a key that itself holds a dot
                return True
            if part not in values:
                return False
            values = values[part]
        return True


def _sources(defaults_list: Any, search: list[Path]) -> list[_Source]:
    """The files of Hydra's defaults list, those that win last; without Hydra's own."""
    sources = []
    for default in defaults_list.defaults:
        found = [folder / f"{default.config_path}.yaml" for folder in search]
        file = next((file for file in found if file.is_file()), None)
        if file is not None:
            sources.append(_Source(file, default.package or ""))
    return sources


def _mention_hydra(places: Iterable[Path]) -> bool:
    """Whether a YAML file, or one below a folder, has a top-level key `hydra`."""
    files = [
        file for place in places for file in ([place] if place.is_file() else place.rglob("*.yaml"))
    ]
    return any(
        re.search(rb"^hydra\s*:", file.read_bytes(), re.MULTILINE) is not None for file in files
    )


def _shown(file: Path) -> str:
    """A path, from the working directory if it lies below."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _where(key: str, settings: list[_Setting], sources: Callable[[], list[_Source]]) -> str:
    """Where a key got its value: " on the command line (…)" or " in FILE".

    Args:
        key: that the user is to be told about.
        settings: of the command line.
        sources: finds the files; not asked where the command line says enough.
    """
    values = [setting for setting in reversed(settings) if not setting.is_choice]
    for setting in values:
        if setting.key == key or setting.key.startswith(f"{key}."):
            return f" on the command line ({setting.text})"
    for source in reversed(sources()):
        if source.sets(key):
            hint = ""
            if source.package == key:
                hint = " (whose first line should be '# @package _global_')"
            return f" in {_shown(source.file)}{hint}"
    for setting in values:
        if key.startswith(f"{setting.key}."):  # data={...}
            return f" on the command line ({setting.text})"
    return ""


def _no_such_choice(missing: str, search: list[Path]) -> str:
    """What to say when Hydra does not find `GROUP/CHOICE`."""
    group, _, choice = missing.removesuffix(".yaml").rpartition("/")
    known = choices(group, search)
    if not known:
        return f"there is no config file '{missing}'."
    return f"unknown {group} '{choice}': choose one of {', '.join(known)}.{nearest(choice, known)}"
