"""The tokenise stage: ids as the tokenizer gives them, sources as the rules say, the same whatever the workers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from penjing.config import parse
from penjing.contract import VOLATILE, Estimate, Job
from penjing.data.document import CorpusWriter, documents
from penjing.errors import ConfigError, InputError
from penjing.files import hash_tree
from penjing.objectives.tokens import open_tokens
from penjing.stages import tokenise

TEXTS = ["The old pine grows slowly in a shallow pot.", "盆景是把山水缩在一盆之中的艺术。",
         "It's 2024; prune <eos> carefully!\n\n"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<eos>", "<extra_id_0>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(TEXTS * 4, trainer)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"id": f"d{i}", "source": "web" if i % 2 else "book", "text": TEXTS[i % 3] * (i % 4), "lang": "en",
             "meta": {}} for i in range(40)]
    rows += [{"id": f"q{i}", "source": "quiz", "text": f"Q{i}? A{i}.", "lang": None,
              "meta": {"prompt": f"Q{i}?", "answer": f" A{i}.", "task": "qa" if i < 3 else "nli"}} for i in range(5)]
    with CorpusWriter(tmp_path / "corpus", provenance={}) as writer:
        writer.write(documents(rows[:20]), "part-00000")
        writer.write(documents(rows[20:]), "part-00001")
    return tmp_path / "corpus"


def run(out: Path, corpus: Path, tokenizer: Path, *, workers: int = 1, **settings: object) -> dict:
    out.mkdir(exist_ok=True)
    return tokenise.run(tokenise.Config(**settings), {"corpus": corpus, "tokenizer": tokenizer}, out, Job(workers=workers))


def test_ids_are_the_library_s_and_every_document_ends_with_eos(tmp_path, corpus, tokenizer):
    figures = run(tmp_path / "out", corpus, tokenizer)
    tokens = open_tokens(tmp_path / "out")
    tokens.verify()
    library = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    expected = [[*library.encode(TEXTS[i % 3] * (i % 4)).ids, tokens.eos_id] for i in range(1, 40, 2)]
    shard = tokens.shard("web")
    assert [shard.sequence(i).tolist() for i in range(shard.documents)] == expected
    assert tokens.special["<extra_id_0>"] == library.token_to_id("<extra_id_0>")
    assert figures["tokens"] == sum(item["tokens"] for item in tokens.sources.values())
    assert figures["funnel"]["dropped"] == {"empty": {"documents": 10, "bytes": 0}}
    assert figures["funnel"]["in"]["en"]["documents"] == 40 and figures["funnel"]["out"]["en"]["documents"] == 30


def test_prompt_and_answer_are_two_sequences_of_one_document(tmp_path, corpus, tokenizer):
    run(tmp_path / "out", corpus, tokenizer, prompt_suffix=" ")
    tokens = open_tokens(tmp_path / "out")
    library = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    assert tokens.sources["quiz"]["kind"] == "supervised"
    prompt, answer = tokens.shard("quiz").document(1)
    assert prompt.tolist() == library.encode("Q1? ").ids
    assert answer.tolist() == [*library.encode(" A1.").ids, tokens.eos_id]


def test_sources_follow_the_rules(tmp_path, corpus, tokenizer):
    run(tmp_path / "out", corpus, tokenizer, split_by=["source", "meta.task"], rename={"*.none": "plain"})
    assert sorted(open_tokens(tmp_path / "out").sources) == ["plain", "quiz.nli", "quiz.qa"]


def test_result_does_not_depend_on_the_workers(tmp_path, corpus, tokenizer):
    run(tmp_path / "one", corpus, tokenizer)
    run(tmp_path / "two", corpus, tokenizer, workers=2)
    assert hash_tree(tmp_path / "one", ignore=VOLATILE) == hash_tree(tmp_path / "two", ignore=VOLATILE)


def test_interrupted_run_goes_on_to_the_same_bytes(tmp_path, corpus, tokenizer, monkeypatch):
    run(tmp_path / "whole", corpus, tokenizer)
    real = tokenise.tokenise_part

    def dies_at_the_second(unit):
        if unit["name"].startswith("part-00001"):
            raise KeyboardInterrupt
        return real(unit)

    dies_at_the_second.__qualname__ = "tokenise_part"
    dies_at_the_second.__module__ = tokenise.__name__
    monkeypatch.setattr(tokenise, "tokenise_part", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", corpus, tokenizer)
    assert not (tmp_path / "cut" / "tokens.json").exists()
    (tmp_path / "cut" / ".web.bin.123.tmp").write_bytes(b"half of a file that a killed process was writing")
    seen = []
    monkeypatch.setattr(tokenise, "tokenise_part", real)
    monkeypatch.setattr(tokenise, "_documents", lambda unit, *rest, keep=tokenise._documents: (
        seen.append(unit["name"]), keep(unit, *rest))[1])
    run(tmp_path / "cut", corpus, tokenizer)
    assert seen == ["part-00001-00000"]
    assert hash_tree(tmp_path / "whole", ignore=VOLATILE) == hash_tree(tmp_path / "cut", ignore=VOLATILE)


def test_sentence_ends_are_kept_for_a_tokenizer_with_sentence_masks(tmp_path, corpus, tokenizer):
    path = tokenizer / "tokenizer.json"
    path.write_text(path.read_text().replace("<extra_id_0>", "[sMASK]"))
    run(tmp_path / "out", corpus, tokenizer)
    ends = open_tokens(tmp_path / "out").manifest["sentence_ends"]
    library = tokenizers.Tokenizer.from_file(str(path))
    assert {library.token_to_id("."), library.token_to_id(";"), library.token_to_id("\u010a")} <= set(ends)
    assert library.token_to_id("a") not in ends and library.token_to_id("[sMASK]") not in ends


def test_a_tokenizer_without_eos_is_a_clear_error(tmp_path, corpus, tokenizer):
    (tokenizer / "tokenizer_config.json").unlink()
    path = tokenizer / "tokenizer.json"
    path.write_text(path.read_text().replace("<eos>", "<end>"))
    with pytest.raises(InputError) as error:
        run(tmp_path / "out", corpus, tokenizer)
    assert str(error.value) == (f"{path}: the tokenizer names no eos token; set eos_token to the token that ends a document")


def test_an_unknown_key_of_split_by_is_named():
    with pytest.raises(ConfigError, match="unknown key 'sources' in split_by; expected source, lang or meta.KEY"):
        parse(tokenise.Config, {"split_by": ["sources"]}, where="r.yaml:4")


def test_price_follows_the_corpus():
    found = tokenise.price(tokenise.Config(), {"corpus": Estimate(text_bytes=3.6e9, documents=10),
                                              "tokenizer": Estimate(vocab_size=32000)})
    assert found.tokens == pytest.approx(1e9) and found.documents == 10 and found.disk_bytes == pytest.approx(4e9)


KILLED = """
import sys
from pathlib import Path
from penjing.contract import Job
from penjing.stages import tokenise
corpus, tokenizer, out = map(Path, sys.argv[1:])
tokenise.run(tokenise.Config(), {"corpus": corpus, "tokenizer": tokenizer}, out, Job(workers=1))
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, tokenizer):
    with CorpusWriter(tmp_path / "corpus", provenance={}) as writer:
        for part in range(12):
            rows = [{"id": f"{part}-{i}", "source": f"s{i % 3}", "text": TEXTS[i % 3] * 40, "lang": "en", "meta": {}}
                    for i in range(1500)]
            writer.write(documents(rows), f"part-{part:05d}")
    run(tmp_path / "whole", tmp_path / "corpus", tokenizer)
    for kills, parts in enumerate((1, 5, 11), 1):
        out = tmp_path / f"cut{kills}"
        out.mkdir()
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "corpus"), str(tokenizer), str(out)])
        deadline = time.monotonic() + 120
        while len(list((out / "state").rglob("part-*.json"))) < parts and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL or kills > 1
        run(out, tmp_path / "corpus", tokenizer)
        assert hash_tree(out, ignore=VOLATILE) == hash_tree(tmp_path / "whole", ignore=VOLATILE)
        assert not (out / "state").exists()
