"""Streams: what a file gives frame by frame is what the store and the head give; addresses on loopback; refusals."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trustme

from extract.config import Limits
from extract.media import CONTAINERS, LIVE, MediaError, decode_live
from features.errors import FramepoolError, UserError
from features.store import read_shard
from heads.config import EncoderConfig
from heads.end_to_end import Encoder
from pipelines import __main__ as program
from pipelines import plan as plans
from pipelines.live import Live
from pipelines.of_run import of_run
from tests import servers
from tests.media import write_video
from tests.workflow import world

RUN = {"kind": "average", "features": ["rgb"], "train": {"epochs": 1}}
EVERY = {**world.CONFIG["extractors"]["rgb"], "sampling": {"kind": "every", "k": 2}}
PIXELS = {"kind": "pixels", "sampling": {"kind": "every", "k": 2}, "transform": {"resize": 40, "crop": 32}}
TSN = {"kind": "tsn", "features": ["pixels"], "crop_px": 32, "network": {"name": "test_resnet"}, "train": {"epochs": 1}}
WHOLE: dict[str, Any] = {
    "kind": "vtn",
    "features": ["pixels"],
    "dim": 16,
    "heads": 2,
    "blocks": 1,
    "train": {"epochs": 1},
    "encoder": {"name": "test_resnet", "crop_px": 24, "frames": 4},
}
HEADS = {
    "average": RUN,
    "vtn": {"kind": "vtn", "features": ["rgb"], "dim": 16, "heads": 2, "blocks": 1, "train": {"epochs": 1}},
    "tsn": TSN,
    "whole": WHOLE,
    "whole_fps": {**WHOLE, "features": ["pixels_fps"]},
    "whole_diff": {**WHOLE, "encoder": {**WHOLE["encoder"], "reads": "rgbdiff"}},
    "two": {**RUN, "features": ["rgb", "diff"]},
    "diff": {**RUN, "features": ["diff"]},
}
DIFF = {"kind": "rgbdiff", "pairs": 2, "sampling": {"kind": "segments", "n": 2}}
FILE = "file:" + "//"
DIFF |= {k: world.CONFIG["extractors"]["rgb"][k] for k in ("network", "transform")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset, each second frame of it, with heads of several kinds."""
    folder = world.build(tmp_path_factory.mktemp("live") / "made", frames=24)
    by_time = {**PIXELS, "sampling": {"kind": "fps", "fps": 5}}
    extractors = {"rgb": EVERY, "pixels": PIXELS, "pixels_fps": by_time, "diff": DIFF}
    world.write_config(folder, {**world.CONFIG, "extractors": extractors, "heads": HEADS})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(program.signal, "signal", lambda *_: None)
        for line in (
            "extract tiny --extractor rgb --extractor pixels --extractor pixels_fps --extractor diff --threads 2",
            f"train tiny {' '.join(f'--head {head}' for head in HEADS)} --threads 1",
        ):
            plans.of.cache_clear()
            assert program.main(line.split()) == 0
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    plans.of.cache_clear()
    return made


def live(head: str = "average", **options: Any) -> Live:
    (folder,) = Path("work/tiny/runs").glob(f"{head}-*/seed0")
    return Live(of_run(folder), **options)


def clip(number: int = 0) -> str:
    return f"videos/{world.name_of(number)}.avi"


