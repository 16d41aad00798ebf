"""The calculator against a real store, its page in docs/, and the profile for clusters."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser

from pipelines import scale
from tests.test_docs import REPO, blocks
from tests.workflow.world import VIDEOS, store


def test_a_store_is_of_as_many_files_and_bytes_as_it_says(here: Path) -> None:
    archive = scale.Archive(videos=VIDEOS, rows=4, dims=96, shard=4, kept=1.0)
    found = scale.bill(archive, scale.Rates(network_rows_s=1, decoded_frames_s=1))
    files = [p for p in store(here).rglob("*") if p.is_file() and p.name != "store.json" and p.suffix != ".lock"]
    assert found.shards == 3 and found.files == len(files)
    features = sum(
        p.stat().st_size for p in files if p.parent.name != "00000" and "frames" in p.parts and p.name == "0"
    )
    assert 0.5 * found.feature_bytes < features < 1.1 * found.feature_bytes


def test_hours_add_up() -> None:
    rates = scale.Rates(network_rows_s=100, decoded_frames_s=500, gpu_rows_s=1000, start_s=0)
    found = scale.bill(scale.Archive(videos=3600, seconds=10, fps=50, rows=20, extractors=2), rates, cores=4)
    assert found.network_core_hours == pytest.approx(3600 * 20 * 2 / 100 / 3600)
    assert found.decoding_core_hours == pytest.approx(3600 * 10 * 50 / 500 / 3600), "one decoding for both"
    assert found.core_hours == pytest.approx(0.4 + 1.0)
    assert found.gpu_hours == pytest.approx(0.04)
    assert found.cores_a_gpu == pytest.approx(1.0 / 0.04)
    assert found.jobs == 15 * 2 + 3


def test_the_page_says_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = REPO / "docs" / "scale.md"
    (command,) = [block for block in blocks(page, "sh") if "pipelines.scale" in block]
    (printed,) = blocks(page, "text")
    monkeypatch.setattr("sys.argv", shlex.split(command)[2:])
    scale.main()
    assert capsys.readouterr().out == printed


def test_the_profile_for_clusters_has_options_that_snakemake_knows() -> None:
    profile = yaml.safe_load((REPO / "profiles" / "slurm" / "config.yaml").read_text())
    parser = get_argument_parser()
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    theirs = {name for name in profile if name.startswith("slurm-")}  # of the executor's own package
    assert set(profile) - theirs - known == set()
    assert profile["executor"] == "slurm" and profile["retries"] >= 1
    partitions = yaml.safe_load((REPO / profile["slurm-partition-config"]).read_text())["partitions"]
    assert partitions["gpu"]["max_gpu"] and "max_gpu" not in partitions["cpu"]
    text = (REPO / "pipelines" / "rules" / "extract.smk").read_text()
    assert "mem_mb=lambda wildcards, attempt: 4000 * attempt" in text, "memory by attempt is the rules'"
    assert os.path.exists(REPO / "profiles" / "default" / "config.yaml")
