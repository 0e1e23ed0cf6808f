"""Bits per byte: the loss that can be compared across tokenizers.

    bits per byte = (sum over the text's tokens of -log2 p) / (UTF-8 bytes of the text)

Every token of a document is scored once, given the start token (bos, else eos) and up to `context_length - 1` tokens before it;
windows overlap by half, so a token never has less than half a window of context except near the document's start. The end
token is not scored. The interval is a bootstrap over documents, because the tokens of one document are not independent.

Legend: N windows, S positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penjing.config import generator
from penjing.errors import InputError, fault

LN2 = math.log(2.0)
_BATCH_TOKENS = 8192
_LOGIT_VALUES = 1 << 26


@dataclass(frozen=True)
class DocumentLoss:
    """Summed negative log-likelihood of one document, in nats, and its sizes."""

    nats: float
    tokens: int
    bytes: int
    characters: int


@dataclass(frozen=True)
class Score:
    """Bits per byte with a 95% interval, and the numbers behind it."""

    bits_per_byte: float
    low: float
    high: float
    bits_per_character: float
    nats_per_token: float
    tokens_per_character: float
    documents: int
    bytes: int
    tokens: int


def document_losses(model: Any, encoder: Any, texts: Sequence[str], *, context_length: int, start_id: int,
                    advance: Any = None) -> list[DocumentLoss]:
    """The loss of each text under a decoder-only `model`, in the order given. Empty texts give zero tokens.

    `advance(documents)` is called as documents are finished. Raises InputError when an id does not fit the model's vocabulary.
    """
    import torch

    encoded = [np.asarray(ids, dtype=np.int64) for ids in encoder.encode_batch(list(texts))]
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max((int(ids.max()) for ids in encoded if len(ids)), default=0)
    if max(highest, start_id) >= rows:
        raise InputError(fault("the tokenizer has ids that the model has no row for", found=f"id {max(highest, start_id)}",
                               expected=f"below {rows}"))
    windows = [window for document, ids in enumerate(encoded) for window in _windows(document, ids, context_length, start_id)]
    windows.sort(key=lambda window: -len(window[1]))
    nats = np.zeros(len(texts))
    pending = np.bincount([window[0] for window in windows], minlength=len(texts)) if windows else np.zeros(len(texts), int)
    at = 0
    model.eval()
    with torch.inference_mode():
        while at < len(windows):
            longest = len(windows[at][1])
            room = min(_BATCH_TOKENS // longest, _LOGIT_VALUES // (longest * rows))
            batch = windows[at:at + max(1, room)]
            at += len(batch)
            for (document, _, _), value in zip(batch, _window_losses(model, batch), strict=True):
                nats[document] += value
                pending[document] -= 1
                if advance is not None and pending[document] == 0:
                    advance(1)
    return [DocumentLoss(float(total), len(ids), len(text.encode()), len(text))
            for total, ids, text in zip(nats, encoded, texts, strict=True)]


def summarise(losses: Sequence[DocumentLoss], *, seed: int = 0, resamples: int = 1000) -> Score:
    """One Score of many documents; the interval is the 2.5 and 97.5 percentile of `resamples` bootstraps over documents."""
    nats = np.array([loss.nats for loss in losses])
    sizes = np.array([loss.bytes for loss in losses], dtype=np.float64)
    tokens, characters = sum(loss.tokens for loss in losses), sum(loss.characters for loss in losses)
    if not len(losses) or sizes.sum() == 0:
        raise InputError(fault("no text to score", found=f"{len(losses)} documents, 0 bytes"))
    picks = generator(seed, "bootstrap").integers(0, len(losses), (resamples, len(losses)))
    ratios = nats[picks].sum(1) / np.maximum(sizes[picks].sum(1), 1.0) / LN2
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Score(
        bits_per_byte=float(nats.sum() / sizes.sum() / LN2), low=float(low), high=float(high),
        bits_per_character=float(nats.sum() / characters / LN2), nats_per_token=float(nats.sum() / max(tokens, 1)),
        tokens_per_character=tokens / characters, documents=len(losses), bytes=int(sizes.sum()), tokens=tokens,
    )


def _windows(document: int, ids: np.ndarray, length: int, start_id: int) -> list[tuple[int, np.ndarray, int]]:
    """(document, tokens_S+1, first scored target): inputs are tokens[:-1], targets tokens[1:]."""
    whole = np.concatenate([[start_id], ids])
    found, scored = [], 1
    while scored < len(whole):
        begin = 0 if scored == 1 else max(0, scored - max(length // 2, 1))
        end = min(len(whole), begin + length + 1)
        found.append((document, whole[begin:end], scored - begin - 1))
        scored = end
    return found


def _window_losses(model: Any, batch: Sequence[tuple[int, np.ndarray, int]]) -> list[float]:
    import torch

    longest = max(len(tokens) for _, tokens, _ in batch) - 1
    inputs_NS = torch.zeros(len(batch), longest, dtype=torch.long)
    targets_NS = torch.full((len(batch), longest), -100)
    for row, (_, tokens, first) in enumerate(batch):
        part = torch.from_numpy(np.ascontiguousarray(tokens))
        inputs_NS[row, : len(part) - 1] = part[:-1]
        targets_NS[row, first: len(part) - 1] = part[first + 1:]
    # Padding stands on the right, so causal attention never sees it and no mask is needed.
    logits_NSV = model(input_ids=inputs_NS, use_cache=False).logits.float()
    losses_NS = torch.nn.functional.cross_entropy(logits_NSV.transpose(1, 2), targets_NS, ignore_index=-100, reduction="none")
    return [float(value) for value in losses_NS.double().sum(1)]
