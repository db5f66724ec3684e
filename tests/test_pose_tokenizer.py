"""Codes: the same whoever shares the batch, exact lengths back, local damage from local faults, and every bad input refused."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenize_lib.core.checkpoint import load_model
from tokenize_lib.core.config import load_config, merge
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.pose.clips import Clip, MotionSet
from tokenize_lib.pose.config import PoseConfig
from tokenize_lib.pose.dataset import PoseBatches
from tokenize_lib.pose.exact import choose_codes, clip_latents, exact_codes, settle_latents
from tokenize_lib.pose.skeleton import load_skeleton, skeleton_from_parents
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import build_tokenizer, processed, resolve_config, start_codebooks
from tokenize_lib.quantize.codes import Codes
from tokenize_lib.quantize.grid import snap

MOUSE = skeleton_from_parents(
    "mouse", ["base", "middle", "neck", "nose", "tail"], [-1, 0, 1, 2, 0], up=None
)  # no shoulders, no sides, no known vertical
SKELETONS = {
    "bandai21": (load_skeleton("bandai21"), 3),
    "coco17": (load_skeleton("coco17"), 2),
    "penn13": (load_skeleton("penn13"), 2),
    "mouse": (MOUSE, 3),
}
SMALL = {
    "train": {"batch_size": 4, "window_T": 16, "max_steps": 8},
    "data": {"fps": None, "preprocess": {"root_joint": None, "scale_mode": "bone_length_mean"}},
    "model": {"d_model": 32, "quantizer": {"codebook_size": 64, "code_dim": 8}},
}
SEED_LIKE = merge(SMALL, {"base": "pose/seed", "data": {"dims": None, "preprocess": {"scale_scope": "frame"}},
                          "model": {"encoder": {"channels": [8, 12, 16]}}})  # fmt: skip
CONFIGS = {
    "default": {"base": "pose/default", "model": {"quantizer": {"codebook_size": 256}}},
    "seed_like": SEED_LIKE,
    "per_joint": merge(SEED_LIKE, {"model": {"quantizer": {"beam_width": 4, "noise_feedback": 0.5, "codebook_size": 16},
                                             "encoder": {"token_latent_mode": "per_joint", "latent_dilations": [1, 2]}}}),
}  # fmt: skip


def motion(skeleton, dims, frames, seed, conf=False, fps=30.0):
    """A clip of any skeleton: a body of its own that swings, drifts and jitters; with confidence also zeros."""
    rng, J = np.random.default_rng(seed), len(skeleton)
    t = np.arange(frames)[:, None, None] / 30
    body = np.random.default_rng(J).normal(size=(J, dims)) * 20
    swing = sum(
        rng.normal(size=(J, dims)) * 4 * np.sin(2 * np.pi * f * t + rng.uniform(0, 6, (J, dims)))
        for f in (0.4, 1.1, 2.7)
    )
    pose = body + swing + rng.normal(size=(1, 1, dims)) * 30 * t + rng.normal(size=(frames, J, dims)) * 0.1
    c = None
    if conf:
        c = np.where(rng.random((frames, J, 1)) < 0.1, 0, rng.random((frames, J, 1))).astype(np.float32)
        c[0, 0] = 1
    return Clip(pose.astype(np.float32), c, fps, f"clip{seed}", skeleton=skeleton)


def make(config, skeleton, dims, fps=30.0, overrides=(), seed=0):
    """A tokenizer whose weights, statistics and codebooks are those of no special case: every part speaks."""
    torch.manual_seed(seed)
    clips = [motion(skeleton, dims, 60, 1000 + i, dims == 2, fps) for i in range(12)]
    data = MotionSet("random", clips, skeleton, {"train": [c.id for c in clips]})
    cfg = resolve_config(data, config, overrides)
    tokenizer = build_tokenizer(cfg, data, clips)
    seen = processed(tokenizer, clips)
    tokenizer.network.fit([s.x for s in seen], [s.conf for s in seen])
    for layer in (tokenizer.network.encoder.to_code, tokenizer.network.decoder.head):
        torch.nn.init.normal_(layer.weight, std=0.1)  # the start is quiet: only the linear path would speak
    batches = PoseBatches(seen, cfg.train, skeleton, 40)
    with torch.no_grad():
        for step in range(8):  # running statistics of batch normalisation
            tokenizer.network.train().encode(*(getattr(batches(step), k) for k in ("x", "conf", "mask")))
    start_codebooks(tokenizer, batches)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def tokenizers():
    """One tokenizer for each configuration and skeleton, made when asked for."""
    made = {}

    def get(config, skeleton="bandai21", **options):
        key = config, skeleton, json.dumps(options)
        if key not in made:
            made[key] = make(CONFIGS[config], *SKELETONS[skeleton], **options)
        return made[key]

    return get


@pytest.fixture(scope="module")
def seed_like(tokenizers):
    return tokenizers("seed_like")


def tensors(tokenizer, clip):
    seen = tokenizer.preprocess(clip)
    return torch.from_numpy(seen.x), torch.from_numpy(seen.conf)


def batch_of(clips, seed, surplus=0):
    """Clips padded to the longest and some more; what the padding holds must not matter."""
    rng = torch.Generator().manual_seed(seed)
    T = max(len(x) for x, _ in clips) + surplus
    x = 5 * torch.randn(len(clips), T, *clips[0][0].shape[1:], generator=rng)
    conf = torch.rand(len(clips), T, x.shape[2], generator=rng)
    for i, (a, c) in enumerate(clips):
        x[i, : len(a)], conf[i, : len(a)] = a, c
    return x, conf, torch.arange(T) < torch.tensor([len(a) for a, _ in clips])[:, None]


# --- who shares the batch


@pytest.mark.parametrize("skeleton", SKELETONS)
@pytest.mark.parametrize("config", CONFIGS)
def test_codes_do_not_depend_on_padding_nor_on_the_batch(tokenizers, config, skeleton):
    tokenizer, rng = tokenizers(config, skeleton), np.random.default_rng(len(config) + len(skeleton))
    dims, factor = tokenizer.config.data.dims, tokenizer.factor_l
    lengths = [1, 2, 3, 300, *(int(np.exp(u)) for u in rng.uniform(0, np.log(300), 22))]
    clips = [motion(SKELETONS[skeleton][0], dims, T, i, conf=bool(i % 2)) for i, T in enumerate(lengths)]
    alone = [torch.from_numpy(tokenizer.encode(c).ids) for c in clips]
    seen = [tensors(tokenizer, c) for c in clips]
    for i, codes in enumerate(alone):
        padded = exact_codes(tokenizer, *batch_of([seen[i]], i, int(rng.integers(1, 50))))[0]
        assert torch.equal(padded[: len(codes)], codes)
        assert not padded[len(codes) :].any()
    order = rng.permutation(len(clips)).tolist()
    while order:
        group = [order.pop() for _ in range(min(len(order), int(rng.integers(2, 7))))]
        together = exact_codes(tokenizer, *batch_of([seen[i] for i in group], len(order)))
        for row, i in zip(together, group, strict=True):
            assert torch.equal(row[: -(-lengths[i] // factor)], alone[i])
    assert (
        len({tuple(c.flatten().tolist()) for c in alone}) > len(clips) / 2
    )  # these are not all the same codes


@pytest.mark.parametrize("config", ["default", "seed_like"])
def test_codes_that_rounding_would_decide(tokenizers, config):
    """Each code has a twin so near that float32 cannot tell them apart."""
    tokenizer = make(CONFIGS[config], *SKELETONS["bandai21"], seed=3)
    with torch.no_grad():
        for layer in tokenizer.quantizer.layers:
            layer.embed[1::2] = layer.embed[::2] * (1 + 2e-7)
    tokenizer.eval()
    clips = [motion(*SKELETONS["bandai21"], T, T) for T in (5, 30, 61)]
    seen = [tensors(tokenizer, c) for c in clips]
    together = exact_codes(tokenizer, *batch_of(seen, 0, 33))
    for row, clip in zip(together, clips, strict=True):
        ids = torch.from_numpy(tokenizer.encode(clip).ids)
        assert torch.equal(row[: len(ids)], ids)


@pytest.mark.parametrize("feedback", [0.0, 0.5])
@pytest.mark.parametrize("beam", [2, 8])
def test_what_a_beam_drops_by_a_hair_is_not_left_to_chance(beam, feedback):
    """Where two beginnings tie for the last place of the beam, rounding would decide which one is followed to the end.

    On the grid the tie is real, and always decided alike: whoever shares the batch, whatever is added to the latents."""
    quantizer = {"beam_width": beam, "noise_feedback": feedback}
    tokenizer = make(merge(CONFIGS["default"], {"model": {"quantizer": quantizer}}), *SKELETONS["bandai21"])
    grid, rng = tokenizer.grid, np.random.default_rng(0)
    book = grid.books[0].vectors[:, :-1].astype(float)
    x, conf = (t[None] for t in tensors(tokenizer, motion(*SKELETONS["bandai21"], 400, 0)))
    with torch.no_grad():
        latents = tokenizer.network.encode(x, conf)[0].double().numpy()
    sure = 0
    for z in latents:
        for _ in range(3):  # move it to where the last that is kept and the first that is not are equally far
            order = np.square(z / grid.step - book).sum(1).argsort()
            kept, dropped = book[order[beam - 1]] * grid.step, book[order[beam]] * grid.step
            across = dropped - kept
            if not across.any():
                break
            z = z + across * (((kept + dropped) / 2 - z) @ across) / (across @ across)
        near = z * (1 + tokenizer.noise / 3 * rng.uniform(-1, 1, (6, len(z))))
        whole, other = snap(near, grid, tokenizer.noise)
        if (whole != other).any():
            continue  # these would be computed again
        sure += 1
        assert (whole == whole[0]).all()
        together = np.concatenate([whole, snap(latents[:50], grid)[0]])
        found = [choose_codes(tokenizer, [w[None]])[0] for w in (*whole, *together[:1])]
        found += [choose_codes(tokenizer, [together[i : i + 1] for i in range(len(together))])[0]]
        assert all(np.array_equal(f, found[0]) for f in found)
    assert sure > 50


def test_latents_in_doubt_are_those_of_double_precision(tokenizers):
    """Weights are moved until latents lie in the middle between two grid points; then every batch agrees on the side."""
    for name in ("default", "seed_like", "per_joint"):
        tokenizer = make(CONFIGS[name], *SKELETONS["mouse"], seed=5)
        tokenizer.network.refine_rounds = 0  # a correction would move them on
        x, conf = (t[None] for t in tensors(tokenizer, motion(MOUSE, 3, 61, 0)))
        rest = [tensors(tokenizer, motion(MOUSE, 3, T, T)) for T in (5, 90)]
        for token in (0, 7, 15):
            with torch.no_grad():
                z = tokenizer.in_double().network.encode(x.double(), conf.double())[0, token]
                z = z.reshape(-1, z.shape[-1])[0]
                width = tokenizer.grid.step * tokenizer.grid.coarse
                tokenizer.network.encoder.to_code.bias += (
                    ((z / width).floor() + 0.5).mul(width).sub(z).float()
                )
                z = tokenizer.in_double().network.encode(x.double(), conf.double())[0]
                expected, _ = snap(z.numpy(), tokenizer.grid)
                frames = [tuple(a.numpy() for a in c) for c in ((x[0], conf[0]), *rest)]
                for clips in (frames[:1], frames):
                    latents = clip_latents(tokenizer, clips)[0]
                    assert latents.doubts()[token]
                    found = settle_latents(tokenizer, latents, frames[0], slice(0, len(z)))
                    np.testing.assert_array_equal(found, expected)


def test_several_clips_are_encoded_one_for_one(seed_like):
    clips = [motion(*SKELETONS["bandai21"], T, T) for T in (7, 40, 1)]
    codes = seed_like.encode(clips)
    assert codes == [seed_like.encode(c) for c in clips]
    for pose, c in zip(seed_like.decode(codes), codes, strict=True):
        np.testing.assert_allclose(pose, seed_like.decode(c), atol=1e-4)  # centimetres
    assert seed_like.encode(clips[0].pose).ids.tolist() == codes[0].ids.tolist()


@pytest.mark.parametrize("config", CONFIGS)
def test_decoding_in_a_padded_batch_is_decoding_alone(tokenizers, config):
    tokenizer, lengths = tokenizers(config), [1, 6, 23, 50]
    clips = [motion(*SKELETONS["bandai21"], T, T) for T in lengths]
    x, conf, mask = batch_of([tensors(tokenizer, c) for c in clips], 0, 3)
    with torch.no_grad():
        z = tokenizer.quantizer.decode(exact_codes(tokenizer, x, conf, mask))
        together = tokenizer.network.decode(z, x.shape[1], mask)
        for i, T in enumerate(lengths):
            alone = tokenizer.network.decode(z[i : i + 1, : -(-T // tokenizer.factor_l)], T)[0]
            torch.testing.assert_close(together[i, :T], alone, atol=1e-4, rtol=1e-4)
            assert not together[i, T:].any()


THREADS = """
import sys, numpy as np, torch
torch.set_num_threads(int(sys.argv[1]))
from tokenize_lib.pose.tokenizer import PoseTokenizer
tokenizer = PoseTokenizer.from_pretrained(sys.argv[2])
for i, T in enumerate((1, 9, 64, 300, 1200)):
    pose = np.cumsum(np.random.default_rng(i).normal(size=(T, 21, 3)), 0).astype("f4")
    print(tokenizer.encode(pose).ids.tolist())
