"""Learning from finished runs, and beginning with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from features.errors import FramepoolError, UserError
from heads.checkpoint import begin_from, load_head
from heads.config import Distil
from heads.distillation import Teacher
from heads.kinds import AttentionClusterConfig
from tests.heads.made import rows
from tests.heads.test_end_to_end import CNN, CONFIG, SMALL, trained
from tests.heads.test_training import go

SHORT = {"epochs": 1, "batch": 12, "lr": 1e-3, "weight_decay": 0, "schedule": {"kind": "constant"}}


def config(reads: str = "rgb", **more: Any) -> Any:
    encoder = {**CNN, "crop_px": 24, "reads": reads, "frames": 4}
    return type(CONFIG)(**{"features": ("pixels",), "encoder": encoder, **SMALL, "train": SHORT, **more})


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on colours and one on differences."""
    folder = tmp_path_factory.mktemp("runs")
    for reads in ("rgb", "rgbdiff"):
        trained(folder / reads, config(reads))
    return {reads: folder / reads for reads in ("rgb", "rgbdiff")}


def batch(videos: int = 3) -> Any:
    return {"pixels": rows((32, 32, 3), videos, 4)}, {"pixels": torch.ones(videos, 4, dtype=torch.bool)}


def test_the_loss_against_its_formula(two_streams: dict[str, Path]) -> None:
    asked = Distil(teacher={"rgb": 1, "rgbdiff": 3}, temperature=5, weight=0.7)
    teacher = Teacher.of(two_streams, asked, ["left", "still", "right"])
    given = batch()
    with torch.no_grad():
        scores = {name: load_head(folder)[0](*given) for name, folder in two_streams.items()}
    mean = 0.25 * scores["rgb"] + 0.75 * scores["rgbdiff"]
    torch.testing.assert_close(teacher.logits(given), mean)
    student = torch.randn(3, 3, requires_grad=True)
    p, q = (mean / 5).softmax(dim=1), (student / 5).softmax(dim=1)
    expected = 0.7 * 25 * (p * (p / q).log()).sum(dim=1)
    found = teacher.losses(student, given)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert student.grad is not None and all(p.grad is None for head, _ in teacher.members for p in head.parameters())
    assert (Distil(teacher=("a",)).temperature, Distil(teacher=("a",)).weight) == (8, 0.4)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(two_streams: dict[str, Path]) -> None:
    teacher = Teacher.of(two_streams, Distil(teacher=("rgb",)), ["left", "still", "right"])
    torch.testing.assert_close(teacher.losses(teacher.logits(batch()), batch()), torch.zeros(3), rtol=0, atol=1e-5)


def test_the_teacher_sees_the_students_crop(
    two_streams: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very batch of the step: cropped at random, in evaluation mode, its batch norms as they were."""
    seen: list[tuple[Any, Any]] = []
    real = Teacher.losses

    def watched(self: Teacher, student: Any, given: Any) -> Any:
        seen.append((given[0]["pixels"].clone(), [head.training for head, _ in self.members]))
        return real(self, student, given)

    monkeypatch.setattr(Teacher, "losses", watched)
    before = {name: load_head(folder)[0].state_dict() for name, folder in two_streams.items()}
    distil = Distil(teacher=("rgb", "rgbdiff"))
    trained(tmp_path / "student", config("stacked", distil=distil), teachers=two_streams)
    ((pixels, training),) = seen
    assert pixels.shape == (12, 4, 24, 24, 3) and training == [False, False]
    for name, folder in two_streams.items():
        after = load_head(folder)[0].state_dict()
        assert all(torch.equal(after[key], value) for key, value in before[name].items())


def test_what_is_taught_changes_what_is_learnt(two_streams: dict[str, Path], tmp_path: Path) -> None:
    weights = {}
    for weight in (None, 0.4, 40.0):
        distil = None if weight is None else Distil(teacher=("rgb",), weight=weight)
        trained(tmp_path / str(weight), config(distil=distil), teachers=two_streams)
        weights[weight] = load_head(tmp_path / str(weight))[0].state_dict()["head.classifier.weight"]
    assert not torch.equal(weights[None], weights[0.4]) and not torch.equal(weights[0.4], weights[40.0])


def test_teachers_that_do_not_fit(two_streams: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a teacher without a finished run: got other"):
        Teacher.of(two_streams, Distil(teacher=("other",)), ["left", "still", "right"])
    with pytest.raises(UserError, match="another class list"):
        Teacher.of(two_streams, Distil(teacher=("rgb",)), ["up", "still", "right"])
    with pytest.raises(FramepoolError, match="no finished run here"):
        Teacher.of({"rgb": tmp_path}, Distil(teacher=("rgb",)), ["left", "still", "right"])
    encoder = config("stacked", distil=Distil(teacher=("rgb",))).encoder
    assert encoder is not None
    larger = config("stacked", distil=Distil(teacher=("rgb",)))
    larger = larger.model_copy(update={"encoder": encoder.model_copy(update={"crop_px": 32})})
    with pytest.raises(UserError, match=r"a teacher of another crop: distil: expected 32, got 24; give .* same crop"):
        trained(tmp_path / "larger", larger, teachers=two_streams)


def start(**more: Any) -> Any:
    return config(start={"run": "rgb", "dataset": "other"}, **more)


def test_fine_tuning_begins_with_a_runs_weights(two_streams: dict[str, Path], tmp_path: Path) -> None:
    """After one step at a tiny rate all but nothing has moved; batch norms' statistics apart, which follow the data."""
    train = {**SHORT, "lr": 1e-9}
    trained(tmp_path / "tuned", start(train=train), start=two_streams["rgb"])
    tuned, old = (load_head(f)[0].state_dict() for f in (tmp_path / "tuned", two_streams["rgb"]))
    for key, value in tuned.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, old[key], rtol=0, atol=1e-7)


