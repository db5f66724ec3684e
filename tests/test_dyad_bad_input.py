"""Conversations at other rates, of one frame, shorter than a window, and of people who sit still: through everything that learns, answers or scores."""

import json

import numpy as np
import pytest
import soundfile
import torch

from tokenize_lib.core.config import load_config
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.core.run import Run
from tokenize_lib.dyad.answer import answer
from tokenize_lib.dyad.baselines import BASELINES, fit_baseline, fit_ridge
from tokenize_lib.dyad.config import DialogueConfig, FeatureConfig, MotionVQConfig
from tokenize_lib.dyad.dataset import DyadicBatches, DyadicDataset
from tokenize_lib.dyad.dim import DIM, ROLES, DimConfig
from tokenize_lib.dyad.dim_training import DimRunConfig, train_dim
from tokenize_lib.dyad.evaluate import evaluate_predictions, true_motion
from tokenize_lib.dyad.features import feature_file
from tokenize_lib.dyad.manifest import read_manifest
from tokenize_lib.dyad.metrics import score_clip
from tokenize_lib.dyad.motion import load_motion
from tokenize_lib.dyad.motion_vq import MotionVQ
from tokenize_lib.dyad.own_audio import own_audio_predictor
from tokenize_lib.dyad.own_audio_training import OwnAudioRunConfig, fit_own_audio, train_own_audio
from tokenize_lib.dyad.prepare import prepare_dialogues
from tokenize_lib.dyad.stream import DyadStream
from tokenize_lib.dyad.synthetic import synthetic_dialogues

