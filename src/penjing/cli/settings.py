"""A stage's settings as rows that people read: name, type, default and the sentence under the field."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel


@dataclass(frozen=True)
class Setting:
    """One key of a stage's settings; keys of nested settings have dotted names, those of lists `name[].key`."""

    name: str
    type: str
    required: bool
    default: str
    about: str


def settings_of(kind: type[BaseModel], prefix: str = "") -> list[Setting]:
    """Every key of `kind` in the order it is declared, nested settings after the key that holds them."""
    found: list[Setting] = []
    for key, field in kind.model_fields.items():
        name = prefix + key
        required = field.is_required()
        default = "" if required else shown(field.get_default(call_default_factory=True))
        about = " ".join((field.description or "").split())
        found.append(Setting(name, type_name(field.annotation), required, default, about))
        for inner, many in _nested(field.annotation):
            found += settings_of(inner, f"{name}{'[]' if many else ''}.")
    return found


def shown(value: Any) -> str:
    """A default as it would stand in a recipe."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, BaseModel):
        return "{}" if not value.model_fields_set else str(value.model_dump(exclude_defaults=True))
    return str(list(value)) if isinstance(value, tuple) else str(value)


def type_name(annotation: Any) -> str:
    """A type the way users write values: `whole number`, `one of a, b`, `list of text`."""
    simple = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "none", Any: "anything"}
    if annotation in simple:
        return simple[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(inner[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(item) for item in inner))
    if origin in (list, tuple, set, frozenset):
        return "list of " + type_name(inner[0]) if inner else "list"
    if origin is dict:
        return f"map of {type_name(inner[0])} to {type_name(inner[1])}"
    if isinstance(annotation, type):
        return "settings" if issubclass(annotation, BaseModel) else annotation.__name__.lower()
    return str(annotation)


def _nested(annotation: Any) -> list[tuple[type[BaseModel], bool]]:
    """Settings classes inside a type, each with whether it stands in a list or map."""
    if isinstance(annotation, type) and not typing.get_origin(annotation):
        return [(annotation, False)] if issubclass(annotation, BaseModel) else []
    many = typing.get_origin(annotation) in (list, tuple, dict)
    return [(kind, many or inner) for item in typing.get_args(annotation) if item is not Literal
            for kind, inner in (_nested(item) if not isinstance(item, str) else [])]
