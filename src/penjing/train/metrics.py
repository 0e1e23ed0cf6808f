"""Figures of a running job: losses by source and denoiser, tokens per second, and how much of the machine is used.

Model FLOPs utilisation is given twice. `mfu` is the usual count (PaLM, appendix B: 6 per weight and token and full S x S
attention, input embedding not counted). `mfu_strict` counts only what isolated causal attention really multiplies: half of each
document's square. `hfu` adds what activation checkpointing computes again. The peak is named beside them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from penjing.train.feed import Part

PEAK_BF16_TFLOPS = {"H200": 989.0, "H100": 989.0, "GH200": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0, "H800": 989.0,
                    "L40S": 362.0, "4090": 165.0, "A10": 125.0, "V100": 125.0}
"""Dense 16-bit peaks in TFLOPS, from the makers' data sheets (SXM parts)."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of one token as a line in the row's length: `linear + quadratic * length`, forward and backward."""

    linear: float
    quadratic: float

    def usual(self, tokens: int, length: int) -> float:
        """FLOPs of `tokens` tokens in rows of `length`."""
        return tokens * (self.linear + self.quadratic * length)

    def strict(self, tokens: int, squared_lengths: float) -> float:
        """FLOPs with causal attention inside documents whose squared lengths sum to `squared_lengths`."""
        return tokens * self.linear + 0.5 * self.quadratic * squared_lengths


def cost_of(config: Mapping[str, Any]) -> Cost | None:
    """FLOPs of the model in `config`; None for an architecture the table of families does not know."""
    from penjing.errors import PenjingError
    from penjing.models.cost import flops_per_token

    try:
        at_1k, at_2k = (flops_per_token(config, sequence_length=length) for length in (1024, 2048))
    except PenjingError:
        return None
    slope = (at_2k - at_1k) / 1024
    return Cost(at_1k - 1024 * slope, slope)


def peak_flops(device: torch.device, product: torch.dtype | None) -> tuple[float, str]:
    """Peak FLOPS of this process's device and where the figure is from; a processor's is measured on one product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, tflops in sorted(PEAK_BF16_TFLOPS.items(), key=lambda item: -len(item[0])):
            if part in name:
                return tflops * 1e12, f"{name}: {tflops:g} TFLOPS dense bf16 (data sheet)"
        return 0.0, f"{name}: peak unknown"
    kind = product or torch.float32
    a, b = torch.ones(1024, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
    torch.mm(a, b)
    threads = torch.get_num_threads()
    spent = min(_processor_seconds(lambda: torch.mm(a, b)) for _ in range(5))  # not wall time: others may be at work
    flops = 2 * 1024**3 * threads / spent
    return flops, f"{threads} threads: {flops / 1e9:.0f} GFLOPS measured on 1024x1024x1024 in {kind}, per processor second"


def squared_lengths(part: Part) -> float:
    """Sum of the squared lengths of a part's documents."""
    cu = part.isolation.cu_q_N1.cpu().numpy().astype(np.float64)
    return float((np.diff(cu)[part.isolation.kind_N.cpu().numpy() != 0] ** 2).sum())


class Tally:
    """Sums of losses over steps, in float64, per source and per denoiser; a JSON value in and out."""

    def __init__(self, sources: int) -> None:
        self.sources = np.zeros((sources, 2))
        """Per source: sum of nats, number of labels."""
        self.denoisers = np.zeros((16, 2))
        """The same per denoiser number."""

    def add(self, part: Part, nll_T: torch.Tensor) -> None:
        """Count the positions of one part that have a label and weight."""
        nll = nll_T.detach().double().cpu().numpy()
        counted = ((part.targets != -100) & (part.weights != 0)).flatten().cpu().numpy()
        width = part.targets.shape[1]
        source = np.repeat(part.sources_B.cpu().numpy(), width)[counted]
        _count(self.sources, source, nll[counted])
        if part.denoisers is not None:
            _count(self.denoisers, np.clip(part.denoisers.flatten().cpu().numpy()[counted], 0, 15), nll[counted])

    def fill(self, values: np.ndarray) -> None:
        """Take sums from one flat array: sources, then denoisers."""
        self.sources = values[: self.sources.size].reshape(self.sources.shape)
        self.denoisers = values[self.sources.size :].reshape(self.denoisers.shape)

    def merge(self, other: Tally) -> None:
        """Add another tally's sums."""
        self.sources += other.sources
        self.denoisers += other.denoisers

    @property
    def loss(self) -> float:
        """Mean loss in nats per label over all sources; NaN when there is none."""
        total, count = self.sources.sum(0)
        return float(total / count) if count else float("nan")

    def by_source(self, names: tuple[str, ...]) -> dict[str, float]:
        """Mean loss of each source that occurred."""
        return {names[i]: float(total / count) for i, (total, count) in enumerate(self.sources) if count}

    def by_denoiser(self) -> dict[int, float]:
        """Mean loss of each denoiser that occurred (0: none)."""
        return {i: float(total / count) for i, (total, count) in enumerate(self.denoisers) if count}

    def state(self) -> dict[str, Any]:
        """JSON value that `restore` takes; floats survive JSON exactly."""
        return {"sources": self.sources.tolist(), "denoisers": self.denoisers.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `state` says."""
        self.sources = np.array(state["sources"], dtype=np.float64).reshape(self.sources.shape)
        self.denoisers = np.array(state["denoisers"], dtype=np.float64)


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this process so far: the device's, or the resident set on a processor."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _count(table: np.ndarray, index: np.ndarray, values: np.ndarray) -> None:
    table[:, 0] += np.bincount(index, weights=values, minlength=len(table))[: len(table)]
    table[:, 1] += np.bincount(index, minlength=len(table))[: len(table)]


def _processor_seconds(call: Any) -> float:
    """Processor seconds of all threads of one call."""
    started = time.process_time()
    call()
    return max(time.process_time() - started, 1e-9)
