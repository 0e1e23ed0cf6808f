"""The search for candidate pairs, cut into units that processes, Ray tasks or Slurm jobs can do: one per table, one per band.

Every table finds the pairs that meet in it and in no earlier table, so the units need nothing of each other; what they need of the
corpus is one column of numbers, 8 bytes per document. All engines and any number of workers find the same pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from penjing.contract import Job
from penjing.data.dedup.bands import column_pairs, merge_pairs
from penjing.data.dedup.near import plan_tables, table_pairs
from penjing.data.dedup.signature import Signatures
from penjing.data.engine import map_shards

Search = Callable[[Signatures, int], tuple[np.ndarray, int, dict[str, Any]]]
"""(signatures, number of old documents) -> (pairs (P, 2), comparisons left out, figures)."""


def searcher(*, simhash: bool, minhash: bool, distance: int, folder: Path, job: Job) -> Search:
    """A search whose units run on the job's engine and leave their pairs in `folder`."""

    def search(signatures: Signatures, old: int) -> tuple[np.ndarray, int, dict[str, Any]]:
        folder.mkdir(parents=True, exist_ok=True)
        units: list[dict[str, Any]] = []
        figures: dict[str, Any] = {}
        if simhash:
            plan = plan_tables(len(signatures), distance)
            np.save(folder / "simhash.npy", signatures.simhash)
            units += [
                {
                    "name": f"table-{table:04d}",
                    "folder": folder,
                    "table": table,
                    "blocks": plan.blocks,
                    "distance": distance,
                    "old": old,
                }
                for table in range(len(plan.masks))
            ]
            figures["simhash"] = {"tables": len(plan.masks), "blocks": plan.blocks, "distance": distance}
        if minhash:
            bands = signatures.bands.shape[1]
            for band in range(bands):
                np.save(folder / f"band-{band:04d}.npy", signatures.bands[:, band])
            units += [{"name": f"band-{band:04d}", "folder": folder, "band": band, "old": old} for band in range(bands)]
            figures["minhash"] = {"bands": bands}
        left_out = sum(map_shards(search_unit, units, job=job, label="candidates", state=folder / "state"))
        found = {
            name: [np.load(folder / f"{unit['name']}-pairs.npy") for unit in units if name in unit]
            for name in ("table", "band")
        }
        for name, kind in (("table", "simhash"), ("band", "minhash")):
            if found[name]:
                figures[kind]["pairs"] = len(merge_pairs(found[name]))
        return merge_pairs(found["table"] + found["band"]), left_out, figures

    return search


def search_unit(unit: dict[str, Any]) -> int:
    """Write the pairs of one table or band; gives the number of comparisons left out."""
    folder = Path(unit["folder"])
    if "table" in unit:
        fingerprints = np.load(folder / "simhash.npy")
        plan = plan_tables(len(fingerprints), unit["distance"], blocks=unit["blocks"])
        pairs, left_out = table_pairs(fingerprints, plan, unit["table"], old=unit["old"])
    else:
        pairs, left_out = column_pairs(np.load(folder / f"{unit['name']}.npy"), old=unit["old"])
    temporary = folder / f".{unit['name']}-pairs.tmp.npy"
    np.save(temporary, pairs)
    temporary.replace(folder / f"{unit['name']}-pairs.npy")
    return left_out
