"""OpenBA: published names, shapes and counts; the equations written out; generation, packing, length, remote code,
tokenizer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from penjing.files import read_json, write_json
from penjing.models import cost, tiny
from penjing.models.checkpoint import load_model, open_checkpoint, write_checkpoint
from penjing.models.family import of
from penjing.models.openba import OpenBAConfig, OpenBAForConditionalGeneration, OpenBATokenizer
from penjing.models.openba.tokenization_openba import special_ids
from penjing.prune import cut, plan

V2 = {
    "model_type": "openba",
    "vocab_size": 250240,
    "hidden_size": 2560,
    "kv_channels": 128,
    "num_heads": 20,
    "ffn_hidden_size": 6912,
    "num_layers": 8,
    "num_decoder_layers": 24,
    "tie_word_embeddings": False,
}
V1 = {
    **V2,
    "vocab_size": 250368,
    "hidden_size": 4096,
    "num_heads": 40,
    "ffn_hidden_size": 16384,
    "num_layers": 12,
    "num_decoder_layers": 36,
}


def reference_logits(state: dict[str, Tensor], config: Any, source: Tensor, target: Tensor) -> Tensor:
    """OpenBA's equations for one pair of sequences, one head and one position at a time."""
    channels, heads = config.kv_channels, config.num_heads

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", torch.zeros(()))

    def rope(x: Tensor) -> Tensor:
        turned = torch.zeros_like(x)
        for position in range(x.shape[0]):
            for pair in range(channels // 2):
                angle = torch.tensor(position * 10000.0 ** (-2 * pair / channels))
                one, two = x[position, pair], x[position, pair + channels // 2]
                turned[position, pair] = one * angle.cos() - two * angle.sin()
                turned[position, pair + channels // 2] = two * angle.cos() + one * angle.sin()
        return turned

    def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        scores = q @ k.T / channels**0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -10000.0)
        return scores.softmax(-1) @ v

    def self_attention(x: Tensor, name: str, causal: bool) -> Tensor:
        fused = linear(x, f"{name}.qkv")
        outputs = []
        for head in range(heads):
            q, k, v = (fused[:, head * 3 * channels + part * channels :][:, :channels] for part in range(3))
            outputs.append(attend(rope(q), rope(k), v, causal))
        return linear(torch.cat(outputs, -1), f"{name}.o")

    def cross_attention(x: Tensor, memory: Tensor, name: str) -> Tensor:
        queries, fused = linear(x, f"{name}.q"), linear(memory, f"{name}.kv")
        outputs = []
        for head in range(heads):
            k, v = (fused[:, head * 2 * channels + part * channels :][:, :channels] for part in range(2))
            outputs.append(attend(queries[:, head * channels : (head + 1) * channels], k, v, False))
        return linear(torch.cat(outputs, -1), f"{name}.o")

    def mlp(x: Tensor, name: str) -> Tensor:
        width = state[f"{name}.fc_out.weight"].shape[1]
        gate, up = state[f"{name}.fc_in.weight"][:width], state[f"{name}.fc_in.weight"][width:]
        return linear(functional.silu(x @ gate.T) * (x @ up.T), f"{name}.fc_out")

    x = state["shared_embedding.weight"][source]
    for layer in range(config.num_layers):
        name = f"encoder.block.{layer}"
        x = x + self_attention(norm(x, f"{name}.input_layernorm"), f"{name}.self_attn", False)
        x = x + mlp(norm(x, f"{name}.post_attn_layernorm"), f"{name}.mlp")
    memory = norm(x, "encoder.final_layernorm")
    y = state["shared_embedding.weight"][target]
    for layer in range(config.num_decoder_layers):
        name = f"decoder.block.{layer}"
        y = y + self_attention(norm(y, f"{name}.input_layernorm"), f"{name}.self_attn", True)
        y = y + cross_attention(norm(y, f"{name}.post_attn_layernorm"), memory, f"{name}.inter_attn")
        y = y + mlp(norm(y, f"{name}.post_inter_attn_layernorm"), f"{name}.mlp")
    return linear(norm(y, "decoder.final_layernorm"), "lm_head")


def test_the_equations_written_out() -> None:
    model = tiny.make("openba")
    source, target = torch.tensor([5, 9, 3, 40, 7]), torch.tensor([0, 11, 4])
    expected = reference_logits(model.state_dict(), model.config, source, target)
    with torch.no_grad():
        found = model(input_ids=source[None], decoder_input_ids=target[None], use_cache=False).logits[0]
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("published", "ffn"), [(V1, 11008), (V2, 6912)])
def test_published_names_and_shapes(published: dict[str, Any], ffn: int) -> None:
    with torch.device("meta"):
        model = OpenBAForConditionalGeneration(
            OpenBAConfig(**{key: value for key, value in published.items() if key != "model_type"})
        )
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    hidden, inner = published["hidden_size"], published["num_heads"] * 128
    assert state["decoder.block.0.self_attn.qkv.weight"] == (3 * inner, hidden)
    assert state["decoder.block.0.inter_attn.kv.bias"] == (2 * inner,)
    assert state["encoder.block.7.mlp.fc_in.weight"] == (2 * ffn, hidden)
    assert state["decoder.block.23.post_inter_attn_layernorm.bias"] == (hidden,)
    assert state["lm_head.bias"] == (published["vocab_size"],)
    table = of(published).tensors(published)
    assert {name: tensor.shape for name, tensor in table.items()} == {
        name: shape for name, shape in state.items() if not name.endswith("embed_tokens.weight")
    }


@pytest.mark.parametrize(
    ("layers", "hidden", "ffn", "heads", "vocab", "total"),
    [
        ((12, 36), 4096, 11008, 40, 250368, 14_567_703_040),
        ((10, 30), 4096, 11008, 40, 250368, 12_310_714_880),
        ((8, 27), 4096, 11008, 40, 250368, 10_963_032_576),
        ((8, 24), 4096, 11008, 40, 250368, 10_053_726_720),
        ((8, 24), 2560, 6912, 20, 250240, 3_808_598_400),
        ((8, 24), 2560, 6912, 20, 100224, 3_424_407_424),
        ((8, 24), 2560, 6912, 20, 120192, 3_475_545_472),
    ],
)
def test_exact_totals_of_the_compression(
    layers: tuple[int, int], hidden: int, ffn: int, heads: int, vocab: int, total: int
) -> None:
    config = {
        **V2,
        "num_layers": layers[0],
        "num_decoder_layers": layers[1],
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_heads": heads,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
    }
    assert cost.count_parameters(config) == total
    assert cost.count_parameters({**config, "tie_word_embeddings": False}) == total + vocab * hidden


def test_file_without_the_convention_is_read_by_its_weights(tmp_path: Path) -> None:
    model = tiny.make("openba")
    config = {**model.config.to_dict(), "ffn_hidden_size": 32}
    for key in ("ffn_is_nominal", "dtype"):
        config.pop(key, None)
    state = {name: value for name, value in model.state_dict().items() if "embed_tokens" not in name}
    write_checkpoint(tmp_path, config=config, tensors=state)
    checkpoint = open_checkpoint(tmp_path)
    assert of(checkpoint.config).sizes(checkpoint.config)["ffn"] == 24
    of(checkpoint.config).match(checkpoint.config, checkpoint.names)


def test_generation_with_cache_equals_generation_without() -> None:
    model = tiny.make("openba")
    ids = torch.randint(3, 48, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    for beams in (1, 3):
        settings = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "attention_mask": mask, "eos_token_id": None}
        assert torch.equal(model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings))


