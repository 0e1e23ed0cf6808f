"""Train a SentencePiece tokenizer on a corpus; the same corpus and settings give the same file, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from penjing.config import Config as Settings
from penjing.contract import CORPUS, TOKENIZER, Estimate, Inputs, Job

VERSION = 1
INPUTS = {"corpus": CORPUS}
OUTPUT = TOKENIZER


class Config(Settings):
    """Settings of train-tokenizer."""

    size: int = Field(gt=0)
    """Pieces in all, with the 3 or 4 special and 256 byte pieces."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """SentencePiece model type."""
    languages: list[str] | None = None
    """Languages of the corpus to train on; all by default."""
    text_bytes: int = Field(default=100_000_000, gt=0)
    """Bytes of text to train on at most, drawn evenly from the corpus."""
    character_coverage: float | None = Field(default=None, gt=0, le=1)
    """Share of running characters that have a piece of their own, the rest is spelled in bytes; by default 0.9995, or as much as
    half of the pieces can hold."""
    split_digits: bool = True
    """One digit per piece, as LLaMA has it."""
    byte_fallback: bool = True
    """256 byte pieces, so that no text is unknown."""
    pad_token: bool = False
    """Whether to have a `<pad>` piece (id 3)."""
    seed: int = 0
    """Seed of the draw of lines."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json; figures of the trained tokenizer on its corpus."""
    from penjing.tokenizer.change import forget, languages_of
    from penjing.tokenizer.count import count_corpus, fertility
    from penjing.tokenizer.report import coverage_table
    from penjing.tokenizer.train import TrainerConfig, train_sentencepiece
    from penjing.tokenizer.write import write_tokenizer

    languages = languages_of(inputs["corpus"], config.languages)
    wish = TrainerConfig(vocab_size=config.size, kind=config.model_type, text_bytes=config.text_bytes,
                         character_coverage=config.character_coverage, split_digits=config.split_digits,
                         byte_fallback=config.byte_fallback, pad_token=config.pad_token, seed=config.seed)
    vocabulary, trained_bytes = train_sentencepiece(inputs["corpus"], wish, languages=languages)
    write_tokenizer(vocabulary, out, source=None)
    counts = count_corpus(out, inputs["corpus"], job=job, state=out / "state", label="count tokens")
    forget(out / "state")
    return {"vocab_size": len(vocabulary), "trained_bytes": trained_bytes, "fertility": fertility(counts.totals),
            "fertility_by_script": fertility(counts.scripts), "coverage": coverage_table(counts, len(vocabulary))}


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Size of the tokenizer; memory grows with the text it is trained on."""
    text = min(config.text_bytes, inputs["corpus"].text_bytes or config.text_bytes)
    return Estimate(memory_bytes=300e6 + 12.0 * text, disk_bytes=80.0 * config.size, vocab_size=config.size)
