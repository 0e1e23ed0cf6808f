"""The vocabulary that a plan describes: pieces, scores and merges of the result, and the contract checked while making it.

Growing appends pieces below every old one (scores under the minimum, merges behind all others). Then the old segmentation is
always reached first and a new piece only joins whole old tokens, so that expanding new ids gives exactly the old ids. One thing
could break this: a new piece that, joined with a neighbour, spells an *old* piece; such pieces are refused. Pruning keeps, with a
piece, both parts of its last merge, and so by induction the whole of its own merge path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.tokenizer import layouts
from penjing.tokenizer.merges import MergeTree, has_ties, merge_tree
from penjing.tokenizer.plan import NewPiece, VocabPlan, fits
from penjing.tokenizer.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary


def build(vocabulary: Vocabulary, plan: VocabPlan) -> Vocabulary:
    """The result of `plan` on `vocabulary`; InputError when the plan does not fit it or breaks its own contract."""
    fits(plan, vocabulary)
    if plan.operation == "grow":
        grown, made = extend(vocabulary, plan.new)
        for planned, expansion in zip(plan.new, made, strict=True):
            if planned.old and planned.old != expansion:
                raise InputError(fault(f"new piece {planned.piece!r} is not made of the old tokens the plan names",
                                       found=list(planned.old), expected=list(expansion)))
        return grown
    return subset(vocabulary, plan.kept)


class Extension:
    """A BPE vocabulary being extended piece by piece, with the merges needed to spell each new piece."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        assert vocabulary.merges_M3 is not None and vocabulary.priority_M is not None
        self.vocabulary = vocabulary
        self.first = vocabulary.total
        self.ids = {piece: index for piece, index in vocabulary.ids.items()
                    if vocabulary.types_V[index] in (NORMAL, USER_DEFINED, UNUSED)}
        self.taken = {*vocabulary.pieces, *(str(token["content"]) for token in vocabulary.added)}
        self.new: list[str] = []
        self.expansions: list[tuple[int, ...]] = []
        self._old: dict[tuple[int, int], tuple[int, int]] = {}
        for (left, right, joined), priority in zip(vocabulary.merges_M3.tolist(), vocabulary.priority_M.tolist(), strict=True):
            self._old.setdefault((left, right), (priority, joined))
        self._all = dict(self._old)
        self._ranked: dict[tuple[int, int], tuple[int, int]] | None = None
        if has_ties(vocabulary):
            self._ranked = {}
            for rank, (left, right, joined) in enumerate(vocabulary.merges_M3.tolist()):
                self._ranked.setdefault((left, right), (rank, joined))
        self._next = int(vocabulary.priority_M.max(initial=-1)) + 1
        self._affixes = _affixes(vocabulary) if vocabulary.proto is not None else frozenset()
        self.appended: list[tuple[int, int, int, int]] = []

    def refusal(self, piece: str) -> str | None:
        """Why `piece` may not be added, or None."""
        if not piece:
            return "it is empty"
        if piece in self.taken or piece in self.ids:
            return "it is a piece already"
        if len(piece) > 1 and piece in self._affixes:
            return "with a neighbour it would spell an old piece, which the old tokenizer did not produce there"
        parts = self.spell(piece)
        if len(piece) > 1 and (len(parts) != 2 or any(isinstance(part, str) for part in parts)):
            return f"it is {len(parts)} tokens when its turn comes; add what lies between first"
        if self._ranked is not None and (self._merged(piece, self._ranked, self.first)
                                         != self._merged(piece, self._old, self.first)):
            return "the .model and tokenizer.json settle equal scores differently in it"
        return None

    def add(self, piece: str) -> int:
        """Append `piece`; its id. InputError with the reason when that is not possible."""
        reason = self.refusal(piece)
        if reason is not None:
            raise InputError(fault(f"piece {piece!r} cannot be added: {reason}", where=self.vocabulary.name))
        index = self.first + len(self.new)
        if len(piece) > 1:
            left, right = self.spell(piece)
            assert isinstance(left, int) and isinstance(right, int)
            self._merge(left, right, index)
            if self.vocabulary.proto is not None:
                for cut in range(1, len(piece)):
                    pair = (self.ids.get(piece[:cut]), self.ids.get(piece[cut:]))
                    if pair[0] is not None and pair[1] is not None and pair != (left, right):
                        self._merge(pair[0], pair[1], index)
            self._next += 1
        self.expansions.append(self.expand(piece))
        self.ids[piece] = index
        self.new.append(piece)
        return index

    def expand(self, piece: str) -> tuple[int, ...]:
        """Old ids of a spelling under the old vocabulary; unknown characters become their byte pieces or the unknown piece."""
        old = self.vocabulary
        out: list[int] = []
        for part in self.spell(piece, old=True):
            if isinstance(part, int):
                out.append(part)
            else:
                out.extend(fallback(old, part))
        return tuple(out)

    def spell(self, piece: str, *, old: bool = False) -> list[int | str]:
        """What `piece` merges to, by the old merges only or by all so far; characters without a piece stay strings."""
        return self._merged(piece, self._old, self.first) if old else self._merged(piece, self._all, 1 << 60)

    def _merged(self, piece: str, merges: dict[tuple[int, int], tuple[int, int]], limit: int) -> list[int | str]:
        symbols: list[int | str] = []
        for character in piece:
            index = self.ids.get(character)
            symbols.append(character if index is None or index >= limit else index)
        while len(symbols) > 1:
            best: tuple[int, int] | None = None
            at = -1
            for i in range(len(symbols) - 1):
                found = merges.get((symbols[i], symbols[i + 1]))  # type: ignore[arg-type]
                if found is not None and (best is None or found[0] < best[0]):
                    best, at = found, i
            if best is None:
                break
            symbols[at: at + 2] = [best[1]]
        return symbols

    def _merge(self, left: int, right: int, joined: int) -> None:
        if (left, right) not in self._all:
            self._all[left, right] = (self._next, joined)
            self.appended.append((left, right, joined, self._next))


