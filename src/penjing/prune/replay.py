"""A model run one layer at a time on streams that lie on the disk, for rules that compare many ways to leave layers out.

The model's own code runs as it is. To take a stream through layer 17, the model is called with its batch, layers 0 to 16
hand on what they get without computing, layer 17 gets the stream, and the call ends when it has answered. So each layer's
weights are read once for all streams, and a stream without layer 17 costs only the layers after it.

Legend: B sequences, S places, D hidden.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from penjing import console
from penjing.files import disk_faults
from penjing.prune.layerwise import Layered

Place = tuple[str, int]
"""Stack and number of a layer."""


class Replay:
    """The passes of some batches over a model that is read layer by layer.

    In memory are one layer and one batch; on the disk one stream for each way that is compared, float32. An
    encoder-decoder's needs one more each, the encoder's end.
    """

    def __init__(self, model: Layered, batches: Sequence[Mapping[str, torch.Tensor]], directory: Path | None = None) -> None:
        self.model = model
        self.batches = batches
        self.places = [model.stack_of(layer) for layer in model.layers]
        self._streams = _Streams(directory)
        self._rests: dict[tuple[int, int], tuple[Any, ...] | None] = {}
        """(batch, layer) -> what a layer hands on beside the stream (T5's relative positions), None for nothing."""
        self._call = _Call()

    def influence(self) -> dict[str, np.ndarray]:
        """1 - mean cosine of what enters and what leaves each layer, by stack."""
        sums, counts = np.zeros(len(self.places)), np.zeros(len(self.places))

        def watch(layer: int, entered_BSD: torch.Tensor, left_BSD: torch.Tensor) -> None:
            cosine = torch.nn.functional.cosine_similarity(entered_BSD.double(), left_BSD.double(), dim=-1)
            sums[layer] += float(cosine.sum())
            counts[layer] += cosine.numel()

        with self._patched():
            self._sweep(set(), [], "block influence", watch)
        values = 1 - sums / counts
        return {stack: values[[here == stack for here, _ in self.places]] for stack in dict.fromkeys(s for s, _ in self.places)}

    def losses(self, gone: Mapping[str, Sequence[int]], tried: Sequence[Place] = ()) -> dict[Place | None, float]:
        """Mean loss in nats per predicted token without the layers in `gone` (key None), and without each of `tried` beside
        them.
        """
        away = {self.places.index((stack, number)) for stack, numbers in gone.items() for number in numbers}
        found: dict[Place | None, float] = {}
        with self._patched():
            keys = self._sweep(away, [self.places.index(place) for place in tried], "layers")
            self.model.load_head()
            for key in keys:
                found[None if key is None else self.places[key]] = self._loss(key)
            self.model.release_head()
        return found

    def _loss(self, key: int | None) -> float:
        total, count = 0.0, 0
        for number, batch in enumerate(self.batches):
            self._call = _Call(number, target=len(self.places), ends=self._ends(key, number))
            labels = batch["labels"] if self.model.family.seq2seq else batch["labels"][:, 1:]
            predicted = int(labels.ne(-100).sum())
            total += float(self.model.model(**batch, use_cache=False).loss) * predicted
            count += predicted
        return total / max(count, 1)

    def _sweep(self, away: set[int], tried: Sequence[int], label: str, watch: Any = None) -> list[int | None]:
        """Take the base stream and one for each layer of `tried`, which it leaves out, through all layers; gives their keys."""
        keys: list[int | None] = [None]
        with console.bar(label, total=len(self.places), unit="layers") as bar:
            for layer, (stack, _) in enumerate(self.places):
                if layer == 0 or self.places[layer - 1][0] != stack:
                    self._begin(layer, keys)
                asked = (0, layer) in self._rests
                if layer not in away or not asked:
                    self.model.load(self.model.layers[layer])
                for number in range(len(self.batches)):
                    if layer in tried:
                        self._fork(layer, number)
                    if layer in away and not asked:  # what it hands on beside the stream is needed
                        self._through(layer, number, None)
                    for key in keys if layer not in away else ():
                        entered, left = self._through(layer, number, key)
                        if watch is not None:
                            watch(layer, entered, left)
                        self._streams.put((key, number), left)
                keys += [layer] if layer in tried else []
                self.model.release(self.model.layers[layer])
                if layer + 1 == len(self.places) or self.places[layer + 1][0] != stack:
                    self._end(layer, keys)
                bar.advance()
        return keys

    def _begin(self, layer: int, keys: Sequence[int | None]) -> None:
        """Every stream enters a stack as the base does."""
        for number, batch in enumerate(self.batches):
            self._call = _Call(number, target=layer, ends=self._ends(None, number) if layer else {})
            self._ask(batch)
            assert self._call.entered is not None
            for key in keys:
                self._streams.put((key, number), self._call.entered)

    def _end(self, layer: int, keys: Sequence[int | None]) -> None:
        for key in keys:
            for number in range(len(self.batches)):
                self._streams.put((key, number, layer), self._streams.get((key, number)))

    def _fork(self, layer: int, number: int) -> None:
        """A stream that leaves `layer` out starts as what the base has before it, with the base's end of an earlier stack."""
        self._streams.put((layer, number), self._streams.get((None, number)))
        for end, stream in self._ends(None, number).items():
            self._streams.put((layer, number, end), stream)

    def _ends(self, key: int | None, number: int) -> dict[int, torch.Tensor]:
        """Layer -> stream at the end of its stack, for every stack that a stream has been through."""
        lasts = [layer for layer in range(len(self.places)) if (key, number, layer) in self._streams]
        return {layer: self._streams.get((key, number, layer)) for layer in lasts}

    def _through(self, layer: int, number: int, key: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What a stream is before and after a layer."""
        stream = self._streams.get((key, number))
        earlier = self.places[layer][0] != self.places[0][0]
        self._call = _Call(number, target=layer, stream=stream, ends=self._ends(key, number) if earlier else {})
        self._ask(self.batches[number])
        assert self._call.left is not None
        return stream, self._call.left

    def _ask(self, batch: Mapping[str, torch.Tensor]) -> None:
        try:
            self.model.model(**batch, use_cache=False)
        except _Done:
            return
        raise AssertionError("every layer is called, so the call ends in the one that was asked")

    @contextmanager
    def _patched(self) -> Iterator[None]:
        modules = [self.model.model.get_submodule(layer) for layer in self.model.layers]
        for number, module in enumerate(modules):
            vars(module)["forward"] = partial(self._layer, number, module.forward)
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in modules:
                del vars(module)["forward"]

    def _layer(self, layer: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """What stands in for a layer's forward."""
        call = self._call
        entered = args[0] if args else kwargs["hidden_states"]
        if layer == call.target:
            call.entered = entered
            if call.stream is not None:
                out = forward(call.stream, *args[1:], **kwargs) if args else forward(**{**kwargs, "hidden_states": call.stream})
                call.left = out[0] if isinstance(out, tuple) else out
                self._rests.setdefault((call.number, layer), out[1:] if isinstance(out, tuple) else None)
            raise _Done
        given, rest = call.ends.get(layer, entered), self._rests[call.number, layer]
        return given if rest is None else (given, *rest)


@dataclass
class _Call:
    number: int = 0
    target: int = -1
    stream: torch.Tensor | None = None
    ends: Mapping[int, torch.Tensor] = field(default_factory=dict)
    entered: torch.Tensor | None = None
    left: torch.Tensor | None = None


class _Done(BaseException):
    """Ends a call when the layer that it was made for has answered."""


class _Streams:
    """Tensors by name in one file that nobody else sees."""

    def __init__(self, directory: Path | None) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._where = directory or Path(tempfile.gettempdir())
        with disk_faults(self._where):
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="penjing-", dir=directory, buffering=0)  # noqa: SIM115
        self._rooms: dict[tuple[int | None, ...], tuple[int, int]] = {}
        self._shapes: dict[tuple[int | None, ...], tuple[int, ...]] = {}
        self._end = 0

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def put(self, name: tuple[int | None, ...], value: torch.Tensor) -> None:
        array = np.ascontiguousarray(value.float().numpy())
        if self._rooms.get(name, (0, -1))[1] < array.nbytes:
            self._rooms[name] = self._end, array.nbytes
            self._end += array.nbytes
        self._shapes[name] = array.shape
        offset, view = self._rooms[name][0], memoryview(array.data).cast("B")
        with disk_faults(self._where):
            while view.nbytes:
                wrote = os.pwrite(self._file.fileno(), view, offset)
                view, offset = view[wrote:], offset + wrote

    def get(self, name: tuple[int | None, ...]) -> torch.Tensor:
        array = np.empty(self._shapes[name], np.float32)
        offset, view = self._rooms[name][0], memoryview(array.data).cast("B")
        while view.nbytes:
            got = os.preadv(self._file.fileno(), [view], offset)
            assert got, "the file is ours and as long as what was put"
            view, offset = view[got:], offset + got
        return torch.from_numpy(array)
