"""Steps DP1 to DP11: from text as found to text of one form, in a known language. Batches in, batches out.

Not NFKC: it turns ，！（） into ASCII and 10² into 102. Text is brought to NFC, and only wide letters, digits and a few
signs are folded. Code passes with its layout: only control characters go.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penjing.data.document import SCHEMA
from penjing.data.encoding import REPLACEMENT_SHARE
from penjing.data.kernels import to_column, views
from penjing.data.kernels.characters import HAN, LATIN, REPLACEMENT
from penjing.data.kernels.rewrite import CAP, EDITS, NATURAL, SIMPLIFY, UNDECORATE, WIDTH, rewrite
from penjing.data.kernels.scan import scan
from penjing.data.language import Languages, identify

CODE = "code"
"""Language of documents from code sources."""
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


@dataclass(frozen=True)
class Settings:
    """What to do; names and defaults as in the normalise stage."""

    languages: tuple[str, ...] = ("zh", "en")
    min_score: tuple[tuple[str, float], ...] = (("zh", 0.3), ("en", 0.65))
    max_foreign_share: float | None = None
    simplify: bool = True
    remove_decoration: bool = True
    cap_punctuation: bool = True
    fold_width: bool = True
    unescape: bool = True
    code_sources: tuple[str, ...] = ()
    keep_traditional_sources: tuple[str, ...] = ()
    keep_decoration_sources: tuple[str, ...] = ()
    fence_code: bool = True
    max_document_bytes: int = 64 << 20


@dataclass(frozen=True)
class Normalised:
    """What became of a batch: the kept documents, the dropped ones (DROPPED_SCHEMA columns) and edits by step."""

    kept: pa.Table
    dropped: pa.Table
    edits: dict[str, dict[str, int]]
    """Step -> documents it changed and characters it changed or removed (as "bytes" they are counted by length
    change)."""


def normalise(table: pa.Table, settings: Settings) -> Normalised:
    """One batch of documents through DP1 to DP11."""
    sizes = pc.fill_null(pc.binary_length(table.column("text")), 0)
    fits = pc.less_equal(sizes, settings.max_document_bytes)
    if pc.all(fits).as_py() is not False:
        return _normalise(table, settings)
    result = _normalise(table.filter(fits), settings)
    large = table.filter(pc.invert(fits)).select(["id", "source", "text", "lang"])
    number = large.num_rows
    large = large.append_column("rule", pa.array(["DP1-size"] * number, pa.string()))
    large = large.append_column("value", sizes.filter(pc.invert(fits)).cast(pa.float64()))
    large = large.append_column("bound", pa.array([f"<= {settings.max_document_bytes} bytes"] * number, pa.string()))
    return Normalised(result.kept, pa.concat_tables([result.dropped, large.cast(result.dropped.schema)]), result.edits)


def _normalise(table: pa.Table, settings: Settings) -> Normalised:
    edits: dict[str, dict[str, int]] = {}
    data, offsets = views(table.column("text"))
    counts = scan(data, offsets, skip_fences=True)
    sources = np.array(table.column("source").to_pylist(), dtype=object)
    is_code = np.isin(sources, settings.code_sources) if settings.code_sources else np.zeros(len(table), bool)
    texts = to_column(data, offsets)
    odd = (counts[:, 15] != 0) & ~is_code
    if odd.any():
        changed = _repair(texts, np.flatnonzero(odd), settings, edits)
        if changed is not None:
            texts = changed
            data, offsets = views(texts)
            counts = scan(data, offsets, skip_fences=True)
    found = identify(data, offsets, counts, hints=table.column("lang").to_pylist(),
                     min_han_share=dict(settings.min_score).get("zh", 0.3))
    codes = np.array(found.codes, dtype=object)
    codes[is_code] = CODE
    plans = _plans(codes, sources, is_code, settings)
    new_data, new_offsets, changes = rewrite(data, offsets, plans)
    for column, step in enumerate(EDITS):
        hit = changes[:, column] > 0
        if hit.any():
            edits[step] = {"documents": int(hit.sum()), "bytes": int(changes[:, column].sum())}
    reasons = _reasons(codes, found, counts, is_code, np.diff(new_offsets), settings)
    new_text = to_column(new_data, new_offsets)
    meta = _meta(table.column("meta"), changes[:, EDITS.index("DP8-simplified")], counts[:, HAN])
    result = table.select(SCHEMA.names).set_column(3, "text", new_text)
    result = result.set_column(4, "lang", pa.array([code or None for code in codes], pa.string()))
    result = result.set_column(5, "meta", meta)
    keep = pa.array([reason is None for reason in reasons], pa.bool_())
    kept = result.filter(keep)
    if settings.fence_code and is_code.any():
        kept = _fence(kept)
    gone = [index for index, reason in enumerate(reasons) if reason is not None]
    dropped = table.select(["id", "source", "text"]).take(pa.array(gone, pa.int64()))
    dropped = dropped.append_column("lang", pa.array([codes[index] or None for index in gone], pa.string()))
    for position, name in enumerate(("rule", "value", "bound")):
        kind = pa.float64() if name == "value" else pa.string()
        values = [reason[position] for reason in reasons if reason is not None]
        dropped = dropped.append_column(name, pa.array(values, kind))
    return Normalised(kept, dropped, edits)


def _plans(codes: npt.NDArray[Any], sources: npt.NDArray[Any], is_code: npt.NDArray[np.bool_],
           settings: Settings) -> npt.NDArray[np.uint8]:
    plans = np.full(len(codes), NATURAL, np.uint8)
    if settings.fold_width:
        plans |= WIDTH
    if settings.cap_punctuation:
        plans |= CAP
    if settings.simplify:
        plans[(codes == "zh") & ~np.isin(sources, settings.keep_traditional_sources)] |= SIMPLIFY
    if settings.remove_decoration:
        plans[~np.isin(sources, settings.keep_decoration_sources)] |= UNDECORATE
    plans[is_code] = 0
    return plans


def _repair(texts: pa.Array, where: npt.NDArray[np.int64], settings: Settings,
            edits: dict[str, dict[str, int]]) -> pa.Array | None:
    """DP2 and the NFC part of DP5, for the few documents that need them; None when nothing changed."""
    new: dict[int, str] = {}
    for index, text in zip(where.tolist(), texts.take(pa.array(where)).to_pylist(), strict=True):
        fixed = text
        if settings.unescape and "&" in text and _ENTITY.search(text):
            for _ in range(2):
                fixed = _ENTITY.sub(lambda match: html.unescape(match[0]), fixed)
            if fixed != text:
                _note(edits, "DP2-entities", len(text) - len(fixed))
        if not unicodedata.is_normalized("NFC", fixed):
            composed = unicodedata.normalize("NFC", fixed)
            _note(edits, "DP5-nfc", len(fixed) - len(composed))
            fixed = composed
        if fixed != text:
            new[index] = fixed.replace("\0", "")
    if not new:
        return None
    mask = np.zeros(len(texts), bool)
    mask[list(new)] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(list(new.values()), pa.large_string()))


def _note(edits: dict[str, dict[str, int]], step: str, characters: int) -> None:
    item = edits.setdefault(step, {"documents": 0, "bytes": 0})
    item["documents"] += 1
    item["bytes"] += abs(characters)


def _reasons(codes: npt.NDArray[Any], found: Languages, counts: npt.NDArray[np.int64], is_code: npt.NDArray[np.bool_],
             sizes: npt.NDArray[np.int64], settings: Settings) -> list[tuple[str, float, str] | None]:
    """(rule, value, bound) of the first step that refuses each document, or None."""
    total = np.maximum(counts[:, :15].sum(1), 1)
    replaced = counts[:, REPLACEMENT] / total
    bounds = dict(settings.min_score)
    wanted = set(settings.languages) | ({CODE} if CODE in codes else set())
    text_letters = counts[:, HAN] + counts[:, LATIN]
    reasons: list[tuple[str, float, str] | None] = []
    for index, code in enumerate(codes):
        bound = bounds.get(code, 0.0)
        if sizes[index] == 0:
            reasons.append(("DP3-empty", 0.0, "> 0 bytes"))
        elif replaced[index] > REPLACEMENT_SHARE:
            reasons.append(("DP1-garbled", float(replaced[index]), f"<= {REPLACEMENT_SHARE:g} U+FFFD"))
        elif is_code[index]:
            reasons.append(None)
        elif code not in wanted:
            score = float(found.scores[index])
            reasons.append(("DP6-language", score, f"one of {', '.join(settings.languages)}"))
        elif found.scores[index] < bound and found.scores[index] != 0.5:
            reasons.append(("DP6-score", float(found.scores[index]), f">= {bound:g}"))
        elif code == "zh" and found.han_share[index] < bounds.get("zh", 0.3):
            reasons.append(("DP7-script", float(found.han_share[index]), f">= {bounds.get('zh', 0.3):g} Han"))
        elif settings.max_foreign_share is not None and found.foreign_share[index] > settings.max_foreign_share \
                and text_letters[index]:
            share = float(found.foreign_share[index])
            reasons.append(("DP7-foreign", share, f"<= {settings.max_foreign_share:g}"))
        else:
            reasons.append(None)
    return reasons


def _meta(meta: pa.ChunkedArray, changed: npt.NDArray[np.int64], han: npt.NDArray[np.int64]) -> pa.Array:
    """`meta` with the share of Han characters that became Simplified ("t2s"), where any did."""
    hit = np.flatnonzero(changed)
    values = meta.combine_chunks() if isinstance(meta, pa.ChunkedArray) else meta
    if not len(hit):
        return values
    new = []
    for index, old in zip(hit.tolist(), values.take(pa.array(hit)).to_pylist(), strict=True):
        known = json.loads(old or "{}")
        known["t2s"] = round(float(changed[index]) / max(1, int(han[index])), 4)
        new.append(json.dumps(known, ensure_ascii=False, sort_keys=True))
    mask = np.zeros(len(values), bool)
    mask[hit] = True
    return pc.replace_with_mask(values, pa.array(mask), pa.array(new, pa.string()))


def _fence(table: pa.Table) -> pa.Table:
    """DP11: code documents as one fenced block that names the programming language, where meta or the id tells it."""
    texts, metas = table.column("text").to_pylist(), table.column("meta").to_pylist()
    for index, code in enumerate(table.column("lang").to_pylist()):
        if code == CODE and not texts[index].lstrip().startswith("```"):
            known = json.loads(metas[index] or "{}")
            keys = ("programming_language", "language", "code_language")
            name = next((str(known[key]) for key in keys if key in known), "")
            mark = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`{3,}", texts[index])), default=0))
            texts[index] = f"{mark}{name.lower()}\n{texts[index].rstrip()}\n{mark}"
    return table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts, pa.large_string()))
