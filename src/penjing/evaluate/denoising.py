"""The loss of an encoder-decoder on held-out text, denoiser by denoiser: what OpenBA-V2's table has before and after each cut.

Every model sees the same pieces of text, and for each of UL2's seven denoisers the same tokens are masked, so that two models of
one tokenizer can be compared piece by piece. A denoiser's loss is nats per target token (sentinels and the end token count, as
in training); a model's loss is the mean of the seven. Across tokenizers only bits per byte of the masked text can be compared.
Intervals are 95% bootstraps over pieces.

Legend: N pieces, K denoisers, B rows of a batch, E encoder and D decoder positions.
"""


from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penjing.config import generator
from penjing.errors import InputError, fault
from penjing.objectives.special import Special
from penjing.objectives.ul2 import DENOISERS, denoise

NAMES = tuple(f"{item.mode}" if not item.mean_span else f"{item.mode} {item.mean_span}/{item.density:g}" for item in DENOISERS)
"""The seven by mode, mean span and density; S is the prefix task."""
_BATCH_POSITIONS = 8192
_RESAMPLES = 1000


@dataclass(frozen=True)
class PieceLosses:
    """What one model loses on each piece and denoiser."""

    nats_NK: np.ndarray
    """float64, summed over the targets."""
    tokens_NK: np.ndarray
    """Targets."""
    bytes_NK: np.ndarray
    """UTF-8 bytes of the masked text."""

    def loss(self, picks_N: np.ndarray | None = None) -> float:
        """Mean over denoisers of nats per target token."""
        return float(self.by_denoiser(picks_N).mean())

    def by_denoiser(self, picks_N: np.ndarray | None = None) -> np.ndarray:
        """Nats per target token of each denoiser."""
        rows = slice(None) if picks_N is None else picks_N
        found: np.ndarray = self.nats_NK[rows].sum(0) / np.maximum(self.tokens_NK[rows].sum(0), 1)
        return found

    def bits_per_byte(self, picks_N: np.ndarray | None = None) -> float:
        """Bits per byte of the masked text, mean over denoisers."""
        rows = slice(None) if picks_N is None else picks_N
        return float((self.nats_NK[rows].sum(0) / np.maximum(self.bytes_NK[rows].sum(0), 1)).mean() / math.log(2))


def cut_pieces(documents: Sequence[np.ndarray], *, length: int, eos: int, most: int | None) -> list[np.ndarray]:
    """Documents end to end, each closed by `eos`, cut into pieces of `length` tokens; the rest is left out."""
    if not documents:
        return []
    stream = np.concatenate([np.append(ids, eos) for ids in documents]).astype(np.int64)
    count = len(stream) // length
    return [stream[index * length : (index + 1) * length] for index in range(count if most is None else min(count, most))]


def piece_losses(model: Any, pieces: Mapping[str, Sequence[np.ndarray]], *, special: Special, bytes_V: np.ndarray, seed: int = 0,
                 advance: Callable[[int], None] = lambda count: None) -> dict[str, PieceLosses]:
    """The losses of an encoder-decoder on pieces of text, by language. Masks depend on (seed, language, piece, denoiser) alone.

    `bytes_V`: UTF-8 bytes of each id's text, 0 for special tokens. Raises InputError for ids that the model has no row for.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    highest = max([int(piece.max()) for group in pieces.values() for piece in group] + [int(special.sentinels.max())])
    if highest >= rows:
        raise InputError(fault("the tokenizer has ids that the model has no row for", found=f"id {highest}",
                               expected=f"below {rows}"))
    found = {}
    model.eval()
    with torch.inference_mode():
        for lang, group in pieces.items():
            nats_NK, tokens_NK, bytes_NK = (np.zeros((len(group), len(DENOISERS))) for _ in range(3))
            for number in range(1, len(DENOISERS) + 1):
                examples = [denoise(piece, generator(seed, "denoising", lang, index, number), number, special=special)
                            for index, piece in enumerate(group)]
                longest = max(len(example.encoder) + len(example.labels) for example in examples)
                size = max(1, _BATCH_POSITIONS // longest)
                for start in range(0, len(examples), size):
                    batch = examples[start : start + size]
                    nats_NK[start : start + size, number - 1] = _nats(model, batch, special)
                    advance(len(batch))
                tokens_NK[:, number - 1] = [len(example.labels) for example in examples]
                bytes_NK[:, number - 1] = [int(bytes_V[example.labels].sum()) for example in examples]
            found[lang] = PieceLosses(nats_NK, tokens_NK, bytes_NK)
    return found


def joined(parts: Mapping[str, PieceLosses]) -> PieceLosses:
    """All languages together, in the order of their names."""
    ordered = [parts[lang] for lang in sorted(parts)]
    return PieceLosses(*(np.concatenate([getattr(part, name) for part in ordered])
                         for name in ("nats_NK", "tokens_NK", "bytes_NK")))


def interval(losses: PieceLosses, *, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean loss."""
    values = [losses.loss(picks) for picks in _picks(len(losses.nats_NK), seed)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def denoiser_intervals(losses: PieceLosses, *, seed: int = 0) -> np.ndarray:
    """95% interval of each denoiser's loss: [K, 2]."""
    values = np.stack([losses.by_denoiser(picks) for picks in _picks(len(losses.nats_NK), seed)])
    return np.percentile(values, [2.5, 97.5], axis=0).T


def difference(one: PieceLosses, other: PieceLosses, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean loss of `one` less that of `other` on the same pieces, with its paired 95% interval."""
    if not np.array_equal(one.tokens_NK, other.tokens_NK):
        raise InputError(fault("two models that do not see the same targets cannot be compared piece by piece",
                               expected="models of one tokenizer"))
    values = [one.loss(picks) - other.loss(picks) for picks in _picks(len(one.nats_NK), seed)]
    low, high = np.percentile(values, [2.5, 97.5])
    return one.loss() - other.loss(), float(low), float(high)


def _picks(count: int, seed: int) -> np.ndarray:
    return generator(seed, "bootstrap").integers(0, count, (_RESAMPLES, count))


def _nats(model: Any, batch: Sequence[Any], special: Special) -> np.ndarray:
    """Summed negative log-likelihood of each example's labels, in nats."""
    import torch

    shape_E, shape_D = max(len(item.encoder) for item in batch), max(len(item.labels) for item in batch)
    encoder_BE = torch.zeros(len(batch), shape_E, dtype=torch.long)
    mask_BE = torch.zeros(len(batch), shape_E, dtype=torch.long)
    decoder_BD = torch.zeros(len(batch), shape_D, dtype=torch.long)
    targets_BD = torch.full((len(batch), shape_D), -100)
    for row, item in enumerate(batch):
        encoder_BE[row, : len(item.encoder)] = torch.from_numpy(item.encoder)
        mask_BE[row, : len(item.encoder)] = 1
        decoder_BD[row, : len(item.labels)] = torch.from_numpy(item.decoder_input(special.decoder_start))
        targets_BD[row, : len(item.labels)] = torch.from_numpy(item.labels)
    # Padding stands on the right of the decoder, so causal attention never sees it.
    logits_BDV = model(input_ids=encoder_BE, attention_mask=mask_BE, decoder_input_ids=decoder_BD, use_cache=False).logits.float()
    losses_BD = torch.nn.functional.cross_entropy(logits_BDV.transpose(1, 2), targets_BD, ignore_index=-100, reduction="none")
    return np.asarray(losses_BD.double().sum(1).numpy())
