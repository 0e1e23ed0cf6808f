"""Attention of one long document on a processor, in strips of queries over the keys that they may see.

The scores of a strip are written out for a few heads at a time, so that they stay in the cache, and the products are torch's own
matrix products. In 16 bits that takes about half the time of torch's flash kernel, forward and backward together, from 200 to 1,000
tokens, and six sevenths of it at 4,000 (`bench/train_cpu.py --attention`); a strip of a causal document meets no keys behind its end, so
little is computed in vain. Softmax and the sums of gradients are in fp32.

Shape suffixes: H heads, Q queries, K keys, D head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

UP_TO = 8192
"""Longer documents are left to the flash kernel, whose working memory does not grow with the keys."""
UP_TO_WIDE = 1024
"""The same in fp32 and fp64, whose products are slower."""
KEPT_UP_TO = 1024
"""The shares of longer documents are worked out again in the backward pass instead of being kept."""
_STRIP = 256
_PLACES = 1 << 19
"""Scores that are computed at a time."""


def forward(q_HQD: Tensor, k_HKD: Tensor, v_HKD: Tensor, *, causal: bool, bias_QK: Tensor | None,
            scale: float) -> tuple[Tensor, list[Tensor]]:
    """Attention of a document, HQD in v's type, and the shares of its strips when they are worth keeping (else none).

    causal: query i sees keys up to i (Q == K). bias_QK: added to the scores instead, 0 or -inf.
    """
    out_HQD = v_HKD.new_empty(*q_HQD.shape[:2], v_HKD.shape[-1])
    kept = []
    for heads, start, end, keys in _strips(len(q_HQD), q_HQD.shape[1], k_HKD.shape[1], causal):
        share = _shares(q_HQD[heads, start:end], k_HKD[heads, :keys], start, causal, bias_QK, scale).to(v_HKD.dtype)
        out_HQD[heads, start:end] = torch.bmm(share, v_HKD[heads, :keys])
        if k_HKD.shape[1] <= KEPT_UP_TO:
            kept.append(share)
    return out_HQD, kept


def backward(grad_HQD: Tensor, q_HQD: Tensor, k_HKD: Tensor, v_HKD: Tensor, *, causal: bool, bias_QK: Tensor | None, scale: float,
             kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (in q's type), k and v (fp32, or fp64 of fp64) for `grad_HQD`; `kept` as `forward` gave it, or empty."""
    wide = torch.float64 if q_HQD.dtype == torch.float64 else torch.float32
    q_short, k_short = q_HQD.to(v_HKD.dtype), k_HKD.to(v_HKD.dtype)
    grad_q, grad_k, grad_v = torch.empty_like(q_HQD), torch.zeros_like(k_HKD, dtype=wide), torch.zeros_like(v_HKD, dtype=wide)
    for number, (heads, start, end, keys) in enumerate(_strips(len(q_HQD), q_HQD.shape[1], k_HKD.shape[1], causal)):
        q, k, v, pull = q_HQD[heads, start:end], k_HKD[heads, :keys], v_HKD[heads, :keys], grad_HQD[heads, start:end]
        share = kept[number] if kept else _shares(q, k, start, causal, bias_QK, scale).to(v.dtype)
        dshare = torch.bmm(pull, v.transpose(1, 2))
        dscore = torch.ops.aten._softmax_backward_data(dshare, share, -1, share.dtype).mul_(scale)
        grad_q[heads, start:end] = torch.bmm(dscore, k_short[heads, :keys])
        grad_k[heads, :keys] += torch.bmm(dscore.transpose(1, 2), q_short[heads, start:end])
        grad_v[heads, :keys] += torch.bmm(share.transpose(1, 2), pull)
    return grad_q, grad_k, grad_v


def count(heads: int, queries: int, keys: int, causal: bool) -> int:
    """How many shares `forward` keeps for a document."""
    return sum(1 for _ in _strips(heads, queries, keys, causal)) if keys <= KEPT_UP_TO else 0


def _strips(heads: int, queries: int, keys: int, causal: bool) -> Iterator[tuple[slice, int, int, int]]:
    """(heads, first query, end of the queries, keys they may see) of every piece of work."""
    together = max(1, _PLACES // (_STRIP * keys))
    for head in range(0, heads, together):
        for start in range(0, queries, _STRIP):
            end = min(start + _STRIP, queries)
            yield slice(head, head + together), start, end, end if causal else keys


def _shares(q_hqD: Tensor, k_hkD: Tensor, start: int, causal: bool, bias_QK: Tensor | None, scale: float) -> Tensor:
    """Softmax of a strip's scores, in fp32."""
    wide = torch.float64 if q_hqD.dtype == torch.float64 else torch.float32
    scores = torch.bmm(q_hqD.to(wide), k_hkD.to(wide).transpose(1, 2)).mul_(scale)
    number, keys = q_hqD.shape[1], k_hkD.shape[1]
    if causal:
        scores[:, :, start:].add_(torch.full((number, number), float("-inf"), dtype=wide).triu_(1))
    elif bias_QK is not None:
        scores.add_(bias_QK[start : start + number, :keys].to(wide))
    return scores.softmax(-1)
