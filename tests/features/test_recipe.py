"""Configs refuse what they do not know, and digests tell every change apart (F31, F32)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from extract.config import NUMERICS, ExtractorConfig, Limits, Pixels, Rgb, recipe
from features.errors import UserError
from features.recipe import Config, digest, file_sha256

NETWORK = {"name": "test_vit", "weights": "w.safetensors"}


class Outer(Config):
    """A config that holds extractors, as a dataset does."""

    extractors: dict[str, ExtractorConfig] = Field(default_factory=dict)
    share: float = 0.5


def parse(extractor: dict[str, Any]) -> Outer:
    return Outer.parse({"extractors": {"rgb": extractor}}, "config/demo.yaml")


def pixels(**fields: Any) -> dict[str, Any]:
    return {"kind": "pixels", **fields}


def sampled(**fields: Any) -> dict[str, Any]:
    return pixels(sampling=fields)


def rgb(**fields: Any) -> dict[str, Any]:
    return {"kind": "rgb", "network": NETWORK, **fields}


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        (pixels(samplin={}), r"unknown key: config/demo.yaml: \$.extractors.rgb.samplin; did you mean 'sampling'"),
        (pixels(transform={"resise": 3}), r"\$.extractors.rgb.transform.resise; did you mean 'resize'"),
        (sampled(kind="fps", fbs=3), r"\$.extractors.rgb.sampling.fbs; did you mean 'fps'"),
        (sampled(kind="uniform", n="ten"), r"\$.extractors.rgb.sampling.n: expected a whole number, got 'ten'"),
        (sampled(kind="uniform", n=0), r"sampling.n: expected a number > 0, got 0"),
        (sampled(kind="fps"), r"rgb.sampling.fps: expected a value, got nothing"),
        (sampled(kind="fps", fps=float("nan")), r"sampling.fps: expected .*finite.*, got nan"),
        (sampled(kind="often"), r"sampling.kind: expected one of 'uniform', 'every'.*, got 'often'"),
        (sampled(), r"sampling.kind: expected a value, got nothing"),
        ({"kind": "rbg"}, r"\$.extractors.rgb.kind: expected one of 'pixels', .*'audio', got 'rbg'"),
        (pixels(transform={"resize": 64, "crop": 65}), r"transform: expected crop <= resize, that is crop <= 64"),
        (rgb(batch="4GB"), r"\$.extractors.rgb.batch: expected a whole number, got '4GB'"),
        (rgb(device="tpu"), r"device: expected one of 'cpu' or 'cuda', got 'tpu'"),
        (rgb(device="cuda", runtime="openvino"), "expected runtime torch on device cuda"),
    ],
)
def test_a_mistake_is_named_with_its_place(extractor: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse(extractor)
    assert str(error.value).startswith(("unknown key: config/demo.yaml: $", "invalid config: config/demo.yaml: $"))
    assert "\n" not in str(error.value)


def test_configs_are_frozen_and_full_of_defaults() -> None:
    config = parse({"kind": "rgb", "network": NETWORK}).extractors["rgb"]
    assert isinstance(config, Rgb) and config.batch == 4 and config.chosen_runtime == "openvino"
    with pytest.raises(ValueError, match="frozen"):
        config.batch = 9  # type: ignore[misc]
    assert Outer.parse(Outer(share=0.25).recipe(), "x") == Outer(share=0.25)


def test_every_field_but_the_timeout_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"kind": "rgb", "network": NETWORK}
    changes: list[dict[str, Any]] = [
        {"sampling": {"kind": "uniform", "n": 24}},
        {"sampling": {"kind": "every", "k": 1}},
        {"sampling": {"kind": "fps", "fps": 25}},
        {"sampling": {"kind": "segments", "n": 25}},
        {"network": {**NETWORK, "layer": "layer1"}},
        {"network": {**NETWORK, "layer": "layer1", "pool": False}},
        {"network": {**NETWORK, "name": "test_resnet"}},
        {"network": {**NETWORK, "library": "torchvision"}},
        {"network": {**NETWORK, "options": {"a": 1}}},
        *({"transform": {key: 32}} for key in ("resize", "crop")),
        *({"transform": {key: [0.5, 0.5, 0.5]}} for key in ("mean", "std")),
        {"transform": {"interpolation": "bicubic"}},
        *({"limits": {key: 7}} for key in Limits.model_fields if key not in ("timeout_s", "min_decoded_ratio")),
        {"limits": {"min_decoded_ratio": 0.5}},
        {"device": "cuda"},
        {"runtime": "torch"},
        {"precision": "bf16"},
        {"batch": 16},
        {"decoder": "cuda"},
    ]
    made = [digest(recipe(Rgb.parse({**base, **change}, "x"), "weights")) for change in [{}, *changes]]
    assert len(set(made)) == len(made)
    whole = Rgb.parse(base, "x")
    assert digest(recipe(whole, "other weights")) not in made
    assert digest(recipe(Rgb.parse({**base, "limits": {"timeout_s": 5}}, "x"), "weights")) == made[0]
    assert digest(recipe(Rgb.parse({**base, "runtime": "openvino"}, "x"), "weights")) == made[0]
    elsewhere = {**base, "network": {**NETWORK, "weights": "elsewhere/w.safetensors"}}
    assert digest(recipe(Rgb.parse(elsewhere, "x"), "weights")) == made[0]
    monkeypatch.setitem(NUMERICS, "rgb", NUMERICS["rgb"] + 1)
    assert digest(recipe(whole, "weights")) != made[0]
    assert digest(recipe(Pixels(kind="pixels"), None)) not in made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))
    assert digest({**value, "one more": 1}) != digest(value)


def test_digests_are_what_they_have_always_been() -> None:
    assert digest({"kind": "rgb", "n": 25, "é": [1.5, None]})[:16] == "a38b150ee5a225f3"
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
