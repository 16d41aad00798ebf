"""Each head of the papers against a slow reading of its equations, a video at a time, and its number of parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import heads
from features.errors import UserError
from heads.base import Head
from heads.ordered import BatchNorm, at_most, spread
from heads.vtn import Block, sinusoids

COUNTS = (9, 4, 1)


def batch(*dims: int, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(COUNTS)) < torch.tensor(COUNTS)[:, None]
    names = ("rgb", "flow")[: len(dims)]
    return {m: torch.randn(3, 9, d, generator=generator) for m, d in zip(names, dims, strict=True)}, {
        m: mask.clone() for m in names
    }


def made(name: str, *dims: int, classes: int = 5, **options: Any) -> Any:
    torch.manual_seed(1)
    return heads.build(name, dict(zip(("rgb", "flow"), ((d,) for d in dims), strict=False)), classes, **options).eval()


def shaken(head: Head) -> None:
    """Batch norms as after some training."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


def count(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


def test_parameters_are_those_of_the_papers() -> None:
    """VTN: Q, K, V 3 * 512 * 512; two 1x1 convolutions 512 * 1024 + 1024 + 1024 * 512 + 512; two norms 2 * 2 * 512.
    With four blocks 16 * 512 positions and 513 * 400 for the classes. Embedding: 513 * 512."""
    block = 3 * 512 * 512 + 2 * 512 * 1024 + 1024 + 512 + 2 * 2 * 512
    assert count(Block(512, 8, 1.0, False, "post", False)) == count(Block(512, 8, 1.0, False, "post", True)) == block
    assert block == 1_838_592
    assert count(made("vtn", 512, classes=400, profile="code")) == 4 * block + 16 * 512 + 513 * 400 == 7_567_760
    assert count(made("vtn", 512, classes=400)) == 7_567_760 + 513 * 512
    assert count(made("vtn", 512, classes=400, profile="code", shared=True)) == 7_567_760 - 3 * block
    projected = made("vtn", 512, classes=400, profile="code", output_projection=True)
    assert count(projected) == 7_567_760 + 4 * (512 * 512 + 512)


@pytest.mark.parametrize(("units", "dim", "classes"), [(64, 1536, 400), (1, 50, 1024), (32, 512, 6)])
def test_parameters_of_an_attention_cluster(units: int, dim: int, classes: int) -> None:
    """FC1 w and b a unit, alpha and beta a unit, the linear layer over N * M."""
    expected = units * (dim + 1) + 2 * units + (units * dim + 1) * classes
    assert count(made("attention_cluster", dim, classes=classes, clusters=units)) == expected


def test_flatten_is_a_linear_layer_over_places() -> None:
    head = made("flatten", 4, 3, places={"rgb": 5, "flow": 2})
    features, masks = batch(4, 3)
    logits = head(features, masks)
    for video, length in enumerate(COUNTS):
        flat = []
        for modality, places in (("rgb", 5), ("flow", 2)):
            rows = features[modality][video, :length]
            if length > places:
                rows = rows[[math.floor((j + 0.5) * length / places) for j in range(places)]]
            flat.append(torch.cat([rows, torch.zeros(places - len(rows), rows.shape[1])]).flatten())
        torch.testing.assert_close(logits[video], head.classifier(torch.cat(flat)))


def test_ts_lstm_begins_as_its_authors_does() -> None:
    head = heads.build("ts_lstm", {"rgb": (40,)}, 30, hidden=20)
    for name, parameter in head.named_parameters():
        assert 0.05 < float(parameter.detach().abs().max()) <= 0.1, name


def test_ts_lstm_pools_each_segment() -> None:
    head = made("ts_lstm", 4, 3, segments=3, hidden=6)
    shaken(head)
    features, masks = batch(4, 3)
    logits = head(features, masks)
    for video, length in enumerate(COUNTS):
        rows = torch.cat([features["rgb"][video, :length], features["flow"][video, :length]], dim=1)
        pooled = []
        for s in range(3):
            first = s * length // 3
            stop = max((s + 1) * length // 3, first + 1)
            pooled.append(head.norms[s](rows[first:stop]).amax(dim=0))
        last = head.lstm(torch.stack(pooled)[None])[0][:, -1]
        torch.testing.assert_close(logits[video], head.classifier(head.norm(last))[0])


def test_temporal_inception_keeps_the_features_apart() -> None:
    """Convolutions run along time: what one dim says reaches the map in its own place, and no other."""
    head = made("temporal_inception", 6, hidden=8)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 1.0)  # no ReLU is dead
    images = torch.randn(2, 1, 6, 25)
    assert [tuple(head.stages[: k + 1](images).shape[1:]) for k in range(4)] == [
        (2, 6, 12), (4, 6, 6), (8, 6, 3), (16, 6, 1)
    ]  # fmt: skip
    other = images.clone()
    other[:, :, 2] += 1
    changed = (head.narrow(head.stages(images)) - head.narrow(head.stages(other))).abs().amax(dim=(0, 1, 3)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, False]


def test_bilstm_is_torchs_own_on_each_video() -> None:
    head = made("bilstm", 4, 3, hidden={"rgb": 5, "flow": 2})
    shaken(head)
    features, masks = batch(4, 3)
    logits = head(features, masks)
    for video, length in enumerate(COUNTS):
        means = []
        for modality, both in head.lstms.items():
            plain = nn.LSTM(both.forwards.input_size, both.forwards.hidden_size, bidirectional=True, batch_first=True)
            state = dict(both.forwards.state_dict())
            state |= {f"{k}_reverse": v for k, v in both.backwards.state_dict().items()}
            plain.load_state_dict(state)
            means.append(plain(both.norm(features[modality][video, :length])[None])[0].mean(dim=1))
        torch.testing.assert_close(logits[video], head.classifier(torch.cat(means, dim=1))[0])


def test_stacked_lstm_averages_logits() -> None:
    head = made("stacked_lstm", 4, 3, hidden=5)
    assert head.lstm.num_layers == 3 and not head.lstm.bidirectional
    features, masks = batch(4, 3)
    logits = head(features, masks)
    for video, length in enumerate(COUNTS):
        rows = torch.cat([features["rgb"][video, :length], features["flow"][video, :length]], dim=1)
        torch.testing.assert_close(logits[video], head.classifier(head.lstm(rows[None])[0]).mean(dim=1)[0])


@pytest.mark.parametrize("profile", ["paper", "code"])
@pytest.mark.parametrize("norm", ["post", "pre", "none"])
def test_vtn_is_its_equations(profile: str, norm: str) -> None:
    head = made("vtn", 6, dim=8, heads=2, blocks=2, length=9, profile=profile, norm=norm, embed="always")
    features, masks = batch(6)
    logits = head(features, masks)
    scale = math.sqrt(8 if profile == "code" else 4)

    def normal(module: nn.Module, rows: Tensor) -> Tensor:
        if norm == "none":
            return rows
        if profile == "paper":
            return nn.functional.layer_norm(rows, (8,))
        return (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-3)

    def attended(block: Any, rows: Tensor) -> Tensor:
        q, k, v = block.attention.qkv.weight.view(3, 2, 4, 8)
        return torch.cat(
            [((rows @ q[a].T) @ (rows @ k[a].T).T / scale).softmax(1) @ (rows @ v[a].T) for a in (0, 1)], 1
        )

    def convolved(block: Any, rows: Tensor) -> Tensor:
        return block.narrow(block.wide(rows).relu())  # type: ignore[no-any-return]

    for video, length in enumerate(COUNTS):
        rows = head.embed(features["rgb"][video, :length]) + sinusoids(9, 8)[:length]
        for block in head.blocks:
            if norm == "pre":
                rows = rows + attended(block, normal(block.norms[0], rows))
                rows = rows + convolved(block, normal(block.norms[1], rows))
            else:
                rows = normal(block.norms[0], rows + attended(block, rows))
                rows = normal(block.norms[1], rows + convolved(block, rows))
        torch.testing.assert_close(logits[video], head.classifier(rows).mean(dim=0), atol=1e-5, rtol=1e-5)


def test_vtn_begins_as_the_code_does() -> None:
    table = sinusoids(16, 512)
    assert (table[0] == 0).all()
    assert table[3, 0] == pytest.approx(math.sin(3)) and table[3, 1] == pytest.approx(math.cos(3))
    assert table[5, 100] == pytest.approx(math.sin(5 / 10000 ** (100 / 512)), abs=1e-6)
    head = made("vtn", 512)
    head(*batch(512))[0].sum().backward()
    assert (head.positions.weight.grad[1:9] != 0).any() and (head.positions.weight.grad[0] == 0).all()
    assert head.blocks[0].attention.qkv.weight.std().item() == pytest.approx(math.sqrt(2 / 33280), rel=0.01)
    with pytest.raises(UserError, match="a dim that 3 heads divide, not 512"):
        made("vtn", 512, heads=3)


def test_netvlad_sums_what_is_left_of_each_centre() -> None:
    head = made("netvlad", 4, centres=3)
    features, masks = batch(4)
    logits = head(features, masks)
    vlad = head.vlads["rgb"]
    for video, length in enumerate(COUNTS):
        sums = torch.zeros(3, 4)
        for row in features["rgb"][video, :length]:
            shares = vlad.assign(row).softmax(0)
            for k in range(3):
                sums[k] += shares[k] * (row - vlad.centres[k])
        flat = (sums / sums.norm(dim=1, keepdim=True)).flatten()
        torch.testing.assert_close(logits[video], head.classifier(flat / flat.norm()), atol=1e-5, rtol=1e-4)


def test_nextvlad_sums_over_groups() -> None:
    head = made("nextvlad", 4, centres=3, groups=2, expansion=2, hidden=6, squeeze=2)
    shaken(head)
    features, masks = batch(4)
    logits = head(features, masks)
    vlad = head.vlads["rgb"]
    for video, length in enumerate(COUNTS):
        sums = torch.zeros(3, 4)
        for row in features["rgb"][video, :length]:
            wide = vlad.widen(row)
            gates, shares = vlad.gate(wide).sigmoid(), vlad.assign(wide).view(2, 3).softmax(1)
            for g in range(2):
                for k in range(3):
                    sums[k] += gates[g] * shares[g, k] * (wide.view(2, 4)[g] - vlad.centres[k])
        flat = (sums / sums.norm(dim=1, keepdim=True)).flatten()[None]
        hidden = head.norm_hidden(head.hidden(head.norm(flat)))
        gated = hidden * head.excite(head.norm_squeeze(head.squeeze(hidden)).relu()).sigmoid()
        torch.testing.assert_close(logits[video], head.classifier(gated)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_linear_heads_are_scikit_learns(kind: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    generator = np.random.default_rng(0)
    labels = np.arange(90) % 4
    inputs = generator.normal(size=(90, 6)) * [1, 9, 0.1, 1, 1, 0] + np.eye(4, 6)[labels] * 2 + 3
    head = made(kind, 6, classes=5, c=0.3)
    rows, mask = torch.from_numpy(inputs).float()[:, None], torch.ones(90, 1, dtype=torch.bool)
    parts = torch.arange(90).split(40)
    targets = nn.functional.one_hot(torch.from_numpy(labels), 5)
    head.fit([({"rgb": rows[p]}, {"rgb": mask[p]}, targets[p]) for p in parts])
    solver = LinearSVC(C=0.3, random_state=0) if kind == "svm" else LogisticRegression(C=0.3, max_iter=1000)
    theirs = (
        make_pipeline(StandardScaler(), solver)
        .fit(inputs.astype(np.float32), labels)
        .decision_function(inputs.astype(np.float32))
    )
    logits = head({"rgb": rows}, {"rgb": mask}).detach().numpy()
    np.testing.assert_allclose(logits[:, :4], theirs, atol=2e-2)
    assert (logits[:, 4] < -100).all(), "no training video has the last class"


def test_of_two_classes_logistic_has_the_probabilities_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    inputs = torch.randn(60, 1, 3, generator=torch.Generator().manual_seed(0))
    inputs = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, unbiased=False)
    labels = (inputs[:, 0] @ torch.tensor([1.0, -0.5, 0.0]) + 0.7 * torch.randn(60) > 0).long()
    head, mask = made("logistic", 3, classes=3), torch.ones(60, 1, dtype=torch.bool)
    head.fit([({"rgb": inputs}, {"rgb": mask}, nn.functional.one_hot(2 * labels, 3))])  # the class between has no video
    found = head({"rgb": inputs}, {"rgb": mask}).softmax(dim=1).detach().numpy()
    theirs = (
        LogisticRegression(max_iter=1000).fit(inputs[:, 0].numpy(), labels.numpy()).predict_proba(inputs[:, 0].numpy())
    )
    np.testing.assert_allclose(found[:, [0, 2]], theirs, atol=1e-3)
    assert (found[:, 1] < 1e-6).all()


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_linear_heads_take_several_labels(kind: str) -> None:
    inputs = torch.randn(60, 1, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.cat([inputs[:, 0] > 0, torch.ones(60, 1, dtype=torch.bool)], dim=1)
    head, mask = made(kind, 3, classes=4), torch.ones(60, 1, dtype=torch.bool)
    head.fit([({"rgb": inputs}, {"rgb": mask}, targets.float())])
    right = (head({"rgb": inputs}, {"rgb": mask}) > 0) == targets
    assert right.float().mean() > 0.93 and right[:, 3].all()


def test_of_several_labels_logistic_tells_each_from_the_rest() -> None:
    """Also where every training video happens to have one: the classes' shares are those of the videos."""
    labels = torch.arange(90) % 3
    inputs = torch.randn(90, 1, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 0, :3] += torch.eye(3)[labels]
    head, mask = made("logistic", 4, classes=3), torch.ones(90, 1, dtype=torch.bool)
    head.fit([({"rgb": inputs}, {"rgb": mask}, torch.eye(3)[labels])], several=True)
    shares = head({"rgb": inputs}, {"rgb": mask}).sigmoid().mean(dim=0)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("kind", "options"), [("svm", {}), ("logistic", {}), ("ridge", {"standardise": True, "alpha": 1.0})]
)
def test_a_constant_input_says_nothing_however_large_it_is(kind: str, options: dict[str, Any]) -> None:
    """Its means over different numbers of rows differ by rounding."""
    generator = torch.Generator().manual_seed(0)
    rows, mask = torch.zeros(40, 9, 3), torch.arange(9) < torch.arange(1, 41)[:, None] % 9 + 1
    rows[..., 0], rows[..., 1], rows[..., 2] = 0.1, torch.randn(40, 9, generator=generator), 7.3
    head, labels = made(kind, 3, classes=2, **options), (torch.arange(40) % 4 == 0).long()
    head.fit([({"rgb": rows}, {"rgb": mask}, nn.functional.one_hot(labels, 2))])
    weights = head.classifier.weight.abs().amax(dim=0)
    assert weights[0] == weights[2] == 0 and weights[1] > 0


def test_batch_norm_learns_from_rows_that_are_there() -> None:
    norm, plain = BatchNorm(3), nn.BatchNorm1d(3)
    rows, mask = torch.randn(2, 4, 3), torch.tensor([[True] * 4, [True, False, False, False]])
    found = norm(rows, mask)
    torch.testing.assert_close(found[mask], plain(rows[mask]))
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert norm(rows[:1, :1]).isfinite().all(), "a single row has no deviation"
    assert norm.training


def test_rows_are_spread_over_a_fixed_number_of_steps() -> None:
    rows, mask = torch.arange(9.0).expand(3, 9)[..., None], torch.arange(9) < torch.tensor(COUNTS)[:, None]
    assert spread(rows, mask, 3)[..., 0].tolist() == [[1, 4, 7], [0, 2, 3], [0, 0, 0]]
    assert spread(rows, mask, 8)[1, :, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    kept, there = at_most(rows, mask, 4)
    assert kept[0, :, 0].tolist() == [1, 3, 5, 7] and kept[1, :, 0].tolist() == [0, 1, 2, 3]
    assert there.sum(dim=1).tolist() == [4, 4, 1]
