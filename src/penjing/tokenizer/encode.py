"""Text to ids, exactly as the tokenizer's own library would, by the fastest engine that gives the same ids.

    byte-level BPE in tokenizer.json, in vocab.json + merges.txt
    or in tiktoken ranks                tiktoken, with ranks made from the model's own merges
    any other tokenizer.json            the tokenizers library itself
    tokenizer.model / *.model alone     sentencepiece itself

Before tiktoken is trusted it has to give the ids of the tokenizers library on a probe of every kind of text, and the
first documents of a run are compared too; where they differ the library does the work (`Encoder.engine` says which
one does).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from penjing.errors import InputError, fault
from penjing.files import hash_file, open_text_bytes, read_json

GPT2_PATTERN = (r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")
"""What the tokenizers library's ByteLevel pre-tokenizer splits by when `use_regex` is on."""

CHECKED_DOCUMENTS = 256
"""The first documents that an encoder is given are compared with the tokenizers library's ids."""

PROBE = (
    "Hello world! It's 2024, we'll've  spaces\tand\n\nlines \r\n  x = f(y)[3:-1]  # naïve café",
    "盆景是中国传统的园林艺术。《红楼梦》第１２回；价格￥3,000.50元……“引号”、全角　空格",
    "日本語テキスト 한국어 텍스트 русский текст العربية हिन्दी 🙂👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff ﬁ Å",
    "0123456789 1 12 123 1234 12345 DON'T don't I'M  ''''s  \u00a0\u3000 a\u00adb -- --- ---- ====",
    "\x00\x01\x7f\udcff".encode("utf-8", "ignore").decode() + "   \n \n\n\t\t   ",
)

Ids = NDArray[np.int32]
Encode = Callable[[Sequence[str]], list[Ids]]


@dataclass
class Encoder:
    """A tokenizer for bulk work: documents in, int32 ids out, no bos or eos added."""

    path: Path
    engine: str
    """`tiktoken`, `tokenizers` or `sentencepiece`."""
    vocab_size: int
    """One more than the highest id."""
    eos_id: int | None
    bos_id: int | None
    special: dict[str, int]
    """Special and added tokens by their text."""
    _encode: Encode
    _decode: Callable[[Sequence[int]], str]
    _check: Encode | None = None
    _checked: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Hash of what the tokenizer was read from: one file, or tokenizer.json as it was put together from a directory's files."""
        return hash_file(self.path) if self.path.is_file() else xxhash.xxh3_128_hexdigest(_rebuilt(self.path))

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text. Raises InputError naming the text when it is not valid Unicode (a lone surrogate)."""
        try:
            ids = self._encode(texts)
        except (UnicodeEncodeError, TypeError) as error:
            bad = next((i for i, text in enumerate(texts) if not isinstance(text, str) or _surrogate(text)), None)
            if bad is None:
                raise
            raise InputError(fault(f"text {bad} of the batch cannot be encoded", where=self.path, found=str(error)[:120],
                                   expected="text without lone surrogates")) from error
        if self._check is not None and self._checked < CHECKED_DOCUMENTS:
            count = min(len(texts), CHECKED_DOCUMENTS - self._checked)
            reference = self._check(texts[:count])
            if any(not np.array_equal(a, b) for a, b in zip(ids, reference, strict=False)):
                self.notes.append("tiktoken gave other ids than the tokenizers library; the library is used instead")
                self.engine, self._encode, self._check = "tokenizers", self._check, None
                return self._encode(texts)
            self._checked += count
        return ids

    def encode(self, text: str) -> Ids:
        """The ids of one text."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; special tokens are shown by their names."""
        return self._decode([int(i) for i in ids])

    def ids_that_end(self, characters: str) -> list[int]:
        """Every id whose text ends in one of `characters` (a sentence's end, a line's end)."""
        return [i for i in range(self.vocab_size) if (text := self._decode([i]).rstrip(" ")) and text[-1] in characters]


