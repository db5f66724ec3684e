"""Frames per CPU-second of encoding and decoding, beside plain convolutional networks with the same tokens in the same run.

One clip at a time and many together, and one clip of a hundred to a million frames; one thread, by `time.process_time`. Run by
`make bench`, or without its tools by `python tests/benchmarks/test_throughput.py`."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenize_lib.pose.clips import Clip, MotionSet
from tokenize_lib.pose.skeleton import load_skeleton
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import build_tokenizer, processed, resolve_config

FRAMES, LEVELS, LAYERS, CODES = 180, 2, 3, 1024  # six seconds; two halvings are l = 4; Q and K
BATCH = 32  # clips
LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)  # frames of one clip


class Residual(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        self.conv, self.mix = (
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x):
        return x + self.mix(F.relu(self.conv(F.relu(x))))


class PlainNetwork(nn.Module):
    """The usual motion tokenizer (T2M-GPT, MoMask): strided convolutions, three dilated residual blocks a level, residual VQ."""

    def __init__(self, channels, width):
        super().__init__()

        def blocks():
            return [Residual(width, d) for d in (9, 3, 1)]

        down = [m for _ in range(LEVELS) for m in (nn.Conv1d(width, width, 4, 2, 1), *blocks())]
        up = [
            m
            for _ in range(LEVELS)
            for m in (*blocks(), nn.Upsample(scale_factor=2), nn.Conv1d(width, width, 3, padding=1))
        ]
        first, last = (nn.Conv1d(a, b, 3, padding=1) for a, b in ((channels, width), (width, channels)))
        self.encoder = nn.Sequential(first, nn.ReLU(), *down, nn.Conv1d(width, width, 3, padding=1))
        before_last = nn.Conv1d(width, width, 3, padding=1)
        self.decoder = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), *up, before_last, nn.ReLU(), last
        )
        self.books = nn.ParameterList(torch.randn(CODES, width) for _ in range(LAYERS))

    @torch.inference_mode()
    def encode(self, clips):
        """Clips [T, J, D] of one length to codes [B, L, Q]."""
        x = torch.from_numpy(np.stack([c.pose for c in clips])).flatten(2)
        left, codes = self.encoder(x.transpose(1, 2)).transpose(1, 2).flatten(0, 1), []
        for book in self.books:
            codes.append((book.square().sum(1) - 2 * left @ book.T).argmin(1))
            left = left - book[codes[-1]]
        return torch.stack(codes, 1).view(len(clips), -1, LAYERS).numpy()

    @torch.inference_mode()
    def decode(self, codes):
        """Codes to [B, T, J * D]."""
        ids = torch.from_numpy(np.stack(list(codes)))
        z = sum(book[ids[..., q]] for q, book in enumerate(self.books))
        return self.decoder(z.transpose(1, 2)).transpose(1, 2).numpy()


def clips(n=16):
    rng, t = np.random.default_rng(0), np.arange(FRAMES)[:, None, None] / 30
    body = rng.normal(size=(21, 3)) * 30
    for i in range(n):
        swing = [
            rng.normal(size=(21, 3)) * 5 * np.sin(6.28 * f * t + rng.uniform(0, 6, (21, 3)))
            for f in (0.4, 1.1, 2.7)
        ]
        yield Clip((body + sum(swing)).astype(np.float32), fps=30.0, id=str(i))


def ours(data) -> PoseTokenizer:
    """The default configuration; time does not depend on what was learnt, as long as no part is zero."""
    torch.manual_seed(0)
    motion = MotionSet("bench", data, load_skeleton("bandai21"), {"train": [c.id for c in data]})
    tokenizer = build_tokenizer(resolve_config(motion), motion, data).eval()
    seen = processed(tokenizer, data)
    tokenizer.network.fit([s.x for s in seen], [s.conf for s in seen])
    nn.init.normal_(tokenizer.network.encoder.to_code.weight, std=0.1)
    with torch.no_grad():
        x, conf = (torch.from_numpy(np.stack([getattr(s, k) for s in seen])) for k in ("x", "conf"))
        z = tokenizer.network.encode(x, conf).flatten(0, 1)
        for q, layer in enumerate(tokenizer.quantizer.layers):  # spread as trained ones are, without twins
            layer.embed.copy_(torch.randn_like(layer.embed) * z.std(0) * 0.6**q)
    return tokenizer.eval()


def frames_per_cpu_second(call, inputs, frames, seconds=1.0):
    for x in inputs[:3]:
        call(x)
    done, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        call(inputs[done % len(inputs)])
        done += 1
    return done * frames / (time.process_time() - started)


def one_thread(measure):
    """Run a measurement on one thread."""

    def run():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return measure()
        finally:
            torch.set_num_threads(threads)

    return run


@one_thread
def measure():
    """Of each: name, parameters, frames per CPU-second: encoded and decoded alone, encoded and decoded in batches."""
    data = list(clips())
    models = {
        "ours": ours(data),
        "plain, 512 wide": PlainNetwork(63, 512).eval(),
        "plain, 192 wide": PlainNetwork(63, 192).eval(),
    }
    rows = []
    for name, model in models.items():
        speeds = []
        for n in (1, BATCH):
            parts = [(data * BATCH)[i : i + n] for i in range(0, 16 if n == 1 else n, n)]
            codes = [model.encode(p) for p in parts]
            speeds += [
                frames_per_cpu_second(f, x, n * FRAMES)
                for f, x in ((model.encode, parts), (model.decode, codes))
            ]
        rows.append((name, sum(p.numel() for p in model.parameters()), *speeds))
    return rows


def table(rows):
    lines = [
        f"frames per CPU-second, one thread, l = 4, 3 x 1024; clips of {FRAMES} frames, alone and {BATCH} together"
    ]
    for name, size, *speeds in rows:
        alone, together = (f"encode {e:9,.0f} decode {d:9,.0f}" for e, d in (speeds[:2], speeds[2:]))
        lines.append(f"  {name:<16} {size / 1e6:5.1f} M parameters   alone: {alone}   together: {together}")
    for name, _, *speeds in rows[1:]:
        ratios = [f"x {ours / theirs:.2f}" for ours, theirs in zip(rows[0][2:], speeds, strict=True)]
        lines.append(f"  ours against {name}: " + ", ".join(ratios))
    return "\n".join(lines)


@pytest.mark.benchmark(group="throughput")
def test_throughput(benchmark, capsys):
    rows = benchmark.pedantic(measure, rounds=1)
    with capsys.disabled():
        print("\n" + table(rows))
    assert all(
        a > b for a, b in zip(rows[0][2:], rows[1][2:], strict=True)
    )  # faster than the network it replaces


@one_thread
def measure_lengths():
    """Of each length: frames per CPU-second encoded and decoded, from one clip."""
    data = list(clips())
    tokenizer, rows = ours(data), []
    one = np.concatenate([c.pose for c in data])
    for T in LENGTHS:
        starts = range(0, 1600, 100) if T < 10_000 else [0]
        many = [Clip(np.resize(np.roll(one, -s, 0), (T, *one.shape[1:])), fps=30.0) for s in starts]
        codes = [tokenizer.encode(c) for c in many]
        works = (tokenizer.encode, many), (tokenizer.decode, codes)
        rows.append(
            (T, *(frames_per_cpu_second(f, x, T, 0.5) if T < 10**5 else once(f, x[0], T) for f, x in works))
        )
    return rows


def once(call, x, frames):
    started = time.process_time()
    call(x)
    return frames / (time.process_time() - started)


def lengths_table(rows):
    return "\n".join(
        ["frames per CPU-second of one clip"]
        + [f"  {T:9,} frames   encode {e:9,.0f}   decode {d:9,.0f}" for T, e, d in rows]
    )


@pytest.mark.benchmark(group="throughput")
def test_throughput_is_level(benchmark, capsys):
    rows = benchmark.pedantic(measure_lengths, rounds=1)
    with capsys.disabled():
        print("\n" + lengths_table(rows))


if __name__ == "__main__":
    print(table(measure()))
    print(lengths_table(measure_lengths()))
