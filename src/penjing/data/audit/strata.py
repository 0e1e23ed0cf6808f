"""A sample that shows every part of a corpus and still proves what it says about the whole.

Documents are placed in [0, 1) by a hash of their ids. The *core* is the first so many of all: a simple random sample, on which the
claim about the corpus rests with its exact bound. Every stratum (documents of one source, language, length) that has fewer than
`least` documents in the core is filled up with its own next ones, so that what is read of a stratum is a simple random sample of it and
its bound is exact too, at an equal part of the error for each stratum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penjing.data.audit.acceptance import lower_bound, upper_bound

By = Literal["source", "lang", "length"]
LENGTHS = (250, 1000, 4000, 16000)
"""Characters at which one stratum of length ends and the next begins."""


def strata_of(table: pa.Table | pa.RecordBatch, by: Sequence[By]) -> list[str]:
    """The stratum of each document, as `lang=zh source=web length<1000`; "" when there are none. Needs id, source, lang, text."""
    parts: list[list[str]] = []
    for name in by:
        if name == "length":
            sizes = pc.fill_null(pc.utf8_length(table.column("text")), 0).to_numpy(zero_copy_only=False)
            names = [f"length<{end}" for end in LENGTHS] + [f"length>={LENGTHS[-1]}"]
            parts.append([names[i] for i in np.searchsorted(LENGTHS, sizes, side="right").tolist()])
        else:
            parts.append([f"{name}={value or ''}" for value in table.column(name).to_pylist()])
    return [" ".join(one) for one in zip(*parts, strict=True)] if parts else [""] * len(table)


def smallest(places: np.ndarray, number: int) -> np.ndarray:
    """The `number` smallest places, ascending; all when there are fewer."""
    if number < len(places):
        places = np.partition(places, number - 1)[:number] if number else places[:0]
    return np.sort(places)


def by_stratum(
    strata: Sequence[str], defects: np.ndarray, sizes: Mapping[str, int], *, alpha: float
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(per stratum n, defects, rate and exact bounds that hold for all strata at once; the rate of the corpus weighted by their sizes).

    `strata` and `defects` are of the documents read, `sizes` the documents of each stratum in the corpus.
    """
    found: dict[str, dict[str, Any]] = {}
    names = sorted(sizes)
    share = alpha / max(1, len(names))
    where = np.asarray(strata, dtype=object)
    for name in names:
        here = where == name
        n, bad = int(here.sum()), int(defects[here].sum())
        whole = n >= sizes[name]
        low, high = (bad / n,) * 2 if whole and n else (lower_bound(bad, n, alpha=share), upper_bound(bad, n, alpha=share))
        found[name] = {"documents": sizes[name], "n": n, "defects": bad, "rate": bad / n if n else None, "ci_low": low, "ci_high": high,
                       "census": whole}
    total = sum(sizes.values())
    weights = {name: sizes[name] / total for name in names}
    rate = sum(weights[name] * (item["rate"] or 0.0) for name, item in found.items())
    weighted = {
        "rate": rate,
        "ci_high": min(1.0, sum(weights[name] * item["ci_high"] for name, item in found.items())),
        "method": "strata weighted by their documents; the bound adds up the strata's, each at an equal part of the error (Bonferroni)",
    }
    return found, weighted
