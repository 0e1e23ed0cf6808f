"""Attention that keeps the documents of a packed row apart.

Rows are flattened to one line of T tokens and every document is a stretch of it, so work follows the sum of squared document
lengths, not the squared row length, and no S x S mask exists. On a processor short documents are computed together in tiles
(tiles.py), longer ones in strips (strips.py) and very long ones by torch's own flash kernel; on a GPU all of them by flash attention
(varlen.py). Models reach it through transformers' attention interface under the name in `IMPLEMENTATION`; the layout travels as
the keyword `isolation`.

Shape suffixes: B rows, S positions, T = B*S, H heads, G key/value heads, D head dimension, N stretches.
"""



from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penjing.errors import ConfigError, fault
from penjing.train import strips, varlen
from penjing.train.tiles import Long, Plan, Tiles, plan

IMPLEMENTATION = "penjing_isolated"
_SHORT_TYPES = (torch.bfloat16, torch.float16)


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
    """No stretch has more queries; rounded up, so that few values ever occur."""
    max_k: int
    causal: bool
    plain: bool = True
    """False when there are prefixes or documents read backwards."""
    passes: tuple[varlen.Pass, ...] = ()
    """Then, how a GPU computes it; empty where it cannot."""
    back_T: Tensor | None = None
    group: Any = None
    """Processes that hold the other parts of the rows (context parallel): queries are this part's, keys the whole rows'."""
    spans: tuple[int, ...] = ()
    """Then, how much of a row each chunk of this part sees at most."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Isolation:
        """The same layout with its tensors on another device or in other memory."""
        cu_q, kind, prefix = (change(tensor) for tensor in (self.cu_q_N1, self.kind_N, self.prefix_T))
        cu_k = cu_q if self.cu_k_N1 is self.cu_q_N1 else change(self.cu_k_N1)
        return replace(self, cu_q_N1=cu_q, cu_k_N1=cu_k, kind_N=kind, prefix_T=prefix,
                       passes=tuple(one.each(change) for one in self.passes),
                       back_T=None if self.back_T is None else change(self.back_T))


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
    longest = varlen.bound(int((ends - starts).max()))
    line = torch.from_numpy(cu)
    prefix = np.zeros(0, dtype=bool) if prefix_BS is None or not prefix_BS.any() else prefix_BS.reshape(-1)
    return _with_passes(Isolation(line, line, torch.from_numpy(kind), torch.from_numpy(prefix), longest, longest, causal,
                                  plain=not prefix.size and (reversed_B is None or not reversed_B.any())))


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
                     torch.zeros(0, dtype=torch.bool), varlen.bound(max_q), varlen.bound(max_k), False)


def part_columns(length: int, *, rank: int, ways: int) -> np.ndarray:
    """Places of a row that part `rank` of `ways` has: one stretch from the front and its mirror image from the back.

    A query near the end of a long document sees many keys and one near its start few; together every part has as much to do.
    """
    width = length // (2 * ways)
    return np.concatenate([np.arange(chunk * width, (chunk + 1) * width) for chunk in (rank, 2 * ways - 1 - rank)])


def part_isolation(segments_BS: np.ndarray, *, causal: bool, rank: int, ways: int, group: Any,
                   reversed_B: np.ndarray | None = None) -> Isolation:
    """Layout of self-attention from part `rank` of `ways` of every row (`part_columns`) to the rows' keys.

    Each of a part's two chunks has a line of keys of its own: the row up to the chunk's end, or the whole row where some rows are
    read backwards. A stretch is what a document has in the chunk, and the document's keys up to where that ends (from where it
    starts, in a row read backwards); keys that nobody in the chunk sees are stretches without queries.
    """
    rows, length = segments_BS.shape
    width = length // (2 * ways)
    chunks = (rank, 2 * ways - 1 - rank)
    everything = not causal or (reversed_B is not None and bool(reversed_B.any()))
    spans = tuple(length if everything else (chunk + 1) * width for chunk in chunks)
    cu_q, cu_k, kind, max_q, max_k = [0], [0], [], 1, 1
    for row in range(rows):
        line = segments_BS[row]
        starts = np.flatnonzero(np.r_[True, line[1:] != line[:-1]]).tolist()
        backwards = reversed_B is not None and bool(reversed_B[row])
        for chunk, span in zip(chunks, spans, strict=True):
            for start, stop in zip(starts, [*starts[1:], length], strict=True):
                if start >= span:
                    break
                end = min(stop, span)
                first, last = max(start, chunk * width), min(end, (chunk + 1) * width)
                queries = max(0, last - first)
                shown = (first, end) if backwards else (start, last)
                seen = (start, end) if not causal or not queries else shown
                real = 0 if line[start] == 0 else 1 + backwards
                for keys, asked in ((seen[0] - start, 0), (seen[1] - seen[0], queries), (end - seen[1], 0)):
                    if keys:
                        cu_q.append(cu_q[-1] + asked)
                        cu_k.append(cu_k[-1] + keys)
                        kind.append(real if asked else 0)
                        max_q, max_k = max(max_q, asked), max(max_k, keys)
    line_q, line_k = _padded(np.array(cu_q), rows), _padded(np.array(cu_k), rows)
    kinds = np.zeros(line_q.size - 1, dtype=np.int8)
    kinds[: len(kind)] = kind
    return _with_passes(Isolation(torch.from_numpy(line_q), torch.from_numpy(line_k), torch.from_numpy(kinds),
                                  torch.zeros(0, dtype=torch.bool), varlen.bound(max_q), varlen.bound(max_k), causal,
                                  plain=2 not in kind, group=group, spans=spans))


def _with_passes(made: Isolation) -> Isolation:
    if made.plain:
        return made
    found = varlen.passes(made.cu_q_N1.numpy(), made.cu_k_N1.numpy(), made.kind_N.numpy(), made.prefix_T.numpy(), made.causal)
    return replace(made, passes=found, back_T=varlen.back(found) if found else None)


def attend(query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, isolation: Isolation, *, scale: float,
           window: int | None = None) -> Tensor:
    """Attention within stretches only. `window`: a query sees at most that many keys up to and including its own."""
    if query_THD.is_cuda:
        return _attend_on_gpu(query_THD, key_TGD, value_TGD, isolation, scale, window)
    span = window if window is not None and window < isolation.max_k else 0
    if not torch.compiler.is_compiling():
        made: Tensor = _Eager.apply(query_THD, key_TGD, value_TGD, isolation, scale, span)
        return made
    out, _ = torch.ops.penjing.isolated(query_THD, key_TGD, value_TGD, isolation.cu_q_N1, isolation.cu_k_N1,
                                        isolation.kind_N, isolation.prefix_T, isolation.causal, scale, span)
    return out


def _attend_on_gpu(q: Tensor, k: Tensor, v: Tensor, isolation: Isolation, scale: float, window: int | None) -> Tensor:
    span = window if window is not None and window < isolation.max_k else 0
    if isolation.plain:
        return varlen.attend(q, k, v, isolation.cu_q_N1, isolation.cu_k_N1, max_q=isolation.max_q, max_k=isolation.max_k,
                             causal=isolation.causal, scale=scale, window=span)
    if isolation.back_T is None or span:
        raise ConfigError(fault("a GPU reads rows both ways only where what is seen from everywhere begins a document, and without a "
                                "sliding window", fix="train this objective or this model on a processor"))
    return varlen.attend_in_passes(q, k, v, isolation.passes, isolation.back_T, scale=scale)


def on_processor(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool, scale: float,
                 window: int) -> tuple[Tensor, Tensor]:
    """What varlen's operator is on a processor: all stretches are documents. Output and log-sums of the scores."""
    out, lse, _ = _run(q, k, v, _all_documents(cu_q, cu_k, causal, window), causal, scale)
    return out, lse


