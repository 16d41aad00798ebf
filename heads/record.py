"""What a run.json says, as far as it is read again: a record from elsewhere, or a damaged one, is refused at the door.

What a run was given as provenance may be missing; what is there has these types.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class _Said(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Facts(_Said):
    weights_sha256: str = ""
    int8: str = ""
    transform: dict[str, Any] = {}


class _Store(_Said):
    store: str
    digest: str
    facts: _Facts


class _Extractor(_Said):
    extractor: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    weights: str | None
    source: _Extractor | None


class _Record(_Said):
    kind: str = ""
    head: str = ""
    dataset: str = ""
    split: str = ""
    seed: int = 0
    digest: str = ""
    steps: str = ""
    config: dict[str, Any] = {}
    classes: list[str] = []
    factors: list[str] = []
    multi_label: bool = False
    shapes: dict[str, list[int]] = {}
    stores: dict[str, _Store] = {}
    extractors: dict[str, _Extractor] = {}
    members: dict[str, str] = {}


def checked(record: Any) -> dict[str, Any]:
    """`record` as it is. Raises `ValueError` with the first place that is not as it should be."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    return record
