"""Which videos are scored already: 16 bytes each, so that a million of them take 16 MB.

seen = Seen(); seen.add(clip.key); clip.key in seen
"""

from __future__ import annotations

from typing import Final

import numpy as np

KEY_BYTES: Final = 16
_RECENT: Final = 1 << 14  # kept apart, for each joins the others only by sorting


class Seen:
    """A set of keys of 16 bytes, from their concatenation."""

    def __init__(self, keys: bytes = b"") -> None:
        self._recent: set[bytes] = set()
        self._high, self._low = np.zeros((2, 0), np.uint64)  # halves of the keys, sorted by the first
        self._join(keys)

    def __len__(self) -> int:
        return len(self._high) + len(self._recent)

    def __contains__(self, key: bytes) -> bool:
        if key in self._recent:
            return True
        high, low = np.frombuffer(key, np.uint64)
        first, last = (int(np.searchsorted(self._high, high, side)) for side in ("left", "right"))
        return bool((self._low[first:last] == low).any())

    def add(self, key: bytes) -> None:
        """One that is not in it."""
        self._recent.add(key)
        if len(self._recent) >= _RECENT:
            self._join(b"".join(self._recent))
            self._recent = set()

    def _join(self, keys: bytes) -> None:
        high, low = np.frombuffer(keys, np.uint64).reshape(-1, 2).T
        high, low = np.concatenate([self._high, high]), np.concatenate([self._low, low])
        order = np.argsort(high, kind="stable")
        self._high, self._low = high[order], low[order]
