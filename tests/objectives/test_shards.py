"""Token shards: Megatron's bytes, 64-bit offsets, and errors that name file and offset."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import InputError
from penjing.objectives import openba_index, shards
from penjing.objectives.shards import ShardWriter, append, dtype_for, files_of, merge, open_shard, verify
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.objectives.tokens import adopt, open_tokens, write_tokens


def write(prefix: Path, *documents, dtype="<u2"):
    with ShardWriter(prefix, dtype=np.dtype(dtype)) as writer:
        for document in documents:
            writer.add(*(np.array(part) for part in document))
    return open_shard(prefix)


def lists(shard):
    return [[part.tolist() for part in shard.document(i)] for i in range(shard.documents)]


def test_index_has_the_stock_bytes(tmp_path):
    write(tmp_path / "a.b", [[5, 6, 7]], [[8], [9, 1]])
    expected = (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 3, 3) + struct.pack("<3i", 3, 1, 2) + struct.pack("<3q", 0, 6, 8)
                + struct.pack("<3q", 0, 1, 3))
    assert (tmp_path / "a.b.idx").read_bytes() == expected
    assert (tmp_path / "a.b.bin").read_bytes() == struct.pack("<6H", 5, 6, 7, 8, 9, 1)


def test_what_is_written_is_read(tmp_path):
    documents = [[[1, 2, 3]], [[4], [5, 6]], [[]], [[7]]]
    assert lists(write(tmp_path / "a", *documents)) == documents
    assert lists(write(tmp_path / "b", *documents, dtype="<i4")) == documents
    assert lists(write(tmp_path / "none")) == []


def test_dtype_follows_megatron_s_rule():
    assert [dtype_for(size).name for size in (100, 65499, 65500, 250000)] == ["uint16", "uint16", "int32", "int32"]


def test_merge_and_append_keep_order_and_documents(tmp_path):
    write(tmp_path / "a", [[1]], [[2], [3]])
    write(tmp_path / "b", [[4, 5]])
    assert lists(merge([tmp_path / "a", tmp_path / "b", tmp_path / "a"], tmp_path / "c")) == [
        [[1]], [[2], [3]], [[4, 5]], [[1]], [[2], [3]]]
    assert lists(append(tmp_path / "a", tmp_path / "b")) == [[[1]], [[2], [3]], [[4, 5]]]


def test_offsets_do_not_wrap_beyond_2_gib():
    lengths = np.full(5, 300_000_000, np.int32)
    index = shards.index_bytes(np.dtype("<i4"), lengths, np.arange(6))
    offsets = np.frombuffer(index, "<i8", 5, shards.HEADER.size + 20)
    assert offsets.tolist() == [i * 1_200_000_000 for i in range(5)]


def test_a_sparse_shard_beyond_2_gib_is_read_at_its_end(tmp_path):
    lengths = np.array([1_100_000_000, 3], np.int64)
    prefix = tmp_path / "big"
    files_of(prefix)[1].write_bytes(shards.index_bytes(np.dtype("<u2"), lengths, np.arange(3)))
    with files_of(prefix)[0].open("wb") as file:
        file.seek(2_200_000_000)
        file.write(struct.pack("<3H", 7, 8, 9))
    assert open_shard(prefix).sequence(1).tolist() == [7, 8, 9]


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "a", dtype=np.dtype("<u2")) as writer:
        writer.add(np.array([1, 2]))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_mixed_dtypes_on_merge(tmp_path):
    write(tmp_path / "a", [[1]])
    write(tmp_path / "b", [[1]], dtype="<i4")
    with pytest.raises(InputError) as error:
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert str(error.value) == (f"{tmp_path}/b.idx: shards of different dtypes cannot be merged; found int32; expected uint16; "
                                "tokenise both for the same vocabulary size")
    assert not (tmp_path / "c.bin").exists()


def test_an_id_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.bin: an id does not fit the shard's dtype; found 70000; expected 0 to 65535"):
        write(tmp_path / "a", [[70000]])


def test_wrong_magic(tmp_path):
    write(tmp_path / "a", [[1]])
    (tmp_path / "a.idx").write_bytes(b"TNTIDX\0\0" + bytes(40))
    with pytest.raises(InputError) as error:
        open_shard(tmp_path / "a")
    assert str(error.value) == (f"{tmp_path}/a.idx: wrong magic at byte 0; found b'TNTIDX\\x00\\x00\\x00'; "
                                "expected b'MMIDIDX\\x00\\x00'; this is not a Megatron memory-mapped index")


@pytest.mark.parametrize("damage, said", [
    (lambda b, i: b.write_bytes(b.read_bytes()[:-2]), r"a\.bin: token file is cut short; found 4 bytes; expected 6 bytes"),
    (lambda b, i: i.write_bytes(i.read_bytes()[:20]), r"a\.idx: index is cut short inside its header; found 20 bytes"),
    (lambda b, i: i.write_bytes(i.read_bytes()[:-4]), r"a\.idx: index has the wrong size for its header; found 78 bytes"),
    (lambda b, i: i.write_bytes(i.read_bytes()[:17] + b"\x06" + i.read_bytes()[18:]), r"no integer dtype at byte 17; found cod"),
    (lambda b, i: i.write_bytes(i.read_bytes()[:9] + b"\x02" + i.read_bytes()[10:]), r"unknown index version at byte 9; found 2"),
    (lambda b, i: b.unlink(), r"a\.bin: file not found"),
])
def test_damage_is_named(tmp_path, damage, said):
    write(tmp_path / "a", [[1, 2]], [[3]])
    damage(*files_of(tmp_path / "a"))
    with pytest.raises(InputError, match=said):
        open_shard(tmp_path / "a")


def test_verify_names_the_id_beyond_the_vocabulary(tmp_path):
    write(tmp_path / "a", [[1, 2]], [[3, 99]])
    with pytest.raises(InputError) as error:
        verify(tmp_path / "a", vocab_size=99)
    assert str(error.value) == (f"{tmp_path}/a.bin: id beyond the vocabulary at byte 6; found 99; expected 0 to 98; "
                                "these tokens were made with another tokenizer")


def test_verify_finds_one_changed_byte(tmp_path):
    tokens = write_tokens(tmp_path, {"a": [([1, 2, 3],)]}, vocab_size=10, eos_id=1)
    tokens.verify()
    data = bytearray((tmp_path / "a.bin").read_bytes())
    data[2] ^= 1
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.bin: checksum differs"):
        open_tokens(tmp_path).verify()


def test_verify_finds_an_offset_outside(tmp_path):
    write(tmp_path / "a", [[1, 2]], [[3]])
    raw = bytearray((tmp_path / "a.idx").read_bytes())
    raw[42:50] = struct.pack("<q", 400)
    (tmp_path / "a.idx").write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.idx: sequence 0 points outside the token file, at byte 42; found bytes 400 to 404"):
        verify(tmp_path / "a")


def test_unfinished_tokens_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokens\.json here; expected a finished tokens directory"):
        open_tokens(tmp_path)


def test_shards_made_elsewhere_are_adopted(tmp_path):
    write(tmp_path / "a", [[1, 2, 3]], [[4], [5, 6]])
    write(tmp_path / "b", [[7], [1]], [[8, 9], [1]])
    tokens = adopt(tmp_path / "out", {"web": tmp_path / "a", "qa": tmp_path / "b"}, vocab_size=100, eos_id=1)
    tokens.verify()
    assert {name: item["kind"] for name, item in tokens.sources.items()} == {"web": "text", "qa": "supervised"}
    batch = build_stream(StreamConfig(sequence_length=8, batch_rows=2, sources={"web": 1}), tokens.path).batch(0)
    assert sorted(set(batch.tokens_BS.ravel().tolist())) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="id beyond the vocabulary at byte 2; found 2; expected 0 to 1"):
        adopt(tmp_path / "bad", {"web": tmp_path / "a"}, vocab_size=2, eos_id=1)


OPENBA = ("4d4d49444944580000 0100000000000000 04 0400000000000000 0100000000000000 0100000000000000 03000000 00000000 02000000 "
          "02000000 0000000000000000 0c00000000000000 0c00000000000000 1400000000000000 0000000000000000 0100000000000000")


def test_openba_index_has_the_bytes_of_the_original(tmp_path):
    pairs = [(np.array([5, 6, 7]), np.array([], np.int64)), (np.array([8, 9]), np.array([10, 1]))]
    found = openba_index.write_pairs(tmp_path / "p", pairs, vocab_size=250204)
    assert (tmp_path / "p.idx").read_bytes() == bytes.fromhex(OPENBA)
    assert [[side.tolist() for side in found.pair(i)] for i in range(2)] == [[[5, 6, 7], []], [[8, 9], [10, 1]]]
    assert found.span_corruption.tolist() == [0] and found.multitask.tolist() == [1]


def test_openba_pairs_merge_and_become_stock(tmp_path):
    pairs = [(np.array([5, 6, 7]), np.array([], np.int64)), (np.array([8, 9]), np.array([10, 1]))]
    openba_index.write_pairs(tmp_path / "p", pairs, vocab_size=250204)
    merged = openba_index.merge_pairs([tmp_path / "p", tmp_path / "p"], tmp_path / "q")
    assert merged.span_corruption.tolist() == [0, 2] and merged.multitask.tolist() == [1, 3]
    assert merged.pair(3)[1].tolist() == [10, 1]
    openba_index.to_stock(tmp_path / "q", tmp_path / "stock", eos_id=1)
    assert lists(open_shard(tmp_path / "stock-text")) == [[[5, 6, 7]], [[5, 6, 7]]]
    assert lists(open_shard(tmp_path / "stock-tasks")) == [[[8, 9], [10, 1]]] * 2


def test_stock_index_is_not_taken_for_openba_s(tmp_path):
    write(tmp_path / "a", [[1, 2]], [[3]])
    with pytest.raises(InputError, match="not an OpenBA index of pairs"):
        openba_index.open_pairs(tmp_path / "a")


def test_megatron_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    torch = pytest.importorskip("torch")
    documents = [[[1, 2, 3]], [[4], [5, 6]], [[7]]]
    write(tmp_path / "ours", *documents, dtype="<i4")
    found = indexed.IndexedDataset(str(tmp_path / "ours"), mmap=True)
    assert [found[i].tolist() for i in range(4)] == [[1, 2, 3], [4], [5, 6], [7]]
    assert found.document_indices.tolist() == [0, 1, 3, 4]
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for document in documents:
        for part in document:
            builder.add_item(torch.tensor(part, dtype=torch.int32))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()
    assert lists(open_shard(tmp_path / "theirs")) == documents
