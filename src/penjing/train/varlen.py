"""Attention over stretches of one line of tokens, on a GPU: one operator over the kernels that torch ships.

16-bit tensors go to flash attention, wider ones, and those it cannot take, to the memory-efficient kernel, which multiplies in fp32.
What the kernels cannot do at once is done in passes: the queries of a prefix, which see all of it, apart from the others; documents
that are read from their end to their start turned round. On a processor the operator is the one of attention.py; that is for the tests.

Shape suffixes: T queries, S keys, H heads, G key/value heads, D head dimension, N stretches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_STEP = 512


@dataclass(frozen=True)
class Pass:
    """Some queries of a line and the keys they see, stretch by stretch."""

    query_T: Tensor
    """Where on the line the queries are."""
    key_S: Tensor
    cu_q_N1: Tensor
    cu_k_N1: Tensor
    max_q: int
    max_k: int
    causal: bool

    def each(self, change: Callable[[Tensor], Tensor]) -> Pass:
        """The same with its tensors on another device or in other memory."""
        tensors: dict[str, Any] = {name: change(getattr(self, name)) for name in ("query_T", "key_S", "cu_q_N1", "cu_k_N1")}
        return replace(self, **tensors)


def bound(longest: int) -> int:
    """A limit of stretches' lengths that takes few values, because each may cost a compilation; the kernels' grids grow with it."""
    return -(-max(longest, 1) // _STEP) * _STEP


def passes(cu_q: np.ndarray, cu_k: np.ndarray, kind: np.ndarray, prefix: np.ndarray, causal: bool) -> tuple[Pass, ...]:
    """The passes of a layout (attention.Isolation) that is not plain; none where prefixes are not whole beginnings of documents."""
    sizes_q, sizes_k = np.diff(cu_q).astype(np.int64), np.diff(cu_k).astype(np.int64)
    query, rank_q = _places(cu_q, sizes_q, turned=kind == 2)
    key, rank_k = _places(cu_k, sizes_k, turned=kind == 2)
    shown = np.zeros_like(sizes_k)  # keys at the beginning that all see
    if prefix.size:
        sums = np.concatenate([[0], np.cumsum(prefix)])
        shown = sums[cu_k[1:]] - sums[cu_k[:-1]]
        whole = np.array_equal(prefix.astype(bool)[key], rank_k < np.repeat(shown, sizes_k)) and not shown[kind == 2].any()
        if not whole or not np.array_equal(sizes_q, sizes_k):
            return ()
    late = rank_q >= np.repeat(shown, sizes_q) if prefix.size else np.ones(query.size, bool)
    made = [_pass(query[late], key, sizes_q - shown if prefix.size else sizes_q, sizes_k, causal=causal)]
    if shown.any():
        made.append(_pass(query[~late], query[~late], shown, shown, causal=False))
    return tuple(made)


def _places(cu: np.ndarray, sizes: np.ndarray, *, turned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions on the line in reading order, and their ranks in their stretches."""
    rank = np.arange(cu[-1]) - np.repeat(cu[:-1], sizes)
    start, last = np.repeat(cu[:-1], sizes), np.repeat(cu[1:] - 1, sizes)
    return np.where(np.repeat(turned, sizes), last - rank, start + rank), rank


def _pass(query: np.ndarray, key: np.ndarray, sizes_q: np.ndarray, sizes_k: np.ndarray, *, causal: bool) -> Pass:
    lines = [np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32) for sizes in (sizes_q, sizes_k)]
    return Pass(torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(lines[0]), torch.from_numpy(lines[1]),
                bound(int(sizes_q.max(initial=0))), bound(int(sizes_k.max(initial=0))), causal)


def back(found: tuple[Pass, ...]) -> Tensor:
    """For each query of the line, its place among the passes' queries laid end to end."""
    order = np.concatenate([one.query_T.numpy() for one in found])
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return torch.from_numpy(places)


def attend(q_THD: Tensor, k_SGD: Tensor, v_SGD: Tensor, cu_q: Tensor, cu_k: Tensor, *, max_q: int, max_k: int, causal: bool,
           scale: float, window: int = 0) -> Tensor:
    """Attention inside stretches; a causal one's last query sees its last key. `window` 0: no limit."""
    out, _ = torch.ops.penjing.varlen(q_THD, k_SGD, v_SGD, cu_q, cu_k, max_q, max_k, causal, scale, window)
    made: Tensor = out
    return made


def attend_in_passes(q_THD: Tensor, k_SGD: Tensor, v_SGD: Tensor, found: tuple[Pass, ...], back_T: Tensor, *,
                     scale: float) -> Tensor:
    """The same over the passes of a layout that is not plain."""
    lines = [attend(q_THD.index_select(0, one.query_T), k_SGD.index_select(0, one.key_S), v_SGD.index_select(0, one.key_S),
                    one.cu_q_N1, one.cu_k_N1, max_q=one.max_q, max_k=one.max_k, causal=one.causal, scale=scale) for one in found]
    return torch.cat(lines).index_select(0, back_T)


