"""Dask: the rows of the local road; a killed worker costs a retry, a video that kills its worker its rows (F11)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, KilledWorker, LocalCluster

from features.errors import Busy, FramepoolError
from features.store import shards, verify_shard
from pipelines import cluster
from pipelines import plan as plans
from pipelines.scoring.machine import Machine, Options
from tests.media import write_video
from tests.scoring import world
from tests.scoring.test_score import Call, by_video, close
from tests.workflow.world import CONFIG, REPO, environment, name_of, store, write_config, write_list

pytestmark = pytest.mark.slow


@contextmanager
def process(*words: str, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A part of a cluster, in a session of its own, killed with all that it started."""
    command = [*prefix, sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
    env = {**environment(), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    one = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield one
    finally:
        with suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()


@contextmanager
def scheduler(folder: Path, prefix: tuple[str, ...] = (), host: str = "127.0.0.1") -> Iterator[str]:
    told = folder / "scheduler.json"
    words = ("--host", host, "--port", "0", "--scheduler-file", str(told), "--no-dashboard")
    with process("dask_scheduler", *words, prefix=prefix):
        for _ in range(600):
            if told.exists() and told.stat().st_size:
                break
            time.sleep(0.1)
        yield json.loads(told.read_text())["address"]


def worker(address: str, name: str, *more: str, prefix: tuple[str, ...] = ()) -> ExitStack:
    stack = ExitStack()
    words = (address, "--name", name, "--nthreads", "1", "--no-dashboard", *more)
    stack.enter_context(process("dask_worker", *words, prefix=prefix))
    return stack


@pytest.fixture
def archive(here: Path) -> Path:
    """Enough clips for several tasks: one file by many names."""
    for number in range(4):
        write_video(here / "clips" / f"{number}.mp4", frames=8, seed=number)
    names = [(f"{n:03d}.mp4", here / "clips" / f"{n % 4}.mp4") for n in range(300)]
    return world.tar_of(here / "archive.tar", names)


def run_here(archive: Path, call: Call) -> dict[str, dict[str, object]]:
    assert call(f"score {world.run_of('average')} {archive.name} --out local.jsonl --logits --threads 1")[0] == 0
    return by_video(archive.parent / "local.jsonl")


def test_local_and_dask_give_equal_rows(here: Path, archive: Path, call: Call) -> None:
    (here / "clips" / "broken.mp4").write_text("no video")
    line = f"score {world.run_of('average')} archive.tar clips --logits"
    assert call(f"{line} --out a.jsonl --threads 1")[0] == 0
    code, said = call(f"{line} --out b.jsonl --threads 2 --workers 2")
    assert code == 0 and "2 workers; dashboard: http://127.0.0.1:" in said and "305 videos scored" in said, said
    ours, theirs = (world.rows_of(here / name) for name in ("a.jsonl", "b.jsonl"))
    assert len(ours) == len(theirs) == 305
    keyed = [{f"{row['source']} {row['video']}": row for row in rows} for rows in (ours, theirs)]
    close(keyed[0], keyed[1])
    assert "0 videos scored" in call(f"{line} --out b.jsonl --workers 1")[1]


def test_extraction_on_workers_gives_the_same_bytes(here: Path, call: Call) -> None:
    before = {n: verify_shard(store(here), n).files for n in shards(store(here))}
    for path in store(here).glob("0*"):
        path.rename(here / path.name)
    code, said = call("extract tiny --extractor rgb --workers 2 --threads 2")
    assert code == 0 and said.count(" ok\n") == 4, said
    assert {n: verify_shard(store(here), n).files for n in shards(store(here))} == before


def test_a_worker_that_knows_an_older_config_reads_it_again(here: Path, call: Call) -> None:
    before = store(here)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(here))
        stack.enter_context(worker(address, "a"))
        command = f"extract tiny --extractor rgb --threads 1 --scheduler {address}"
        assert call(command)[0] == 0
        config = here / "config/tiny.yaml"
        config.write_text(config.read_text().replace("n: 4", "n: 5"))
        plans.of.cache_clear()  # as in another process
        code, said = call(command)
    assert code == 0, said
    (after,) = set(before.parent.glob("rgb-*")) - {before}
    assert shards(after) == shards(before)


@contextmanager
def deadly(here: Path, names: str, code: str) -> Iterator[str]:
    """The address of a scheduler whose workers run `code` as they start."""
    (here / "deadly.py").write_text(code)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(here))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", f"{REPO}:{here}")
            for name in names:
                stack.enter_context(worker(address, name, "--preload", str(here / "deadly.py")))
        yield address