def extend(vocabulary: Vocabulary, new: Sequence[NewPiece]) -> tuple[Vocabulary, list[tuple[int, ...]]]:
    """`vocabulary` with `new` appended in order, special tokens last, and the old ids each is made of (none for special ones)."""
    plain = [item for item in new if not item.special]
    special = [item.piece for item in new if item.special]
    if any(item.special for item in new[: len(plain)]):
        raise InputError(fault("special tokens come after all other new pieces", where=vocabulary.name,
                               found=f"{special[0]!r} before {plain[-1].piece!r}"))
    if vocabulary.kind == "unigram":
        from penjing.tokenizer.unigram import extend_unigram

        result, expansions = extend_unigram(vocabulary, plain)
    else:
        refuse_wordpiece(vocabulary)
        extension = Extension(vocabulary)
        for item in plain:
            extension.add(item.piece)
        result, expansions = grown(vocabulary, extension), extension.expansions
    return (with_special(result, special), [*expansions, *(() for _ in special)]) if special else (result, expansions)


def with_special(vocabulary: Vocabulary, contents: Sequence[str]) -> Vocabulary:
    """`vocabulary` with special tokens at its end: control pieces in a `.model`, added tokens in `tokenizer.json`."""
    taken = {*vocabulary.pieces, *(str(token["content"]) for token in vocabulary.added)}
    for index, content in enumerate(contents):
        if not content or content in taken or content in contents[:index]:
            raise InputError(fault(f"special token {content!r} cannot be added: it is there already", where=vocabulary.name))
    first = len(vocabulary)
    scores = None if vocabulary.scores_V is None else np.concatenate([vocabulary.scores_V, np.zeros(len(contents))])
    result = replace(vocabulary, pieces=(*vocabulary.pieces, *contents), scores_V=scores,
                     types_V=np.concatenate([vocabulary.types_V, np.full(len(contents), CONTROL, dtype=np.uint8)]),
                     added=(*vocabulary.added, *(layouts.added_token(first + at, content=content)
                                                 for at, content in enumerate(contents))))
    return replace(result, proto=proto_of(result))


