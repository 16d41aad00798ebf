"""What became of each video: exactly one outcome of a closed list, with a reason.

Outcome(outcome="partial", reason="57 of 100 frames decoded", rows=25, decoded=57, promised=100)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

Name = Literal[
    "ok",
    "partial",  # fewer frames decoded than the file promises; the rows that there are stay
    "no_video",  # no picture track, for a visual extractor
    "no_audio",  # no sound track, or none that decodes
    "too_short",  # less than one sample
    "undecodable",  # missing, not media, empty, broken header, zero frames, or so damaged that no row is left
    "refused",  # format not whitelisted, names other files
    "too_large",  # pixels, frames or duration over the limit
    "timeout",
    "decoder_killed",  # crash or memory limit, twice
    "non_finite",  # the network gave NaN or inf, or float16 would overflow
]
NAMES: Final[tuple[Name, ...]] = get_args(Name)
WITH_ROWS: Final = frozenset({"ok", "partial"})
FAILED: Final = frozenset(NAMES) - WITH_ROWS - {"no_audio", "too_short"}  # these count towards max_bad_share


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One video's end. `rows` is what the store holds of it; `decoded` and `promised` count frames (0: not known)."""

    outcome: Name
    reason: str = ""
    rows: int = 0
    decoded: int = 0
    promised: int = 0

    def __post_init__(self) -> None:
        if self.outcome not in NAMES:
            raise ValueError(f"outcome {self.outcome!r} is not one of {NAMES}")
        if self.rows and self.outcome not in WITH_ROWS:
            raise ValueError(f"an outcome {self.outcome!r} has no rows, got {self.rows}")

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return dict(vars(self))  # one level deep: `asdict` takes ten times as long


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many videos ended in each outcome that occurs, in the order of the closed list."""
    found = Counter(o.outcome for o in outcomes)
    return {name: found[name] for name in NAMES if found[name]}
