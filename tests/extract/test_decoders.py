"""Decoder processes: strict order, one bad video costs only itself, and nothing is left behind (F06, F08, F26)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import extract.decoders as module
from extract.config import Clips, Every, Fps, Limits, Uniform
from extract.decoders import Decoders, End, Job, Row, samples
from extract.sampling import rows
from features.outcome import Outcome
from tests.media import write_video

JOB = Job(Every(kind="every"), 32, 32, "bilinear", Limits())
FRAMES = (9, 40, 5, 60, 7)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Videos 10, 20, ... of several lengths; number 25 is no video."""
    folder = tmp_path_factory.mktemp("videos")
    found = {
        10 * (n + 1): write_video(folder / f"{n}.mp4", frames=count, fps=25, seed=n) for n, count in enumerate(FRAMES)
    }
    (folder / "text.mp4").write_text("no video")
    return {60: found.pop(50), 25: folder / "text.mp4", **found}


def alive(ring: str) -> bool:
    return (Path("/dev/shm") / ring.lstrip("/")).exists()


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no decoder process and no shared memory of one."""
    workers: list[module._Worker] = []
    start = module._Worker.__init__

    def recorded(self: module._Worker, job: Job, slots: int) -> None:
        start(self, job, slots)
        workers.append(self)

    monkeypatch.setattr(module._Worker, "__init__", recorded)
    yield
    assert [w.process.pid for w in workers if w.process.is_alive()] == []
    assert [w.ring.name for w in workers if alive(w.ring.name)] == []


Found = dict[int, tuple[list[tuple[int, bytes]], Outcome]]


def collected(decoders: Decoders) -> Found:
    """Rows (copied) and outcome of each video, in the order in which they ended."""
    found: Found = {}
    rows: list[tuple[int, bytes]] = []
    for item in decoders:
        if isinstance(item, Row):
            rows.append((item.time_us, item.sample.tobytes()))
        else:
            found[item.video], rows = (rows, item.outcome), []
    return found


def plain(paths: dict[int, Path], job: Job = JOB) -> Found:
    """The same, decoded here, one video after the other."""
    found: Found = {}
    for video, path in sorted(paths.items()):
        *rows, outcome = samples(path, job)
        assert isinstance(outcome, Outcome)
        found[video] = ([(t, np.ascontiguousarray(s).tobytes()) for t, s in rows], outcome)  # type: ignore[misc]
    return found


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("ring_bytes", [1, 24 << 20], ids=["two-slots", "all"])
def test_videos_come_in_order_whoever_decodes_them(
    paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch, workers: int, ring_bytes: int
) -> None:
    """With two slots in a ring every video has more rows than slots, and nobody waits for ever."""
    monkeypatch.setattr(module, "RING_BYTES", ring_bytes)
    with Decoders(JOB, paths, workers) as decoders:
        found = collected(decoders)
    assert list(found) == sorted(paths)
    assert found == plain(paths)


def test_clips_are_samples_of_several_frames(paths: dict[int, Path]) -> None:
    job = replace(JOB, sampling=Clips(kind="clips", frames=4))
    assert job.shape == (4, 32, 32, 3)
    with Decoders(job, paths, 1) as decoders:
        assert collected(decoders) == plain(paths, job)


def kill(decoders: Decoders, video: int, number: int = signal.SIGKILL) -> None:
    worker = next(w for w in decoders._workers if w.videos and w.videos[0] == video)
    assert worker.process.pid is not None
    os.kill(worker.process.pid, number)
    if number == signal.SIGKILL:
        worker.process.join()


def collected_while_killing(paths: dict[int, Path], video: int, at: tuple[int, ...]) -> Found:
    """As `collected`; the decoder of `video` is killed as soon as row n of it has come, for each n of `at`."""
    found: Found = {}
    rows: list[tuple[int, bytes]] = []
    with Decoders(JOB, paths, 2) as decoders:
        for item in decoders:
            if isinstance(item, End):
                found[item.video], rows = (rows, item.outcome), []
                continue
            rows.append((item.time_us, item.sample.tobytes()))
            if item.video == video and len(rows) in at:
                kill(decoders, video)
    return found


def test_a_decoder_that_dies_once_costs_nothing(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_BYTES", 1)
    assert collected_while_killing(paths, 20, (3,)) == plain(paths)


def test_a_decoder_that_dies_twice_costs_its_video(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_BYTES", 1)
    found, whole = collected_while_killing(paths, 20, (3, 8)), plain(paths)
    assert found[20][1] == Outcome(outcome="decoder_killed", reason="decoder ended 2 times (-9)")
    del found[20], whole[20]
    assert found == whole


def test_a_decoder_that_hangs_costs_its_video(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_BYTES", 1)
    found: Found = {}
    rows: list[tuple[int, bytes]] = []
    with Decoders(JOB, paths, 1) as decoders:
        for item in decoders:
            if isinstance(item, End):
                found[item.video], rows = (rows, item.outcome), []
                decoders.job = JOB
            else:
                rows.append((item.time_us, item.sample.tobytes()))
                if item.video == 20 and len(rows) == 3:
                    kill(decoders, 20, signal.SIGSTOP)
                    decoders.job = replace(JOB, limits=Limits(timeout_s=0.4))
    whole = plain(paths)
    assert found[20][1] == Outcome(outcome="timeout", reason="no frame for 0 s")
    del found[20], whole[20]
    assert found == whole


def test_a_message_that_is_cut_by_death_is_death(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe may end inside a message: its length has come, and half of it."""
    monkeypatch.setattr(module, "RING_BYTES", 1)
    cuts = iter([OSError("got end of file during message")])
    with Decoders(JOB, paths, 1) as decoders:
        worker = decoders._workers[0]
        receive = worker.pipe.recv

        class Cut:
            def recv(self) -> object:
                for error in cuts:
                    kill(decoders, 10)
                    raise error
                return receive()

            def __getattr__(self, name: str) -> object:
                return getattr(pipe, name)

        pipe, worker.pipe = worker.pipe, Cut()  # type: ignore[assignment]
        assert collected(decoders) == plain(paths)


