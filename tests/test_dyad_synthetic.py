"""Synthetic conversations end to end: as files, through preparation, to baselines and the floor."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.dyad.baselines import BASELINES, fit_baseline, fit_ridge, view_of
from tokenize_lib.dyad.config import FeatureConfig
from tokenize_lib.dyad.floor import noise_floor, oracle
from tokenize_lib.dyad.manifest import read_manifest
from tokenize_lib.dyad.motion import load_motion, load_states
from tokenize_lib.dyad.prepare import prepare_dialogues
from tokenize_lib.dyad.synthetic import read_truth, simulate, synthetic_dialogues

SMALL = FeatureConfig(bands=8, per_frame=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    listing = synthetic_dialogues(root, dialogues=4, seconds=8, sample_rate=16000, seed=3)
    report = prepare_dialogues(listing, root, root / "prepared", shares=(0.5, 0.25, 0.25), quiet=True)
    assert not report.failures
    return root, read_manifest(root / "prepared").pairs


@pytest.fixture(scope="module")
def baselines(corpus):
    root, pairs = corpus
    train = [p for p in pairs if p.dialog_id != pairs[0].dialog_id]
    fitted = {
        name: fit_baseline(name, train, root / "features", SMALL) for name in BASELINES if name != "ridge"
    }
    return fitted | {"ridge": fit_ridge(train, root / "features", SMALL, lags=20)}


def _digests(root):
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_seed_writes_the_same_recordings(tmp_path):
    for name in ("a", "b"):
        synthetic_dialogues(tmp_path / name, dialogues=1, seconds=2, seed=5)
    a, b = _digests(tmp_path / "a"), _digests(tmp_path / "b")
    same = [k for k in a if not k.endswith(".npz")]  # archives hold the time they were written
    assert len(same) == 6 and {k: a[k] for k in same} == {k: b[k] for k in same}
    synthetic_dialogues(tmp_path / "b", dialogues=1, seconds=2, seed=6)
    assert _digests(tmp_path / "b")[same[-1]] != a[same[-1]]


def test_prepared_motion_is_the_simulated_motion(corpus):
    root, pairs = corpus
    for pair in pairs:
        truth = read_truth(root, pair.dialog_id)
        me = truth.people[truth.ids.index(pair.listener_id)]
        np.testing.assert_allclose(load_motion(pair.listener_motion), me.motion[: pair.T], atol=1e-6)
        assert (load_states(pair.listener_state) == me.state[: pair.T]).all()
        assert pair.T == 240


@pytest.mark.parametrize(("fps", "rate"), [(25, 44100), (30, 48000)])
def test_other_rates_are_consistent(tmp_path, fps, rate):
    listing = synthetic_dialogues(tmp_path, dialogues=1, seconds=4, fps=fps, sample_rate=rate)
    entry = next(iter(next(iter(json.loads(listing.read_text()).values())).values()))
    info = soundfile.info(tmp_path / entry["audio_path"])
    assert info.samplerate == rate and info.frames == round(4 * rate) and entry["frames_num"] == 4 * fps


def test_the_voice_is_where_the_state_says(corpus):
    root, pairs = corpus
    loud = {True: [], False: []}
    for pair in pairs:
        wav, rate = soundfile.read(pair.speaker_audio)
        frames = np.array_split(wav, pair.T)
        for s, x in zip(load_states(pair.speaker_state), frames, strict=True):
            loud[s >= 2].append(np.sqrt(np.mean(x**2)))
    assert np.median(loud[True]) > 30 * np.median(loud[False])


def test_rates_do_not_change_how_much_can_be_known():
    shares = [
        noise_floor([simulate(s, 120, fps, None) for s in range(4)], "listener").share for fps in (25, 30)
    ]
    assert abs(shares[0]["motion54"] / shares[1]["motion54"] - 1) < 0.25


def test_the_oracle_beats_every_baseline(corpus, baselines):
    root, pairs = corpus
    for role in ("listener", "speaker"):
        errors = {name: [] for name in (*baselines, "oracle")}
        for p in pairs[:2]:
            view, talk = view_of(p, role), read_truth(root, p.dialog_id)
            guesses = {name: predict(p, role) for name, predict in baselines.items()}
            guesses["oracle"] = oracle(talk, talk.ids.index(view.who), role)[: p.T]
            for name, guess in guesses.items():
                errors[name].append(np.mean((guess - load_motion(view.target)) ** 2))
        known = np.mean(errors.pop("oracle"))
        assert known < 0.5 * min(np.mean(e) for e in errors.values())


@pytest.mark.parametrize("frames", [1, 2, 14, 16, 45, 47, 240])
def test_baselines_answer_every_length(corpus, baselines, frames):
    _, pairs = corpus
    for predict in baselines.values():
        for role in ("listener", "speaker"):
            out = predict(replace(pairs[0], T=frames), role)
            assert out.shape == (frames, 54) and out.dtype == np.float32 and np.isfinite(out).all()


def test_ridge_hears_no_future(corpus, baselines):
    pairs, predict = corpus[1], baselines["ridge"]
    whole = predict(pairs[0], "listener")
    np.testing.assert_allclose(predict(replace(pairs[0], T=77), "listener"), whole[:77], atol=1e-5)


def test_ridge_on_one_conversation_has_nothing_to_tune_on(corpus):
    root, pairs = corpus
    one = [p for p in pairs if p.dialog_id == pairs[0].dialog_id]
    assert np.isfinite(fit_ridge(one, root / "features", SMALL, lags=3)(pairs[0], "speaker")).all()


def test_clips_too_short_to_copy_from(corpus):
    _, pairs = corpus
    with pytest.raises(DataError, match="too short"):
        fit_baseline("nearest", [replace(p, T=10) for p in pairs], "unused")


def test_truth_that_is_damaged(tmp_path):
    synthetic_dialogues(tmp_path, dialogues=1, seconds=1)
    path = next((tmp_path / "truth").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FormatError, match=path.name):
        read_truth(tmp_path, "V00_S0000_I00000000")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        synthetic_dialogues(tmp_path / "file", dialogues=1, seconds=1)
