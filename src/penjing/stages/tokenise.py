"""Text to token shards: every document of a corpus as ids, one Megatron `.bin/.idx` pair per source.

Parts of the corpus are tokenised on all cores and joined in the corpus's order, so the result does not depend on the
number of workers. Documents whose `meta` has "prompt" and "answer" are kept as two sequences, the prompt and the
answer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from penjing import contract
from penjing.config import Config as Settings
from penjing.contract import Estimate, Inputs, Job
from penjing.data.engine import map_shards
from penjing.errors import ConfigError, InputError, fault
from penjing.objectives.shards import ShardWriter, dtype_for, open_shard
from penjing.objectives.tokens import file_name, write_manifest
from penjing.tokenizer.encode import CHECKED_DOCUMENTS, Encoder, load_encoder

if TYPE_CHECKING:
    from penjing.data.document import Corpus

VERSION = 2
INPUTS = {"corpus": contract.CORPUS, "tokenizer": contract.TOKENIZER}
OUTPUT = contract.TOKENS

BYTES_PER_TOKEN = 3.6
"""Of mixed Chinese and English text with a bilingual vocabulary; only for prices."""

SENTENCE_ENDS = ".?!;:。？！；：…\n"
"""What closes a sentence, as GLM has it; kept with the tokens when the tokenizer has [sMASK]."""

_STATE = "state"
_ROWS = 512


class Config(Settings):
    """How a corpus becomes tokens."""

    split_by: list[str] = Field(default_factory=lambda: ["source"])
    """What a document's source is named by, joined with dots: `source`, `lang`, or `meta.KEY` (such as `meta.task`)."""
    rename: dict[str, str] = Field(default_factory=dict)
    """New names of sources by pattern, the first match wins: `{"web*": "web"}`."""
    supervised: bool = True
    """Keep documents whose meta has "prompt" and "answer" as prompt and answer; off: their text like any other."""
    prompt_suffix: str = "\n"
    """What stands between prompt and answer; it belongs to the prompt."""
    eos_token: str | None = None
    """The token at the end of every document; the tokenizer's own when not given."""
    prepend_bos: bool = False
    """Put the tokenizer's bos in front of every document."""
    special_tokens: bool = True
    """Text that spells a special token becomes its id, as the tokenizer's library does; off: it is ordinary text."""

    @field_validator("split_by")
    @classmethod
    def _keys(cls, value: list[str]) -> list[str]:
        for key in value:
            if key not in ("source", "lang") and not (key.startswith("meta.") and len(key) > 5):
                raise ValueError(fault(f"unknown key '{key}' in split_by", expected="source, lang or meta.KEY"))
        return value


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the TOKENS directory; figures: documents, tokens and bytes by source and language, and the funnel."""
    import pyarrow.parquet as pq

    from penjing.data.document import open_corpus

    corpus = open_corpus(inputs["corpus"])
    encoder = load_encoder(inputs["tokenizer"], special_tokens=config.special_tokens)
    eos_id = _eos(config, encoder)
    if config.prepend_bos and encoder.bos_id is None:
        raise ConfigError(fault("the tokenizer has no bos token", where=encoder.path, fix="set prepend_bos: false"))
    for stale in out.glob(".*.tmp"):
        stale.unlink()  # what a killed run was writing
    parts = out / _STATE / "parts"
    _settle_engine(encoder, corpus)
    units = [{"name": f"{shard.stem}-{group:05d}", "shard": shard, "group": group, "tokenizer": inputs["tokenizer"],
              "engine": encoder.engine, "out": parts, "eos_id": eos_id, "vocab_size": encoder.vocab_size, "settings": config.model_dump()}
             for shard in corpus.shards for group in range(pq.ParquetFile(shard).num_row_groups)]
    results = map_shards(tokenise_part, units, job=job, label="tokenise", state=out / _STATE / "done")
    sources = _join(results, parts, out, encoder)
    if not sources:
        raise InputError(fault("the corpus has no text to tokenise", where=corpus.path))
    tokenizer = encoder.digest
    write_manifest(out, vocab_size=encoder.vocab_size, eos_id=eos_id, special=encoder.special, sources=sources,
                   tokenizer=tokenizer,
                   sentence_ends=encoder.ids_that_end(SENTENCE_ENDS) if "[sMASK]" in encoder.special else None)
    # Results first: if this is cut short, parts are made again rather than missed.
    shutil.rmtree(out / _STATE / "done", ignore_errors=True)
    shutil.rmtree(out / _STATE, ignore_errors=True)
    return _figures(results, sources, encoder)


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Tokens from the corpus's bytes at `BYTES_PER_TOKEN`; disk at 2 or 4 bytes a token."""
    del config
    corpus, tokenizer = inputs.get("corpus"), inputs.get("tokenizer")
    text_bytes = getattr(corpus, "text_bytes", None)
    vocab_size = getattr(tokenizer, "vocab_size", None)
    tokens = None if text_bytes is None else text_bytes / BYTES_PER_TOKEN
    width = dtype_for(vocab_size).itemsize if vocab_size else 4
    return Estimate(documents=getattr(corpus, "documents", None), text_bytes=text_bytes, tokens=tokens,
                    vocab_size=vocab_size, memory_bytes=1e9, disk_bytes=None if tokens is None else 2 * tokens * width,
                    notes=(f"tokens estimated at {BYTES_PER_TOKEN} bytes of text each",) if tokens is not None else ())


