"""How a step is made: in parts, with less memory, in several processes, stopped inside of an epoch; numbers stay."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import heads
import heads.dropout
from extract.networks.bf16 import has_bf16
from extract.networks.conv3d import Conv3d
from features.atomic import Lock
from features.errors import UserError
from heads.config import BaseConfig, Sample
from heads.kinds import AttentionClusterConfig, AverageConfig, StackedLstmConfig, TsLstmConfig, TsnConfig
from heads.loop import Loop, Step
from heads.pace import Pace, duration
from heads.parallel import Ranks, synchronise_norms
from heads.recompute import blocks, recompute
from heads.training import evaluate_run
from tests.features.test_stream import data as streamed_data
from tests.features.test_stream import stores  # noqa: F401 (a fixture)
from tests.heads.made import CLASSES, SMALL_CNN, map_problem, problem
from tests.heads.test_training import bytes_of, data_of, go

ROOT = Path(__file__).parents[2]
TRAIN: dict[str, Any] = {"epochs": 3, "batch": 16, "lr": 1e-2}
PLAIN: dict[str, BaseConfig] = {
    "average": AverageConfig(features=("rgb",), dropout=0, train=TRAIN),
    "cluster": AttentionClusterConfig(features=("rgb",), clusters=4, dropout=0, sample=Sample(train=4), train=TRAIN),
    "lstm": StackedLstmConfig(features=("rgb",), hidden=8, dropout=0, between=0, train=TRAIN),
    "ts_lstm": TsLstmConfig(features=("rgb",), hidden=9, train={**TRAIN, "clip": 1.0, "weight_decay": 1e-3}),
}


def changed(config: BaseConfig, **train: Any) -> BaseConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})  # type: ignore[attr-defined]


def losses(folder: Path) -> np.ndarray[Any, Any]:
    """(2, epochs): training and test losses."""
    table = np.genfromtxt(folder / "history.csv", delimiter=",", names=True)
    return np.stack([table["train_loss"], table["test_loss"]])


@pytest.mark.parametrize("name", ["average", "cluster", "lstm"])
def test_a_batch_in_parts_is_the_batch(name: str, tmp_path: Path) -> None:
    go(tmp_path / "whole", PLAIN[name])
    go(tmp_path / "parts", changed(PLAIN[name], accumulate=3))
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-5)
    assert bytes_of(tmp_path / "parts") != bytes_of(tmp_path / "whole"), "sums of another order"


def test_batch_norms_see_parts(tmp_path: Path) -> None:
    go(tmp_path / "whole", PLAIN["ts_lstm"])
    go(tmp_path / "parts", changed(PLAIN["ts_lstm"], accumulate=2))
    assert np.abs(losses(tmp_path / "parts") - losses(tmp_path / "whole")).max() > 1e-3


def test_parts_of_a_wide_classifier_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient lives in memory that the next part would write over."""
    monkeypatch.setattr(heads.dropout, "_WIDE", 1)
    layer = heads.dropout.DropoutLinear(40, 3, 0.5)
    x, found = torch.randn(4, 40), []
    torch.manual_seed(0)
    for part in x.split(2):
        layer.weight.grad = None
        layer(part).square().sum().backward()
        found.append(layer.weight.grad.clone())  # type: ignore[attr-defined]
    torch.manual_seed(0)
    layer.weight.grad = None
    for part in x.split(2):
        layer(part).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, found[0] + found[1])


def test_a_wide_classifier_of_inputs_that_learn_nothing_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads.dropout, "_WIDE", 1)
    layer, x, found = heads.dropout.DropoutLinear(40, 3, 0.5), torch.randn(4, 40), []
    for needed in (False, True):
        torch.manual_seed(0)
        layer.zero_grad(set_to_none=True)
        layer(x.detach().requires_grad_(needed)).square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])  # type: ignore[union-attr]
        assert ("rough back" in layer.kept._found) == needed, "the product that gives it"
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_accumulate_and_recompute_leave_old_recipes_alone() -> None:
    old = AverageConfig(features=("rgb",)).recipe()
    assert "clips" not in old and not {"accumulate", "clip_s", "recompute"} & old["train"].keys()
    assert AverageConfig(features=("rgb",), train={"recompute": True}).recipe() == old
    assert AverageConfig(features=("rgb",), train={"accumulate": 2}).recipe()["train"]["accumulate"] == 2