def grown(vocabulary: Vocabulary, extension: Extension) -> Vocabulary:
    """The vocabulary an extension arrived at. Ids between the pieces and the first new one (added tokens, holes) are filled."""
    assert vocabulary.merges_M3 is not None and vocabulary.priority_M is not None
    pieces, types = filled(vocabulary)
    count = len(extension.new)
    scores = None
    if vocabulary.scores_V is not None:
        scores = np.concatenate([vocabulary.scores_V, np.zeros(len(pieces) - len(vocabulary)),
                                 scores_below(vocabulary, count)])
    merges, priority = vocabulary.merges_M3, vocabulary.priority_M
    if extension.appended:
        appended = np.array(extension.appended, dtype=np.int64)
        merges = np.concatenate([merges, appended[:, :3].astype(np.int32)])
        priority = np.concatenate([priority, appended[:, 3]])
    result = replace(vocabulary, pieces=(*pieces, *extension.new), scores_V=scores, merges_M3=merges, priority_M=priority,
                     types_V=np.concatenate([types, np.full(count, NORMAL, dtype=np.uint8)]))
    return replace(result, proto=proto_of(result))


def subset(vocabulary: Vocabulary, kept: tuple[int, ...]) -> Vocabulary:
    """`vocabulary` with only the old ids in `kept`, renumbered in their old order.

    Raises InputError when a special piece is missing, or when a kept piece lacks a part of its own merge path.
    """
    refuse_wordpiece(vocabulary)
    keep = set(kept)
    missing = sorted(vocabulary.special_ids - keep)
    if missing:
        raise InputError(fault("special, control and byte pieces are always kept", where=vocabulary.name, found=f"{len(missing)} "
                               f"of them missing from the plan, the first {vocabulary.text(missing[0])!r} (id {missing[0]})"))
    strangers = [index for index in kept if not 0 <= index < vocabulary.total]
    if strangers:
        raise InputError(fault("the plan keeps ids that do not exist", where=vocabulary.name, found=strangers[0],
                               expected=f"below {vocabulary.total}"))
    if vocabulary.merges_M3 is not None:
        broken = unclosed(vocabulary, merge_tree(vocabulary), keep)
        if broken:
            index, part = broken[0]
            raise InputError(fault(f"{len(broken)} kept pieces lack a part of their own merge path", where=vocabulary.name,
                                   found=f"{vocabulary.text(index)!r} (id {index}) without {vocabulary.text(part)!r} (id {part})",
                                   fix="keep the part or drop the piece"))
    return gather(vocabulary, kept)


def gather(vocabulary: Vocabulary, kept: tuple[int, ...]) -> Vocabulary:
    """The subset itself, unchecked: what top-k by frequency alone gives, for comparison."""
    new_id = np.full(vocabulary.total, -1, dtype=np.int64)
    new_id[np.array(sorted(kept), dtype=np.int64)] = np.arange(len(kept))
    at = np.array([index for index in sorted(kept) if index < len(vocabulary)], dtype=np.int64)
    merges, priority = vocabulary.merges_M3, vocabulary.priority_M
    if merges is not None and priority is not None:
        mapped = new_id[merges]
        whole = (mapped >= 0).all(axis=1)
        merges, priority = mapped[whole].astype(np.int32), priority[whole]
    added = tuple({**token, "id": int(new_id[token["id"]])} for token in vocabulary.added)
    result = replace(vocabulary, pieces=tuple(vocabulary.pieces[index] for index in at.tolist()), types_V=vocabulary.types_V[at],
                     scores_V=None if vocabulary.scores_V is None else vocabulary.scores_V[at], merges_M3=merges,
                     priority_M=priority, added=added, layout=renumber_layout(vocabulary.layout, new_id))
    return replace(result, proto=proto_of(result))


def unclosed(vocabulary: Vocabulary, tree: MergeTree, keep: set[int]) -> list[tuple[int, int]]:
    """Pairs (kept piece, missing part of its last merge)."""
    broken = []
    for index in sorted(keep):
        if index >= len(vocabulary) or vocabulary.types_V[index] != NORMAL:
            continue
        for part in tree.parts(index):
            if part < len(vocabulary) and part not in keep:
                broken.append((index, part))
    return broken


