"""What a change of vocabulary does to a corpus: fertility before and after, coverage, and how much of it the contract covers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penjing.tokenizer.count import Counts, coverage, fertility
from penjing.tokenizer.plan import VocabPlan

COVERAGE_SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Sizes at which the coverage table is given, as shares of the vocabulary."""


def change_figures(plan: VocabPlan, before: Counts, after: Counts | None, contract: Mapping[str, Any] | None) -> dict[str, Any]:
    """Figures of a grow or prune stage."""
    figures: dict[str, Any] = {
        "vocab_before": plan.size_before, "vocab_after": plan.size_after, "rows_after": plan.rows, "added": len(plan.new),
        "dropped": plan.size_before - len(plan.kept), "kind": plan.kind, "notes": plan.notes,
        "fertility_before": fertility(before.totals), "fertility_by_script_before": fertility(before.scripts),
        "coverage": coverage_table(before, plan.size_before),
    }
    if after is not None:
        figures["fertility_after"] = fertility(after.totals)
        figures["fertility_by_script_after"] = fertility(after.scripts)
        figures["tokens_change"] = tokens_change(before, after)
    if contract is not None:
        figures["contract"] = dict(contract)
    return figures


def tokens_change(before: Counts, after: Counts) -> dict[str, float]:
    """Relative change of the number of tokens, by language."""
    return {lang: round(after.totals[lang]["tokens"] / max(1, figures["tokens"]) - 1, 6)
            for lang, figures in sorted(before.totals.items())}


def coverage_table(counts: Counts, size: int) -> list[dict[str, Any]]:
    """Share of tokens covered by the K most frequent ids, for all and by language."""
    sizes = sorted({max(1, round(share * size)) for share in COVERAGE_SHARES})
    columns = {"all": coverage(counts.all_tokens(), sizes),
               **{lang or "unknown": coverage(values, sizes) for lang, values in sorted(counts.tokens.items())}}
    return [{"size": K, **{name: round(column[K], 6) for name, column in columns.items()}} for K in sizes]


def read_frequencies(path: Path, *, size: int | None = None) -> np.ndarray:
    """int64 [V]: a file of lines `id count` (gzipped or not) as counts by id."""
    import gzip

    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    pairs = np.array([line.split()[-2:] for line in text.splitlines() if line.strip()], dtype=np.int64)
    counts = np.zeros(max(size or 0, int(pairs[:, 0].max()) + 1), dtype=np.int64)
    counts[pairs[:, 0]] = pairs[:, 1]
    return counts