def test_padding_changes_nothing() -> None:
    model = tiny.make("openba")
    ids = torch.tensor([[5, 9, 3, 40]])
    padded, mask = functional.pad(ids, (0, 3)), functional.pad(torch.ones_like(ids), (0, 3))
    target = torch.tensor([[0, 7, 8]])
    with torch.no_grad():
        one = model(input_ids=ids, decoder_input_ids=target).logits
        two = model(input_ids=padded, attention_mask=mask, decoder_input_ids=target).logits
    assert torch.allclose(one, two, atol=1e-5)


def test_packed_samples_do_not_see_each_other() -> None:
    model = tiny.make("openba")
    sources, targets = [[5, 9, 3], [40, 7, 6, 11]], [[0, 4], [0, 8, 9]]
    segments = [torch.tensor([number for number, sample in enumerate(samples) for _ in sample]) for samples in (sources, targets)]
    positions = [torch.tensor([[place for sample in samples for place in range(len(sample))]]) for samples in (sources, targets)]
    masks = {
        "attention_mask": segments[0][:, None] == segments[0],
        "cross_attention_mask": segments[1][:, None] == segments[0],
        "decoder_attention_mask": (segments[1][:, None] == segments[1]).tril(),
    }
    with torch.no_grad():
        packed = model(
            input_ids=torch.tensor([[*sources[0], *sources[1]]]),
            decoder_input_ids=torch.tensor([[*targets[0], *targets[1]]]),
            position_ids=positions[0],
            decoder_position_ids=positions[1],
            use_cache=False,
            **{name: mask[None, None] for name, mask in masks.items()},
        ).logits[0]
        alone = torch.cat(
            [
                model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
                for source, target in zip(sources, targets, strict=True)
            ]
        )
    assert torch.allclose(packed, alone, atol=1e-5)


