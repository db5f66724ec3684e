"""Frames per CPU-second of encoding and decoding, beside plain convolutional networks with the same tokens in the same run.

One clip at a time and 32 together, and one clip of a hundred to a million frames; one thread, by `time.process_time`. Run by
`make bench`, or without its tools by `python tests/benchmarks/test_throughput.py`."""

import time

import numpy as np
import pytest
import torch
from peers import clips, networks, speeds

from tokenize_lib.pose.clips import Clip

LENGTHS = (100, 1_000, 10_000, 100_000, 1_000_000)  # frames of one clip


def measure(batch):
    """(name, parameters, frames encoded, frames decoded per CPU-second) of each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = list(clips(32))
    rows = [
        (name, sum(p.numel() for p in model.parameters()), *speeds(model, data, batch))
        for name, model in networks(data).items()
    ]
    torch.set_num_threads(threads)
    return rows


def table(rows, batch):
    lines = [f"frames per CPU-second, batch {batch}, one thread, l = 4, 3 x 1024"]
    lines += [
        f"  {n:<16} {p / 1e6:5.1f} M parameters   encode {e:9,.0f}   decode {d:9,.0f}" for n, p, e, d in rows
    ]
    for name, _, e, d in rows[1:]:
        lines.append(f"  ours against {name}: encode x {rows[0][2] / e:.2f}, decode x {rows[0][3] / d:.2f}")
    return "\n".join(lines)


@pytest.mark.benchmark(group="throughput")
@pytest.mark.parametrize("batch", [1, 32])
def test_throughput(benchmark, capsys, batch):
    rows = benchmark.pedantic(measure, (batch,), rounds=1)
    with capsys.disabled():
        print("\n" + table(rows, batch))
    wide = rows[2]  # the network that ours replaces
    assert rows[0][2] > wide[2] and rows[0][3] > wide[3]


def once(call, clip, frames):
    call(clip) if frames <= 1000 else None
    started = time.process_time()
    call(clip)
    return frames / (time.process_time() - started)


def measure_lengths(lengths=LENGTHS):
    """Frames per CPU-second of one clip of each length, encoded and decoded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data, rows = list(clips(16)), []
    tokenizer, one = networks(data)["ours"], np.concatenate([c.pose for c in data])
    for T in lengths:
        clip = Clip(np.resize(one, (T, *one.shape[1:])), fps=30.0)
        codes = tokenizer.encode(clip)
        rows.append((T, once(tokenizer.encode, clip, T), once(tokenizer.decode, codes, T)))
    torch.set_num_threads(threads)
    return rows


def lengths_table(rows):
    lines = [f"  {T:9,} frames   encode {e:9,.0f}   decode {d:9,.0f}" for T, e, d in rows]
    return "\n".join(["frames per CPU-second of one clip", *lines])


@pytest.mark.benchmark(group="throughput")
def test_throughput_is_level(benchmark, capsys):
    lengths = LENGTHS[:3] if benchmark.disabled else LENGTHS
    rows = benchmark.pedantic(measure_lengths, (lengths,), rounds=1)
    with capsys.disabled():
        print("\n" + lengths_table(rows))


if __name__ == "__main__":
    for batch in (1, 32):
        print(table(measure(batch), batch))
    print(lengths_table(measure_lengths()))
