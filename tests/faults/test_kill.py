"""F01, F03, F06, F17: whatever is killed and whenever, the same command ends in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from extract.shard import extract_shard
from features.atomic import Disk
from features.errors import Busy
from features.journal import finished
from tests.faults import world
from tests.workflow import world as workflow


def kill_and_resume(folder: Path, tmp: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill the job until `kills` kills have hit, resuming after each; every finished shard is compared."""
    whole, chance = world.contents(folder / "undisturbed"), random.Random(seed)
    done = finished = resumed = 0
    began = time.monotonic()
    world.run(folder, tmp / "timing").communicate()
    seconds = time.monotonic() - began
    store = tmp / "store0"
    while done < kills:
        process = world.run(folder, store)
        try:
            _, errors = process.communicate(timeout=chance.uniform(0.2, 1.05) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            resumed += (store / "00000.partial" / "journal.jsonl").exists()
            world.check(store, world.task(folder))
            continue
        assert process.returncode == 0, errors.decode()
        assert world.contents(store) == whole
        finished += 1
        store = tmp / f"store{finished}"
    process = world.run(folder, store)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert world.contents(store) == whole
    return finished + 1, resumed


@pytest.mark.parametrize(
    "kills", [3, pytest.param(20, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)]
)
def test_kills_at_random_moments_end_in_the_same_bytes(small_world: Path, tmp_path: Path, kills: int) -> None:
    _, resumed = kill_and_resume(small_world, tmp_path, kills=kills, seed=kills)
    assert resumed >= kills // 8, "too few kills fell into the work itself for this test to mean anything"


def test_decoding_resumes_after_the_last_finished_video(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import extract.shard as module

    decoded: list[list[int]] = []
    original = module.Decoders

    class Recording(original):  # type: ignore[misc, valid-type]
        def __init__(self, jobs: object, paths: dict[int, Path], workers: int, wanted: object) -> None:
            decoded.append(sorted(paths))
            super().__init__(jobs, paths, workers, wanted)

    class Killed(BaseException):
        pass

    def dying(self: object, batch: object, rows: object, count: list[int] = [0]) -> None:  # noqa: B006
        count[0] += 1
        if count[0] == 6:
            raise Killed
        write(self, batch, rows)

    write = module.Writer._write
    monkeypatch.setattr(module, "Decoders", Recording)
    monkeypatch.setattr(module.Writer, "_write", dying)
    job = world.task(small_world, store=tmp_path / "store")
    with pytest.raises(Killed):
        extract_shard(job, workers=2)
    monkeypatch.setattr(module.Writer, "_write", write)
    extract_shard(job, workers=2)
    assert decoded[0] == list(range(world.VIDEOS))
    assert 0 < len(decoded[1]) < world.VIDEOS and decoded[1] == list(range(decoded[1][0], world.VIDEOS))
    assert world.contents(tmp_path / "store") == world.contents(small_world / "undisturbed")


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_around_each_rename_of_publishing(small_world: Path, tmp_path: Path, survived: int) -> None:
    """The child ends hard just before rename number `survived`; the next run completes."""
    job = world.task(small_world, store=tmp_path / "store", pixels=True)
    pid = os.fork()
    if pid == 0:
        code, renames = 1, 0

        def rename(source: Path, target: Path) -> None:
            nonlocal renames
            if renames == survived:
                os._exit(9)
            renames += 1
            os.replace(source, target)

        try:
            Disk.rename = staticmethod(rename)  # type: ignore[method-assign]
            extract_shard(job, workers=1)
            code = 0
        finally:  # or there would be two that run the tests that follow
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == (9 if survived < 3 else 0)
    world.check(tmp_path / "store", job)
    extract_shard(job, workers=1)
    reference = tmp_path / "reference"
    extract_shard(world.task(small_world, store=reference, pixels=True), workers=2)
    assert world.contents(tmp_path / "store") == world.contents(reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_nobody_handles_leave_no_decoder(small_world: Path, tmp_path: Path, number: int) -> None:
    process = world.run(small_world, tmp_path / "store")
    journal = tmp_path / "store" / "00000.partial" / "journal.jsonl"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode in (-number, 0)
    assert world.leftovers(process.pid) == []
    extract_shard(world.task(small_world, store=tmp_path / "store"), workers=2)
    assert world.contents(tmp_path / "store") == world.contents(small_world / "undisturbed")


EXTRACT = ("extract", "tiny", "--extractor", "rgb", "--threads", "2")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of videos that take some seconds, for the command itself."""
    folder = workflow.build(tmp_path_factory.mktemp("signals") / "made", 6, frames=200)
    rgb = {**workflow.CONFIG["extractors"]["rgb"], "sampling": {"kind": "every", "k": 1}}
    workflow.write_config(folder, {**workflow.CONFIG, "shard_size": 6, "extractors": {"rgb": rgb}})
    return folder


@pytest.fixture(scope="module")
def whole(dataset: Path) -> dict[str, str]:
    """What the command makes that nobody disturbs."""
    folder = shutil.copytree(dataset, dataset.parent / "undisturbed", symlinks=True)
    workflow.framepool(folder, *EXTRACT)
    return workflow.contents(workflow.store(folder))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_obeys_signals(
    dataset: Path, whole: dict[str, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """F06: in the midst of a shard it unwinds, so that no lock is left either, and ends with the code that it says."""
    folder = shutil.copytree(dataset, tmp_path / "here", symlinks=True)
    features, command = folder / "work" / "tiny" / "features", [sys.executable, "-m", "pipelines", *EXTRACT]
    with subprocess.Popen(command, cwd=folder, env=workflow.environment(), start_new_session=True) as process:
        while not (before := kept(features)):
            assert process.poll() is None, "it ended before it could be disturbed"
            time.sleep(0.02)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C goes to the decoders, too
        assert process.wait(60) == code
    assert world.leftovers(process.pid) == []
    assert not list(features.rglob("*.lock")) and not list(features.glob("*/*.json"))
    assert before <= kept(features), "nothing is lost"
    workflow.framepool(folder, *EXTRACT)
    assert workflow.contents(workflow.store(folder)) == whole


def kept(features: Path) -> int:
    """Videos that the journal of the one shard in the making has finished."""
    return sum(len(finished(path)) for path in features.glob("*/00000.partial"))


def test_of_two_extractors_one_works_and_the_other_says_who(small_world: Path, tmp_path: Path) -> None:
    first = world.run(small_world, tmp_path / "store")
    lock = tmp_path / "store" / "00000.lock"
    while not lock.exists() or "process" not in lock.read_text():
        time.sleep(0.005)
    with pytest.raises(Busy, match=f"locked: .*00000.lock: got held by process {first.pid} on "):
        extract_shard(world.task(small_world, store=tmp_path / "store"), workers=1, lock_wait_s=0)
    _, errors = first.communicate()
    assert first.returncode == 0, errors.decode()
    assert world.contents(tmp_path / "store") == world.contents(small_world / "undisturbed")


@pytest.mark.slow
def test_two_extractors_at_once_end_in_one_shard(small_world: Path, tmp_path: Path) -> None:
    for trial in range(3):
        store = tmp_path / f"store{trial}"
        both = [world.run(small_world, store) for _ in range(2)]
        for process in both:
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()  # the second waits, and finds the shard made
        assert world.contents(store) == world.contents(small_world / "undisturbed")


def test_a_pool_does_not_outlive_its_parent() -> None:
    code = """
        import time
        from extract.decoders import children
        with children(2) as pool:
            list(pool.map(abs, range(2)))
            naps = [pool.submit(time.sleep, 60) for _ in range(4)]
            print("ready", flush=True)
            [nap.result() for nap in naps]
    """
    command = [sys.executable, "-c", f"if __name__ == '__main__':{code}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.kill()
    assert world.leftovers(process.pid) == []
