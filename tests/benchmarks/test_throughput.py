"""Frames per CPU-second of encoding and decoding, beside plain convolutional networks with the same tokens in the same run.

One clip at a time and sixteen together, one thread, by `time.process_time`, so that a busy machine gives the same figures. Run by
`make bench`, or without its tools by `python tests/benchmarks/test_throughput.py`."""

import pytest
import torch
from peers import clips, networks, speeds


def measure(batch):
    """(name, parameters, frames encoded, frames decoded per CPU-second) of each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = list(clips(16))
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
@pytest.mark.parametrize("batch", [1, 16])
def test_throughput(benchmark, capsys, batch):
    rows = benchmark.pedantic(measure, (batch,), rounds=1)
    with capsys.disabled():
        print("\n" + table(rows, batch))
    assert rows[0][2] > rows[1][2] and rows[0][3] > rows[1][3]  # faster than the network it replaces


if __name__ == "__main__":
    for batch in (1, 16):
        print(table(measure(batch), batch))
