"""Training in two processes is training in one: the same batch, the same losses, the same weights, and codebooks that agree to the bit."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tokenize_lib.core.config import load_config, merge
from tokenize_lib.core.errors import ConfigError
from tokenize_lib.core.run import read_log
from tokenize_lib.pose.config import PoseConfig

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs torch.distributed with gloo")

# Two processes first: a process that has computed gradients should not be forked. In double precision what is left of a difference is a
# mistake; in single precision, rounding decides the direction of Adam's step wherever a gradient is zero but for rounding.
TRAIN = """
import json, sys, torch
from tokenize_lib.core import training
from tokenize_lib.pose.synthetic import synthetic_motion
from tokenize_lib.pose.train import PoseTraining, resolve_config, train_tokenizer

def on_train_end(self):
    torch.save(self.model.state_dict(), f"{out}/rank{self.global_rank}.pt")

PoseTraining.on_train_end, single = on_train_end, training.precision
motion = synthetic_motion(24, seed=0, frames=(9, 50), dropout=0.02)
for devices in (2, 1):
    for n, case in enumerate(json.loads(sys.argv[2])):
        training.precision = single if case.pop("single", False) else lambda amp: "64-true"
        case["train"]["devices"], out = devices, f"{sys.argv[1]}/{n}_{devices}"
        train_tokenizer(motion, out, resolve_config(motion, case), device="cpu", quiet=True)
"""
# an odd batch, clips of many lengths, every kind of draw, normalisation, dead codes
SMALL = {
    "base": "pose/default",
    "train": {"batch_size": 5, "window_T": 24, "max_steps": 12},
    "model": {"d_model": 16, "encoder": {"latent_dilations": [1, 3]},
              "quantizer": {"codebook_size": 24, "code_dim": 8, "quantizer_dropout": 0.5, "dead_code_threshold": 1e-2,
                            "settle_rounds": 0}},
    "logging": {"tensorboard": False, "log_every_steps": 1},
}  # fmt: skip
CASES = {
    "windows": {},
    "single precision": {"single": True},
    "padded clips, codebooks that start in training": {"train": {"clip_mode": "full"}, "model": {"quantizer": {"kmeans_init": False}}},
    "codebooks that learn from gradients": {"model": {"quantizer": {"ema_update": False}}},
    "hidden joints and hidden tokens": {"single": True, "train": {"clip_mode": "full", "augment": {"joint_dropout": 0.3}},
                                        "loss": {"masked_pred": {"enabled": True, "width": 16, "heads": 2, "dropout": 0}}},
    "two time scales": {"train": {"clip_mode": "full"},
                        "model": {"multi_scale": {"enabled": True, "codebook_size": 8, "num_codebooks": 2}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case, trained in two processes and in one."""
    out = tmp_path_factory.mktemp("ddp")
    cases = json.dumps([merge(SMALL, case) for case in CASES.values()])
    done = subprocess.run([sys.executable, "-c", TRAIN, out, cases], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: (out / f"{n}_2", out / f"{n}_1") for n, name in enumerate(CASES)}


def state(run, rank=0):
    return torch.load(run / f"rank{rank}.pt", weights_only=True)


def terms(run):
    """Losses, perplexities and counted codes of every step."""
    rows = [r for r in read_log(run) if "train/loss" in r]
    usage = [r["perplexity"] for r in read_log(run) if r.get("event") == "usage"]
    assert [r["step"] for r in rows] == list(range(1, 13)) and len(usage) == 12
    return [[v for k, v in r.items() if k.startswith("train/")] + u for r, u in zip(rows, usage, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_processes_agree_bit_for_bit(runs, case):
    """Nothing is broadcast after the start: weights, codebooks, counts and statistics are computed alike."""
    first, second = (state(runs[case][0], rank) for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(runs, case):
    both, alone = runs[case]
    single = "single" in CASES[case]
    torch.testing.assert_close(terms(both), terms(alone), rtol=1e-5, atol=1e-5 if single else 1e-6)
    theirs, ours = state(both), state(alone)
    if single:
        theirs, ours = (
            {"all": torch.cat([v.flatten().double() for v in s.values()])} for s in (theirs, ours)
        )
    for name, value in ours.items():
        difference, size = (theirs[name].double() - value.double()).norm(), value.double().norm()
        assert difference <= (1e-4 * size if single else 1e-10 * (1 + size)), name


def test_more_processes_than_examples_are_refused():
    with pytest.raises(ConfigError, match="devices: found 3; allowed at most batch_size = 2"):
        load_config(PoseConfig, {"train": {"batch_size": 2, "devices": 3, "window_T": 8}})
