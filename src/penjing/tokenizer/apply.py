"""A plan carried out on a checkpoint: rows gathered and added shard by shard, tokenizer files and every stored id renewed.

Weights stream from disk to disk; only statistics of the embedding and a few thousand new rows at a time are held.
"""


from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.files import read_json
from penjing.models import family as families
from penjing.models.checkpoint import Checkpoint, Output, from_float, open_checkpoint, stamp_of, to_float, write_checkpoint
from penjing.tokenizer.build import build
from penjing.tokenizer.plan import VocabPlan, write_plan
from penjing.tokenizer.rows import Init, Role, RowStatistics, measure_rows, new_rows
from penjing.tokenizer.stored import renumbered
from penjing.tokenizer.vocabulary import NORMAL, Vocabulary
from penjing.tokenizer.write import write_tokenizer

PLAN_NAME = "vocab_plan.json"
MAX_PADDING_ROWS = 2048
"""More unused rows than this behind the vocabulary are taken for a wrong tokenizer, not for padding."""
_NEW_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Rows:
    """How new rows are made."""

    init: Init = "position"
    head_init: Init | None = None
    """For output rows; None means the same as `init`."""
    seed: int = 0
    frequency_V: np.ndarray | None = None
    """Share of the corpus of each old id, for `idf`."""
    focus: list[tuple[np.ndarray, np.ndarray]] | None = None
    """For each new piece, old ids and shares, for `focus`."""


def apply_plan(plan: VocabPlan, vocabulary: Vocabulary, source: Path, out: Path, *, rows: Rows) -> Vocabulary:
    """Write the checkpoint that `plan` makes of `source` into `out`; the new vocabulary.

    Raises InputError when the tokenizer and the embedding of the source do not belong together.
    """
    checkpoint = open_checkpoint(source)
    family = families.of(checkpoint.config)
    check_rows(vocabulary, family.sizes(checkpoint.config)["vocab"], source)
    result = build(vocabulary, plan)
    new_id = plan.new_id_of()
    write_tokenizer(result, out, source=source, new_id=new_id)
    write_plan(out / PLAN_NAME, plan)
    for file in sorted(source.glob("*.py")):
        shutil.copyfile(file, out / file.name)
    config = renumbered(family.resize(checkpoint.config, vocab=plan.rows), new_id)
    extra = {}
    if (source / "generation_config.json").is_file():
        extra["generation_config.json"] = renumbered(read_json(source / "generation_config.json"), new_id)
    stamp = stamp_of("vocabulary", plan.operation, plan.source, plan.kept if plan.operation == "prune" else len(plan.kept),
                     [(piece.piece, piece.old) for piece in plan.new], plan.rows, rows.init, rows.head_init, rows.seed,
                     checkpoint.fingerprint())
    write_checkpoint(out, config=config, tensors=outputs(plan, vocabulary, checkpoint, rows), stamp=stamp, extra=extra)
    return result


def check_rows(vocabulary: Vocabulary, rows: int, where: Path) -> None:
    """Refuse a tokenizer with more ids than the embedding has rows, or an embedding with far more rows than ids."""
    if vocabulary.total > rows:
        raise InputError(fault("the tokenizer's ids exceed the embedding", where=where, found=f"{vocabulary.total} ids",
                               expected=f"at most {rows}, the rows of the embedding", fix="is this the model's own tokenizer?"))
    if rows - vocabulary.total > MAX_PADDING_ROWS:
        raise InputError(fault("the embedding is larger than the vocabulary", where=where, found=f"{rows} rows",
                               expected=f"{vocabulary.total} ids and at most {MAX_PADDING_ROWS} rows of padding",
                               fix="is this the model's own tokenizer?"))


def outputs(plan: VocabPlan, vocabulary: Vocabulary, checkpoint: Checkpoint, rows: Rows) -> Iterator[Output]:
    """Every tensor of the result, in the order of the source's files."""
    family = families.of(checkpoint.config)
    names = family.match(checkpoint.config, checkpoint.names, where=checkpoint.path)
    roles = {names[tensor.name]: tensor for tensor in family.vocab_tensors(checkpoint.config)}
    wanted = set(names.values())
    for name in checkpoint.names:
        if name not in wanted:
            continue
        tensor = roles.get(name)
        if tensor is None:
            yield Output.copy(checkpoint, name)
            continue
        if tensor.dim != 0:
            raise InputError(fault(f"'{name}' has its tokens in dimension {tensor.dim}", where=checkpoint.path,
                                   expected="dimension 0"))
        yield _resized(plan, vocabulary, checkpoint, name, tensor.role, rows)  # type: ignore[arg-type]


