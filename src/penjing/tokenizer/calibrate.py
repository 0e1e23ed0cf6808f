"""Gives the output rows of new tokens the frequencies of the corpus, in the contexts they belong to, before any training.

A new row made of the rows of old tokens inherits how likely those were. Where the base has never seen the language (byte tokens of
Chinese in an English model), training has pushed them far below everything else, and the new tokens begin there: worse than random
rows. Two things are known without training: in which contexts new tokens occur at all, and how often each does there.

    u      ridge regression of "this position is in text that uses new tokens" on the final hidden state h, scaled so that the
           mean of u·h over those positions is 1; near 0 elsewhere
    t_v    mean over those positions of log-sum-exp of the old logits, + log(share of v / share of old tokens)
    w_v   <- s w_v + (t_v - s mean w_v·h) u

so that over those positions each new token's mean logit stands where its frequency puts it, and other contexts hardly change. s is
the share of the first guess that is kept; `best_share` tries a few on one half of the text and keeps the best on the other half.

Legend: N positions, H hidden, V vocabulary, K new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARES = (1.0, 0.5, 0.25, 0.1)
RIDGE = 1e-2
SMOOTHING = 0.5


@dataclass(frozen=True)
class Contexts:
    """Final hidden states of a text and what follows them."""

    hidden_NH: np.ndarray
    targets_N: np.ndarray
    uses_new_N: np.ndarray
    """bool: the position lies in a document of a language that new tokens are used in."""


def contexts(model: Any, encoder: Any, texts: Mapping[str, Sequence[str]], *, first: int, last: int, context_length: int,
             start_id: int, least_share: float = 0.05) -> Contexts:
    """Hidden states of all positions of `texts` (language -> documents); a language uses new tokens when at least `least_share` of
    its tokens are ids in [first, last)."""
    import torch

    parts: list[tuple[np.ndarray, np.ndarray, bool]] = []
    model.eval()
    for own in texts.values():
        encoded = [np.asarray(ids, dtype=np.int64) for ids in encoder.encode_batch(list(own))]
        whole = np.concatenate(encoded) if encoded else np.zeros(0, np.int64)
        uses = bool(len(whole)) and float(((whole >= first) & (whole < last)).mean()) >= least_share
        for ids in encoded:
            for begin in range(0, len(ids), context_length):
                piece = ids[begin: begin + context_length]
                inputs = np.concatenate([[start_id if begin == 0 else ids[begin - 1]], piece[:-1]])
                with torch.inference_mode():
                    hidden = model.base_model(input_ids=torch.from_numpy(inputs)[None], use_cache=False).last_hidden_state[0]
                parts.append((hidden.float().numpy(), piece, uses))
    return Contexts(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]),
                    np.concatenate([np.full(len(part[1]), part[2]) for part in parts]))


def calibrated(found: Contexts, rows_VH: np.ndarray, *, first: int, last: int, share: float) -> np.ndarray:
    """float32 [K, H], the output rows of ids [first, last) moved as the module says. `rows_VH` are all output rows."""
    inside = found.uses_new_N
    hidden_NH = found.hidden_NH[inside].astype(np.float64)
    targets_N = found.targets_N[inside]
    weight_N = np.where(inside, 0.5 / max(inside.sum(), 1), 0.5 / max((~inside).sum(), 1))
    every_NH = found.hidden_NH.astype(np.float64)
    gram_HH = (every_NH * weight_N[:, None]).T @ every_NH
    gram_HH += RIDGE * np.trace(gram_HH) / len(gram_HH) * np.eye(len(gram_HH))
    u_H = np.linalg.solve(gram_HH, (every_NH * weight_N[:, None]).T @ inside.astype(np.float64))
    u_H /= float((hidden_NH @ u_H).mean())
    old_VH = np.concatenate([rows_VH[:first], rows_VH[last:]]).astype(np.float64)
    level = float(_log_sum_exp(hidden_NH @ old_VH.T).mean())
    counts_K = np.bincount(targets_N[(targets_N >= first) & (targets_N < last)] - first, minlength=last - first) + SMOOTHING
    old = max(float(((targets_N < first) | (targets_N >= last)).sum()), 1.0)
    aim_K = level + np.log(counts_K / old)
    kept_KH = share * rows_VH[first:last].astype(np.float64)
    return (kept_KH + np.outer(aim_K - kept_KH @ hidden_NH.mean(0), u_H)).astype(np.float32)


def _log_sum_exp(logits_NV: np.ndarray) -> np.ndarray:
    top_N = logits_NV.max(axis=1)
    return top_N + np.log(np.exp(logits_NV - top_N[:, None]).sum(axis=1))
