"""Attention that keeps the documents of a packed row apart.

Rows are flattened to one line of T tokens and every document is a stretch of it, so work follows the sum of squared document
lengths, not the squared row length, and no S x S mask exists. On a processor the operator below runs torch's own flash kernel
over groups of documents of similar length; on a GPU it is torch's variable-length flash attention. Models reach it through
transformers' attention interface under the name in `IMPLEMENTATION`; the layout travels as the keyword `isolation`.

Shape suffixes: B rows, S positions, T = B*S, H heads, G key/value heads, D head dimension, N stretches.
"""

# ruff: noqa: N815 - tensors carry shape suffixes

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMPLEMENTATION = "penjing_isolated"
_GROUP_RATIO = 0.9
"""Documents at least this share of the longest in their group are run together, padded to it."""
_NATIVE_16BIT_FROM = 1024
"""Below this length torch's 16-bit flash backward on a processor is up to 3.5 times slower than its 32-bit one."""


@dataclass(frozen=True)
class Isolation:
    """Where the documents of a batch lie on the flattened line of tokens."""

    cu_q_N1: Tensor
    """Starts of the stretches of queries and, last, the end; int32, padded at the end by repeating the last value."""
    cu_k_N1: Tensor
    """The same for keys; equal to `cu_q_N1` for self-attention."""
    kind_N: Tensor
    """int8: 0 padding, which is not computed on a processor; 1 a document; 2 a document read from its end to its start."""
    prefix_T: Tensor
    """bool; True where every query of the same document may see the key, whatever the order. Empty: nowhere."""
    max_q: int
    max_k: int
    causal: bool

    def to(self, device: torch.device) -> Isolation:
        """The same on another device."""
        if device.type == "cpu":
            return self
        cu_q, cu_k, kind, prefix = (tensor.to(device, non_blocking=True)
                                    for tensor in (self.cu_q_N1, self.cu_k_N1, self.kind_N, self.prefix_T))
        return Isolation(cu_q, cu_k, kind, prefix, self.max_q, self.max_k, self.causal)


