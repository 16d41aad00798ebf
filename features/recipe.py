"""Configs, and the recipes and digests made of them.

A *recipe* is everything that can change an extractor's (or a run's) numbers, as plain JSON; its *digest* names the
store or the run, so a changed recipe is a new store and never a silent mix.

    digest({"kind": "rgb", "sampling": {"kind": "uniform", "n": 25}})[:8]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from features.errors import UserError, nearest


class Config(BaseModel):
    """Base of every component's config: frozen, keyword-only, finite numbers; an unknown key is an error.

    Subclasses of one family are told apart by their literal field `kind` (or `format`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: object, where: str, at: str = "$") -> Self:
        """Validate `data`, which stands `at` a place of a file; on failure a `UserError` that says ``where: $.path:
        expected ..., got ...``."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _user_error(cls, data, error, where, at) from None

    def recipe(self) -> dict[str, Any]:
        """This config as plain JSON, defaults filled in."""
        return self.model_dump(mode="json")


def digest(recipe: Mapping[str, Any] | Iterable[Any]) -> str:
    """sha256 (hex) of the canonical JSON of `recipe`: keys sorted, no spaces, no NaN."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _user_error(cls: type[BaseModel], data: object, error: ValidationError, where: str, at: str) -> UserError:
    errors = error.errors(include_url=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    place, keys = at, _known_keys(cls, first["loc"][:-1], data)
    node: Any = data
    for depth, part in enumerate(first["loc"], 1):
        known = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list) else ()
        inside = part in known
        if not inside and depth < len(first["loc"]):
            continue  # pydantic also lists the union member it tried: that is no place in the user's file
        if not inside and first["type"] not in ("missing", "extra_forbidden"):
            continue
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
        node = node[part] if inside else None
    if first["type"] == "extra_forbidden":
        return UserError("unknown key", where=f"{where}: {place}", fix=nearest(str(first["loc"][-1]), keys))
    got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
    if first["type"].startswith("union_tag"):  # the place is the key that tells the members of a family apart
        place += f".{str(first['ctx']['discriminator']).strip(chr(39))}"
        got = repr(first["ctx"]["tag"]) if "tag" in first["ctx"] else "nothing"
    elif isinstance(first["input"], Mapping) and first["type"] == "value_error":
        got = ""  # the message says what is wrong in it
    return UserError("invalid config", where=f"{where}: {place}", expected=_expected(first), got=got)


_PLAIN = {
    "float": "a number",
    "finite": "a finite number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "dict": "keys and values",
    "model": "keys and values",
}


def _expected(error: Any) -> str:
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "missing":
        return "a value"
    number = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}.get(kind)
    if number:
        bound = context.get({"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt"}.get(kind, "le"))
        return f"a number {number} {bound}"
    if kind == "too_short":
        return f"at least {context['min_length']}"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind.startswith("union_tag"):
        return f"one of {context['expected_tags']}" if "expected_tags" in context else "a value"
    if kind.rpartition("_")[2] in ("type", "parsing", "number", "float") and kind.partition("_")[0] in _PLAIN:
        return _PLAIN[kind.partition("_")[0]]
    message: str = error["msg"]
    for prefix in ("Value error, ", "Input should be "):
        message = message.removeprefix(prefix)
    return message[:1].lower() + message[1:]


def _known_keys(cls: type[BaseModel], loc: tuple[Any, ...], data: object) -> list[str]:
    """Field names of the model at `loc`, walking the annotations by name; empty when the walk is ambiguous."""
    models: list[type[BaseModel]] = [cls]
    for part in loc:
        found = [
            m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)
        ]
        tagged = [m for m in models if part in _tags(m)]
        models = found or tagged or models
    return [name for model in models for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models(arg)]


def _tags(model: type[BaseModel]) -> list[str]:
    fields = [model.model_fields[name] for name in ("kind", "format") if name in model.model_fields]
    return [str(tag) for field in fields for tag in getattr(field.annotation, "__args__", ())]
