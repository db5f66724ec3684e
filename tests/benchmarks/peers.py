"""Networks and bodies to measure against: what a motion tokenizer usually is, at the same l, Q and K."""

import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tokenize_lib.pose.clips import Clip, MotionSet
from tokenize_lib.pose.skeleton import load_skeleton
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import build_tokenizer, processed, resolve_config


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

    def __init__(self, channels, width, levels=2, layers=3, codes=1024):
        super().__init__()

        def blocks():
            return [Residual(width, d) for d in (9, 3, 1)]

        down = [m for _ in range(levels) for m in (nn.Conv1d(width, width, 4, 2, 1), *blocks())]
        up = [
            m
            for _ in range(levels)
            for m in (*blocks(), nn.Upsample(scale_factor=2), nn.Conv1d(width, width, 3, padding=1))
        ]
        first, last = (nn.Conv1d(a, b, 3, padding=1) for a, b in ((channels, width), (width, channels)))
        self.encoder = nn.Sequential(first, nn.ReLU(), *down, nn.Conv1d(width, width, 3, padding=1))
        before_last = nn.Conv1d(width, width, 3, padding=1)
        self.decoder = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1), nn.ReLU(), *up, before_last, nn.ReLU(), last
        )
        self.books = nn.ParameterList(torch.randn(codes, width) for _ in range(layers))

    @torch.no_grad()
    def encode(self, poses):
        """[B, T, J, D] to codes [B, L, Q]."""
        x = torch.from_numpy(poses).flatten(2)
        left, codes = self.encoder(x.transpose(1, 2)).transpose(1, 2), []
        for book in self.books:
            codes.append((book.square().sum(1) - 2 * left @ book.T).argmin(-1))
            left = left - book[codes[-1]]
        return torch.stack(codes, -1).numpy()

    @torch.no_grad()
    def decode(self, codes):
        """Codes [B, L, Q] to [B, T, J * D]."""
        z = sum(book[torch.from_numpy(codes[..., q])] for q, book in enumerate(self.books))
        return self.decoder(z.transpose(1, 2)).transpose(1, 2).numpy()


def clips(n=16, frames=180):
    """Bodies that swing."""
    rng, t = np.random.default_rng(0), np.arange(frames)[:, None, None] / 30
    body = rng.normal(size=(21, 3)) * 30
    for i in range(n):
        swing = [
            rng.normal(size=(21, 3)) * 5 * np.sin(6.28 * f * t + rng.uniform(0, 6, (21, 3)))
            for f in (0.4, 1.1, 2.7)
        ]
        yield Clip((body + sum(swing)).astype(np.float32), fps=30.0, id=str(i))


def ours(data, refine_rounds=1) -> PoseTokenizer:
    """The default configuration; time does not depend on what was learnt, as long as no part is zero."""
    torch.manual_seed(0)
    motion = MotionSet("bench", data, load_skeleton("bandai21"), {"train": [c.id for c in data]})
    tokenizer = build_tokenizer(
        resolve_config(motion, overrides=[f"model.quantizer.refine_rounds={refine_rounds}"]), motion, data
    ).eval()
    seen = processed(tokenizer, data)
    tokenizer.network.fit([s.x for s in seen], [s.conf for s in seen])
    for part in (
        tokenizer.network.encoder.to_code,
        tokenizer.network.decoder.head,
        tokenizer.network.decoder.coarse,
    ):
        nn.init.normal_(part.weight, std=1e-3)
    with torch.no_grad():
        x, conf = (torch.from_numpy(np.stack([getattr(s, k) for s in seen])) for k in ("x", "conf"))
        z = tokenizer.network.encode(x, conf).flatten(0, 1)
        for q, layer in enumerate(tokenizer.quantizer.layers):  # spread as trained ones are, without twins
            layer.embed.copy_(torch.randn_like(layer.embed) * z.std(0) * 0.6**q)
    return tokenizer.eval()


def frames_per_cpu_second(call, inputs, frames, seconds=1.0):
    """Frames that `call` works through in a second of one processor; each of `inputs` has so many."""
    for x in inputs[:3]:
        call(x)
    done, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        call(inputs[done % len(inputs)])
        done += 1
    return done * frames / (time.process_time() - started)


def speeds(model, clips, batch, seconds=1.0):
    """Frames encoded and decoded per CPU-second, `batch` clips at a time, for a tokenizer of ours or a `PlainNetwork`."""
    groups = [clips[i : i + batch] for i in range(0, len(clips), batch)]
    if isinstance(model, PlainNetwork):
        groups = [np.stack([c.pose for c in g]) for g in groups]
    elif batch == 1:
        groups = [g[0] for g in groups]
    codes, frames = [model.encode(g) for g in groups], batch * len(clips[0])
    return [
        frames_per_cpu_second(f, x, frames, seconds)
        for f, x in ((model.encode, groups), (model.decode, codes))
    ]


def networks(data):
    """Ours with the default settings, and without refinement; and two plain ones."""
    channels = data[0].pose[0].size
    return {
        "ours": ours(data),
        "ours, unrefined": ours(data, refine_rounds=0),
        "plain, 512 wide": PlainNetwork(channels, 512).eval(),
        "plain, 192 wide": PlainNetwork(channels, 192).eval(),
    }
