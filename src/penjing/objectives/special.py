"""The special tokens that objectives put into samples, found among a tokenizer's by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penjing.errors import InputError, fault

MODE_NAMES = {"R": ("<R>", "[R]", "<|R|>"), "S": ("<S>", "[S]", "<|S|>"), "X": ("<X>", "[X]", "<|X|>")}
GLM_NAMES = {
    "mask": ("[MASK]", "<mask>"), "sentence_mask": ("[sMASK]",), "gap_mask": ("[gMASK]",),
    "start": ("<sop>", "<|startofpiece|>"), "end": ("<eop>", "<|endofpiece|>"),
}
UNILM_NAMES = {"mask": ("[MASK]", "<mask>"), "start": ("[CLS]", "[SOS]", "<s>"), "end": ("[SEP]", "[EOS]", "</s>")}


@dataclass(frozen=True)
class Special:
    """Ids for span corruption and its kin. The first sentinel stands for the first span."""

    sentinels: NDArray[np.int64]
    eos: int
    decoder_start: int = 0
    modes: Mapping[str, int] | None = None
    """Ids of the mode tokens `R`, `S`, `X`; None: samples carry no mode token."""

    def prefix(self, mode: str) -> list[int]:
        """The mode token to put in front, as a list of one id or none."""
        return [] if self.modes is None else [self.modes[mode]]


def openba_special(vocab_size: int = 250100) -> Special:
    """OpenBA's ids: `<extra_id_0>` … `<extra_id_99>` count down from vocab_size + 99, then `<R>`, `<S>`, `<X>`."""
    first = vocab_size + 99
    return Special(np.arange(first, first - 100, -1), eos=1, decoder_start=0,
                   modes={"R": first + 1, "S": first + 2, "X": first + 3})


def find_special(names: Mapping[str, int], *, eos: int, decoder_start: int = 0, modes: bool = True,
                 where: object = "tokenizer") -> Special:
    """The sentinels `<extra_id_0>`, `<extra_id_1>`, … and, with `modes`, the mode tokens among special tokens `names`.

    InputError when the tokenizer has none of the ones that are needed.
    """
    sentinels: list[int] = []
    while (name := f"<extra_id_{len(sentinels)}>") in names:
        sentinels.append(names[name])
    if not sentinels:
        raise InputError(fault("the tokenizer has no sentinels", where=str(where),
                               expected="special tokens <extra_id_0>, <extra_id_1>, …",
                               fix="add them with grow-vocab's special_tokens: ['<extra_id_0..99>'], or use another objective"))
    return Special(np.array(sentinels, np.int64), eos=eos, decoder_start=decoder_start,
                   modes=pick(names, MODE_NAMES, where=where, purpose="UL2's modes") if modes else None)


def pick(names: Mapping[str, int], wanted: Mapping[str, tuple[str, ...]], *, where: object, purpose: str) -> dict[str, int]:
    """The id of each wanted token under the first of its spellings that the tokenizer has; InputError naming a
    missing one."""
    found = {}
    for key, spellings in wanted.items():
        name = next((text for text in spellings if text in names), None)
        if name is None:
            without = ", or set mode_tokens: false" if wanted is MODE_NAMES else ""
            raise InputError(fault(f"the tokenizer lacks a token for {purpose}", where=str(where),
                                   expected=f"one of {', '.join(spellings)} among its special tokens",
                                   fix=f"add it with grow-vocab's special_tokens{without}"))
        found[key] = names[name]
    return found
