"""What a training step reads: one Batch of numpy arrays, and what isolation looks like to attention.

Legend: B rows, S positions of a decoder-only row, E and D positions of the encoder's and the decoder's row.
"""



from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_LOSS = -100
"""The target of a position that is not learned."""


@dataclass(frozen=True)
class Batch:
    """Rows of one step. Fields that an objective does not use are None; `batch["name"]` and iteration skip them.

    Targets are already shifted: the logits at position i are scored against targets[i]. Segments say which sample of
    the row a position belongs to (0 = padding, 1, 2, …): a position may attend only inside its own segment.
    """

    source_B: NDArray[np.int32]
    """Index of each row's source in `Stream.sources`."""
    denoiser_B: NDArray[np.int32]
    """Denoiser (1 … 7 as in the UL2 table, 0 = none, -1 = several in the row)."""
    targets_BS: NDArray[np.int64] | None = None
    weights_BS: NDArray[np.float32] | None = None
    """Weight of each target in the loss; 0 where there is none."""
    tokens_BS: NDArray[np.int64] | None = None
    segments_BS: NDArray[np.int32] | None = None
    positions_BS: NDArray[np.int32] | None = None
    block_positions_BS: NDArray[np.int32] | None = None
    """GLM's second position: 0 in the text, 1, 2, … inside a filled blank."""
    prefix_BS: NDArray[np.bool_] | None = None
    """True: every position of the same segment may see this one, whatever comes first. None: plain causal."""
    reversed_B: NDArray[np.bool_] | None = None
    """True: the row is read right to left (a position sees itself and what comes after)."""
    denoisers_BS: NDArray[np.int8] | None = None
    """Denoiser of the sample at each position of the (decoder's) row, for losses per denoiser."""
    encoder_tokens_BE: NDArray[np.int64] | None = None
    encoder_segments_BE: NDArray[np.int32] | None = None
    encoder_positions_BE: NDArray[np.int32] | None = None
    decoder_tokens_BD: NDArray[np.int64] | None = None
    decoder_segments_BD: NDArray[np.int32] | None = None
    decoder_positions_BD: NDArray[np.int32] | None = None
    targets_BD: NDArray[np.int64] | None = None
    weights_BD: NDArray[np.float32] | None = None
    denoisers_BD: NDArray[np.int8] | None = None
    truncated_tokens: int = 0
    """Tokens of the corpus that fell to these rows and did not fit."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (item.name for item in fields(self)
                if item.name != "truncated_tokens" and getattr(self, item.name) is not None)

    def __len__(self) -> int:
        return len(self.source_B)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name."""
        return {name: getattr(self, name) for name in self}

    @property
    def real_tokens(self) -> int:
        """Positions that are not padding, encoder and decoder together."""
        parts = (self.segments_BS, self.encoder_segments_BE, self.decoder_segments_BD)
        return sum(int(np.count_nonzero(part)) for part in parts if part is not None)

    @property
    def slots(self) -> int:
        """All positions, padding included."""
        parts = (self.segments_BS, self.encoder_segments_BE, self.decoder_segments_BD)
        return sum(part.size for part in parts if part is not None)

    @property
    def target_tokens(self) -> int:
        """Positions with a loss."""
        targets = self.targets_BS if self.targets_BS is not None else self.targets_BD
        return 0 if targets is None else int(np.count_nonzero(targets != NO_LOSS))


def cumulative_lengths(segments_BS: NDArray[np.integer]) -> tuple[NDArray[np.int32], int]:
    """`cu_seqlens` for varlen attention over the rows laid end to end, and the longest piece.

    Every run of equal segment ids is one piece; padding (0) forms pieces of its own, so the last entry is B*S.

    >>> cumulative_lengths(np.array([[1, 1, 2], [1, 0, 0]]))
    (array([0, 2, 3, 4, 6], dtype=int32), 2)
    """
    width = segments_BS.shape[1]
    flat = segments_BS.reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], (flat[1:] != flat[:-1]) | (np.arange(1, flat.size) % width == 0))))
    edges = np.append(starts, flat.size).astype(np.int32)
    return edges, int(np.diff(edges).max(initial=0))


def self_mask(batch: Batch) -> NDArray[np.bool_]:
    """Who sees whom in decoder-only rows, bool [B, S, S] (query, key); padding sees nothing. For checks and small
    models."""
    assert batch.segments_BS is not None
    segments = batch.segments_BS
    rows, width = segments.shape
    order = np.arange(width)
    visible = np.broadcast_to(order[None, :] <= order[:, None], (rows, width, width)).copy()
    if batch.reversed_B is not None:
        visible[batch.reversed_B] = visible[batch.reversed_B].transpose(0, 2, 1)
    if batch.prefix_BS is not None:
        visible |= batch.prefix_BS[:, None, :]
    return visible & (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)


def encoder_mask(batch: Batch) -> NDArray[np.bool_]:
    """Encoder self-attention, bool [B, E, E]: everything inside the segment."""
    assert batch.encoder_segments_BE is not None
    segments = batch.encoder_segments_BE
    return (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)


def decoder_mask(batch: Batch) -> NDArray[np.bool_]:
    """Decoder self-attention, bool [B, D, D]: causal inside the segment."""
    assert batch.decoder_segments_BD is not None
    segments = batch.decoder_segments_BD
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
    return same & np.tri(segments.shape[1], dtype=bool)[None]


def cross_mask(batch: Batch) -> NDArray[np.bool_]:
    """Decoder-to-encoder attention, bool [B, D, E]: the segment with the same number."""
    assert batch.decoder_segments_BD is not None and batch.encoder_segments_BE is not None
    decoder, encoder = batch.decoder_segments_BD, batch.encoder_segments_BE
    return (decoder[:, :, None] == encoder[:, None, :]) & (decoder[:, :, None] > 0)
