"""Puts supervised items into prompts, one prompt for each kind of task, as Ziya2's second stage does.

Ziya2 (arXiv 2311.03301, appendix A) writes question and answer in several forms in both languages; which form an item gets is
decided by a hash of its id, so that it does not depend on order or workers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field

from penjing.config import Config as Base
from penjing.contract import CORPUS, Estimate, Inputs, Job
from penjing.errors import GateError, InputError, Interrupted, fault

VERSION = 1
INPUTS = {"corpus": CORPUS}
OUTPUT = CORPUS

_FIELD = re.compile(r"\{(\w+)\}")
_SAMPLES = 20


class Config(Base):
    prompts: dict[str, list[str]] = {
        "zh": ["问题：{prompt}\n回答：", "问：{prompt}\n答："],
        "en": ["Question: {prompt}\nAnswer: ", "Q: {prompt}\nA: "],
    }
    """Prompts per language; `{field}` is a field of the item (its meta), an absent or empty one leaves no blank line behind."""
    prompt_fields: list[str] = Field(["text", "input"], min_length=1)
    """What `{prompt}` stands for: these fields that the item has, joined by line ends; `text` is the document's text. (An item with
    a `prompt` field uses that.)"""
    answer_field: str = "output"
    """The field with the answer (an item with an `answer` field and not this one uses that)."""
    task: str | None = None
    """Name of the task type of every item; None takes the item's own `task` or `type`."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Documents of text = prompt + answer whose meta holds `prompt`, `answer` and `task`; items without either are set aside."""
    import pyarrow as pa

    from penjing.data.document import SCHEMA, ShardWriter, count, finish_corpus, open_corpus, shard_batches, tally

    corpus = open_corpus(inputs["corpus"])
    funnel: dict[str, Any] = {"in": {}, "out": {}, "dropped": {}, "samples": []}
    tasks: dict[str, int] = {}
    for shard in corpus.shards:
        if job.stop():
            raise Interrupted("stopped between two shards")
        with ShardWriter(out / shard.name) as writer:
            for batch in shard_batches(shard):
                rows = batch.to_pylist()
                made = [item for item in (_item(config, row, funnel, tasks) for row in rows) if item is not None]
                if made:
                    table = pa.Table.from_pylist(made, schema=SCHEMA)
                    for lang, item in count(table).languages.items():
                        tally(funnel["out"], lang, item["documents"], item["bytes"])
                    writer.write(table)
    written = finish_corpus(out, keep=[shard.stem for shard in corpus.shards],
                            provenance={"stage": "supervise", "corpus": dict(corpus.manifest["provenance"])})
    if not written.documents:
        raise GateError(fault("no supervised item is left", where=corpus.path, found=f"{corpus.documents} documents without "
                              f"{' or '.join(config.prompt_fields)} and {config.answer_field} in their meta"))
    return {"documents": written.documents, "text_bytes": written.text_bytes, "tasks": dict(sorted(tasks.items())), "funnel": funnel}


def price(config: Config, inputs: Inputs) -> Estimate:
    """As many documents as came."""
    before: Estimate = inputs["corpus"]
    return Estimate(documents=before.documents, text_bytes=before.text_bytes, disk_bytes=before.disk_bytes, memory_bytes=3e8)


def _item(config: Config, row: dict[str, Any], funnel: dict[str, Any], tasks: dict[str, int]) -> dict[str, Any] | None:
    from penjing.data.document import tally

    lang, size = row["lang"] or "", len((row["text"] or "").encode())
    tally(funnel["in"], lang, 1, size)
    meta = {"text": row["text"] or "", **json.loads(row["meta"] or "{}")}
    prompt = str(meta.get("prompt") or "\n".join(str(meta[name]) for name in config.prompt_fields if meta.get(name))).strip()
    answer = str(meta.get(config.answer_field) or meta.get("answer") or "").strip()
    forms = config.prompts.get(lang)
    if not prompt or not answer or not forms:
        reason = "no prompt" if not prompt else "no answer" if not answer else f"no prompt form for '{lang}'"
        tally(funnel["dropped"], reason, 1, size)
        if len(funnel["samples"]) < _SAMPLES:
            funnel["samples"].append({"id": row["id"], "lang": lang, "rule": reason, "value": None, "bound": "",
                                      "text": (row["text"] or "")[:400]})
        return None
    form = forms[xxhash.xxh3_64_intdigest(row["id"].encode()) % len(forms)]
    fields = {**meta, "prompt": prompt}
    missing = [name for name in _FIELD.findall(form) if name not in fields]
    if missing:
        raise InputError(fault(f"the prompt form names a field the item does not have: '{missing[0]}'", where=row["id"],
                               found=", ".join(sorted(fields)), fix="change prompts or the source"))
    whole = re.sub(r"\n{2,}", "\n", _FIELD.sub(lambda match: str(fields[match[1]]), form))
    task = config.task or str(meta.get("task") or meta.get("type") or "task")
    tasks[task] = tasks.get(task, 0) + 1
    kept = {key: value for key, value in meta.items() if key not in ("text", *config.prompt_fields, config.answer_field)}
    return {**row, "text": whole + answer,
            "meta": json.dumps({**kept, "prompt": whole, "answer": answer, "task": task}, ensure_ascii=False, sort_keys=True)}
