"""F39: a clip that beeps and flashes at once does so in pictures, flow and sound, whatever its rate."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from extract.config import Limits
from extract.flow import FlowEngine, from_uint8
from extract.samples import AnyJob, Array, Job, SoundJob, samples
from extract.samplings import Every
from features.outcome import Outcome
from tests.sounds import click_and_flash

PICTURES = Job(Every(kind="every"), 32, 32, "bilinear", Limits())
PAIRS = Job(Every(kind="every"), 32, 32, "bilinear", Limits(), frames=2, gray=True)
HOP_S = 0.01
SOUND = SoundJob(HOP_S, 0.01, Limits())


@pytest.fixture(
    scope="module", params=[(25, False), (Fraction(30000, 1001), False), (Fraction(24000, 1001), True)], ids=str
)
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[list[tuple[int, Array]]], float]:
    """Rows of pictures, of pairs and of sound, from one pass; and the longest time between two pictures."""
    fps, variable = request.param
    path = click_and_flash(tmp_path_factory.mktemp("times") / "a.mp4", fps, variable=variable)
    jobs: tuple[AnyJob, ...] = (PICTURES, PAIRS, SOUND)
    rows: list[list[tuple[int, Array]]] = [[], [], []]
    for number, item in samples(path, dict(enumerate(jobs))):
        if isinstance(item, Outcome):
            assert item.outcome == "ok"
        else:
            rows[number].append((item[0], item[1].copy()))
    return rows, max(np.diff([time_us for time_us, _ in rows[0]])) * 1e-6


def test_sound_and_light_are_at_one_time(seen: tuple[list[list[tuple[int, Array]]], float]) -> None:
    (pictures, pairs, sound), step_s = seen
    flash_s = next(time_us for time_us, image in pictures if image.mean() > 200) * 1e-6
    assert flash_s == pytest.approx(1.0, abs=step_s)
    engine = FlowEngine("framepool", 20.0, device="cpu", threads=1)
    moved = [
        np.abs(from_uint8(engine.finish(engine.start(pair[None]))[0].transpose(2, 0, 1), 20.0)).mean()
        for _, pair in pairs
    ]
    engine.close()
    flow_s = pairs[int(np.argmax(moved))][0] * 1e-6
    assert max(moved) > 10 * sorted(moved)[-3], "nothing else moves"
    assert abs(flow_s - flash_s) <= step_s
    # The first patch that holds some of the beep ends where it begins.
    beep_s = next(time_us for time_us, patch in sound if patch.max() > 0) * 1e-6 + 0.4875
    assert abs(beep_s - flash_s) <= step_s + HOP_S + 0.0125  # a window is 25 ms wide


def test_each_pair_stands_between_its_pictures(seen: tuple[list[list[tuple[int, Array]]], float]) -> None:
    (pictures, pairs, _), _ = seen
    times = [time_us for time_us, _ in pictures]
    assert [time_us for time_us, _ in pairs] == [(a + b) // 2 for a, b in itertools.pairwise(times)]
