"""What I3D has after Mixed_4f, on cached maps or behind the trunk: the baseline that KFT is compared with.

"Quo Vadis, Action Recognition?" (CVPR 2017), fig. 3: max-pooling 2 x 2 x 2, Mixed_5b and Mixed_5c from scratch, the
mean over places, dropout, a linear layer. See `heads.maps` for rows and `heads.kft` for cuts.
Legend: R rows, C channels, T frames, H W of a map, K classes.

    heads.build("i3d", {"maps": (832, 8, 8, 8)}, num_classes=101)
"""

from __future__ import annotations

from torch import Tensor, nn

from extract.networks import Network
from extract.networks.i3d import MIXED, Mixed, SamePool, mean_pool
from heads.base import Shapes
from heads.map_kinds import TrunkConfig
from heads.maps import OfMaps


class I3dTail(OfMaps):
    """MaxPool_5a where it is not cut off, two Inception blocks, mean, dropout, linear."""

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        cut: str,
        mixed_kt: int,
        dropout: float,
        consensus: str,
        crop_px: int | None,
        augment: str,
        network: Network | TrunkConfig | None = None,
    ) -> None:
        super().__init__(
            shapes,
            num_classes,
            kind="i3d",
            cut=cut,
            consensus=consensus,
            network=network,
            crop_px=crop_px,
            augment=augment,
        )
        self.MaxPool_5a = nn.Identity() if cut == "max_pool_5a" else SamePool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = Mixed(self.map[0], MIXED["Mixed_5b"], mixed_kt)
        self.Mixed_5c = Mixed(self.Mixed_5b.size, MIXED["Mixed_5c"], mixed_kt)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.Mixed_5c.size, num_classes)

    def scores(self, maps: Tensor) -> Tensor:
        """(R,C,T,H,W) -> (R,K)."""
        maps = self.Mixed_5c(self.Mixed_5b(self.MaxPool_5a(maps)))
        found: Tensor = self.classifier(self.dropout(mean_pool(maps)))
        return found
