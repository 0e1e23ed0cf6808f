"""Bits per byte of every model on held-out text, by language, with intervals; and sample continuations."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from penjing import console
from penjing.config import Config as Base
from penjing.contract import CHECKPOINT, CORPUS, SCORES, Estimate, Inputs, Job
from penjing.errors import ConfigError, InputError, Interrupted, fault
from penjing.files import canonical_json, read_json, write_json, write_text

VERSION = 1
INPUTS = {"models": CHECKPOINT + "*", "held_out": CORPUS}
OUTPUT = SCORES


class Config(Base):
    names: list[str] = []
    """What the models are called, in their order; a recipe fills in the names of their stages."""
    context_length: int = Field(512, ge=8)
    """Tokens of context at most (a model with fewer positions uses its own limit)."""
    languages: list[str] = []
    """Languages to score; empty scores every language in the held-out corpus."""
    documents_per_language: int | None = Field(None, ge=1)
    """At most this many documents of each language, the first by id; None scores all."""
    prompts: list[str] = []
    """Texts that every model continues, kept in samples.jsonl."""
    max_new_tokens: int = Field(64, ge=1)
    """Length of a sample continuation, in tokens."""
    temperature: float = Field(0.7, ge=0)
    """0 is greedy."""
    seed: int = 0
    """Seed of everything random in this stage; the recipe's seed fills it."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """scores.json: model -> language -> score; samples.jsonl. Finished models are not scored again on resume."""
    texts = _texts(config, inputs["held_out"])
    found: dict[str, Any] = {}
    lines: list[str] = []
    state = out / "state"
    names = config.names or [model_name(path) for path in inputs["models"]]
    if len(set(names)) != len(inputs["models"]):
        raise ConfigError(fault("every model needs a name of its own", where="names", found=", ".join(names),
                                expected=f"{len(inputs['models'])} different names"))
    for name, path in zip(names, inputs["models"], strict=True):
        kept = state / f"{name}.json"
        if not kept.is_file():
            if job.stop():
                raise Interrupted("stopped between two models")
            write_json(kept, _score(config, path, name, texts))
        entry = read_json(kept)
        found[name] = entry["scores"]
        lines += [canonical_json(sample) for sample in entry["samples"]]
        job.record(model=name, **{f"{lang}_bits_per_byte": score["bits_per_byte"] for lang, score in entry["scores"].items()})
    write_json(out / "scores.json", {"version": 1, "measure": "bits per byte, 95% bootstrap interval over documents",
                                     "models": found})
    write_text(out / "samples.jsonl", "".join(f"{line}\n" for line in lines))
    return {"scores": found, "samples": list(map(_parse, lines))}


def price(config: Config, inputs: Inputs) -> Estimate:
    """One forward pass of every model over the held-out text (a third of a training step's FLOPs each)."""
    held_out: Estimate = inputs["held_out"]
    models: list[Estimate] = inputs["models"] or []
    if not held_out.text_bytes or any(not model.parameters for model in models):
        return Estimate(disk_bytes=1e5)
    # Windows overlap by half, so each token passes about twice; about 3.5 bytes a token.
    tokens = 2 * held_out.text_bytes / 3.5
    flops = sum(2 * (model.parameters or 0) * tokens for model in models)
    memory = max((4 * (model.parameters or 0) for model in models), default=0) + 3e8
    return Estimate(flops=flops, memory_bytes=memory, disk_bytes=1e5)


def model_name(path: Path) -> str:
    """The stage a checkpoint came from (`09-grown` -> `grown`), or its directory's name."""
    return re.sub(r"^\d\d-", "", path.resolve().name)


def _score(config: Config, path: Path, name: str, texts: dict[str, list[str]]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from penjing.evaluate.perplexity import document_losses, summarise
    from penjing.generate.sample import Sampling, continue_texts
    from penjing.models.checkpoint import load_model
    from penjing.tokenizer.encode import load_encoder

    model = load_model(path)
    encoder = load_encoder(path)
    start = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id
    if start is None:
        raise InputError(fault("the tokenizer has neither a start nor an end token to begin a document with", where=path))
    limit = getattr(model.config, "max_position_embeddings", None) or config.context_length
    scores = {}
    with console.bar(name, total=sum(map(len, texts.values())), unit="documents") as progress:
        for lang, documents in texts.items():
            losses = document_losses(model, encoder, documents, context_length=min(config.context_length, limit), start_id=start,
                                     advance=progress.advance)
            scores[lang] = {key: round(value, 6) if isinstance(value, float) else value
                            for key, value in asdict(summarise(losses, seed=config.seed)).items()}
    samples = []
    if config.prompts:
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=config.seed,
                            repetition_penalty=1.15)
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        continued = continue_texts(model, config.prompts, sampling=sampling, tokenizer=tokenizer)
        samples = [{"model": name, "prompt": prompt, "text": text}
                   for prompt, text in zip(config.prompts, continued, strict=True)]
    return {"scores": scores, "samples": samples}


def _texts(config: Config, path: Path) -> dict[str, list[str]]:
    from penjing.data.document import open_corpus

    corpus = open_corpus(path)
    found: dict[str, list[tuple[str, str]]] = {}
    for batch in corpus.batches(columns=["id", "lang", "text"]):
        for ident, lang, text in zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True):
            if not config.languages or lang in config.languages:
                found.setdefault(lang or "", []).append((ident, text))
    missing = [lang for lang in config.languages if lang not in found]
    if missing or not found:
        raise InputError(fault("held-out text is missing", where=path, found=sorted(found) or "no documents",
                               expected=f"documents in {', '.join(config.languages) or 'any language'}"))
    return {lang: [text for _, text in sorted(pairs)[: config.documents_per_language]] for lang, pairs in sorted(found.items())}


def _parse(line: str) -> dict[str, Any]:
    import json

    return dict(json.loads(line))
