"""The TOKENS artefact: a directory of token shards, one per source, and `tokens.json`, written last.

A source is `text` (a document is one sequence, eos at its end) or `supervised` (a document is two sequences, the
prompt and the answer with eos at its end), so the prompt's length is in the stock index and no side file is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.files import hash_text, read_json, write_json
from penjing.objectives.shards import Shard, ShardWriter, dtype_for, open_shard, verify

VERSION = 1
MANIFEST = "tokens.json"


@dataclass(frozen=True)
class Tokens:
    """A finished TOKENS directory and what tokens.json says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        """Number of ids the tokenizer gives out."""
        return int(self.manifest["vocab_size"])

    @property
    def eos_id(self) -> int:
        """The id at the end of every document."""
        return int(self.manifest["eos_id"])

    @property
    def special(self) -> dict[str, int]:
        """Ids of the tokenizer's special tokens by their text (`<extra_id_0>`, `<S>`, `[gMASK]`, …)."""
        return dict(self.manifest.get("special", {}))

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """{name: {"documents", "tokens", "bytes", "kind", "file", "checksum"}}."""
        return dict(self.manifest["sources"])

    def shard(self, source: str) -> Shard:
        """The token shard of a source."""
        return open_shard(self.path / self.sources[source]["file"])

    def verify(self) -> None:
        """Read every shard whole and check ids, offsets, counts and checksums."""
        for name, facts in self.sources.items():
            shard = verify(self.path / facts["file"], vocab_size=self.vocab_size,
                           expected_checksum=facts.get("checksum"))
            if shard.tokens != facts["tokens"] or shard.documents != facts["documents"]:
                raise InputError(fault(f"source '{name}' does not hold what tokens.json says",
                                       where=self.path / MANIFEST,
                                       found=f"{shard.documents} documents, {shard.tokens} tokens",
                                       expected=f"{facts['documents']} documents, {facts['tokens']} tokens"))


def open_tokens(path: Path) -> Tokens:
    """The TOKENS directory at `path`; InputError when it is not one, not finished, or of another dtype than it says."""
    if not (path / MANIFEST).is_file():
        raise InputError(fault(f"no {MANIFEST} here", where=path, expected="a finished tokens directory",
                               fix="run the tokenise stage first, or give its output directory"))
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(fault("not a tokens manifest this version reads", where=path / MANIFEST,
                               found=f"version {found}", expected=f"version {VERSION}"))
    missing = [key for key in ("vocab_size", "eos_id", "dtype", "sources") if key not in manifest]
    if missing:
        raise InputError(fault("tokens manifest lacks keys", where=path / MANIFEST, found=f"no {', '.join(missing)}"))
    return Tokens(path, manifest)


def write_manifest(out: Path, *, vocab_size: int, eos_id: int, special: Mapping[str, int],
                   sources: Mapping[str, Mapping[str, Any]], tokenizer: str = "",
                   sentence_ends: Sequence[int] | None = None) -> Tokens:
    """Write tokens.json over shards that are already in `out`, and give the opened artefact back.

    sentence_ends: ids that close a sentence, for GLM's [sMASK].
    """
    manifest = {"version": VERSION, "vocab_size": int(vocab_size), "eos_id": int(eos_id),
                "dtype": dtype_for(vocab_size).name, "tokenizer": tokenizer, "special": dict(sorted(special.items())),
                "sources": {name: dict(sources[name]) for name in sorted(sources)}}
    if sentence_ends is not None:
        manifest["sentence_ends"] = list(sentence_ends)
    write_json(out / MANIFEST, manifest)
    return open_tokens(out)


def file_name(source: str) -> str:
    """The file stem of a source: its name where that is safe, else a safe spelling with a hash."""
    cleaned = re.sub(r"[^\w.+-]+", "-", source).strip(".-")
    return cleaned if cleaned == source and len(source) < 100 else f"{cleaned[:60]}-{hash_text(source)[:8]}"


def adopt(out: Path, shards: Mapping[str, Path], *, vocab_size: int, eos_id: int,
          special: Mapping[str, int] | None = None) -> Tokens:
    """A TOKENS directory over stock shards made elsewhere: {source: prefix}. The files are copied and checked on the way.

    A source whose every document has two sequences is supervised; in any other one a document's sequences are one text.
    """
    facts: dict[str, dict[str, Any]] = {}
    for name, prefix in shards.items():
        found = verify(prefix, vocab_size=vocab_size)
        if found.dtype != dtype_for(vocab_size):
            raise InputError(fault("shard has another dtype than its vocabulary asks for", where=prefix, found=found.dtype.name,
                                   expected=f"{dtype_for(vocab_size).name} for {vocab_size} ids"))
        with ShardWriter(out / file_name(name), dtype=found.dtype) as writer:
            writer.extend(found)
        pairs = found.documents > 0 and bool(np.all(np.diff(found.marks) == 2))
        facts[name] = {"documents": found.documents, "tokens": found.tokens, "bytes": 0, "file": file_name(name),
                       "kind": "supervised" if pairs else "text", "checksum": writer.checksum}
    return write_manifest(out, vocab_size=vocab_size, eos_id=eos_id, special=special or {}, sources=facts)


def write_tokens(out: Path, sources: Mapping[str, Sequence[Sequence[np.ndarray]]], *, vocab_size: int, eos_id: int,
                 special: Mapping[str, int] | None = None) -> Tokens:
    """A TOKENS directory out of documents in memory: each is (text,) or (prompt, answer), ids as they are to be
    stored."""
    facts: dict[str, dict[str, Any]] = {}
    for name, documents in sources.items():
        with ShardWriter(out / file_name(name), dtype=dtype_for(vocab_size)) as writer:
            for document in documents:
                writer.add(*(np.asarray(part) for part in document))
        supervised = any(len(document) > 1 for document in documents)
        facts[name] = {"documents": len(documents), "tokens": writer.tokens, "bytes": 0,
                       "kind": "supervised" if supervised else "text", "file": file_name(name),
                       "checksum": writer.checksum}
    return write_manifest(out, vocab_size=vocab_size, eos_id=eos_id, special=special or {}, sources=facts)
