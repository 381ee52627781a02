"""Mappings into dataclasses, strictly: no unknown key, nothing missing, no silent conversion.

Field types: dataclasses, str, int, float, bool, None, Literal, list[T], dict[str, T] and unions of
them. A union of dataclasses is told apart by its members' `name: Literal[...]`, or by their
`kind: Literal[...]`.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C")
REQUIRED = "???"


class ConfigError(ValueError):
    """A setting that cannot be used: names the key, where it was set and the nearest valid one."""


def build(schema: type[C], values: dict[str, Any], where: Callable[[str], str]) -> C:
    """Make a `schema` of `values`.

    Args:
        schema: a dataclass.
        values: its fields by name; fields that are dataclasses as mappings in turn.
        where: says of a dotted key where it was set, such as " in conf/train.yaml".

    Raises:
        ConfigError: naming every unknown key, or else every missing one and every wrong value.
    """
    check = _Check(schema, where)
    result = check.dataclass(schema, values, "")
    problems = check.unknown or check.wrong
    if problems:
        raise ConfigError("\n".join(problems))
    return result


def keys_of(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key below a dataclass (or a union of them), with its type."""
    for member in _dataclasses(schema):
        for name, hint in _hints(member).items():
            yield prefix + name, hint
            yield from keys_of(hint, f"{prefix}{name}.")


def hints_of(schema: Any, key: str) -> list[Any]:
    """The types that a dotted key below a dataclass may have: several in a union, [] for none."""
    hints = [schema]
    for part in key.split("."):
        hints = [deeper for hint in hints for deeper in _below(hint, part)]
    return hints


def nearest(name: str, choices: list[str], prefix: str = "") -> str:
    """` Did you mean 'PREFIXx'?`, or nothing if no choice is near."""
    found = get_close_matches(name, choices, n=1)
    return f" Did you mean '{prefix}{found[0]}'?" if found else ""


def takes_text(hint: Any) -> bool:
    """Whether a field's values are text, or certain words, and nothing else but null."""
    members = [member for member in _members(hint) if member is not type(None)]
    words = [word for member in members for word in (_choices(member) or [member])]
    return bool(words) and all(word is str or isinstance(word, str) for word in words)


class _Check:
    """One pass over the values, gathering what is wrong."""

    def __init__(self, schema: type, where: Callable[[str], str]) -> None:
        self.all_keys = sorted({key for key, _ in keys_of(schema)})
        self.where = where
        self.unknown: list[str] = []
        self.wrong: list[str] = []

    def fail(self, key: str, hint: Any, value: Any) -> None:
        shown = "a mapping" if isinstance(value, dict) else repr(value)
        close = ""
        if isinstance(value, str):
            close = nearest(value, [c for c in _choices(hint) if isinstance(c, str)])
        self.wrong.append(f"{key} must be {_in_words(hint)}, not {shown}{self.where(key)}.{close}")

    def dataclass(self, schema: Any, values: Any, key: str) -> Any:
        if not isinstance(values, dict):
            self.fail(key, schema, values)
            names = list(_hints(schema))
            self.wrong[-1] += f" It holds {', '.join(names)}, such as {key}.{names[0]}=VALUE."
            return None
        prefix = f"{key}." if key else ""
        hints = _hints(schema)
        for name in values:
            if name not in hints:
                self.unknown.append(self.unknown_key(prefix, str(name), list(hints)))
        arguments = {}
        for field in dataclasses.fields(schema):
            if field.name in values:
                arguments[field.name] = self.value(
                    hints[field.name], values[field.name], prefix + field.name
                )
            elif _has_no_default(field):
                self.wrong.append(
                    f"{prefix}{field.name} is missing: add {prefix}{field.name}=VALUE."
                )
        if self.unknown or self.wrong:
            return None
        return schema(**arguments)

    def unknown_key(self, prefix: str, name: str, siblings: list[str]) -> str:
        key = prefix + name
        text = f"unknown key '{key}'{self.where(key)}."
        if key in self.all_keys:  # 'trainer.max_epochs: 3' in a file
            return f"{text} In a file the part behind a dot stands on a line of its own, indented."
        last = {full.rsplit(".", 1)[-1]: full for full in self.all_keys}
        close = nearest(name, siblings, prefix)
        if not close and (found := get_close_matches(name.rsplit(".", 1)[-1], last, n=1)):
            close = f" Did you mean '{last[found[0]]}'?"
        return text + (close or f" Known here: {', '.join(siblings)}.")

    def value(self, hint: Any, value: Any, key: str) -> Any:
        if value == REQUIRED:
            self.wrong.append(f"{key} is required: add {key}=VALUE.")
            return None
        classes, inner = _dataclasses(hint), _values_of(hint)
        if _dataclasses(inner) and isinstance(value, dict) and not _is_one_of(classes, value):
            return {str(n): self.value(inner, part, f"{key}.{n}") for n, part in value.items()}
        if classes and value is not None:
            return self.one_of(classes, value, key)
        try:
            return _convert(hint, value)
        except TypeError:
            return self.fail(key, hint, value)

    def one_of(self, classes: list[Any], value: Any, key: str) -> Any:
        """The member of a union of dataclasses that `value["name"]`, or "kind", names."""
        if not isinstance(value, dict) and len(classes) > 1:
            return self.fail(key, classes[0], value)
        if len(classes) == 1:
            return self.dataclass(classes[0], value, key)
        tag = "name" if "name" in _hints(classes[0]) else "kind"
        by_tag = {word: c for c in classes for word in get_args(_hints(c).get(tag))}
        word = value.get(tag, REQUIRED)
        if not isinstance(word, str) or word not in by_tag:
            # Without its kind nobody knows which keys are its own, but these are nobody's.
            fields = list({name: None for c in classes for name in _hints(c)})
            for name in value:
                if name not in fields:
                    self.unknown.append(self.unknown_key(f"{key}.", str(name), fields))
            words = Literal[tuple(by_tag)]  # type: ignore[valid-type]
            return self.value(words, word, f"{key}.{tag}")
        return self.dataclass(by_tag[word], value, key)


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