@torch.library.custom_op("penjing::varlen", mutates_args=())
def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool, scale: float,
            window: int) -> tuple[Tensor, Tensor]:
    if not q.is_cuda:
        from penjing.train.attention import on_processor

        return on_processor(q, k, v, cu_q, cu_k, causal, scale, window)
    if not _flashes(q):
        return _efficient(q, k, v, cu_q, cu_k, max_q, max_k, causal, scale, window)
    dim = q.shape[-1]
    q, k, v = (_padded(x) for x in (q, k, v))
    made = torch.ops.aten._flash_attention_forward(q, k, v, cu_q, cu_k, max_q, max_k, 0.0, causal and not window, False, scale=scale,
                                                   **_window(window, causal))
    return made[0][..., :dim].contiguous(), made[1]


@_varlen.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool, scale: float,
      window: int) -> tuple[Tensor, Tensor]:
    shape: tuple[Any, ...] = (q.shape[1], q.shape[0])
    kind = torch.float32
    if not q.is_cuda:
        shape, kind = (q.shape[0], q.shape[1]), torch.float64 if q.dtype == torch.float64 else torch.float32
    elif not _flashes(q):
        shape = (cu_q.shape[0] - 1, q.shape[1], -(-torch.sym_min(max_q, q.shape[0]) // 32) * 32)
    return v.new_empty(q.shape), q.new_empty(shape, dtype=kind)


@torch.library.custom_op("penjing::varlen_backward", mutates_args=())
def _varlen_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int,
                     max_k: int, causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    if not q.is_cuda:
        from penjing.train.attention import on_processor_back

        return on_processor_back(grad, q, k, v, out, lse, cu_q, cu_k, causal, scale, window)
    if not _flashes(q):
        return _efficient_back(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, causal, scale, window)
    dim = q.shape[-1]
    grad, q, k, v, out = (_padded(x) for x in (grad, q, k, v, out))
    nothing = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a dropout that does not happen
    with _strictly_deterministic():
        grads = torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, 0.0, causal and not window, nothing, torch.empty(0, device=q.device),
            scale=scale, **_window(window, causal))
    dq, dk, dv = (made[..., :dim].contiguous() for made in grads)
    return dq, dk, dv


@_varlen_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
      causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_q, cu_k, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, output[0], output[1], cu_q, cu_k)


def _back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.penjing.varlen_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.rest), *([None] * 7))


torch.library.register_autograd("penjing::varlen", _back, setup_context=_keep)


def _flashes(q: Tensor) -> bool:
    """Whether flash attention can take it: 16 bits, heads of up to 256, on Ampere or later."""
    return q.element_size() <= 2 and q.shape[-1] <= 256 and torch.cuda.get_device_capability(q.device)[0] >= 8


def _efficient(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool, scale: float,
               window: int) -> tuple[Tensor, Tensor]:
    repeats, kind = q.shape[1] // k.shape[1], v.dtype
    q, k, v = q.float(), k.float().repeat_interleave(repeats, 1), v.float().repeat_interleave(repeats, 1)
    made = torch.ops.aten._efficient_attention_forward(
        q[None], k[None], v[None], None, cu_q, cu_k, min(max_q, q.shape[0]), min(max_k, k.shape[0]), 0.0, 2 if causal else 0, True,
        scale=scale, window_size=window or None)
    return _where_both(made[0][0], cu_q, cu_k).to(kind), made[1]


def _efficient_back(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int,
                    max_k: int, causal: bool, scale: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    groups, kinds = k.shape[1], (q.dtype, k.dtype, v.dtype)
    grad, out, q = grad.float(), out.float(), q.float()
    wide_k, wide_v = (x.float().repeat_interleave(q.shape[1] // groups, 1) for x in (k, v))
    nothing = torch.zeros((), dtype=torch.int64, device=q.device)
    with _strictly_deterministic():
        dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
            grad[None], q[None], wide_k[None], wide_v[None], None, out[None], cu_q, cu_k, min(max_q, q.shape[0]), min(max_k, k.shape[0]),
            lse, 0.0, nothing, nothing, 2 if causal else 0, False, scale=scale, window_size=window or None)
    dk, dv = (made[0].unflatten(1, (groups, -1)).sum(2) for made in (dk, dv))
    made = _where_both(dq[0], cu_q, cu_k), _where_both(dk, cu_k, cu_q), _where_both(dv, cu_k, cu_q)
    return made[0].to(kinds[0]), made[1].to(kinds[1]), made[2].to(kinds[2])


def _where_both(made_THD: Tensor, cu_own: Tensor, cu_other: Tensor) -> Tensor:
    """Zeros in stretches that lack queries or keys: this kernel writes nothing there."""
    alive_T = torch.repeat_interleave(cu_other.diff() > 0, cu_own.diff(), output_size=made_THD.shape[0])
    return made_THD.masked_fill(~alive_T[:, None, None], 0.0)


@contextmanager
def _strictly_deterministic() -> Iterator[None]:
    """Where deterministic kernels are asked for with warnings only, these ones would merely warn."""
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    if not torch.are_deterministic_algorithms_enabled() or not warns:
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _window(window: int, causal: bool) -> dict[str, int]:
    return {"window_size_left": window - 1, "window_size_right": 0 if causal else -1} if window else {}


def _padded(x_THD: Tensor) -> Tensor:
    """Head dimension filled up to the multiple of 8 that flash attention wants."""
    missing = -x_THD.shape[-1] % 8
    return F.pad(x_THD, (0, missing)) if missing else x_THD.contiguous()
