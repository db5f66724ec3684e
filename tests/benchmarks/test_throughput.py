"""Frames per CPU-second of encoding and decoding, beside plain convolutional networks with the same tokens in the same run.

One clip at a time, one thread, by `time.process_time`, so that a busy machine gives the same figures. Run by `make bench`,
or without its tools by `python tests/benchmarks/test_throughput.py`."""

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

    @torch.no_grad()
    def encode(self, clip):
        """[T, J, D] to codes [L, Q]."""
        x = torch.from_numpy(clip.pose).flatten(1)
        left, codes = self.encoder(x.T[None])[0].T, []
        for book in self.books:
            codes.append((book.square().sum(1) - 2 * left @ book.T).argmin(1))
            left = left - book[codes[-1]]
        return torch.stack(codes, 1).numpy()

    @torch.no_grad()
    def decode(self, codes):
        """Codes to [T, J * D]."""
        z = sum(book[torch.from_numpy(c)] for book, c in zip(self.books, codes.T, strict=True))
        return self.decoder(z.T[None])[0].T.numpy()


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


def measure():
    """(name, parameters, frames encoded, frames decoded per CPU-second) of each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = list(clips())
    named = {
        "ours": ours(data),
        "plain, 512 wide": PlainNetwork(63, 512).eval(),
        "plain, 192 wide": PlainNetwork(63, 192).eval(),
    }
    rows = []
    for name, model in named.items():
        codes = [model.encode(c) for c in data]
        speeds = [
            frames_per_cpu_second(f, x, FRAMES) for f, x in ((model.encode, data), (model.decode, codes))
        ]
        rows.append((name, sum(p.numel() for p in model.parameters()), *speeds))
    torch.set_num_threads(threads)
    return rows


def table(rows):
    baseline, lines = rows[1:], ["frames per CPU-second, batch 1, one thread, l = 4, 3 x 1024"]
    lines += [
        f"  {n:<16} {p / 1e6:5.1f} M parameters   encode {e:9,.0f}   decode {d:9,.0f}" for n, p, e, d in rows
    ]
    for name, _, e, d in baseline:
        lines.append(f"  ours against {name}: encode x {rows[0][2] / e:.2f}, decode x {rows[0][3] / d:.2f}")
    return "\n".join(lines)


@pytest.mark.benchmark(group="throughput")
def test_throughput(benchmark, capsys):
    rows = benchmark.pedantic(measure, rounds=1)
    with capsys.disabled():
        print("\n" + table(rows))
    assert rows[0][2] > rows[1][2] and rows[0][3] > rows[1][3]  # faster than the network it replaces


if __name__ == "__main__":
    print(table(measure()))