def on_processor_back(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
                      causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `on_processor`."""
    return _run_back(grad, q, k, v, out, lse, _all_documents(cu_q, cu_k, causal, window), causal, scale, None)


def _all_documents(cu_q: Tensor, cu_k: Tensor, causal: bool, window: int) -> Plan:
    kind = ((cu_q.diff() > 0) & (cu_k.diff() > 0)).to(torch.int8)
    return plan(cu_q, cu_k, kind, torch.zeros(0, dtype=torch.bool), causal, window)


def transformers_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                           dropout: float = 0.0, scaling: float | None = None, *, isolation: Isolation | None = None,
                           sliding_window: int | None = None, softcap: float | None = None,
                           **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' attention interface: query B H S D, key and value B G S D, result B S H D."""
    if isolation is None or attention_mask is not None or softcap is not None or dropout:
        raise ValueError(f"{IMPLEMENTATION} needs isolation=..., no mask, no soft cap and no attention dropout")
    batch, heads, length, dim = query.shape
    scale = dim**-0.5 if scaling is None else scaling
    if isolation.group is not None:
        key, value = _shown_keys(key, value, isolation)
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    if q.is_cuda and q.dtype != v.dtype:  # rotary embeddings leave q and k in fp32 under autocast
        q, k = q.to(v.dtype), k.to(v.dtype)
    out = attend(q, k, v, isolation, scale=scale, window=sliding_window)
    return out.view(batch, length, heads, dim), None


def _shown_keys(key_BGSD: Tensor, value_BGSD: Tensor, isolation: Isolation) -> tuple[Tensor, Tensor]:
    """From this part's keys and values those of the rows, as far as each chunk sees them, one chunk's after the other's.

    The gradients go back to the processes that the keys came from, summed.
    """
    from torch.distributed._functional_collectives import all_gather_tensor_autograd

    kind = torch.promote_types(key_BGSD.dtype, value_BGSD.dtype) if not key_BGSD.is_cuda else value_BGSD.dtype
    both = torch.stack([key_BGSD.to(kind), value_BGSD.to(kind)]).permute(3, 0, 1, 2, 4).contiguous()
    parts = all_gather_tensor_autograd(both, 0, isolation.group).unflatten(0, (-1, 2, both.shape[0] // 2))
    ordered = torch.cat([parts[:, 0], parts[:, 1].flip(0)]).flatten(0, 1)
    lines = torch.cat([ordered[:span] for span in isolation.spans]).permute(1, 2, 3, 0, 4)
    return lines[0].to(key_BGSD.dtype), lines[1].to(value_BGSD.dtype)


def register() -> None:
    """Make the implementation known to transformers; harmless when done twice."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, transformers_attention)


@torch.library.custom_op("penjing::isolated", mutates_args=())
def _isolated(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, kind: Tensor, prefix: Tensor, causal: bool,
              scale: float, window: int) -> tuple[Tensor, Tensor]:
    out, lse, _ = _run(q, k, v, plan(cu_q, cu_k, kind, prefix, causal, window), causal, scale)
    return out, lse


@_isolated.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, kind: Tensor, prefix: Tensor, causal: bool, scale: float,
      window: int) -> tuple[Tensor, Tensor]:
    return v.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=_sum_type(q))


@torch.library.custom_op("penjing::isolated_backward", mutates_args=())
def _isolated_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
                       kind: Tensor, prefix: Tensor, causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return _run_back(grad, q, k, v, out, lse, plan(cu_q, cu_k, kind, prefix, causal, window), causal, scale, None)


@_isolated_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, kind: Tensor,
      prefix: Tensor, causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, cu_k, kind, prefix, ctx.causal, ctx.scale, ctx.window = inputs
    ctx.save_for_backward(q, k, v, output[0], output[1], cu_q, cu_k, kind, prefix)


def _back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.penjing.isolated_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale, ctx.window)
    return (*grads, None, None, None, None, None, None, None)


torch.library.register_autograd("penjing::isolated", _back, setup_context=_keep)


class _Eager(torch.autograd.Function):
    """The same operator where nothing is compiled: it may keep the attention shares of short documents for its backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, isolation: Isolation, scale: float, window: int) -> Tensor:
        layout = plan(isolation.cu_q_N1, isolation.cu_k_N1, isolation.kind_N, isolation.prefix_T, isolation.causal, window)
        out, lse, shares = _run(q, k, v, layout, isolation.causal, scale)
        flash = not all(_in_strips(long, v) for long in layout.longs)
        ctx.save_for_backward(q, k, v, out if flash else None, lse if flash else None, *shares)
        ctx.rest = (layout, isolation.causal, scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *shares = ctx.saved_tensors
        layout, causal, scale = ctx.rest
        return (*_run_back(grad, q, k, v, out, lse, layout, causal, scale, shares), None, None, None)


def _run(q: Tensor, k: Tensor, v: Tensor, layout: Plan, causal: bool, scale: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output in v's type, log-sums of the long documents' scores, and the attention shares of the tiles."""
    lines, shares = [], []
    for tiles in layout.tiles:
        share = _shares(tiles, _take(q, tiles.index_q, tiles, k.shape[1]), _take(k, tiles.index_k, tiles, k.shape[1]), scale)
        share = share.to(v.dtype)
        lines.append(_lay_out(share @ _take(v, tiles.index_k, tiles, v.shape[1]), tiles.count, q.shape[1]))
        shares.append(share)
    out = _way_back(lines, layout.back_q, q, v.dtype)
    lse = q.new_zeros(q.shape[:2], dtype=_sum_type(q))
    for long in layout.longs:
        ins = _pieces(long, q, k, v)
        if _in_strips(long, v):
            made, kept = strips.forward(*(part[0] for part in ins), causal=causal and long.bias_1WW is None, bias_QK=_strip_bias(long),
                                        scale=scale)
            _put(out, made[None], long.start_q, long.length_q, long.backwards)
            shares += kept
            continue
        made, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *(part.to(v.dtype) for part in ins), 0.0, causal and long.bias_1WW is None, attn_mask=_bias(long, v), scale=scale)
        _put(out, made, long.start_q, long.length_q, long.backwards)
        _put(lse.unsqueeze(-1), logsum.unsqueeze(-1), long.start_q, long.length_q, long.backwards)
    return out, lse, shares


def _run_back(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Plan, causal: bool, scale: float,
              shares: list[Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    groups = k.shape[1]
    lines: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for number, tiles in enumerate(layout.tiles):
        wide_q, wide_k = _take(q, tiles.index_q, tiles, groups), _take(k, tiles.index_k, tiles, groups)
        share = _shares(tiles, wide_q, wide_k, scale).to(v.dtype) if shares is None else shares[number]
        pull = _take(grad, tiles.index_q, tiles, groups, empty=tiles.empty_q).to(share.dtype)
        dshare = pull @ _take(v, tiles.index_k, tiles, groups).transpose(1, 2)
        dscore = torch.ops.aten._softmax_backward_data(dshare, share, -1, share.dtype).mul_(scale)
        lines[0].append(_lay_out(dscore @ wide_k.to(share.dtype), tiles.count, q.shape[1]))
        lines[1].append(_lay_out(dscore.transpose(1, 2) @ wide_q.to(share.dtype), tiles.count, groups))
        lines[2].append(_lay_out(share.transpose(1, 2) @ pull, tiles.count, groups))
    grad_q = _way_back(lines[0], layout.back_q, q, q.dtype)
    grad_k, grad_v = (_way_back(line, layout.back_k, x, x.dtype) for line, x in ((lines[1], k), (lines[2], v)))
    at = len(layout.tiles)
    for long in layout.longs:
        ins = _pieces(long, q, k, v)
        plain = causal and long.bias_1WW is None
        pull = _cut(grad, long.start_q, long.length_q, long.backwards).to(v.dtype)
        if _in_strips(long, v):
            number = 0 if shares is None else strips.count(q.shape[1], long.length_q, long.length_k, plain)
            found = strips.backward(pull[0], *(part[0] for part in ins), causal=plain, bias_QK=_strip_bias(long), scale=scale,
                                    kept=[] if shares is None else shares[at : at + number])
            dq, dk, dv = (part[None] for part in found)
            at += number
        else:
            logsum = _cut(lse.unsqueeze(-1), long.start_q, long.length_q, long.backwards).squeeze(-1).contiguous()
            dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                pull, *(part.to(v.dtype) for part in ins), _cut(out, long.start_q, long.length_q, long.backwards).to(v.dtype), logsum,
                0.0, plain, attn_mask=_bias(long, v), scale=scale)
        _put(grad_q, dq, long.start_q, long.length_q, long.backwards)
        for target, made in ((grad_k, dk), (grad_v, dv)):
            _put(target, made.unflatten(1, (groups, -1)).sum(2), long.start_k, long.length_k, long.backwards)
    return grad_q, grad_k, grad_v


def _take(x_THD: Tensor, index: Tensor, tiles: Tiles, groups: int, *, empty: Tensor | None = None) -> Tensor:
    """Rows into tiles: n*G by W (queries that share a key head below each other: rep*W) by D."""
    heads, dim = x_THD.shape[1:]
    taken = x_THD.reshape(x_THD.shape[0], -1).index_select(0, index)
    if empty is not None:
        taken.index_fill_(0, empty, 0.0)
    return taken.view(tiles.count, -1, groups, heads // groups, dim).permute(0, 2, 3, 1, 4).reshape(tiles.count * groups, -1, dim)


def _lay_out(x: Tensor, count: int, heads: int) -> Tensor:
    """The inverse of `_take`: places of all tiles end to end, H D."""
    return x.view(count, heads, -1, x.shape[-1]).transpose(1, 2).reshape(-1, heads * x.shape[-1])


def _way_back(lines: list[Tensor], back: Tensor, like_THD: Tensor, kind: torch.dtype) -> Tensor:
    if not lines:
        return like_THD.new_zeros(like_THD.shape, dtype=kind)
    width = lines[0].shape[1]
    line = torch.cat([*lines, lines[0].new_zeros(1, width)])
    return line.index_select(0, back).to(kind).view(-1, *like_THD.shape[1:])


def _shares(tiles: Tiles, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Softmax of the scores in fp32."""
    kind = _sum_type(q)
    scores = torch.bmm(q.to(kind), k.to(kind).transpose(1, 2)).mul_(scale)
    scores.view(tiles.count, -1, tiles.width, tiles.width).add_(tiles.bias_n1WW.to(kind))
    return scores.softmax(-1)


def _pieces(long: Long, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Queries, keys and values of a long document, 1 H L D, keys and values repeated for every query head."""
    rest = [_cut(x, long.start_k, long.length_k, long.backwards).repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v)]
    return [_cut(q, long.start_q, long.length_q, long.backwards), *rest]


def _cut(x: Tensor, start: int, length: int, backwards: bool) -> Tensor:
    part = x[start : start + length].unsqueeze(0).transpose(1, 2)
    return part.flip(2) if backwards else part


def _put(target: Tensor, x_1HLD: Tensor, start: int, length: int, backwards: bool) -> None:
    part = x_1HLD[0].transpose(0, 1)
    target[start : start + length] = part.flip(0) if backwards else part


def _bias(long: Long, q: Tensor) -> Tensor | None:
    return None if long.bias_1WW is None else long.bias_1WW[None].to(q.dtype)


def _strip_bias(long: Long) -> Tensor | None:
    return None if long.bias_1WW is None else long.bias_1WW[0]


def _in_strips(long: Long, v: Tensor) -> bool:
    """Whether a long document is computed in strips; from a length on, which strips.py knows, the flash kernel is faster."""
    return long.length_k <= (strips.UP_TO if v.dtype in _SHORT_TYPES else strips.UP_TO_WIDE)


def _sum_type(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _padded(cu: np.ndarray, rows: int) -> np.ndarray:
    """`cu` as int32, made as long as the next multiple of 8 above the rows, so that few lengths ever occur: empty stretches cost."""
    size = -(-max(cu.size, rows + 1) // 8) * 8 + 1
    return np.concatenate([cu, np.full(size - cu.size, cu[-1])]).astype(np.int32)
