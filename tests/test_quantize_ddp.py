"""Two processes learn what one process learns from both of their batches, and their codebooks stay the same bits."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tokenize_lib.quantize.rvq import ResidualVQ

OPTIONS = dict(dim=4, num_codebooks=2, codebook_size=16)


def batch(rank, step):
    """Unequal shares of valid vectors; at one step the second process has none at all."""
    g = torch.Generator().manual_seed(100 * step + rank)
    z = torch.randn(2, 20, 4, generator=g)
    valid = torch.tensor([20, 5] if rank == 0 else [0, 0] if step == 3 else [11, 2])
    return z, torch.arange(20) < valid[:, None]


def work(rank, store, folder, revive, start):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    threshold = 2e-2 if revive else 0.0
    torch.manual_seed(rank)  # the processes' own generators differ, and what they draw must not
    rvq = ResidualVQ(**OPTIONS, dead_code_threshold=threshold, quantizer_dropout=0.5 if revive else 0.0)
    if start is not None:
        rvq.load_state_dict(start)
    for step in range(8):
        rvq(*batch(rank, step))
    torch.save(rvq.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def two_processes(tmp_path, revive, start=None):
    args = (tmp_path / "store", str(tmp_path), revive, start)
    mp.spawn(work, args=args, nprocs=2)
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_processes_agree_bit_for_bit(tmp_path):
    """From k-means over both, with dead codes revived and layers dropped, on unequal and empty batches."""
    first, second = two_processes(tmp_path, revive=True)
    assert first["layers.0.initialised"]
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_two_processes_learn_as_one(tmp_path):
    torch.manual_seed(0)
    alone = ResidualVQ(**OPTIONS, dead_code_threshold=0.0)
    alone(*batch(0, 99))
    start = {k: v.clone() for k, v in alone.state_dict().items()}
    for step in range(8):
        (z0, m0), (z1, m1) = batch(0, step), batch(1, step)
        alone(torch.cat([z0, z1]), torch.cat([m0, m1]))
    first, _ = two_processes(tmp_path, revive=False, start=start)
    assert not torch.equal(first["layers.1.embed"], start["layers.1.embed"])
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
