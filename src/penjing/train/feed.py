"""From the stream's numpy batches to the parts a forward pass takes, made ahead of time in a thread.

A batch belongs to a step, so nothing here has a state worth saving: after a crash the same step gives the same parts.
"""



from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from penjing.errors import ConfigError, fault
from penjing.train import layout
from penjing.train.attention import Isolation, cross_isolation, part_columns, part_isolation, self_isolation
from penjing.train.loss import labelled


class StreamLike(Protocol):
    """What the loop needs of objectives.stream.Stream."""

    @property
    def tokens_per_step(self) -> int: ...

    def batch(self, step: int, *, rows: slice = ..., state: Any = ...) -> Any: ...


@dataclass(frozen=True)
class Place:
    """Which share of every batch a process works on, and how it is cut into micro-batches."""

    rank: int = 0
    ranks: int = 1
    """Rows are cut into so many shares, and this is share `rank`."""
    context_rank: int = 0
    contexts: int = 1
    """Every row is cut into so many parts, and this is part `context_rank`."""
    group: Any = None
    """The processes that hold the other parts of the rows."""
    pipeline: int = 1
    chunks: int = 1
    """Stages the micro-batches flow through: processes, and stretches of layers on each."""


@dataclass(frozen=True)
class Part:
    """Some rows of a batch as tensors. `tokens` is the decoder's side where there are two."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    isolation: Isolation
    sources_B: Tensor
    labelled: Tensor
    """Positions, rows laid end to end, that have a label and a weight."""
    denoisers: Tensor | None = None
    encoder_tokens: Tensor | None = None
    encoder_positions: Tensor | None = None
    encoder_isolation: Isolation | None = None
    cross_isolation: Isolation | None = None
    segments: Tensor | None = None
    """Segment numbers of `tokens`, where there is an encoder."""
    encoder_segments: Tensor | None = None

    def to(self, device: torch.device) -> Part:
        """The same on another device; the copy goes on beside what is computed there when this part is `pinned`."""
        if device.type == "cpu":
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Part:
        """The same in page-locked memory, which takes time and is done ahead of time in the feed's thread."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Part:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(value) if isinstance(value, Tensor) else value.each(change)
                                   for name, value in values.items() if value is not None}
        return replace(self, **changed)


@dataclass(frozen=True)
class Step:
    """All parts this process runs for one step, and figures of the whole batch over all processes."""

    index: int
    parts: list[Part]
    real_tokens: int
    """Positions of the whole batch that are not padding."""
    weight: float
    """Sum of the weights of the whole batch's labels: what the loss is divided by."""
    squares: float
    """Sum of the squared lengths of the whole batch's documents (the decoder's where there are two)."""
    batch: Any
    """This process's rows as the stream gave them, for inspection when a step goes wrong."""


def split(batch: Any, rows: slice, place: Place | None = None) -> Part:
    """Some rows of a batch as a part, or of those rows the part that `place` has; ConfigError for rows that cannot be cut."""
    if place is not None and place.contexts > 1:
        return _row_part(batch, rows, place)
    if batch.encoder_tokens_BE is None:
        segments = batch.segments_BS[rows]
        prefix, backwards = getattr(batch, "prefix_BS", None), getattr(batch, "reversed_B", None)
        isolation = self_isolation(segments, causal=True, prefix_BS=None if prefix is None else prefix[rows],
                                   reversed_B=None if backwards is None else backwards[rows])
        denoisers = getattr(batch, "denoisers_BS", None)
        targets, weights = _long(batch.targets_BS[rows]), torch.from_numpy(np.ascontiguousarray(batch.weights_BS[rows]))
        return Part(_long(batch.tokens_BS[rows]), _long(batch.positions_BS[rows]), targets, weights, isolation,
                    _long(batch.source_B[rows]), labelled(targets.flatten(), weights.flatten()),
                    None if denoisers is None else _long(denoisers[rows]))
    encoder, decoder = batch.encoder_segments_BE[rows], batch.decoder_segments_BD[rows]
    denoisers = getattr(batch, "denoisers_BD", None)
    targets, weights = _long(batch.targets_BD[rows]), torch.from_numpy(np.ascontiguousarray(batch.weights_BD[rows]))
    return Part(_long(batch.decoder_tokens_BD[rows]), _long(batch.decoder_positions_BD[rows]), targets, weights,
                self_isolation(decoder, causal=True), _long(batch.source_B[rows]), labelled(targets.flatten(), weights.flatten()),
                None if denoisers is None else _long(denoisers[rows]),
                _long(batch.encoder_tokens_BE[rows]), _long(batch.encoder_positions_BE[rows]),
                self_isolation(encoder, causal=False), cross_isolation(decoder, encoder), _long(decoder), _long(encoder))


