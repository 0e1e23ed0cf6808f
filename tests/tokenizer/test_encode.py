"""Bulk encoding gives the ids of the tokenizer's own library, whichever engine does the work."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from penjing.errors import InputError
from penjing.tokenizer import encode
from penjing.tokenizer.encode import PROBE, load_encoder

QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                r"|\s+(?!\S)|\s+")
TEXTS = [*PROBE, "", " ", "<|endoftext|>", "a<|endoftext|>b<|im|> c", "ab" * 500, "盆" * 300, "e\u0301<|im|>e\u0301"]


def train(path: Path, *, pattern: str | None = None, normalizer=None, special=("<|endoftext|>", "<|im|>")) -> Path:
    path.mkdir()
    model = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        model.normalizer = normalizer
    if pattern is None:
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=list(special),
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator([text for text in TEXTS if "<|" not in text] * 3, trainer)
    model.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {"gpt2": train(root / "gpt2"), "qwen": train(root / "qwen", pattern=QWEN_PATTERN, normalizer=normalizers.NFC())}


def reference(path: Path, texts):
    library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    return [item.ids for item in library.encode_batch(list(texts), add_special_tokens=False)]


@pytest.mark.parametrize("kind", ["gpt2", "qwen"])
def test_byte_level_bpe_runs_on_tiktoken_with_the_library_s_ids(byte_level, kind):
    encoder = load_encoder(byte_level[kind])
    assert encoder.engine == "tiktoken" and encoder.vocab_size <= 700 and encoder.eos_id == 0
    assert [ids.tolist() for ids in encoder.encode_batch(TEXTS)] == reference(byte_level[kind], TEXTS)
    assert encoder.decode(encoder.encode("盆景 <|im|>")) == "盆景 <|im|>"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=4))
def test_any_unicode_gives_the_library_s_ids(byte_level, texts):
    for path in byte_level.values():
        assert [ids.tolist() for ids in load_cached(path).encode_batch(texts)] == reference(path, texts)


_CACHE: dict[Path, encode.Encoder] = {}


def load_cached(path: Path) -> encode.Encoder:
    if path not in _CACHE:
        _CACHE[path] = load_encoder(path)
        _CACHE[path]._checked = 10**9  # the comparison below must be ours, not the encoder's own
    return _CACHE[path]


def test_special_tokens_in_text_can_be_kept_as_text(byte_level):
    encoder = load_encoder(byte_level["gpt2"], special_tokens=False)
    ids = encoder.encode("a<|endoftext|>b")
    assert 0 not in ids.tolist() and encoder.decode(ids) == "a<|endoftext|>b"


def test_nested_added_tokens_match_the_longest(tmp_path):
    path = train(tmp_path / "spaces")
    spec = json.loads((path / "tokenizer.json").read_text())
    for number in range(2, 6):
        spec["added_tokens"].append({"id": 699 + number, "content": " " * number, "single_word": False, "lstrip": False,
                                     "rstrip": False, "normalized": False, "special": False})
    (path / "tokenizer.json").write_text(json.dumps(spec))
    encoder = load_encoder(path)
    texts = [f"a{' ' * number}b" for number in range(12)]
    assert encoder.engine == "tiktoken"
    assert [ids.tolist() for ids in encoder.encode_batch(texts)] == reference(path, texts)


def test_a_disagreement_hands_the_work_to_the_library(byte_level):
    encoder = load_encoder(byte_level["gpt2"])
    good = encoder._encode
    encoder._encode = lambda texts: [ids[::-1] for ids in good(texts)]
    assert [ids.tolist() for ids in encoder.encode_batch(TEXTS)] == reference(byte_level["gpt2"], TEXTS)
    assert encoder.engine == "tokenizers" and "tiktoken gave other ids" in encoder.notes[0]


def test_a_million_spaces_are_encoded(byte_level):
    text = " " * 1_000_000 + "x"
    encoder = load_encoder(byte_level["gpt2"])
    encoder._checked = 10**9
    assert [ids.tolist() for ids in encoder.encode_batch(["a b", text])] == reference(byte_level["gpt2"], ["a b", text])
    assert encoder.engine == "tiktoken"


def test_what_tiktoken_cannot_do_stays_with_the_library(tmp_path):
    path = train(tmp_path / "prefix")
    spec = json.loads((path / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["add_prefix_space"] = True
    (path / "tokenizer.json").write_text(json.dumps(spec))
    encoder = load_encoder(path)
    assert encoder.engine == "tokenizers"
    assert [ids.tolist() for ids in encoder.encode_batch(TEXTS)] == reference(path, TEXTS)
    with pytest.raises(InputError, match="tiktoken cannot stand in for this tokenizer"):
        load_encoder(path, engine="tiktoken")


def test_sentencepiece_with_added_tokens(tmp_path):
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([text for text in TEXTS if text.strip() and "\x00" not in text] * 20), vocab_size=500,
        model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", byte_fallback=True, hard_vocab_limit=False,
        character_coverage=1.0, user_defined_symbols=["<sep>"], minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    size = processor.GetPieceSize()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra_id_0>": size, "<extra_id_1>": size + 1}))
    encoder = load_encoder(tmp_path)
    assert (encoder.engine, encoder.vocab_size, encoder.bos_id, encoder.eos_id) == ("sentencepiece", size + 2, 1, 2)
    assert {"<sep>", "<extra_id_0>", "<s>", "</s>"} <= set(encoder.special)
    plain = [text for text in TEXTS if "\x00" not in text]
    assert [ids.tolist() for ids in encoder.encode_batch(plain)] == [processor.Encode(text) for text in plain]
    assert encoder.encode("盆景<extra_id_1>a").tolist() == [*processor.Encode("盆景"), size + 1, *processor.Encode("a")]
    assert encoder.decode([*processor.Encode("盆景"), size]) == "盆景<extra_id_0>"


@pytest.mark.parametrize("content, said", [(b"{", "not readable as a tokenizer"), (b"{}", "not readable as a tokenizer")])
def test_a_damaged_tokenizer_is_named(tmp_path, content, said):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"tokenizer\.json: {said}"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"tokenizer\.model: not readable as a SentencePiece model"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(InputError, match=r"no tokenizer found; expected tokenizer\.model, spiece\.model"):
        load_encoder(tmp_path)


def test_a_lone_surrogate_is_named(byte_level):
    with pytest.raises(InputError, match="text 1 of the batch cannot be encoded"):
        load_encoder(byte_level["gpt2"]).encode_batch(["fine", "broken \ud800"])


@pytest.mark.slow
def test_real_vocabularies_give_the_library_s_ids(shared, tmp_path):
    texts = []
    for file in sorted((shared / "corpus").rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"][:4000] for _, line in zip(range(40), lines, strict=False)]
    path = shared / "tokenizers" / "gpt_neox_50k" / "tokenizer.json.gz"
    encoder, library = load_encoder(path), load_encoder(path, engine="tokenizers")
    encoder._checked = 10**9
    assert encoder.engine == "tiktoken"
    assert all(np.array_equal(a, b) for a, b in zip(encoder.encode_batch(texts), library.encode_batch(texts), strict=True))


def test_vocab_and_merges_are_encoded_like_the_tokenizer_they_came_from(byte_level, tmp_path):
    model = json.loads((byte_level["gpt2"] / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    encoder = load_encoder(tmp_path)
    plain = [text for text in TEXTS if "<|im|>" not in text]
    assert encoder.engine == "tiktoken" and encoder.eos_id == 0
    assert [ids.tolist() for ids in encoder.encode_batch(plain)] == reference(byte_level["gpt2"], plain)


@pytest.mark.parametrize("folder", ["gpt2_50k", "qwen_151k", "bert_zh_21k"])
def test_real_tokenizers_without_a_tokenizer_json_encode_and_decode(shared, folder):
    encoder = load_encoder(shared / "tokenizers" / folder)
    for text in ("Hello world, 盆景是中国传统的园林艺术。", "don't stop 12345", "x"):
        shown = encoder.decode(encoder.encode(text))
        assert shown == text or (folder == "bert_zh_21k" and shown.replace(" ", "") == text.replace(" ", "").lower())
