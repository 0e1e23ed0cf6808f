"""A set of keys in a few bits each, at the price of a known chance to claim a key that was never added.

Each such mistake deletes a document that has no copy, so the filter says how many to expect: the sum, over all insertions, of the
chance at that moment. Sized by m = -n ln p / (ln 2)^2 bits and k = (m / n) ln 2 probes, probed by double hashing of a
128-bit key.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from penjing.errors import InputError, fault

VERSION = 2


@dataclass
class Bloom:
    """`words` (bits / 64,) uint64, `probes` per key, `keys` added so far, `wrongful` expected false claims so far."""

    words: np.ndarray
    probes: int
    keys: int = 0
    wrongful: float = 0.0
    rate: float = field(default=1e-4)

    @property
    def bits(self) -> int:
        """Bits in the filter."""
        return len(self.words) * 64

    def add(self, keys: np.ndarray) -> np.ndarray:
        """(N,) bool: whether each key (N, 2) uint64 seemed to be there already; afterwards all are."""
        seen, fresh, wrongful = _add(self.words, keys, self.probes, self.keys, self.wrongful)
        self.keys += int(fresh)
        self.wrongful = float(wrongful)  # summed one key after the other, however many calls bring them
        return seen

    def save(self, path: Path) -> None:
        """Write the filter with all it needs to go on."""
        about = {
            "version": VERSION,
            "probes": self.probes,
            "keys": self.keys,
            "wrongful": self.wrongful,
            "rate": self.rate,
        }
        # one entry, because the library writes several in an order that changes from run to run
        save_file({"words": self.words}, path, metadata={"about": json.dumps(about)})


def bloom(capacity: int, *, rate: float = 1e-4) -> Bloom:
    """An empty filter in which, once `capacity` keys are added, a new key is wrongly claimed with probability `rate`."""
    bits = max(64, math.ceil(-max(capacity, 1) * math.log(rate) / math.log(2) ** 2))
    words = np.zeros((bits + 63) // 64, np.uint64)
    return Bloom(
        words, max(1, round(len(words) * 64 / max(capacity, 1) * math.log(2))) if capacity > 8 else 13, rate=rate
    )


def load_bloom(path: Path) -> Bloom:
    """A saved filter; InputError when the file is not one."""
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("version") != VERSION:
                raise InputError(
                    fault("not a filter this version reads", where=path, found=f"version {about.get('version')}")
                )
            words = file.get_tensor("words")
    except (OSError, SafetensorError) as error:
        raise InputError(fault("not a saved filter", where=path, found=error)) from error
    return Bloom(words, int(about["probes"]), int(about["keys"]), float(about["wrongful"]), float(about["rate"]))


@njit(cache=True, nogil=True)
def _add(words, keys, probes, already, wrongful):  # type: ignore[no-untyped-def]
    bits = np.uint64(len(words) * 64)
    seen = np.zeros(len(keys), np.bool_)
    fresh = 0
    for i in range(len(keys)):
        chance = (1.0 - np.exp(-probes * float(already + fresh) / float(bits))) ** probes
        h = keys[i, 0]
        step = keys[i, 1] | np.uint64(1)
        there = True
        for _ in range(probes):
            bit = h % bits
            mask = np.uint64(1) << (bit & np.uint64(63))
            if words[bit >> np.uint64(6)] & mask == 0:
                there = False
                words[bit >> np.uint64(6)] |= mask
            h += step
        seen[i] = there
        if not there:
            fresh += 1
            wrongful += chance
    return seen, fresh, wrongful
