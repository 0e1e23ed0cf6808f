"""UL2's mixture of denoisers, D-UL2's moving shares, and O-UL2, which wastes no padding.

Sources: UL2 (Tay et al. 2022); OpenBA (arXiv 2309.10706); OpenBA-V2 (arXiv 2405.05957), sections 4.2.2 and 4.2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penjing.errors import InputError, fault
from penjing.objectives.span import Example, Ids, segment, span_corruption, take_out
from penjing.objectives.special import Special


@dataclass(frozen=True)
class Denoiser:
    """One of UL2's tasks; `mean_span` 0 means S-denoising, whose `density` is the longest tail's share."""

    mode: str
    mean_span: int
    density: float


DENOISERS = (
    Denoiser("R", 3, 0.15), Denoiser("R", 8, 0.15), Denoiser("S", 0, 0.25), Denoiser("X", 3, 0.5), Denoiser("X", 8, 0.5),
    Denoiser("X", 64, 0.15), Denoiser("X", 64, 0.5),
)
"""The seven, numbered from 1 as in OpenBA-V2's Table 2."""

UNIFORM = (1 / 7,) * 7
DUL2_START = (0.02, 0.02, 0.8, 0.1, 0.02, 0.02, 0.02)
"""OpenBA-V2's shares at the start of D-UL2 (they look like a late stage's; set your own from measured losses)."""
DUL2_REFERENCE = (1.154, 1.594, 2.106, 1.298, 1.723, 2.151, 2.151)
"""OpenBA-V2's reference losses: what the unpruned model reaches on each denoiser."""


def s_denoising(tokens: Ids, rng: np.random.Generator, *, special: Special, tail: int | None = None,
                denoiser: int = 3) -> Example:
    """The text's tail is the target; its length is uniform on 1 … a quarter of the text (mean 12.5%), or `tail`."""
    length = len(tokens)
    if tail is None:
        most = min(round(0.25 * length), length)
        tail = max(min(int(rng.uniform(1, most + 1)), length), 1)
    first = special.sentinels[0]
    encoder = np.concatenate((special.prefix("S"), tokens[: length - tail], [first, special.eos])).astype(np.int64)
    labels = np.concatenate(([first], tokens[length - tail :], [special.eos])).astype(np.int64)
    return Example(encoder, labels, denoiser)


def denoise(tokens: Ids, rng: np.random.Generator, number: int, *, special: Special, tail: int | None = None) -> Example:
    """The sample of denoiser `number` (1 … 7)."""
    return denoise_as(DENOISERS[number - 1], tokens, rng, special=special, tail=tail, number=number)


def denoise_as(task: Denoiser, tokens: Ids, rng: np.random.Generator, *, special: Special, tail: int | None = None,
               number: int = 0) -> Example:
    """The sample of any denoiser; `tail` fixes what S-denoising would draw."""
    if not task.mean_span:
        return s_denoising(tokens, rng, special=special, tail=tail, denoiser=number)
    return span_corruption(tokens, rng, special=special, density=task.density, mean_span=task.mean_span, mode=task.mode,
                           denoiser=number)


def ul2(tokens: Ids, rng: np.random.Generator, *, special: Special, shares: Sequence[float] = UNIFORM) -> Example:
    """A sample of a denoiser drawn by `shares`."""
    return denoise(tokens, rng, 1 + int(rng.choice(7, p=np.asarray(shares, np.float64))), special=special)


# -------------------------------------------------------------------------------------------------- D-UL2


def update_shares(shares: Sequence[float], losses: Sequence[float], reference: Sequence[float], *, rate: float = 1.0,
                  floor: float = 1e-4, clamp: bool = True) -> NDArray[np.float64]:
    """D-UL2's new shares: denoisers that lag behind their reference loss get more. Sums to 1; none falls below floor/7.

    Source: OpenBA-V2, Algorithm 1 (DoReMi's rule): shares * exp(rate * excess), normalised, mixed with the uniform by
    `floor`. Differs from the released code, which lets a denoiser ahead of its reference lose share; `clamp=False`
    gives that. Raises InputError for a loss that is not a finite number.
    """
    old, lag = np.asarray(shares, np.float64), np.asarray(losses, np.float64) - np.asarray(reference, np.float64)
    if lag.shape != old.shape or not np.isfinite(lag).all():
        raise InputError(fault("losses per denoiser must be seven finite numbers", found=list(losses)))
    if clamp:
        lag = np.maximum(lag, 0.0)
    with np.errstate(divide="ignore"):
        logits = np.log(old) + rate * lag
    new = np.exp(logits - logits.max())
    new /= new.sum()
    new = (1 - floor) * new + floor / len(new)
    return np.asarray(new / new.sum())