TSN = TsnConfig(
    features=("pixels",),
    network=SMALL_CNN,
    crop_px=32,
    dropout=0.3,
    sample={"train": 2, "test": 2},
    train={"epochs": 2, "batch": 6, "lr": 0.02, "schedule": {"kind": "constant"}},
)


ENCODED = AverageConfig(
    features=("pixels",),
    dropout=0,
    encoder={**SMALL_CNN, "crop_px": 32, "frames": 2, "augment": "none", "frozen_bn": True, "reads": "stacked"},
    train={"epochs": 2, "batch": 6, "optimizer": "sgd", "lr": 1e-2},
)


def tsn(folder: Path, **given: Any) -> dict[str, Any]:
    config = given.pop("config", TSN)
    own = {"train": range(18), "test": range(18, 24), "classes": ("red", "green", "blue")}
    return go(folder, config, data=map_problem(), **(own | given))


def test_blocks_computed_again_train_to_the_same_bytes(tmp_path: Path) -> None:
    """Batch norms count once, and dropout is drawn once."""
    options = {**SMALL_CNN["options"], "drop_path_rate": 0.2}  # type: ignore[dict-item]
    config = TSN.model_copy(update={"network": TSN.network.model_copy(update={"options": options})})
    tsn(tmp_path / "kept", config=config)
    tsn(tmp_path / "again", config=changed(config, recompute=True))
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "kept")


