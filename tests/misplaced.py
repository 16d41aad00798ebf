"""Values at any place of what was read from YAML or JSON.

for at in places(config): put(config, at, -1)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every node of a config."""
    if at:
        yield at
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield from places(value, (*at, key))


def put(node: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy of `node` with `value` at a place."""
    changed = copy.copy(node)
    changed[at[0]] = value if len(at) == 1 else put(node[at[0]], at[1:], value)
    return changed
