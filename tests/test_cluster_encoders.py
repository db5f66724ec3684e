"""Sequence networks and baselines: the same vectors in any company, runs that resume, and input that is odd or wrong."""

import json

import numpy as np
import pytest
import torch

from tokenize_lib.cluster import encoder_training
from tokenize_lib.cluster.baselines import averages, bag_of_words, baselines
from tokenize_lib.cluster.config import EvalConfig, NetworkConfig, SequenceEmbedConfig
from tokenize_lib.cluster.embeddings import embed_codes
from tokenize_lib.cluster.encoder_training import OBJECTIVES, EncoderTraining, hold_out, train_network
from tokenize_lib.cluster.encoders import LstmEncoder, TransformerEncoder, pad, padded_length
from tokenize_lib.cluster.sequences import code_set, code_vectors
from tokenize_lib.core.checkpoint import load_model
from tokenize_lib.core.config import load_config
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.core.run import Run
from tokenize_lib.quantize.codes import Codes

SIZES = (32, 16)


def corpus(lengths, groups=None, sizes=SIZES, seed=0, labels=None, tokenizer=None):
    rng = np.random.default_rng(seed)
    clips = []
    for n, length in enumerate(lengths):
        shape = (length,) if groups is None else (length, groups)
        ids = np.stack([rng.integers(0, k, shape) for k in sizes], -1)
        clips.append(
            Codes(ids, length=length, factor_l=1, codebook_sizes=sizes, id=f"clip_{n}", fps=30.0,
                  label=labels and labels[n], tokenizer=tokenizer or {"name": "t", "hash": "a" * 8})
        )  # fmt: skip
    return code_set(clips)


def vectors(sizes=SIZES, dim=6):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(k, dim)).astype(np.float32) / 2**q for q, k in enumerate(sizes)]


def settings(objective="trajectory", method="lstm", **train):
    return load_config(SequenceEmbedConfig, {
        "method": method, "network": {"hidden": 16, "heads": 2, "dim": 8, "embed_dim": 8, "objective": objective},
        "train": {"max_steps": 6, "batch_size": 8, "crop_tokens": 16} | train, "logging": {"tensorboard": False},
    })  # fmt: skip


def train(folder, codes, cfg, resume=False):
    run = Run.start(folder, cfg, seed=cfg.train.seed, resume=resume)
    run.quiet = True
    return train_network(codes, vectors(codes.codebook_sizes), run, cfg, resume=resume, device="cpu")


@pytest.mark.parametrize("kind", [LstmEncoder, TransformerEncoder])
@pytest.mark.parametrize("groups", [None, 3])
def test_a_clip_has_one_vector_whatever_its_company_and_the_number_of_threads(kind, groups):
    codes = corpus([1, 2, 3, 7, 8, 9, 40, 41, 40, 300, 17, 5] * 3, groups)
    model = kind.new(NetworkConfig(hidden=24, heads=2, dim=8, max_tokens=64), codes, vectors())
    x = model.embed(codes)
    for n in range(12):
        np.testing.assert_array_equal(model.embed(codes.select([n]))[0], x[n])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    np.testing.assert_array_equal(model.embed(codes), x)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_the_direction_and_the_layers_of_codes_count():
    codes = corpus([20, 20])
    both = LstmEncoder.new(NetworkConfig(hidden=16, dim=8), codes, vectors())
    one = LstmEncoder.new(NetworkConfig(hidden=16, dim=8, bidirectional=False), codes, vectors())
    assert both.width == 2 * one.width
    turned = corpus([20, 20])
    turned.codes = turned.codes[::-1].copy()
    assert np.abs(both.embed(codes)[0] - both.embed(turned)[1]).max() > 1e-4
    other = corpus([20, 20])
    other.codes = other.codes.copy()
    other.codes[:, :, 1] = (other.codes[:, :, 1] + 1) % SIZES[1]
    assert np.abs(both.embed(codes) - both.embed(other)).max() > 1e-4


