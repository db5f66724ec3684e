"""Audio of conversations: what else people record and send, what is broken, and windows that nobody thought of."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.dyad.audio import (
    AudioStream,
    audio_info,
    frame_rate,
    read_audio,
    read_window,
    resample_in_graph,
    sample_at,
)
from tokenize_lib.dyad.config import FeatureConfig
from tokenize_lib.dyad.features import feature_file
from tokenize_lib.dyad.log_mel import LogMelStream, log_mel

REAL = Path(os.environ.get("TOKENIZE_LIB_DATA", "none")) / "dyad"
RATES = (48_000, 44_100, 22_050, 16_000, 8000)


def noise(n, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n).astype(np.float32)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Two seconds and a bit, at each rate."""
    folder = tmp_path_factory.mktemp("recordings")
    for rate in RATES:
        soundfile.write(folder / f"{rate}.wav", noise(2 * rate + 1234), rate, subtype="FLOAT")
    return folder


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    target=st.sampled_from((16_000, 24_000)),
    fps=st.sampled_from((30, 25, 29.97, 12.5, 60)),
    start=st.integers(0, 140),
    frames=st.integers(0, 40),
)
def test_any_window_is_the_whole_files(recordings, rate, target, fps, start, frames):
    begin, end = sample_at(start, fps, target), sample_at(start + frames, fps, target)
    expected = np.zeros(end - begin, np.float32)
    same = read_audio(recordings / f"{rate}.wav", target)[begin:end]
    expected[: len(same)] = same
    got = read_window(recordings / f"{rate}.wav", start, frames, fps, target)
    assert got.dtype == np.float32 and got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    fps=st.sampled_from((30, 25, 29.97)),
    cuts=st.lists(st.integers(0, 2 * 8000), max_size=20),
)
def test_any_pieces_are_the_whole_stream(recordings, rate, fps, cuts):
    x, expected = (
        soundfile.read(recordings / f"{rate}.wav", dtype="float32")[0],
        read_audio(recordings / f"{rate}.wav"),
    )
    audio, rows = AudioStream(fps, rate), LogMelStream(fps)
    heard, seen = [], []
    for piece in np.split(x, sorted(cuts)):
        heard.append(audio.push(piece))
        seen.append(rows.push(heard[-1]))
        assert rows.frames == audio.frames  # whole frames come out, so that each makes its row at once
    heard.append(audio.flush())
    seen.append(rows.push(heard[-1]))
    heard, seen = np.concatenate(heard), np.concatenate(seen)
    assert heard.shape == expected.shape and np.abs(heard - expected).max() < 1e-5
    assert np.abs(seen - log_mel(heard, len(seen), fps)).max() < 1e-6
    assert sample_at(len(seen) + 1, fps, 16_000) > len(heard)  # no frame is left out


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_wav_is_averaged_and_scaled(tmp_path, subtype, channels):
    x = np.stack([noise(48_000, c) for c in range(channels)], 1)
    soundfile.write(tmp_path / "a.wav", x, 48_000, subtype=subtype)
    info = audio_info(tmp_path / "a.wav")
    assert (info.channels, info.subtype, info.samples, info.seconds) == (channels, subtype, 48_000, 1.0)
    got = read_window(tmp_path / "a.wav", 0, 30, 30, sample_rate=48_000)
    assert np.abs(got - x.mean(1)).max() < (0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff", "w64", "caf"])
def test_other_containers(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(96_000), 48_000)
    assert audio_info(path).samples == 96_000
    assert np.abs(read_window(path, 10, 20, 30)).max() > 0.1


def test_what_is_no_audio_is_named(tmp_path):
    (tmp_path / "a.wav").write_text("not at all")
    (tmp_path / "b.wav").touch()
    (tmp_path / "c.raw").write_bytes(bytes(100))
    for name in ("a.wav", "b.wav", "c.raw", "none.wav", "."):
        for read in (audio_info, read_audio, lambda p: read_window(p, 0, 1, 30)):
            with pytest.raises(FormatError) as e:
                read(tmp_path / name)
            assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize("kept", [30, 44, 60, 1000, 190_000])
def test_a_wav_cut_anywhere_is_found_out(tmp_path, kept):
    soundfile.write(tmp_path / "a.wav", noise(48_000), 48_000, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:kept])
    with pytest.raises(FormatError, match="truncated|not audio"):
        audio_info(tmp_path / "cut.wav")


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_a_cut_or_damaged_compressed_file_is_found_out(tmp_path, suffix, capfd):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(480_000), 48_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError):
        audio_info(path)


