"""What the documents tell people to type is what the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines.cli import parser
from pipelines.config import CONFIGS, datasets, load
from tests.features import made

REPO = Path(__file__).parents[1]
DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def commands() -> list[str]:
    lines = [line for path in DOCUMENTS for block in blocks(path, "sh") for line in block.splitlines()]
    return [line.split("framepool ", 1)[1] for line in lines if "framepool " in line]


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_documents_parses(command: str) -> None:
    parser().parse_args(shlex.split(command, comments=True))


def test_every_command_is_in_the_readme_or_serves_the_workflow() -> None:
    known = set(re.findall(r"^    (\w+)  ", parser().format_help(), re.MULTILINE))
    shown = {command.split()[0] for command in commands()}
    assert known - shown == {"render", "gather"}  # rules run these


def test_the_python_in_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.make(tmp_path / "work" / "demo" / "features" / "rgb-aaaaaaaa", made.videos([3, 0, 5]))
    monkeypatch.chdir(tmp_path)
    snippets = [
        block for path in DOCUMENTS if path.name not in ("api.md", "README.md") for block in blocks(path, "python")
    ]
    assert snippets
    for snippet in snippets:
        names: dict[str, object] = {}
        exec(compile(snippet, "document", "exec"), names)
        assert getattr(names["rows"], "shape", None) == (5, 4)


@pytest.mark.parametrize("name", [p.stem for p in sorted((REPO / CONFIGS).glob("*.yaml"))])
def test_every_config_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    assert name in datasets()
    config = load(name)
    assert set(config.splits) and config.heads


def test_the_readme_tells_where_the_lists_of_each_config_go() -> None:
    text = (REPO / "README.md").read_text()
    for name in ("ucf101", "hmdb51", "kinetics", "charades"):
        assert f"| `{name}` |" in text
        for place in re.findall(r"data/\w+/[\w.]+", (REPO / CONFIGS / f"{name}.yaml").read_text()):
            stem = re.sub(r"_(train|test|classes)\..*$", "", place)
            assert stem in text, f"{name}: {place}"


def test_the_readmes_config_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").mkdir()
    (config,) = blocks(REPO / "README.md", "yaml")
    (tmp_path / "config" / "mine.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    assert set(load("mine").heads) == {"average", "attention"}
