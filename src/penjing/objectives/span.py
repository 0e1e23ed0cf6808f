"""Span corruption: parts of a text are taken out, a sentinel stands in each gap, and the target lists what was there.

Source: T5 (Raffel et al. 2020), section 3.3, as OpenBA runs it: the number of masked tokens and of spans is fixed by
the length, their sizes are a random composition, the text comes first and the last masked span touches the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penjing.objectives.special import Special

Ids = NDArray[np.integer]


@dataclass(frozen=True)
class Example:
    """One sample for an encoder and a decoder. The decoder's input is the start id and all labels but the last."""

    encoder: Ids
    labels: Ids
    denoiser: int = 0

    def decoder_input(self, start: int) -> Ids:
        """What the decoder reads, as long as the labels."""
        return np.concatenate(([start], self.labels[:-1]))


def span_counts(length: int, *, density: float, mean_span: float, most: int) -> tuple[int, int]:
    """(masked tokens, spans) for a text of `length` tokens; rounding is half to even, at most `most` spans.

    Differs from OpenBA: the spans are capped at the number of sentinels and of unmasked tokens, so that no sentinel
    runs into the ordinary vocabulary and short texts work; a text of one token is masked whole.
    """
    if length <= 1:
        return length, length
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    return noise, min(spans, noise, length - noise, most)


def segment(items: int, parts: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random composition of `items` into `parts` non-empty parts: each item but the first may open a new part."""
    opens = np.zeros(max(items - 1, 0), bool)
    opens[: parts - 1] = True
    rng.shuffle(opens)
    edges = opens.nonzero()[0]
    lengths = np.empty(parts, np.int64)
    lengths[:-1] = edges
    lengths[-1] = items - 1
    lengths[1:] -= edges
    lengths[0] += 1
    return lengths


def spans(length: int, rng: np.random.Generator, *, density: float, mean_span: float,
          most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths of the runs of text and of the masked runs that follow them, alternating from the start."""
    noise, count = span_counts(length, density=density, mean_span=mean_span, most=most)
    masked = segment(noise, count, rng)
    if noise == length:
        return np.zeros(1, np.int64), masked
    return segment(length - noise, count, rng), masked


def span_mask(length: int, rng: np.random.Generator, *, density: float, mean_span: float,
              most: int = 1 << 30) -> NDArray[np.bool_]:
    """True where a token is masked."""
    text, masked = spans(length, rng, density=density, mean_span=mean_span, most=most)
    return runs_to_mask(text, masked)


def runs_to_mask(text: NDArray[np.int64], masked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The mask of alternating runs, text first."""
    lengths = np.empty(2 * len(text), np.int64)
    lengths[::2], lengths[1::2] = text, masked
    kinds = np.zeros(len(lengths), bool)
    kinds[1::2] = True
    return np.repeat(kinds, lengths)


def take_out(tokens: Ids, text: NDArray[np.int64], masked: NDArray[np.int64], special: Special, *, mode: str | None,
             denoiser: int = 0) -> Example:
    """The sample in which the masked runs are replaced: encoder = mode, text with sentinels, eos; labels = runs,
    eos."""
    from penjing.objectives import kernels

    count, hidden = len(text), int(masked.sum())
    prefix = special.prefix(mode) if mode is not None else []
    encoder = np.empty(len(prefix) + len(tokens) - hidden + count + 1, np.int64)
    labels = np.empty(hidden + count + 1, np.int64)
    kernels.take_out(tokens, text, masked, special.sentinels, encoder[len(prefix) : -1], labels[:-1])
    encoder[: len(prefix)] = prefix
    encoder[-1] = labels[-1] = special.eos
    return Example(encoder, labels, denoiser)


def span_corruption(tokens: Ids, rng: np.random.Generator, *, special: Special, density: float = 0.15,
                    mean_span: float = 3.0, mode: str | None = None, denoiser: int = 0) -> Example:
    """T5's sample; with a `mode`, UL2's R or X sample."""
    text, masked = spans(len(tokens), rng, density=density, mean_span=mean_span, most=len(special.sentinels))
    return take_out(tokens, text, masked, special, mode=mode, denoiser=denoiser)


def rebuild(example: Example, special: Special) -> NDArray[np.int64]:
    """The text that a sample was made of: labels put back into the gaps. The inverse of every sample of this room."""
    order = {int(sentinel): number for number, sentinel in enumerate(special.sentinels)}
    spans_by_sentinel: dict[int, list[int]] = {}
    current: list[int] = []
    for token in example.labels[:-1].tolist():
        if token in order:
            current = spans_by_sentinel.setdefault(token, [])
        else:
            current.append(token)
    modes = set(special.modes.values()) if special.modes else set()
    body = example.encoder[:-1].tolist()
    body = body[1:] if body and body[0] in modes else body
    text: list[int] = []
    for token in body:
        text += spans_by_sentinel[token] if token in order else [token]
    return np.array(text, np.int64)
