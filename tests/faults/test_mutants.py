"""500 seeded mutants of made and real clips: nothing crashes or hangs, every outcome is of the closed list (F25).

Mutants are bit flips, flips near the headers, cuts, splices and zeroed blocks. They run in child processes, a batch in
each, so that a crash of a library is seen, and on the road that `ROAD` names: a function of a path to an `Outcome`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from features.outcome import NAMES
from tests.hostile import sound, write
from tests.media import SHARED

ROOT = Path(__file__).resolve().parents[2]
ROAD = "tests.hostile:seen_and_heard"
MUTANTS, BATCH = 500, 50
LIMIT_S = 20.0  # for one mutant; the clips decode in some hundredths of a second
PEAK_MB = 2100  # the memory limit of a decoder process: a table of an MP4 can promise more samples than fit
CODE = """
import importlib, sys
from pathlib import Path
from tests.hostile import tell
module, name = sys.argv[1].split(":")
tell(sys.argv[2:], getattr(importlib.import_module(module), name))
"""

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def flips(data: Bytes, among: int, generator: np.random.Generator) -> Bytes:
    """One to 100 bits among the first `among` bytes."""
    at = generator.integers(0, among, int(generator.integers(1, 100)))
    out = data.copy()
    out[at] ^= 1 << generator.integers(0, 8, len(at)).astype(np.uint8)
    return out


def anywhere(data: Bytes, generator: np.random.Generator) -> Bytes:
    return flips(data, len(data), generator)


def headers(data: Bytes, generator: np.random.Generator) -> Bytes:
    """At one end of the file, where containers keep what they say of themselves: a few bits."""
    near = min(1500, len(data))
    if generator.random() < 0.5:
        return flips(data[::-1], near, generator)[::-1]
    return flips(data, near, generator)


def cut(data: Bytes, generator: np.random.Generator) -> Bytes:
    """From the end, or a hole in the middle."""
    a, b = sorted(generator.integers(0, len(data), 2))
    return data[:b] if generator.random() < 0.5 else np.concatenate([data[:a], data[b:]])


def splice(data: Bytes, generator: np.random.Generator) -> Bytes:
    """A stretch of the file over another one."""
    length = int(generator.integers(1, len(data) // 2))
    source, target = generator.integers(0, len(data) - length, 2)
    out = data.copy()
    out[target : target + length] = data[source : source + length]
    return out


def zeros(data: Bytes, generator: np.random.Generator) -> Bytes:
    """A block of nothing."""
    length = int(generator.integers(1, len(data) // 4))
    at = int(generator.integers(0, len(data) - length))
    out = data.copy()
    out[at : at + length] = 0
    return out


KINDS: tuple[Callable[[Bytes, np.random.Generator], Bytes], ...] = (anywhere, headers, cut, splice, zeros)


def clips(folder: Path) -> list[Path]:
    """Five containers and codecs, and five more where the shared ones are there."""
    made = [
        write(folder / "a.mp4", frames=30, options={"preset": "medium", "bf": "2", "g": "10"}),
        write(folder / "b.webm", "libvpx-vp9", frames=20),
        write(folder / "c.avi", "mpeg4", frames=30),
        write(folder / "d.ts", "mpeg2video", frames=30),
        sound(folder / "e.mp3", cover=b"\xff\xd8\xff" + bytes(100)),
    ]
    real = ["derived/h264_aac_ref.mp4", "derived/vp9_opus.webm", "derived/mjpeg.avi", "derived/gray.mkv"]
    real.append("real/h265_video.mp4")
    return made + [SHARED / "odd" / name for name in real if (SHARED / "odd").is_dir()]


def mutants(folder: Path, sources: list[Path], count: int, seed: int) -> list[Path]:
    """`count` files that differ from `sources`, in turn of each kind; the same for the same seed."""
    out = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        source, kind = sources[number % len(sources)], KINDS[number // len(sources) % len(KINDS)]
        data = np.frombuffer(source.read_bytes(), np.uint8)
        path = folder / f"{number:03d}_{kind.__name__}{source.suffix}"
        path.write_bytes(kind(data, generator).tobytes())
        out.append(path)
    return out


def ends(paths: list[Path]) -> list[tuple[str, str, float, int]]:
    """(name, outcome, seconds, peak MB) of each, from one child process that must live to tell of all."""
    command = [sys.executable, "-c", CODE, ROAD, *map(str, paths)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            told, errors = child.communicate(timeout=LIMIT_S + 2 * len(paths))
        except subprocess.TimeoutExpired:
            child.kill()
            told, errors = child.communicate()
            errors = "hangs"
    lines = [json.loads(line) for line in told.splitlines()]
    if len(lines) < len(paths):
        pytest.fail(f"{paths[len(lines)].name}: exit code {child.returncode}, {errors[-2000:]}")
    return [(Path(path).name, *rest) for path, *rest in lines]


def survive(folder: Path, sources: list[Path], count: int) -> Counter[str]:
    """How `count` mutants end. Fails at the first that breaks a promise."""
    paths = mutants(folder, sources, count, seed=1)
    counts = Counter[str]()
    for at in range(0, count, BATCH):
        for name, outcome, seconds, peak_mb in ends(paths[at : at + BATCH]):
            assert outcome in NAMES, f"{name}: {outcome}"
            assert seconds < LIMIT_S and peak_mb < PEAK_MB, f"{name}: {seconds:.1f} s, {peak_mb} MB"
            counts[outcome] += 1
    return counts


def test_a_child_that_dies_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.test_mutants.ROAD", "os:kill")  # os.kill of a path: a TypeError ends the child
    (tmp_path / "x.mp4").write_bytes(b"x")
    with pytest.raises(pytest.fail.Exception, match=r"^x\.mp4: exit code 1, "):
        ends([tmp_path / "x.mp4"])


def test_a_few_mutants(tmp_path: Path) -> None:
    folder = tmp_path / "mutants"
    folder.mkdir()
    counts = survive(folder, clips(tmp_path), 50)
    assert counts.total() == 50 and len(counts) > 1


@pytest.mark.slow
def test_f25_mutants(tmp_path: Path) -> None:
    folder = tmp_path / "mutants"
    folder.mkdir()
    counts = survive(folder, clips(tmp_path), MUTANTS)
    assert counts.total() == MUTANTS
    assert min(counts["ok"], counts["partial"], counts["undecodable"]) > 10, counts  # the mutants bite, and not always