def tokenise_part(unit: dict[str, Any]) -> dict[str, Any]:
    """Tokenise one row group of one corpus shard into its own little shards; counts by source, kind and language."""
    config = Config(**unit["settings"])
    encoder = _encoder(unit["tokenizer"], config.special_tokens, unit["engine"])
    folder = Path(unit["out"]) / unit["name"]
    shutil.rmtree(folder, ignore_errors=True)
    writers: dict[str, ShardWriter] = {}
    counts: dict[str, dict[str, Any]] = {}
    languages: dict[str, dict[str, int]] = {}
    empty = {"documents": 0, "bytes": 0}
    try:
        for name, lang, pieces, size in _documents(unit, config, encoder):
            if sum(map(len, pieces)) == 0:
                empty["documents"] += 1
                empty["bytes"] += size
                item = languages.setdefault(lang, {"documents": 0, "bytes": 0, "tokens": 0, "empty": 0, "empty_bytes": 0})
                item["empty"] += 1
                item["empty_bytes"] += size
                continue
            key = f"{'supervised' if len(pieces) == 2 else 'text'}/{name}"
            if key not in writers:
                writers[key] = ShardWriter(folder / file_name(key), dtype=dtype_for(encoder.vocab_size)).__enter__()
                counts[key] = {"documents": 0, "bytes": 0, "tokens": 0}
            if config.prepend_bos:
                pieces[0] = np.append(np.int32(encoder.bos_id or 0), pieces[0])
            pieces[-1] = np.append(pieces[-1], np.int32(unit["eos_id"]))
            writers[key].add(*pieces)
            tokens = sum(map(len, pieces))
            item = languages.setdefault(lang, {"documents": 0, "bytes": 0, "tokens": 0, "empty": 0, "empty_bytes": 0})
            for count in (counts[key], item):
                count["documents"] += 1
                count["bytes"] += size
                count["tokens"] += tokens
    except BaseException as error:
        for writer in writers.values():
            writer.__exit__(type(error), error, None)
        raise
    for writer in writers.values():
        writer.__exit__(None, None, None)
    return {"name": unit["name"], "sources": counts, "languages": languages, "empty": empty}


