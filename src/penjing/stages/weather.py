"""Weather: makes a crawl out of a clean corpus, with adverts, copies, junk and worse, every defect labelled.

The labels (in each document's meta, under "weather") are what `cleaning-scorecard` marks the cleaning by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from penjing.config import Config as Base
from penjing.console import say
from penjing.contract import CORPUS, Estimate, Inputs, Job
from penjing.data.weather import language, weather
from penjing.errors import InputError, Interrupted, fault

VERSION = 1
INPUTS = {"corpus": CORPUS}
OUTPUT = CORPUS
SHARD_DOCUMENTS = 20_000
SAMPLES_PER_KIND = 5


class Config(Base):
    """How bad the weather is. Shares are parts of the text documents of each language."""

    seed: int = Field(0, ge=0)
    """Decides which documents are touched, and how."""
    edited: float = Field(0.2, ge=0, le=1)
    """Documents that get one to three defects: navigation, adverts, HTML, invisible characters, personal data, …"""
    copies: float = Field(0.05, ge=0, le=1)
    """Documents that are there a second time under another address."""
    near_copies: float = Field(0.06, ge=0, le=1)
    """Documents that are there a second time with small changes."""
    mojibake: float = Field(0.03, ge=0, le=1)
    """Documents that are there a second time in a wrong encoding."""
    junk: float = Field(0.06, ge=0, le=1)
    """Junk pages, as a part of the documents."""
    tracking: float = Field(0.1, ge=0, le=1)
    """Documents whose address carries tracking parameters."""
    forget_language: bool = True
    """Leave the language of text documents empty, as a crawl does, so that cleaning has to find it out."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Reads the whole corpus into memory: about three times its size is needed."""
    from penjing.data.document import CorpusWriter, documents, open_corpus

    corpus = open_corpus(inputs["corpus"])
    rows = [row for batch in corpus.batches() for row in batch.to_pylist()]
    if not rows:
        raise InputError(fault("the corpus holds no documents", where=corpus.path, expected="documents to weather"))
    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    try:
        result = weather(rows, shares=config.model_dump(exclude={"seed", "forget_language"}), seed=config.seed)
    except ValueError as error:
        raise InputError(fault(str(error), where=corpus.path, expected="unique ids")) from error
    figures = _figures(rows, result)
    with CorpusWriter(out, provenance={"stage": "weather", "config": config.model_dump()}) as writer:
        for start in range(0, len(result), SHARD_DOCUMENTS):
            if job.stop():
                raise Interrupted(fault("stopped while writing", where=out, fix="run the same command again"))
            part = [_forget(row) if config.forget_language else row for row in result[start : start + SHARD_DOCUMENTS]]
            writer.write(documents(part), shard=f"part-{start // SHARD_DOCUMENTS:05d}")
    touched = figures["touched_share"]
    say(f"  weather: {len(rows)} documents became {len(result)}, {100 * touched:.0f}% of them touched")
    return figures


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    """Edits add little text; copies and junk add their shares; the labels keep the clean text of edited documents."""
    corpus = inputs["corpus"]
    more = 1 + config.copies + config.near_copies + config.mojibake + config.junk
    text_bytes = None if corpus.text_bytes is None else corpus.text_bytes * more
    return Estimate(
        documents=None if corpus.documents is None else corpus.documents * more, text_bytes=text_bytes,
        memory_bytes=None if text_bytes is None else 3 * text_bytes,
        disk_bytes=None if text_bytes is None else 0.5 * text_bytes * (1 + config.edited),
    )


def _forget(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "lang": None} if "weather" in row["meta"] else row


def _figures(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by language and kind. Here in + added = out: weather drops nothing."""
    from penjing.data.document import tally

    came: dict[str, dict[str, int]] = {}
    went: dict[str, dict[str, int]] = {}
    added: dict[str, dict[str, int]] = {}
    edits: dict[str, dict[str, int]] = {}
    known = {row["id"] for row in before}
    kinds: Counter[str] = Counter()
    samples: list[dict[str, Any]] = []
    sampled: Counter[str] = Counter()
    for row in before:
        tally(came, language(row), 1, len((row["text"] or "").encode()))
    for row in after:
        label = row["meta"].get("weather")
        size = len(row["text"].encode())
        tally(went, label["lang"] if label else language(row), 1, size)
        kind = "untouched" if label is None else label["kind"]
        kinds[kind] += 1
        if row["id"] not in known:
            tally(added, kind, 1, size)
        if label is None or kind == "clean":
            continue
        defects = sorted({item["type"] for item in label["defects"]}) if kind == "edited" else []
        for name in defects:
            tally(edits, name, 1, size)
        sampled[kind] += 1
        if sampled[kind] <= SAMPLES_PER_KIND:
            samples.append({"id": row["id"], "lang": label["lang"], "rule": label["variant"] or kind,
                            "value": ", ".join(defects), "bound": "", "text": row["text"][:400]})
    touched = sum(number for kind, number in kinds.items() if kind not in ("clean", "untouched"))
    return {
        "documents": len(after), "touched": touched, "touched_share": round(touched / len(after), 4),
        "kinds": dict(sorted(kinds.items())),
        "funnel": {"in": dict(sorted(came.items())), "out": dict(sorted(went.items())), "dropped": {},
                   "added": dict(sorted(added.items())), "edited": dict(sorted(edits.items())), "samples": samples},
    }