def test_blocks_computed_again_keep_less() -> None:
    kept = []
    for again in (False, True):
        head = heads.build("tsn", {"pixels": (64, 64, 3)}, 3, network={"name": "resnet18"}, crop_px=64)
        if again:
            recompute(head)
        sizes = dict[int, int]()

        def pack(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        batch = {"pixels": torch.zeros(2, 2, 64, 64, 3, dtype=torch.uint8)}, {"pixels": torch.ones(2, 2).bool()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            head.train()(*batch)
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.6 * kept[0]


def test_what_is_a_block() -> None:
    head = heads.build("tsn", {"pixels": (32, 32, 3)}, 3, network={"name": "resnet18"}, crop_px=32)
    assert [type(b).__name__ for b in blocks(head)] == ["BasicBlock"] * 8
    network = {"name": "mobilenetv2_100"}
    head = heads.build("tsn", {"pixels": (32, 32, 3)}, 3, network=network, crop_px=32)
    assert len(list(blocks(head))) == 17
    with pytest.raises(UserError, match=r"no blocks to compute again: head Average; leave train\.recompute away"):
        recompute(heads.build("average", {"rgb": (4,)}, 3))


class Stop(Exception):
    pass


def stopping(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A kill in the middle of step `at`, of all steps."""
    step, count = Loop._step, 0

    def counted(self: Loop, given: Step) -> tuple[float, int]:
        nonlocal count
        count += 1
        if count == at:
            raise Stop
        return step(self, given)

    monkeypatch.setattr(Loop, "_step", counted)


@pytest.mark.parametrize("at", [2, 5, 6, 9])
def test_resumed_inside_of_an_epoch_ends_in_the_same_bytes(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of three steps with dropout, momentum and random rows; the state is kept after each step."""
    config = changed(PLAIN["cluster"], clip=None, momentum=0.9).model_copy(update={"dropout": 0.5})
    go(tmp_path / "whole", config)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stopping(patch, at)
        go(tmp_path / "killed", config, checkpoint_s=0)
    lines: list[str] = []
    go(tmp_path / "killed", config, checkpoint_s=0, log=lines.append)
    epoch, videos = (at - 1) // 3 + 1, (0, 14, 27)[(at - 1) % 3]
    expected = f"in epoch {epoch}/3, after {videos} of 40 videos" if videos else f"after epoch {epoch - 1}/3"
    assert lines[0] == f"goes on {expected}"
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("at", [2, 4, 5, 9])
def test_streamed_training_resumes_inside_of_an_epoch(
    at: int,
    stores: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In other blocks, had it not kept their size."""
    config = AttentionClusterConfig(
        features=("rgb", "flow"), clusters=2, sample=Sample(train=2), train={"epochs": 2, "batch": 3}
    )  # type: ignore[arg-type]
    go(tmp_path / "whole", config, **streamed_data(stores, 2.1))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stopping(patch, at)
        go(tmp_path / "killed", config, checkpoint_s=0, **streamed_data(stores, 2.1))
    lines: list[str] = []
    go(tmp_path / "killed", config, checkpoint_s=0, log=lines.append, **streamed_data(stores, 1))
    assert lines[0].startswith("goes on in epoch ")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_killed_in_the_test_after_an_epoch_the_epoch_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends in the bytes of a training that nobody disturbed."""
    go(tmp_path / "whole", PLAIN["cluster"])
    steps, test, tests = [], Loop._test, iter([False, True])

    def killed(self: Loop, videos: torch.Tensor) -> Any:
        if next(tests, False):
            raise KeyboardInterrupt
        return test(self, videos)

    def counted(self: Loop, step: Step) -> Any:
        steps.append(len(self.history) + 1)
        return taken(self, step)

    taken = Loop._step
    monkeypatch.setattr(Loop, "_test", killed)
    monkeypatch.setattr(Loop, "_step", counted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed", PLAIN["cluster"], checkpoint_s=0)
    before, lines = len(steps), list[str]()
    go(tmp_path / "killed", PLAIN["cluster"], checkpoint_s=0, log=lines.append)
    assert lines[0] == "goes on in epoch 2/3, after 40 of 40 videos" and steps[before] == 3
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_the_state_is_kept_no_more_often_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr("heads.checkpoint.save_resume", lambda folder, state: saved.append(state["inside"]))
    go(tmp_path, PLAIN["average"])
    assert saved == [None] * 3


PROCESSES = """
import sys
from pathlib import Path
import torch
from heads.parallel import group, ranks
from tests.heads.test_steps import ENCODED, PLAIN, changed, tsn
from tests.heads.test_training import go
torch.set_num_threads(1)
with group("cpu") as device:
    for name, config in PLAIN.items():
        if name != "ts_lstm":
            found = go(Path(sys.argv[1]) / name, config, device=device)
            assert (ranks().count, "top1" in found) == (2, True)
    go(Path(sys.argv[1]) / "parts", changed(PLAIN["cluster"], accumulate=2), device=device)
    go(Path(sys.argv[1]) / "norms", PLAIN["ts_lstm"], device=device)
    tsn(Path(sys.argv[1]) / "encoded", config=ENCODED, device=device)
"""


def torchrun(*arguments: str, cwd: Path = ROOT) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_train_to_the_losses_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Each sees 8 of the 16 videos of a batch; random rows are the same."""
    (tmp_path / "two.py").write_text(PROCESSES)
    torchrun(str(tmp_path / "two.py"), str(tmp_path))
    for name, config in PLAIN.items():
        if name == "ts_lstm":
            continue
        go(tmp_path / "one" / name, config)
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one" / name), rtol=1e-5)
        scores = [np.load(tmp_path / part / name / "predictions.npz")["logits"] for part in (".", "one")]
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "cluster"), rtol=1e-5)
    tsn(tmp_path / "one" / "encoded", config=ENCODED)
    np.testing.assert_allclose(losses(tmp_path / "encoded"), losses(tmp_path / "one" / "encoded"), rtol=1e-5)
    assert np.isfinite(losses(tmp_path / "norms")).all(), "each process has the batch norms of its part, and goes on"
    features, labels = problem()
    again = evaluate_run(tmp_path / "norms", features=features, labels=labels, test=range(40, 60), classes=CLASSES)
    said = json.loads((tmp_path / "norms" / "metrics.json").read_text())
    assert again["loss"] == pytest.approx(said["loss"], abs=1e-6), "all tested with the statistics that are kept"


HELD = """
import sys
from pathlib import Path
from features.errors import Busy
from heads import checkpoint
from heads.parallel import group, ranks
from tests.heads.test_steps import PLAIN
from tests.heads.test_training import go
checkpoint.LOCK_WAIT_S = 0
with group("cpu") as device:
    try:
        go(Path(sys.argv[1]) / "held", PLAIN["average"], device=device)
    except Busy as error:
        (Path(sys.argv[1]) / f"said{ranks().rank}").write_text(str(error))
    go(Path(sys.argv[1]) / "free", PLAIN["average"], device=device)
"""


def test_a_run_that_another_trains_is_left_by_all_processes(tmp_path: Path) -> None:
    """None waits for the first one, and they go on with the next run together."""
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "held").mkdir()
    with Lock(tmp_path / "held" / "run.lock"):
        torchrun(str(tmp_path / "held.py"), str(tmp_path))
    assert f"got held by process {os.getpid()} on " in (tmp_path / "said0").read_text()
    assert (tmp_path / "said1").read_text().startswith(f"the first process cannot write the run: {tmp_path}/held")
    assert not list((tmp_path / "held").iterdir()) and (tmp_path / "free" / "run.json").exists()


BLIND = """
import sys
from pathlib import Path
import torch
from torch import distributed, nn
import heads.loop
from features.batches import Features
from heads.kinds import TsnConfig
from heads.parallel import group, spread
from tests.heads.made import SMALL_CNN
from tests.heads.test_end_to_end import CONFIG, moving, trained
torch.set_num_threads(1)

class Waiting(nn.SyncBatchNorm):  # which is for GPUs alone: it waits as that does, and counts its own part
    def forward(self, x):
        if self.training:
            distributed.all_reduce(torch.zeros(1))
        own = self.training and len(x) > 1
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, own)

def waiting(module, device):
    module = spread(module, device)
    norms = [m for m in module.modules() if type(m) is nn.BatchNorm2d]
    assert norms
    for norm in norms:
        norm.__class__ = Waiting  # as DistributedDataParallel refuses to have them on a CPU
    return module

if sys.argv[2] != "apart":
    heads.loop.spread = waiting
# As for videos that nobody decoded yet:
Features.has_rows = lambda self, modality=None: torch.ones(len(self.ids), dtype=torch.bool)
features, labels = moving()
rows = [features.rows["pixels"].data[10 * v : 10 * v + (10 if v % 3 or v > 11 else 0)].numpy() for v in range(18)]
seen = Features.of(features.ids, {"pixels": rows})
config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"epochs": 6, "batch": 2})})
if sys.argv[2] == "tsn":
    train = {"epochs": 6, "batch": 2, "lr": 1e-3}
    config = TsnConfig(features=("pixels",), network=SMALL_CNN, crop_px=24, sample={"train": 2, "test": 2}, train=train)