def test_nothing_before_the_padding_knows_of_it():
    codes = corpus([10])
    for kind in (LstmEncoder, TransformerEncoder):
        model = kind.new(NetworkConfig(hidden=16, heads=2, dim=8), codes, vectors()).eval()
        batch, lengths = pad([codes[0]], 2, 30)
        batch[0, 10:] = 3
        with torch.no_grad():
            a = model.read(*pad([codes[0]], 1, 10))
            b = model.read(batch, lengths)
        torch.testing.assert_close(a[0], b[0, :10], atol=1e-5, rtol=1e-4)


def test_a_causal_transformer_does_not_see_what_is_to_be_guessed():
    codes = corpus([12])
    model = TransformerEncoder.new(
        NetworkConfig(hidden=16, heads=2, objective="next_code"), codes, vectors()
    ).eval()
    later = codes[0].copy()
    later[8:] = 0
    with torch.no_grad():
        a, b = (model.read(*pad([c], 1, 12)) for c in (codes[0], later))
    torch.testing.assert_close(a[0, :8], b[0, :8])


def test_padded_lengths_grow_by_at_most_a_half():
    sizes = [padded_length(n) for n in range(1, 3000)]
    assert all(s >= n for n, s in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert max(b / a for a, b in zip(sizes, sizes[1:], strict=False)) <= 1.5


def test_codes_of_another_tokenizer_are_refused_and_files_are_proved(tmp_path):
    codes = corpus([5, 6])
    model = LstmEncoder.new(NetworkConfig(hidden=16, dim=8), codes, vectors())
    with pytest.raises(DataError, match="tokenizer"):
        model.embed(corpus([5], tokenizer={"name": "t", "hash": "other"}))
    model.save_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(load_model(tmp_path / "m").embed(codes), model.embed(codes))
    file = tmp_path / "m" / "config.json"
    about = json.loads(file.read_text())
    about["config"]["cfg"]["max_tokens"] = 9
    file.write_text(json.dumps(about))
    with pytest.raises(FormatError, match="hash"):
        load_model(tmp_path / "m")
    with pytest.raises(ConfigError, match="hidden"):
        load_config(NetworkConfig, {"hidden": 15})


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["lstm", "transformer"])
def test_every_objective_trains_both_networks_on_groups_and_odd_lengths(tmp_path, objective, method):
    codes = corpus([1, 1, 2, 3, 20, 40, 5, 6], groups=2)
    model, found = train(tmp_path / "r", codes, settings(objective, method, max_steps=3))
    x = model.embed(codes)
    assert x.shape == (8, 8) and np.isfinite(x).all() and np.isfinite(found["val_loss"])
    assert len(np.unique(x.round(6), axis=0)) >= 6
    assert (tmp_path / "r" / "best" / "model.safetensors").exists() and (
        tmp_path / "r" / "log.jsonl"
    ).exists()


