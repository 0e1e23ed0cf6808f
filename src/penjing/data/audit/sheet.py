"""The review sheet: what readers are shown, what they said, and what that proves.

Sampled documents and planted known-bad ones are laid in one order by a hash, so a reader cannot tell them apart. Each
reader marks every item; where two readers differ a third decision (the reader `adjudicator`) settles it, and until it
does the item counts as a defect. The share of planted items that readers mark bounds how many defects they overlook.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from penjing.data.audit.acceptance import adjusted_upper, kappa, lower_bound, upper_bound
from penjing.errors import InputError, fault

VERSION = 1
SHEET, MARKS = "sheet.parquet", "marks.jsonl"
ADJUDICATOR = "adjudicator"
GOOD = "good"
CLASSES = ("incoherent", "unreadable", "toxic", "advertising", "privacy", "markup")
"""What a reader may find wrong; keys 1 to 6 on the page."""
SHEET_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("lang", pa.string()),
        ("source", pa.string()),
        ("text", pa.large_string()),
        ("planted", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Verdict:
    """What the marks say: `read` sampled documents marked by two readers, `defects` of them, `planted` items shown
    and `found`."""

    read: int
    defects: int
    planted: int
    found: int
    kappa: float | None
    disagreements: int
    unsettled: int
    readers: list[str]
    defect_ids: list[str]
    by_class: dict[str, int]
    sequence: list[bool]
    """Whether each sampled document is a defect, in the order of the sheet up to the first that was not read by both."""


def make_sheet(
    folder: Path, sample: Path, planted: Sequence[Path] = (), *, most: int | None = None, seed: int = 0
) -> int:
    """Write sheet.parquet out of a sample.parquet and files of known-bad documents; gives the number of items.

    Planted files are Parquet (a `dropped/` shard will do) or JSON lines with a `text`. `most` keeps the first so many
    sampled ones.
    """
    if not sample.is_file():
        raise InputError(fault("no sample here", where=sample, expected="sample.parquet of an audit stage"))
    table = pq.read_table(sample)
    if "core" in table.column_names:  # documents that only fill up strata would bend the rate of the whole
        table = table.filter(table.column("core"))
    rows = table.select(["id", "lang", "source", "text"]).slice(0, most).to_pylist()
    items = [{**row, "planted": False} for row in rows]
    items += [
        {"id": f"planted/{number}", "lang": None, "source": None, "text": text, "planted": True}
        for number, text in enumerate(text for path in planted for text in _texts(path))
    ]
    for item in items:
        item["key"] = xxhash.xxh3_64_hexdigest(f"{seed}/{item['id']}".encode())
    items.sort(key=lambda item: str(item["key"]))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(items, schema=SHEET_SCHEMA), folder / SHEET, compression="zstd")
    return len(items)


def read_sheet(folder: Path) -> list[dict[str, Any]]:
    """The items of a sheet, in the order readers see them."""
    if not (folder / SHEET).is_file():
        raise InputError(fault(f"no {SHEET} here", where=folder, fix="make one from an audit's sample.parquet first"))
    rows: list[dict[str, Any]] = pq.read_table(folder / SHEET).to_pylist()
    return rows


def add_mark(folder: Path, *, reader: str, key: str, mark: str) -> None:
    """Append a mark; the last mark of a reader on an item is the one that counts."""
    if mark != GOOD and mark not in CLASSES:
        raise InputError(fault(f"unknown mark '{mark}'", expected=f"{GOOD} or one of {', '.join(CLASSES)}"))
    line = json.dumps({"version": VERSION, "reader": reader, "key": key, "mark": mark, "time_s": round(time.time(), 3)})
    with (folder / MARKS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_marks(folder: Path) -> dict[str, dict[str, str]]:
    """{reader: {key: mark}}; a torn last line is left out, any other unreadable line is a fault."""
    found: dict[str, dict[str, str]] = {}
    if not (folder / MARKS).is_file():
        return found
    lines = (folder / MARKS).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            found.setdefault(row["reader"], {})[row["key"]] = row["mark"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(fault("unreadable mark", where=f"{folder / MARKS}:{number}", found=line[:80])) from error
    return found


def disputed(marks: dict[str, dict[str, str]]) -> list[str]:
    """Keys on which two readers differ about good or bad, in order."""
    one, two = _two_readers(marks)
    shared = sorted(set(marks.get(one, {})) & set(marks.get(two, {})))
    return [key for key in shared if (marks[one][key] == GOOD) != (marks[two][key] == GOOD)]


def conclude(items: Iterable[dict[str, Any]], marks: dict[str, dict[str, str]]) -> Verdict:
    """What two readers and the adjudicator found."""
    one, two = _two_readers(marks)
    first, second, final = marks.get(one, {}), marks.get(two, {}), marks.get(ADJUDICATOR, {})
    cells = {(a, b): 0 for a in (True, False) for b in (True, False)}
    counts = {"read": 0, "defects": 0, "planted": 0, "found": 0, "disagreements": 0, "unsettled": 0}
    defect_ids: list[str] = []
    by_class: dict[str, int] = {}
    sequence: list[bool] = []
    unbroken = True
    for item in items:
        key = item["key"]
        if key not in first or key not in second:
            unbroken = unbroken and bool(item["planted"])
            continue
        bad = (first[key] != GOOD, second[key] != GOOD)
        cells[bad] += 1
        differ = bad[0] != bad[1]
        counts["disagreements"] += differ
        counts["unsettled"] += differ and key not in final
        is_bad = final.get(key, "unsettled") != GOOD if differ else bad[0]
        if item["planted"]:
            counts["planted"] += 1
            counts["found"] += is_bad
            continue
        counts["read"] += 1
        if unbroken:
            sequence.append(is_bad)
        if is_bad:
            counts["defects"] += 1
            defect_ids.append(item["id"])
            said = final.get(key) or next(mark for mark in (first[key], second[key]) if mark != GOOD)
            by_class[said] = by_class.get(said, 0) + 1
    agreement = kappa(cells[True, True], cells[True, False], cells[False, True], cells[False, False])
    return Verdict(
        **counts,
        kappa=agreement,
        readers=[name for name in (one, two) if name in marks],
        defect_ids=defect_ids,
        by_class=dict(sorted(by_class.items())),
        sequence=sequence,
    )


def judge(verdict: Verdict, *, claim: float, alpha: float) -> dict[str, Any]:
    """The decision on human marks: is the upper bound, widened by what readers overlook, at or below the claim?"""
    raw = upper_bound(verdict.defects, verdict.read, alpha=alpha)
    high = adjusted_upper(verdict.defects, verdict.read, alpha=alpha, found=verdict.found, planted=verdict.planted)
    return {
        "n": verdict.read,
        "defects": verdict.defects,
        "rate": verdict.defects / verdict.read if verdict.read else None,
        "ci_low": lower_bound(verdict.defects, verdict.read, alpha=alpha),
        "ci_high": raw,
        "ci_high_with_reader_error": high,
        "planted": verdict.planted,
        "planted_found": verdict.found,
        "sensitivity_low": lower_bound(verdict.found, verdict.planted, alpha=alpha / 2),
        "kappa": verdict.kappa,
        "disagreements": verdict.disagreements,
        "unsettled": verdict.unsettled,
        "readers": verdict.readers,
        "by_class": verdict.by_class,
        "examples": verdict.defect_ids[:20],
        "accepted": high <= claim,
        "method": "two readers, adjudicated; Clopper-Pearson over the lower bound of sensitivity",
    }


def _two_readers(marks: dict[str, dict[str, str]]) -> tuple[str, str]:
    """The two readers with the most marks (names decide ties); "" where one is missing."""
    names = sorted((name for name in marks if name != ADJUDICATOR), key=lambda name: (-len(marks[name]), name))[:2]
    first, second, *_ = [*sorted(names), "", ""]
    return first, second


def _texts(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return [text or "" for text in pq.read_table(path, columns=["text"]).column("text").to_pylist()]
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(str(json.loads(line)["text"]))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(fault("no text in this line", where=f"{path}:{number}", found=line[:80])) from error
    return found