def fallback(vocabulary: Vocabulary, character: str) -> list[int]:
    """Ids of a character that has no piece: its bytes, or the unknown piece."""
    if vocabulary.byte_fallback:
        found = [vocabulary.ids.get(f"<0x{byte:02X}>") for byte in character.encode()]
        if all(index is not None for index in found):
            return [index for index in found if index is not None]
    unknown = np.flatnonzero(vocabulary.types_V == 2)
    return [int(unknown[0])] if len(unknown) else []


def scores_below(vocabulary: Vocabulary, count: int) -> np.ndarray:
    """`count` falling scores under every score of a normal piece, apart by two float32 steps so that each stays distinct."""
    assert vocabulary.scores_V is not None
    normal = vocabulary.scores_V[vocabulary.types_V == NORMAL]
    lowest = float(np.float32(normal.min(initial=0.0)))
    step = max(1.0, 2.0 * float(np.spacing(np.float32(abs(lowest) * 2 + count))))
    return lowest - step * np.arange(1, count + 1, dtype=np.float64)


def filled(vocabulary: Vocabulary) -> tuple[list[str], np.ndarray]:
    """Pieces and types up to the first free id: added tokens become control or user-defined pieces, holes unused ones."""
    by_id = {int(token["id"]): token for token in vocabulary.added}
    pieces, types = list(vocabulary.pieces), vocabulary.types_V.tolist()
    for index in range(len(pieces), vocabulary.total):
        token = by_id.get(index)
        pieces.append(str(token["content"]) if token is not None else f"<reserved_{index}>")
        types.append(UNUSED if token is None else CONTROL if token.get("special") else USER_DEFINED)
    return pieces, np.array(types, dtype=np.uint8)


def refuse_wordpiece(vocabulary: Vocabulary) -> None:
    """WordPiece vocabularies are read for counting; nothing here changes them."""
    if vocabulary.kind == "wordpiece":
        raise InputError(fault("a WordPiece vocabulary can be counted but not grown or pruned", where=vocabulary.name,
                               expected="SentencePiece BPE or unigram, or byte-level BPE"))


def renumber_layout(layout: dict[str, Any], new_id: np.ndarray) -> dict[str, Any]:
    """Every token id that the post-processor or the model stores, mapped."""
    return layouts.renumber(layout, lambda index: int(new_id[index]))


def _affixes(vocabulary: Vocabulary) -> frozenset[str]:
    """Proper prefixes and suffixes, longer than one character, of old pieces."""
    out: set[str] = set()
    for index, piece in enumerate(vocabulary.pieces):
        if vocabulary.types_V[index] in (NORMAL, USER_DEFINED):
            out.update(piece[:cut] for cut in range(2, len(piece)))
            out.update(piece[cut:] for cut in range(1, len(piece) - 1))
    return frozenset(out)


def proto_of(vocabulary: Vocabulary) -> bytes | None:
    """The SentencePiece model of the new pieces, everything else as it was; None when there was none."""
    if vocabulary.proto is None:
        return None
    from penjing.tokenizer.read import read_model_proto

    assert vocabulary.scores_V is not None
    proto = read_model_proto(vocabulary.proto, where=vocabulary.name)
    ids = {"unk_id": proto.trainer_spec.unk_id, "bos_id": proto.trainer_spec.bos_id, "eos_id": proto.trainer_spec.eos_id,
           "pad_id": proto.trainer_spec.pad_id}
    names = {key: proto.pieces[index].piece for key, index in ids.items() if 0 <= index < len(proto.pieces)}
    del proto.pieces[:]
    for piece, score, kind in zip(vocabulary.pieces, vocabulary.scores_V.tolist(), vocabulary.types_V.tolist(), strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.vocab_size = len(vocabulary.pieces)
    for key, name in names.items():
        setattr(proto.trainer_spec, key, vocabulary.ids[name])
    return bytes(proto.SerializeToString(deterministic=True))
