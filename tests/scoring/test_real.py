"""A head trained on ucf6 scores real clips: the originals from a folder, a tar and a list, odd files beside them, and
clips of the store as the cached road does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from heads.results import read_predictions
from pipelines import __main__ as program
from pipelines import plan as plans
from tests.extract.test_odd import TABLE
from tests.media import SHARED, needs_shared
from tests.scoring import world
from tests.scoring.test_score import by_video, close

pytestmark = [pytest.mark.slow, needs_shared]
Call = Callable[[str], tuple[int, str]]
ROOT = Path(__file__).resolve().parents[2]
HEADS = ("attention_cluster", "bilstm")


@pytest.fixture(scope="module")
def ucf6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `config/ucf6.yaml`, of it the RGB features and two heads on split 1, trained."""
    folder = tmp_path_factory.mktemp("ucf6") / "main"
    (folder / "config").mkdir(parents=True)
    (folder.parent / "shared").symlink_to(SHARED.parent)
    config = yaml.safe_load((ROOT / "config" / "ucf6.yaml").read_text())
    config |= {"splits": ["1"], "seeds": [0], "extractors": {"rgb": config["extractors"]["rgb"]}}
    config["heads"] = {name: config["heads"][name] for name in HEADS}
    (folder / "config" / "ucf6.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(program.signal, "signal", lambda *_: None)
        heads = " ".join(f"--head {name}" for name in HEADS)
        for line in ("index ucf6", "extract ucf6 --extractor rgb --threads 2", f"train ucf6 {heads} --threads 1"):
            plans.of.cache_clear()
            assert program.main(line.split()) == 0, line
        plans.of.cache_clear()
        yield folder


@pytest.fixture
def run(ucf6: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Of the attention cluster, or of the test's own head; commands run where it was trained."""
    head = request.node.callspec.params["head"] if hasattr(request.node, "callspec") else HEADS[0]
    monkeypatch.chdir(ucf6)
    (found,) = (ucf6 / "work" / "ucf6" / "runs").glob(f"{head}-*/seed0")
    return found


def test_folder_tar_and_list_of_the_originals_beside_odd_files(run: Path, call: Call, tmp_path: Path) -> None:
    top = SHARED / "ucf6-orig"
    clips = sorted(top.rglob("*.avi"))
    names = [clip.relative_to(top).as_posix() for clip in clips]
    assert len(clips) == 24
    world.tar_of(tmp_path / "o.tar", zip(names, clips, strict=True))
    (tmp_path / "o.txt").write_text("\n".join(names))
    for source, out in (
        (f"{top} {SHARED / 'odd'}", "folder.parquet"),
        (f"{tmp_path / 'o.tar'}", "tar.jsonl"),
        (f"{tmp_path / 'o.txt'} --root {top}", "list.parquet"),
    ):
        code, said = call(f"score {run} {source} --out {tmp_path / out} --logits --threads 2")
        assert code == 0, said
    folder = by_video(tmp_path / "folder.parquet")
    mine, odd = {name: folder[name] for name in names}, {k: v for k, v in folder.items() if k not in names}
    close(mine, by_video(tmp_path / "tar.jsonl"))
    close(mine, by_video(tmp_path / "list.parquet"))
    held = {os.path.splitext(line.split()[0])[0] for line in (SHARED / "ucf101-splits" / "testlist01.txt").open()}
    test = [name for name in names if os.path.splitext(name)[0] in held]
    right = sum(mine[name]["label"] == name.split("/")[0] for name in test)
    assert len(test) == 12 and right >= 11
    assert {name: odd[name]["outcome"] for name in TABLE} == {name: outcomes[0] for name, outcomes in TABLE.items()}
    assert odd.keys() == {f.relative_to(SHARED / "odd").as_posix() for f in (SHARED / "odd").rglob("*") if f.is_file()}
    assert all(row["reason"] or row["outcome"] == "ok" for row in odd.values())


@pytest.mark.parametrize("head", HEADS)
def test_scores_are_those_of_the_cached_road(run: Path, call: Call, tmp_path: Path, head: str) -> None:
    cached, files = read_predictions(run), {}
    for clip in (SHARED / "ucf6").rglob("*"):
        files[clip.relative_to(SHARED / "ucf6").with_suffix("").as_posix()] = clip
    chosen = {str(video): row for video, row in zip(cached.ids, cached.logits, strict=True)}
    paths = {video: files[video].relative_to(SHARED / "ucf6").as_posix() for video in list(chosen)[::3]}
    (tmp_path / "list.txt").write_text("\n".join(paths.values()))
    line = f"score {run} {tmp_path / 'list.txt'} --root {SHARED / 'ucf6'} --out {tmp_path / 's.parquet'} --logits"
    code, said = call(f"{line} --threads 2")
    assert code == 0, said
    rows = by_video(tmp_path / "s.parquet")
    assert len(rows) == len(paths) > 50
    off = [float(np.abs(np.array(rows[path]["logits"]) - chosen[video]).max()) for video, path in paths.items()]
    assert max(off) <= 1e-5