# -------------------------------------------------------------------------------------------------- O-UL2

MIX_SPANS = ((3, 0.3), (8, 0.4), (64, 0.3))
"""Mean span and share of the noise left after the S part."""
MIX_DENSITY = 0.5
S_SHARE = (0.2, 0.3)
"""Least and most share of the noise that is the S part."""


def mix_runs(length: int, rng: np.random.Generator, *, most: int = 1 << 30) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of text and of noise of a Mix-Denoising sample: shuffled R and X spans, then one S span to the end."""
    noise, tail, groups = _mix_counts(length, rng=rng, most=most)
    short = [segment(amount, count, rng) for amount, count in groups]
    middle = np.concatenate(short) if short else np.zeros(0, np.int64)
    rng.shuffle(middle)
    masked = np.append(middle, tail)
    return segment(length - noise, len(masked), rng), masked


def mix_denoising(tokens: Ids, rng: np.random.Generator, *, special: Special) -> Example:
    """O-UL2's second task: one sample with S, R and X noise at density one half, mode `<X>`.

    Differs from the released code, whose mixed samples carry `<S>` (and are never drawn), and whose spans outnumber the
    sentinels: here they are capped.
    """
    if len(tokens) < 4:
        return span_corruption(tokens, rng, special=special, density=MIX_DENSITY, mean_span=64, mode="X", denoiser=0)
    text, masked = mix_runs(len(tokens), rng, most=len(special.sentinels))
    return take_out(tokens, text, masked, special, mode="X")


def half_denoising(tokens: Ids, rng: np.random.Generator, *, special: Special) -> Example:
    """O-UL2's first task: the second half is the target. `rng` is not used: the split is fixed."""
    return s_denoising(tokens, rng, special=special, tail=max(len(tokens) - len(tokens) // 2, 1), denoiser=3)


def mix_length(encoder_length: int, decoder_length: int, *, sentinels: int) -> int:
    """The longest text whose Mix-Denoising sample fits for every draw, in tokens."""
    low, high = 4, encoder_length + decoder_length
    while low < high:
        middle = (low + high + 1) // 2
        noise = round(middle * MIX_DENSITY)
        counts = [1 + sum(count for _, count in _mix_counts(middle, tail=tail, most=sentinels)[2])
                  for tail in (round(S_SHARE[0] * noise), round(S_SHARE[1] * noise))]
        worst = max(counts)
        fits = 2 + middle - noise + worst <= encoder_length and noise + worst + 1 <= decoder_length
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def half_length(encoder_length: int, decoder_length: int) -> int:
    """The longest text that O-UL2's first task can split evenly, in tokens: 3 extra ids in the encoder, 2 in the
    decoder."""
    return min(2 * (encoder_length - 3) + 1, 2 * (decoder_length - 2))


def _mix_counts(length: int, *, rng: np.random.Generator | None = None, tail: int | None = None,
                most: int = 1 << 30) -> tuple[int, int, list[tuple[int, int]]]:
    noise = round(length * MIX_DENSITY)
    if tail is None:
        assert rng is not None
        tail = int(rng.uniform(round(S_SHARE[0] * noise), round(S_SHARE[1] * noise) + 1))
    tail = min(max(tail, 1), noise)
    left = noise - tail
    groups, used = [], 0
    for place, (mean_span, share) in enumerate(MIX_SPANS):
        amount = round(left * share) if place < len(MIX_SPANS) - 1 else left - used
        used += amount
        if amount > 0:
            groups.append([amount, min(max(round(amount / mean_span), 1), amount)])
    limit = min(most, length - noise) - 1
    while sum(count for _, count in groups) > limit and groups:
        longest = max(groups, key=lambda group: group[1])
        longest[1] -= 1
        if longest[1] == 0:
            groups.remove(longest)
            tail += longest[0]
    return noise, tail, [(amount, count) for amount, count in groups]
