"""A file that is one document, or one table, taken whole up to a limit."""

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
