"""A file that is one document, or one table, taken whole up to a limit; or its decompressed bytes as a stream."""

from __future__ import annotations

from collections.abc import Iterator

from penjing.data.readers import Damage, Options
from penjing.data.readers.stream import Cut, blocks, open_bytes


def read_whole(name: str, options: Options) -> tuple[bytes | None, list[Damage]]:
    """(decompressed bytes up to the end or to where the file is damaged, what was damaged); no bytes when there are more than
    `max_record_bytes`, and then no more than that was held."""
    data = bytearray()
    damage: list[Damage] = []
    with open_bytes(name) as file:
        for block in blocks(file):
            if isinstance(block, Cut):
                damage.append(Damage(name, block.offset, block.what))
                break
            data += block
            if len(data) > options.max_record_bytes:
                return None, [Damage(name, 0, f"record longer than {options.max_record_bytes} bytes", len(data))]
    return bytes(data), damage


def read_stretches(name: str, damage: list[Damage]) -> Iterator[bytes]:
    """The decompressed blocks of a file; what is damaged is put into `damage` and ends them."""
    with open_bytes(name) as file:
        for block in blocks(file):
            if isinstance(block, Cut):
                damage.append(Damage(name, block.offset, block.what))
                return
            yield block


class Unpacked:
    """A file's decompressed bytes for libraries that want to `read` a stream; what is damaged ends them and is kept in `damage`."""

    def __init__(self, name: str) -> None:
        self.damage: list[Damage] = []
        self._stretches = read_stretches(name, self.damage)
        self._held = b""

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than `size` only at the end."""
        parts = [self._held]
        held = len(self._held)
        while held < size:
            stretch = next(self._stretches, None)
            if stretch is None:
                break
            parts.append(stretch)
            held += len(stretch)
        data = b"".join(parts)
        self._held = data[size:]
        return data[:size]