with group("cpu") as device:
    trained(Path(sys.argv[1]) / "run", config, features=seen, device=device)
"""


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["apart", "synchronised", "tsn"])
def test_a_process_without_rows_holds_nobody_up(tmp_path: Path, norms: str) -> None:
    """Of two videos a step a third has no row: often one process has gradients of its encoder and the other none."""
    (tmp_path / "blind.py").write_text(BLIND)
    torchrun(str(tmp_path / "blind.py"), str(tmp_path), norms)
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 2, 6, 20])
def test_parts_are_equal_and_whole(n: int, count: int) -> None:
    parts = [range(n)[Ranks(rank, count).part(n)] for rank in range(count)]
    assert [k for part in parts for k in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_batch_norms_that_learn_are_synchronised_and_frozen_ones_stay() -> None:
    head = heads.build("tsn", {"pixels": (32, 32, 3)}, 3, network=SMALL_CNN, crop_px=32, partial_bn=True)
    before = copy.deepcopy(head.state_dict())
    synchronise_norms(head)
    norms = [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [isinstance(m, nn.SyncBatchNorm) for m in norms] == [True] + [False] * (len(norms) - 1)
    assert [m.training for m in norms] == [True] + [False] * (len(norms) - 1)
    after = head.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    activated = heads.build("tsn", {"pixels": (32, 32, 3)}, 3, network={"name": "mobilenetv2_100"}, crop_px=32)
    synchronise_norms(activated)
    assert any(type(m).__name__ == "SyncBatchNormAct" for m in activated.modules()), "timm's own keep their activation"


@pytest.mark.parametrize("kind", ["ts_lstm", "temporal_inception", "bilstm"])
def test_norms_that_tell_rows_from_padding_stay_their_own(kind: str) -> None:
    head = heads.build(kind, {"rgb": (6,)}, 3)
    synchronise_norms(head)
    masks = {"rgb": torch.arange(7) < torch.tensor([[7], [1], [3]])}
    features = {"rgb": torch.randn(3, 7, 6)}
    assert head(features, masks).isfinite().all() and head.eval()(features, masks).isfinite().all()


def test_bf16_steps_are_near(tmp_path: Path) -> None:
    """The autocast that CUDA takes as well; the weights stay fp32."""
    tsn(tmp_path / "fp32")
    tsn(tmp_path / "bf16", config=changed(TSN, precision="bf16"))
    apart = np.abs(losses(tmp_path / "fp32") - losses(tmp_path / "bf16"))
    apart[1, 1] = 0  # batch norms over six videos make much of little by the second epoch's test
    assert apart.max() < 0.2 and (apart.max() > 0) == has_bf16(torch.device("cpu"))


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize(("kernel", "precision"), [("torch", "bf16"), ("torch", "fp32"), ("ours", "bf16")])
def test_wrong_gradients_are_refused(kernel: str, precision: str, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps are in bf16: not on a processor without it."""
    monkeypatch.setattr("heads.loop.has_bf16", lambda device: able)
    config = changed(PLAIN["average"], precision=precision)
    head = heads.from_config(config, {"rgb": (2,)}, 3)
    head.add_module("clips", {"torch": nn.Conv3d, "ours": Conv3d}[kernel](1, 1, 3))
    refused = pytest.raises(UserError, match=r"gradients of 3D convolutions are wrong on a CPU: head average: .*fp32")
    with refused if (kernel, precision, able) == ("torch", "bf16", True) else nullcontext():
        train = config.train  # type: ignore[attr-defined]
        Loop(head=head, config=config, train=train, data=data_of([0, 1, 2]), seed=0, device=torch.device("cpu"))