def load_encoder(path: Path, *, special_tokens: bool = True, threads: int = 1, engine: str | None = None) -> Encoder:
    """The encoder of a tokenizer directory (or of one tokenizer.json / .model file, which may be gzipped).

    special_tokens: text that spells a special token (`<|endoftext|>`) becomes its id, as the libraries do; False
    encodes it as ordinary text. threads: of tiktoken and tokenizers. engine: the one to use, unchecked (what an encoder of another process
    found to be right).
    Raises InputError when there is no tokenizer or it is damaged.
    """
    folder = path if path.is_dir() else path.parent
    file = _tokenizer_file(path)
    if file is None:
        return _from_spec(_rebuilt(path), path, folder, special_tokens=special_tokens, threads=threads, engine=engine)
    if file.name.startswith("tokenizer.json") or file.suffix == ".json":
        with open_text_bytes(file) as handle:
            return _from_spec(handle.read(), file, folder, special_tokens=special_tokens, threads=threads, engine=engine)
    return _from_sentencepiece(file, folder, special_tokens=special_tokens, threads=threads)


def _tokenizer_file(path: Path) -> Path | None:
    """The file an engine reads as it is, or None for a layout that tokenizer.json has to be made from first."""
    if path.is_file():
        return None if path.name.removesuffix(".gz").endswith((".tiktoken", ".txt")) else path
    if not path.is_dir():
        raise InputError(fault("no such tokenizer", where=path))
    for name in ("tokenizer.json", "tokenizer.json.gz", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.model"))
    return found[0] if len(found) == 1 else None


def _rebuilt(path: Path) -> bytes:
    """tokenizer.json for `vocab.json` + `merges.txt` (GPT-2, CPM-like), tiktoken ranks (Qwen) or WordPiece's `vocab.txt`."""
    from penjing.tokenizer.read import read_vocabulary
    from penjing.tokenizer.write import fast_json

    return json.dumps(fast_json(read_vocabulary(path)), ensure_ascii=False).encode()


def _from_spec(raw: bytes, file: Path, folder: Path, *, special_tokens: bool, threads: int, engine: str | None) -> Encoder:
    import tokenizers

    try:
        spec = json.loads(raw)
        library = tokenizers.Tokenizer.from_str(raw.decode())
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        raise InputError(fault("not readable as a tokenizer", where=file, found=str(error)[:200])) from error
    library.no_truncation()
    library.no_padding()
    for item in spec.get("added_tokens") or []:
        item["id"] = library.token_to_id(item["content"])  # the library renumbers ids that leave a gap
    added = {item["content"]: int(item["id"]) for item in spec.get("added_tokens") or []}
    size = 1 + max([*library.get_vocab(with_added_tokens=True).values(), 0])

    def by_library(texts: Sequence[str]) -> list[Ids]:
        encoded = library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.fromiter(ids := item.ids, np.int32, len(ids)) for item in encoded]

    if not special_tokens:
        library.encode_special_tokens = True
    fast = None
    if engine != "tokenizers":
        fast = _tiktoken(spec, by_library, special_tokens=special_tokens, threads=threads)
    if fast is not None and any(not np.array_equal(a, b) for a, b in zip(fast(PROBE), by_library(PROBE), strict=True)):
        fast = None
    if engine == "tiktoken" and fast is None:
        raise InputError(fault("tiktoken cannot stand in for this tokenizer", where=file, expected="byte-level BPE"))
    bos, eos = _ends(folder, added, library.token_to_id)
    return Encoder(path=file, engine="tiktoken" if fast is not None else "tokenizers", vocab_size=size, eos_id=eos,
                   bos_id=bos, special=added, _encode=fast or by_library,
                   _check=by_library if fast is not None and engine is None else None,
                   _decode=lambda ids: str(library.decode(list(ids), skip_special_tokens=False)))


