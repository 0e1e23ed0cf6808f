"""The calibration step of grow-vocab: measure, try, keep only what is better on text that was not used for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import ConfigError, fault
from penjing.files import read_json, write_json


def calibrate(out: Path, corpus: Path, *, first: int, characters: int, context_length: int) -> dict[str, Any]:
    """Move the output rows of ids from `first` on in the checkpoint `out` to where the corpus's frequencies put them.

    Several shares of the first guess are tried on one half of the measured text and judged on the other by the product of all
    languages' bits per character; where none is better than the rows as they are, they stay. A killed run goes on: the decision is
    kept under out/state before the weights are touched, and writing it twice changes nothing. ConfigError for encoder-decoders.
    """
    import torch

    from penjing.evaluate.perplexity import document_losses, summarise
    from penjing.models.checkpoint import load_model
    from penjing.tokenizer.calibrate import SHARES, calibrated, contexts
    from penjing.tokenizer.encode import load_encoder
    from penjing.tokenizer.inits import measured_texts

    decision, kept_rows = out / "state" / "calibration.json", out / "state" / "calibrated-rows.npy"
    if not decision.is_file():
        model, encoder = load_model(out), load_encoder(out)
        if model.config.is_encoder_decoder:
            raise ConfigError(fault("calibrate works on decoder-only models", where=out, fix="leave calibrate out"))
        weight = model.get_output_embeddings().weight
        last = min(weight.shape[0], encoder.vocab_size)
        start = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id or 0
        texts = measured_texts(corpus, characters=characters)
        learn = {lang: own[::2] for lang, own in texts.items()}
        judge = {lang: own[1::2] or own for lang, own in texts.items()}

        def bits() -> dict[str, float]:
            return {lang: round(summarise(document_losses(model, encoder, own, context_length=context_length, start_id=start),
                                          resamples=1).bits_per_character, 5) for lang, own in sorted(judge.items())}

        before = bits()
        found = contexts(model, encoder, learn, first=first, last=last, context_length=context_length, start_id=start)
        original = weight.detach().float().numpy().copy()
        best: tuple[float, float | None, dict[str, float], np.ndarray | None] = (_product(before), None, before, None)
        if found.uses_new_N.any():
            for share in SHARES:
                rows = calibrated(found, original, first=first, last=last, share=share)
                with torch.no_grad():
                    weight[first:last] = torch.from_numpy(rows).to(weight.dtype)
                after = bits()
                if _product(after) < best[0]:
                    best = (_product(after), share, after, rows)
        kept_rows.parent.mkdir(parents=True, exist_ok=True)
        if best[3] is not None:
            np.save(kept_rows, best[3], allow_pickle=False)
        write_json(decision, {"kept": best[1] is not None, "share": best[1], "bits_per_character_before": before,
                              "bits_per_character_after": best[2]})
    figures: dict[str, Any] = read_json(decision)
    if figures["kept"]:
        _write_rows(out, np.load(kept_rows, allow_pickle=False), first)
    return figures


def _write_rows(out: Path, rows_KH: np.ndarray, first: int) -> None:
    """Overwrite rows from `first` on of the output table (the shared one when it is tied) inside its safetensors file."""
    import torch

    from penjing.models.checkpoint import open_checkpoint
    from penjing.models.family import of

    source = open_checkpoint(out)
    family = of(source.config)
    roles = {item.role: item.name for item in family.vocab_tensors(source.config)}
    name = roles["input"] if family.tied(source.config) or "output" not in roles else roles["output"]
    file, begin, row_bytes = _place(out, name)
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[source.dtype(name)]
    values = torch.from_numpy(rows_KH).to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
    with file.open("r+b") as target:
        target.seek(begin + first * row_bytes)
        target.write(values)


def _place(out: Path, name: str) -> tuple[Path, int, int]:
    """(file, offset of the tensor's first byte, bytes per row) of a weight stored as safetensors."""
    import json

    for file in sorted(out.glob("*.safetensors")):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        if name in header:
            begin, end = header[name]["data_offsets"]
            return file, 8 + size + begin, (end - begin) // header[name]["shape"][0]
    raise ValueError(f"{name} is in no safetensors file of {out}")


def _product(bits: dict[str, float]) -> float:
    return float(np.prod(list(bits.values())))
