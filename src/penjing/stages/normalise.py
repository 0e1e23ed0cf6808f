"""Bring text to one form and tell its language (DP1 to DP11); what is in no wanted language is set aside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from penjing.config import Config as Settings
from penjing.contract import CORPUS, Estimate, Job
from penjing.data.engine import map_shards

if TYPE_CHECKING:
    from penjing.data import normalise

VERSION = 2
INPUTS = {"corpus": CORPUS}
OUTPUT = CORPUS


class Config(Settings):
    """Settings of `normalise`."""

    languages: list[str] = Field(default=["zh", "en"], min_length=1)
    """Languages to keep, as two-letter codes; documents in others, or in none that can be told, are set aside."""
    min_score: dict[str, float] = Field(default={"zh": 0.3, "en": 0.65})
    """Least score per language: for zh the share of Han among letters, for others CLD2's share of the text."""
    max_foreign_share: float | None = Field(default=None, ge=0, le=1)
    """Largest share of letters that are neither Han nor Latin; 0.02 keeps other scripts out; None does not look."""
    simplify: bool = True
    """Traditional to Simplified by phrase, in Chinese text outside code and URLs; the share changed goes to
    meta.t2s."""
    keep_traditional_sources: list[str] = []
    """Sources whose Traditional characters stay."""
    remove_decoration: bool = True
    """Remove emoji, dingbats, arrows and box drawing; signs with a meaning (°, ℃, №, ©) stay."""
    keep_decoration_sources: list[str] = []
    """Sources whose emoji stay (chat)."""
    cap_punctuation: bool = True
    """At most three of one punctuation mark in a row; one form of ellipsis."""
    fold_width: bool = True
    """Full-width letters, digits and a few signs become ASCII; Chinese punctuation never does."""
    unescape: bool = True
    """Resolve HTML entities, two passes at most."""
    code_sources: list[str] = []
    """Sources that hold program code: layout and characters stay, language is `code`."""
    max_document_bytes: int = Field(default=64 << 20, ge=1024)
    """Larger documents are set aside unread: they cost ten times their size in memory, here or later."""
    fence_code: bool = True
    """Put code documents in a Markdown fence with the language's name."""


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """At most what came in."""
    given = inputs.get("corpus")
    return Estimate(documents=getattr(given, "documents", None), text_bytes=getattr(given, "text_bytes", None),
                    disk_bytes=getattr(given, "disk_bytes", None), memory_bytes=4e8)


def run(config: Config, inputs: Mapping[str, Any], out: Path, job: Job) -> dict[str, Any]:
    """Every shard of the corpus through `data.normalise`; dropped documents in `out/dropped/`."""
    from penjing.data.document import finish_corpus, open_corpus
    from penjing.data.funnel import sum_funnels

    corpus = open_corpus(inputs["corpus"])
    settings = config.model_dump()
    units: list[dict[str, Any]] = [{"name": shard.stem, "shard": shard, "out": out, "settings": settings}
                                   for shard in corpus.shards]
    results = map_shards(normalise_unit, units, job=job, label="normalise", state=out / "state")
    made = finish_corpus(out, keep=[unit["name"] for unit in units],
                         provenance={"stage": "normalise", "version": VERSION, "settings": settings,
                                     "from": corpus.manifest["provenance"]})
    funnel = sum_funnels(results)
    funnel["out"] = made.languages
    return {"documents": made.documents, "text_bytes": made.text_bytes,
            "dropped_documents": sum(item["documents"] for item in funnel["dropped"].values()), "funnel": funnel}


def normalise_unit(unit: dict[str, Any]) -> dict[str, Any]:
    """One shard in, one shard out; the part of the funnel it makes."""
    import pyarrow as pa

    from penjing.data import normalise
    from penjing.data.document import DROPPED_SCHEMA, Counts, ShardWriter, count, shard_batches, tally
    from penjing.data.funnel import samples_of

    settings = _settings(unit["settings"])
    out, name = Path(unit["out"]), unit["name"]
    came = Counts()
    dropped: dict[str, dict[str, int]] = {}
    edited: dict[str, dict[str, int]] = {}
    samples: list[dict[str, Any]] = []
    with ShardWriter(out / f"{name}.parquet") as kept, \
            ShardWriter(out / "dropped" / f"{name}.parquet", DROPPED_SCHEMA) as gone:
        for batch in shard_batches(Path(unit["shard"])):
            table = pa.Table.from_batches([batch])
            came.add(count(table))
            result = normalise.normalise(table, settings)
            kept.write(result.kept)
            gone.write(result.dropped)
            samples_of(result.dropped, dropped, samples)
            for step, item in result.edits.items():
                tally(edited, step, item["documents"], item["bytes"])
    return {"in": came.languages, "out": {}, "dropped": dropped, "edited": edited, "samples": samples}


def _settings(values: Mapping[str, Any]) -> normalise.Settings:
    from penjing.data import normalise

    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    plain["min_score"] = tuple(sorted(values["min_score"].items()))
    return normalise.Settings(**plain)