def test_a_recorder_that_could_not_know_the_length_is_believed(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(48_000), 48_000, subtype="FLOAT")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.find(b"data") + 4
    for unknown in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):
        data[at : at + 4] = unknown
        (tmp_path / "pipe.wav").write_bytes(data)
        assert audio_info(tmp_path / "pipe.wav").samples == 48_000


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    x = noise(48_000)
    x[24_000] = np.nan
    soundfile.write(tmp_path / "a.wav", x, 48_000, subtype="FLOAT")
    for read in (read_audio, lambda p: read_window(p, 10, 10, 30)):
        with pytest.raises(DataError, match="not finite"):
            read(tmp_path / "a.wav")
    assert len(read_window(tmp_path / "a.wav", 0, 5, 30)) == 2667  # a window before it is sound


def test_windows_that_cannot_be(recordings):
    path = recordings / "48000.wav"
    for start, frames in ((-1, 5), (0, -5)):
        with pytest.raises(DataError, match="no such window"):
            read_window(path, start, frames, 30)
    for fps in (0, -30, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="fps"):
            read_window(path, 0, 5, fps)
    assert not read_window(path, 10_000, 150, 30).any()  # long after the end
    soundfile.write(recordings / "empty.wav", np.zeros(0), 48_000)
    assert audio_info(recordings / "empty.wav").samples == 0
    assert read_audio(recordings / "empty.wav").shape == (0,)
    assert not read_window(recordings / "empty.wav", 0, 30, 30).any()


def test_frames_of_an_hour_do_not_drift():
    for fps in (30, 29.97, 25, 23.976):
        exact = [round(t * 16_000 / frame_rate(fps)) for t in range(100_000, 100_100)]
        got = [sample_at(t, fps, 16_000) for t in range(100_000, 100_100)]
        assert (
            np.abs(np.subtract(exact, got)).max() <= 1 and sum(np.not_equal(exact, got)) <= 1
        )  # halves go up
        assert list(sample_at(np.arange(100_000, 100_100), fps, 16_000)) == got
        assert [sample_at(3 * t, 3 * frame_rate(fps), 16_000) for t in range(100_000, 100_100)] == got


def test_many_processes_may_want_the_same_features(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(48_000), 48_000)
    with ThreadPoolExecutor(8) as pool:
        paths = list(
            pool.map(
                lambda _: feature_file(tmp_path / "a.wav", 30, 30, FeatureConfig(), tmp_path / "c"), range(16)
            )
        )
    assert len(set(paths)) == 1 and list((tmp_path / "c").glob("*.npy")) == paths[:1]
    assert not list((tmp_path / "c").glob(".*"))


def test_a_note_that_was_altered_only_costs_time(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(48_000), 48_000)
    os.utime(tmp_path / "a.wav", (1e9, 1e9))
    path = feature_file(tmp_path / "a.wav", 30, 30, FeatureConfig(), tmp_path / "c")
    (note,) = (tmp_path / "c" / "sources").iterdir()
    for text in ("", "{}", "[1, 2]", "null"):
        note.write_text(text)
        assert feature_file(tmp_path / "a.wav", 30, 30, FeatureConfig(), tmp_path / "c") == path


def test_importing_costs_no_library():
    heavy = "soundfile soxr torchaudio transformers sklearn plotly".split()
    code = f"import sys, tokenize_lib.dyad.features; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not REAL.is_dir(), reason="real recordings are not here")
def test_real_recordings():
    import torch

    stereo = REAL / "audio_48k" / "eng1.wav"
    info = audio_info(stereo)
    assert (info.sample_rate, info.channels, info.subtype) == (48_000, 2, "PCM_16")
    whole = read_audio(stereo)
    for start in (0, 37, 200, 390):
        a, b = sample_at(start, 30, 16_000), sample_at(start + 17, 30, 16_000)
        same = np.pad(whole, (0, 16_000))[a:b]
        assert np.abs(read_window(stereo, start, 17, 30) - same).max() < 1e-5
    x = torch.from_numpy(read_audio(stereo, 48_000))
    mine, n = resample_in_graph(x, 48_000, 16_000).numpy(), len(whole)
    # the two filters differ only in the last 5 % below 8 kHz, where speech has next to nothing
    assert np.square(mine[:n] - whole).mean() < 1e-4 * np.square(whole).mean()
    for wav in sorted((REAL / "dualtalk_demo").glob("*.wav")):
        frames = int(audio_info(wav).seconds * 25)
        rows = log_mel(read_audio(wav), frames, 25)
        assert rows.std() > 0.5 and rows.min() >= -7 and rows.max() < 2
