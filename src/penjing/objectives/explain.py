"""One row of one step as people read it: what the model sees, what it must say, who sees whom.

`render(stream, step, row, decode=encoder.decode)` gives lines for a terminal, with ANSI colours or without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penjing.errors import ConfigError, fault
from penjing.objectives.example import NO_LOSS, Batch
from penjing.objectives.stream import Stream
from penjing.objectives.ul2 import DENOISERS
from penjing.objectives.unilm import TASKS

_SEGMENT_COLOURS = ("36", "33", "35", "34", "32", "96", "93", "95")
"""Cyan, yellow, magenta, blue, green and lighter ones, in turn."""
_DIM, _LEARNED, _SPECIAL, _BOLD = "2", "4", "1;31", "1"

Decode = Callable[[Sequence[int]], str]


def render(stream: Stream, step: int, row: int, *, decode: Decode | None = None, colour: bool = True, width: int = 2000,
           state: dict[str, Any] | None = None) -> str:
    """Row `row` of step `step`, sample by sample: input, target, weights, positions.

    Learned targets are underlined, ids of special tokens are red, every segment has its colour; without colour, learned text
    stands between « and ». At most `width` characters of each text are shown. Without `decode`, ids are shown.
    Raises ConfigError for a row that the step does not have.
    """
    if not 0 <= row < stream.num_rows or step < 0:
        raise ConfigError(fault(f"there is no row {row} in step {step}", expected=f"rows 0 to {stream.num_rows - 1}"))
    batch = stream.batch(step, rows=slice(row, row + 1), state=state if state is not None else stream.initial_state())
    source, index = stream.locate(step, row)
    view = _View(stream, decode, colour, width)
    head = [
        view.paint(f"step {step}, row {row}", _BOLD) + f": row {index} of source '{stream.sources[source]}', "
        f"objective {stream.config.objective}" + view.task(batch),
    ]
    body = view.pair(batch) if batch.encoder_tokens_BE is not None else view.single(batch)
    filled = 100 * batch.real_tokens / batch.slots
    foot = f"{batch.real_tokens} of {batch.slots} positions used ({filled:.1f}%), {batch.target_tokens} targets"
    return "\n".join([*head, *body, view.paint(foot, _DIM)])


class _View:
    def __init__(self, stream: Stream, decode: Decode | None, colour: bool, width: int) -> None:
        self._decode = decode
        self._colour = colour
        self._width = width
        self._names = {number: name for name, number in stream.tokens[0].special.items()}
        self._objective = stream.config.objective

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def task(self, batch: Batch) -> str:
        number = int(batch.denoiser_B[0])
        if self._objective == "unilm":
            return f", {TASKS[number - 1]}"
        return f", denoiser {self._denoiser(number)}" if number > 0 else ""

    def single(self, batch: Batch) -> list[str]:
        """A decoder-only row."""
        assert batch.tokens_BS is not None and batch.segments_BS is not None and batch.targets_BS is not None
        assert batch.weights_BS is not None and batch.positions_BS is not None
        tokens, segments, targets = batch.tokens_BS[0], batch.segments_BS[0], batch.targets_BS[0]
        weights, positions = batch.weights_BS[0], batch.positions_BS[0]
        lines = []
        for number in _numbers(segments):
            where = np.flatnonzero(segments == number)
            first, last = int(where[0]), int(where[-1]) + 1
            place = slice(first, last)
            note = f"segment {number}: positions {first}–{last - 1}, numbered {positions[first]}–{positions[last - 1]}"
            if batch.denoisers_BS is not None and (kind := int(batch.denoisers_BS[0, place].max())):
                note += f", denoiser {self._denoiser(kind)}"
            if batch.prefix_BS is not None and (seen := int(np.count_nonzero(batch.prefix_BS[0, place]))):
                note += f", {seen} seen both ways"
            if batch.reversed_B is not None and bool(batch.reversed_B[0]):
                note += ", read right to left"
            if batch.block_positions_BS is not None and (blocks := batch.block_positions_BS[0, place]).any():
                note += f", {int(np.count_nonzero(blocks == 1))} blanks"
            lines.append(self.paint(note, _DIM))
            lines.append("  input   " + self.text(tokens[place], number=number))
            lines.append("  target  " + self.learned(tokens[place], targets[place], weights[place], number=number))
            odd = np.unique(weights[place][(targets[place] != NO_LOSS)])
            if len(odd) and not (len(odd) == 1 and odd[0] == 1.0):
                lines.append("  weights " + ", ".join(f"{int((weights[place] == w).sum())} at {w:g}" for w in odd))
        return lines

    def pair(self, batch: Batch) -> list[str]:
        """An encoder-decoder row."""
        assert batch.encoder_tokens_BE is not None and batch.encoder_segments_BE is not None
        assert batch.decoder_tokens_BD is not None and batch.decoder_segments_BD is not None and batch.targets_BD is not None
        lines = []
        for number in _numbers(batch.decoder_segments_BD[0]):
            here = batch.encoder_segments_BE[0] == number
            there = batch.decoder_segments_BD[0] == number
            note = f"segment {number}: {int(here.sum())} encoder and {int(there.sum())} decoder positions"
            if batch.denoisers_BD is not None and (kind := int(batch.denoisers_BD[0][there].max())):
                note += f", denoiser {self._denoiser(kind)}"
            lines.append(self.paint(note, _DIM))
            lines.append("  encoder " + self.text(batch.encoder_tokens_BE[0][here], number=number))
            lines.append("  decoder " + self.text(batch.decoder_tokens_BD[0][there], number=number))
            lines.append("  target  " + self.text(batch.targets_BD[0][there], number=number, learned=True))
        return lines

    def text(self, ids: NDArray[np.integer], *, number: int, learned: bool = False) -> str:
        """Ids as text, special tokens by their names."""
        colour = _SEGMENT_COLOURS[(number - 1) % len(_SEGMENT_COLOURS)] + (f";{_LEARNED}" if learned else "")
        shown, length = [], 0
        for special, run in _runs(ids, self._names):
            part = self._names[run[0]] if special else self._say(run)
            room = self._width - length
            cut = part if len(part) <= room else part[:room] + "…"
            shown.append(self.paint(cut, _SPECIAL if special else colour))
            length += len(part)
            if len(part) > room:
                break
        text = "".join(shown)
        return f"«{text}»" if learned and not self._colour else text

    def learned(self, tokens: NDArray[np.integer], targets: NDArray[np.integer], weights: NDArray[np.floating], *,
                number: int) -> str:
        """The targets in runs; runs that are not learned are a dim count."""
        known = (targets != NO_LOSS) & (weights > 0)
        lines, at = [], 0
        edges = [*(np.flatnonzero(np.diff(known)) + 1).tolist(), len(known)]
        budget = self._width
        for edge in edges:
            if known[at]:
                lines.append(self.text(targets[at:edge], number=number, learned=True))
                budget -= 4 * (edge - at)
            else:
                lines.append(self.paint(f"[{edge - at} not learned]", _DIM))
                budget -= 16
            at = edge
            if budget < 0 and at < len(known):
                lines.append("…")
                break
        return " ".join(lines)

    def _say(self, ids: list[int]) -> str:
        text = " ".join(map(str, ids)) if self._decode is None else self._decode(ids)
        return text.replace("\x1b", "␛").replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")

    def _denoiser(self, number: int) -> str:
        if self._objective in ("span", "prefix"):
            return self._objective
        task = DENOISERS[number - 1]
        if not task.mean_span:
            return f"{number} (S)"
        return f"{number} ({task.mode}, spans of {task.mean_span}, {task.density:.0%} masked)"


def _numbers(segments: NDArray[np.integer]) -> list[int]:
    return [int(number) for number in np.unique(segments) if number]


def _runs(ids: NDArray[np.integer], names: dict[int, str]) -> list[tuple[bool, list[int]]]:
    runs: list[tuple[bool, list[int]]] = []
    for number in ids.tolist():
        special = number in names
        if special or not runs or runs[-1][0]:
            runs.append((special, [number]))
        else:
            runs[-1][1].append(number)
    return runs
