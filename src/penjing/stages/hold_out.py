"""Split a corpus once and for all into a part to train on and a part to measure on, by a hash of each document's id."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from penjing.config import Config as BaseConfig
from penjing.contract import CORPUS, Estimate, Inputs, Job
from penjing.data.engine import map_shards
from penjing.errors import GateError, fault

VERSION = 1
INPUTS = {"corpus": CORPUS}
OUTPUT = CORPUS


class Config(BaseConfig):
    """Which part to write. Two stages with the same settings but for `part` share no document and lose none."""

    part: Literal["train", "held_out"] = "train"
    """The part this stage writes."""
    fraction: float = Field(0.01, gt=0, lt=1)
    """Share of the documents of every language that is held out."""
    fractions: dict[str, float] = Field({})
    """Other shares for some languages, as {zh: 0.02}; "" is for documents whose language is not known."""
    seed: int = 0
    """Another seed holds out other documents."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the chosen part; GateError when it is empty."""
    from penjing.data.dedup.sieve import merge_funnels
    from penjing.data.document import finish_corpus, open_corpus

    corpus = open_corpus(inputs["corpus"])
    state = out / "state"
    units = [
        {
            "name": shard.name,
            "shard": shard,
            "verdicts": state / "verdicts" / shard.name,
            "out": out,
            "aside": False,
            "part": config.part,
            "fraction": config.fraction,
            "fractions": config.fractions,
            "seed": config.seed,
        }
        for shard in corpus.shards
    ]
    funnel = merge_funnels(map_shards(split_shard, units, job=job, label="split", state=state))
    written = finish_corpus(
        out,
        keep=[shard.stem for shard in corpus.shards],
        provenance={
            "stage": "hold-out",
            "part": config.part,
            "fraction": config.fraction,
            "corpus": dict(corpus.manifest["provenance"]),
        },
    )
    if not written.documents:
        raise GateError(
            fault(
                f"the {config.part} part is empty",
                where=corpus.path,
                found=f"{corpus.documents} documents",
                fix="hold out a larger share",
            )
        )
    shutil.rmtree(state)
    return {"funnel": funnel, "documents": written.documents, "text_bytes": written.text_bytes}


def split_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the chosen part of one shard and give its funnel."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.dedup.sieve import VERDICT_SCHEMA, sift
    from penjing.data.document import shard_batches

    rules: list[str | None] = []
    values: list[float] = []
    bounds: list[str] = []
    other = "held_out" if unit["part"] == "train" else "train"
    for batch in shard_batches(Path(unit["shard"]), columns=["id", "lang"]):
        for name, lang in zip(batch.column("id").to_pylist(), batch.column("lang").to_pylist(), strict=True):
            share = unit["fractions"].get(lang or "", unit["fraction"])
            place = position(name or "", unit["seed"])
            held = place < share
            rules.append(None if held == (unit["part"] == "held_out") else other)
            values.append(place)
            bounds.append(f"held out below {share}")
    path = Path(unit["verdicts"])
    path.parent.mkdir(parents=True, exist_ok=True)
    gone = np.array([rule is not None for rule in rules], bool)
    pq.write_table(
        pa.table(
            [
                pa.array(rules, pa.string()),
                pa.array(values, pa.float64(), mask=~gone),
                pa.array(bounds, pa.string()),
                pa.nulls(len(rules), pa.string()),
            ],
            schema=VERDICT_SCHEMA,
        ),
        path,
    )
    return sift(unit)


def position(name: str, seed: int) -> float:
    """Where a document lies in [0, 1): uniform over ids, the same in every run and on every machine."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) / 2**64


def price(config: Config, inputs: Inputs) -> Estimate:
    """The chosen share of the corpus."""
    before: Estimate = inputs["corpus"]
    share = config.fraction if config.part == "held_out" else 1 - config.fraction

    def part(amount: float | None) -> float | None:
        return None if amount is None else amount * share

    return Estimate(
        disk_bytes=part(before.disk_bytes),
        documents=part(before.documents),
        text_bytes=part(before.text_bytes),
        memory_bytes=400e6,
    )
