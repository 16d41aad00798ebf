"""Rows of one modality at the times of another: the nearest one, for heads that see modalities step by step.

A row's time is the middle of what it covers: a frame, a stack of flow, a clip, a patch of sound (Attention Clusters,
CVPR 2018, appendix B: TS-LSTM over all modalities needs sound beside each picture).
Legend: B videos, L rows of the reference, N rows of the other modality, of all videos.

    rows = nearest(reference_us, times_us, starts, counts)          # (B,L) row numbers within each video
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def nearest(reference_us: Ints, times_us: Ints, starts: Ints, counts: Ints) -> Ints:
    """(B,L), (N+1,), (B,), (B,) -> (B,L): the row nearest in time, the earlier of two.

    Video b has the times times_us[starts[b] : starts[b] + counts[b]], ascending; the last entry is padding. 0 for a
    video that has none.
    """
    starts, last = starts[:, None], np.maximum(counts - 1, 0)[:, None]
    after, end = np.zeros_like(reference_us), counts[:, None] + np.zeros_like(reference_us)
    for _ in range(int(counts.max(initial=0)).bit_length()):  # bisection, of all reference rows at once
        middle = (after + end) // 2
        earlier = (middle < end) & (times_us[starts + np.minimum(middle, last)] < reference_us)
        after, end = np.where(earlier, middle + 1, after), np.where(earlier, end, middle)
    before, after = np.maximum(after - 1, 0), np.minimum(after, last)
    to_before = np.abs(reference_us - times_us[starts + before])
    return np.where(to_before <= np.abs(times_us[starts + after] - reference_us), before, after)