def test_a_start_needs_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a start without a finished run: got rgb; give its folder to train_run"):
        trained(tmp_path, start())


def test_other_classes_have_a_fresh_classifier(two_streams: dict[str, Path], tmp_path: Path) -> None:
    train = {**SHORT, "lr": 1e-9}
    names = ["left", "still", "right", "up"]
    trained(tmp_path / "tuned", start(train=train), start=two_streams["rgb"], classes=names)
    tuned, old = (load_head(f)[0].state_dict() for f in (tmp_path / "tuned", two_streams["rgb"]))
    assert tuned["head.classifier.weight"].shape == (4, 16) and 0.005 < tuned["head.classifier.weight"].std() < 0.05
    torch.testing.assert_close(tuned["head.embed.weight"], old["head.embed.weight"], rtol=0, atol=1e-7)


def test_as_many_other_classes_have_a_fresh_classifier_too(two_streams: dict[str, Path], tmp_path: Path) -> None:
    train = {**SHORT, "lr": 1e-9}
    trained(tmp_path / "tuned", start(train=train), start=two_streams["rgb"], classes=["up", "down", "still"])
    tuned, old = (load_head(f)[0].state_dict() for f in (tmp_path / "tuned", two_streams["rgb"]))
    assert (tuned["head.classifier.weight"] - old["head.classifier.weight"]).abs().min() > 0
    torch.testing.assert_close(tuned["head.embed.weight"], old["head.embed.weight"], rtol=0, atol=1e-7)


def test_of_as_many_classes_as_units_only_the_classifier_is_fresh(tmp_path: Path) -> None:
    options = {"features": ("rgb",), "clusters": 4, "train": {"epochs": 1, "lr": 1e-9}}
    config = AttentionClusterConfig.model_validate(options)
    go(tmp_path / "old", config)
    later = AttentionClusterConfig.model_validate({**options, "start": {"run": "old"}})
    go(tmp_path / "tuned", later, start=tmp_path / "old", seed=1, classes=["w", "x", "y", "z"])
    tuned, old = (load_head(tmp_path / f)[0].state_dict() for f in ("tuned", "old"))
    assert [k for k in old if (tuned[k] - old[k]).abs().max() > 1e-6] == ["classifier.weight", "classifier.bias"]


def test_a_run_of_another_head_is_refused(two_streams: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a run that this head cannot begin with: .*blocks\.1"):
        trained(tmp_path / "a", start(blocks=2), start=two_streams["rgb"])
    with pytest.raises(FramepoolError, match="no finished run here"):
        head = load_head(two_streams["rgb"])[0]
        begin_from(head, tmp_path / "nothing", ["a"], lambda: head)
