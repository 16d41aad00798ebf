"""LSTMs that learn on a CPU in bf16: the same function as torch's, in fewer products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import heads.bilstm
import heads.ordered
from extract.networks.bf16 import has_bf16
from heads.lstm import learned
from heads.ordered import BatchNorm
from tests.heads.test_baselines import batch, made

L, B, D, H = 7, 5, 6, 4


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad((output.float() * weight).sum(), inputs))


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_torchs_lstm_and_its_gradients(layers: int) -> None:
    torch.manual_seed(0)
    lstm, rows = nn.LSTM(D, H, layers, batch_first=True), torch.randn(B, L, D, requires_grad=True)
    inputs = [rows, *lstm.parameters()]
    ours, theirs = learned(lstm, rows), lstm(rows)[0]
    torch.testing.assert_close(ours, theirs)
    for own, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_rows_of_one_step() -> None:
    torch.manual_seed(0)
    lstm, rows = nn.LSTM(D, H, batch_first=True), torch.randn(B, 1, D)
    inputs = list(lstm.parameters())
    torch.testing.assert_close(learned(lstm, rows), lstm(rows)[0])
    for own, expected in zip(gradients(learned(lstm, rows), inputs), gradients(lstm(rows)[0], inputs), strict=True):
        torch.testing.assert_close(own, expected)


def test_weights_take_up_scale_and_shift() -> None:
    torch.manual_seed(0)
    lstm, rows = nn.LSTM(D, H, batch_first=True), torch.randn(B, L, D)
    scale, shift = torch.randn(D, requires_grad=True), torch.randn(D, requires_grad=True)
    inputs = [scale, shift, *lstm.parameters()]
    ours, theirs = learned(lstm, rows, scale, shift), lstm(rows * scale + shift)[0]
    torch.testing.assert_close(ours, theirs)
    for own, expected in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("asked", [False, True])
def test_gradients_of_rows_are_a_product_only_where_they_are_asked_for(asked: bool) -> None:
    lstm, rows = nn.LSTM(D, H, batch_first=True), torch.randn(B, L, D, requires_grad=asked)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(learned(lstm, rows).sum())
    inputs, hidden = 2 * L * B * 4 * H * D, 2 * (L - 1) * B * 4 * H * H
    assert counter.get_total_flops() == (3 if asked else 2) * inputs + 3 * hidden


def test_dropout_between_layers() -> None:
    torch.manual_seed(0)
    lstm, rows = nn.LSTM(D, H, 2, batch_first=True, dropout=0.5), torch.randn(B, L, D)
    assert not learned(lstm, rows).equal(learned(lstm, rows))
    lstm.eval()
    torch.testing.assert_close(learned(lstm, rows), lstm(rows)[0])


KINDS = {
    "bilstm": ({"hidden": {"rgb": 256, "flow": 300}}, 4),
    "stacked_lstm": ({"hidden": 256}, 1),
    "ts_lstm": ({"hidden": 256}, 1),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[nn.LSTM]:
    """The LSTMs that learned here, call after call."""
    found: list[nn.LSTM] = []

    def counted(lstm: nn.LSTM, *args: Tensor) -> Tensor:
        found.append(lstm)
        return learned(lstm, *args)

    for module in (heads.bilstm, heads.ordered):
        monkeypatch.setattr(module, "learned", counted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_steps_of_heads_have_the_gradients_of_fp32(kind: str, calls: list[nn.LSTM]) -> None:
    """With padding and batch norms, without dropout."""
    options, count = KINDS[kind]
    found, buffers = {}, {}
    for bf16 in (False, True):
        head = made(kind, 4, 3, **options).train()
        for module in head.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.BatchNorm1d):  # TS-LSTM's begin next to nothing, which bf16 rounds
                nn.init.ones_(module.weight)
            if isinstance(module, nn.LSTM):
                module.dropout = 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = head(*batch(4, 3))
        assert len(calls) == count * bf16
        found[bf16] = dict(zip(dict(head.named_parameters()), gradients(logits, list(head.parameters())), strict=True))
        buffers[bf16] = dict(head.named_buffers())
    for name, exact in found[False].items():
        assert (found[True][name] - exact).norm() < 0.15 * exact.norm() + 1e-4, name
    for name, value in buffers[False].items():  # of batch norms
        torch.testing.assert_close(buffers[True][name], value, atol=1e-2, rtol=1e-2)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this CPU has no bf16: torch's kernel refuses it")
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_kernel_does_the_rest(kind: str, calls: list[nn.LSTM]) -> None:
    """What learns nothing, is exact, or is small."""
    options, _ = KINDS[kind]
    head, rows = made(kind, 4, 3, **options), batch(4, 3)
    head(*rows)
    small = made(kind, 4, 3, hidden=32)
    with torch.autocast("cpu", torch.bfloat16):
        small(*rows)
        with torch.no_grad():
            head(*rows)
    assert not calls


@pytest.mark.parametrize("shape", [(3, 5, D), (1, 1, D)])
def test_a_bare_batch_norm_is_one_before_its_weight_and_bias(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows = torch.randn(shape)
    norms = [BatchNorm(D), BatchNorm(D)]
    for norm in norms:
        nn.init.constant_(norm.weight, 3.0)
        nn.init.constant_(norm.bias, -2.0)
    mask = torch.arange(rows.shape[1]) < torch.arange(1, len(rows) + 1)[:, None]
    bare, whole = norms[0].bare(rows, mask), norms[1](rows, mask)
    torch.testing.assert_close(bare[mask] * 3 - 2, whole[mask])
    for (name, one), other in zip(norms[0].named_buffers(), norms[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert norms[0].training and norms[0].weight.requires_grad