def _tiktoken(spec: dict[str, Any], by_library: Encode, *, special_tokens: bool, threads: int) -> Encode | None:
    """An encoder by tiktoken, or None when the tokenizer does something tiktoken cannot."""
    import tiktoken

    model = spec.get("model") or {}
    if model.get("type") not in (None, "BPE") or not model.get("merges") or model.get("byte_fallback"):
        return None
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    pattern = _split_pattern(spec.get("pre_tokenizer"))
    form = _normal_form(spec.get("normalizer"))
    if pattern is None or form is None:
        return None
    added = [item for item in spec.get("added_tokens") or [] if special_tokens or not item.get("special", True)]
    if any(item.get("lstrip") or item.get("rstrip") or item.get("single_word") for item in added):
        return None
    vocab: dict[str, int] = model["vocab"]
    ranks = _ranks(vocab, model["merges"])
    if ranks is None:
        return None
    order = list(ranks)
    to_id = np.empty(len(order) + len(added), np.int32)
    to_id[: len(order)] = [vocab.get(_spell(piece), -1) for piece in order]
    specials = {}
    for place, item in enumerate(added, len(order)):
        specials[item["content"]] = place
        to_id[place] = item["id"]
    # tiktoken tries specials in no set order, so where one begins another ("  ", "   ") the longest is cut out here.
    nested = any(a != b and b.startswith(a) for a in specials for b in specials)
    cut = re.compile("|".join(re.escape(text) for text in sorted(specials, key=len, reverse=True))) if nested else None
    if model.get("ignore_merges") and set(vocab) - {item["content"] for item in added} - set(map(_spell, order)):
        return None
    try:
        encoding = tiktoken.Encoding("own", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
    except ValueError:
        return None
    allowed: Any = "all" if specials else set()

    def one(text: str) -> Ids:
        if form and not unicodedata.is_normalized(form, text):
            if any(special in text for special in specials):
                return by_library([text])[0]  # the library finds specials before it normalises
            text = unicodedata.normalize(form, text)
        try:
            return split(text)
        except UnicodeEncodeError:
            raise
        except ValueError:
            # tiktoken's regular expressions run out of stack on, say, a million spaces; the library's do not.
            return by_library([text])[0]

    def split(text: str) -> Ids:
        if cut is None:
            ids: Ids = to_id[encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())]
            return ids
        parts, end = [], 0
        for match in cut.finditer(text):
            if match.start() > end:
                parts.append(encoding.encode_to_numpy(text[end : match.start()], disallowed_special=()))
            parts.append(np.array([specials[match.group()]], np.uint32))
            end = match.end()
        if end < len(text):
            parts.append(encoding.encode_to_numpy(text[end:], disallowed_special=()))
        return to_id[np.concatenate(parts)] if parts else np.zeros(0, np.int32)

    def encode(texts: Sequence[str]) -> list[Ids]:
        if threads <= 1 or len(texts) < 2:
            return [one(text) for text in texts]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, texts))

    return encode


def _ranks(vocab: dict[str, int], merges: Sequence[Any]) -> dict[bytes, int] | None:
    """tiktoken's ranks (piece -> priority) from merges in their order; None when the pieces are not plain bytes."""
    letters = _byte_letters()
    ranks: dict[bytes, int] = {}
    try:
        for letter, byte in letters.items():
            if letter not in vocab and byte not in _NEVER_IN_UTF8:
                return None
            ranks[bytes([byte])] = len(ranks)
        for merge in merges:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            piece = bytes(letters[c] for c in left + right)
            if left + right not in vocab:
                return None
            ranks.setdefault(piece, len(ranks))
    except (KeyError, ValueError):
        return None
    return ranks


def _split_pattern(node: dict[str, Any] | None) -> str | None:
    """The one regular expression that a pre-tokenizer splits by, or None when it is not byte-level by one
    expression."""
    if node is None:
        return None
    parts = node["pretokenizers"] if node.get("type") == "Sequence" else [node]
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    if len(parts) == 1:
        return GPT2_PATTERN if parts[0].get("use_regex", True) else None
    first = parts[0]
    if len(parts) == 2 and first.get("type") == "Split" and first.get("behavior") == "Isolated":
        pattern = first.get("pattern", {})
        if not parts[1].get("use_regex", True) and not first.get("invert") and "Regex" in pattern:
            return str(pattern["Regex"])
    return None


def _normal_form(node: dict[str, Any] | None) -> Any:
    """"" for no normaliser, the Unicode form for one that only does that, None for anything else."""
    if node is None:
        return ""
    if node.get("type") in ("NFC", "NFD", "NFKC", "NFKD"):
        return str(node["type"])
    if node.get("type") == "Sequence" and len(node.get("normalizers", [])) <= 1:
        inner = node.get("normalizers", [])
        return _normal_form(inner[0]) if inner else ""
    return None