def _members(hint: Any) -> list[Any]:
    union = get_origin(hint) in (Union, types.UnionType)
    return list(get_args(hint)) if union else [hint]


def _dataclasses(hint: Any) -> list[Any]:
    return [member for member in _members(hint) if dataclasses.is_dataclass(member)]


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is list


def _values_of(hint: Any) -> Any:
    """T of a `dict[str, T]`, None of anything else."""
    dicts = [member for member in _members(hint) if get_origin(member) is dict]
    return get_args(dicts[0])[1] if dicts else None


def _is_one_of(classes: list[Any], value: dict[str, Any]) -> bool:
    """Whether a mapping is meant as one of dataclasses T, and of `T | dict[str, T]` not as a dict.

    Its keys tell, though one may be misspelt.
    """
    names = [name for schema in classes for name in _hints(schema)]
    near = any(get_close_matches(str(key), names, n=1) for key in value)
    return bool(classes) and (not value or near) and not _is_nested(value)


def _is_nested(value: dict[str, Any]) -> bool:
    """Whether a mapping holds mappings only."""
    return bool(value) and all(isinstance(part, dict) for part in value.values())


def _below(hint: Any, part: str) -> list[Any]:
    """The types of the field `part` of a dataclass, or of an entry of a dict."""
    inner = _values_of(hint)
    found = [_hints(member).get(part) for member in _dataclasses(hint)]
    return [deeper for deeper in [inner, *found] if deeper is not None]


def _choices(hint: Any) -> list[Any]:
    members = [member for member in _members(hint) if get_origin(member) is Literal]
    return [choice for member in members for choice in get_args(member)]


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _convert(hint: Any, value: Any) -> Any:
    """The value as `hint`, or TypeError. Only whole numbers become floats; nothing else changes."""
    members = _members(hint)
    if len(members) > 1:
        for member in members:
            try:
                return _convert(member, value)
            except TypeError:
                continue
        raise TypeError
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if value is False and "off" in choices:  # YAML reads a bare off as false
            return "off"
        if type(value) is int and str(value) in choices:  # precision: 32
            return str(value)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
    elif get_origin(hint) is list and isinstance(value, list):
        return [_convert(get_args(hint)[0], element) for element in value]
    elif get_origin(hint) is dict and isinstance(value, dict):
        inner = get_args(hint)[1]
        return {str(name): _convert(inner, element) for name, element in value.items()}
    elif hint is float and type(value) in (int, float) and value == value:
        return float(value)
    elif hint is type(None) and value is None:
        return None
    elif hint in (str, int, bool) and type(value) is hint:
        return value
    raise TypeError


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _in_words(hint: Any) -> str:
    words = []
    # Lists last: behind them nobody could tell null from one of their elements.
    for member in sorted(_members(hint), key=_is_list):
        if get_origin(member) is Literal:
            words += [str(choice) for choice in get_args(member)]
        elif _is_list(member):
            (element,) = get_args(member)
            lists = any(map(_is_list, _members(element)))
            words.append("a list in brackets" + ("" if lists else f", each {_in_words(element)}"))
        elif get_origin(member) is dict or dataclasses.is_dataclass(member):
            words.append("a mapping")
        else:
            words.append(_WORDS[member])
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