def test_a_worker_that_dies_as_it_publishes_costs_a_retry(here: Path, call: Call) -> None:
    """At its first rename of a finished shard; the shard is there once, with the same bytes."""
    before = {n: verify_shard(store(here), n).files for n in shards(store(here))}
    shutil.rmtree(store(here))
    code = (
        "import os, features.atomic as atomic\n"
        "rename = getattr(atomic, 'kept', atomic.Disk.rename)\n"  # a worker may load this twice
        "atomic.kept = rename\n"
        "def deadly(source, target):\n"
        "    if str(target).endswith('.zarr') and not os.path.exists('died'):\n"
        "        open('died', 'w').close(); os._exit(9)\n"
        "    rename(source, target)\n"
        "atomic.Disk.rename = staticmethod(deadly)\n"
    )
    with deadly(here, "ab", code) as address:
        code_, said = call(f"extract tiny --extractor rgb --threads 1 --scheduler {address}")
    assert code_ == 0 and (here / "died").exists(), said
    assert {n: verify_shard(store(here), n).files for n in shards(store(here))} == before
    assert not list(store(here).glob("*.partial"))


def test_a_shard_whose_worker_always_dies_names_the_video(here: Path, call: Call) -> None:
    """The other shards are there; without what kills, the same command goes on and ends in the same bytes."""
    before = {n: verify_shard(store(here), n).files for n in shards(store(here))}
    place = store(here)
    shutil.rmtree(place)
    code = (
        "import os, features.atomic as atomic\n"
        "write = getattr(atomic, 'kept', atomic.Disk.write)\n"
        "atomic.kept = write\n"
        "def deadly(stream, data):\n"
        "    if str(stream.name).endswith('00001.partial/journal.jsonl') and data.count(b'outcome'):\n"
        "        open('tries', 'a').write('x'); os._exit(9)\n"
        "    write(stream, data)\n"
        "atomic.Disk.write = staticmethod(deadly)\n"
    )
    with deadly(here, "a", code) as address:
        code_, said = call(f"extract tiny --extractor rgb --threads 1 --scheduler {address}")
    assert code_ == 1 and (here / "tries").read_text() in ("xx", "xxxx"), said  # again alone, if others fell with it
    first = plans.of("tiny").shard_videos(1)[0].id
    assert (
        f"workers died: tiny: shards 1: got its worker died 2 times; the first that are not finished: {first}" in said
    )
    assert shards(place) == [0, 2]
    assert call("extract tiny --extractor rgb --threads 1")[0] == 0
    assert {n: verify_shard(store(here), n).files for n in shards(store(here))} == before


def test_a_killed_worker_over_tcp_costs_a_retry(here: Path, archive: Path, call: Call) -> None:
    expected = run_here(archive, call)
    with scheduler(here) as address, worker(address, "a"), worker(address, "b") as second:

        def kill() -> None:
            with Client(address, set_as_default=False) as watcher:  # type: ignore[no-untyped-call]
                while not killed:
                    workers = watcher.scheduler_info(n_workers=-1)["workers"]
                    place = next((a for a, w in workers.items() if w["name"] == "b"), None)
                    if place is not None and watcher.processing().get(place):
                        killed.append(len(watcher.processing()[place]))
                        second.close()
                    time.sleep(0.05)

        killed: list[int] = []
        thread = threading.Thread(target=kill)
        thread.start()
        code, said = call(
            f"score {world.run_of('average')} archive.tar --out s.jsonl --logits --threads 1 --scheduler {address}"
        )
        thread.join()
    assert code == 0 and "300 videos scored" in said, said
    assert killed[0] >= 1, "the worker had tasks when it died"
    close(expected, by_video(here / "s.jsonl"))


def test_a_video_that_kills_its_worker_is_recorded_after_two_tries(here: Path, call: Call) -> None:
    """The poison ends the process that asks for it; in a worker of Dask that is the worker."""
    clips = [write_video(here / "clips" / f"{n}.mp4", frames=8, seed=n) for n in range(5)]
    poison = here / "clips" / "poison.mp4"
    poison.write_bytes(clips[0].read_bytes())
    code = (
        "import os, extract.whole as whole\n"
        "read = getattr(whole, 'kept', whole.Extraction.read)\n"  # a worker may load this twice
        "whole.kept = read\n"
        "def deadly(self, videos):\n"
        "    def given():\n"
        "        for number, media in videos:\n"
        "            if str(media).endswith('poison.mp4'): os._exit(9)\n"
        "            yield number, media\n"
        "    return read(self, given())\n"
        "whole.Extraction.read = deadly\n"
    )
    (here / "deadly.py").write_text(code)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(here))
        for name in "ab":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", f"{REPO}:{here}")
                stack.enter_context(worker(address, name, "--preload", str(here / "deadly.py")))
        line = f"score {world.run_of('average')} clips --out s.jsonl --threads 1 --scheduler {address}"
        code_, said = call(line)
    assert code_ == 0, said
    rows = by_video(here / "s.jsonl")
    assert len(rows) == 6
    assert {video: row["outcome"] for video, row in rows.items()} == {
        **{f"{n}.mp4": "ok" for n in range(5)},
        "poison.mp4": "decoder_killed",
    }
    assert rows["poison.mp4"]["reason"] == "its worker died 2 times" and rows["poison.mp4"]["label"] is None


