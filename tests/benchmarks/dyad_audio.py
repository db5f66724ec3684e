"""A random 5 s window of a 300 s recording at 48 kHz, as 16 kHz: beside the bare libraries and the whole file, in the same run.

python tests/benchmarks/dyad_audio.py [windows]; medians of CPU and wall seconds, the file in the page cache, one thread."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tokenize_lib.dyad.audio import AudioStream, read_audio, read_window, sample_at
from tokenize_lib.dyad.log_mel import LogMelStream, log_mel

SECONDS, RATE, FPS, FRAMES = 300, 48_000, 30, 150


def bare(path, start):
    """What a window costs at least: no margin, no checks, wrong edges."""
    with soundfile.SoundFile(path) as f:
        f.seek(start * RATE // FPS)
        return soxr.resample(f.read(FRAMES * RATE // FPS, dtype="float32"), RATE, 16_000, "HQ")


def whole(path, start):
    """What a window costs when it is cut from the whole recording, resampled."""
    x, _ = soundfile.read(path, dtype="float32")
    x = soxr.resample(x, RATE, 16_000, "HQ")
    return x[sample_at(start, FPS, 16_000) : sample_at(start + FRAMES, FPS, 16_000)]


def ours(path, start):
    return read_window(path, start, FRAMES, FPS)


def measure(path, windows):
    """Median seconds of each way, by turns, so that all meet the same machine."""
    rng, ways = np.random.default_rng(0), {"bare seek + soxr": bare, "read_window": ours, "whole file": whole}
    spent = {name: [] for name in ways}
    for n, start in enumerate(rng.integers(0, SECONDS * FPS - FRAMES, windows + 3)):
        for name, way in ways.items():
            if way is whole and n > 12:
                continue
            started = time.perf_counter()
            way(path, int(start))
            spent[name].append(time.perf_counter() - started)
    return {name: float(np.median(s[3:])) for name, s in spent.items()}


def per_frame(stream, pieces):
    for piece in pieces[:30]:
        stream.push(piece)
    spent = []
    for piece in pieces[30:]:
        started = time.perf_counter()
        stream.push(piece)
        spent.append(time.perf_counter() - started)
    return np.median(spent) * 1e6


def main(windows=200):
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "a.wav"
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, SECONDS * RATE).astype(np.float32)
        soundfile.write(path, noise, RATE, subtype="FLOAT")
        medians = measure(path, windows)
        for name, seconds in medians.items():
            print(f"{name:18} {1000 * seconds:8.2f} ms")
        mine = medians["read_window"]
        print(f"read_window / bare {mine / medians['bare seek + soxr']:.2f} (at most 1.3)")
        print(f"whole / read_window {medians['whole file'] / mine:.0f} (at least 30)")
        error = max(np.abs(ours(path, s) - whole(path, s)).max() for s in (0, 777, 8850))
        print(f"largest difference to the whole file resampled {error:.1e} (below 1e-5)")
        wav = read_audio(path)
    started = time.process_time()
    log_mel(np.tile(wav, 2), 18_000, FPS)
    print(f"log_mel of 10 minutes {time.process_time() - started:.2f} CPU-s")
    cuts = [sample_at(t, FPS, 16_000) for t in range(600)]
    print(
        f"LogMelStream.push {per_frame(LogMelStream(FPS), np.split(wav[: cuts[-1]], cuts[1:-1])):.0f} µs a frame"
    )
    print(
        f"AudioStream.push {per_frame(AudioStream(FPS, RATE), np.split(noise[: 600 * 1600], 600)):.0f} µs a frame"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