def test_nothing_is_left_after_an_error_anywhere(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), Decoders(JOB, paths, 2) as decoders:
        rings = [w.ring.name for w in decoders._workers]
        next(iter(decoders))
        raise ZeroDivisionError
    assert rings and not any(alive(ring) for ring in rings)
    start, started = module._Worker, []

    def second_fails(job: Job, slots: int) -> object:
        if started:
            raise OSError("no memory for a ring")
        started.append(start(job, slots))
        return started[0]

    monkeypatch.setattr(module, "_Worker", second_fails)
    with pytest.raises(OSError, match="no memory for a ring"), Decoders(JOB, paths, 2):
        pass
    assert started and not started[0].process.is_alive()


def test_decoders_end_with_their_parent(paths: dict[int, Path]) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from extract.decoders import Decoders; "
        "from tests.extract.test_decoders import JOB\n"
        "if __name__ == '__main__':\n"
        "    decoders = Decoders(JOB, {1: Path(sys.argv[1]), 2: Path(sys.argv[2])}, 2).__enter__()\n"
        "    next(iter(decoders))\n"
        "    found = decoders._workers\n"
        "    print(*[w.process.pid for w in found], *[w.ring.name for w in found], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(paths[20]), str(paths[40])],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    *pids, first, second = done.stdout.split()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(int(p)) for p in pids) or alive(first) or alive(second):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_more_processes_than_videos(paths: dict[int, Path]) -> None:
    job = replace(JOB, sampling=Uniform(n=2))
    with Decoders(job, {3: paths[10]}, 4) as decoders:
        assert len(decoders._workers) == 1
        assert [type(item) for item in decoders] == [Row, Row, End]


@pytest.mark.parametrize(
    "sampling",
    [
        Clips(kind="clips", frames=4, stride=2, hop=3),
        Clips(kind="clips", frames=16),
        Clips(kind="clips", frames=9, stride=3),
        Fps(kind="fps", fps=3),
    ],
)
def test_rows_that_leave_as_their_frames_come(tmp_path: Path, sampling: Clips | Fps) -> None:
    """Against picking the frames out of a whole decoded video; a short clip's frames come again from the start."""
    path = write_video(tmp_path / "a.mp4", frames=23)
    whole = [
        item for item in samples(path, replace(JOB, sampling=Every(kind="every"))) if not isinstance(item, Outcome)
    ]
    wanted = rows(sampling, np.array([time_us for time_us, _ in whole]))
    found = [item for item in samples(path, replace(JOB, sampling=sampling)) if not isinstance(item, Outcome)]
    assert [time_us for time_us, _ in found] == [whole[row[0]][0] for row in wanted]
    for (_, image), row in zip(found, wanted, strict=True):
        assert np.array_equal(image, np.squeeze(np.stack([whole[n][1] for n in row]), 0 if len(row) == 1 else ()))
