"""Motion in codes: any length, any company, other rates and widths, damaged files, and the verbs around it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_lib.cli.dyad_train import app
from tokenize_lib.cluster.sequences import load_code_set
from tokenize_lib.core.checkpoint import load_model
from tokenize_lib.core.config import load_config
from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.core.files import write_json
from tokenize_lib.dyad.config import MotionVQConfig, MotionVQRunConfig
from tokenize_lib.dyad.manifest import Pair, manifest_entries, read_manifest
from tokenize_lib.dyad.motion_vq import MotionVQ, decode_motion, encode_motion
from tokenize_lib.dyad.synthetic import simulate
from tokenize_lib.dyad.vq_training import (
    MotionBatches,
    MotionTrack,
    _encode_person,
    new_motion_vq,
    start_codebooks,
)
from tokenize_lib.quantize.codes import Codes

SMALL = {"width": 64, "codebook_size": 16, "num_codebooks": 2}
QUICK = [
    f"-o{x}"
    for x in ("train.max_steps=4", "model.width=64", "model.codebook_size=16", "logging.tensorboard=false")
]


def people(seed: int, seconds: float) -> list[MotionTrack]:
    talk = simulate(seed, seconds, sample_rate=None).people
    return [MotionTrack(f"{seed}/{i}", p.motion, p.state) for i, p in enumerate(talk)]


def fitted(dim: int = 54, **model: object) -> MotionVQ:
    tracks = [MotionTrack(t.id, t.motion[:, :dim], t.state) for t in people(0, 20)]
    cfg = load_config(MotionVQRunConfig, {"model": SMALL | model, "data": {"motion_dim": dim}})
    vq = new_motion_vq(tracks, 30, cfg)
    start_codebooks(vq, MotionBatches(tracks, 60, 8))
    torch.manual_seed(0)
    for layer in (vq.encoded, vq.decoded):  # as if it had learnt something
        torch.nn.init.normal_(layer.weight, std=0.05)
    return vq.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vq() -> MotionVQ:
    return fitted()


@pytest.fixture(scope="module")
def long() -> np.ndarray:
    return people(9, 182)[0].motion  # 5460 frames


@pytest.mark.parametrize("frames", [1, 29, 149, 150, 151, 5460])
def test_pieces_are_the_whole(vq: MotionVQ, long: np.ndarray, frames: int):
    codes, once = vq.encode(long[:frames], 30), encode_motion(vq, long[:frames], piece=1365)
    assert codes.ids.shape == (frames, 2) and codes.length == frames
    assert (codes.ids != once.ids).any(1).mean() < 2e-3  # frames between two codes
    back = vq.decode(codes)
    assert back.shape == (frames, 54) and back.dtype == np.float32
    np.testing.assert_allclose(back, decode_motion(vq, codes, piece=1365), atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 1000))
def test_codes_do_not_depend_on_company(vq: MotionVQ, lengths: list[int], start: int):
    motion = torch.from_numpy(people(3, 40)[0].motion)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch = torch.zeros(*mask.shape, 54)
    for row, n in zip(batch, lengths, strict=True):
        row[:n] = motion[start : start + n]
    together, z = vq.codes(batch, mask), vq.latents(batch, mask)
    decoded = vq.decode_vectors(vq.vectors(together), mask)
    assert not together[~mask].any() and not decoded[~mask].any()
    for i, n in enumerate(lengths):
        torch.testing.assert_close(z[i, :n], vq.latents(batch[i : i + 1, :n])[0], atol=1e-4, rtol=1e-4)
        alone = vq.decode_vectors(vq.vectors(together[i : i + 1, :n]))[0]
        torch.testing.assert_close(decoded[i, :n], alone, atol=1e-5, rtol=1e-5)


def test_padding_does_not_teach():
    """What is behind the end of a person changes neither the loss nor the codebooks."""
    found = []
    for rest in (0.0, 100.0):
        vq, motion = fitted(quantizer_dropout=0.0).train(), torch.full((2, 60, 54), rest)
        mask = torch.arange(60) < torch.tensor([[60], [23]])
        motion[mask] = torch.from_numpy(people(3, 4)[0].motion[:83])
        made, quantised = vq(motion, mask)
        found.append((made[mask], quantised.loss, vq.books[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_51_is_54_without_the_neck(long: np.ndarray):
    vq = fitted(51)
    assert set(vq.groups) == {"exp", "jaw"}
    assert vq.decode(vq.encode(long[:200, :51])).shape == (200, 51)
    with pytest.raises(DataError, match="54"):
        vq.encode(long[:200])


def test_first_layers_decode(vq: MotionVQ, long: np.ndarray):
    codes = vq.encode(long[:300])
    coarse, fine = vq.decode(codes.select(1)), vq.decode(codes)
    assert np.square(fine - long[:300]).sum() < np.square(coarse - long[:300]).sum()


def test_codes_of_others_are_refused(vq: MotionVQ, long: np.ndarray):
    codes = vq.encode(long[:30])
    with pytest.raises(FormatError, match="another tokenizer"):
        fitted(codebook_size=8).decode(codes)
    codes.tokenizer = {"name": "", "hash": ""}  # nobody knows whose they are
    with pytest.raises(FormatError, match="does not fit"):
        fitted(codebook_size=8).decode(codes)


def test_seed_settings_are_those_of_the_paper():
    cfg = load_config(MotionVQRunConfig, "dyad/seed")
    assert cfg.data.manifest_path == "data/seamless_processed/manifest.json"
    made = MotionVQ(cfg.model, cfg.data.motion_dim, cfg.data.fps)
    assert [tuple(b.shape) for b in made.books] == [(512, 128)]


def test_a_decoder_that_looks_ahead_still_decodes_everything(long: np.ndarray):
    vq = fitted(decoder_future=3)
    codes = vq.encode(long[:400])
    np.testing.assert_allclose(
        decode_motion(vq, codes, piece=400), decode_motion(vq, codes, piece=64), atol=1e-5
    )
    assert MotionVQConfig().decoder_future == 0


def prepared(folder: Path, seeds: range = range(3), fps: float = 30) -> Path:
    pairs = []
    for seed in seeds:
        at = folder / f"talk{seed}"
        at.mkdir(parents=True)
        for name, track in zip("AB", people(seed, 6), strict=True):
            np.save(at / f"{name}_motion.npy", track.motion)
            np.save(at / f"{name}_state.npy", track.state)
        ends = {
            f"{role}_{what}": at / f"{name}_{what}.npy"
            for role, name in (("speaker", "A"), ("listener", "B"))
            for what in ("motion", "audio", "state", "shape")
        }
        pairs.append(Pair(f"talk{seed}", "A", "B", fps, 180, **ends))
    write_json(
        folder / "manifest.json", manifest_entries([d for p in pairs for d in (p, p.reversed)], folder)
    )
    names = [p.dialog_id for p in pairs]
    write_json(folder / "splits.json", {"train": names[:-1], "val": names[-1:], "test": []})
    return folder


def verb(*arguments: object) -> typer.testing.Result:
    return typer.testing.CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    data, out = prepared(folder / "prepared"), folder / "run"
    said = verb("train-vq", "--data", data, "--out", out, "--quiet", "--json", *QUICK)
    assert said.exit_code == 0, said.stderr
    metrics = json.loads(said.stdout)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics["val"]) >= {"nmse", "nmse_exp", "nmse_jaw", "nmse_neck", "nmse_velocity", "usage_4"}
    return folder


def test_codes_of_a_corpus_are_read_by_the_cluster_room(run: Path, tmp_path: Path):
    said = verb(
        "encode", "--model", run / "run", "--data", run / "prepared", "--out", tmp_path / "codes", "--json"
    )
    assert said.exit_code == 0 and json.loads(said.stdout)["people"] == 6
    codes = load_code_set(tmp_path / "codes")
    assert sorted(codes.ids) == [f"talk{i}/{name}" for i in range(3) for name in "AB"]
    model = load_model(run / "run")
    assert codes.codebook_sizes == model.quantizer.codebook_sizes


def test_a_split_is_encoded_alone_and_again_the_same(run: Path, tmp_path: Path):
    for n in range(2):
        how = ("--out", tmp_path / str(n), "--split", "train", "--quiet")
        assert verb("encode", "--model", run / "run", "--data", run / "prepared", *how).exit_code == 0
    first, again = (tmp_path / f"{n}/code_indices.json" for n in range(2))
    assert first.read_bytes() == again.read_bytes()
    assert {i.split("/")[0] for i in load_code_set(first).ids} == {"talk0", "talk1"}


def test_work_can_be_handed_to_another_process(run: Path, tmp_path: Path):
    pair = read_manifest(run / "prepared").pairs[0]
    model = (str(run / "run"), "cpu", load_model(run / "run").content_hash())
    work = pickle.loads(pickle.dumps((_encode_person, (model, "talk0/A", pair, tmp_path, True))))
    codes, problem = work[0](*work[1])
    assert problem == "" and Codes.load(tmp_path / "talk0/A.codes.json") == pickle.loads(pickle.dumps(codes))


def test_bad_files_are_named_and_the_rest_goes_on(run: Path, tmp_path: Path):
    data = prepared(tmp_path / "data")
    np.save(data / "talk0/A_motion.npy", np.full((180, 54), np.nan, np.float32))
    (data / "talk1/B_motion.npy").write_bytes(b"")
    said = verb("encode", "--model", run / "run", "--data", data, "--out", tmp_path / "codes", "--json")
    assert said.exit_code == 1 and json.loads(said.stdout)["people"] == 4
    assert "talk0/A" in said.stderr and "talk1/B" in said.stderr
    strict = verb("encode", "--model", run / "run", "--data", data, "--out", tmp_path / "strict", "--strict")
    assert strict.exit_code == 2 and not (tmp_path / "strict/code_indices.json").exists()


def test_another_rate_is_refused(run: Path, tmp_path: Path):
    data = prepared(tmp_path / "data", range(3), fps=25)
    said = verb("encode", "--model", run / "run", "--data", data, "--out", tmp_path / "codes")
    assert said.exit_code == 2 and "another frame rate" in said.stderr
    said = verb("train-vq", "--data", data, "--out", tmp_path / "run", "-o", "data.fps=30", *QUICK)
    assert said.exit_code == 2 and "25" in said.stderr and not (tmp_path / "run").exists()
    said = verb("train-vq", "--data", data, "--out", tmp_path / "run", "--json", *QUICK)
    assert said.exit_code == 0 and json.loads(said.stdout)["fps"] == 25


def test_training_refuses_what_it_cannot_use(run: Path, tmp_path: Path):
    taken = verb("train-vq", "--data", run / "prepared", "--out", run / "run", *QUICK)
    assert taken.exit_code == 2 and "finished run" in taken.stderr
    nothing = verb("train-vq", "--data", tmp_path / "nowhere", "--out", tmp_path / "a", *QUICK)
    assert nothing.exit_code == 2 and not (tmp_path / "a").exists()
    mute = prepared(tmp_path / "mute")
    for file in mute.glob("*/*_state.npy"):
        np.save(file, np.ones(180, int))
    said = verb("train-vq", "--data", mute, "--out", tmp_path / "b", "-o", "role=speaker", *QUICK)
    assert said.exit_code == 2 and "speaker" in said.stderr