@pytest.mark.parametrize("objective", ["trajectory", "masked_code"])
def test_two_runs_and_one_that_was_interrupted_end_alike(tmp_path, objective, monkeypatch):
    codes, cfg = corpus(range(3, 30)), settings(objective, max_steps=12)
    whole = [train(tmp_path / f"{n}", codes, cfg)[0].content_hash() for n in range(2)]
    step = EncoderTraining.training_step

    def cut(self, batch, index):
        if self.global_step == 7:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(EncoderTraining, "training_step", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", codes, cfg)
    monkeypatch.setattr(EncoderTraining, "training_step", step)
    resumed = train(tmp_path / "cut", codes, cfg, resume=True)[0].content_hash()
    assert {*whole, resumed} == {whole[0]}
    assert (
        train(tmp_path / "other", codes, settings(objective, max_steps=12, seed=1))[0].content_hash()
        != whole[0]
    )


def test_the_network_learns_to_foretell_the_fingerprint(tmp_path):
    codes = corpus(np.random.default_rng(3).integers(5, 30, 60))
    _, short = train(tmp_path / "a", codes, settings(max_steps=1, crop_tokens=64))
    _, long = train(tmp_path / "b", codes, settings(max_steps=60, crop_tokens=64, optimizer={"lr": 1e-2}))
    assert long["val_loss"] < 0.85 * short["val_loss"]


def test_held_out_clips_are_not_learnt_from():
    codes = corpus(range(1, 21))
    seen, held_out = hold_out(codes, 0.1, seed=0)
    assert len(held_out) == 2 and not set(seen.ids) & set(held_out.ids)
    assert [len(part) for part in hold_out(codes.select([0]), 0.1, 0)] == [1, 1]
    assert [len(part) for part in hold_out(codes.select([0, 1]), 0.9, 0)] == [1, 1]


def test_one_clip_alike_clips_and_no_tokens(tmp_path):
    one = corpus([4])
    assert np.isfinite(train(tmp_path / "one", one, settings())[0].embed(one)).all()
    alike = one.select([0] * 5)
    x = train(tmp_path / "alike", alike, settings())[0].embed(alike)
    assert np.isfinite(x).all() and (x == x[0]).all()
    empty = corpus([4])
    empty.codes, empty.offsets = empty.codes[:0], np.zeros(2, np.int64)
    with pytest.raises(DataError, match="no tokens"):
        train(tmp_path / "empty", empty, settings())


def test_code_vectors_start_from_the_codebook_and_move_only_when_asked(tmp_path):
    codes, books = corpus(range(3, 20)), vectors()
    fixed, _ = train(tmp_path / "fixed", codes, settings("masked_code"))
    for have, book in zip(fixed.vectors, books, strict=True):
        np.testing.assert_array_equal(have, book)
    cfg = settings("reconstruction")
    cfg.network.learn_codes = True
    moved, _ = train(tmp_path / "moved", codes, cfg)
    assert max(float(m.detach().abs().max()) for m in moved.moves) > 0
    assert len(code_vectors(codes)) == 2


def test_windows_are_embedded_like_clips(tmp_path):
    codes = corpus([50, 9])
    model = LstmEncoder.new(NetworkConfig(hidden=16, dim=8), codes, vectors())
    e = embed_codes(model, codes, window_tokens=20, l2_normalize=True)
    assert [r["id"] for r in e.rows].count("clip_0") == len(e) - 1
    np.testing.assert_allclose(np.linalg.norm(e.x, axis=1), 1, rtol=1e-5)


def test_every_configured_objective_exists():
    allowed = NetworkConfig.model_fields["objective"].annotation.__args__
    assert set(allowed) == set(encoder_training.OBJECTIVES)


def test_baselines_report_means_and_deviations_and_refuse_too_few_clips():
    codes = corpus([10] * 12, labels=list("abc") * 4)
    rows = baselines(codes, EvalConfig(seeds=2), nuisance=list("xy") * 6)
    assert [row["name"] for row in rows] == ["bow", "avg"]
    for row in rows:
        assert row["clusters"] == 3 and sum(row["sizes"]) == 12
        assert {"ari", "nmi", "accuracy", "nuisance_nmi"} <= set(row["mean"]) == set(row["std"])
    again = baselines(codes, EvalConfig(seeds=2, feature="avg"))
    assert [again[0]["mean"][k] for k in ("ari", "nmi")] == [rows[1]["mean"][k] for k in ("ari", "nmi")]
    assert "silhouette" in rows[1]["mean"]
    with pytest.raises(DataError, match="fewer clips"):
        baselines(codes, EvalConfig(n_components=13))
    with pytest.raises(ConfigError, match="n_components"):
        baselines(corpus([3, 3]))


def test_words_are_told_apart_by_layer_and_group():
    codes = corpus([6, 1, 4], groups=2)
    assert bag_of_words(codes).shape == (3, 2 * sum(SIZES))
    assert averages(codes, vectors()).shape == (3, 12)
    empty = corpus([3, 3])
    empty.codes, empty.offsets = empty.codes[:3], np.array([0, 3, 3])
    assert bag_of_words(empty)[1].nnz == 0 and (averages(empty, vectors())[1] == 0).all()