def _row_part(batch: Any, rows: slice, place: Place) -> Part:
    if batch.encoder_tokens_BE is not None or (getattr(batch, "prefix_BS", None) is not None and batch.prefix_BS.any()):
        raise ConfigError(fault("only rows read in one direction by a decoder can be cut over processes", where="parallel.context",
                                fix="use parallel.shard or parallel.pipeline"))
    length = batch.tokens_BS.shape[1]
    layout.check_rows(place.contexts, length)
    columns = part_columns(length, rank=place.context_rank, ways=place.contexts)
    backwards = getattr(batch, "reversed_B", None)
    isolation = part_isolation(batch.segments_BS[rows], causal=True, rank=place.context_rank, ways=place.contexts,
                               group=place.group, reversed_B=None if backwards is None else backwards[rows])
    denoisers = getattr(batch, "denoisers_BS", None)
    targets, weights = _long(batch.targets_BS[rows][:, columns]), torch.from_numpy(batch.weights_BS[rows][:, columns])
    return Part(_long(batch.tokens_BS[rows][:, columns]), _long(batch.positions_BS[rows][:, columns]), targets, weights, isolation,
                _long(batch.source_B[rows]), labelled(targets.flatten(), weights.flatten()),
                None if denoisers is None else _long(denoisers[rows][:, columns]))


def label_weight(batch: Any) -> float:
    """Sum of the weights of all labels of a batch, exact in float64."""
    targets = batch.targets_BS if batch.encoder_tokens_BE is None else batch.targets_BD
    weights = batch.weights_BS if batch.encoder_tokens_BE is None else batch.weights_BD
    return float(weights[targets != -100].sum(dtype=np.float64))


def real_tokens(batch: Any) -> int:
    """Positions of a batch that are not padding, encoder and decoder together."""
    parts = [batch.segments_BS, batch.encoder_segments_BE, batch.decoder_segments_BD]
    return sum(int(np.count_nonzero(part)) for part in parts if part is not None)


def squared_lengths(batch: Any) -> float:
    """Sum of the squared lengths of the batch's documents (the decoder's where there are two)."""
    segments = batch.segments_BS if batch.encoder_tokens_BE is None else batch.decoder_segments_BD
    numbered = segments + (np.arange(len(segments), dtype=np.int64) * (int(segments.max(initial=0)) + 1))[:, None]
    lengths = np.bincount(numbered[segments != 0])
    return float(np.square(lengths.astype(np.float64)).sum())


def prepare_step(stream: StreamLike, index: int, *, micro_rows: int | None, place: Place = Place(), state: Any = None,
                 pin: bool = False) -> Step:
    """Batch `index`, the share of it that `place` has cut into parts of `micro_rows` rows. `pin`: in memory a GPU reads by itself.

    ConfigError when the rows do not divide among the processes or the micro-batches do not suit the pipeline.
    """
    batch = stream.batch(index, state=state) if state is not None else stream.batch(index)
    count = len(batch.source_B)
    if count % place.ranks:
        raise ConfigError(fault("the rows of a batch do not divide among the processes", where="batch_rows", found=count,
                                expected=f"a multiple of {place.ranks} = parallel.replicate x parallel.shard"))
    share = count // place.ranks
    mine = range(place.rank * share, (place.rank + 1) * share)
    size = micro_rows or rows_for(batch, place.contexts)
    if place.pipeline > 1:
        size = layout.pipeline_rows(share, micro_rows, pipeline=place.pipeline, chunks=place.chunks, ranks=place.ranks)
    parts = [split(batch, slice(start, min(start + size, mine.stop)), place) for start in range(mine.start, mine.stop, size)]
    if pin:
        parts = [part.pinned() for part in parts]
    return Step(index, parts, real_tokens(batch), label_weight(batch), squared_lengths(batch), batch)


def rows_for(batch: Any, contexts: int = 1) -> int:
    """Rows of which one part holds about 16k positions."""
    held = [part for part in (batch.segments_BS, batch.encoder_segments_BE, batch.decoder_segments_BD) if part is not None]
    return max(1, 16384 * contexts // sum(part.shape[1] for part in held))


def ahead(make: Callable[[int], Step], indices: Iterator[int], *, depth: int = 2) -> Iterator[Step]:
    """`make(index)` for each index in order, up to `depth` of them made before they are asked for.

    An exception in the thread is raised here. Closing the iterator stops the thread.
    """
    done = threading.Event()
    box: queue.Queue[Step | BaseException | None] = queue.Queue(maxsize=depth)

    def work() -> None:
        try:
            for index in indices:
                item = make(index)
                while not done.is_set():
                    try:
                        box.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if done.is_set():
                    return
            box.put(None)
        except BaseException as error:
            box.put(error)

    thread = threading.Thread(target=work, name="penjing-feed", daemon=True)
    thread.start()
    try:
        while (item := box.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        done.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                box.get_nowait()
            thread.join(timeout=0.05)


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
