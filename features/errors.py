"""The one error family: every message says what, where, expected, got, and what to do.

The command line prints ``str(error)`` on one line and exits with ``error.exit_code``:
2 for the user's mistakes, 3 when too many videos failed, 1 otherwise.

    raise UserError("unknown key", where="config/demo.yaml: $.extractors", got="rbg", fix=nearest("rbg", ["rgb"]))
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final


def printable(text: object) -> str:
    """`text` with every control character escaped, so that a file name cannot drive the terminal or split a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text))


_MOST_SHOWN: Final = 30


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known name nearest to `name`; else the known names, or nothing."""
    names = list(known)
    if found := near(name, names):
        return f"did you mean {found!r}?"
    return f"known: {', '.join(names)}" if 0 < len(names) <= _MOST_SHOWN else ""


def near(name: str, known: Iterable[str]) -> str:
    """The known name nearest to `name`, or nothing."""
    folded = {n.casefold(): n for n in reversed(list(known))}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else ""


class FramepoolError(Exception):
    """``what: where: expected E, got G; fix``, each part left out when it is empty."""

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = "", expected: object = "", got: object = "", fix: str = ""
    ) -> None:
        parts = [what]
        if where != "":
            parts.append(printable(where))
        middle = [f"{word} {printable(value)}" for word, value in (("expected", expected), ("got", got)) if value != ""]
        if middle:
            parts.append(", ".join(middle))
        self.what, self.where = what, str(where)
        super().__init__(": ".join(parts) + (f"; {fix}" if fix else ""))


class UserError(FramepoolError):
    """A mistake in a config, a list or an argument. Exit code 2."""

    exit_code = 2


class DamagedStore(FramepoolError):
    """Bytes on disk that do not match their manifest. Exit code 1."""


class Busy(FramepoolError):
    """Somebody else holds the lock. Exit code 1."""


class TooManyBad(FramepoolError):
    """More videos failed than the config's `max_bad_share` allows. Exit code 3."""

    exit_code = 3
