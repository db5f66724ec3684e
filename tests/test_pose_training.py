"""Training: it learns, it repeats itself to the last digit, it says what it does, and every setting has an effect."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tokenize_lib.core.config import merge
from tokenize_lib.core.errors import ConfigError, DataError
from tokenize_lib.core.run import read_log
from tokenize_lib.pose.clips import Clip, MotionSet
from tokenize_lib.pose.evaluate import evaluate_tokenizer
from tokenize_lib.pose.skeleton import load_skeleton
from tokenize_lib.pose.synthetic import synthetic_motion
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import PoseTraining, resolve_config, train_tokenizer

TERMS = ["loss", "pos", "vel", "acc", "bone", "vq", "perplexity_1", "perplexity_2", "perplexity_3", "lr"]
BODY = load_skeleton("synthetic17")
TINY = {
    "train": {"batch_size": 4, "window_T": 16, "max_steps": 12},
    "model": {
        "d_model": 16,
        "encoder": {"latent_dilations": [1, 3]},
        "quantizer": {"codebook_size": 16, "code_dim": 8},
    },
    "logging": {"tensorboard": False},
}
# the source document's architecture and losses, small
SEED_LIKE = {
    "base": "pose/seed",
    "data": {"dims": None, "fps": None, "preprocess": {"root_joint": None, "scale_mode": "bone_length_mean", "scale_scope": None}},
    "train": {"num_workers": 0, "amp": "off", "batch_size": 8, "window_T": 16, "scheduler": {"warmup_steps": 10}},
    "model": {"d_model": 32, "encoder": {"num_stgcn_blocks": 2, "channels": [8, 16], "temporal_kernel": 3},
              "decoder": {"num_refine_blocks": 1}, "quantizer": {"codebook_size": 32, "code_dim": 8}},
    "logging": {"tensorboard": False},
}  # fmt: skip
# our own architecture; written out, so that the regression does not move when a default does
OURS = merge(SEED_LIKE, {
    "train": {"batch_size": 4, "max_steps": 100, "optimizer": {"lr": 1e-3},
              "augment": {"mirror": 0.5, "rotation_deg": 20, "time_warp": 1.33, "body_scale": 0.1, "bone_scale": 0.05,
                          "joint_rotation_deg": 3.5, "body_mix": 0.25, "clean_fraction": 0.1}},
    "model": {"d_model": 16, "linear_path": True, "downsample": {"space": "pooled"},
              "encoder": {"num_stgcn_blocks": 1, "channels": [8], "joint_pool": "linear", "latent_dilations": [1, 3]},
              "quantizer": {"codebook_size": 16, "commitment_weight": 0.02, "dead_code_threshold": 1e-3, "beam_width": 4,
                            "noise_feedback": 0.5, "quantizer_dropout": 0.1}},
    "loss": {"w_bone": 0.1},
    "logging": {"tensorboard": True},
})  # fmt: skip
TINY_SEED_LIKE = merge(SEED_LIKE, {"train": {"batch_size": 4, "max_steps": 12}, "model": {"d_model": 16}})


@pytest.fixture(scope="module")
def motion():
    return synthetic_motion(24, seed=1, frames=(10, 60))


def train(out, data, *settings, **options):
    """Train with some settings on top of each other."""
    cfg = resolve_config(
        data, merge(settings[0], merge(*settings[1:]) if settings[2:] else (settings[1:] or [{}])[0])
    )
    return train_tokenizer(data, out, cfg, quiet=True, device="cpu", **options)


def logged(out, name):
    """Steps and values of one column of the log."""
    return {r["step"]: r[name] for r in read_log(out) if name in r}


def weights(out):
    return load_file(out / "best" / "model.safetensors")


def said(out):
    return [r["message"] for r in read_log(out) if r.get("event") == "say"]


# --- it learns


def swings(n, frames):
    """A body that swings in two ways at once: little to learn, so that it is learnt in seconds."""
    rng, clips = np.random.default_rng(0), []
    body, ways = rng.normal(size=(17, 3)), rng.normal(size=(2, 17, 3)) * 1.5
    for i in range(n):
        t = np.arange(rng.integers(*frames)) / 30
        swing = [np.sin(2 * np.pi * f * t + rng.uniform(0, 6.3)) for f in rng.uniform(0.3, 0.8, 2)]
        pose = body + np.einsum("kt,kjd->tjd", swing, ways)
        clips.append(Clip(pose.astype(np.float32), fps=30.0, id=f"swing{i}"))
    ids = [c.id for c in clips]
    return MotionSet("swings", clips, BODY, {"train": ids[8:], "val": ids[:8]})


def test_three_epochs_teach_a_network_without_any_head_start(tmp_path):
    """Random codebooks, no linear path: loss and error fall, perplexity rises."""
    learn = {
        "train": {"max_epochs": 3, "optimizer": {"lr": 1e-2}},
        "model": {"quantizer": {"kmeans_init": False, "ema_decay": 0.9, "commitment_weight": 0.02}},
        "loss": {"w_bone": 0.05, "derivative_warmup": 1.0},
    }
    metrics = train(tmp_path / "run", swings(320, (24, 64)), SEED_LIKE, learn)
    assert metrics["steps"] == 3 * -(
        -sum(-(-len(c) // 16) for c in swings(320, (24, 64)).split("train")) // 8
    )
    loss, error = (list(logged(tmp_path / "run", k).values()) for k in ("train/loss", "val/mpjpe"))
    assert np.mean(loss[-3:]) < 0.7 * np.mean(loss[1:4])  # the first one is all commitment
    assert error[-1] < 0.65 * error[0]
    recon = list(logged(tmp_path / "run", "val/recon_l1").values())
    assert recon[-1] < 0.65 * recon[0]
    for q in (1, 2, 3):
        perplexity = list(logged(tmp_path / "run", f"val/perplexity_{q}").values())
        assert perplexity[-1] > 1.3 * perplexity[0]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory, motion):
    out = tmp_path_factory.mktemp("training") / "hundred"
    return out, train(out, motion, OURS)


LOSS, MPJPE = 0.4926, 0.0997  # mean of steps 60 to 100; metres, of the best model on its training clips


def test_a_hundred_steps_end_where_they_did(hundred):
    """Regression: measured once, and as wide as the rounding of other processors and thread counts may need."""
    out, metrics = hundred
    loss = [v for k, v in logged(out, "train/loss").items() if k > 50]
    assert len(loss) == 5
    assert np.mean(loss) == pytest.approx(LOSS, rel=0.05)
    assert metrics["train"]["mpjpe"] == pytest.approx(MPJPE, rel=0.05)


def test_each_term_is_logged_under_its_own_name(hundred):
    out, _ = hundred
    rows = [r for r in read_log(out) if "train/loss" in r]
    assert [r["step"] for r in rows] == [1, *range(10, 101, 10)]
    for row in rows:
        assert {k for k in row if k.startswith("train/")} == {f"train/{k}" for k in TERMS}
        t = {k: row[f"train/{k}"] for k in TERMS}
        expected = t["pos"] + 0.5 * t["vel"] + 0.25 * t["acc"] + 0.1 * t["bone"] + t["vq"]
        assert t["loss"] == pytest.approx(expected, rel=1e-4)
    usage = [r for r in read_log(out) if r.get("event") == "usage"]
    assert len(usage) == len(rows)
    assert all(
        len(u["perplexity"]) == len(u["top_codes"]) == 3 and len(u["top_codes"][0]) == 5 for u in usage
    )
    with open(out / "metrics.csv", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    assert [int(r["step"]) for r in table] == [1, *range(10, 101, 10)]
    assert {f"train/{k}" for k in TERMS} | {
        "val/mpjpe",
        "val/recon_l1",
        "val/perplexity_3",
        "val/usage_1",
    } <= table[0].keys()
    assert [float(r["train/vq"]) for r in table] == [r["train/vq"] for r in rows]
    assert list((out / "tensorboard").glob("events*"))


def test_the_learning_rate_rises_and_falls(hundred):
    rate = logged(hundred[0], "train/lr")
    assert rate[1] < rate[10] == max(rate.values()) == pytest.approx(1e-3, rel=0.01)
    assert list(rate.values())[1:] == sorted(list(rate.values())[1:], reverse=True)
    assert rate[100] < 1e-4


def test_the_best_model_is_kept_and_measured(hundred, motion):
    out, metrics = hundred
    error = logged(out, "val/mpjpe")
    assert metrics["best_step"] == min(error, key=error.get)
    assert metrics["val"]["mpjpe"] == error[metrics["best_step"]]
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["tokenizer"] == PoseTokenizer.from_pretrained(out).name
    assert (metrics["train_clips"], metrics["val_clips"]) == tuple(
        len(motion.split(s)) for s in ("train", "val")
    )
    assert metrics["bits_per_frame"] == 3 * 4 / 4


# --- it repeats itself


@pytest.mark.parametrize("config", ["pose/default", "pose/seed"])
def test_the_same_seed_gives_the_same_run(tmp_path, motion, config):
    tiny = merge(TINY, {"base": config}) if config == "pose/default" else TINY_SEED_LIKE
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, motion, tiny, {"train": {"seed": seed}})
    a, b, c = ((tmp_path / name / "metrics.json").read_text() for name in "abc")
    assert a == b != c


@pytest.fixture(scope="module")
def plain(tmp_path_factory, motion):
    """A tiny run to compare others with."""
    out = tmp_path_factory.mktemp("training") / "plain"
    train(out, motion, merge(TINY, {"base": "pose/default"}))
    return out


def test_loader_processes_change_nothing(tmp_path, motion, plain):
    train(tmp_path / "run", motion, merge(TINY, {"base": "pose/default"}), {"train": {"num_workers": 2}})
    assert all(torch.equal(v, weights(plain)[k]) for k, v in weights(tmp_path / "run").items())
    assert logged(tmp_path / "run", "train/loss") == logged(plain, "train/loss")


@pytest.fixture
def dies(monkeypatch):
    """Training that dies in a given step."""

    def at(step):
        loss_terms = PoseTraining.loss_terms

        def fatal(self, batch):
            if self.global_step == step:
                raise RuntimeError("killed")
            return loss_terms(self, batch)

        monkeypatch.setattr(PoseTraining, "loss_terms", fatal)

    yield at
    monkeypatch.undo()


RESUMED = {
    "plain": {},
    "averaged weights": {"train": {"weight_ema_decay": 0.8}},
    "gradient codebooks": {"model": {"quantizer": {"ema_update": False}}},
    "bf16": {"train": {"amp": "bf16"}},
    "dead codes": {"model": {"quantizer": {"dead_code_threshold": 0.03, "kmeans_init": False}}},
    "early stopping": {"train": {"early_stopping_patience": 3}},
}


@pytest.mark.parametrize("case", RESUMED)
def test_killed_and_resumed_is_as_if_never_killed(tmp_path, motion, monkeypatch, dies, case):
    settings = merge(TINY, merge(RESUMED[case], {"base": "pose/default", "train": {"max_steps": 30},
                                                 "logging": {"save_every_steps": 3, "eval_every_steps": 3}}))  # fmt: skip
    whole = train(tmp_path / "whole", motion, settings)
    dies(17)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "twice", motion, settings)
    monkeypatch.undo()
    assert not (tmp_path / "twice" / "metrics.json").exists()
    assert train(tmp_path / "twice", motion, settings, resume=True) == whole
    files = [tmp_path / n / "best" / "model.safetensors" for n in ("whole", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    last = [
        torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "twice")
    ]
    assert all(torch.equal(v, last[1]["state_dict"][k]) for k, v in last[0]["state_dict"].items())
    assert logged(tmp_path / "twice", "train/loss") == logged(tmp_path / "whole", "train/loss")


# --- settings do what they say


def test_averaged_weights_are_what_is_kept(tmp_path, motion, monkeypatch):
    seen, name = [], "network.encoder.embed.weight"
    loss_terms = PoseTraining.loss_terms

    def noting(self, batch):
        seen.append(self.model.state_dict()[name].clone())
        return loss_terms(self, batch)

    monkeypatch.setattr(PoseTraining, "loss_terms", noting)
    settings = {"base": "pose/default", "train": {"weight_ema_decay": 0.8}}
    metrics = train(tmp_path / "run", motion, merge(TINY, settings))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    after = [*seen[1:], last["current_model_state"][f"model.{name}"]]  # after each step
    average = after[0]
    for w in after[1 : metrics["best_step"]]:
        average = 0.8 * average + 0.2 * w
    torch.testing.assert_close(weights(tmp_path / "run")[name], average)
    assert metrics["best_step"] > 2
    assert not torch.allclose(average, after[metrics["best_step"] - 1], atol=1e-6)


def test_it_stops_when_nothing_gets_better(tmp_path, motion):
    settings = {
        "base": "pose/default",
        "train": {"max_steps": 100, "early_stopping_patience": 2, "optimizer": {"lr": 1e-30}},
        "model": {"encoder": {"norm": "none"}, "quantizer": {"ema_update": False}},
    }
    metrics = train(tmp_path / "run", motion, merge(TINY, settings))
    assert (metrics["steps"], metrics["best_step"]) == (30, 10)


def test_a_collapse_is_announced(tmp_path, motion):
    """Bodies that never move need one code."""
    still = [replace(c, pose=np.repeat(motion.clips[0].pose[:1], len(c), 0)) for c in motion.clips]
    train(tmp_path / "run", replace(motion, clips=still), merge(TINY, {"base": "pose/default"}))
    warnings = [m for m in said(tmp_path / "run") if "codebook collapse risk" in m]
    assert warnings and warnings[0].startswith("WARNING layer 1") and "perplexity 1.00 of 16" in warnings[0]


def test_no_collapse_is_announced_where_there_is_none(hundred):
    assert not [m for m in said(hundred[0]) if "collapse" in m]


VARIANTS = {
    "bf16": {"train": {"amp": "bf16"}},
    "whole clips": {"train": {"clip_mode": "full"}},
    "no confidence": {"data": {"use_confidence": False}},
    "no normalisation": {"model": {"encoder": {"norm": "none"}}},
    "mean of joints": {"model": {"encoder": {"joint_pool": "mean"}}},
    "attention over joints": {"model": {"encoder": {"joint_pool": "attention"}}},
    "upsample_conv": {"model": {"decoder": {"upsample_mode": "upsample_conv"}}},
    "gradient codebooks": {"model": {"quantizer": {"ema_update": False}}},
    "quantiser dropout": {"model": {"quantizer": {"quantizer_dropout": 1.0}}},
    "no clipping, constant rate": {"train": {"grad_clip_norm": None, "scheduler": {"name": "constant"}}},
    "scale of a frame": {"data": {"preprocess": {"scale_scope": "frame", "scale_mode": "shoulder_width"}}},
    "as recorded": {"data": {"preprocess": {"scale_norm": False, "root_relative": False}}},
    "smoothed": {"data": {"preprocess": {"smoothing": True}}},
    "another rate": {"data": {"fps": 12.5}},
    "l = 2": {"model": {"downsample": {"factor_l": 2, "tconv_layers": None}}},
    "l = 8": {"model": {"downsample": {"factor_l": 8, "tconv_layers": None}}},
}
PER_JOINT = {"model": {"encoder": {"token_latent_mode": "per_joint"}}}


def check_run(out, data, metrics):
    """A run that works: finite throughout, and its tokenizer gives every clip back."""
    assert all(np.isfinite(v) for k in TERMS for v in logged(out, f"train/{k}").values())
    tokenizer = PoseTokenizer.from_pretrained(out)
    for clip in data.clips[:4]:
        back = tokenizer.decode(tokenizer.encode(clip))
        assert back.shape == clip.pose.shape and np.isfinite(back).all()
    assert 0 < metrics["val"]["mpjpe_norm"] < 3


@pytest.mark.parametrize("case", VARIANTS)
def test_each_setting_works_and_matters(tmp_path, motion, plain, case):
    metrics = train(tmp_path / "run", motion, merge(TINY, {"base": "pose/default"}), VARIANTS[case])
    check_run(tmp_path / "run", motion, metrics)
    assert metrics["val"] != json.loads((plain / "metrics.json").read_text())["val"]
    layers = VARIANTS[case].get("model", {}).get("downsample", {}).get("factor_l", 4)
    assert metrics["bits_per_frame"] == 12 / layers


@pytest.mark.parametrize("variant", ["pooled", "l = 8", "bf16", "whole clips", "per joint", "upsample_conv"])
def test_the_source_documents_architecture_works(tmp_path, motion, variant):
    settings = {"pooled": {}, "per joint": PER_JOINT} | VARIANTS
    metrics = train(tmp_path / "run", motion, TINY_SEED_LIKE, settings[variant])
    check_run(tmp_path / "run", motion, metrics)
    codes = PoseTokenizer.from_pretrained(tmp_path / "run").encode(motion.clips[0])
    assert codes.ids.ndim == (3 if variant == "per joint" else 2)


def test_images_with_confidence(tmp_path):
    flat = synthetic_motion(24, seed=1, frames=(10, 60), dims=2, dropout=0.05)
    for name, settings in {"ours": merge(TINY, {"base": "pose/default"}), "seed": TINY_SEED_LIKE}.items():
        metrics = train(tmp_path / name, flat, settings)
        check_run(tmp_path / name, flat, metrics)
        tokenizer = PoseTokenizer.from_pretrained(tmp_path / name)
        assert (tokenizer.config.data.dims, tokenizer.network.encoder.embed.in_features) == (2, 3)
    less = [replace(c, conf=c.conf * 0.5) for c in flat.clips]  # certain or not is seen by the network
    assert any(
        (tokenizer.encode(a).ids != tokenizer.encode(b).ids).any()
        for a, b in zip(flat.clips, less, strict=True)
    )


def test_confidence_weighs_the_loss(motion):
    """Where a joint was not seen, what is decoded costs nothing."""
    from tokenize_lib.pose.losses import reconstruction_terms

    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 9, 17, 3, generator=g), torch.rand(2, 9, 17, generator=g)
    weight[:, 3:6, 4] = 0
    bones = torch.tensor(BODY.bones)
    x_hat = x + 0.1 * torch.randn(x.shape, generator=g)
    wild = x_hat.clone()
    wild[:, 3:6, 4] += 1e3
    a, b = (reconstruction_terms(h, x, weight, bones) for h in (x_hat, wild))
    assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}


def test_clips_too_short_to_fill_a_token_train(tmp_path):
    """One token in a batch has no variance; a run must not end there."""
    short = synthetic_motion(6, seed=1, frames=(1, 3), dropout=0)
    whole = {"train": {"clip_mode": "full", "batch_size": 1}}
    for name, settings in {"ours": merge(TINY, {"base": "pose/default"}), "seed": TINY_SEED_LIKE}.items():
        metrics = train(tmp_path / name, short, settings, whole)
        check_run(tmp_path / name, short, metrics)


def test_codes_are_searched_in_full_precision_under_autocast(motion):
    """Half precision ends before the quantiser: its targets, too, are computed in float32."""
    from tokenize_lib.quantize.feedback import feedback_targets
    from tokenize_lib.quantize.rvq import ResidualVQ

    torch.manual_seed(0)
    quantizer = ResidualVQ(8, 3, 64, kmeans_init=False).eval()
    with torch.no_grad():
        for layer in quantizer.layers:
            layer.embed.normal_()
    z = torch.randn(4, 12, 8).bfloat16().float()
    expected = feedback_targets(quantizer, z, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (z, z.bfloat16()):
            torch.testing.assert_close(feedback_targets(quantizer, given, 0.5).float(), expected)


def test_the_source_documents_settings_train_and_evaluate(tmp_path):
    """seed.yaml as it stands, only shorter."""
    flat = synthetic_motion(12, seed=2, frames=(20, 40), dims=2, fps=25)
    shorter = {"base": "pose/seed", "logging": {"tensorboard": False},
               "train": {"max_steps": 2, "batch_size": 2, "num_workers": 0, "window_T": 32, "amp": "off"}}  # fmt: skip
    metrics = train(tmp_path / "run", flat, shorter)
    assert metrics["bits_per_frame"] == 7.5
    found = evaluate_tokenizer(tmp_path / "run", flat, tmp_path / "eval", quiet=True)
    names = ["recon_l1", "vel_l1", "acc_l1", "bone_len_mae", "mpjpe", "codebook_perplexity", "dead_code_ratio", "mean_L", "p95_L",
             "bits_per_frame", "bits_per_second"]  # fmt: skip
    assert set(names) <= found.keys()
    assert found["exact_length"] is True
    assert [r["layers"] for r in found["rate_distortion"]] == [1, 2, 3]
    lengths = [len(c) for c in flat.split("test")]
    assert found["frames"] == sum(lengths)
    assert found["bits_per_frame"] == pytest.approx(30 * sum(-(-T // 4) for T in lengths) / sum(lengths))
    assert found["bits_per_second"] == pytest.approx(25 * found["bits_per_frame"])
    assert (tmp_path / "eval" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "eval" / "plots" / "overlay.gif").is_file()


def test_settings_that_contradict_the_data_leave_nothing_behind(tmp_path, motion):
    with pytest.raises(ConfigError, match="data.dims"):
        train(tmp_path / "run", motion, {"base": "pose/seed"})
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="train.amp"):
            train(tmp_path / "fp16", motion, merge(TINY, {"base": "pose/default", "train": {"amp": "fp16"}}))
    with pytest.raises(DataError, match="no clips to train on"):
        train(
            tmp_path / "run",
            replace(motion, splits={"train": [], "val": motion.ids}),
            merge(TINY, {"base": "pose/default"}),
        )
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_unasked(tmp_path, motion, plain):
    before = {p: p.read_bytes() for p in plain.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="finished run"):
        train(plain, motion, merge(TINY, {"base": "pose/default"}))
    assert before == {p: p.read_bytes() for p in plain.rglob("*") if p.is_file()}


def test_two_processes_train_together(tmp_path):
    """Each rank has its share of the windows; the run ends as any run does, and only one of them speaks."""
    settings = ["train.max_steps=8", "train.batch_size=4", "model.d_model=32", "train.devices=2"]
    settings += ["model.quantizer.codebook_size=32", "model.quantizer.dead_code_threshold=1e-3"]
    code = "import sys; from tokenize_lib.pose.train import *; from tokenize_lib.pose.synthetic import *\n"
    code += "motion = synthetic_motion(24, seed=0); cfg = resolve_config(motion, overrides=sys.argv[2:])\n"
    code += "train_tokenizer(motion, sys.argv[1], cfg, device='cpu', quiet=True)"
    command = [sys.executable, "-c", code, tmp_path / "run", *settings, "logging.tensorboard=false"]
    subprocess.run(command, check=True, capture_output=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 8 and metrics["best_step"] > 0
    logged = [r["step"] for r in read_log(tmp_path / "run") if "train/loss" in r]
    assert logged == sorted(set(logged))
    clip = synthetic_motion(2, seed=5).clips[0]
    tokenizer = PoseTokenizer.from_pretrained(tmp_path / "run")
    assert tokenizer.decode(tokenizer.encode(clip)).shape == clip.pose.shape
