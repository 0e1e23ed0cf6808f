"""Memory: freed blocks kept for the next step, and what to change when there is not enough.

With glibc's defaults every large tensor is mapped, zeroed page by page and unmapped, which took 15% of a step of a 2.5M model.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from penjing.errors import ConfigError, fault
from penjing.train.config import PLAIN_CHUNK, TrainConfig
from penjing.train.feed import Step

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Tell glibc not to unmap; False where there is no glibc. Holds for the rest of the process."""
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        return bool(library.mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
    except (OSError, AttributeError):  # musl
        return False


@contextmanager
def memory_faults(config: TrainConfig, batch: Step, step: int) -> Iterator[None]:
    """Turn running out of memory in a step into a ConfigError that says what to change and by how much."""
    try:
        yield
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise ConfigError(_advice(config, step, batch.parts[0].targets)) from error
        raise


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, also inside a pipeline, which wraps what happened."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def _advice(config: TrainConfig, step: int, targets_BS: torch.Tensor) -> str:
    """What to change and by how much, the cheapest first; none of it changes the result but for rounding."""
    rows, length = targets_BS.shape
    ways = config.parallel
    fixes = [f"micro_rows: {rows // 2}"] if rows > 1 and ways.pipeline == 1 else []
    fixes += ["recompute: full"] if config.recompute != "full" else []
    chunk = config.loss_chunk_tokens or PLAIN_CHUNK
    fixes += [f"loss_chunk_tokens: {chunk // 4}"] if chunk >= 1024 and rows == 1 else []
    fixes += [f"parallel.shard: {2 * ways.shard} on twice the processes"]
    fixes += [f"parallel.context: {2 * ways.context} on twice the processes"] if rows == 1 else []
    return fault("out of memory", where=f"step {step}", found=f"{rows} row{'s' if rows > 1 else ''} of {length} tokens in one "
                 "forward pass", fix=f"set {', or else '.join(fixes)}")