def test_a_file_without_a_picture_is_said(tmp_path: Path) -> None:
    """One that has only its header left; and numbers of frames that there cannot be."""
    path = write_video(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(FramepoolError, match=r"no frames: .*a.mp4: got undecodable: \S+"):
        list(live().labels(str(path)))
    with pytest.raises(UserError, match="no frames to take: every: expected 1 or more, got -1"):
        next(live().labels(str(path), every=-1))
    with pytest.raises(UserError, match="no frames to look back on: last: expected 1 or more, got -3"):
        live(last=-3)


@pytest.mark.parametrize("head", ["average", "vtn", "tsn"])
@pytest.mark.parametrize("last", [1, 5])
def test_a_stream_says_what_the_stored_rows_say(head: str, last: int) -> None:
    streamed = live(head, last=last)
    found = list(streamed.labels(clip(), every=2))
    modality = "pixels" if head == "tsn" else "rgb"
    (store,) = Path("work/tiny/features").glob(f"{modality}-*")
    shard = read_shard(store, 0)
    first = shard.manifest.ids.index(world.name_of(0))
    rows, times = (a[shard.offsets[first] : shard.offsets[first + 1]] for a in (shard.frames, shard.time_us))
    assert [round(label.time_s * 1e6) for label in found] == times.tolist() and len(found) == 12
    for number, label in enumerate(found):
        seen = torch.from_numpy(rows[max(0, number + 1 - last) : number + 1])[None]
        seen = seen if head == "tsn" else seen.float()
        with torch.inference_mode():
            logits = streamed.run.head({modality: seen}, {modality: torch.ones(seen.shape[:2], dtype=torch.bool)})[0]
        np.testing.assert_allclose(label.logits, logits.numpy(), rtol=1e-3, atol=1e-4)
        assert label.name == world.CLASSES[int(label.logits.argmax())]
        assert label.probability == pytest.approx(float(torch.from_numpy(label.logits).softmax(dim=0).max()))


@pytest.mark.parametrize("head", ["whole", "whole_diff"])
def test_an_end_to_end_head_sees_the_last_frames_together(head: str) -> None:
    """From the fourth frame on as it scores a clip of the last four."""
    streamed = live(head)
    assert streamed.last == (4 if head == "whole" else 3)
    found = list(streamed.labels(clip(), every=2))
    again = list(streamed.labels(clip()))  # the pace of the clips that it was trained on
    (store,) = Path("work/tiny/features").glob("pixels-*")
    shard = read_shard(store, 0)
    first = shard.manifest.ids.index(world.name_of(0))
    rows = torch.from_numpy(shard.frames[shard.offsets[first] : shard.offsets[first + 1]])
    assert len(found) == len(rows) == 12
    changed = 0.0
    for number in range(3, 12):
        with torch.inference_mode():
            seen = rows[None, number - 3 : number + 1]
            logits = streamed.run.head({"pixels": seen}, {"pixels": torch.ones(1, 4, dtype=torch.bool)})[0]
        np.testing.assert_allclose(found[number].logits, logits.numpy(), rtol=0, atol=2e-5)
        np.testing.assert_allclose(found[number].logits, again[number].logits, atol=1e-6)
        changed = max(changed, float(np.abs(found[number].logits - found[3].logits).max()))
    assert changed > 2e-4, "frames that all look the same show nothing"
    with pytest.raises(UserError, match="an end-to-end head sees clips of one length"):
        live(head, last=9)


def test_a_crop_is_rounded_not_cut_off() -> None:
    """Of 256 pixels the middle 224, at whole places: the crop is what is stored, number for number."""
    online: Any = live("whole")._online
    online._encoder = Encoder({"pixels": (256, 256, 3)}, EncoderConfig(name="test_resnet", crop_px=224))
    image, seen = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8), []
    online._stream = seen.append
    online(image)
    np.testing.assert_array_equal(seen[0], image[16:240, 16:240])


def test_each_frame_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed, calls = live(last=8), []
    start = streamed._engine.start
    monkeypatch.setattr(streamed._engine, "start", lambda samples: calls.append(len(samples)) or start(samples))
    assert len(list(streamed.labels(clip()))) == 24
    assert calls == [1] * 24