def _resized(plan: VocabPlan, vocabulary: Vocabulary, checkpoint: Checkpoint, name: str, role: Role, rows: Rows) -> Output:
    dtype, shape = checkpoint.dtype(name), checkpoint.shape(name)

    def chunks() -> Iterable[np.ndarray]:
        kept = np.array(plan.kept, dtype=np.int64) if plan.operation == "prune" else np.arange(plan.size_before)
        yield from checkpoint.row_chunks(name, kept)
        padding = plan.rows - plan.size_after
        if not plan.new and not padding:
            return
        bias = len(shape) == 1
        statistics = _statistics(vocabulary, checkpoint, name, covariance=rows.init == "multivariate" and not bias)
        for start in range(0, len(plan.new), _NEW_ROWS_AT_ONCE):
            group = [piece.old for piece in plan.new[start: start + _NEW_ROWS_AT_ONCE]]
            yield from_float(_made(group, checkpoint, name, role, statistics, rows, plan.size_before + start, start), dtype)
        if padding:
            row = statistics.mean_H.astype(np.float32)
            filler = np.full(padding, float(row.min())) if bias else np.repeat(row[None], padding, axis=0)
            yield from_float(np.ascontiguousarray(filler, dtype=np.float32), dtype)

    return Output(name, dtype, (plan.rows, *shape[1:]), chunks)


def _made(group: list[tuple[int, ...]], checkpoint: Checkpoint, name: str, role: Role, statistics: RowStatistics, rows: Rows,
          first: int, start: int) -> np.ndarray:
    needed = np.array(sorted({index for old in group for index in old}), dtype=np.int64)
    if len(checkpoint.shape(name)) == 1:
        values = dict(zip(needed.tolist(), checkpoint.read_float(name, needed).tolist(), strict=True)) if len(needed) else {}
        return np.array([values[old[0]] if old else statistics.mean_H.min() for old in group], dtype=np.float32)
    init = rows.head_init if role == "output" and rows.head_init is not None else rows.init
    if init == "focus":
        from penjing.tokenizer.focus import focus_rows

        assert rows.focus is not None
        return focus_rows(group, rows.focus[start: start + len(group)], checkpoint, name, statistics, seed=rows.seed, first=first,
                          role=role)
    old_rows: dict[int, np.ndarray] = {}
    if len(needed):
        old_rows = dict(zip(needed.tolist(), checkpoint.read_float(name, needed), strict=True))
    return new_rows(group, init=init, role=role, statistics=statistics, old_rows=old_rows, frequency_V=rows.frequency_V,
                    seed=rows.seed, first=first, name=name)


def _statistics(vocabulary: Vocabulary, checkpoint: Checkpoint, name: str, *, covariance: bool) -> RowStatistics:
    dtype = checkpoint.dtype(name)
    if len(checkpoint.shape(name)) == 1:
        values = to_float(checkpoint.read_bits(name), dtype)[: vocabulary.total].astype(np.float64)
        return RowStatistics(values, float(values.std()), 0.0)
    return measure_rows((to_float(chunk, dtype) for chunk in checkpoint.row_chunks(name)), like_rows(vocabulary),
                        covariance=covariance)


def like_rows(vocabulary: Vocabulary) -> np.ndarray:
    """bool [total]: the single Chinese characters, or all normal pieces where there are fewer than 50 of them."""
    from penjing.tokenizer.scripts import is_chinese

    like = np.zeros(vocabulary.total, dtype=bool)
    normal = np.zeros(vocabulary.total, dtype=bool)
    normal[: len(vocabulary)] = vocabulary.types_V == NORMAL
    for index in np.flatnonzero(normal).tolist():
        text = vocabulary.text(index)
        like[index] = len(text) == 1 and is_chinese(text)
    return like if like.sum() >= 50 else normal


def parameters_before_after(config: dict[str, Any], rows: int) -> dict[str, int]:
    """Parameters of the model with its present vocabulary and with `rows` rows."""
    from penjing.models.cost import count_parameters

    family = families.of(config)
    return {"before": count_parameters(config), "after": count_parameters(family.resize(config, vocab=rows))}
