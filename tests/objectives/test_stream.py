"""The stream: a pure function of the step, full rows, exact mixtures, and isolation that holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from penjing.config import parse
from penjing.errors import ConfigError, InputError
from penjing.objectives.example import NO_LOSS, cross_mask, cumulative_lengths, decoder_mask, encoder_mask, self_mask
from penjing.objectives.joint import BLOCK_ROWS, DenoisingRows
from penjing.objectives.span import rebuild
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.objectives.tokens import write_tokens

EVERY = [("decoder", name) for name in ("causal", "prefix", "span", "ul2", "d-ul2", "o-ul2", "glm", "unilm")] + [
    ("encoder-decoder", name) for name in ("prefix", "span", "ul2", "d-ul2", "o-ul2")]


def stream(path: Path, **settings):
    settings = {"sequence_length": 256, "batch_rows": 8, "piece_length": 100, "seed": 3, **settings}
    return build_stream(StreamConfig(**settings), path)


def same(one, two):
    return one.arrays.keys() == two.arrays.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("architecture, objective", EVERY)
def test_any_rank_count_and_any_order_gives_the_same_rows(path, architecture, objective):
    settings = {"architecture": architecture, "objective": objective}
    whole = stream(path, **settings)
    played = [whole.batch(step) for step in range(6)]
    fresh = stream(path, **settings)
    assert same(fresh.batch(5), played[5]), "resuming at a step needs nothing before it"
    for ranks in (2, 4):
        share = 8 // ranks
        parts = [stream(path, **settings).batch(4, rows=slice(r * share, (r + 1) * share)) for r in range(ranks)]
        for name in played[4]:
            assert np.array_equal(np.concatenate([part[name] for part in parts]), played[4][name])
    assert not same(played[0], played[1])
    assert not same(stream(path, **settings, seed=4).batch(0), played[0])


@pytest.mark.parametrize("architecture, objective", EVERY)
def test_padding_carries_no_loss_and_rows_are_well_formed(path, architecture, objective):
    made = stream(path, architecture=architecture, objective=objective)
    for step in range(3):
        batch = made.batch(step)
        side = "BD" if architecture == "encoder-decoder" else "BS"
        segments = batch["decoder_segments_BD" if side == "BD" else "segments_BS"]
        targets, weights = batch[f"targets_{side}"], batch[f"weights_{side}"]
        assert (targets[segments == 0] == NO_LOSS).all() and (weights[targets == NO_LOSS] == 0).all()
        assert (weights[targets != NO_LOSS] > 0).all() and (targets != NO_LOSS).any(axis=1).all()
        assert (np.diff(np.where(segments == 0, 10**6, segments), axis=1) >= 0).all(), "segments rise, padding is last"
        assert batch.truncated_tokens == 0


def test_causal_rows_are_the_documents_with_shifted_targets(path):
    made = stream(path, sources={"web": 1})
    ids = made.rows[0].documents.shard.ids
    batch = made.batch(2)
    for at in range(8):
        _, index = made.locate(2, at)
        pieces = made.rows[0].rows.pieces(index)
        assert batch.segments_BS[at].tolist() == [n for n, piece in enumerate(pieces, 1) for _ in range(piece.length)]
        assert batch.positions_BS[at].tolist() == [i for piece in pieces for i in range(piece.length)]
        expected = []
        for piece in pieces:
            text = ids[piece.start : piece.start + piece.length + piece.goes_on].tolist()
            expected += text[1:] + ([] if piece.goes_on else [NO_LOSS])
        assert batch.targets_BS[at].tolist() == expected


def test_visible_neighbours_make_one_segment_with_running_positions(path):
    batch = stream(path, cross_document_attention=True, sources={"web": 1}).batch(0)
    assert (batch.segments_BS == 1).all() and (batch.positions_BS == np.arange(256)).all()
    assert (batch.targets_BS[:, :-1] == batch.tokens_BS[:, 1:]).all()


def test_prompts_carry_their_weight(path):
    full = stream(path, sources={"tasks": 1}).batch(0)
    answers = stream(path, sources={"tasks": 1}, prompt_loss_weight=0.0).batch(0)
    light = stream(path, sources={"tasks": 1}, prompt_loss_weight=0.25).batch(0)
    assert np.array_equal(full.tokens_BS, answers.tokens_BS)
    made = stream(path, sources={"tasks": 1})
    _, index = made.locate(0, 0)
    at = 0
    for piece in made.rows[0].rows.pieces(index):
        begin, answer, end = at, at + piece.prompt, at + piece.length
        assert (answers.targets_BS[0, begin : answer - 1] == NO_LOSS).all()
        assert answers.targets_BS[0, answer - 1 : end - 1].tolist() == full.tokens_BS[0, answer:end].tolist()
        assert (light.weights_BS[0, begin : answer - 1] == 0.25).all() and (light.weights_BS[0, answer - 1 : end - 1] == 1).all()
        at = end


def test_a_prompt_cut_between_rows_is_masked_on_both_sides(path):
    made = stream(path, sources={"tasks": 1}, prompt_loss_weight=0.0, supervised_packing="concat", sequence_length=16)
    rows = made.rows[0]
    ids, documents = rows.documents.shard.ids, rows.documents
    end_of_prompt = {int(start): int(start + prompt) for start, prompt in zip(documents.starts, documents.prompts, strict=True)}
    inside = 0
    for step in range(30):
        batch = made.batch(step)
        for at in range(8):
            _, index = made.locate(step, at)
            begin = 0
            for piece in rows.rows.pieces(index):
                first = max(start for start in end_of_prompt if start <= piece.start)
                for i in range(piece.length - (not piece.goes_on)):
                    is_prompt = piece.start + i + 1 < end_of_prompt[first]
                    inside += is_prompt
                    wanted = NO_LOSS if is_prompt else int(ids[piece.start + i + 1])
                    assert batch.targets_BS[at, begin + i] == wanted
                begin += piece.length
    assert inside > 100


@pytest.mark.parametrize("architecture, objective, decoder_length", [
    ("decoder", "causal", None), ("encoder-decoder", "ul2", None), ("decoder", "ul2", None)])
def test_shares_are_counted_in_tokens_that_are_not_padding(path, architecture, objective, decoder_length):
    wanted = {"web": 0.5, "book": 0.2, "tasks": 0.3}
    made = stream(path, architecture=architecture, objective=objective, sources=wanted, decoder_length=decoder_length)
    counts = Counter()
    for step in range(250):
        batch = made.batch(step)
        parts = [part for part in (batch.segments_BS, batch.encoder_segments_BE, batch.decoder_segments_BD) if part is not None]
        for at, source in enumerate(batch.source_B.tolist()):
            counts[made.sources[source]] += sum(int(np.count_nonzero(part[at])) for part in parts)
    total = sum(counts.values())
    for name, share in wanted.items():
        assert abs(counts[name] / total - share) < 0.005


def test_mixture_of_rows_does_not_depend_on_what_else_is_on_the_disk(path, tokens):
    assert same(stream(path, sources={"web": 1}).batch(9), stream(path, sources={"web": 2, "tasks": 0}).batch(9))


@pytest.mark.parametrize("settings, least", [
    ({"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 2048, "piece_length": 568}, 0.97),
    ({"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 1024, "decoder_length": 472,
      "piece_length": 300}, 0.97),
    ({"objective": "o-ul2", "architecture": "encoder-decoder", "sequence_length": 1040, "decoder_length": 1040}, 0.97),
    ({"objective": "ul2", "sequence_length": 2048, "piece_length": 568}, 0.99),
    ({"objective": "causal", "packing": "best-fit", "sequence_length": 2048}, 0.99),
    ({"objective": "glm", "sequence_length": 1024}, 0.95),
])
def test_rows_are_full(tmp_path, settings, least):
    rng = np.random.default_rng(0)
    special = {f"<extra_id_{i}>": 31099 - i for i in range(100)} | {"<R>": 31100, "<S>": 31101, "<X>": 31102, "[MASK]": 31103,
                                                                    "[sMASK]": 31104, "[gMASK]": 31105, "<sop>": 1, "<eop>": 2}
    documents = [(np.append(rng.integers(10, 30000, max(1, int(rng.lognormal(5.6, 1)))), 1),) for _ in range(6000)]
    path = write_tokens(tmp_path, {"a": documents}, vocab_size=32000, eos_id=1, special=special).path
    made = stream(path, batch_rows=64, **settings)
    batches = [made.batch(step) for step in range(4)]
    fill = sum(batch.real_tokens for batch in batches) / sum(batch.slots for batch in batches)
    assert fill >= least
    assert abs(fill - made.describe()["a"]["fill"]) < 0.01, "what is announced is what comes"


@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_denoiser_rows_read_the_corpus_once_in_order(path, architecture):
    made = stream(path, architecture=architecture, objective="ul2", sources={"web": 1})
    rows = made.rows[0]
    assert isinstance(rows, DenoisingRows)
    at = 0
    for row in range(3 * BLOCK_ROWS):
        block = row // BLOCK_ROWS
        if row % BLOCK_ROWS == 0:
            at = 0
        for sample, example in zip(rows.pieces(row), rows.examples(row)[0], strict=True):
            assert sample.start == at and sample.length > 0
            at += sample.length
            budget, _ = rows._budget(rows.first.shares)
            flat = np.concatenate([rows.documents.shard.ids[piece.start :][: piece.length]
                                   for piece in rows._stream.cut(block * budget + sample.start, sample.length)])
            assert rebuild(example, made.special).tolist() == flat.tolist()
        if row % BLOCK_ROWS == BLOCK_ROWS - 1:
            assert at == budget, "a block's tokens are all laid"


def test_isolated_samples_stay_inside_their_documents(path):
    made = stream(path, architecture="encoder-decoder", objective="ul2", sources={"web": 1})
    rows = made.rows[0]
    for row in range(BLOCK_ROWS):
        for sample in rows.pieces(row):
            assert len(rows._stream.cut(sample.start, sample.length)) == 1
    loose = stream(path, architecture="encoder-decoder", objective="ul2", sources={"web": 1}, cross_document_attention=True)
    assert any(len(rows._stream.cut(sample.start, sample.length)) > 1 for sample in loose.rows[0].pieces(0))


def test_tiny_documents_are_laid_whole(tmp_path):
    documents = [([5 + i % 50, 1],) for i in range(4000)]
    special = {f"<extra_id_{i}>": 990 - i for i in range(20)} | {"<R>": 995, "<S>": 996, "<X>": 997}
    path = write_tokens(tmp_path, {"a": documents}, vocab_size=1000, eos_id=1, special=special).path
    made = stream(path, architecture="encoder-decoder", objective="ul2", sequence_length=128)
    assert sum(made.batch(step).truncated_tokens for step in range(20)) == 0


def test_d_ul2_moves_shares_without_losing_or_repeating_tokens(path):
    made = stream(path, architecture="encoder-decoder", objective="d-ul2", sources={"web": 0.6, "book": 0.4})
    state = made.initial_state()
    read = Counter()
    denoisers = []
    for step in range(60):
        if step in (13, 14, 40):
            losses = np.array(made.config.reference_losses)
            losses[4] += 3.0
            state = made.next_state(json.loads(json.dumps(state)), step=step, losses=losses)
        for row in range(8):
            source, index = made.locate(step, row)
            rows = made.rows[source]
            segments = made._segments(state, source)
            segment = rows._segment(index // BLOCK_ROWS, segments)
            base = segment.token + (index // BLOCK_ROWS - segment.block) * rows._budget(segment.shares)[0]
            for sample in rows.pieces(index, segments):
                read.update((source, base + sample.start + i) for i in range(sample.length))
        denoisers.append(made.batch(step, state=state).denoisers_BD)
    for source in range(2):
        positions = sorted(position for s, position in read if s == source)
        assert positions == list(range(len(positions))), "no gap in the stream"
    assert max(read.values()) == 1
    assert np.mean(np.concatenate(denoisers[50:]) == 5) > np.mean(np.concatenate(denoisers[:10]) == 5) + 0.1
    assert abs(sum(state["shares"]) - 1) < 1e-12


def test_d_ul2_resumes_from_its_saved_state(path):
    settings = {"architecture": "encoder-decoder", "objective": "d-ul2"}
    made = stream(path, **settings)
    state = made.next_state(made.initial_state(), step=5, losses=[3, 2, 2, 2, 2, 2, 2])
    later = made.batch(30, state=state)
    saved = json.loads(json.dumps(state))
    assert same(stream(path, **settings).batch(30, state=saved), later)
    with pytest.raises(InputError, match="the stream's state is later than the step that was asked for"):
        far = made.next_state(saved, step=2000, losses=[3] * 7)
        made.batch(0, state=far)


@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_every_denoiser_is_measured_on_the_same_texts(path, architecture):
    made = stream(path, architecture=architecture, objective="d-ul2", part="held-out", held_out_percent=20, sources={"web": 1})
    texts = []
    for denoiser in range(1, 8):
        batch = made.denoiser_batch(1, denoiser)
        assert (batch.denoiser_B == denoiser).all()
        row = []
        for at in range(8):
            if architecture == "decoder":
                learned = batch.targets_BS[at] != NO_LOSS
                size = int((batch.segments_BS[at] > 0).sum())
                first = int(np.flatnonzero(learned)[0]) + 1
                encoder = batch.tokens_BS[at, :first]
                labels = batch.targets_BS[at, first - 1 : size]
            else:
                encoder = batch.encoder_tokens_BE[at][batch.encoder_segments_BE[at] > 0]
                labels = batch.targets_BD[at][batch.decoder_segments_BD[at] > 0]
            from penjing.objectives.span import Example

            row.append(rebuild(Example(encoder, labels), made.special).tolist())
        texts.append(row)
    assert all(row == texts[0] for row in texts)


def test_masks_isolate(path):
    batch = stream(path, objective="prefix", sources={"web": 1}).batch(0)
    mask = self_mask(batch)
    segments = batch.segments_BS
    assert not (mask & (segments[:, :, None] != segments[:, None, :])).any()
    assert (mask.any(axis=2) == (segments > 0)).all()
    pair = stream(path, objective="ul2", architecture="encoder-decoder", sources={"web": 1}).batch(0)
    for found, queries, keys in ((encoder_mask(pair), "encoder", "encoder"), (decoder_mask(pair), "decoder", "decoder"),
                                 (cross_mask(pair), "decoder", "encoder")):
        q, k = (pair[f"{side}_segments_B{side[0].upper()}"] for side in (queries, keys))
        assert not (found & (q[:, :, None] != k[:, None, :])).any() and (found.any(axis=2) == (q > 0)).all()


def test_unilm_s_four_masks(path):
    made = stream(path, objective="unilm", sources={"web": 1})
    seen = Counter()
    for step in range(60):
        batch = made.batch(step)
        mask = self_mask(batch)
        for at, task in enumerate(batch.denoiser_B.tolist()):
            seen[task] += 1
            causal = np.tri(256, dtype=bool)
            part = batch.prefix_BS[at]
            expected = {1: np.ones((256, 256), bool), 2: causal | part[None, :], 3: causal, 4: causal.T}[task]
            assert np.array_equal(mask[at], expected)
    assert [round(seen[task] / 480, 1) for task in (1, 2, 3, 4)] == [0.3, 0.3, 0.2, 0.2]


def test_cumulative_lengths_cut_at_segments_and_rows():
    edges, longest = cumulative_lengths(np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0]]))
    assert edges.tolist() == [0, 2, 5, 9, 10] and longest == 4
    edges, _ = cumulative_lengths(np.array([[1, 1], [1, 1]]))
    assert edges.tolist() == [0, 2, 4], "equal numbers in two rows are two pieces"


def test_a_source_that_runs_dry_is_named(path):
    made = stream(path, sources={"book": 1}, max_epochs=1)
    last = int(made.rows[0].rows_per_epoch) // 8
    made.batch(last - 1)
    with pytest.raises(InputError) as error:
        made.batch(last + 1)
    tokens = made.rows[0].documents.tokens
    assert str(error.value) == (f"{path}/book: source 'book' runs dry at step {last + 1}; found {tokens} tokens; expected at "
                                "most 1 epochs (max_epochs); lower its weight, train fewer tokens, or raise max_epochs")


@pytest.mark.parametrize("objective", ["causal", "ul2"])
def test_an_id_beyond_the_vocabulary_is_named_with_its_place(tmp_path, objective):
    documents = [(np.arange(10, 200),), (np.append(np.arange(10, 50), 31999),)]
    special = {"<extra_id_0>": 5, "<extra_id_1>": 6, "<R>": 7, "<S>": 8, "<X>": 9}
    path = write_tokens(tmp_path, {"a": documents}, vocab_size=1000, eos_id=1, special=special).path
    made = stream(path, objective=objective, sequence_length=128)
    with pytest.raises(InputError, match=r"a\.bin: id beyond the vocabulary at byte 460; found 31999; expected 0 to 999"):
        for step in range(5):
            made.batch(step)


def test_settings_that_do_not_fit_together_are_named():
    with pytest.raises(ConfigError) as error:
        parse(StreamConfig, {"objective": "glm", "architecture": "encoder-decoder"}, where="r.yaml:3")
    assert "objective glm is for decoder-only models; expected prefix, span, ul2, d-ul2 or o-ul2" in str(error.value)
    with pytest.raises(ValidationError):
        StreamConfig(decoder_length=128)
    with pytest.raises(ValidationError):
        StreamConfig(denoiser_shares=(0,) * 7)


def test_tokens_that_do_not_fit_together_are_named(tmp_path):
    one = write_tokens(tmp_path / "one", {"a": [([1, 2],)]}, vocab_size=10, eos_id=1).path
    two = write_tokens(tmp_path / "two", {"b": [([1, 2],)]}, vocab_size=12, eos_id=1).path
    three = write_tokens(tmp_path / "three", {"a": [([1, 2],)]}, vocab_size=10, eos_id=1).path
    with pytest.raises(InputError, match="two: tokens of different vocabularies cannot be mixed; found 12 ids; expected 10"):
        build_stream(StreamConfig(), [one, two])
    with pytest.raises(InputError, match=r"three: source 'a' is in two tokens directories; found also in .*one; rename"):
        build_stream(StreamConfig(), [one, three])
    with pytest.raises(InputError, match="one: the tokenizer has no sentinels"):
        build_stream(StreamConfig(objective="ul2"), one)
    with pytest.raises(InputError, match="one: the tokenizer lacks a token for GLM's blanks"):
        build_stream(StreamConfig(objective="glm"), one)
