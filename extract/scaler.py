"""From a decoded frame to a picture of a given size: upright, scaled, the middle of it.

scale = Scaler(256, 224, "bilinear")
image = scale(frame)                                    # uint8 (224, 224, 3) RGB
Scaler(256, 256, "bilinear", width_px=340)(frame)       # uint8 (256, 340, 3)
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from extract.media import MediaError

LONGEST_PX: Final = 1 << 16  # of a picture that is scaled before its crop; slivers would fill the memory
_RESERVED: Final = 3  # ISO/IEC 23091-2, matrix coefficients
Image = npt.NDArray[np.uint8]


class Scaler:
    """Short side to `resize_px`, or more where the crop needs it, centre crop of `crop_px` by `width_px` (None: a
    square), turned as the file asks; one reused reformatter.

    "rgb24" gives uint8 (crop_px, width_px, 3), "gray" the luma, uint8 (crop_px, width_px), both of full range.
    """

    def __init__(
        self,
        resize_px: int,
        crop_px: int,
        interpolation: str,
        pixel_format: Literal["rgb24", "gray"] = "rgb24",
        width_px: int | None = None,
    ) -> None:
        self.resize_px, self.pixel_format = resize_px, pixel_format
        self.height_px, self.width_px = crop_px, width_px or crop_px
        self._filter = {"bilinear": Interpolation.BILINEAR, "bicubic": Interpolation.BICUBIC}[interpolation]
        self._reformat = VideoReformatter().reformat

    def __call__(self, frame: VideoFrame) -> Image:
        """The middle of `frame`. Raises `MediaError` for a sliver that would become longer than `LONGEST_PX`."""
        image, turned = self._scaled(frame), _turned(frame)
        height_px, width_px = (self.width_px, self.height_px) if turned else (self.height_px, self.width_px)
        top, left = (image.shape[0] - height_px) // 2, (image.shape[1] - width_px) // 2
        return _upright(image[top : top + height_px, left : left + width_px], frame)

    def whole(self, frame: VideoFrame) -> Image:
        """All of it: uint8 (H, W, ...), the short side `resize_px` or more."""
        return _upright(self._scaled(frame), frame)

    def _scaled(self, frame: VideoFrame) -> Image:
        sides = (frame.height, frame.width) if _turned(frame) else (frame.width, frame.height)
        scale = max(self.resize_px / min(sides), self.width_px / sides[0], self.height_px / sides[1])
        width, height = (max(self.resize_px, round(side * scale)) for side in (frame.width, frame.height))
        if max(width, height) > LONGEST_PX:
            raise MediaError("too_large", f"{frame.width}x{frame.height} pixels would become {width}x{height}")
        if frame.interlaced_frame:  # FFmpeg would scale its fields apart, and weave combs of their edges
            frame = VideoFrame.from_ndarray(self._in_colours(frame, format="rgb24").to_ndarray(), format="rgb24")
        scaled = self._in_colours(
            frame, width=width, height=height, format=self.pixel_format, interpolation=self._filter
        )
        return scaled.to_ndarray().astype(np.uint8, copy=False)

    def _in_colours(self, frame: VideoFrame, **asked: Any) -> VideoFrame:
        """`frame` reformatted; a matrix that is "reserved" is one that is not told. Raises `MediaError` for colours
        that FFmpeg does not convert."""
        known = None if frame.colorspace != _RESERVED else Colorspace.ITU601
        try:
            return self._reformat(frame, threads=1, src_colorspace=known, dst_colorspace=known, **asked)
        except MemoryError:  # FFmpeg's own is one of its errors, too
            raise
        except FFmpegError:
            reason = f"its colours (matrix {frame.colorspace} of ISO/IEC 23091-2) are not converted"
            raise MediaError("undecodable", reason) from None


def _upright(image: Image, frame: VideoFrame) -> Image:
    """`image` (H, W, ...) turned and mirrored as the frame's display matrix says, by the nearest quarter turns."""
    a, b, c, d = _display(frame)
    if _turned(frame):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _turned(frame: VideoFrame) -> bool:
    """Whether what is coded as its height is seen as its width."""
    a, b, c, d = _display(frame)
    return abs(b) + abs(c) > abs(a) + abs(d)


def _display(frame: VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d) of x' = ax + cy, y' = bx + dy with y down (ISO/IEC 14496-12, 8.3.2)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).tolist()
    return a, b, c, d