def self_isolation(segments_BS: np.ndarray, *, causal: bool, prefix_BS: np.ndarray | None = None,
                   reversed_B: np.ndarray | None = None) -> Isolation:
    """Layout of self-attention: one stretch per run of equal segment numbers within a row; 0 is padding.

    `prefix_BS` marks keys that all queries of their document see; rows in `reversed_B` are causal from right to left.
    """
    rows, length = segments_BS.shape
    flat = segments_BS.reshape(-1)
    change = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.union1d(change, np.arange(rows) * length)
    ends = np.append(starts[1:], flat.size)
    cu = _padded(np.append(starts, flat.size), rows)
    kind = np.zeros(cu.size - 1, dtype=np.int8)
    kind[: starts.size] = flat[starts] != 0
    if reversed_B is not None:
        kind[: starts.size] *= 1 + reversed_B[starts // length].astype(np.int8)
    longest = int((ends - starts).max())
    line = torch.from_numpy(cu)
    prefix = np.zeros(0, dtype=bool) if prefix_BS is None or not prefix_BS.any() else prefix_BS.reshape(-1)
    return Isolation(line, line, torch.from_numpy(kind), torch.from_numpy(prefix), longest, longest, causal)


def cross_isolation(decoder_segments_BD: np.ndarray, encoder_segments_BE: np.ndarray) -> Isolation:
    """Layout of attention from a decoder's documents to the encoder's of the same number in the same row."""
    cu_q, cu_k, kind, max_q, max_k = [0], [0], [], 1, 1
    for decoder, encoder in zip(decoder_segments_BD, encoder_segments_BE, strict=True):
        count = int(max(decoder.max(initial=0), encoder.max(initial=0)))
        in_decoder = np.bincount(decoder, minlength=count + 1)
        in_encoder = np.bincount(encoder, minlength=count + 1)
        for number in [*range(1, count + 1), 0]:
            q, k = int(in_decoder[number]), int(in_encoder[number])
            cu_q.append(cu_q[-1] + q)
            cu_k.append(cu_k[-1] + k)
            kind.append(number != 0 and q > 0 and k > 0)
            max_q, max_k = max(max_q, q), max(max_k, k)
    rows = len(decoder_segments_BD)
    line_q, line_k = _padded(np.array(cu_q), rows), _padded(np.array(cu_k), rows)
    kinds = np.zeros(line_q.size - 1, dtype=np.int8)
    kinds[: len(kind)] = kind
    return Isolation(torch.from_numpy(line_q), torch.from_numpy(line_k), torch.from_numpy(kinds),
                     torch.zeros(0, dtype=torch.bool), max_q, max_k, False)


def attend(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, isolation: Isolation, *, scale: float,
           window: int | None = None) -> Tensor:
    """Attention within stretches only. `window`: a query sees at most that many keys up to and including its own."""
    if query_THD.is_cuda:
        return _attend_cuda(query_THD, key_TGD, value_TGD, isolation, scale, window)
    span = window if window is not None and window < isolation.max_k else 0
    out, _ = torch.ops.penjing.isolated(query_THD, key_TGD, value_TGD, isolation.cu_q_N1, isolation.cu_k_N1,
                                        isolation.kind_N, isolation.prefix_T, isolation.causal, scale, span)
    return out


def _attend_cuda(q: Tensor, k: Tensor, v: Tensor, isolation: Isolation, scale: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, isolation.cu_q_N1, isolation.cu_k_N1, isolation.max_q, isolation.max_k, scale=scale,
                      window_size=(left, 0 if isolation.causal else -1), enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(out, Tensor)
    return out


def transformers_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                           dropout: float = 0.0, scaling: float | None = None, *, isolation: Isolation | None = None,
                           sliding_window: int | None = None, softcap: float | None = None,
                           **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' attention interface: query B H S D, key and value B G S D, result B S H D."""
    if isolation is None or attention_mask is not None or softcap is not None or dropout:
        raise ValueError(f"{IMPLEMENTATION} needs isolation=..., no mask, no soft cap and no attention dropout")
    batch, heads, length, dim = query.shape
    scale = dim**-0.5 if scaling is None else scaling
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    if q.dtype != v.dtype:  # rotary embeddings leave q and k in fp32 under autocast, which does not see this operator
        q, k = q.to(v.dtype), k.to(v.dtype)
    out = attend(q, k, v, isolation, scale=scale, window=sliding_window)
    return out.view(batch, length, heads, dim), None


def register() -> None:
    """Make the implementation known to transformers; harmless when done twice."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, transformers_attention)


@torch.library.custom_op("penjing::isolated", mutates_args=())
def _isolated(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, kind: Tensor, prefix: Tensor, causal: bool,
              scale: float, window: int) -> tuple[Tensor, Tensor]:
    heads = q.shape[1]
    out = q.new_zeros(q.shape)
    lse = q.new_zeros(q.shape[:2], dtype=_sum_type(q))
    for group in _groups(cu_q, cu_k, kind):
        q_nhld, k_nhld, v_nhld = group.take_q(q), _repeat(group.take_k(k), heads), _repeat(group.take_k(v), heads)
        mask = group.mask(causal, window, q_nhld, prefix)
        o, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_nhld, k_nhld, v_nhld, 0.0, causal and mask is None, attn_mask=mask, scale=scale)
        group.put_q(out, o)
        group.put_q(lse, logsum)
    return out, lse


@_isolated.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, kind: Tensor, prefix: Tensor, causal: bool, scale: float,
      window: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=_sum_type(q))


def _sum_type(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@torch.library.custom_op("penjing::isolated_backward", mutates_args=())
def _isolated_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
                       kind: Tensor, prefix: Tensor, causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = q.shape[1]
    grad_q, grad_k, grad_v = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for group in _groups(cu_q, cu_k, kind):
        q_nhld, k_nhld, v_nhld = group.take_q(q), _repeat(group.take_k(k), heads), _repeat(group.take_k(v), heads)
        mask = group.mask(causal, window, q_nhld, prefix)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            group.take_q(grad, like=q_nhld), q_nhld, k_nhld, v_nhld, group.take_q(out), group.take_lse(lse), 0.0,
            causal and mask is None, attn_mask=mask, scale=scale)
        group.put_q(grad_q, dq)
        group.put_k(grad_k, _gather_heads(dk, k.shape[1]))
        group.put_k(grad_v, _gather_heads(dv, v.shape[1]))
    return grad_q, grad_k, grad_v


@_isolated_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, kind: Tensor,
      prefix: Tensor, causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, cu_k, kind, prefix, ctx.causal, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(q, k, v, output[0], output[1], cu_q, cu_k, kind, prefix)


def _back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_q, cu_k, kind, prefix = ctx.saved_tensors
    grads = torch.ops.penjing.isolated_backward(grad, q, k, v, out, lse, cu_q, cu_k, kind, prefix, ctx.causal,
                                                    ctx.scale, ctx.window)
    return (*grads, None, None, None, None, None, None, None)


torch.library.register_autograd("penjing::isolated", _back, setup_context=_keep)


@dataclass(frozen=True)
class _Group:
    """Documents run in one call of the kernel: one stretch taken as it lies, or several gathered and padded."""

    starts_q: tuple[int, ...]
    lengths_q: tuple[int, ...]
    starts_k: tuple[int, ...]
    lengths_k: tuple[int, ...]
    index_q: Tensor | None
    """Positions of the real queries on the line; None when there is one document."""
    slot_q: Tensor | None
    """Their places in the padded n x L block."""
    index_k: Tensor | None
    slot_k: Tensor | None

    def take_q(self, x: Tensor, *, like: Tensor | None = None) -> Tensor:
        """T H D -> n H L D."""
        taken = _take(x, self.starts_q, self.lengths_q, self.index_q, self.slot_q)
        return taken if like is None else taken.to(like.dtype)

    def take_k(self, x: Tensor) -> Tensor:
        return _take(x, self.starts_k, self.lengths_k, self.index_k, self.slot_k)

    def take_lse(self, lse_TH: Tensor) -> Tensor:
        return self.take_q(lse_TH.unsqueeze(-1)).squeeze(-1).contiguous()

    def put_q(self, target: Tensor, x: Tensor) -> None:
        _put(target, x, self.starts_q, self.lengths_q, self.index_q, self.slot_q)

    def put_k(self, target: Tensor, x: Tensor) -> None:
        _put(target, x, self.starts_k, self.lengths_k, self.index_k, self.slot_k)

    def mask(self, causal: bool, window: int, q: Tensor, prefix: Tensor) -> Tensor | None:
        """None where causality alone keeps padding out: it lies after every real query."""
        longest_q, longest_k = max(self.lengths_q), max(self.lengths_k)
        windowed = causal and 0 < window < longest_k
        ragged = not causal and len(set(self.lengths_k)) > 1
        prefixed = causal and prefix.numel() > 0
        if not (windowed or ragged or prefixed):
            return None
        position_k = torch.arange(longest_k)
        seen = position_k[None, None, :] < torch.tensor(self.lengths_k)[:, None, None]
        if causal:
            distance = torch.arange(longest_q)[:, None] - position_k[None, :]
            order = (distance >= 0) & (distance < (window or longest_k + 1))
            if prefixed:
                shown = self.take_k(prefix[:, None, None].to(q.dtype))[:, 0, :, 0] > 0
                seen = (order[None] | shown[:, None, :]) & seen
            else:
                seen = order[None]
        bias = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
        return bias[:, None].expand(-1, 1, longest_q, -1)


def _take(x: Tensor, starts: tuple[int, ...], lengths: tuple[int, ...], index: Tensor | None, slot: Tensor | None) -> Tensor:
    widened = x if max(lengths) >= _NATIVE_16BIT_FROM or x.dtype == torch.float64 else x.float()
    if index is None:
        return widened[starts[0] : starts[0] + lengths[0]].unsqueeze(0).transpose(1, 2)
    block = widened.new_zeros(len(starts) * max(lengths), *x.shape[1:])
    block[slot] = widened[index]
    return block.view(len(starts), max(lengths), *x.shape[1:]).transpose(1, 2)


def _put(target: Tensor, x: Tensor, starts: tuple[int, ...], lengths: tuple[int, ...], index: Tensor | None,
         slot: Tensor | None) -> None:
    lines = x.transpose(1, 2).flatten(0, 1)
    if index is None:
        target[starts[0] : starts[0] + lengths[0]] = lines
    else:
        target[index] = lines[slot].to(target.dtype)


def _repeat(x_NGLD: Tensor, heads: int) -> Tensor:
    groups = x_NGLD.shape[1]
    return x_NGLD if groups == heads else x_NGLD.repeat_interleave(heads // groups, dim=1)


def _gather_heads(x_NHLD: Tensor, groups: int) -> Tensor:
    if x_NHLD.shape[1] == groups:
        return x_NHLD
    return x_NHLD.unflatten(1, (groups, -1)).sum(2)


def _groups(cu_q: Tensor, cu_k: Tensor, kind: Tensor) -> list[_Group]:
    return _group_documents(cu_q.numpy().tobytes(), cu_k.numpy().tobytes(), kind.numpy().tobytes())


@lru_cache(maxsize=64)
def _group_documents(cu_q_bytes: bytes, cu_k_bytes: bytes, kind_bytes: bytes) -> list[_Group]:
    cu_q, cu_k = np.frombuffer(cu_q_bytes, np.int32), np.frombuffer(cu_k_bytes, np.int32)
    kind = np.frombuffer(kind_bytes, np.int8)
    real = np.flatnonzero(kind)
    length_q, length_k = np.diff(cu_q)[real], np.diff(cu_k)[real]
    order = np.lexsort((real, -length_k, -length_q))
    groups: list[list[int]] = []
    for place in order:
        head = groups[-1][0] if groups else None
        if (head is not None and length_q[place] >= _GROUP_RATIO * length_q[head]
                and _GROUP_RATIO * length_k[head] <= length_k[place] <= length_k[head] / _GROUP_RATIO):
            groups[-1].append(int(place))
        else:
            groups.append([int(place)])
    return [_group(cu_q[real[g]], length_q[g], cu_k[real[g]], length_k[g], kind[real[g]] == 2) for g in groups]


def _group(starts_q: np.ndarray, lengths_q: np.ndarray, starts_k: np.ndarray, lengths_k: np.ndarray,
           backwards: np.ndarray) -> _Group:
    plain = [tuple(int(value) for value in part) for part in (starts_q, lengths_q, starts_k, lengths_k)]
    if len(starts_q) == 1 and not backwards[0]:
        return _Group(plain[0], plain[1], plain[2], plain[3], None, None, None, None)
    return _Group(plain[0], plain[1], plain[2], plain[3], *_places(starts_q, lengths_q, backwards),
                  *_places(starts_k, lengths_k, backwards))


def _places(starts: np.ndarray, lengths: np.ndarray, backwards: np.ndarray) -> tuple[Tensor, Tensor]:
    longest = int(lengths.max())
    lines = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    index = np.concatenate([line[::-1] if back else line for line, back in zip(lines, backwards, strict=True)])
    slot = np.concatenate([np.arange(i * longest, i * longest + length) for i, length in enumerate(lengths)])
    return torch.from_numpy(index.astype(np.int64)), torch.from_numpy(slot.astype(np.int64))


def _padded(cu: np.ndarray, rows: int) -> np.ndarray:
    """`cu` as int32, made as long as the next multiple of 64 above the rows, so that few lengths ever occur."""
    size = -(-max(cu.size, rows + 1) // 64) * 64 + 1
    return np.concatenate([cu, np.full(size - cu.size, cu[-1])]).astype(np.int32)
