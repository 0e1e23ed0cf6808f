"""Train the language models that perplexity is measured with: modified Kneser-Ney n-grams, one per language."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from penjing.config import Config as BaseConfig
from penjing.console import say
from penjing.contract import CORPUS, FILES, Estimate, Inputs, Job
from penjing.data.engine import stop_if_asked
from penjing.errors import InputError, fault
from penjing.stages.hold_out import position

if TYPE_CHECKING:
    import pyarrow as pa

    from penjing.data.document import Corpus
    from penjing.data.perplexity.units import Vocabulary

VERSION = 1
INPUTS = {"corpus": CORPUS}
OUTPUT = FILES


class Config(BaseConfig):
    """How the models are made."""

    languages: tuple[str, ...] = ("zh", "en")
    """Languages to train a model for; those absent from the corpus are left out with a word."""
    order: int = Field(5, ge=2, le=7)
    """Longest n-gram."""
    units: Literal["tokens", "pieces"] = "tokens"
    """`tokens`: Han characters, words and punctuation marks. `pieces`: a SentencePiece model trained on the same text."""
    vocabulary: int = Field(200_000, ge=100)
    """Most words (or pieces) a model knows; the rest is <unk>."""
    min_count: int = Field(2, ge=1)
    """Tokens seen less often are <unk>, which thereby gets a probability of its own."""
    prune: tuple[int, ...] = (0, 0, 1, 1, 1)
    """Per order, n-grams seen at most that often are left out; the last entry goes for longer ones too."""
    text_bytes: int = Field(128 << 20, ge=1 << 10)
    """Most text per language that is trained on; a larger corpus is sampled by document. Bounds the memory: about 25 bytes per
    byte of Chinese text, 12 of English."""
    arpa: bool = True
    """Also write the models as ARPA text."""
    seed: int = 0
    """Another seed samples other documents."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write one model per language and give their sizes."""
    from penjing.data.document import open_corpus
    from penjing.data.perplexity.store import write_manifest

    corpus = open_corpus(inputs["corpus"])
    made: dict[str, Any] = {}
    for lang in config.languages:
        stop_if_asked(job, "perplexity-model")
        held = corpus.languages.get(lang)
        if not held or not held["bytes"]:
            say(f"perplexity-model: no text in '{lang}', no model")
            continue
        made[lang] = _train_language(config, corpus, lang, held["bytes"], out)
        job.record(language=lang, words=made[lang]["words"], trained_bytes=made[lang]["text_bytes"])
    if not made:
        raise InputError(
            fault(
                "no text in the wanted languages",
                where=corpus.path,
                found=", ".join(corpus.languages) or "none",
                expected=", ".join(config.languages),
            )
        )
    write_manifest(out, made)
    return {"languages": made}


def _train_language(config: Config, corpus: Corpus, lang: str, size: int, out: Path) -> dict[str, Any]:
    import pyarrow.compute as pc

    from penjing.data.perplexity.model import tables_of, train, write_arpa
    from penjing.data.perplexity.store import save_language

    share = min(1.0, config.text_bytes / size)
    seen = {"documents": 0, "bytes": 0}
    for batch in _texts(corpus, lang, share, config.seed):
        seen["documents"] += len(batch)
        seen["bytes"] += int(pc.sum(pc.binary_length(batch)).as_py() or 0)
    if not seen["bytes"]:
        raise InputError(fault(f"the sample of '{lang}' holds no text", where=corpus.path, fix="raise text_bytes"))
    vocabulary = _vocabulary(config, corpus, lang, share, out)
    streams = (vocabulary.streams(batch)[0] for batch in _texts(corpus, lang, share, config.seed))
    trained = train(streams, order=config.order, vocabulary=len(vocabulary.words), prune=config.prune)
    save_language(out / lang, vocabulary, tables_of(trained.orders))
    if config.arpa:
        write_arpa(out / lang / "model.arpa", trained.orders, vocabulary.words)
    return {
        "units": config.units,
        "order": config.order,
        "words": len(vocabulary.words),
        "words_seen": trained.words_seen,
        "ngrams": [len(order.word) for order in trained.orders],
        "prune": list(config.prune),
        "discounts": [[round(value, 6) for value in three] for three in trained.discounts],
        "documents": seen["documents"],
        "text_bytes": seen["bytes"],
        "sampled": round(share, 6),
    }


def _vocabulary(config: Config, corpus: Corpus, lang: str, share: float, out: Path) -> Vocabulary:
    from penjing.data.perplexity.units import count_tokens, train_pieces

    texts = _texts(corpus, lang, share, config.seed)
    if config.units == "tokens":
        return count_tokens(texts, min_count=config.min_count, largest=config.vocabulary)
    return train_pieces(texts, out / "state" / lang, size=config.vocabulary)


def _texts(corpus: Corpus, lang: str, share: float, seed: int) -> Iterator[pa.Array]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in corpus.batches(["id", "text", "lang"], rows=1024):
        chosen = pc.fill_null(pc.equal(batch.column("lang"), lang), False)
        if share < 1:
            drawn = [position(name or "", seed) < share for name in batch.column("id").to_pylist()]
            chosen = pc.and_(chosen, pa.array(drawn, pa.bool_()))
        texts = batch.column("text").filter(chosen)
        if len(texts):
            yield texts.fill_null("")


def price(config: Config, inputs: Inputs) -> Estimate:
    """Memory and disk grow with the text that is trained on, which `text_bytes` bounds."""
    before: Estimate = inputs["corpus"]
    size = (
        min(before.text_bytes, float(config.text_bytes * len(config.languages)))
        if before.text_bytes is not None
        else None
    )
    return Estimate(
        memory_bytes=None if size is None else 300e6 + 25 * min(size, config.text_bytes),
        disk_bytes=None if size is None else size * (4.0 if config.arpa else 1.5),
        text_bytes=size,
    )