def _documents(unit: dict[str, Any], config: Config,
               encoder: Encoder) -> Iterator[tuple[str, str, list[np.ndarray], int]]:
    """(source, language, ids of its sequences, bytes of text) of every document, encoded `_ROWS` at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(unit["shard"]) as file:
        columns = [name for name in ("id", "source", "text", "lang", "meta") if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=[unit["group"]], columns=columns, use_threads=False):
            rows = batch.to_pylist()
            texts: list[str] = []
            shape: list[int] = []
            names = []
            for row in rows:
                meta = _meta(row, unit)
                names.append(_name(row, meta, config))
                if config.supervised and isinstance(meta.get("prompt"), str) and isinstance(meta.get("answer"), str):
                    prompt = meta["prompt"] + config.prompt_suffix
                    texts += [prompt, prompt + meta["answer"]]
                    shape.append(2)
                else:
                    texts.append(row["text"] or "")
                    shape.append(1)
            ids = encoder.encode_batch(texts)
            at = 0
            for row, name, parts in zip(rows, names, shape, strict=True):
                yield name, row.get("lang") or "", _split(ids[at : at + parts]), len((row["text"] or "").encode())
                at += parts


def _split(pieces: list[np.ndarray]) -> list[np.ndarray]:
    """[text], or [prompt, answer] out of the ids of the prompt alone and of prompt and answer as one string.

    An answer that is encoded by itself begins with a dummy space in SentencePiece vocabularies, which no reader of whole text ever
    sees. So the whole string is what is kept, and the prompt ends where the two spellings part: a token across the border is the
    answer's.
    """
    if len(pieces) == 1:
        return pieces
    prompt, whole = pieces
    length = min(len(prompt), len(whole))
    same = prompt[:length] == whole[:length]
    border = length if same.all() else int(np.argmin(same))
    return [whole[:border], whole[border:]]


def _meta(row: Mapping[str, Any], unit: Mapping[str, Any]) -> dict[str, Any]:
    text = row.get("meta")
    if not text or text == "{}":
        return {}
    try:
        meta = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(fault(f"meta of document '{row.get('id')}' is not JSON", where=unit["shard"],
                               found=str(error))) from error
    return meta if isinstance(meta, dict) else {}


def _name(row: Mapping[str, Any], meta: Mapping[str, Any], config: Config) -> str:
    parts = []
    for key in config.split_by:
        if key in ("source", "lang"):
            parts.append(row.get(key) or "none")
        else:
            parts.append(str(meta.get(key[5:], "none")))
    name = ".".join(parts) or "all"
    return next((new for pattern, new in config.rename.items() if fnmatchcase(name, pattern)), name)


def _join(results: list[dict[str, Any]], parts: Path, out: Path, encoder: Encoder) -> dict[str, dict[str, Any]]:
    keys = sorted({key for result in results for key in result["sources"]})
    plain = {key.split("/", 1)[1] for key in keys if key.startswith("text/")}
    sources: dict[str, dict[str, Any]] = {}
    for key in keys:
        kind, name = key.split("/", 1)
        if kind == "supervised" and name in plain:
            name = f"{name}.supervised"
        with ShardWriter(out / file_name(name), dtype=dtype_for(encoder.vocab_size)) as writer:
            holding = [result for result in results if key in result["sources"]]
            for result in holding:
                writer.extend(open_shard(parts / result["name"] / file_name(key)))
        totals = {field: sum(result["sources"][key][field] for result in holding)
                  for field in ("documents", "tokens", "bytes")}
        sources[name] = {**totals, "kind": kind, "file": file_name(name), "checksum": writer.checksum}
    return sources


def _figures(results: list[dict[str, Any]], sources: Mapping[str, Mapping[str, Any]], encoder: Encoder) -> dict[str, Any]:
    languages: dict[str, dict[str, int]] = {}
    for result in results:
        for lang, counts in result["languages"].items():
            item = languages.setdefault(lang, dict.fromkeys(counts, 0))
            for field, value in counts.items():
                item[field] += value
    empty = {field: sum(result["empty"][field] for result in results) for field in ("documents", "bytes")}
    tokens = sum(item["tokens"] for item in sources.values())
    size = sum(item["bytes"] for item in sources.values())
    funnel = {
        "in": {lang: {"documents": c["documents"] + c["empty"], "bytes": c["bytes"] + c["empty_bytes"]}
               for lang, c in sorted(languages.items())},
        "out": {lang: {"documents": c["documents"], "bytes": c["bytes"]} for lang, c in sorted(languages.items())},
        "dropped": {"empty": empty} if empty["documents"] else {}, "edited": {}, "samples": [],
    }
    return {
        "documents": sum(item["documents"] for item in sources.values()), "tokens": tokens, "text_bytes": size,
        "bytes_per_token": size / tokens, "engine": encoder.engine, "vocab_size": encoder.vocab_size,
        "sources": {name: {field: item[field] for field in ("documents", "tokens", "bytes", "kind")}
                    for name, item in sources.items()},
        "languages": {lang: {"tokens": c["tokens"], "bytes": c["bytes"],
                             "bytes_per_token": c["bytes"] / c["tokens"] if c["tokens"] else None}
                      for lang, c in sorted(languages.items())},
        "funnel": funnel, "notes": encoder.notes,
    }


def _eos(config: Config, encoder: Encoder) -> int:
    if config.eos_token is None:
        if encoder.eos_id is None:
            raise InputError(fault("the tokenizer names no eos token", where=encoder.path,
                                   fix="set eos_token to the token that ends a document"))
        return encoder.eos_id
    if config.eos_token in encoder.special:
        return encoder.special[config.eos_token]
    ids = encoder.encode(config.eos_token)
    if len(ids) != 1:
        raise ConfigError(fault(f"eos_token '{config.eos_token}' is not one token of the tokenizer", where=encoder.path,
                                found=f"{len(ids)} tokens"))
    return int(ids[0])


def _settle_engine(encoder: Encoder, corpus: Corpus) -> None:
    """Let the encoder compare its engines on documents from all over the corpus, once, so that every part uses the same."""
    from penjing.data.document import shard_batches

    shards = corpus.shards[:: max(len(corpus.shards) // 16, 1)][:16]
    share = CHECKED_DOCUMENTS // max(len(shards), 1)
    for shard in shards:
        batch = next(shard_batches(shard, columns=["text"], rows=share), None)
        if batch is not None:
            encoder.encode_batch([(text or "")[:20000] for text in batch.column("text").to_pylist()])


@lru_cache(maxsize=2)
def _encoder(path: str, special_tokens: bool, engine: str) -> Encoder:
    return load_encoder(Path(path), special_tokens=special_tokens, engine=engine)