"""


def test_codes_do_not_depend_on_the_number_of_threads(tmp_path, tokenizers):
    tokenizers("default").save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", THREADS]
    env = os.environ | {"OMP_NUM_THREADS": "2"}  # so that there are two to choose from
    running = [
        subprocess.Popen([*command, n, str(tmp_path / "model")], stdout=subprocess.PIPE, text=True, env=env)
        for n in "12"
    ]
    one, two = (p.communicate(timeout=120)[0] for p in running)
    assert one and one == two
    assert [p.returncode for p in running] == [0, 0]


# --- lengths and rates


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("config", ["default", "seed_like", "per_joint"])
def test_every_length_comes_back(config, factor):
    small = merge(
        CONFIGS[config], merge(SMALL, {"model": {"downsample": {"factor_l": factor, "tconv_layers": None}}})
    )
    tokenizer = make(small, MOUSE, 3)
    for T in range(1, 41):
        clip = motion(MOUSE, 3, T, T)
        codes = tokenizer.encode(clip)
        assert (codes.length, len(codes.ids), codes.factor_l) == (T, -(-T // factor), factor)
        back = tokenizer.decode(codes)
        assert back.shape == clip.pose.shape
        assert np.isfinite(back).all()


def test_upsample_conv_and_dilation_give_every_length_back():
    model = {"decoder": {"upsample_mode": "upsample_conv"}, "downsample": {"tconv_dilation": 2}}
    for config in (SEED_LIKE, merge(CONFIGS["default"], SMALL)):
        tokenizer = make(merge(config, {"model": model}), MOUSE, 3)
        for T in (1, 2, 3, 4, 5, 7, 18):
            clip = motion(MOUSE, 3, T, T)
            assert tokenizer.decode(tokenizer.encode(clip)).shape == clip.pose.shape
            x, conf, mask = batch_of([tensors(tokenizer, clip)], T, 9)
            ids = tokenizer.encode(clip).ids
            np.testing.assert_array_equal(exact_codes(tokenizer, x, conf, mask)[0, : len(ids)], ids)


@pytest.mark.parametrize("fps", [7.5, 15.0, 23.976, 30.0, 59.94, 120.0])
def test_other_frame_rates_are_resampled_and_come_back_exactly(seed_like, fps):
    for T in (1, 2, 3, 17, 100):
        clip = motion(*SKELETONS["bandai21"], T, T, fps=fps)
        codes = seed_like.encode(clip)
        assert codes.fps == 30
        assert abs(codes.length - (1 + (T - 1) * 30 / fps)) < 1  # the same time at the model's rate
        assert seed_like.decode(codes).shape == clip.pose.shape
    assert (codes.side.get("source") is None) == (fps == 30)


def test_a_rate_not_known_is_taken_as_the_models(seed_like, caplog):
    clip = motion(*SKELETONS["bandai21"], 20, 0)
    with caplog.at_level(logging.INFO):
        assert seed_like.encode(replace(clip, fps=None)) == seed_like.encode(clip)
    assert "clip0" in caplog.text and "30 fps" in caplog.text


def test_a_joint_that_was_not_seen_stays_unseen_at_another_rate(tokenizers):
    """Trackers write the origin with confidence 0: resampling must not drag the neighbours there."""
    tokenizer = tokenizers("seed_like", "coco17")
    clip = motion(*SKELETONS["coco17"], 40, 1, fps=20.0)
    hole, conf = clip.pose.copy(), np.ones((40, 17, 1), np.float32)
    hole[10:20, 5], conf[10:20, 5] = np.nan, 0
    origin = np.nan_to_num(hole, nan=0.0)
    a, b = (tokenizer.encode(replace(clip, pose=p, conf=conf)) for p in (hole, origin))
    np.testing.assert_array_equal(a.ids, b.ids)


# --- damage stays where it is


def reach(cfg):
    """Tokens to either side that a frame can reach in the encoder, rounded up.

    Each convolution reaches half its kernel, times its dilation, times the frames between two of its inputs. The linear
    path sees its own token only. One more token, because a frame may lie at either end of its own."""
    enc, down, factor = cfg.model.encoder, cfg.model.downsample, cfg.model.downsample.factor_l
    frames = enc.num_stgcn_blocks * (enc.temporal_kernel // 2)
    frames += sum(down.tconv_dilation * (down.tconv_kernel // 2) * 2**i for i in range(down.layers))
    return -(-frames // factor) + sum(enc.latent_dilations) + 1


@pytest.mark.parametrize("config", CONFIGS)
def test_one_missing_coordinate_changes_only_what_it_can_reach(tokenizers, config, caplog):
    """With noise feedback a token also depends on the error of the one before: its change may run on to the end,
    so there only what lies before is certain; the latents keep to the reach in every configuration."""
    tokenizer, frame = tokenizers(config), 200
    cfg, clip = tokenizer.config, motion(*SKELETONS["bandai21"], 400, 5)
    broken = replace(clip, pose=clip.pose.copy(), id="broken")
    broken.pose[frame, 7, 1] = np.nan
    with caplog.at_level(logging.WARNING):
        before, after = tokenizer.encode(clip).ids, tokenizer.encode(broken).ids
    assert [r.getMessage() for r in caplog.records] == ["clip 'broken': 1 coordinates missing, 1 filled"]
    with torch.no_grad():
        a, b = (
            tokenizer.network.encode(*(t[None] for t in tensors(tokenizer, c)))[0] for c in (clip, broken)
        )
    far = np.abs(np.arange(len(before)) - frame // tokenizer.factor_l) > reach(cfg)
    assert (a != b).any()
    torch.testing.assert_close(a[far], b[far], rtol=1e-5, atol=1e-5)
    if cfg.model.quantizer.noise_feedback:
        far &= np.arange(len(before)) < frame // tokenizer.factor_l
    np.testing.assert_array_equal(before[far], after[far])


def test_the_chain_of_feedback_ends(tokenizers):
    """A changed error is handed on by half: one missing coordinate must not spoil the rest of a long clip."""
    tokenizer, frame = tokenizers("default"), 100
    for seed in range(6):
        clip = motion(*SKELETONS["bandai21"], 1600, 40 + seed)
        broken = replace(clip, pose=clip.pose.copy())
        broken.pose[frame, 3 + seed, 1] = np.nan
        differ = (tokenizer.encode(clip).ids != tokenizer.encode(broken).ids).any(-1)
        assert not differ[200:].any()
        assert differ.sum() < 60


def test_repairs_are_counted_and_logged_under_the_clips_name(seed_like, caplog):
    clip = motion(*SKELETONS["bandai21"], 40, 6)
    clip.pose[10:20, 4], clip.pose[30, 9, 0] = np.nan, np.inf
    with caplog.at_level(logging.WARNING):
        codes = seed_like.encode(clip)
    assert "'clip6': 31 coordinates missing, 1 filled" in caplog.text
    assert np.isfinite(seed_like.decode(codes)).all()
    caplog.clear()
    seed_like.encode(motion(*SKELETONS["bandai21"], 40, 6))
    assert not caplog.records


def test_a_joint_missing_in_every_frame_still_encodes(tokenizers):
    for skeleton in SKELETONS:
        tokenizer = tokenizers("seed_like", skeleton)
        clip = motion(SKELETONS[skeleton][0], tokenizer.config.data.dims, 30, 2)
        clip.pose[:, 2] = np.nan
        back = tokenizer.decode(tokenizer.encode(clip))
        assert back.shape == clip.pose.shape and np.isfinite(back).all()


# --- bad input


def poses(T=8, J=21, D=3):
    return np.random.default_rng(0).normal(size=(T, J, D)).astype(np.float32)


def confs(*shape, value=1.0):
    return np.full(shape, value, np.float32)


BAD = {
    "rank 2": (lambda: (poses()[:, 0],), "wrong rank"),
    "rank 4": (lambda: (poses()[None],), "wrong rank"),
    "D = 1": (lambda: (poses(D=1),), "wrong D"),
    "D = 4": (lambda: (poses(D=4),), "wrong D"),
    "2D to a 3D model": (lambda: (poses(D=2),), "2D data where 3D is asked for"),
    "text": (lambda: (poses().astype(str),), "not real numbers"),
    "truth values": (lambda: (poses() > 0,), "not real numbers"),
    "complex": (lambda: (poses().astype(complex),), "not real numbers"),
    "objects": (lambda: (poses().astype(object),), "not real numbers"),
    "J = 20": (lambda: (poses(J=20),), "J does not match the skeleton; found 20 joints; expected 21 joints"),
    "J = 0": (lambda: (poses(J=0),), "J = 0"),
    "T = 0": (lambda: (poses(T=0),), "T = 0"),
    "all NaN": (lambda: (np.full((8, 21, 3), np.nan),), "all NaN"),
    "all infinite": (lambda: (np.full((8, 21, 3), -np.inf),), "all NaN"),
    "conf [T, J]": (lambda: (poses(), confs(8, 21)), r"conf\[..., None\]"),
    "conf of other frames": (lambda: (poses(), confs(7, 21, 1)), "conf: wrong shape"),
    "conf of other joints": (lambda: (poses(), confs(8, 20, 1)), "conf: wrong shape"),
    "conf of 1.5": (lambda: (poses(), confs(8, 21, 1, value=1.5)), "conf: outside its range"),
    "conf of -1": (lambda: (poses(), confs(8, 21, 1, value=-1)), "conf: outside its range"),
    "conf NaN": (lambda: (poses(), confs(8, 21, 1, value=np.nan)), "conf: outside its range"),
    "conf as text": (lambda: (poses(), confs(8, 21, 1).astype(str)), "conf: not real numbers"),
    "fps 0": (lambda: (poses(), None, 0), "fps: not a frame rate"),
    "fps NaN": (lambda: (poses(), None, float("nan")), "fps: not a frame rate"),
    "conf for several": (lambda: ([poses(), poses()], confs(8, 21, 1)), "several clips"),
    "a clip without the joints": (lambda: (Clip(poses(J=5), skeleton=MOUSE),), "no joint for"),
    "J that contradicts its skeleton": (lambda: (Clip(poses(), skeleton=MOUSE),), "J does not match"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_encode_refuses(seed_like, case):
    make_arguments, message = BAD[case]
    with pytest.raises(DataError, match=message):
        seed_like.encode(*make_arguments())


def test_numbers_of_any_kind_are_motion(seed_like):
    pose = np.round(motion(*SKELETONS["bandai21"], 12, 0).pose)
    kinds = [pose.astype(k) for k in ("f4", "f8", "i4", "i8")] + [torch.from_numpy(pose), pose.astype(">f4")]
    kinds += [np.asfortranarray(pose), np.repeat(pose, 2, 0)[::2]]
    codes = [seed_like.encode(k).ids.tolist() for k in kinds]
    assert all(c == codes[0] for c in codes)


@pytest.fixture(scope="module")
def codes(seed_like):
    return seed_like.encode(motion(*SKELETONS["bandai21"], 10, 0))


def test_what_decode_refuses(seed_like, tokenizers, codes):
    foreign = tokenizers("seed_like", "mouse").encode(motion(MOUSE, 3, 10, 0))
    with pytest.raises(FormatError, match="another tokenizer"):
        seed_like.decode(foreign)
    anonymous = replace(codes, tokenizer={"name": "", "hash": ""})
    np.testing.assert_array_equal(seed_like.decode(anonymous), seed_like.decode(codes))
    with pytest.raises(FormatError, match="factor_l: does not fit the tokenizer; found 2"):
        seed_like.decode(Codes(np.zeros((5, 3), int), 10, 2, (64,) * 3))
    with pytest.raises(FormatError, match="codebook_sizes: does not fit"):
        seed_like.decode(Codes(np.zeros((3, 3), int), 10, 4, (65,) * 3))
    with pytest.raises(FormatError, match="codebook_sizes: does not fit"):
        seed_like.decode(Codes(np.zeros((3, 4), int), 10, 4, (64,) * 4))
    for n in (0, 4, -1):
        with pytest.raises((ConfigError, DataError), match="num_codebooks"):
            seed_like.decode(codes, n)
    with pytest.raises(DataError, match="side information of another clip"):
        seed_like.decode(replace(codes, side={"scale": 1.0, "root": [[0, 0, 0]] * 3}))
    with pytest.raises(DataError, match="out of range"):
        replace(codes, ids=codes.ids + 64)
    with pytest.raises(DataError, match="out of range"):
        replace(codes, ids=codes.ids - 64)


def test_groups_of_tokens_have_to_fit(seed_like, tokenizers, codes):
    per_joint = tokenizers("per_joint")
    sizes = per_joint.quantizer.codebook_sizes
    with pytest.raises(FormatError, match="codes"):
        per_joint.decode(Codes(np.zeros((3, 3), int), 10, 4, sizes))
    with pytest.raises(FormatError, match="codes"):
        per_joint.decode(Codes(np.zeros((3, 20, 3), int), 10, 4, sizes))
    with pytest.raises(FormatError, match="codes"):
        seed_like.decode(Codes(np.zeros((3, 21, 3), int), 10, 4, (64,) * 3))
    assert per_joint.encode(motion(*SKELETONS["bandai21"], 10, 0)).ids.shape == (3, 21, 3)


def test_fewer_layers_tell_less(seed_like, codes):
    whole, first = seed_like.decode(codes), seed_like.decode(codes, 1)
    assert not np.array_equal(whole, first)
    with_fewer = replace(codes, ids=codes.ids[:, :1], codebook_sizes=codes.codebook_sizes[:1])
    np.testing.assert_array_equal(seed_like.decode(with_fewer), first)
    np.testing.assert_array_equal(seed_like.decode(codes, 3), whole)


# --- save and load


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_and_loaded_it_is_the_same_tokenizer(tmp_path, tokenizers, config):
    tokenizer = tokenizers(config)
    tokenizer.save_pretrained(tmp_path / "model")
    clips = [motion(*SKELETONS["bandai21"], T, T) for T in (1, 5, 90)]
    codes = tokenizer.encode(clips)
    for again in (PoseTokenizer.from_pretrained(tmp_path / "model"), load_model(tmp_path / "model")):
        assert not again.training
        assert again.name == tokenizer.name == {"name": "pose_tokenizer", "hash": tokenizer.content_hash()}
        assert again.encode(clips) == codes
        for a, b in zip(again.decode(codes), tokenizer.decode(codes), strict=True):
            np.testing.assert_array_equal(a, b)
    codes[0].save(tmp_path / "c.codes.json")
    assert Codes.load(tmp_path / "c.codes.json") == codes[0]


def altered_weights(folder):
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-100] ^= 1
    (folder / "model.safetensors").write_bytes(raw)


def altered_settings(folder):
    text = (folder / "config.json").read_text()
    assert '"factor_l": 4' in text
    (folder / "config.json").write_text(text.replace('"factor_l": 4', '"factor_l": 8'))


def without(name):
    return lambda folder: (folder / name).unlink()


def torn(name):
    def tear(folder):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])

    return tear


DAMAGE = {
    "altered weights": (altered_weights, "hash"),
    "altered settings": (altered_settings, "hash"),
    "no weights": (without("model.safetensors"), "model.safetensors"),
    "no settings": (without("config.json"), "holds no model"),
    "torn weights": (torn("model.safetensors"), "model.safetensors"),
    "torn settings": (torn("config.json"), "config.json"),
    "no folder": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_model_is_refused(tmp_path, tokenizers, case):
    tokenizers("seed_like", "mouse").save_pretrained(tmp_path / "model")
    damage, message = DAMAGE[case]
    damage(tmp_path / "model")
    with pytest.raises(FormatError, match=message):
        PoseTokenizer.from_pretrained(tmp_path / "model")


# --- encode leaves the world as it was


def test_encode_draws_no_random_numbers(seed_like, tokenizers):
    for tokenizer in (seed_like, tokenizers("default")):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        tokenizer.decode(tokenizer.encode(motion(*SKELETONS["bandai21"], 33, 0)))
        assert before == (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )


@pytest.mark.parametrize("config", ["default", "seed_like"])
def test_encode_and_decode_change_neither_mode_nor_weights(config):
    """Also in the middle of training: the same codes as in evaluation mode, and nothing is learnt."""
    tokenizer = make(CONFIGS[config], *SKELETONS["bandai21"], seed=1)
    clip = motion(*SKELETONS["bandai21"], 50, 0)
    codes, pose = tokenizer.encode(clip), tokenizer.decode(tokenizer.encode(clip))
    hashed = tokenizer.content_hash()
    for mode in (False, True):
        tokenizer.train(mode)
        again = tokenizer.encode(clip)
        back = tokenizer.decode(again)
        assert all(m.training == mode for m in tokenizer.modules())
        assert tokenizer.content_hash() == hashed
        np.testing.assert_array_equal(again.ids, codes.ids)
        np.testing.assert_array_equal(back, pose)


def test_new_weights_are_a_new_tokenizer(tokenizers):
    """Whatever is kept between calls, hash and double copy included, follows the weights."""
    tokenizer, other = (make(SEED_LIKE, MOUSE, 3, seed=s) for s in (1, 2))
    clip = motion(MOUSE, 3, 50, 0)
    assert tokenizer.encode(clip) != other.encode(clip)
    tokenizer.in_double()
    tokenizer.load_state_dict(other.state_dict())
    assert tokenizer.encode(clip) == other.encode(clip)
    expected = dict(other.double().state_dict())
    assert all(torch.equal(v, expected[k]) for k, v in tokenizer.in_double().state_dict().items())


def test_settings_are_not_open():
    with pytest.raises(ConfigError, match="data.dims"):
        PoseTokenizer(load_config(PoseConfig, SEED_LIKE), MOUSE)
