"""Carrying out a plan: the cut checkpoint, streamed weight by weight out of the source, in memory that does not grow
with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from penjing import console
from penjing.errors import ConfigError, InputError, Interrupted, fault
from penjing.models import axes
from penjing.models.checkpoint import (
    MAX_SHARD_BYTES,
    Checkpoint,
    Output,
    from_float,
    stamp_of,
    to_float,
    write_checkpoint,
)
from penjing.models.family import Tensor
from penjing.prune.arrays import StoredArray, as_array, chunks_of
from penjing.prune.plan import ARRAYS_FILE, PLAN_FILE, Operation, PruningPlan, header_hash, source_names, unit_sizes

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def apply(
    plan: PruningPlan,
    source: Checkpoint,
    out: Path,
    *,
    check_content: bool = True,
    stop: Callable[[], bool] = lambda: False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Cut `source` as the plan says and write it to `out`, with the plan, tokenizer and generation files beside the
    weights.

    When `stop` says so, Interrupted is raised; finished shards stay and the same call goes on from them.
    InputError when the plan is for another model. The result does not depend on how the source was sharded.
    """
    found = header_hash(source)
    if plan.source.get("headers", found) != found:
        raise InputError(
            fault(
                "the plan is for another model: architecture or sizes differ",
                where=source.path,
                fix="make a new plan for this one",
            )
        )
    content = source.fingerprint() if check_content else plan.source.get("content", "")
    if plan.source.get("content") and plan.source["content"] != content:
        raise InputError(
            fault(
                "the plan was made from other weights of the same shape",
                where=source.path,
                fix="make a new plan for these, or delete 'content' from the plan's 'source'",
            )
        )
    check_tied(source)
    value, arrays = plan.to_json()
    value["source"] = {"headers": found, "content": content}
    outputs = cut_outputs(plan, source)
    with console.bar("cutting", total=sum(item.num_bytes for item in outputs), unit="B") as bar:
        outputs = [_watched(item, bar, stop) for item in outputs]
        (out / ARRAYS_FILE).unlink(missing_ok=True)
        write_checkpoint(
            out,
            config=plan.target_config,
            tensors=outputs,
            source=source.path,
            max_shard_bytes=max_shard_bytes,
            stamp=stamp_of(value, {key: _hash(array) for key, array in arrays.items()}),
            extra={PLAN_FILE: value},
        )


def _hash(array: np.ndarray | StoredArray) -> str:
    digest = xxhash.xxh3_128()
    for block in chunks_of(array):
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


