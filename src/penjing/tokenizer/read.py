"""Any tokenizer directory or file as a `Vocabulary`: SentencePiece `.model`, `tokenizer.json`, `vocab.json` + `merges.txt`,
tiktoken ranks, WordPiece `vocab.txt`; each also gzipped.
"""

from __future__ import annotations

import base64
import binascii
import copy
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.tokenizer import layouts
from penjing.tokenizer.merges import implied_merges
from penjing.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, byte_spelling, check

MODEL_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model")
"""Names under which checkpoints keep their SentencePiece file, looked for in this order."""


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer directory, a checkpoint directory or one tokenizer file.

    A SentencePiece model is the authority on pieces where there is one; `tokenizer.json` beside it gives the added tokens and
    the layout. Raises InputError when nothing is found or what is found cannot be right.
    """
    if path.is_file():
        return check(_read_file(path))
    if not path.is_dir():
        raise InputError(fault("no such tokenizer", where=path))
    fast = _first(path, ("tokenizer.json", "tokenizer.json.gz"))
    model = _first(path, MODEL_NAMES) or _only(path, "*.model")
    if model is not None:
        return check(_sentencepiece(model, _json(fast) if fast is not None else None, _added_beside(path)))
    if fast is not None:
        return check(_fast(_json(fast), str(fast)))
    if _first(path, ("vocab.json",)) and _first(path, ("merges.txt",)):
        return check(_gpt2(path / "vocab.json", path / "merges.txt", _added_beside(path)))
    ranks = _only(path, "*.tiktoken") or _only(path, "*.tiktoken.gz")
    if ranks is not None:
        return check(_tiktoken(ranks, _added_beside(path)))
    if (path / "vocab.txt").is_file():
        return check(_wordpiece(path / "vocab.txt"))
    raise InputError(fault("no tokenizer found", where=path, expected="tokenizer.model, spiece.model, tokenizer.json, "
                           "vocab.json with merges.txt, *.tiktoken or vocab.txt"))


def read_model_proto(data: bytes, *, where: str) -> Any:
    """A SentencePiece ModelProto; InputError when `data` is not one."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InputError(fault("not a SentencePiece model", where=where, found=f"{len(data)} bytes")) from error
    if not proto.pieces:
        raise InputError(fault("SentencePiece model without pieces", where=where))
    return proto


def _read_file(path: Path) -> Vocabulary:
    name = path.name.removesuffix(".gz")
    if name.endswith(".model"):
        return _sentencepiece(path, None, [])
    if name.endswith(".json") and name != "vocab.json":
        return _fast(_json(path), str(path))
    if name.endswith(".tiktoken"):
        return _tiktoken(path, [])
    if name.endswith(".txt"):
        return _wordpiece(path)
    raise InputError(fault("unknown tokenizer file", where=path,
                           expected="*.model, tokenizer.json, *.tiktoken or vocab.txt (or give the directory)"))


def _sentencepiece(path: Path, fast: dict[str, Any] | None, beside: list[dict[str, Any]]) -> Vocabulary:
    raw = _bytes(path)
    proto = read_model_proto(raw, where=str(path))
    if proto.trainer_spec.model_type not in (1, 2):
        raise InputError(fault("SentencePiece model type not supported", where=path, found={3: "word", 4: "char"}.get(
            proto.trainer_spec.model_type, proto.trainer_spec.model_type), expected="unigram or BPE"))
    if fast is None:
        return of_proto(proto, raw, name=str(path), beside=beside or implied_tokens(path.parent, proto))
    vocabulary = of_proto(proto, raw, name=str(path), added=fast["added_tokens"], layout=_without_vocabulary(fast))
    _agree(fast, vocabulary.pieces, path)
    return vocabulary


def of_proto(proto: Any, raw: bytes, *, name: str, beside: list[dict[str, Any]] | None = None,
             added: list[dict[str, Any]] | None = None, layout: dict[str, Any] | None = None) -> Vocabulary:
    """The vocabulary of a SentencePiece model; added tokens and layout are the model's own unless given."""
    pieces = tuple(piece.piece for piece in proto.pieces)
    types = np.array([piece.type for piece in proto.pieces], dtype=np.uint8)
    scores = np.array([piece.score for piece in proto.pieces], dtype=np.float64)
    bpe = proto.trainer_spec.model_type == 2
    merges, priority = implied_merges(pieces, types, scores) if bpe else (None, None)
    return Vocabulary("sentencepiece-bpe" if bpe else "unigram", pieces, types, scores, merges, priority, any_split=True,
                      byte_fallback=bool((types == BYTE).any()), proto=raw, name=name,
                      added=tuple(layouts.added_tokens(proto, beside or []) if added is None else added),
                      layout=layouts.sentencepiece(proto) if layout is None else layout)