def test_the_command_prints_a_line_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = Path("work/tiny/runs").glob("average-*/seed0")
    assert program.main(["stream", str(folder), clip(), "--every", "5", "--last", "3", "--threads", "1"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 5
    for line in lines:
        assert re.fullmatch(r" +\d+\.\d{3} s  (Jump|Run)  [01]\.\d{3}  \d+\.\d frames/s", line)
    assert said.err.startswith("the last 3 embeddings, each 5. frame\n5 labels in ")
    assert program.main(["stream", str(folder), clip(), "--every", "1", "--last", "3", "--threads", "1"]) == 0
    assert capsys.readouterr().err.startswith("the last 3 embeddings, each frame\n")


def test_an_iterator_that_is_left_ends_its_thread() -> None:
    before = threading.active_count()
    labels = live().labels(clip())
    next(labels)
    labels.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_http(here: Path) -> None:
    streamed = live()
    with servers.http(here) as address:
        found = [label.logits for label in streamed.labels(f"{address}/{clip()}")]
        moved = [label.logits for label in streamed.labels(f"{address}/to?{address}/{clip()}")]
    expected = [label.logits for label in streamed.labels(clip())]
    assert len(found) == 24 and np.array_equal(found, expected) and np.array_equal(moved, expected)
    assert streamed.dropped == 0


def test_https(here: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    own = trustme.CA().issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(key)
    own.cert_chain_pems[0].write_to_path(certificate)
    streamed = live()
    with servers.http(here, (certificate, key)) as address:
        assert address.startswith("https://")
        found = [label.logits for label in streamed.labels(f"{address}/{clip()}")]
    assert np.array_equal(found, [label.logits for label in streamed.labels(clip())])


@pytest.mark.parametrize(("server", "lost"), [(servers.tcp, 0), (servers.rtsp, 5), (servers.rtmp, 0)])
def test_streams(server: Callable[[Path], AbstractContextManager[str]], lost: int, tmp_path: Path) -> None:
    """What does not wait is told by its scheme; of RTP some pictures at the end have no successor that ends them."""
    streamed = live()
    with server(write_video(tmp_path / "clip.mp4", frames=40, width=64, height=64)) as address:
        found = list(streamed.labels(address))
    assert 40 - lost <= len(found) + streamed.dropped <= 40
    assert all(np.isfinite(label.logits).all() for label in found)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        pytest.param("silent", "timeout: nothing came for 2 s", id="silent"),
        pytest.param("reset", "undecodable: it broke off: ", id="reset"),
    ],
)
def test_a_source_that_breaks_off_is_no_end(
    end: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came is labelled, and then it is said."""
    monkeypatch.setattr("extract.media.ANSWER_S", 2.0)
    streamed, found = live(), list[float]()
    path = write_video(tmp_path / "clip.mp4", frames=60, width=64, height=64)
    said = f"no more frames: tcp://.*: got {said}"
    with servers.broken(path, end) as address, pytest.raises(FramepoolError, match=said):
        found.extend(label.time_s for label in streamed.labels(address))
    assert 10 < len(found) < 60


def test_a_file_that_lacks_its_end_is_said(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = Path("work/tiny/runs").glob("average-*/seed0")
    path = write_video(tmp_path / "clip.avi", frames=60, width=64, height=64, codec="mpeg4")
    assert program.main(["stream", str(folder), str(path), "--threads", "1"]) == 0
    assert "damaged" not in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    assert program.main(["stream", str(folder), str(path), "--threads", "1"]) == 0
    assert re.search(
        r"labels in .*; the file is damaged: \d+ of 60 frames decoded; frame \d+: ", capsys.readouterr().err
    )


def test_a_head_of_frames_by_time_takes_them_by_time(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the extractor does: five frames a second of ten are each second one."""
    (folder,) = Path("work/tiny/runs").glob("whole_fps-*/seed0")
    streamed = live("whole_fps")
    assert [round(label.time_s * 10) for label in streamed.labels(clip())] == list(range(0, 24, 2))
    assert [round(label.time_s * 10) for label in islice(streamed.labels(clip(), every=3), 3)] == [0, 3, 6]
    assert program.main(["stream", str(folder), clip(), "--threads", "1"]) == 0
    assert capsys.readouterr().err.startswith("the last 4 embeddings, 5 a second\n12 labels in ")


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        labels = live(threads=1).labels(clip())
        next(labels)
        assert torch.get_num_threads() == 1
        labels.close()  # type: ignore[attr-defined]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_udp_takes_the_newest(tmp_path: Path) -> None:
    with servers.udp(write_video(tmp_path / "clip.mp4", frames=60, width=64, height=64)) as address:
        found = list(islice(live().labels(address), 5))
    assert len(found) == 5 and all(np.isfinite(label.logits).all() for label in found)


@pytest.mark.parametrize(
    "source",
    [
        "ftp://127.0.0.1/clip.avi",
        f"{FILE}/etc/passwd",
        "concat://a|b",
        "data://text",
        "crypto://x",
        "hls+http://127.0.0.1/x",
    ],
)
def test_other_schemes_are_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"not a source: .*expected a file, /dev/video0, or an address of http, https"):
        next(live().labels(source))
    with pytest.raises(MediaError, match="is not one of http, https, rtsp, rtmp, tcp, udp"):
        next(decode_live(source, Limits()))


def test_what_an_address_leads_to_is_held_to_the_list(here: Path, tmp_path: Path) -> None:
    """Playlists, and redirections to other protocols, would open what nobody named."""
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{FILE}{here / clip()}\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile {here / clip()}\n")
    (tmp_path / "page.html").write_text("<html>404</html>")
    with servers.http(tmp_path) as address:
        for name in ("list.m3u8", "list.txt", "page.html", "absent.mp4", f"to?{FILE}{here / clip()}"):
            with pytest.raises(FramepoolError, match=r"no frames: http://.*: got (refused|undecodable): "):
                next(live().labels(f"{address}/{name}"))


def test_only_plain_files_are_opened_anywhere_else() -> None:
    """An address is not a path to the other commands, which keep to FFmpeg's file protocol."""
    assert "hls" not in CONTAINERS and "concat" not in CONTAINERS
    assert all("file" not in protocols.split(",") for protocols in LIVE.values())
    for source in ("nowhere.mp4", "/dev/null", "http:/x", "pipe:0"):
        with pytest.raises(UserError, match="no such file"):
            next(live().labels(source))


def test_a_camera_that_is_not_there() -> None:
    with pytest.raises(FramepoolError, match="no frames: /dev/video63: got undecodable: no camera that can be opened"):
        next(live().labels("/dev/video63"))


@pytest.mark.parametrize(
    ("head", "said"),
    [("two", "no clip graph of several modalities"), ("diff", "rows of several frames do not stream")],
)
def test_heads_that_do_not_stream(head: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        live(head)