class CutView:
    """The cut model as it would be written, weight by weight, without writing it: `read_float` cuts what is asked for."""

    def __init__(self, plan: PruningPlan, source: Checkpoint) -> None:
        self.path = source.path
        self._outputs = {item.name: item for item in cut_outputs(plan, source)}
        self._plan = plan
        self._source = source
        self._used = source_names(plan)
        self._old = plan.family.tensors(plan.source_config)
        self._sizes = unit_sizes(plan.source_config)
        self._files = plan.family.match(plan.source_config, source.names, where=source.path)
        self.names = list(self._outputs)
        self.config = plan.family.settle(plan.target_config, self.names, self.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._outputs[name].shape

    def dtype(self, name: str) -> str:
        return self._outputs[name].dtype

    def read_float(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """A weight as float32, or some of its rows, rounded as the files' dtype rounds it."""
        item, operations = self._outputs[name], self._plan.operations.get(name, ())
        if rows is None or any(one.kind in ("add", "replace") or (one.kind == "map" and one.dim == 0) for one in operations):
            values = _joined(item.chunks(), item.dtype, item.shape)
            return values if rows is None else values[rows]
        old = self._old[self._used[name]]
        gathers = [axes.gather(label, self._sizes, self._plan.keep) for label in old.axes]
        gathers[0] = rows if gathers[0] is None else gathers[0][rows]
        parts = _chunks(item, self._files[old.name], self._source, gathers, operations)
        return _joined(parts, item.dtype, (len(rows), *item.shape[1:]))


def _joined(parts: Iterable[np.ndarray], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(shape, np.float32)
    flat, done = values.reshape(-1), 0
    for part in parts:
        flat[done : done + part.size] = to_float(part, dtype).reshape(-1)
        done += part.size
    return values


def cut_outputs(plan: PruningPlan, source: Checkpoint) -> list[Output]:
    """The weights of the cut model, to be streamed; no weight is read yet."""
    family = plan.family
    old_table = family.tensors(plan.source_config)
    files = family.match(plan.source_config, source.names, where=source.path)
    sizes = unit_sizes(plan.source_config)
    used = source_names(plan)
    stray = set(plan.operations) - set(used)
    if stray:
        raise ConfigError(fault(f"the plan has operations for '{sorted(stray)[0]}', which the cut model does not have"))
    outputs = []
    for name, tensor in family.tensors(plan.target_config).items():
        old = old_table[used[name]]
        outputs.append(_output(tensor, old, files[old.name], source, sizes, plan.keep, plan.operations.get(name, ())))
    return outputs


def check_tied(source: Checkpoint) -> None:
    """InputError when a file holds a second copy of a tied weight that differs from the first."""
    from penjing.models.family import of

    family = of(source.config)
    aliases = family.tied_aliases(source.config)
    names = set(source.names)
    for alias, target in aliases.items():
        if alias not in names or target not in names:
            continue
        chunks = zip(source.row_chunks(alias), source.row_chunks(target), strict=True)
        if source.shape(alias) != source.shape(target) or any(not np.array_equal(one, two) for one, two in chunks):
            raise InputError(
                fault(
                    f"'{alias}' and '{target}' differ although the configuration ties them",
                    where=source.path,
                    fix="set tie_word_embeddings to false in config.json if they are meant to differ",
                )
            )


def _output(
    tensor: Tensor,
    old: Tensor,
    file_name: str,
    source: Checkpoint,
    sizes: Mapping[str, int],
    keep: Mapping[str, np.ndarray],
    operations: tuple[Operation, ...],
) -> Output:
    gathers = [axes.gather(label, sizes, keep) for label in old.axes]
    dtype = source.dtype(file_name)
    if tuple(source.shape(file_name)) != old.shape:
        raise InputError(
            fault(
                f"'{file_name}' has the wrong shape",
                where=source.path,
                found=list(source.shape(file_name)),
                expected=list(old.shape),
            )
        )
    if operations and dtype not in _FLOATS:
        raise InputError(
            fault(
                f"'{file_name}' is not stored as floating point and cannot be changed", where=source.path, found=dtype
            )
        )
    _check_operations(tensor, old, operations)
    item = Output(tensor.name, dtype, tensor.shape, tuple)
    return replace(item, chunks=lambda: _chunks(item, file_name, source, gathers, operations))


def _chunks(
    item: Output, file_name: str, source: Checkpoint, gathers: list[np.ndarray | None], operations: tuple[Operation, ...]
) -> Iterator[np.ndarray]:
    if operations:
        yield from _computed(item.shape, file_name, item.dtype, source, gathers, operations)
        return
    for block in source.row_chunks(file_name, gathers[0]):
        yield take_columns(block, gathers[1:])


def take_columns(block: np.ndarray, gathers: list[np.ndarray | None]) -> np.ndarray:
    """Select along all dimensions but the first."""
    for dim, index in enumerate(gathers, start=1):
        if index is not None:
            block = np.take(block, index, axis=dim)
    return block


def _computed(
    shape: tuple[int, ...],
    file_name: str,
    dtype: str,
    source: Checkpoint,
    gathers: list[np.ndarray | None],
    operations: tuple[Operation, ...],
) -> Iterator[np.ndarray]:
    by_kind: dict[tuple[str, int], Operation] = {(item.kind, item.dim): item for item in operations}
    whole = by_kind.get(("replace", 0))
    if whole is not None and whole.array is not None:
        for values in chunks_of(whole.array):
            yield from_float(values, dtype)
        return
    row_map = by_kind.get(("map", 0))
    row_scale = by_kind.get(("scale", 0))
    rows = None if row_map is not None else gathers[0]
    factor = float(np.prod([item.value for item in operations if item.kind == "multiply"]))
    added = by_kind.get(("add", 0))
    maps = {key: as_array(item.array) for key, item in by_kind.items() if key[0] in ("map", "scale") and item.array is not None}
    addend = None if added is None or added.array is None else as_array(added.array)
    total = np.zeros(shape, np.float32) if row_map is not None else None
    start = 0
    for block in source.row_chunks(file_name, rows):
        values = to_float(block, dtype)
        here = np.arange(start, start + len(values)) if rows is None else rows[start : start + len(values)]
        out_rows = slice(start, start + len(values))
        start += len(values)
        if row_scale is not None:
            values = values * maps["scale", 0][here].reshape(-1, *[1] * (values.ndim - 1))
        for dim, index in enumerate(gathers[1:], start=1):
            if ("scale", dim) in maps:
                values = values * maps["scale", dim]
            if ("map", dim) in maps:
                values = values @ maps["map", dim].T
            elif index is not None:
                values = np.take(values, index, axis=dim)
        if total is not None:
            total += (maps["map", 0][:, here] @ values.reshape(len(values), -1)).reshape(total.shape)
            continue
        values = values * np.float32(factor)
        if addend is not None:
            values = values + addend[out_rows]
        yield from_float(values, dtype)
    if total is not None:
        total *= np.float32(factor)
        if addend is not None:
            total += addend
        yield from_float(total, dtype)


def _check_operations(tensor: Tensor, old: Tensor, operations: tuple[Operation, ...]) -> None:
    for item in operations:
        expected: tuple[int, ...] | None = None
        if not 0 <= item.dim < max(1, len(old.shape)):
            raise ConfigError(fault(f"'{item.kind}' on '{tensor.name}' names a dimension it does not have", found=item.dim,
                                    expected=f"0 to {len(old.shape) - 1}"))
        if item.kind == "scale":
            expected = (old.shape[item.dim],)
        elif item.kind == "map":
            expected = (tensor.shape[item.dim], old.shape[item.dim])
        elif item.kind in ("add", "replace"):
            expected = tensor.shape
        elif item.kind != "multiply":
            raise ConfigError(
                fault(
                    f"unknown operation '{item.kind}' on '{tensor.name}'",
                    expected="scale, map, multiply, add or replace",
                )
            )
        if expected is not None and (item.array is None or item.array.shape != expected):
            raise ConfigError(
                fault(
                    f"the array of '{item.kind}' on '{tensor.name}' has the wrong shape",
                    found=None if item.array is None else list(item.array.shape),
                    expected=list(expected),
                )
            )


def _watched(item: Output, bar: console.Bar, stop: Callable[[], bool]) -> Output:
    def chunks() -> Iterator[np.ndarray]:
        for chunk in item.chunks():
            if stop():
                raise Interrupted(fault("stopped while cutting", where=item.name, fix="run the same command again to go on"))
            bar.advance(chunk.nbytes)
            yield chunk

    return Output(item.name, item.dtype, item.shape, chunks)