def _fast(content: dict[str, Any], name: str) -> Vocabulary:
    model = content.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else None)
    added = tuple(content.get("added_tokens") or ())
    layout = _without_vocabulary(content)
    if kind == "Unigram":
        pieces = tuple(piece for piece, _ in model["vocab"])
        scores = np.array([score for _, score in model["vocab"]], dtype=np.float64)
        types = _types(pieces, added, unknown=model.get("unk_id"), byte_pieces=bool(model.get("byte_fallback")))
        return Vocabulary("unigram", pieces, types, scores, None, None, byte_fallback=bool(model.get("byte_fallback")),
                          added=added, layout=layout, name=name)
    if kind not in ("BPE", "WordPiece"):
        raise InputError(fault("tokenizer model not supported", where=name, found=kind, expected="BPE, Unigram or WordPiece"))
    pieces = _dense(model["vocab"], added, name)
    unknown = model["vocab"].get(model.get("unk_token")) if model.get("unk_token") is not None else None
    types = _types(pieces, added, unknown=unknown, byte_pieces=bool(model.get("byte_fallback")))
    if kind == "WordPiece":
        return Vocabulary("wordpiece", pieces, types, None, None, None, added=added, layout=layout, name=name)
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges = _listed_merges(model.get("merges") or [], ids, name)
    return Vocabulary("byte-bpe" if _is_byte_level(content) else "sentencepiece-bpe", pieces, types, None, merges,
                      np.arange(len(merges)), byte_fallback=bool(model.get("byte_fallback")),
                      ignore_merges=bool(model.get("ignore_merges")), added=added, layout=layout, name=name)


def _gpt2(vocab: Path, merges: Path, beside: list[dict[str, Any]]) -> Vocabulary:
    table = _json(vocab)
    lines = _bytes(merges).decode("utf-8").split("\n")
    listed = [line for line in lines if line and not line.startswith("#version")]
    content = {"model": {"type": "BPE", "vocab": table, "merges": listed}, "added_tokens":
               beside or layouts.gpt2_added_tokens(table), **layouts.byte_level()}
    return _fast(content, str(vocab))