def test_pace_tells_what_is_left() -> None:
    now, lines = 0.0, list[str]()
    pace = Pace(epochs=5, videos=1000, log=lines.append, clock=lambda: now)
    pace.begin(epoch=2, done=0)
    for now in (10.0, 31.0, 40.0, 62.0, 70.0):  # noqa: B007 (the clock reads it)
        pace.step(100, 0.5)
    assert lines == [
        "in epoch 3/5: 200 of 1000 videos, loss 0.5, 6.45 videos/s, 2 min left of the epoch, 7 min of the training",
        "in epoch 3/5: 400 of 1000 videos, loss 0.5, 6.45 videos/s, 93 s left of the epoch, 7 min of the training",
    ]
    assert pace.left(4, 200.0) == "" and pace.left(2, 200.0) == ", 5 min left" and pace.left(5, 9e9) == ""
    assert [duration(s) for s in (5, 100, 7000, 200_000)] == ["5 s", "2 min", "1.9 h", "2.3 days"]


def test_labels_without_times_cannot_be_cut() -> None:
    config = AverageConfig(features=("rgb",), train={"clip_s": 2.0})
    data = data_of([0, 1, 2])
    head = heads.from_config(config, data.features.shapes, 3)
    with pytest.raises(UserError, match=r"labels without times: head average: train\.clip_s; leave train\.clip_s away"):
        Loop(head=head, config=config, train=config.train, data=data, seed=0, device=torch.device("cpu"))
