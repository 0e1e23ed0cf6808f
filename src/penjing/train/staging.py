"""Copies of what lies on a GPU, made while training goes on: page-locked memory that is taken once, and a stream beside training's.

    begin   (training)    marks where training's stream stands; nothing is copied yet, nothing waits
    fetch   (the writer)  takes memory if there is none, puts the copies on the side stream behind the mark, waits for them
    settle  (training)    before weights or moments change: training's stream waits for the copies, the processor does not

Between `begin` and `settle` a forward and a backward pass may run beside the copies. The host tensors of one `fetch` are the next
one's too, so `begin` may be called only when whoever writes them is done. torch's own stager (`DefaultStager`) is not used: its
side stream does not wait for training's, so it may copy weights that an update still in the queue is about to change.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from penjing import console

PIECE = 512 << 20
"""Bytes of one piece of page-locked memory, if no tensor is larger: while the driver locks one, kernels cannot be started."""
ALIGNMENT = 256
"""Bytes that the tensors in a piece begin at multiples of."""
PAGE = 2 << 20
"""Bytes of the largest page that memory is asked for in: two pieces must not share a page."""


class Lane(Protocol):
    """The way from a device to the processor's memory."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies on the device."""

    def mark(self) -> Any:
        """An event: where training's stream stands."""

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], *, after: Any) -> Any:
        """Put copies (to, from) on the side stream, behind `after`; gives an event behind the last one."""

    def hold(self, event: Any) -> None:
        """What is put on training's stream from now on runs after `event`."""

    def page_locked(self, size: int) -> Tensor:
        """`size` bytes that the device writes to directly. RuntimeError or MemoryError when the system does not give them."""


class CudaLane:
    """From one GPU, with a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.device == self.device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], *, after: torch.cuda.Event) -> torch.cuda.Event:
        done = torch.cuda.Event(blocking=True)  # the writer sleeps until it comes
        with torch.cuda.device(self.device), torch.cuda.stream(self._side), torch.no_grad():
            self._side.wait_event(after)
            for to, source in pairs:
                to.copy_(source, non_blocking=True)
            done.record(self._side)
        return done

    def hold(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def page_locked(self, size: int) -> Tensor:
        whole = np.empty(size + PAGE, np.uint8)  # numpy asks for large pages
        start = -whole.ctypes.data % PAGE
        memory = torch.from_numpy(whole[start : start + size]).zero_()  # many threads fetch the pages before the driver locks them
        with torch.cuda.device(self.device):
            if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 1)) == 0:  # 1: for every context
                weakref.finalize(whole, _unlock, self.device, memory.data_ptr()).atexit = False
                return memory
            with contextlib.suppress(RuntimeError):  # takes the refusal, which the next kernel would be blamed for, off this thread
                torch.zeros(1, device=self.device)
            del memory, whole
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)  # torch's own way, in powers of two


def _unlock(device: torch.device, pointer: int) -> None:
    with torch.cuda.device(device):
        torch.cuda.cudart().cudaHostUnregister(pointer)


class Staging:
    """Host copies of named tensors, in memory that is kept. Where page-locked memory cannot be had it is ordinary, which is said once."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._layout: list[tuple[str, torch.Size, torch.dtype]] | None = None
        self._pieces: list[list[str]] = []
        self._places: list[dict[str, Tensor]] = []
        """Of every piece that has its memory: its tensors."""
        self._refused = False
        self._tensors: dict[str, Tensor] = {}
        self._still: dict[str, Tensor] = {}
        self._mark: Any = None
        self._pending = False
        """Whether training has yet to settle."""
        self._issued = threading.Event()
        """Set when every copy is on the side stream."""
        self._copied: Any = None
        """The event behind the last copy."""

    def begin(self, tensors: dict[str, Tensor]) -> None:
        """Ask for copies of `tensors` as training's stream leaves them. What was fetched before must no longer be in use."""
        self._tensors = {name: tensor for name, tensor in tensors.items() if self._lane.holds(tensor)}
        self._still = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items() if name not in self._tensors}
        self._copied = None
        self._mark = self._lane.mark()
        self._issued.clear()
        self._pending = True

    def settle(self) -> float:
        """Call before the tensors change. Gives the seconds that the processor waited: until memory is there, the first time."""
        if not self._pending:
            return 0.0
        started = time.perf_counter()
        self._issued.wait()
        if self._copied is not None:
            self._lane.hold(self._copied)
        self._pending = False
        return time.perf_counter() - started

    def fetch(self) -> dict[str, Tensor]:
        """The copies, when they are made. For another thread than training's; once for every `begin`."""
        try:
            self._issue()
        finally:
            self._issued.set()  # training must not wait for ever
        if self._copied is not None:
            self._copied.synchronize()
        self._tensors = {}
        still, self._still = self._still, {}
        return {name: tensor for place in self._places for name, tensor in place.items()} | still

    def _issue(self) -> None:
        """Piece by piece: take its memory, the first time, and put its copies on the side stream."""
        layout = [(name, tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()]
        if layout != self._layout:
            self._layout, self._places = layout, []
            self._pieces = pieces_of({name: tensor.nbytes for name, tensor in self._tensors.items()})
        copied = None
        for number, piece in enumerate(self._pieces):
            if number == len(self._places):
                self._places.append(self._take({name: self._tensors[name] for name in piece}))
            copied = self._lane.copy([(to, self._tensors[name]) for name, to in self._places[number].items()], after=self._mark)
        self._copied = copied

    def _take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Memory for `tensors`: contiguous, one behind another, each a storage of its own."""
        memory = self._memory(sum(_room(tensor.nbytes) for tensor in tensors.values())).numpy()
        places, start = {}, 0
        for name, tensor in tensors.items():
            place = torch.from_numpy(memory[start : start + tensor.nbytes])
            places[name] = place.view(tensor.dtype).view(tensor.shape)
            start += _room(tensor.nbytes)
        return places

    def _memory(self, size: int) -> Tensor:
        if not self._refused:
            try:
                return self._lane.page_locked(-(-size // 4096) * 4096)
            except (RuntimeError, MemoryError) as error:
                self._refused = True
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                console.say(f"  no page-locked memory for saving ({reason}); states are copied through ordinary memory, which is slower")
        return torch.empty(size, dtype=torch.uint8)


def of(tensors: dict[str, Tensor]) -> Staging | None:
    """For tensors on a GPU; None where there is nothing to be won."""
    devices = [tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"]
    return Staging(CudaLane(devices[0])) if devices else None


def pieces_of(sizes: dict[str, int], *, limit: int = PIECE) -> list[list[str]]:
    """Names in their order, in pieces of at most `limit` bytes together; a larger one has a piece of its own."""
    pieces: list[list[str]] = []
    filled = math.inf
    for name, size in sizes.items():
        if filled + _room(size) > limit:
            pieces.append([])
            filled = 0
        pieces[-1].append(name)
        filled += _room(size)
    return pieces


def _room(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
