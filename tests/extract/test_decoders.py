"""Decoder processes: strict order, one bad video costs only itself, and nothing is left behind (F06, F08, F26)."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

import extract.decoders as module
from extract.config import Limits
from extract.decoders import Decoders, End, Row
from extract.media import probe
from extract.samples import Job, Told, _Places, parts, samples
from extract.sampling import Window, rows
from extract.samplings import Clips, Every, Fps, Segments, Uniform
from extract.span import Span, SpanFile
from features.errors import UserError
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


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: no decoder process, and nothing that it shared."""
    workers: list[module._Worker] = []
    start = module._Worker.__init__

    def recorded(self: module._Worker, jobs: list[Job], slots: int) -> None:
        start(self, jobs, slots)
        workers.append(self)

    monkeypatch.setattr(module._Worker, "__init__", recorded)
    yield
    assert [w.process.pid for w in workers if w.process.is_alive()] == []
    assert rings() == 0


def rings() -> int:
    """How many this process has open."""
    return sum("framepool" in os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.is_symlink())


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
        *rows, outcome = (item for _, item in samples(path, {0: job}))
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
    with Decoders([JOB], paths, workers) as decoders:
        found = collected(decoders)
    assert list(found) == sorted(paths)
    assert found == plain(paths)


def test_clips_are_samples_of_several_frames(paths: dict[int, Path]) -> None:
    job = replace(JOB, sampling=Clips(frames=4), frames=4)
    assert job.shape == (4, 32, 32, 3)
    with Decoders([job], paths, 1) as decoders:
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
    with Decoders([JOB], paths, 2) as decoders:
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
    with Decoders([JOB], paths, 1) as decoders:
        for item in decoders:
            if isinstance(item, End):
                found[item.video], rows = (rows, item.outcome), []
                decoders.timeout_s = 60
            else:
                rows.append((item.time_us, item.sample.tobytes()))
                if item.video == 20 and len(rows) == 3:
                    kill(decoders, 20, signal.SIGSTOP)
                    decoders.timeout_s = 0.4
    whole = plain(paths)
    assert found[20][1] == Outcome(outcome="timeout", reason="no frame for 0 s")
    del found[20], whole[20]
    assert found == whole


class Slow(Span):
    """A file that is slow to read whenever it is decoded, not when it is probed before."""

    def stream(self) -> SpanFile:
        OPENED.append(self)
        return SpanFile(self) if len(OPENED) % 2 else SlowFile(self)


class SlowFile(SpanFile):
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        time.sleep(0.2)
        return super().readinto(buffer)


OPENED: list[Slow] = []  # in a decoder process


def test_the_limit_of_time_is_one_of_silence(paths: dict[int, Path], tmp_path: Path) -> None:
    """A decoder that works for longer than that before there is a row is well."""
    path = write_video(tmp_path / "a.mkv", frames=120, codec="ffv1")
    short, long = (Slow(p, 0, p.stat().st_size, p.name) for p in (paths[10], path))
    job = replace(JOB, sampling=Uniform(n=2), limits=Limits(timeout_s=2))
    with Decoders([job], {}, 1) as decoders:
        decoders.timeout_s = 60  # while the process starts
        list(decoders.read([(1, short)]))
        decoders.timeout_s = 2
        start = time.monotonic()
        *rows, end = decoders.read([(2, long)])
    assert time.monotonic() - start > 3
    assert len(rows) == 2 and isinstance(end, End) and end.outcome.outcome == "ok"