def _byte_letters() -> dict[str, int]:
    """GPT-2's printable letter for each byte, the other way round."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
"""Bytes that no text holds; a vocabulary may lack them."""
_LETTER_OF = {byte: letter for letter, byte in _byte_letters().items()}


def _spell(piece: bytes) -> str:
    return "".join(_LETTER_OF[byte] for byte in piece)


def _from_sentencepiece(file: Path, folder: Path, *, special_tokens: bool, threads: int) -> Encoder:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    with open_text_bytes(file) as handle:
        raw = handle.read()
    try:
        processor.LoadFromSerializedProto(raw)
    except RuntimeError as error:
        raise InputError(fault("not readable as a SentencePiece model", where=file, found=str(error)[:200])) from error
    added = _added_tokens(folder) or _implied_tokens(folder, raw)
    size = 1 + max([processor.GetPieceSize() - 1, *added.values()])
    outside = {text: number for text, number in added.items() if number >= processor.GetPieceSize()}

    as_arrays = getattr(processor, "EncodeAsNumpy", None)  # newer releases: int32 without a list of Python numbers between

    def plain(texts: Sequence[str]) -> list[Ids]:
        if as_arrays is not None:
            return list(as_arrays(list(texts), num_threads=threads))
        return [np.fromiter(ids, np.int32, len(ids)) for ids in processor.Encode(list(texts), num_threads=threads)]

    def split(texts: Sequence[str]) -> list[Ids]:
        cuts = [_split_at(text, outside) for text in texts]
        flat = plain([part for cut in cuts for part in cut if isinstance(part, str)])
        found, at = [], 0
        for cut in cuts:
            parts: list[Ids] = []
            for part in cut:
                if isinstance(part, str):
                    parts.append(flat[at])
                    at += 1
                else:
                    parts.append(np.array([part], np.int32))
            found.append(np.concatenate(parts) if parts else np.zeros(0, np.int32))
        return found

    def decode(ids: Sequence[int]) -> str:
        names = {number: text for text, number in outside.items()}
        text = ""
        run: list[int] = []
        for number in ids:
            if number in names or not 0 <= number < processor.GetPieceSize():
                text += processor.Decode(run) + names.get(number, f"<{number}>")
                run = []
            else:
                run.append(number)
        return text + str(processor.Decode(run))

    controls = {processor.IdToPiece(i): i for i in range(min(processor.GetPieceSize(), 1 << 20))
                if processor.IsControl(i)}
    bos, eos = processor.bos_id(), processor.eos_id()
    listed_bos, listed_eos = _ends(folder, {**controls, **added}, lambda text: _piece(processor, text))
    return Encoder(path=file, engine="sentencepiece", vocab_size=size,
                   eos_id=listed_eos if listed_eos is not None else (eos if eos >= 0 else None),
                   bos_id=listed_bos if listed_bos is not None else (bos if bos >= 0 else None),
                   special={**controls, **_user_pieces(processor), **added},
                   _encode=split if special_tokens and outside else plain, _decode=decode)


def _split_at(text: str, tokens: dict[str, int]) -> list[str | int]:
    if not any(token in text for token in tokens):
        return [text]
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return [tokens.get(part, part) for part in re.split(f"({pattern})", text) if part]


def _piece(processor: Any, text: str) -> int | None:
    number = int(processor.PieceToId(text))
    return number if processor.IdToPiece(number) == text else None


def _user_pieces(processor: Any) -> dict[str, int]:
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(processor.serialized_model_proto())
    return {piece.piece: number for number, piece in enumerate(proto.pieces) if piece.type == piece.USER_DEFINED}


def _added_tokens(folder: Path) -> dict[str, int]:
    added: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        added |= {str(text): int(number) for text, number in read_json(folder / "added_tokens.json").items()}
    if (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        added |= {item["content"]: int(number) for number, item in decoder.items()}
    return added


def _implied_tokens(folder: Path, raw: bytes) -> dict[str, int]:
    """Sentinels and modes that T5's and OpenBA's tokenizer classes add without any file saying so."""
    from penjing.tokenizer.read import implied_tokens, read_model_proto

    tokens = implied_tokens(folder, read_model_proto(raw, where=str(folder)))
    return {str(token["content"]): int(token["id"]) for token in tokens}


def _ends(folder: Path, added: dict[str, int], look_up: Callable[[str], int | None]) -> tuple[int | None, int | None]:
    """Ids of bos and eos: what the directory's configuration names, else the usual names among the special tokens."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            for key in ("bos_token", "eos_token"):
                value = content.get(key)
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    named[key] = text
    found: list[int | None] = []
    for key, usual in (("bos_token", ("<s>", "<|begin_of_text|>", "<bos>")),
                       ("eos_token", ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<eop>"))):
        if key in named:
            number = added.get(named[key], look_up(named[key]))
        else:
            number = next((added[text] for text in usual if text in added), None)
        found.append(None if number is None else int(number))
    return found[0], found[1]


def _surrogate(text: str) -> bool:
    return any(0xD800 <= ord(c) <= 0xDFFF for c in text)
