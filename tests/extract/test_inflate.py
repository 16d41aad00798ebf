"""2D weights as 3D ones: kernels, names, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from extract.networks import NetworkError
from extract.networks.inflate import inflate, inflated


def test_mean_divides_by_the_frames() -> None:
    kernel = torch.randn(2, 3, 3, 3)
    whole = inflated(kernel, 3)
    assert whole.shape == (2, 3, 3, 3, 3)
    assert torch.allclose(whole.sum(dim=2), kernel, atol=1e-6) and torch.equal(whole[:, :, 0], whole[:, :, 2])


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (3, 1), (7, 3), (2, 1)])
def test_centre_keeps_the_kernel_in_the_middle(frames: int, middle: int) -> None:
    kernel = torch.randn(2, 3, 1, 1)
    whole = inflated(kernel, frames, "centre")
    assert torch.equal(whole[:, :, middle], kernel) and int((whole != 0).any(dim=(0, 1, 3, 4)).sum()) == 1


def flat_and_deep() -> tuple[nn.Module, nn.Module]:
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    deep = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    return flat.eval(), deep.eval()


def test_a_still_gives_the_pictures_features() -> None:
    flat, deep = flat_and_deep()
    picture = torch.randn(1, 3, 8, 8)
    still = picture.unsqueeze(2).expand(-1, -1, 7, -1, -1)
    with torch.no_grad():
        for how, frames in (("mean", slice(2, 5)), ("centre", slice(0, 7))):  # two kernels, each reaching one frame
            deep.load_state_dict(inflate(flat.state_dict(), deep.state_dict(), how))  # type: ignore[arg-type]
            expected = flat(picture).unsqueeze(2)
            found = deep(still)
            assert torch.allclose(found[:, :, frames], expected, atol=1e-5)
            assert torch.allclose(found[:, :, 0], expected[:, :, 0], atol=1e-5) == (how == "centre")


def test_names_lead_to_keys_and_none_begins_at_random() -> None:
    flat, deep = flat_and_deep()
    taken = inflate(
        {f"body.{k}": v for k, v in flat.state_dict().items()},
        deep.state_dict(),
        name=lambda key: None if key.startswith("3.") else f"body.{key}",
    )
    assert set(taken) == {key for key in deep.state_dict() if not key.startswith("3.")}


def test_colours_fit_any_number_of_channels_later() -> None:
    flow = nn.Conv3d(2, 4, 3)
    taken = inflate(nn.Conv2d(3, 4, 3).state_dict(), flow.state_dict())
    assert taken["weight"].shape == (4, 3, 3, 3, 3)  # across_channels averages the colours


def test_what_does_not_fit_is_refused() -> None:
    flat, deep = flat_and_deep()
    state = flat.state_dict()
    with pytest.raises(NetworkError, match=r"they lack '0\.weight', which becomes '0\.weight'"):
        inflate({k: v for k, v in state.items() if k != "0.weight"}, deep.state_dict())
    with pytest.raises(
        NetworkError, match=r"3\.weight becomes 3\.weight: expected \[2, 4, 3, 3, 3\], got \[2, 4, 3, 5"
    ):
        inflate({**state, "3.weight": torch.zeros(2, 4, 5, 5)}, deep.state_dict())
