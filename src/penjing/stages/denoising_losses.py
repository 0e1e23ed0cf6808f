"""Held-out loss of encoder-decoders on UL2's seven denoisers, the same masks for every model, with intervals and comparisons.

`evaluate` scores decoder-only models; this is its counterpart for models that read on one side and write on the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from penjing import console
from penjing.config import Config as Settings
from penjing.contract import CHECKPOINT, CORPUS, SCORES, Estimate, Inputs, Job
from penjing.errors import ConfigError, InputError, Interrupted, fault
from penjing.files import read_json, write_json

VERSION = 1
INPUTS = {"models": CHECKPOINT + "*", "held_out": CORPUS}
OUTPUT = SCORES


class Config(Settings):
    """Settings of denoising-losses."""

    names: list[str] = []
    """What the models are called, in their order; a recipe fills in the names of their stages."""
    piece_length: int = Field(190, ge=16)
    """Tokens of text in a sample, before masking."""
    pieces_per_language: int | None = Field(None, ge=2)
    """At most so many pieces of each language, the first by the documents' ids; None takes all."""
    mode_tokens: bool = True
    """Put `<R>`, `<S>` or `<X>` in front of samples, as the models were trained."""
    compare: list[tuple[str, str]] = []
    """Pairs of models of one tokenizer: the difference of their losses on the same pieces, with its interval."""
    seed: int = 0
    """Seed of everything random in this stage; the recipe's seed fills it."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """scores.json: model -> loss, interval, per denoiser and language; differences. Finished models are not scored again."""
    from penjing.evaluate import denoising

    names = config.names or [re.sub(r"^\d\d-", "", path.resolve().name) for path in inputs["models"]]
    _check(config, names, len(inputs["models"]))
    texts = _texts(inputs["held_out"])
    losses = {}
    for name, path in zip(names, inputs["models"], strict=True):
        kept = out / "state" / f"{name}.json"
        if not kept.is_file():
            if job.stop():
                raise Interrupted("stopped between two models")
            write_json(kept, _score(config, path, name, texts))
        parts = {lang: denoising.PieceLosses(*(np.array(value[key]) for key in ("nats", "tokens", "bytes")))
                 for lang, value in read_json(kept).items()}
        losses[name] = parts
        job.record(model=name, loss=denoising.joined(parts).loss())
    scores = {name: _summary(parts, config.seed) for name, parts in losses.items()}
    differences = []
    for one, other in config.compare:
        value, low, high = denoising.difference(denoising.joined(losses[one]), denoising.joined(losses[other]), seed=config.seed)
        differences.append({"model": one, "less": other, "difference": _round(value), "low": _round(low), "high": _round(high)})
    figures = {"scores": scores, "differences": differences}
    write_json(out / "scores.json", {"version": 1, "measure": "nats per target token, mean of UL2's seven denoisers, 95% bootstrap "
                                     "interval over pieces of text", "models": scores, "differences": differences})
    return figures


def price(config: Config, inputs: Inputs) -> Estimate:
    """One forward pass of every model over the pieces, once for each denoiser."""
    models: list[Estimate] = inputs["models"] or []
    held_out: Estimate = inputs["held_out"]
    if not held_out.text_bytes or any(not model.parameters for model in models):
        return Estimate(disk_bytes=1e5)
    tokens = held_out.text_bytes / 3.5
    if config.pieces_per_language is not None:
        tokens = min(tokens, 2.0 * config.pieces_per_language * config.piece_length)
    # Each token is on one of the two sides, so it passes about half of the weights.
    flops = sum((model.parameters or 0) * tokens * 7 for model in models)
    memory = max((4 * (model.parameters or 0) for model in models), default=0) + 4e8
    return Estimate(flops=flops, memory_bytes=memory, disk_bytes=1e5)


def _check(config: Config, names: list[str], models: int) -> None:
    if len(set(names)) != models:
        raise ConfigError(fault("every model needs a name of its own", where="names", found=", ".join(names),
                                expected=f"{models} different names"))
    for name in (name for pair in config.compare for name in pair):
        if name not in names:
            raise ConfigError(fault(f"no model is called '{name}'", where="compare", expected=f"one of {', '.join(names)}"))


def _texts(path: Path) -> dict[str, list[str]]:
    from penjing.data.document import open_corpus

    found: dict[str, list[tuple[str, str]]] = {}
    for batch in open_corpus(path).batches(columns=["id", "lang", "text"]):
        for ident, lang, text in zip(*(batch.column(index).to_pylist() for index in range(3)), strict=True):
            found.setdefault(lang or "", []).append((ident, text))
    return {lang: [text for _, text in sorted(pairs)] for lang, pairs in sorted(found.items())}


def _score(config: Config, path: Path, name: str, texts: dict[str, list[str]]) -> dict[str, Any]:
    from penjing.evaluate import denoising
    from penjing.models.checkpoint import load_model
    from penjing.objectives.special import find_special
    from penjing.tokenizer.encode import load_encoder

    described = read_json(path / "config.json")
    if not described.get("is_encoder_decoder"):
        raise InputError(fault("denoisers are measured on encoder-decoders", where=path, found=described.get("model_type"),
                               expected="an encoder-decoder; stage evaluate scores the others"))
    encoder = load_encoder(path)
    if encoder.eos_id is None:
        raise InputError(fault("the tokenizer has no end token", where=path))
    special = find_special(encoder.special, eos=encoder.eos_id, decoder_start=int(described.get("decoder_start_token_id") or 0),
                           modes=config.mode_tokens, where=path)
    pieces = {lang: denoising.cut_pieces(encoder.encode_batch(documents), length=config.piece_length, eos=encoder.eos_id,
                                         most=config.pieces_per_language) for lang, documents in texts.items()}
    pieces = {lang: group for lang, group in pieces.items() if group}
    if not pieces:
        raise InputError(fault("held-out text is too short to score", where=path, found="not one whole piece",
                               expected=f"at least {config.piece_length} tokens of a language (piece_length)"))
    total = sum(map(len, pieces.values())) * len(denoising.DENOISERS)
    with console.bar(name, total=total, unit="samples") as bar:
        measured = denoising.piece_losses(load_model(path), pieces, special=special, bytes_V=_bytes_of(path), seed=config.seed,
                                          advance=bar.advance)
    return {lang: {"nats": [[round(value, 4) for value in row] for row in part.nats_NK.tolist()],
                   "tokens": part.tokens_NK.astype(int).tolist(), "bytes": part.bytes_NK.astype(int).tolist()}
            for lang, part in measured.items()}


def _bytes_of(path: Path) -> np.ndarray:
    """UTF-8 bytes of each id's text; 0 for special tokens."""
    from penjing.tokenizer.read import read_vocabulary
    from penjing.tokenizer.vocabulary import BYTE, NORMAL, piece_bytes

    vocabulary = read_vocabulary(path)
    sizes = np.zeros(vocabulary.total, np.int64)
    for index, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types_V.tolist(), strict=True)):
        if kind == BYTE:
            sizes[index] = 1
        elif kind == NORMAL:
            byte_level = vocabulary.kind == "byte-bpe"
            sizes[index] = len(piece_bytes(piece)) if byte_level else len(piece.replace("▁", " ").encode())
    for token in vocabulary.added:
        if not token.get("special", True):
            sizes[int(token["id"])] = len(str(token["content"]).encode())
    return sizes


def _summary(parts: Any, seed: int) -> dict[str, Any]:
    from penjing.evaluate import denoising

    whole = denoising.joined(parts)
    low, high = denoising.interval(whole, seed=seed)
    bounds = denoising.denoiser_intervals(whole, seed=seed)
    return {
        "loss": _round(whole.loss()), "low": _round(low), "high": _round(high), "bits_per_byte": _round(whole.bits_per_byte()),
        "pieces": len(whole.nats_NK), "targets": int(whole.tokens_NK.sum()),
        "by_denoiser": {name: {"loss": _round(float(value)), "low": _round(float(bounds[at, 0])), "high": _round(float(bounds[at, 1]))}
                        for at, (name, value) in enumerate(zip(denoising.NAMES, whole.by_denoiser(), strict=True))},
        "by_language": {lang: _round(part.loss()) for lang, part in sorted(parts.items())},
    }


def _round(value: float) -> float:
    return round(value, 6)
