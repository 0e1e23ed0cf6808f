"""Turn a trained SentencePiece tokenizer into an OpenBA one: mT5's order of pieces, then sentinels, mode tokens and the line break.

With n pieces the ids are 0 `<pad>`, 1 `</s>`, 2 `<unk>`, then the byte pieces, then all others in their old order; after them n …
n + 99 `<extra_id_99>` … `<extra_id_0>` (descending), n + 100 … n + 102 `<R>`, `<S>`, `<X>`, and n + 103 the line break, as the
released tokenizer of OpenBA-V2 appends them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from penjing.config import Config as Settings
from penjing.contract import TOKENIZER, Estimate, Inputs, Job
from penjing.errors import InputError, fault

VERSION = 1
INPUTS = {"tokenizer": TOKENIZER}
OUTPUT = TOKENIZER

PAD, EOS, UNKNOWN_PIECE = "<pad>", "</s>", "<unk>"
MODES = ("<R>", "<S>", "<X>")


class Config(Settings):
    """Settings of openba-tokenizer."""

    extra_ids: int = Field(100, ge=1, le=1000)
    """Sentinels: the most spans that one sample can have masked."""
    newline: bool = True
    """Whether the line break is a token of its own, as in OpenBA-V2; the first OpenBA has none."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the SentencePiece model, tokenizer.json and tokenizer_config.json; InputError for a tokenizer of another kind."""
    from penjing.tokenizer.layouts import added_token
    from penjing.tokenizer.read import of_proto, read_model_proto, read_vocabulary
    from penjing.tokenizer.write import write_tokenizer

    vocabulary = read_vocabulary(inputs["tokenizer"])
    if vocabulary.proto is None:
        raise InputError(fault("OpenBA's tokenizer is made of a SentencePiece model", where=inputs["tokenizer"],
                               found=vocabulary.kind, expected="a tokenizer.model, as train-tokenizer writes it"))
    outside = [str(token["content"]) for token in vocabulary.added if int(token["id"]) >= len(vocabulary)]
    if outside:
        raise InputError(fault("the tokenizer already has tokens behind its pieces", where=inputs["tokenizer"],
                               found=", ".join(map(repr, outside[:5])), expected="pieces only"))
    proto = read_model_proto(vocabulary.proto, where=vocabulary.name)
    _reorder(proto)
    names = appended(config.extra_ids, newline=config.newline)
    taken = {piece.piece for piece in proto.pieces}.intersection(names)
    if taken:
        raise InputError(fault("the tokenizer has pieces that OpenBA appends", where=inputs["tokenizer"],
                               found=", ".join(map(repr, sorted(taken)[:5]))))
    # The line break is text: it stays when special tokens are left out of a decoded answer.
    beside = [added_token(len(proto.pieces) + place, content=name, special=name != "\n") for place, name in enumerate(names)]
    made = of_proto(proto, bytes(proto.SerializeToString(deterministic=True)), name=str(out), beside=beside)
    write_tokenizer(made, out, source=None)
    return {"pieces": len(made), "vocab_size": made.total, "special_tokens": {name: made.total - len(names) + place
            for place, name in enumerate(names) if name in ("<extra_id_0>", *MODES, "\n")}}


def price(config: Config, inputs: Inputs) -> Estimate:
    """The vocabulary and the appended tokens."""
    given: Estimate = inputs["tokenizer"]
    size = None if given.vocab_size is None else given.vocab_size + len(appended(config.extra_ids, newline=config.newline))
    return Estimate(memory_bytes=3e8, disk_bytes=None if size is None else 80.0 * size, vocab_size=size)


def appended(extra_ids: int, *, newline: bool) -> list[str]:
    """What follows the pieces, in order.

    >>> appended(3, newline=True)
    ['<extra_id_2>', '<extra_id_1>', '<extra_id_0>', '<R>', '<S>', '<X>', '\\n']
    """
    return [f"<extra_id_{number}>" for number in reversed(range(extra_ids))] + list(MODES) + ["\n"] * newline


def _reorder(proto: Any) -> None:
    """Put `<pad>`, `</s>`, `<unk>` and the byte pieces first and leave out other control pieces (`<s>`)."""
    from penjing.tokenizer.vocabulary import BYTE, CONTROL, UNKNOWN

    first = [(PAD, 0.0, CONTROL), (EOS, 0.0, CONTROL), (UNKNOWN_PIECE, 0.0, UNKNOWN)]
    old = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    bytes_first = [item for item in old if item[2] == BYTE]
    rest = [item for item in old if item[2] not in (CONTROL, UNKNOWN, BYTE)]
    del proto.pieces[:]
    for piece, score, kind in [*first, *bytes_first, *rest]:
        proto.pieces.add(piece=piece, score=score, type=kind)
    spec = proto.trainer_spec
    spec.vocab_size = len(proto.pieces)
    spec.pad_id, spec.eos_id, spec.unk_id, spec.bos_id = 0, 1, 2, -1
    spec.pad_piece, spec.eos_piece, spec.unk_piece = PAD, EOS, UNKNOWN_PIECE
