"""OpenBA's tokenizer: mT5's SentencePiece model and, after its pieces, sentinels (descending), mode tokens and the line
break.

With n pieces the ids are n + 99 - k for `<extra_id_k>` (k = 0 … 99), n + 100 … n + 102 for `<R>`, `<S>`, `<X>`, and n +
103 for the line break, which the second OpenBA has and the first has not (`add_newline=False`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

VOCAB_FILES_NAMES = {"vocab_file": "spiece.model"}
MODES = ("<R>", "<S>", "<X>")


def special_ids(pieces: int, *, extra_ids: int = 100, add_newline: bool = True) -> dict[str, int]:
    """The tokens after the SentencePiece pieces and their ids."""
    added = [f"<extra_id_{number}>" for number in reversed(range(extra_ids))] + list(MODES) + ["\n"] * add_newline
    return {token: pieces + place for place, token in enumerate(added)}


class OpenBATokenizer(PreTrainedTokenizer):
    """Encodes text with SentencePiece between special tokens; every text ends in `</s>`."""

    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        extra_ids: int = 100,
        add_newline: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = str(vocab_file)
        self.extra_ids, self.add_newline = extra_ids, add_newline
        self.processor = sentencepiece.SentencePieceProcessor(model_file=self.vocab_file)
        self.special_ids = special_ids(self.processor.get_piece_size(), extra_ids=extra_ids, add_newline=add_newline)
        self.special_texts = {number: token for token, number in self.special_ids.items()}
        kwargs.pop("additional_special_tokens", None)
        kwargs.pop("extra_special_tokens", None)
        kwargs["special_tokens_pattern"] = "eos"
        super().__init__(
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            extra_ids=extra_ids,
            add_newline=add_newline,
            extra_special_tokens=list(self.special_ids),
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Pieces and the tokens after them."""
        return int(self.processor.get_piece_size()) + len(self.special_ids)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        pieces = {self.processor.id_to_piece(number): number for number in range(self.processor.get_piece_size())}
        return {**pieces, **self.special_ids}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(self.processor.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        if token in self.special_ids:
            return self.special_ids[token]
        return int(self.processor.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        if index in self.special_texts:
            return self.special_texts[index]
        if index >= self.processor.get_piece_size():
            return str(self.unk_token)  # rows of a padded vocabulary
        return str(self.processor.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens; special tokens stand as they are."""
        parts: list[str] = []
        run: list[str] = []
        for token in [*tokens, None]:
            if token is None or token in self.special_ids or token in self.all_special_tokens:
                parts.append(self.processor.decode(run) if run else "")
                parts.append(token or "")
                run = []
            else:
                run.append(token)
        return "".join(parts)

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None = None) -> list[int]:
        """The ids and `</s>`, once."""
        ids = list(token_ids_0) + list(token_ids_1 or [])
        return ids if ids and ids[-1] == self.eos_token_id else [*ids, int(self.eos_token_id)]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the SentencePiece model."""
        target = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + VOCAB_FILES_NAMES["vocab_file"])
        if Path(self.vocab_file).resolve() != target.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