def _tiktoken(path: Path, beside: list[dict[str, Any]]) -> Vocabulary:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_bytes(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise InputError(fault("not a line of tiktoken ranks", where=f"{path}:{number}", found=repr(line[:60]),
                                   expected="base64 and a number")) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InputError(fault("tiktoken ranks are not 0 … n - 1", where=path, found=f"{len(ranks)} entries, largest "
                               f"{max(ranks.values(), default=-1)}", expected="every rank once"))
    by_rank = [b""] * len(ranks)
    for raw, place in ranks.items():
        by_rank[place] = raw
    pieces = tuple(byte_spelling(raw) for raw in by_rank)
    types = np.full(len(pieces), NORMAL, dtype=np.uint8)
    merges, priority = implied_merges(pieces, types, -np.arange(len(pieces), dtype=np.float64))
    layout = layouts.tiktoken(path.name)
    added = tuple(beside or layouts.tiktoken_added_tokens(path.name, len(pieces)))
    return Vocabulary("byte-bpe", pieces, types, None, merges, priority, any_split=True, added=added, layout=layout,
                      name=str(path))


def _wordpiece(path: Path) -> Vocabulary:
    pieces = tuple(line.removesuffix("\r") for line in _bytes(path).decode("utf-8").removesuffix("\n").split("\n"))
    types = np.array([CONTROL if piece.startswith("[") and piece.endswith("]") and len(piece) > 2 else NORMAL
                      for piece in pieces], dtype=np.uint8)
    if "[UNK]" in pieces:
        types[pieces.index("[UNK]")] = UNKNOWN
    return Vocabulary("wordpiece", pieces, types, None, None, None, layout=layouts.wordpiece(), name=str(path))


def _types(pieces: tuple[str, ...], added: tuple[dict[str, Any], ...], *, unknown: int | None, byte_pieces: bool) -> np.ndarray:
    types = np.full(len(pieces), NORMAL, dtype=np.uint8)
    for token in added:
        if token["id"] < len(pieces):
            types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if byte_pieces:
        names = {f"<0x{byte:02X}>" for byte in range(256)}
        for index, piece in enumerate(pieces):
            if piece in names:
                types[index] = BYTE
    if unknown is not None:
        types[unknown] = UNKNOWN
    return types


def _dense(vocab: dict[str, int], added: tuple[dict[str, Any], ...], name: str) -> tuple[str, ...]:
    """Pieces by id; holes and ids out of range are refused."""
    if len(set(vocab.values())) != len(vocab):
        raise InputError(fault("two pieces share one id", where=name, found=f"{len(vocab)} pieces",
                               expected=f"{len(vocab)} different ids, not {len(set(vocab.values()))}"))
    size = max(vocab.values()) + 1
    pieces: list[str | None] = [None] * size
    for piece, index in vocab.items():
        pieces[index] = piece
    for token in added:
        if token["id"] < size and pieces[token["id"]] is None:
            pieces[token["id"]] = token["content"]
    holes = [index for index, piece in enumerate(pieces) if piece is None]
    if holes:
        raise InputError(fault("ids without a piece", where=name, found=f"{len(holes)} holes, the first at {holes[0]}",
                               expected=f"ids 0 … {size - 1} without holes"))
    return tuple(piece for piece in pieces if piece is not None)


def _listed_merges(listed: list[Any], ids: dict[str, int], name: str) -> np.ndarray:
    merges = np.empty((len(listed), 3), dtype=np.int32)
    for rank, entry in enumerate(listed):
        left, right = entry.split(" ") if isinstance(entry, str) else entry
        try:
            merges[rank] = ids[left], ids[right], ids[left + right]
        except KeyError as error:
            raise InputError(fault(f"merge {rank} joins {left!r} and {right!r} but {error.args[0]!r} is not a piece", where=name,
                                   expected="both parts and the joined piece in the vocabulary")) from error
    return merges


def _agree(fast: dict[str, Any], pieces: tuple[str, ...], path: Path) -> None:
    """Refuse a tokenizer.json whose pieces are not those of the SentencePiece model beside it."""
    vocab = fast["model"]["vocab"]
    table = vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
    for index, piece in enumerate(pieces):
        if table.get(piece, index) != index or (piece not in table and len(table) >= len(pieces)):
            raise InputError(fault(f"{path.name} and tokenizer.json disagree on {piece!r}", where=path.parent,
                                   found=f"id {index} and {table.get(piece)}", expected="the same ids in both files"))


def _is_byte_level(content: dict[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])


def _without_vocabulary(content: dict[str, Any]) -> dict[str, Any]:
    layout = {key: copy.deepcopy(value) for key, value in content.items() if key not in ("model", "added_tokens")}
    layout["model"] = {key: value for key, value in content["model"].items() if key not in ("vocab", "merges")}
    return layout


def _added_beside(directory: Path) -> list[dict[str, Any]]:
    """Added tokens that only tokenizer_config.json or added_tokens.json know of."""
    found: dict[int, dict[str, Any]] = {}
    config = directory / "tokenizer_config.json"
    if config.is_file():
        for index, token in (_json(config).get("added_tokens_decoder") or {}).items():
            found[int(index)] = layouts.added_token(int(index), **{key: token[key] for key in token if key != "__type"})
    extra = directory / "added_tokens.json"
    if extra.is_file():
        for content, index in _json(extra).items():
            found.setdefault(index, layouts.added_token(index, content=content, special=False))
    return [found[index] for index in sorted(found)]


def implied_tokens(directory: Path, proto: Any) -> list[dict[str, Any]]:
    """Tokens behind the pieces that T5's and OpenBA's tokenizer classes add without any file saying so.

    `<extra_id_99>` … `<extra_id_0>`, and for OpenBA the modes `<R>`, `<S>`, `<X>` and the line break.
    """
    config = _json(directory / "tokenizer_config.json") if (directory / "tokenizer_config.json").is_file() else {}
    name = str(config.get("tokenizer_class", ""))
    if not config and (directory / "config.json").is_file() and _json(directory / "config.json").get("model_type") == "t5":
        name = "T5Tokenizer"  # what AutoTokenizer takes for such a model
    number = int(config.get("extra_ids", 100 if name.startswith(("T5Tokenizer", "OpenBATokenizer")) else 0))
    contents = [f"<extra_id_{index}>" for index in reversed(range(number))]
    if name.startswith("OpenBATokenizer"):
        contents += ["<R>", "<S>", "<X>", *(["\n"] if config.get("add_newline", True) else [])]
    known = {piece.piece for piece in proto.pieces}
    return [layouts.added_token(len(proto.pieces) + offset, content=content)
            for offset, content in enumerate(content for content in contents if content not in known)]


def _first(directory: Path, names: tuple[str, ...]) -> Path | None:
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _only(directory: Path, pattern: str) -> Path | None:
    found = sorted(directory.glob(pattern))
    if len(found) > 1:
        raise InputError(fault("more than one tokenizer file", where=directory, found=", ".join(file.name for file in found),
                               expected="one", fix="name the file itself"))
    return found[0] if found else None


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def _json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(fault("not readable as JSON", where=path, found=str(error))) from error
