"""``framepool ...`` and ``python -m pipelines ...``: parse, run, turn every error into one line and an exit code."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from features.errors import FramepoolError
from pipelines.cli import parser

_APART_S: Final = 1.0
_obeyed = [-math.inf]  # when a signal last ended something, by the monotonic clock


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 2 the user's mistake; 3 too many videos failed; 1 any other error; 130, 143, 129 by signal; 141
    where nobody reads the output any more."""
    # Read when torch is imported. Threads that wait by spinning take the cores from decoders and neighbours; those that
    # sleep at once have to be woken for every operation of a step. So they spin 10,000 times, about 0.2 ms, then sleep.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Read at torch's first large tensor: huge pages, for faults of 4 kB each can take longer than a step's arithmetic.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    args = parser().parse_args(arguments)
    if args.follow_parent:
        from extract.decoders import die_with_parent

        die_with_parent(signal.SIGTERM, os.getppid())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        args.run(args)
    except FramepoolError as error:
        print(f"framepool: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has had enough, and what was under way is not finished
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    """Unwind, so that journals are closed and decoders stopped, then exit as the signal's default would say. Another
    within a second is the same wish and leaves the unwinding alone: `timeout` and interrupted workflows send two."""
    now = time.monotonic()
    if now - _obeyed[0] > _APART_S:
        _obeyed[0] = now
        raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
