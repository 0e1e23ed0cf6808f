"""An OpenBA tokenizer out of a trained one: published ids, unchanged segmentation, the same ids by every library."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from transformers import AutoTokenizer

from penjing.contract import Estimate, Job
from penjing.data.document import CorpusWriter, documents
from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.models.openba import OpenBATokenizer
from penjing.objectives.special import find_special, openba_special
from penjing.stages import openba_tokenizer, train_tokenizer
from penjing.tokenizer.encode import load_encoder
from penjing.tokenizer.read import read_vocabulary

TEXTS = ["盆景是中国的艺术。\n第二行：春天！", "def f(x):\n    return x  # 12 + 7\n\n", "naïve café 🙂 \t tab", "  two  spaces ", "a\nb"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A unigram and a BPE tokenizer trained on the Chinese prose that comes with penjing."""
    root = tmp_path_factory.mktemp("openba-tokenizer")
    lines = resources.files("penjing.samples").joinpath("prose_zh_a.jsonl").read_text(encoding="utf-8").splitlines()[:25]
    rows = [{"id": f"{number:04d}", "text": json.loads(line)["text"], "lang": "zh"} for number, line in enumerate(lines)]
    rows.append({"id": "code", "text": "def f(x): return x + 1  # spaces two\n" * 20 + openba_tokenizer.__doc__ * 3, "lang": "en"})
    with CorpusWriter(root / "corpus", provenance={"made": "for tests"}) as writer:
        writer.write(documents(rows))
    found = {}
    for kind, size in (("unigram", 1600), ("bpe", 1600)):
        (root / kind).mkdir()
        config = train_tokenizer.Config(size=size, model_type=kind, character_coverage=0.98)
        train_tokenizer.run(config, {"corpus": root / "corpus"}, root / kind, Job())
        found[kind] = root / kind
    return found


def make(source: Path, out: Path, **settings: object) -> Path:
    out.mkdir()
    openba_tokenizer.run(openba_tokenizer.Config(**settings), {"tokenizer": source}, out, Job())
    return out


@pytest.fixture(scope="module")
def made(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(trained["unigram"], tmp_path_factory.mktemp("made") / "tokenizer")


def test_ids_are_in_the_published_order(made: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(made / "spiece.model"))
    count = processor.get_piece_size()
    assert [processor.id_to_piece(index) for index in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert [processor.id_to_piece(3 + byte) for byte in (0, 255)] == ["<0x00>", "<0xFF>"]
    assert processor.piece_to_id("<s>") == 2  # unknown: OpenBA has no start piece
    ids = load_encoder(made).special
    assert [ids[f"<extra_id_{number}>"] for number in (99, 0)] == [count, count + 99]
    assert [ids[name] for name in ("<R>", "<S>", "<X>", "\n")] == [count + 100, count + 101, count + 102, count + 103]


def test_objectives_find_the_same_tokens_as_in_the_published_model(made: Path) -> None:
    encoder = load_encoder(made)
    found, published = find_special(encoder.special, eos=1), openba_special(encoder.vocab_size - 104)
    assert np.array_equal(found.sentinels, published.sentinels) and found.modes == published.modes and found.eos == encoder.eos_id


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_text_falls_into_the_same_pieces_as_before(trained: dict[str, Path], tmp_path: Path, kind: str) -> None:
    out = make(trained[kind], tmp_path / kind, newline=False)
    before, after = read_vocabulary(trained[kind]), read_vocabulary(out)
    old, new = load_encoder(trained[kind]), load_encoder(out)
    for text in TEXTS:
        assert [after.pieces[index] for index in new.encode(text)] == [before.pieces[index] for index in old.encode(text)]


def test_every_library_gives_the_same_ids_and_text(made: Path) -> None:
    encoder, fast = load_encoder(made), AutoTokenizer.from_pretrained(made)
    own = OpenBATokenizer(str(made / "spiece.model"))
    for text in [*TEXTS, "<S> 问题：what? <extra_id_0>"]:
        ids = encoder.encode(text).tolist()
        assert fast(text)["input_ids"] == [*ids, 1]
        assert own(text)["input_ids"] == [*ids, 1]
    assert fast.decode(fast("x = 1\n盆景")["input_ids"], skip_special_tokens=True).count("\n") == 1
    assert fast.pad_token_id == 0 and fast.eos_token_id == 1 and fast.unk_token_id == 2


def test_the_same_source_gives_the_same_bytes(trained: dict[str, Path], made: Path, tmp_path: Path) -> None:
    assert hash_tree(make(trained["unigram"], tmp_path / "again")) == hash_tree(made)


def test_fewer_sentinels_and_no_line_break(trained: dict[str, Path], tmp_path: Path) -> None:
    out = make(trained["unigram"], tmp_path / "small", extra_ids=4, newline=False)
    special = load_encoder(out).special
    first = special["<extra_id_3>"]
    assert [special[name] for name in ("<extra_id_0>", "<X>")] == [first + 3, first + 6] and "\n" not in special


def test_price_counts_the_appended_tokens() -> None:
    estimate = openba_tokenizer.price(openba_tokenizer.Config(), {"tokenizer": Estimate(vocab_size=4096)})
    assert estimate.vocab_size == 4200


def test_a_tokenizer_that_is_already_openba_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer already has tokens behind its pieces"):
        make(made, tmp_path / "twice")


def test_a_tokenizer_without_sentencepiece_is_refused(made: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    (tmp_path / "bytes").mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.save(str(tmp_path / "bytes" / "tokenizer.json"))
    with pytest.raises(InputError, match="OpenBA's tokenizer is made of a SentencePiece model.*found byte-bpe"):
        make(tmp_path / "bytes", tmp_path / "out")