def test_a_scheduler_that_is_killed_loses_nothing(here: Path, archive: Path, call: Call) -> None:
    expected, run = run_here(archive, call), world.run_of("average")
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(here))
        one = stack.enter_context(worker(address, "a"))
        command = f"score {run} archive.tar --out s.jsonl --logits --threads 1 --scheduler {address}"
        words = [sys.executable, "-m", "pipelines", *command.split()]
        client = subprocess.Popen(words, cwd=here, env=environment(), stderr=subprocess.PIPE, text=True)
        with Client(address, set_as_default=False) as watcher:  # type: ignore[no-untyped-call]
            while not any(watcher.processing().values()) and client.poll() is None:
                time.sleep(0.05)
        one.close()
        stack.close()
        _, said = client.communicate(timeout=120)
    assert client.returncode == 1, said
    assert "framepool: " in said and "Traceback" not in said.split("framepool: ")[-1], said
    assert call(f"score {run} archive.tar --out s.jsonl --logits --threads 1")[0] == 0
    close(expected, by_video(here / "s.jsonl"))


def test_a_scheduler_that_is_killed_loses_no_shard(here: Path, call: Call) -> None:
    before = {n: verify_shard(store(here), n).files for n in shards(store(here))}
    place = store(here)
    shutil.rmtree(place)
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(here))
        one = stack.enter_context(worker(address, "a"))
        command = f"extract tiny --extractor rgb --threads 1 --scheduler {address}"
        words = [sys.executable, "-m", "pipelines", *command.split()]
        client = subprocess.Popen(words, cwd=here, env=environment(), stderr=subprocess.PIPE, text=True)
        while not list(place.glob("*.partial")) and client.poll() is None:
            time.sleep(0.02)
        one.close()
        stack.close()
        _, said = client.communicate(timeout=120)
    assert client.returncode == 1 and "framepool: " in said, said
    assert call("extract tiny --extractor rgb --threads 1")[0] == 0
    assert {n: verify_shard(store(here), n).files for n in shards(store(here))} == before


