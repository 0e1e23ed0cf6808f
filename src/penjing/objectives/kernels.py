"""The compiled loops of this room. Imported inside functions, so that settings can be checked without loading numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)
def blend(weights: NDArray[np.float64], steps: int) -> NDArray[np.int32]:
    """Megatron's rule: at step i the source with the largest w*max(i,1) - count, the first of equals."""
    counts = np.zeros(len(weights))
    chosen = np.empty(steps, np.int32)
    for i in range(steps):
        scale = max(i, 1)
        best, best_error = 0, weights[0] * scale - counts[0]
        for k in range(1, len(weights)):
            error = weights[k] * scale - counts[k]
            if error > best_error:
                best, best_error = k, error
        chosen[i] = best
        counts[best] += 1
    return chosen


@njit(cache=True)
def best_fit(sizes: NDArray[np.int32], order: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int32], int]:
    """Bin of every item: items in `order`, each into the bin with the least room that still holds it, else a new bin.

    Bins with equal room form a linked list per room; a bit set over rooms finds the next room >= size 64 at a time.
    """
    bins = np.empty(len(sizes), np.int32)
    head = np.full(capacity + 1, -1, np.int32)
    following = np.full(len(sizes), -1, np.int32)
    words = np.zeros(capacity // 64 + 2, np.uint64)
    one = np.uint64(1)
    opened = 0
    for item in order:
        size = sizes[item]
        word = size >> 6
        bits = words[word] & (~np.uint64(0) << np.uint64(size & 63))
        while bits == 0 and word < len(words) - 1:
            word += 1
            bits = words[word]
        if bits != 0:
            room = word << 6
            while bits & one == 0:
                bits >>= one
                room += 1
            bin_id = head[room]
            head[room] = following[bin_id]
            if head[room] < 0:
                words[room >> 6] &= ~(one << np.uint64(room & 63))
        else:
            room = capacity
            bin_id = opened
            opened += 1
        bins[item] = bin_id
        rest = room - size
        if rest > 0:
            following[bin_id] = head[rest]
            head[rest] = bin_id
            words[rest >> 6] |= one << np.uint64(rest & 63)
    return bins, opened


@njit(cache=True)
def sample_sizes(length: int, tail: int, density: float, mean_span: int, prefix: int, most: int) -> tuple[int, int]:
    """(encoder ids, labels) of a denoiser's sample of `length` tokens; mean_span 0 is S-denoising with that tail."""
    if mean_span == 0:
        return prefix + length - tail + 2, tail + 2
    if length <= 1:
        return prefix + 2, length + 2
    noise = min(max(int(np.rint(length * density)), 1), length - 1)
    spans = max(int(np.rint(noise / mean_span)), 1)
    spans = min(min(spans, noise), min(length - noise, most))
    return prefix + length - noise + spans + 1, noise + spans + 1


@njit(cache=True)
def _next(state: NDArray[np.uint64]) -> float:
    """splitmix64: the next number in [0, 1)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True)
def plan_block(
    runs: NDArray[np.int64], shares: NDArray[np.float64], density: NDArray[np.float64], mean_span: NDArray[np.int64],
    encoder: int, decoder: int, rows: int, nominal: int, shortest: int, prefix: int, most: int, seed: int,
) -> tuple[NDArray[np.int64], int]:
    """Lay the tokens of `runs` (documents, in order) as denoiser samples into `rows` rows of encoder x decoder ids.

    Each step takes the next piece of the current document, for the denoiser that is furthest behind its share. Its
    length is the one with which a low- and a high-density sample together would fill what is left of both sides (two
    equations), in pieces of about `nominal` tokens. decoder = 0: one side only, input and labels behind each other.
    Gives pieces [row, offset, length, denoiser, tail] and the number of tokens laid; what is left over did not fit.
    """
    kinds = len(shares)
    state = np.array([np.uint64(seed)], np.uint64)
    one_sided = decoder == 0
    rate_e, rate_d, fixed_e, fixed_d = np.zeros(kinds), np.zeros(kinds), np.zeros(kinds), np.zeros(kinds)
    low = np.zeros(kinds, np.bool_)
    served = np.zeros(kinds)
    for i in range(kinds):
        if mean_span[i] == 0:
            rate_e[i], rate_d[i] = 1 - density[i] / 2, density[i] / 2
            fixed_e[i], fixed_d[i] = prefix + 2, 2
        else:
            per = density[i] / mean_span[i]
            rate_e[i], rate_d[i] = 1 - density[i] + per, density[i] + per
            fixed_e[i], fixed_d[i] = prefix + 1, 1
        low[i] = one_sided or rate_e[i] * decoder >= rate_d[i] * encoder
        served[i] = (_next(state) - 0.5) * nominal
    out = np.empty((len(runs) + 64 * rows + 64, 5), np.int64)
    count, laid, run, used = 0, 0, 0, 0.0
    left = runs[0] if len(runs) else 0
    for row in range(rows):
        room_e, room_d = encoder, decoder
        while run < len(runs):
            if left == 0:
                run += 1
                if run < len(runs):
                    left = runs[run]
                continue
            best_low, best_high, behind_low, behind_high, surplus = -1, -1, -1e300, -1e300, 0.0
            for i in range(kinds):
                if shares[i] <= 0:
                    continue
                behind = shares[i] * (used + nominal) - served[i]
                if low[i]:
                    if behind > behind_low:
                        best_low, behind_low = i, behind
                else:
                    surplus += served[i] - shares[i] * used
                    if behind > behind_high:
                        best_high, behind_high = i, behind
            kind, want = -1, 0.0
            if one_sided:
                kind = best_low
                want = (room_e - fixed_e[kind] - fixed_d[kind] + 1) / (rate_e[kind] + rate_d[kind])
            elif best_low >= 0 and best_high >= 0:
                a, b = best_low, best_high
                det = rate_e[a] * rate_d[b] - rate_e[b] * rate_d[a]
                e, d = room_e - fixed_e[a] - fixed_e[b], room_d - fixed_d[a] - fixed_d[b]
                want_low, want_high = (e * rate_d[b] - d * rate_e[b]) / det, (d * rate_e[a] - e * rate_d[a]) / det
                if want_low >= shortest and want_high >= shortest:
                    take_high = surplus <= 0
                else:
                    take_high = want_high > want_low
                if take_high and surplus > nominal:
                    take_high = False
                elif not take_high and surplus < -nominal:
                    take_high = True
                kind = b if take_high else a
                want = want_high if take_high else want_low
                if want_low < shortest or want_high < shortest or want < shortest:
                    want = min((room_e - fixed_e[kind]) / rate_e[kind], (room_d - fixed_d[kind]) / rate_d[kind])
            else:
                kind = best_low if best_low >= 0 else best_high
                want = min((room_e - fixed_e[kind]) / rate_e[kind], (room_d - fixed_d[kind]) / rate_d[kind])
            if want > nominal:
                want = want / np.ceil(want / nominal)
            length = min(int(want), left)
            if left - length < shortest and left < length + shortest:
                length = left
            tail = 0
            if mean_span[kind] == 0 and not one_sided and room_d > 2:
                # S-denoising may split anywhere in its range, so as the row's last sample it fills both sides to the brim.
                whole = room_e - prefix - 2 + room_d - 2
                longest = max(min(int(np.rint(density[kind] * whole)), whole - 1), 1)
                if whole <= left and whole <= 3 * nominal // 2 and room_d - 2 <= longest and room_e > prefix + 2:
                    length, tail = whole, room_d - 2
            while length > 0:
                if mean_span[kind] == 0:
                    longest = max(min(int(np.rint(density[kind] * length)), length - 1), 1)
                    if tail == 0 or tail > longest:
                        tail = 1 + int(_next(state) * longest)
                    if not one_sided and tail > room_d - 2:
                        tail = max(room_d - 2, 1)
                size_e, size_d = sample_sizes(length, tail, density[kind], mean_span[kind], prefix, most)
                over = size_e + size_d - 1 - room_e if one_sided else max(size_e - room_e, size_d - room_d)
                if over <= 0:
                    break
                length -= max(over // 2, 1)
            if length < min(shortest, left) or length <= 0:
                break
            if count == len(out):
                bigger = np.empty((2 * len(out), 5), np.int64)
                bigger[:count] = out[:count]
                out = bigger
            out[count, 0], out[count, 1], out[count, 2], out[count, 3], out[count, 4] = row, laid, length, kind, tail
            count += 1
            room_e -= size_e + size_d - 1 if one_sided else size_e
            room_d -= 0 if one_sided else size_d
            served[kind] += length
            used += length
            laid += length
            left -= length
    return out[:count], laid


@njit(cache=True)
def take_out(tokens: NDArray[np.integer], text: NDArray[np.int64], masked: NDArray[np.int64], sentinels: NDArray[np.int64],
             encoder: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    """Alternating runs of text and of masked tokens, laid into the encoder's and the labels' places with their sentinels."""
    at, e, d = 0, 0, 0
    for j in range(len(text)):
        for _ in range(text[j]):
            encoder[e] = tokens[at]
            e += 1
            at += 1
        encoder[e] = sentinels[j]
        labels[d] = sentinels[j]
        e += 1
        d += 1
        for _ in range(masked[j]):
            labels[d] = tokens[at]
            d += 1
            at += 1


@njit(cache=True)
def mark(places: NDArray[np.int64], widths: NDArray[np.int64], goal: int, chosen: NDArray[np.bool_]) -> None:
    """Set runs of `widths` at `places`, in their order, until `goal` positions are set."""
    count = 0
    for i in range(len(places)):
        if count >= goal:
            break
        for place in range(places[i], min(places[i] + widths[i], len(chosen))):
            if not chosen[place]:
                chosen[place] = True
                count += 1


@njit(cache=True)
def fill_blanks(tokens: NDArray[np.integer], spans: NDArray[np.int64], order: NDArray[np.int64], mask: int, start: int, end: int,
                flat: bool, going_on: bool, nothing: int) -> tuple[NDArray[np.int64], int]:
    """GLM's sample: rows [ids, targets, positions, block positions], and how many ids are part A."""
    count, masked = len(spans), 0
    for j in range(count):
        masked += spans[j, 1] - spans[j, 0]
    out = np.empty((4, len(tokens) + 2 * count), np.int64)
    places = np.empty(count, np.int64)
    at, end_a = 0, 0
    for j in range(count + 1):
        stop = spans[j, 0] if j < count else len(tokens)
        while at < stop:
            out[0, end_a] = tokens[at]
            at += 1
            end_a += 1
        if j < count:
            out[0, end_a] = mask
            places[j] = end_a
            end_a += 1
            at = spans[j, 1]
    out[1, :end_a] = nothing
    out[2, :end_a] = np.arange(end_a)
    out[3, :end_a] = 0
    put = end_a
    for j in order:
        out[0, put] = start
        size = spans[j, 1] - spans[j, 0]
        for i in range(size):
            out[0, put + 1 + i] = tokens[spans[j, 0] + i]
            out[1, put + i] = tokens[spans[j, 0] + i]
        out[1, put + size] = end
        for i in range(size + 1):
            out[2, put + i] = put + i if going_on else places[j]
            out[3, put + i] = 0 if flat else 1 + i
        put += size + 1
    return out, end_a


@njit(cache=True)
def plan_ids(plan: NDArray[np.int64], density: NDArray[np.float64], mean_span: NDArray[np.int64], prefix: int,
             most: int) -> NDArray[np.int64]:
    """(encoder ids, labels) of every piece of a plan."""
    sizes = np.empty((len(plan), 2), np.int64)
    for i in range(len(plan)):
        kind = plan[i, 3]
        sizes[i, 0], sizes[i, 1] = sample_sizes(plan[i, 2], plan[i, 4], density[kind], mean_span[kind], prefix, most)
    return sizes


@njit(cache=True)
def vector_fit(encoder: NDArray[np.int32], decoder: NDArray[np.int32], order: NDArray[np.int64], room_e: int, room_d: int,
               pool: int, balance: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items by row, and where each row ends: a row takes, among the next `pool` items of `order`, the best, until none fits.

    The best is, with balance 0, the one whose two sizes point most along the room that is left (largest dot product); else
    the largest, less `balance` times the difference it leaves between the two sides.
    """
    total = len(order)
    items, edges = np.empty(total, np.int64), np.zeros(total + 1, np.int64)
    held, size_e, size_d = np.empty(pool, np.int64), np.empty(pool, np.float64), np.empty(pool, np.float64)
    filled, taken, laid, rows = 0, 0, 0, 0
    while laid < total:
        left_e, left_d = room_e, room_d
        while True:
            while filled < pool and taken < total:
                held[filled] = order[taken]
                size_e[filled], size_d[filled] = encoder[order[taken]] / room_e, decoder[order[taken]] / room_d
                filled += 1
                taken += 1
            share_e, share_d = left_e / room_e, left_d / room_d
            best, best_score = -1, -1e300
            for place in range(filled):
                if balance == 0:
                    score = size_e[place] * share_e + size_d[place] * share_d
                else:
                    gap = abs((share_e - size_e[place]) - (share_d - size_d[place]))
                    score = size_e[place] + size_d[place] - balance * gap
                if score > best_score and encoder[held[place]] <= left_e and decoder[held[place]] <= left_d:
                    best, best_score = place, score
            if best < 0:
                break
            item = held[best]
            items[laid] = item
            laid += 1
            left_e -= encoder[item]
            left_d -= decoder[item]
            filled -= 1
            held[best], size_e[best], size_d[best] = held[filled], size_e[filled], size_d[filled]
        rows += 1
        edges[rows] = laid
    return items, edges[: rows + 1]
