"""VocabPlan: which pieces stay and which come, as JSON that a person can read and edit before anything is written.

One piece stands on one line. Taking a line out of `kept` drops that piece, taking a line out of `new` does not add it; the
contract is checked again when the plan is applied. Counts are there to be read and do not matter to the result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from penjing.errors import InputError, fault
from penjing.files import hash_text, read_json, write_text
from penjing.tokenizer.vocabulary import Vocabulary

VERSION = 1
Operation = Literal["grow", "prune"]


@dataclass(frozen=True)
class NewPiece:
    """A piece to append: its spelling in the tokenizer's own files, how often it was seen, what it was before."""

    piece: str
    count: int
    old: tuple[int, ...]
    """Ids of the old tokens it is made of, in order."""
    score: float | None = None
    """Unigram only: the score it is added with."""
    special: bool = False
    """A special token (a sentinel, a mode, a mark of a chat): matched whole before anything else, made of no old tokens."""


@dataclass(frozen=True)
class VocabPlan:
    """A change of vocabulary. Old ids are those of the source tokenizer, new ids those of the result."""

    operation: Operation
    kind: str
    source: str
    """Hash of the source's pieces: a plan fits one vocabulary only."""
    size_before: int
    """Least number of rows the source needs."""
    kept: tuple[int, ...]
    """Old ids that stay, ascending."""
    new: tuple[NewPiece, ...] = ()
    pad_to_multiple: int = 1
    counts: dict[int, int] = field(default_factory=dict, compare=False)
    """Old id -> how often it was seen, for the reader of the file."""
    spelling: dict[int, str] = field(default_factory=dict, compare=False)
    """Old id -> text, for the reader of the file."""
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def size_after(self) -> int:
        """Least number of rows the result needs."""
        return (self.size_before if self.operation == "grow" else len(self.kept)) + len(self.new)

    @property
    def rows(self) -> int:
        """Rows of the result's embedding: `size_after` rounded up to the multiple asked for."""
        return -(-self.size_after // self.pad_to_multiple) * self.pad_to_multiple

    def new_id_of(self) -> np.ndarray:
        """int64 [size_before]: new id of every old id, -1 where it is dropped."""
        if self.operation == "grow":
            return np.arange(self.size_before, dtype=np.int64)
        out = np.full(self.size_before, -1, dtype=np.int64)
        out[np.array(self.kept, dtype=np.int64)] = np.arange(len(self.kept))
        return out

    def old_ids_of(self) -> list[tuple[int, ...]]:
        """For each new id below `size_after`, the old ids it expands to; unused ids in between expand to themselves."""
        same = range(self.size_before) if self.operation == "grow" else self.kept
        return [(index,) for index in same] + [piece.old for piece in self.new]


def source_hash(vocabulary: Vocabulary) -> str:
    """What a plan remembers of the vocabulary it was made for: the pieces, their types and the added tokens."""
    added = [(token["id"], token["content"]) for token in vocabulary.added]
    return hash_text(json.dumps([vocabulary.kind, vocabulary.pieces, vocabulary.types_V.tolist(), added], ensure_ascii=False))


def write_plan(path: Path, plan: VocabPlan) -> None:
    """Write the plan, one piece per line."""
    head = {"version": VERSION, "operation": plan.operation, "kind": plan.kind, "source": plan.source,
            "size_before": plan.size_before, "size_after": plan.size_after, "pad_to_multiple": plan.pad_to_multiple,
            "rows": plan.rows, "notes": plan.notes}
    lines = ["{"]
    lines += [f"  {_json(key)}: {_json(value)}," for key, value in head.items()]
    if plan.operation == "grow":
        lines.append('  "kept": "all",')
    else:
        lines.append('  "kept": [')
        rows = [[index, plan.spelling.get(index, ""), plan.counts.get(index, 0)] for index in plan.kept]
        lines += [f"    {_json(row)}{',' if at < len(rows) - 1 else ''}" for at, row in enumerate(rows)]
        lines.append("  ],")
    lines.append('  "new": [')
    for at, piece in enumerate(plan.new):
        row = {"piece": piece.piece, "count": piece.count, "old": list(piece.old)}
        if piece.score is not None:
            row["score"] = piece.score
        if piece.special:
            row["special"] = True
        lines.append(f"    {_json(row)}{',' if at < len(plan.new) - 1 else ''}")
    lines += ["  ]", "}"]
    write_text(path, "\n".join(lines) + "\n")


def read_plan(path: Path) -> VocabPlan:
    """The plan in `path`; InputError when it is not one or was edited into something that cannot be meant."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != VERSION or "operation" not in content:
        raise InputError(fault("not a vocabulary plan", where=path, expected=f"version {VERSION} with an operation"))
    kept = content["kept"]
    counts: dict[int, int] = {}
    spelling: dict[int, str] = {}
    if kept == "all":
        ids = tuple(range(content["size_before"]))
    else:
        for row in kept:
            counts[int(row[0])], spelling[int(row[0])] = int(row[2]), str(row[1])
        ids = tuple(sorted(counts))
        if len(ids) != len(kept):
            raise InputError(fault("an id is kept twice", where=path, found=f"{len(kept)} lines", expected=f"{len(ids)} ids"))
    new = tuple(NewPiece(row["piece"], int(row.get("count", 0)), tuple(row.get("old", ())), row.get("score"),
                         bool(row.get("special", False)))
                for row in content["new"])
    return VocabPlan(content["operation"], content["kind"], content["source"], int(content["size_before"]), ids, new,
                     int(content["pad_to_multiple"]), counts, spelling, content.get("notes", {}))


def fits(plan: VocabPlan, vocabulary: Vocabulary) -> None:
    """Refuse a plan made for another vocabulary."""
    if plan.source != source_hash(vocabulary):
        raise InputError(fault("the plan was made for another vocabulary", where=vocabulary.name,
                               found=f"{vocabulary.total} ids", expected=f"the one with {plan.size_before} ids it was made for",
                               fix="make a new plan"))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