def namespaces() -> str:
    """Why there are none here; empty where there are."""
    test = "ip link add name v0 type veth peer name w0 && ip link set lo up"
    try:
        done = subprocess.run(
            ["unshare", "-rn", "sh", "-c", test], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no network namespaces here: {error}"
    return "" if done.returncode == 0 else f"no network namespaces here: {done.stderr.strip()}"


CUT = """
set -e
ip link set lo up
for n in 1 2; do
  ip link add name v$n type veth peer name w$n
  ip addr add 10.9.$n.1/24 dev v$n; ip link set v$n up
  unshare -n sleep 600 & eval "ns$n=$!"; sleep 0.5
  eval "ip link set w$n netns \\$ns$n"
  inside="ip link set lo up; ip addr add 10.9.$n.2/24 dev w$n; ip link set w$n up"
  eval "nsenter -t \\$ns$n -n sh -c '$inside; ip route add default via 10.9.$n.1'"
done
export DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=10s DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=15s
dask() { {python} -m distributed.cli.dask_$* --no-dashboard > /dev/null 2>&1; }
worker() { nsenter -t $1 -n {python} -m distributed.cli.dask_worker $2 --nthreads 1 --no-dashboard > /dev/null 2>&1; }
dask scheduler --host 0.0.0.0 --port 8790 & sleep 3
worker $ns1 tcp://10.9.1.1:8790 &
worker $ns2 tcp://10.9.2.1:8790 & sleep 8
( while [ ! -e s.jsonl ]; do sleep 0.2; done; sleep 5; ip link set v2 down; touch was_cut ) &
{python} -m pipelines score {run} archive.tar --out s.jsonl --logits --threads 1 --scheduler tcp://10.9.1.1:8790
"""


@pytest.mark.skipif(bool(namespaces()), reason=namespaces() or "there are")
def test_a_worker_that_is_cut_off_costs_a_retry(here: Path, archive: Path, call: Call) -> None:
    """In network namespaces: scheduler and client in one, each worker in its own; a cable is pulled."""
    expected = run_here(archive, call)
    script = CUT.replace("{python}", sys.executable).replace("{run}", str(world.run_of("average")))
    command = ["unshare", "-rn", "--kill-child", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
    done = subprocess.run(
        command, cwd=here, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (here / "was_cut").exists() and "300 videos scored" in done.stdout
    close(expected, by_video(here / "s.jsonl"))


@pytest.fixture
def inside() -> Iterator[Client]:
    """A cluster of one worker in this process."""
    place = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**place) as one, Client(one, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        yield client


def extract_held(client: Client, folder: Path, patch: pytest.MonkeyPatch, tries: int) -> tuple[list[str], list[int]]:
    """What extraction tells and the shards that were asked for, where somebody holds shard 0 for so many tries."""
    write_list(folder, [name_of(number) for number in range(9)])
    (folder / "network.safetensors").write_bytes(b"weights")
    write_config(folder, CONFIG)
    patch.chdir(folder)
    plans.of.cache_clear()
    asked: list[int] = []

    def extracted(_: object, shard: int, threads: int) -> list[str]:
        asked.append(shard)
        if shard == 0 and asked.count(0) <= tries:
            raise Busy("locked", where="00000.lock", got="held by process 7 on node3")
        return [f"shard {shard}"]

    patch.setattr("pipelines.commands.stage_one.extracted", extracted)
    lines = cluster.extract_on(client, [plans.of("tiny").store("rgb")], range(3), 1)
    return [line for of_shard in lines for line in of_shard], asked


def test_a_shard_that_somebody_holds_is_asked_for_again(
    inside: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does that was cut off: the others are made first, then it is, once it is free."""
    found, asked = extract_held(inside, tmp_path, monkeypatch, tries=2)
    assert sorted(found) == ["shard 0", "shard 1", "shard 2"] and found[-1] == "shard 0"
    assert sorted(asked[:3]) == [0, 1, 2] and asked[3:] == [0, 0]


def test_a_shard_that_fell_with_another_is_tried_alone(
    inside: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited behind the one whose worker always dies, and Dask blames both."""
    waves: list[list[int]] = []

    def in_waves(_: object, __: object, shards: Iterator[int], ___: object) -> Iterator[tuple[int, Any]]:
        waves.append(list(shards))
        for shard in waves[-1]:
            fell = shard == 1 or (shard == 2 and len(waves[-1]) > 1)
            yield shard, KilledWorker(str(shard), "a worker", 1) if fell else [f"shard {shard}"]

    monkeypatch.setattr(cluster, "in_waves", in_waves)
    found: list[str] = []
    write_list(tmp_path, [name_of(number) for number in range(9)])
    (tmp_path / "network.safetensors").write_bytes(b"weights")
    write_config(tmp_path, CONFIG)
    monkeypatch.chdir(tmp_path)
    plans.of.cache_clear()
    with pytest.raises(FramepoolError, match=r"workers died: tiny: shards 1: got its worker died 2 times"):
        for lines in cluster.extract_on(inside, [plans.of("tiny").store("rgb")], range(3), 1):
            found += lines
    assert found == ["shard 0", "shard 2"] and waves == [[0, 1, 2], [1], [2]]


def test_who_holds_a_shard_to_the_end_is_said(inside: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "HELD_S", 0.5)
    message = "somebody else is at work on them: tiny: shards 0: got locked: 00000.lock: got held by process 7 on node3"
    with pytest.raises(Busy, match=message):
        extract_held(inside, tmp_path, monkeypatch, tries=10**6)


def test_a_worker_answers_while_a_command_that_ended_waits_for_anothers_task(inside: Client, tmp_path: Path) -> None:
    cluster._register(inside, cluster.Work("framepool-a", tmp_path, None))
    with ThreadPoolExecutor(1) as pool:
        with cluster._ONE_TASK:
            leaving = pool.submit(inside.unregister_worker_plugin, "framepool-a")
            with pytest.raises(TimeoutError):
                leaving.result(timeout=2)
            answer = inside.submit(int, "7", pure=False)  # type: ignore[no-untyped-call]
            assert answer.result(timeout=20) == 7
        leaving.result(timeout=20)


def test_nobody_at_the_address(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:9", "foo"):
        code, said = call(f"score {world.run_of('average')} videos --out s.jsonl --scheduler {address}")
        assert code == 2 and f"framepool: no scheduler answers: {address}: got " in said and "Traceback" not in said


def test_a_machine_says_what_became_of_a_clip_that_was_lost(here: Path) -> None:
    from extract.sources import Clip

    machine = Machine(Options(runs=(world.run_of("average"),), threads=1))
    (row,) = machine.without(Clip("s", "v"), cluster._killed(KilledWorker("a task", "a worker", 1))).rows
    assert (row["outcome"], row["reason"], row["labels"]) == ("decoder_killed", "its worker died 2 times", [])
