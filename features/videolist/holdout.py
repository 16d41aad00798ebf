"""A test side for videos that come without one."""

from __future__ import annotations

import hashlib

from features.videolist.base import TEST, TRAIN


def side(key: str, test_share: float) -> str:
    """Train or test, by a hash of a video's group (or id): a group is on one side, and stays there as lists grow."""
    drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return TEST if drawn < test_share else TRAIN
