"""The sizes of the papers' models, beside the specification and beside what the papers print (vtn.md, section 6)."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import heads
from extract.networks.describe import macs
from heads.counting import rule_macs
from heads.vtn import Attention
from pipelines import __main__ as program
from pipelines.papers import ROWS, online

SPECIFIED = {  # table, row: parameters in millions, GMAC by the authors' rule, true GMAC
    ("Table 2", "3D ResNet-34"): (63.6, 50.25, 50.20),
    ("Table 2", "fused RGB + flow"): (42.87, 8.49, 8.468),
    ("Table 2", "fused RGB + difference"): (42.92, 9.12, 9.097),
    ("Table 2", "stacked LSTMs"): (27.69, 3.68, 3.766),
    ("Table 2", "ResNet-34 VTN"): (29.012, 3.765, None),
    ("Table 5", "ResNet-34 VTN"): (29.012, 3.765, None),
    ("Table 5", "ResNet-34 VTN, stacked"): (29.02, 3.883, None),
    ("Table 5", "ResNet-50 VTN"): (32.02, 4.248, None),
    ("Table 5", "MobileNetV2 VTN"): (10.35, 0.398, None),
}
VTN_ROWS = [row for row in ROWS if row.table.startswith("VTN")]


def test_every_row_of_the_tables_is_there() -> None:
    assert {(row.table[-7:], row.name) for row in VTN_ROWS} == SPECIFIED.keys()


@pytest.mark.parametrize("row", VTN_ROWS, ids=lambda row: f"{row.table[-7:]} {row.name}")
def test_sizes(row: object) -> None:
    """Within 0.2 % of the specification; the paper cuts millions after one decimal and rounds GMAC."""
    table, name, found = row.table, row.name, row.measure()  # type: ignore[attr-defined]
    millions, gmacs, true = SPECIFIED[table[-7:], name]
    assert found.parameters / 1e6 == pytest.approx(millions, rel=2e-3)
    assert found.rule / 1e9 == pytest.approx(gmacs, rel=2e-3)
    assert true is None or found.macs / 1e9 == pytest.approx(true, rel=2e-3)
    paper = row.gmacs  # type: ignore[attr-defined]
    assert found.rule / 1e9 == pytest.approx(paper, abs=0.06)
    printed = row.parameters  # type: ignore[attr-defined]
    assert printed is None or printed <= found.parameters / 1e6 < printed + 0.2


def test_a_resnet_34_vtn_to_the_last_parameter() -> None:
    assert online("vtn", "resnet34").parameters == 29_012_488
    assert online("vtn", "seresnext101_32x4d", num_classes=400).parameters == pytest.approx(55.52e6, rel=2e-4)


def test_the_true_count_is_what_runs() -> None:
    """The embedding after the pooling saves 48 of 49 places; Q, K and V are counted whole."""
    found = online("vtn", "resnet34")
    trunk = 3_663_249_408
    decoder = 4 * 16 * (3 * 512 * 512 + 2 * 512 * 16 + 2 * 512 * 1024) + 512 * CLASSES * 16
    assert found.macs == pytest.approx(trunk + 512 * 512 + decoder, rel=1e-4)


CLASSES = 200


def test_the_rule_by_hand() -> None:
    """Of each kind of layer, the sentence of the rule."""
    x = torch.empty(1, 4, 8, 8, device="meta")
    with torch.device("meta"):
        assert rule_macs(nn.Conv2d(4, 6, 3, padding=1), x) == (9 * 4 + 1) * 6 * 64
        assert rule_macs(nn.Conv2d(4, 8, 3, padding=1, groups=4), x) == (9 + 1) * 8 * 64 // 4
        assert rule_macs(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2)), x) == 2 * 256 + 9 * 4 * 9
        rows = torch.empty(1, 16, 8)
        assert rule_macs(nn.Linear(8, 5), rows) == 9 * 5 * 16
        assert rule_macs(nn.LSTM(8, 6, 2, batch_first=True), rows) == 4 * 6 * (8 + 6) + 4 * 6 * 12
        attention = Attention(8, 2, 0.5, False)
        keys = torch.empty(1, 16, dtype=torch.bool)
        assert rule_macs(attention, rows, keys) == 3 * 2 * 8 * 16 * 2 + 2 * 16 * 4 * 16 + 2 * 2 * 16**3
        linear = nn.Linear(8, 5)
        assert rule_macs(linear, rows, places={linear: 49}) == 49 * 9 * 5 * 16
        assert not linear._forward_hooks


def test_meta_counts_what_a_real_pass_counts() -> None:
    torch.manual_seed(0)
    head = heads.build("vtn", {"rgb": (32,)}, 5, dim=16, heads=2).eval()
    rows, mask = {"rgb": torch.zeros(1, 16, 32)}, {"rgb": torch.ones(1, 16, dtype=torch.bool)}
    with torch.device("meta"):
        twin = heads.build("vtn", {"rgb": (32,)}, 5, dim=16, heads=2).eval()
        flat = {"rgb": torch.empty(1, 16, 32)}, {"rgb": torch.empty(1, 16, dtype=torch.bool)}
    assert macs(twin, *flat) == macs(head, rows, mask) and rule_macs(twin, *flat) == rule_macs(head, rows, mask)


@pytest.mark.slow
def test_the_command_prints_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    assert program.main(["models", "test_resnet", "--json"]) == 0
    papers = json.loads(capsys.readouterr().out)["papers"]
    found = {(row["table"], row["name"]): row for row in papers}
    assert found["VTN (2019), Table 5", "ResNet-34 VTN, stacked"]["rule"] == pytest.approx(3.883e9, rel=2e-3)
    assert len(found) == len(ROWS)
    assert program.main(["models", "test_resnet"]) == 0
    said = capsys.readouterr().out
    assert "29,012,488" in said and "3.765G" in said and "3.77G" in said


def test_kft_on_a_clip() -> None:
    """kft.md, section 1: the trunk, the three blocks, and what of I3D is between and after them."""
    found = {row.name: row.measure() for row in ROWS if row.table.startswith("KFT")}
    whole = 7.53 + (8.3 + 25.2 + 37.8) + 2.79 + 2.93 + 0.83 + 0.85  # with the projection of the lateral link
    assert found["KFT-3D"].parameters / 1e6 == pytest.approx(whole, rel=2e-3)
    assert found["KFT-3D"].macs / 1e9 == pytest.approx(54.6 + 5.1 + 1.6 + 0.3 + 0.4, rel=5e-3)
    flat = 7.53 + 28.4 + 8.3 + 6656 * 832 / 1e6 + 832 * 101 / 1e6  # spatial compression, one block, two layers
    assert found["KFT-2D"].parameters / 1e6 == pytest.approx(flat, rel=5e-3)
    assert found["KFT-1D"].parameters == found["KFT-2D"].parameters
