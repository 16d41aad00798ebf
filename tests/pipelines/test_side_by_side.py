"""Trainings in children: results, errors, deaths, and that nobody is left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from features.errors import FramepoolError, UserError
from pipelines.side_by_side import side_by_side


def work(job: int) -> int:
    if job == 2:
        raise UserError("wrong", where="here", got=job)
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * job


@pytest.mark.parametrize("workers", [1, 3])
def test_each_job_has_its_end(workers: int) -> None:
    jobs = [1, 2, 4] if workers == 1 else [1, 2, 3, 4]
    found = dict(side_by_side(jobs, work, workers))
    assert found[1] == 10 and found[4] == 40
    assert isinstance(found[2], FramepoolError) and str(found[2]) == "wrong: here: got 2"
    if workers > 1:
        assert "a training ended without a word: got exit code -9" in str(found[3])


def test_children_see_what_the_parent_read_and_keep_their_own_chance() -> None:
    rows = torch.arange(1000.0)

    def own(job: int) -> tuple[int, float, int]:
        torch.manual_seed(job)
        return os.getpid(), float(rows.sum() + torch.rand(1)), torch.get_num_threads()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = dict(side_by_side([1, 2], own, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert len({os.getpid(), *(pid for pid, _, _ in found.values())}) == 3  # type: ignore[union-attr]
    assert found[1][1] != found[2][1]  # type: ignore[index]
    assert {threads for _, _, threads in found.values()} == {1}  # type: ignore[misc, union-attr]


def test_whoever_stops_listening_ends_the_children() -> None:
    def slow(job: int) -> int:
        if job:
            time.sleep(600)
        return os.getpid()

    listening = side_by_side([0, 1], slow, 2)
    assert next(listening)[0] == 0
    started = time.monotonic()
    listening.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 60


def test_a_single_one_has_its_child_too() -> None:
    """Those that come after it could not be forked from a process in which it had trained."""
    assert dict(side_by_side([1], lambda _: os.getpid(), 2))[1] != os.getpid()
    assert dict(side_by_side([1], lambda _: os.getpid(), 1))[1] == os.getpid()