def test_no_room_for_a_ring_is_said_before_decoding(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not said, the first sample that finds no room ends the process by SIGBUS."""

    def full(fileno: int, at: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room in memory: expected .* MB for a decoder"):
        Decoders([JOB], paths, 2).__enter__()


def test_a_ring_is_there_from_the_start(paths: dict[int, Path]) -> None:
    with Decoders([JOB], paths, 1) as decoders:
        status = os.stat(decoders._workers[0].ring.file)
        assert status.st_blocks * 512 >= status.st_size >= module.RING_BYTES // 2


NO_DEVICE = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a CUDA device")


@NO_DEVICE
def test_a_device_that_is_not_here_ends_the_job(paths: dict[int, Path]) -> None:
    with (
        pytest.raises(UserError, match=r"no cuda device that decodes: .*; set decoder: software"),
        Decoders([replace(JOB, hardware="cuda")], paths, 1) as decoders,
    ):
        list(decoders)


def test_a_decoder_with_a_device_has_no_limit_of_memory() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    module._limit_memory([JOB, replace(JOB, hardware="cuda")])
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_message_that_is_cut_by_death_is_death(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe may end inside a message: its length has come, and half of it."""
    monkeypatch.setattr(module, "RING_BYTES", 1)
    cuts = iter([OSError("got end of file during message")])
    with Decoders([JOB], paths, 1) as decoders:
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
    with pytest.raises(ZeroDivisionError), Decoders([JOB], paths, 2) as decoders:
        assert rings() > 0
        next(iter(decoders))
        raise ZeroDivisionError
    assert rings() == 0
    start, started = module._Worker, []

    def second_fails(jobs: list[Job], slots: int) -> object:
        if started:
            raise OSError("no memory for a ring")
        started.append(start(jobs, slots))
        return started[0]

    monkeypatch.setattr(module, "_Worker", second_fails)
    with pytest.raises(OSError, match="no memory for a ring"), Decoders([JOB], paths, 2):
        pass
    assert started and not started[0].process.is_alive()


@pytest.mark.parametrize("kill", ["os.kill(os.getpid(), signal.SIGKILL)", "os.killpg(0, signal.SIGKILL)"])
def test_decoders_end_with_their_parent(paths: dict[int, Path], kill: str) -> None:
    """Killed alone, or with all that it started: then nobody is left to clean up, so what they share has no name."""
    code = (
        "import os, signal, sys; from pathlib import Path; from extract.decoders import Decoders; "
        "from tests.extract.test_decoders import JOB\n"
        "if __name__ == '__main__':\n"
        "    decoders = Decoders([JOB], {1: Path(sys.argv[1]), 2: Path(sys.argv[2])}, 2).__enter__()\n"
        "    next(iter(decoders))\n"
        "    pids = [w.process.pid for w in decoders._workers]\n"
        "    named = [Path(f'/proc/{p}/maps').read_text().count('/dev/shm/') for p in (os.getpid(), *pids)]\n"
        "    print(*pids, *named, flush=True)\n"
        f"    {kill}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(paths[20]), str(paths[40])],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    assert done.returncode == -signal.SIGKILL
    *pids, own, first, second = done.stdout.split()
    assert len(pids) == 2 and (own, first, second) == ("0", "0", "0")
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(int(p)) for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_more_processes_than_videos(paths: dict[int, Path]) -> None:
    job = replace(JOB, sampling=Uniform(n=2))
    with Decoders([job], {3: paths[10]}, 4) as decoders:
        assert len(decoders._workers) == 1
        assert [type(item) for item in decoders] == [Row, Row, End]


def rows_of(path: Path, job: Job) -> list[tuple[int, np.ndarray]]:
    return [item for _, item in samples(path, {0: job}) if not isinstance(item, Outcome)]


@pytest.mark.parametrize(
    ("sampling", "frames", "stride"),
    [
        (Clips(frames=4, stride=2, hop=3), 4, 2),
        (Clips(frames=16), 16, 1),
        (Clips(frames=9, stride=3), 9, 3),
        (Fps(kind="fps", fps=3), 1, 1),
        (Fps(kind="fps", fps=3), 3, 2),
        (Every(kind="every", k=2), 2, 1),
        (Uniform(n=4), 6, 1),
        (Segments(n=5), 2, 4),
    ],
)
def test_rows_are_frames_of_the_whole_video(
    tmp_path: Path, sampling: Clips | Fps | Every | Uniform | Segments, frames: int, stride: int
) -> None:
    """Against picking the frames out of a whole decoded video; a short clip's frames come again from the start."""
    path = write_video(tmp_path / "a.mp4", frames=23)
    whole = rows_of(path, replace(JOB, sampling=Every(kind="every")))
    wanted = rows(sampling, np.array([time_us for time_us, _ in whole]), frames, stride)
    found = rows_of(path, replace(JOB, sampling=sampling, frames=frames, stride=stride))
    middles = [(min(whole[n][0] for n in row) + max(whole[n][0] for n in row)) // 2 for row in wanted]
    assert [time_us for time_us, _ in found] == middles
    for (_, image), row in zip(found, wanted, strict=True):
        assert np.array_equal(image, np.squeeze(np.stack([whole[n][1] for n in row]), 0 if len(row) == 1 else ()))


HALF_S = Fps(kind="fps", fps=2)


@pytest.mark.parametrize("at", [0.25, 0.3, 0.4])
def test_frames_chosen_by_time_are_those_of_a_stream_that_is_cut_open(tmp_path: Path, at: float) -> None:
    """Packets before the first whole picture give none; numbers would be late by as many."""
    whole = tmp_path / "whole.ts"
    with av.open(str(whole), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "50", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in np.random.default_rng(0).integers(0, 255, (200, 48, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    path, data = tmp_path / "cut.ts", whole.read_bytes()
    path.write_bytes(data[int(at * len(data)) // 188 * 188 :])
    packets = probe(path, Limits()).times_us
    shown = np.array([time_us for time_us, _ in rows_of(path, replace(JOB, sampling=Every(kind="every")))])
    assert len(shown) < len(packets)
    ticks = np.arange(packets[0], packets[-1] + 1, 500_000)
    late = [int(shown[min(np.searchsorted(shown, tick - 40_000, "right"), len(shown) - 1)]) for tick in ticks]
    found = [time_us for time_us, _ in rows_of(path, replace(JOB, sampling=HALF_S))]
    assert np.abs(np.array(found) - np.unique(late)).max() <= 40_000 and len(found) == len(set(late))
    window = replace(JOB, sampling=HALF_S, window=Window(1_000_000, 1_000_000))
    for number, part, item in parts(path, {0: window}, Told()):
        if not isinstance(item, Outcome):
            inside = item[0] - packets[0] - part * 1_000_000
            assert number == 0 and (0 <= inside < 1_000_000)


def test_a_picture_stands_for_the_packets_before_it_that_gave_none() -> None:
    places = _Places(np.array([0, 33, 34, 67, 100, 100, 133]))
    assert [list(places.of(time_us)) for time_us in (0, 34, 67, 100, 100, 133, 167)] == [
        [0],
        [1, 2],
        [3],
        [4],
        [5],
        [6],
        [7],
    ]


JOBS = [
    JOB,
    replace(JOB, sampling=Uniform(n=3), gray=True, frames=3),
    Job(Clips(frames=4), 48, 40, "bicubic", Limits(), frames=4),
]


def test_several_jobs_share_one_decoding(paths: dict[int, Path]) -> None:
    """Each gets what it would get alone, whoever else is there; a video can be wanted by some of them only."""
    wanted = {video: (0, 1, 2) if video % 20 else (2,) for video in paths}
    found: dict[int, Found] = {0: {}, 1: {}, 2: {}}
    here: dict[int, list[tuple[int, bytes]]] = {0: [], 1: [], 2: []}
    with Decoders(JOBS, paths, 2, wanted) as decoders:
        for item in decoders:
            if isinstance(item, Row):
                here[item.job].append((item.time_us, item.sample.tobytes()))
            else:
                found[item.job][item.video] = (here[item.job], item.outcome)
                here[item.job] = []
    for number, job in enumerate(JOBS):
        assert found[number] == plain({v: p for v, p in paths.items() if number in wanted[v]}, job)


def test_a_death_costs_every_job_the_same_video(paths: dict[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RING_BYTES", 1)
    ends, rows_seen = [], 0
    with Decoders(JOBS[:2], paths, 1) as decoders:
        for item in decoders:
            if isinstance(item, End):
                ends.append(item)
            elif item.video == 20:
                rows_seen += 1
                if rows_seen in (3, 8):
                    kill(decoders, 20)
    killed = Outcome(outcome="decoder_killed", reason="decoder ended 2 times (-9)")
    assert [e for e in ends if e.video == 20] == [End(20, killed, 0), End(20, killed, 1)]
    assert len(ends) == 2 * len(paths)
    assert {e.outcome.outcome for e in ends if e.video not in (20, 25)} == {"ok"}


def test_a_decoder_has_a_memory_limit(paths: dict[int, Path]) -> None:
    """F08: 16384 px wide pictures do not fit into 64 MB; the video is lost, the others are not."""
    job = replace(JOB, resize_px=12_000, limits=Limits(max_memory_mb=64))
    with Decoders([job], {1: paths[10], 2: paths[25]}, 1) as decoders:
        found = collected(decoders)
    assert found[1][1] == Outcome(outcome="decoder_killed", reason="memory limit")
    assert found[2][1].outcome == "undecodable"
