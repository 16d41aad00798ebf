"""An end-to-end head on a stream: each frame is looked at once, the head sees what was seen of the last T frames.

VTN (Kozlov et al., 2019), §4.4: one new frame through the encoder, the decoder on the last 16 embeddings. Of a VTN the
embeddings are kept after its `embed`, which then has one frame to do, too.

After T frames the scores are those of a clip of the last T frames. Only a stacked encoder knows more: the difference of
the first of them from the frame before it, for which a clip that begins there has zeros. At the start the first frame
stands for those that never were.
Legend: T tokens, E numbers of an embedding, S side of what the encoder sees, C channels, K classes.

    online = Online(head)                                  # head: heads.end_to_end.EndToEnd
    state = online.begin(frame)                            # frame: (1,S,S,C) uint8
    logits, *state = online(frame, *state)                 # (1,K)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from features.errors import UserError
from heads.end_to_end import EndToEnd
from heads.vtn import Vtn

State = tuple[Tensor, ...]


class Online(nn.Module):
    """A new frame and the state before it into logits and the state after it.

    The state is the ring of embeddings (1,T,E), oldest first, and for an encoder that sees differences the last frame.
    """

    def __init__(self, head: EndToEnd) -> None:
        """Raises `UserError` for a head on flow, whose rows are more than a frame."""
        super().__init__()
        self.encoder, self.head = head.encoder, head.head
        config, (shape,) = head.encoder.config, head.shapes.values()
        if config.reads == "flow":
            raise UserError("flow does not stream frame by frame", got=config.name, fix="stream a head on frames")
        frames = shape[0] if head.encoder.clips else config.frames
        self.compares, self.tokens = config.reads != "rgb", frames - (config.reads == "rgbdiff")
        self.embeds = isinstance(self.head, Vtn) and self.tokens <= self.head.length

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(1,S,S,C)."""
        (shape,) = self.encoder.shapes.values()
        return 1, self.encoder.size_px, self.encoder.size_px, shape[-1]

    def begin(self, frame: Tensor) -> State:
        """The state before `frame`, the first: as if it had stood there always."""
        ring = self.embedded(frame, frame).expand(-1, self.tokens, -1).contiguous()
        return (ring, frame) if self.compares else (ring,)

    def embedded(self, frame: Tensor, last: Tensor) -> Tensor:
        """(1,S,S,C), and the frame before it -> (1,1,E)."""
        clip = torch.stack([last, frame], dim=1) if self.compares else frame[:, None]
        images, _ = self.encoder.images(clip, torch.ones(clip.shape[:2], dtype=torch.bool, device=clip.device))
        vector = self.encoder.network.trunk(images[:, -1].contiguous(memory_format=torch.channels_last))[:, None]
        embedded: Tensor = self.head.embed(vector) if self.embeds else vector  # type: ignore[operator]
        return embedded

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """(1,S,S,C) uint8, the state -> logits (1,K), the next state."""
        ring = torch.cat([state[0][:, 1:], self.embedded(frame, state[-1])], dim=1)
        there = torch.ones(ring.shape[:2], dtype=torch.bool, device=ring.device)
        if self.embeds:
            logits = self.head.of_classes(self.head.decoded(ring, there))  # type: ignore[operator]
        else:
            logits = self.head({self.encoder.modality: ring}, {self.encoder.modality: there})
        return (logits, ring, frame) if self.compares else (logits, ring)
