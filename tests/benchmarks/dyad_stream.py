"""Answering with the default network (random weights, 54 coefficients): in real time, offline, in how much memory; and preparing a corpus twice.

python tests/benchmarks/dyad_stream.py [dialogues]; wall seconds of a warm process. Memory is the peak of a fresh process while it answers, as the operating system (Linux) reports it."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tokenize_lib.dyad.answer import answer
from tokenize_lib.dyad.audio import sample_at
from tokenize_lib.dyad.config import FeatureConfig, MotionVQConfig
from tokenize_lib.dyad.dim import DIM, DimConfig
from tokenize_lib.dyad.features import feature_dim
from tokenize_lib.dyad.log_mel import log_mel
from tokenize_lib.dyad.motion_vq import MotionVQ
from tokenize_lib.dyad.prepare import prepare_dialogues
from tokenize_lib.dyad.stream import DyadStream
from tokenize_lib.dyad.synthetic import simulate, synthetic_dialogues

FPS, STREAMED, OFFLINE, SHORT, LONG = 30, 900, 5460, 5460, 54_000


def default_model():
    torch.manual_seed(0)
    features = FeatureConfig()
    return DIM(
        DimConfig(), {"both": MotionVQ(MotionVQConfig(), fps=FPS)}, features, feature_dim(features)
    ).eval()


def streamed(model, motion, audio, rate):
    """Frames pushed one by one with their sound: milliseconds of each, of the processor on average, most frames that answers lag behind, answers."""
    stream, late = DyadStream(model, sample_rate=rate), 0
    cuts = [sample_at(t, FPS, rate) for t in range(len(motion) + 1)]
    spent, out, before = [], [], time.process_time()
    for t, frame in enumerate(motion):
        started = time.perf_counter()
        out.append(stream.push(audio[cuts[t] : cuts[t + 1]], frame[None]))
        spent.append(1000 * (time.perf_counter() - started))
        late = max(late, t + 1 - stream.frames)
    cpu = 1000 * (time.process_time() - before) / len(motion)
    return np.array(spent), cpu, late, np.concatenate([*out, stream.flush()])


def speed():
    model = default_model()
    talk = {rate: simulate(0, STREAMED / FPS, FPS, rate).people[0] for rate in (16_000, 48_000)}
    heard = np.random.default_rng(0).standard_normal((OFFLINE, 40), np.float32)
    seen = np.random.default_rng(1).standard_normal((OFFLINE, 54), np.float32)
    print(f"{'':34}{'frames/s':>10}{'median ms':>11}{'99 % ms':>9}{'CPU ms':>8}{'latency':>9}")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for rate, person in talk.items():
            streamed(model, person.motion[:60], person.audio, rate)
            spent, cpu, late, _ = streamed(model, person.motion, person.audio, rate)
            name = f"stream, {rate // 1000} kHz, {threads} thread{'s' * (threads > 1)}"
            print(
                f"{name:34}{1000 / spent.mean():10.0f}{np.median(spent):11.2f}{np.quantile(spent, 0.99):9.2f}{cpu:8.2f}{late:9d}"
            )
        started = time.perf_counter()
        answer(model, "listener", heard, seen)
        name = f"offline, {OFFLINE} frames, {threads} thread{'s' * (threads > 1)}"
        print(f"{name:34}{OFFLINE / (time.perf_counter() - started):10.0f}")
    offline = answer(model, "listener", log_mel(talk[16_000].audio, STREAMED, FPS), talk[16_000].motion)
    online = streamed(model, talk[16_000].motion, talk[16_000].audio, 16_000)[-1]
    print(f"largest difference of stream and offline {np.abs(online - offline).max():.1e} (at most 1e-5)")
    print("targets: stream at least 300 frames/s on two cores, latency at most 2 frames")


def held(line):
    """MB that the operating system says this process holds (VmRSS), or held at most (VmHWM)."""
    status = dict(x.split(":", 1) for x in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) / 1000


def answer_from_files(folder, mode):
    """What the fresh process does: load, forget the peak of loading, answer."""
    torch.set_num_threads(1)
    model, seen = default_model(), np.load(Path(folder) / "motion.npy", mmap_mode="r")
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    if mode == "offline":
        answer(model, "listener", np.load(Path(folder) / "features.npy", mmap_mode="r"), seen)
    else:
        stream, rng = DyadStream(model), np.random.default_rng(0)
        for t in range(0, len(seen), 10):
            n = sample_at(t + 10, FPS, 16_000) - sample_at(t, FPS, 16_000)
            stream.push(rng.standard_normal(n, np.float32), seen[t : t + 10])
    print(before, held("VmHWM"))


def memory():
    rng, env = np.random.default_rng(0), os.environ | {"OMP_NUM_THREADS": "1"}
    print(f"\n{'peak memory, MB':16}{'loaded':>10}{f'{SHORT} frames':>15}{f'{LONG} frames':>15}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as d:
        for frames in (SHORT, LONG):
            (folder := Path(d) / str(frames)).mkdir()
            np.save(folder / "motion.npy", rng.standard_normal((frames, 54), np.float32))
            np.save(folder / "features.npy", rng.standard_normal((frames, 40), np.float32))
        for mode in ("offline", "stream"):
            commands = [
                [sys.executable, __file__, "--answer", f"{d}/{frames}", mode] for frames in (SHORT, LONG)
            ]
            said = [subprocess.run(c, env=env, check=True, capture_output=True, text=True) for c in commands]
            (loaded, short), (_, long) = ([float(x) for x in done.stdout.split()] for done in said)
            print(f"{mode:16}{loaded:10.0f}{short:15.0f}{long:15.0f}{long / short:8.2f}")
    print("target: ratio at most 1.5; offline includes the files, which are mapped, and the answer itself")


def prepared(dialogues):
    with tempfile.TemporaryDirectory() as d:
        source, out = synthetic_dialogues(d, dialogues=dialogues, seconds=182), Path(d) / "prepared"
        took, times = [], []
        for _ in range(2):
            started = time.perf_counter()
            report = prepare_dialogues(source, d, out, quiet=True)
            took.append(time.perf_counter() - started)
            times.append({p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()})
        rewritten = sum(times[0].get(p) != t for p, t in times[1].items())
        motions = len(list(out.rglob("*_motion.npy")))
    print(f"\nprepare {dialogues} dialogues of 182 s: {took[0]:.2f} s, again {took[1]:.3f} s,", end=" ")
    print(
        f"{took[1] / took[0]:.1%} (at most 5 %), {report.written} dialogues and {rewritten} files rewritten (0)"
    )
    print(f"{motions} motion files for {2 * dialogues} participants")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer_from_files(*sys.argv[2:])
    else:
        speed()
        memory()
        prepared(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