TINY_VQ = MotionVQConfig(width=64, heads=2, past=4, num_codebooks=2, codebook_size=8, code_dim=8)
TINY = {"width": 16, "heads": 2, "past": 4}
FEW = {"max_steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Three conversations of three seconds at 25 fps, prepared by somebody who says so."""
    root = tmp_path_factory.mktemp("slow")
    listing = synthetic_dialogues(root, dialogues=3, seconds=3, fps=25, sample_rate=44_100)
    prepare_dialogues(listing, root, root / "out", fps=25, shares=(1, 0, 0), quiet=True)
    return root


@pytest.fixture(scope="module")
def pairs(slow):
    return read_manifest(slow / "out").pairs


def baseline(name, pairs, cache):
    """One of the table; ridge with a short memory, which is quick."""
    return fit_ridge(pairs, cache, lags=5) if name == "ridge" else fit_baseline(name, pairs, cache)


def tokenizer(fps):
    torch.manual_seed(0)
    vq = MotionVQ(TINY_VQ, fps=fps)
    vq.fit_normalisation([np.random.default_rng(0).standard_normal((99, 54))])
    return vq.eval()


def network(fps, audio_sr=16_000):
    model = DIM(DimConfig(**TINY), {"both": tokenizer(fps)}, FeatureConfig(), 40, audio_sr).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def start(folder, cfg):
    run = Run.start(folder, cfg)
    run.quiet = True
    return run


def test_a_list_without_rates_is_checked_against_the_sound(slow, tmp_path):
    report = prepare_dialogues(
        slow / "dataset_jsons/synthetic.json", slow, tmp_path, shares=(1, 0, 0), quiet=True
    )
    assert sum("they would fit at 25 fps" in text for _, text in report.remarks) == 6
    said = prepare_dialogues(slow / "dataset_jsons/synthetic.json", slow, slow / "out", fps=25, quiet=True)
    assert not any("would fit" in text for _, text in said.remarks) and said.stats["fps"] == {"25": 3}


def test_every_part_takes_the_rate_it_is_given(slow, pairs):
    cfg = DialogueConfig(window_frames=30, audio_sr=24_000)
    data = DyadicDataset(pairs, cfg, FeatureConfig(), audio=True, feature_folder=slow / "cache")
    batch = DyadicBatches(data, 2)(0)
    assert data.fps == 25 and batch["speaker_audio"].shape == (2, 28_800)
    assert batch["speaker_features"].shape == (2, 30, 40) and batch["mask"].all()
    pair, model = pairs[0], network(25, 24_000)
    heard = np.load(feature_file(pair.speaker_audio, pair.T, 25, FeatureConfig(), slow / "cache", 24_000))
    seen, sound = load_motion(pair.speaker_motion), soundfile.read(pair.speaker_audio, dtype="float32")[0]
    stream, out = DyadStream(model, sample_rate=44_100), []
    for t in range(pair.T):
        out.append(stream.push(sound[t * 1764 : (t + 1) * 1764], seen[t : t + 1]))
    out = np.concatenate([*out, stream.flush()])
    assert np.abs(out - answer(model, "listener", heard, seen)).max() < 1e-5


def test_a_model_of_another_rate_is_refused(slow, pairs, tmp_path):
    own = fit_own_audio(pairs, slow / "cache", load_config(OwnAudioRunConfig, {"model": TINY, "train": FEW}))
    assert own.fps == 25 and own_audio_predictor(own, slow / "cache")(pairs[0], "listener").shape == (75, 54)
    quick = [p.__class__(**vars(p) | {"fps": 30.0}) for p in pairs]
    with pytest.raises(DataError, match="frame rate"):
        own_audio_predictor(own, slow / "cache")(quick[0], "listener")
    cfg = load_config(DimRunConfig, {"model": TINY, "train": FEW, "data": {"window_frames": 30}})
    whole = cfg.data.model_copy(update={"is_train": False})
    train = DyadicDataset(pairs, cfg.data, cfg.features, feature_folder=slow / "cache")
    val, other = (
        DyadicDataset(p, whole, cfg.features, feature_folder=slow / "cache") for p in (pairs, quick)
    )
    with pytest.raises(ConfigError, match="other motion"):
        train_dim(train, val, {"both": tokenizer(30)}, cfg, start(tmp_path / "a", cfg))
    with pytest.raises(ConfigError, match="fps"):
        train_dim(train, other, {"both": tokenizer(25)}, cfg, start(tmp_path / "b", cfg))
    own_cfg = load_config(OwnAudioRunConfig, {"model": TINY, "train": FEW})
    with pytest.raises(ConfigError, match="fps"):
        train_own_audio(train, other, own_cfg, start(tmp_path / "c", own_cfg))


def test_windows_longer_than_the_clips_are_learnt_from(slow, pairs, tmp_path):
    cfg = load_config(DimRunConfig, {"model": TINY, "train": FEW})  # windows of 150 frames, clips of 75
    whole = cfg.data.model_copy(update={"is_train": False})
    train, val = (
        DyadicDataset(pairs, data, cfg.features, feature_folder=slow / "cache") for data in (cfg.data, whole)
    )
    assert DyadicBatches(train, 2)(0)["mask"].sum(1).tolist() == [75, 75]
    result = train_dim(train, val, {"both": tokenizer(25)}, cfg, start(tmp_path / "run", cfg))
    assert result.steps == 2 and np.isfinite(result.best)


@pytest.mark.parametrize("frames", [1, 2, 75])
def test_one_frame_is_answered_streamed_and_predicted(slow, pairs, frames):
    pair = pairs[0].__class__(**vars(pairs[0]) | {"T": frames})
    heard = np.load(feature_file(pair.speaker_audio, frames, 25, FeatureConfig(), slow / "cache"))
    seen, model = load_motion(pair.speaker_motion)[:frames], network(25)
    assert heard.shape == (frames, 40)
    for role in ROLES:
        out = answer(model, role, heard, seen)
        assert out.shape == (frames, 54) and np.isfinite(out).all()
        stream = DyadStream(model, role, sample_rate=44_100)
        sound = soundfile.read(pair.speaker_audio, dtype="float32")[0][: frames * 1764]
        streamed = np.concatenate([stream.push(sound, seen), stream.flush()])
        assert streamed.shape == (frames, 54)
        for name in BASELINES:
            guess = baseline(name, pairs[2:], slow / "cache")(pair, role)
            assert guess.shape == (frames, 54) and np.isfinite(guess).all(), name
    scores = evaluate_predictions(true_motion, [pair]).summary["whole"].values["exp"]
    assert scores["mse"] == 0 and np.isnan(scores["fd"]) == (frames == 1)


def test_people_who_sit_still(slow, pairs, tmp_path):
    rng = np.random.default_rng(0)
    moving, still = rng.standard_normal((75, 54)), np.ones((75, 54))
    scores = score_clip(still, moving, moving)["whole"]
    assert np.isnan(scores.values["exp"]["rpcc"]) and "exp: no rpcc: gt does not move" in scores.notes
    assert "exp: no rpcc: other does not move" in score_clip(moving, moving + 1, still)["whole"].notes
    both = score_clip(still, still, still)["whole"]
    assert both.values["jaw"]["mse"] == 0 and np.isnan(both.values["jaw"]["rpcc"])
    for k in ("speaker", "listener"):
        np.save(tmp_path / f"{k}.npy", still.astype(np.float32))
    frozen = [p.__class__(**vars(p) | {f"{r}_motion": tmp_path / f"{r}.npy" for r in ROLES}) for p in pairs]
    for name in BASELINES:
        guess = baseline(name, frozen, slow / "cache")(frozen[0], "listener")
        assert np.abs(guess - 1).max() < 1e-5, name
    with pytest.raises(DataError, match="does not move"):
        fit_own_audio(frozen, slow / "cache", load_config(OwnAudioRunConfig, {"train": FEW}))
    with pytest.raises(DataError, match="does not move"):
        MotionVQ(TINY_VQ).fit_normalisation([still])


@pytest.mark.parametrize("spoil", ["removed", "cut", "not audio"])
def test_sound_that_breaks_after_preparing_is_named(slow, pairs, tmp_path, spoil):
    voice = tmp_path / "voice.wav"
    if spoil != "removed":
        content = pairs[0].speaker_audio.read_bytes()
        voice.write_bytes(content[: len(content) // 2] if spoil == "cut" else b"nothing to hear")
    pair = pairs[0].__class__(**vars(pairs[0]) | {"speaker_audio": voice})
    with pytest.raises(FormatError, match=r"voice\.wav"):
        DyadicDataset([pair], DialogueConfig(), FeatureConfig(), feature_folder=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_a_manifest_that_was_written_by_hand(slow, tmp_path):
    entries = json.loads((slow / "out/manifest.json").read_text())
    for key, value, words in (
        ("fps", 0, "fps"), ("fps", "25", "fps"), ("T", 0, "T"), ("T", 75.5, "T"), ("speaker_audio", None, "speaker_audio"),
    ):  # fmt: skip
        (tmp_path / "manifest.json").write_text(json.dumps([entries[0] | {key: value}]))
        with pytest.raises(FormatError, match=words):
            read_manifest(tmp_path)
    longer = json.dumps([entries[0] | {"T": 76}]).replace('"V00', f'"{slow / "out"}/V00')
    (tmp_path / "manifest.json").write_text(longer)
    with pytest.raises((FormatError, DataError)):
        DyadicDataset(read_manifest(tmp_path).pairs, DialogueConfig(is_train=False))[0]
