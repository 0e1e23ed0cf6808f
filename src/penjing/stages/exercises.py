"""Exercises: arithmetic word problems in Chinese and English with worked answers, as a supervised corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from penjing.config import Config as Base
from penjing.contract import CORPUS, Estimate, Inputs, Job
from penjing.data.exercises import Exercise, exercises, kinds
from penjing.errors import ConfigError, Interrupted, fault
from penjing.lookup import did_you_mean

VERSION = 1
INPUTS: dict[str, str] = {}
OUTPUT = CORPUS
TASK = "arithmetic"
SHARD_DOCUMENTS = 20_000
MEAN_BYTES = 250
"""Bytes of text in a problem with its answer, about the same in both languages."""


class Config(Base):
    """How many problems, and which."""

    count: int = Field(2000, ge=1, le=2_000_000)
    """Problems in all, shared evenly among the languages."""
    languages: list[Literal["zh", "en"]] = Field(["zh", "en"], min_length=1)
    """Languages of the problems."""
    seed: int = Field(0, ge=0)
    """Decides numbers, names and wording."""
    kinds: list[str] = []
    """Kinds of problems, such as `sum` or `change`; empty = all of them, in equal parts."""

    @field_validator("kinds")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in kinds():
                hint = did_you_mean(name, kinds())
                raise ValueError(f"names from {', '.join(kinds())}" + (f"; {hint}" if hint else ""))
        return value

    @field_validator("languages")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("each language once")
        return value


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Documents of text = prompt, line end, answer; meta holds prompt, answer, task and the kind and result."""
    from penjing.data.document import CorpusWriter, documents, tally

    for leftover in out.glob(".*.tmp"):
        leftover.unlink()
    counted: Counter[str] = Counter()
    went: dict[str, dict[str, int]] = {}
    samples: list[dict[str, Any]] = []
    with CorpusWriter(out, provenance={"stage": "exercises", "config": config.model_dump()}) as writer:
        for place, lang in enumerate(config.languages):
            number = config.count // len(config.languages) + (place < config.count % len(config.languages))
            rows = []
            try:
                for index, item in enumerate(exercises(lang, number, seed=config.seed, wanted=config.kinds)):
                    rows.append(_row(index, item))
                    counted[item.kind] += 1
                    tally(went, lang, 1, len(item.text.encode()))
                    if index < 5:
                        samples.append({"id": rows[-1]["id"], "lang": lang, "rule": item.kind, "value": item.result,
                                        "bound": "", "text": item.text[:400]})
            except ValueError as error:
                raise ConfigError(fault(str(error), where="exercises", fix="lower count or allow more kinds")) from error
            for start in range(0, len(rows), SHARD_DOCUMENTS):
                if job.stop():
                    raise Interrupted(fault("stopped while writing", where=out, fix="run the same command again"))
                shard = f"{lang}-{start // SHARD_DOCUMENTS:05d}"
                writer.write(documents(rows[start : start + SHARD_DOCUMENTS]), shard=shard)
    return {"documents": sum(counted.values()), "kinds": dict(sorted(counted.items())),
            "funnel": {"in": {}, "out": went, "dropped": {}, "added": {"exercise": _total(went)}, "edited": {},
                       "samples": samples}}


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    """Known beforehand but for a few bytes."""
    size = float(config.count * MEAN_BYTES)
    return Estimate(documents=config.count, text_bytes=size, disk_bytes=0.5 * size, memory_bytes=8 * size)


def _row(index: int, item: Exercise) -> dict[str, Any]:
    meta = {"prompt": item.prompt, "answer": item.answer, "task": TASK, "kind": item.kind, "result": item.result}
    return {"id": f"exercise-{item.lang}-{index:06d}", "source": "exercises", "text": item.text, "lang": item.lang, "meta": meta}


def _total(went: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {key: sum(item[key] for item in went.values()) for key in ("documents", "bytes")}
