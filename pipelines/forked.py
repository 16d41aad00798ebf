"""A function in a forked child: it sees what its parent has read, dies with it, and its answer is waited for.

child = Forked(lambda: 6 * 7, "a product")
child.answer()      # 42, or the FramepoolError that it ended with
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from extract.decoders import die_with_parent
from features.errors import FramepoolError

R = TypeVar("R")


class Forked(Generic[R]):
    """`work` in a child; what it is, and what to do when it was killed, an error says. `pipe` is ready when the answer
    is there."""

    def __init__(self, work: Callable[[], R], what: str, fix: str = "run it again") -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_child, args=(work, theirs, os.getpid()))
        self._what, self._fix = what, fix
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the other threads of the parent wait for work
            self._process.start()
        theirs.close()

    def answer(self) -> R | FramepoolError:
        """What `work` returned, or its error; that it was killed counts as one. To be asked once."""
        with self.pipe:
            try:
                found: R | FramepoolError = self.pipe.recv()
            except EOFError:
                self._process.join()
                got = f"exit code {self._process.exitcode}"
                found = FramepoolError(f"{self._what} ended without a word", got=got, fix=self._fix)
        self._process.join()
        return found

    def end(self) -> None:
        """Ask the child to end; it may have done so."""
        self._process.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()


def tried(work: Callable[[], R]) -> R | FramepoolError:
    """What `work` returns, or its error."""
    try:
        return work()
    except FramepoolError as error:
        return error


def _child(work: Callable[[], R], answer: Connection, parent: int) -> None:
    die_with_parent(signal.SIGTERM, parent)
    answer.send(tried(work))
