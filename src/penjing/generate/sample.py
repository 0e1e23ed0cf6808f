"""Continuations of prompts by sampling, one prompt at a time, reproducible by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing.errors import InputError, fault


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 96
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int = 0


def continue_texts(model: Path | Any, prompts: Sequence[str], *, sampling: Sampling, tokenizer: Any = None) -> list[str]:
    """The continuation of each prompt, without the prompt. `model` is a checkpoint directory or a loaded model + tokenizer.

    Raises InputError when the directory is not a checkpoint or has no tokenizer.
    """
    import torch

    if isinstance(model, Path):
        from transformers import AutoTokenizer

        from penjing.models.checkpoint import load_model

        if not (model / "config.json").is_file():
            raise InputError(fault("not a model", where=model, expected="a directory with config.json and weights"))
        path, model = model, load_model(model)  # first: it makes OpenBA known, so that nobody asks to run its code
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    model.eval()
    found = []
    for index, prompt in enumerate(prompts):
        torch.manual_seed(sampling.seed + index)
        encoded = _ids(tokenizer, prompt, keep_end=bool(model.config.is_encoder_decoder))
        if not encoded:
            raise InputError(fault("an empty prompt and a tokenizer without a start token", fix="give at least one character"))
        ids = torch.tensor([encoded])
        sampled = sampling.temperature > 0
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=sampling.max_new_tokens, do_sample=sampled,
                temperature=sampling.temperature if sampled else None, top_p=sampling.top_p if sampled else None, top_k=None,
                repetition_penalty=sampling.repetition_penalty, pad_token_id=_pad(tokenizer),
            )
        new = out[0] if model.config.is_encoder_decoder else out[0, ids.shape[1]:]
        if model.config.is_encoder_decoder:
            found.append(tokenizer.decode(new, skip_special_tokens=True))
        else:
            whole = tokenizer.decode(out[0], skip_special_tokens=True)
            head = tokenizer.decode(ids[0], skip_special_tokens=True)
            found.append(whole[len(head):] if whole.startswith(head) else tokenizer.decode(new, skip_special_tokens=True))
    return found


def _ids(tokenizer: Any, prompt: str, *, keep_end: bool) -> list[int]:
    """The prompt's ids as training saw them: the start token when there is one, an end token only for an encoder."""
    ids = list(tokenizer(prompt, add_special_tokens=True)["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not keep_end:
        ids.pop()
    return ids


def _pad(tokenizer: Any) -> int | None:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
