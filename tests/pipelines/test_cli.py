"""The command line: names, help, one line an error, exit codes, signals; and every line of the README parses."""

from __future__ import annotations

import math
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from features.errors import DamagedStore, FramepoolError, TooManyBad, UserError
from pipelines import __main__ as program
from pipelines.cli import parser
from tests.workflow import world

COMMANDS = {
    "index", "render", "extract", "gather", "train", "evaluate", "export", "stream", "score", "features", "verify",
    "models", "doctor", "assemble",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` takes signals over; here pytest keeps them."""
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        program.main(["--help"])
    printed = capsys.readouterr().out
    assert set(re.findall(r"^    (\w+) ", printed, re.M)) == COMMANDS
    for command in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            program.main([command, "--help"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["extrct", "ucf6"], "invalid choice: 'extrct'"),
        (["extract", "ucf6"], "the following arguments are required: --extractor"),
        (["extract", "ucf6", "--extractor", "rgb", "--shard", "one"], "argument --shard: expected a whole number >= 0"),
        (["extract", "ucf6", "--extractor", "rgb", "--shard", "-1"], "argument --shard: expected a whole number >= 0"),
        (["train", "ucf6", "--head", "average", "--seed", "-1"], "argument --seed: expected a whole number >= 0, got"),
        (["train", "ucf6", "--head", "average", "--seed", "²"], "argument --seed: expected a whole number >= 0, got"),
        (["train", "ucf6", "--head", "a", "--checkpoint-minutes", "-1"], "expected minutes >= 0, got '-1'"),
        (["train", "ucf6", "--head", "a", "--checkpoint-minutes", "nan"], "expected minutes >= 0, got 'nan'"),
        (["export", "run", "--check", "-1"], "argument --check: expected a whole number >= 0, got '-1'"),
        (["train", "ucf6", "--hea", "average"], "the following arguments are required: --head"),
        (["features", "ucf6", "--export", "a.h5", "--prune"], "argument --prune: not allowed with argument --export"),
        (["verify", "ucf6", "--threads", "0"], "argument --threads: "),
        (["verify", "ucf6", "--threads", "-2"], "argument --threads: "),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("mine"), 2), (TooManyBad("bad"), 3), (DamagedStore("damaged"), 1), (FramepoolError("other"), 1)],
)
def test_an_error_is_one_line_and_a_code(
    error: FramepoolError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.commands import inventory

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(inventory, "doctor", fail)
    assert program.main(["doctor"]) == code
    assert capsys.readouterr().err == f"framepool: {error}\n"


def test_every_framepool_line_of_the_readme_parses() -> None:
    lines = re.findall(r"^\.venv/bin/framepool (.*?)(?: +#.*)?$", (world.REPO / "README.md").read_text(), re.M)
    assert len(lines) > 8
    for line in lines:
        assert callable(parser().parse_args(shlex.split(line)).run), line


def test_every_framepool_line_of_the_rules_parses() -> None:
    text = "".join(path.read_text() for path in (world.REPO / "pipelines" / "rules").glob("*.smk"))
    lines = re.findall(r'"framepool ((?:[^"]|"\s+")*)"', text)
    assert len(lines) == 7
    values = {"arguments": "--extractor rgb", "threads": "2", "dataset": "tiny", "output": "results/tiny", "log": "x"}
    for line in lines:
        plain = re.sub(r'"\s+"', "", line).replace("$((10#{wildcards.shard}))", "7").split(" > ")[0]
        filled = re.sub(r"\{(?:\w+\.)?(\w+)(?::q)?\}", lambda found: values[found[1]], plain)
        parser().parse_args(shlex.split(filled.replace("--extractor", "--head") if "train" in filled else filled))


def test_sigterm_ends_with_143(tmp_path: Path) -> None:
    world.write_list(tmp_path, [world.name_of(n) for n in range(world.VIDEOS)])
    (tmp_path / "network.safetensors").write_bytes(b"weights")
    world.write_config(tmp_path, world.CONFIG)
    (tmp_path / "work" / "tiny" / "features" / "old-00000000").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "pipelines", "features", "tiny", "--prune"],  # it asks, and waits
        cwd=tmp_path,
        env=world.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and b"old-00000000" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


def test_two_signals_at_once_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would break off what closes journals and stops decoders; one that comes later is meant to."""
    now = [5.0]
    monkeypatch.setattr(program, "_obeyed", [-math.inf])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for seconds, raised in ((0.0, True), (0.4, False), (0.4, False), (0.4, True)):
        now[0] += seconds
        with pytest.raises(SystemExit, match="143") if raised else nullcontext():
            program._leave(signal.SIGTERM, None)


def test_that_a_reader_has_had_enough_is_told_by_the_exit_code_alone(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m pipelines doctor | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=world.environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_framepool_is_the_name_of_the_command() -> None:
    assert parser().prog == "framepool"
    assert 'framepool = "pipelines.__main__:main"' in (world.REPO / "pyproject.toml").read_text()


def test_the_device_of_a_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    train = ["train", "demo", "--head", "average"]
    assert parser().parse_args(train).device == "cpu"
    monkeypatch.setenv("FRAMEPOOL_DEVICE", "cuda")
    assert parser().parse_args(train).device == "cuda"
    assert parser().parse_args([*train, "--device", "cuda:1"]).device == "cuda:1"
