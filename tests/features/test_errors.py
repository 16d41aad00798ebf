"""One line that says what, where, expected, got, and what to do; nothing in a name can break it (F48)."""

from __future__ import annotations

import pickle

import pytest

from features.errors import Busy, DamagedStore, FramepoolError, TooManyBad, UserError, nearest, printable


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "what"),
        ({"where": "a.csv:3"}, "what: a.csv:3"),
        ({"expected": 1, "got": 0}, "what: expected 1, got 0"),
        ({"got": 2}, "what: got 2"),
        ({"fix": "do this"}, "what; do this"),
        ({"where": "x", "expected": 1, "got": 2, "fix": "y"}, "what: x: expected 1, got 2; y"),
    ],
)
def test_parts_that_are_empty_are_left_out(fields: dict[str, object], text: str) -> None:
    assert str(FramepoolError("what", **fields)) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code"), [(FramepoolError, 1), (DamagedStore, 1), (Busy, 1), (UserError, 2), (TooManyBad, 3)]
)
def test_each_error_has_its_exit_code_and_survives_a_process_border(error: type[FramepoolError], code: int) -> None:
    made = error("what", where="here", got=0)
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), str(again), again.where, again.exit_code) == (error, "what: here: got 0", "here", code)


def test_control_characters_are_escaped() -> None:
    name = "a\x1b[31m\nb\u202ec\u0007.mp4"
    text = str(UserError("no such video", where=name, expected=name, got=name))
    assert text.isprintable() and "\\x1b[31m\\nb\\u202ec\\x07" in text
    assert printable("naïve – 視頻 \\ ok") == "naïve – 視頻 \\ ok"
    assert printable(b"\xff".decode(errors="surrogateescape")).isprintable()


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("rbg", ["rgb", "flow"], "did you mean 'rgb'?"),
        ("RGB", ["rgb"], "did you mean 'rgb'?"),
        ("zzz", ["rgb", "flow"], "known: rgb, flow"),
        ("zzz", [f"a{n}" for n in range(31)], ""),
        ("zzz", [], ""),
    ],
)
def test_the_nearest_name(name: str, known: list[str], text: str) -> None:
    assert nearest(name, known) == text