def test_length_is_not_capped_by_what_training_used() -> None:
    model = tiny.make("openba")
    model.config.decoder_max_seq_length = 8
    ids = torch.randint(3, 48, (1, 40))
    assert model(input_ids=ids, labels=ids).loss.isfinite()
    assert model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None).shape[1] == 21


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    ids = torch.randint(3, 48, (2, 6), generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        model = tiny.make("openba").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(model.encoder.block[0].mlp.fc_in.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spiece")
    text = "盆景是一门艺术。 A tree in a tray grows slowly. 树 在 盘 中 slow small trees"
    (folder / "text.txt").write_text("\n".join([text, *text.split()] * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=320,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return folder / "spiece.model"


def test_tokenizer_ids_follow_the_pieces(spiece: Path, tmp_path: Path) -> None:
    tokenizer = OpenBATokenizer(str(spiece))
    pieces = tokenizer.processor.get_piece_size()
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>", "<R>", "<S>", "<X>", "\n"]) == [
        pieces + 99,
        pieces,
        pieces + 100,
        pieces + 101,
        pieces + 102,
        pieces + 103,
    ]
    assert len(tokenizer) == tokenizer.vocab_size == pieces + 104
    assert len(OpenBATokenizer(str(spiece), add_newline=False)) == pieces + 103
    ids = tokenizer("<S> A tree<extra_id_0>").input_ids
    assert ids[0] == pieces + 101 and ids[-2:] == [pieces + 99, tokenizer.eos_token_id]
    assert tokenizer("A tree</s>").input_ids.count(1) == 1
    assert "A tree" in tokenizer.decode(ids) and tokenizer.decode(ids).endswith("<extra_id_0></s>")
    tokenizer.save_pretrained(tmp_path)
    again = OpenBATokenizer.from_pretrained(tmp_path)
    assert again("<S> 盆景\n艺术<extra_id_7>").input_ids == tokenizer("<S> 盆景\n艺术<extra_id_7>").input_ids
    assert len(again) == len(tokenizer)


def test_published_tokenizer_arithmetic() -> None:
    """mT5's model has 250,100 pieces, so that `<extra_id_0>` is 250199 and the mode tokens 250200 to 250202."""
    ids = special_ids(250_100)
    assert [ids[token] for token in ("<extra_id_0>", "<extra_id_99>", "<R>", "<S>", "<X>", "\n")] == [
        250199, 250100, 250200, 250201, 250202, 250203]
    assert len(special_ids(250_100, add_newline=False)) + 250_100 == 250_203


@pytest.mark.slow
def test_others_load_it_with_remote_code(spiece: Path, tmp_path: Path) -> None:
    model = tiny.save("openba", tmp_path)
    OpenBATokenizer(str(spiece)).save_pretrained(tmp_path)
    assert {"modeling_openba.py", "configuration_openba.py", "tokenization_openba.py"} <= {
        file.name for file in tmp_path.iterdir()
    }
    script = (
        "import sys, torch\nfrom transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
        f"m = AutoModelForSeq2SeqLM.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        f"t = AutoTokenizer.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "assert 'penjing' not in sys.modules\n"
        "ids = torch.tensor([[5, 9, 3, 40]])\n"
        "print(type(m).__name__, type(t).__name__, float(m(input_ids=ids, decoder_input_ids=ids).logits.sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "hf"), "PATH": "", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]
    name, tokenizer, total = done.stdout.split()
    ids = torch.tensor([[5, 9, 3, 40]])
    with torch.no_grad():
        expected = float(model(input_ids=ids, decoder_input_ids=ids).logits.sum())
    assert (name, tokenizer) == ("OpenBAForConditionalGeneration", "OpenBATokenizer") and abs(float(total) - expected) < 1e-3


def test_code_of_the_source_does_not_travel(tmp_path: Path) -> None:
    """The published code takes every FFN size as nominal, so that it would misread what we write."""
    tiny.save("openba", tmp_path / "source")
    (tmp_path / "source" / "modeling_openba.py").write_text("raise SystemExit('foreign code')", encoding="utf-8")
    config = {**read_json(tmp_path / "source" / "config.json"), "auto_map": {"AutoModelForCausalLM": "modeling_openba.Foreign"}}
    write_json(tmp_path / "source" / "config.json", config)
    with open_checkpoint(tmp_path / "source") as source:
        cut.apply(plan.build(source.config, layers={"decoder": [0, 2]}), source, tmp_path / "out")
    assert "foreign" not in (tmp_path / "out" / "modeling_openba.py").read_text(encoding="utf-8")
    assert set(read_json(tmp_path / "out" / "config.json")["auto_map"]) == {"AutoConfig", "AutoModelForSeq2SeqLM"}


def test_auto_classes_know_it_here(tmp_path: Path) -> None:
    model = tiny.save("openba", tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, OpenBAForConditionalGeneration) and isinstance(loaded.config, OpenBAConfig)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert isinstance(transformers.AutoConfig.from_pretrained(tmp_path), OpenBAConfig)
