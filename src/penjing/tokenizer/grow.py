"""Which pieces to add: characters by frequency (Ziya2), Chinese words, or words of any kind, by the tokens they save.

A piece is worth what it saves: a character that was three byte tokens saves two per occurrence, a pair joined into a word
saves one. Characters and words are taken in the order of that gain until the size is reached.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from penjing.errors import InputError, fault
from penjing.tokenizer.build import Extension, refuse_wordpiece
from penjing.tokenizer.continued import PairCounts, train
from penjing.tokenizer.merges import flatten, run, table
from penjing.tokenizer.plan import NewPiece, VocabPlan, source_hash
from penjing.tokenizer.scripts import chinese_table, is_chinese
from penjing.tokenizer.vocabulary import Vocabulary, byte_spelling, piece_bytes

GrowKind = Literal["characters", "words", "all"]
MAX_PIECE_CHARACTERS = 8


@dataclass(frozen=True)
class Wish:
    """What to grow: how many rows there may be in the end, of which kind, seen how often at least."""

    size: int
    kind: GrowKind = "characters"
    min_count: int = 2
    pad_to_multiple: int = 1


def plan_growth(vocabulary: Vocabulary, characters: np.ndarray, runs: list[tuple[str, int]] | None, wish: Wish) -> VocabPlan:
    """A plan that adds pieces to a BPE vocabulary until it has `wish.size` ids.

    characters: int64 [0x110000], occurrences of each code point. runs: distinct runs of text with their counts, for kinds `words`
    and `all`. Raises InputError when the size is not above the present one or the corpus has nothing to add.
    """
    refuse_wordpiece(vocabulary)
    budget = wish.size - vocabulary.total
    if budget <= 0:
        raise InputError(fault("the size to grow to is not above the present one", where=vocabulary.name, found=wish.size,
                               expected=f"more than {vocabulary.total}"))
    new_characters = candidate_characters(vocabulary, characters, wish.min_count)
    if runs is not None:
        runs = normalised_runs(vocabulary, runs)
    if not new_characters and wish.kind == "characters":
        seen = int(characters[chinese_table()].sum())
        raise InputError(fault("no new characters to add", where=vocabulary.name,
                               found=f"{seen} Chinese characters in the corpus, all of them pieces already or seen fewer than "
                               f"{wish.min_count} times", expected="a corpus with the language to grow by"))
    if vocabulary.kind == "unigram":
        from penjing.tokenizer.unigram import plan_unigram_growth

        pieces = plan_unigram_growth(vocabulary, new_characters, runs, budget, wish.min_count)
    else:
        pieces = _plan_bpe(vocabulary, new_characters, runs, budget, wish)
    single = sum(len(readable(vocabulary, piece.piece)) == 1 for piece in pieces)
    notes = {"asked": wish.size, "pieces": wish.kind, "characters": single}
    return VocabPlan("grow", vocabulary.kind, source_hash(vocabulary), vocabulary.total, tuple(range(vocabulary.total)),
                     tuple(pieces), wish.pad_to_multiple, notes=notes)


def special_pieces(contents: Sequence[str]) -> list[NewPiece]:
    """Special tokens as pieces of a plan; `<extra_id_0..99>` is written out."""
    found: list[NewPiece] = []
    for content in contents:
        match = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)(.*)", content)
        names = [f"{match[1]}{number}{match[4]}" for number in range(int(match[2]), int(match[3]) + 1)] if match else [content]
        found += [NewPiece(name, 0, (), special=True) for name in names]
    return found


def only_special(vocabulary: Vocabulary, special: list[NewPiece], pad_to_multiple: int) -> VocabPlan:
    """A plan that adds special tokens and nothing else."""
    refuse_wordpiece(vocabulary)
    return VocabPlan("grow", vocabulary.kind, source_hash(vocabulary), vocabulary.total, tuple(range(vocabulary.total)),
                     tuple(special), pad_to_multiple, notes={"asked": "special tokens only"})


def candidate_characters(vocabulary: Vocabulary, characters: np.ndarray, min_count: int) -> list[tuple[str, int]]:
    """Chinese characters and punctuation that are no single piece, most frequent first, ties by code point."""
    points = np.flatnonzero(chinese_table() & (characters >= min_count))
    order = points[np.lexsort((points, -characters[points]))]
    found = [(chr(point), int(characters[point])) for point in order.tolist()]
    normalise = normaliser(vocabulary)
    return [(character, count) for character, count in found
            if spelling(vocabulary, character) not in vocabulary.ids and normalise(character) == character]


def normaliser(vocabulary: Vocabulary) -> Callable[[str], str]:
    """The tokenizer's own normalisation of a character, without the space it puts in front of a text."""
    import json

    from tokenizers import Tokenizer

    rules = vocabulary.layout.get("normalizer")
    if rules is None:
        return lambda text: text
    empty = {"version": "1.0", "normalizer": rules, "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    own = Tokenizer.from_str(json.dumps(empty)).normalizer
    return lambda text: str(own.normalize_str(text)).lstrip("▁")


def normalised_runs(vocabulary: Vocabulary, runs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The runs with every character as the tokenizer will see it."""
    normalise = normaliser(vocabulary)
    changed = {}
    for character in sorted({character for text, _ in runs for character in text if not character.isspace()}):
        normal = normalise(character)
        if normal != character:
            changed[ord(character)] = normal
    return [(text.translate(changed), count) for text, count in runs] if changed else runs


def spelling(vocabulary: Vocabulary, text: str) -> str:
    """Text as the tokenizer's files spell it."""
    return byte_spelling(text) if vocabulary.kind == "byte-bpe" else text.replace(" ", "▁")


def readable(vocabulary: Vocabulary, piece: str) -> str:
    """A piece as text; bytes that are no UTF-8 by themselves become replacement characters."""
    if vocabulary.kind != "byte-bpe":
        return piece.replace("▁", " ")
    return piece_bytes(piece).decode("utf-8", errors="replace")


def _plan_bpe(vocabulary: Vocabulary, new_characters: list[tuple[str, int]], runs: list[tuple[str, int]] | None, budget: int,
              wish: Wish) -> list[NewPiece]:
    words: list[tuple[str, int]] = []
    if wish.kind != "characters":
        assert runs is not None
        words = frequent_joins(vocabulary, new_characters, runs, budget, wish)
    extension = Extension(vocabulary)
    counts: dict[str, int] = {}
    for piece, count in _by_gain(vocabulary, new_characters, words):
        if len(extension.new) >= budget:
            break
        _add_with_path(extension, piece, count, counts, budget)
    return [NewPiece(piece, counts[piece], old) for piece, old in zip(extension.new, extension.expansions, strict=True)]


def _by_gain(vocabulary: Vocabulary, characters: list[tuple[str, int]], words: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Characters first, as far as they outweigh the words that the remaining rows would hold, then the words in merge order.

    Words keep their order of merging, which is also the order of falling counts, so that each finds its parts made.
    """
    trial = Extension(vocabulary)
    gains = [count * max(1, len(trial.expand(spelling(vocabulary, character))) - 1) for character, count in characters]
    needed = {character for word, _ in words for character in readable(vocabulary, word)}
    items = [(-gain, 0, at) for at, gain in enumerate(gains)] + [(-count, 1, at) for at, (_, count) in enumerate(words)]
    chosen = sorted(items)
    out: list[tuple[str, int]] = []
    given: set[str] = set()
    for _, which, at in chosen:
        if which == 0:
            character, count = characters[at]
            if character not in given:
                given.add(character)
                out.append((spelling(vocabulary, character), count))
            continue
        word, count = words[at]
        for character in readable(vocabulary, word):
            if character in needed and character not in given:
                own = next((item for item in characters if item[0] == character), None)
                given.add(character)
                if own is not None:
                    out.append((spelling(vocabulary, character), own[1]))
        out.append((word, count))
    return out


def _add_with_path(extension: Extension, piece: str, count: int, counts: dict[str, int], budget: int) -> None:
    """Add a piece, and before it the intermediate pieces of a byte-level spelling; nothing when it cannot be reached or fit."""
    if piece in extension.taken or piece in counts:
        return
    path: list[str] = []
    parts = extension.spell(piece)
    strings = [part if isinstance(part, str) else _name(extension, part) for part in parts]
    if len(piece) > 1:
        if len(parts) < 2 or any(isinstance(part, str) for part in parts):
            return
        path = ["".join(strings[:end]) for end in range(2, len(strings))]
    if len(extension.new) + len(path) + 1 > budget:
        return
    for step in (*path, piece):
        if extension.refusal(step) is not None:
            return
        extension.add(step)
        counts[step] = count


def _name(extension: Extension, index: int) -> str:
    size = len(extension.vocabulary)
    return extension.vocabulary.pieces[index] if index < size else extension.new[index - extension.first]


def frequent_joins(vocabulary: Vocabulary, new_characters: list[tuple[str, int]], runs: list[tuple[str, int]], limit: int,
                   wish: Wish) -> list[tuple[str, int]]:
    """Continued byte-pair training from the vocabulary with the new characters in it: (spelling, count) in merge order."""
    extension = Extension(vocabulary)
    budget = 1 << 60
    seen: dict[str, int] = {}
    for character, count in new_characters:
        _add_with_path(extension, spelling(vocabulary, character), count, seen, budget)
    strangers = extension.first + len(extension.new) + limit + 1
    symbols, offsets, weights = _symbols(vocabulary, extension, runs, strangers)
    allowed = _allowed(vocabulary, wish.kind)

    def join(left: int, right: int) -> int | None:
        piece = _name(extension, left) + _name(extension, right)
        known = extension.ids.get(piece)
        if known is not None:
            return known if known >= extension.first else None
        if not allowed(piece) or extension.refusal(piece) is not None:
            return None
        return extension.add(piece)

    pairs = PairCounts(symbols, offsets, weights, banned=strangers)
    made = train(pairs, join=join, limit=limit, min_count=max(2, wish.min_count))
    return [(_name(extension, index), count) for index, count in made]


def _symbols(vocabulary: Vocabulary, extension: Extension, runs: list[tuple[str, int]],
             strangers: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs as the vocabulary with its new characters would encode them; what it has no piece for becomes `strangers`."""
    singles = {piece: index for piece, index in extension.ids.items() if len(piece) == 1}
    spelled = (spelling(vocabulary, text) for text, _ in runs)
    symbols, offsets = flatten([singles.get(character, strangers) for character in piece] for piece in spelled)
    assert vocabulary.merges_M3 is not None and vocabulary.priority_M is not None
    appended = np.array(extension.appended, dtype=np.int64).reshape(-1, 4)
    merges = table(np.concatenate([vocabulary.merges_M3, appended[:, :3].astype(np.int32)]),
                   np.concatenate([vocabulary.priority_M, appended[:, 3]]))
    done = run(merges, symbols, offsets)
    return done.symbols, done.offsets_N1, np.array([count for _, count in runs], dtype=np.int64)


def _allowed(vocabulary: Vocabulary, kind: GrowKind) -> Callable[[str], bool]:
    def allowed(piece: str) -> bool:
        if vocabulary.kind == "byte-bpe":
            try:
                text = piece_bytes(piece).decode("utf-8")
            except UnicodeDecodeError:
                return kind == "all"
        else:
            text = piece.replace("▁", " ")
        if len(text) > MAX_PIECE_CHARACTERS and is_chinese(text):
            return False
        return kind == "all" or is_chinese(text)

    return allowed
