"""Streams, chunks and padded batches say what `encode` says of the whole clip, to the last code, in bounded memory.

The random cases are 120; `TOKENIZE_LIB_CASES=1000 pytest tests/test_pose_stream.py -k random` runs a thousand."""

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenize_lib.core.config import load_config
from tokenize_lib.core.errors import ConfigError, DataError
from tokenize_lib.pose.clips import Clip
from tokenize_lib.pose.config import PoseConfig
from tokenize_lib.pose.exact import clip_codes, exact_codes, pad_clips
from tokenize_lib.pose.skeleton import skeleton_from_parents
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import train_tokenizer
from tokenize_lib.pose.vq import evaluating

CASES = int(os.environ.get("TOKENIZE_LIB_CASES", 120))
PER_TOKENIZER = 10


def random_skeleton(rng):
    J = int(rng.integers(2, 20))
    parents = [-1, *(int(rng.integers(0, j)) for j in range(1, J))]
    return skeleton_from_parents("random", [f"joint{j}" for j in range(J)], parents, up=None)


def motion(rng, skeleton, dims, frames):
    J, t = len(skeleton), np.arange(frames)[:, None, None] / 30
    body = np.cumsum(rng.normal(size=(J, dims)), 0) * 10
    swing = sum(
        rng.normal(size=(J, dims)) * 3 * np.sin(2 * np.pi * f * t + rng.uniform(0, 6, (J, dims)))
        for f in (0.4, 1.1, 2.7)
    )
    drift = rng.normal(size=(1, 1, dims)) * 20 * t
    return (body + swing + drift + rng.normal(size=(frames, J, dims)) * 0.1).astype(np.float32)


def settings(rng):
    """Any network and any search; preprocessing that can be streamed."""
    dims, pick = int(rng.integers(2, 4)), lambda *options: options[int(rng.integers(len(options)))]
    per_joint = rng.random() < 0.25
    pooled = not per_joint and rng.random() < 0.6
    quantizer = {
        "num_codebooks": pick(1, 2, 3),
        "codebook_size": pick(5, 32, 70),
        "code_dim": pick(4, 8, 16),
        "beam_width": pick(1, 3, 8),
        "noise_feedback": pick(0.0, 0.5, 0.7),
        "feedback_reset": pick(None, 1, 5, 32),
        "refine_rounds": pick(0, 0, 1),
    }
    encoder = {
        "num_stgcn_blocks": pick(0, 1, 2),
        "temporal_kernel": pick(1, 3, 5),
        "norm": pick("batch", "none"),
        "joint_pool": pick("attention", "mean", "linear"),
        "token_latent_mode": "per_joint" if per_joint else "pooled",
        "latent_dilations": pick([], [1], [1, 3], [1, 3, 9]),
    }
    encoder["channels"] = [4, 6][: max(1, encoder["num_stgcn_blocks"])]
    model = {
        "d_model": pick(8, 24),
        "causal": bool(rng.random() < 0.4),
        "linear_path": bool(not per_joint and rng.random() < 0.5),
        "downsample": {"factor_l": pick(2, 4, 8), "tconv_kernel": pick(1, 3, 5), "space": "pooled" if pooled else "joints",
                       "tconv_dilation": pick(1, 2), "tconv_layers": None},
        "encoder": encoder,
        "quantizer": quantizer,
        "decoder": {"num_refine_blocks": pick(0, 1, 2), "upsample_mode": pick("transposed_conv", "upsample_conv")},
    }  # fmt: skip
    preprocess = {
        "interp_missing": bool(rng.random() < 0.8),
        "interp_max_gap": pick(1, 3, 6),
        "root_relative": bool(rng.random() < 0.8),
        "scale_norm": bool(rng.random() < 0.9),
        "scale_scope": pick("dataset", "dataset", "frame", "clip"),
    }
    data = {"dims": dims, "fps": 30, "use_confidence": bool(rng.random() < 0.5), "preprocess": preprocess}
    return load_config(PoseConfig, {"data": data, "model": model, "train": {"window_T": 16}})


def make(cfg, skeleton, seed):
    """A tokenizer whose every part speaks: random weights, statistics of its own, codebooks from its latents."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tokenizer = PoseTokenizer(cfg, skeleton, 12.5)
    seen = [tokenizer.preprocess(Clip(motion(rng, skeleton, cfg.data.dims, 90))) for _ in range(4)]
    tokenizer.network.fit([s.x for s in seen], [s.conf for s in seen])
    for layer in (tokenizer.network.encoder.to_code, tokenizer.network.decoder.head):
        torch.nn.init.normal_(layer.weight, std=0.3)
    x, conf, _ = pad_clips([(s.x, s.conf) for s in seen], tokenizer.network.mean_pose)
    with torch.no_grad():
        for _ in range(4):
            z = tokenizer.network.train().encode(x, conf)
        left = tokenizer.network.eval().encode(x, conf).flatten(0, -2)
        for layer in tokenizer.quantizer.layers:
            layer.embed.copy_(left[torch.randint(len(left), (layer.codebook_size,))])
            left = left - layer.decode(layer.nearest(left))
            left += 0.1 * left.std() * torch.randn_like(left)
    assert z.isfinite().all()
    return tokenizer.eval()


def damaged(rng, tokenizer, pose):
    """Holes: of any length where that can be streamed, in the root and in sizes only such as are bridged; confidence or none."""
    cfg, (T, J, _) = tokenizer.config.data.preprocess, pose.shape
    gap = cfg.interp_max_gap if cfg.interp_missing else 0
    root = (
        tokenizer.skeleton.joints.index(tokenizer.skeleton.root_joint[0])
        if isinstance(tokenizer.skeleton.root_joint, list)
        else 0
    )
    short_only = cfg.scale_norm and cfg.scale_scope == "frame"
    for _ in range(int(rng.integers(0, 6))):
        joint, start = int(rng.integers(0, J)), int(rng.integers(0, T))
        length = int(rng.integers(1, 30))
        if short_only or joint == root:
            length = min(length, gap)
            start = 1 + start % max(1, T - 2)
            if (
                length == 0
                or start + length >= T
                or np.isnan(pose[max(0, start - 1) : start + length + 1, joint]).any()
            ):
                continue
        axis = slice(None) if rng.random() < 0.5 else int(rng.integers(0, pose.shape[2]))
        pose[start : start + length, joint, axis] = np.nan
    conf = None
    if rng.random() < 0.5:
        conf = rng.uniform(0.1, 1, (T, J, 1)).astype(np.float32)
        lost = rng.random((T, J)) < 0.05
        lost[:, root] = False
        if not short_only:
            conf[lost], pose[lost] = 0, 0  # how some trackers write "not found"
    return pose, conf


def streamed(rng, tokenizer, clip, scale=None):
    stream, said, at = tokenizer.stream(clip.fps, scale=scale, keep=True), [], 0
    sizes = (1, 3) if rng.random() < 0.3 else (0, 60)
    while at < len(clip):
        n = int(rng.integers(sizes[0], sizes[1] + 1))
        part = slice(at, at + n)
        said.append(stream.push(clip.pose[part], None if clip.conf is None else clip.conf[part]))
        at += n
    said.append(stream.flush())
    return np.concatenate(said), stream


@pytest.mark.parametrize("seed", range(-(-CASES // PER_TOKENIZER)))
def test_random_clips_streamed_chunked_and_padded(seed):
    rng = np.random.default_rng(seed)
    skeleton, cfg = random_skeleton(rng), settings(rng)
    tokenizer, clips, alone = make(cfg, skeleton, seed), [], []
    for i in range(PER_TOKENIZER):
        T = int(rng.integers(1, 9)) if rng.random() < 0.2 else int(rng.integers(1, 401))
        pose, conf = damaged(rng, tokenizer, motion(rng, skeleton, cfg.data.dims, T))
        clips.append(Clip(pose, conf, 30.0, f"clip{i}"))
        alone.append(tokenizer.encode(clips[-1]))
    for clip, codes in zip(clips, alone, strict=True):
        ids = codes.ids
        pre = cfg.data.preprocess
        scale = codes.side["scale"] if pre.scale_norm and pre.scale_scope == "clip" else None
        said, stream = streamed(rng, tokenizer, clip, scale)
        np.testing.assert_array_equal(said, ids)
        assert replace(stream.codes(), id=clip.id) == codes
        seen = tokenizer.preprocess(clip)
        with evaluating(tokenizer):
            [chunked] = clip_codes(tokenizer, [seen], int(rng.integers(8, 100)))
            others = [tokenizer.preprocess(c) for c in clips[:2]]
            batch = pad_clips([(s.x, s.conf) for s in (seen, *others)], tokenizer.network.mean_pose)
            padded = exact_codes(tokenizer, *batch)[0].numpy()
        np.testing.assert_array_equal(chunked, ids)
        np.testing.assert_array_equal(padded[: len(ids)], ids)
    for together, codes in zip(tokenizer.encode(clips), alone, strict=True):
        assert together == codes
    assert len({a.ids.tobytes() for a in alone}) > 3  # or nothing was tested


# --- decoding


@pytest.mark.parametrize("seed", range(12))
def test_frames_of_a_stream_are_those_of_decode(seed):
    rng = np.random.default_rng(1000 + seed)
    skeleton, cfg = random_skeleton(rng), settings(rng)
    tokenizer = make(cfg, skeleton, seed)
    for T in (1, 7, 50, 301):
        codes = replace(tokenizer.encode(Clip(motion(rng, skeleton, cfg.data.dims, T), fps=30.0)), side={})
        expected, stream, said, at = tokenizer.decode(codes), tokenizer.decode_stream(), [], 0
        while at < len(codes.ids):
            n = int(rng.integers(0, 20))
            said.append(stream.push(codes.ids[at : at + n]))
            at += n
            frames = sum(map(len, said))
            assert frames == max(0, min(at, len(codes.ids)) - stream.latency) * codes.factor_l
        said.append(stream.flush(T))
        size = np.abs(expected).max()
        np.testing.assert_allclose(np.concatenate(said)[:T], expected, atol=2e-5 * size)


def test_what_a_decode_stream_refuses():
    rng = np.random.default_rng(0)
    tokenizer = make(settings(np.random.default_rng(5)), random_skeleton(rng), 0)
    codes = tokenizer.encode(
        Clip(motion(rng, tokenizer.skeleton, tokenizer.config.data.dims, 40), fps=30.0)
    ).ids
    stream = tokenizer.decode_stream()
    stream.push(codes)
    for length in (0, len(codes) * tokenizer.factor_l + 1, (len(codes) - 1) * tokenizer.factor_l):
        with pytest.raises(DataError, match="length: does not fit the codes"):
            stream.flush(length)
    with pytest.raises(DataError, match="codes"):
        stream.push(codes.astype(float))
    with pytest.raises(DataError, match="codes"):
        stream.push(codes[..., :0])
    with pytest.raises(DataError, match="out of range"):
        tokenizer.decode_stream().push(codes + 10**6)


# --- what a stream holds, and for how long


@pytest.fixture(scope="module")
def default():
    """The default network, untrained, with small codebooks."""
    rng = np.random.default_rng(0)
    skeleton = skeleton_from_parents("chain", [f"joint{j}" for j in range(20)], [-1, *range(19)], up=None)

    def get(*overrides):
        common = [
            "data.dims=3",
            "data.fps=30",
            "data.preprocess.scale_scope=dataset",
            "model.quantizer.codebook_size=32",
        ]
        return make(
            load_config(PoseConfig, "pose/default", [*common, *overrides]), skeleton, int(rng.integers(99))
        )

    return get


def test_memory_does_not_grow(default):
    """A stream of 100,000 frames holds what one of a few seconds holds."""
    tokenizer = default("model.quantizer.beam_width=1")
    stream, back = tokenizer.stream(), tokenizer.decode_stream()
    clip = motion(np.random.default_rng(1), tokenizer.skeleton, 3, 4000)
    tokenizer.decode(tokenizer.encode(Clip(clip[:500])))  # whatever is kept once is there now

    def turn():
        for a in range(0, len(clip), 500):
            back.push(stream.push(clip[a : a + 500]))

    turn()
    tracemalloc.start()
    turn()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for _ in range(23):
        turn()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stream.length == 100_000
    assert after - before < 100_000  # bytes: less than one a frame
    assert peak - before < 10_000_000


@pytest.mark.parametrize("causal", [False, True])
def test_latency_is_what_it_says(default, causal):
    tokenizer = default(f"model.causal={str(causal).lower()}")
    clip = motion(np.random.default_rng(2), tokenizer.skeleton, 3, 200)
    for holes in (False, True):
        stream, waits, tokens = tokenizer.stream(), [], 0
        frames = clip.copy()
        if holes:
            for t in range(20, 180, 13):
                frames[t : t + 3, t % 19] = np.nan
        for t, frame in enumerate(frames):
            for _ in stream.push(frame):
                waits.append(t - tokens * tokenizer.factor_l)
                tokens += 1
        assert max(waits) <= stream.latency
        if not holes:
            assert set(waits) == {stream.latency - 3}  # nothing to be bridged
    if causal:
        assert stream.latency == tokenizer.factor_l - 1 + 3  # its own frames, and the longest gap


def test_a_causal_network_trains_and_looks_back_only(tmp_path):
    from tokenize_lib.pose.synthetic import synthetic_motion
    from tokenize_lib.pose.train import resolve_config

    data = synthetic_motion(6, seed=0, frames=(40, 60), dropout=0)
    small = {"train": {"max_steps": 3, "batch_size": 4, "window_T": 32}, "logging": {"tensorboard": False},
             "model": {"causal": True, "quantizer": {"codebook_size": 16, "dead_code_threshold": 1e-3}}}  # fmt: skip
    train_tokenizer(data, tmp_path / "run", resolve_config(data, small), quiet=True)
    tokenizer = PoseTokenizer.from_pretrained(tmp_path / "run")
    reach, decoder = tokenizer.encoder_reach, tokenizer.decoder_reach
    assert (reach.after, decoder.after) == (tokenizer.factor_l - 1, 0)
    pose = data.clips[0].pose
    ids = tokenizer.encode(pose, fps=30).ids
    for T in range(4, 40, 4):  # the beginning does not know the rest
        np.testing.assert_array_equal(tokenizer.encode(pose[:T], fps=30).ids, ids[: T // 4])


# --- damage


@pytest.mark.parametrize("seed", range(8))
def test_one_missing_coordinate_keeps_to_the_receptive_field(default, seed):
    """Of every token: the block of the noise feedback, the reach of the network and the gap that is bridged, and nothing else."""
    causal = f"model.causal={str(seed % 2 == 1).lower()}"
    tokenizer, rng = default(causal, "model.quantizer.codebook_size=256"), np.random.default_rng(seed)
    clip = Clip(motion(rng, tokenizer.skeleton, 3, 700), fps=30.0, id="whole")
    field, changed = tokenizer.receptive_field, 0
    for _ in range(4):
        frame, joint, axis = int(rng.integers(1, 699)), int(rng.integers(1, 20)), int(rng.integers(3))
        clip.pose[frame, joint, axis] += 60  # what is bridged is not what was there
        broken = replace(clip, pose=clip.pose.copy(), id="broken")
        broken.pose[frame, joint, axis] = np.nan
        whole, holed = tokenizer.encode([clip, broken])
        differ, first = (whole.ids != holed.ids).any(-1), np.arange(len(whole.ids)) * tokenizer.factor_l
        assert not differ[(first + field.after < frame) | (first - field.before > frame)].any()
        changed += int(differ.any())
    assert changed  # or nothing was tested


def test_the_receptive_field_tells_what_the_whole_clip_decides(default):
    tokenizer = default()
    q, own = tokenizer.config.model.quantizer, tokenizer.encoder_reach
    assert tokenizer.receptive_field.before == own.before + (q.feedback_reset - 1) * 4 + 3
    assert tokenizer.receptive_field.after == own.after + 3
    assert default("model.quantizer.feedback_reset=null").receptive_field is None
    assert default("model.quantizer.feedback_reset=0").receptive_field is None
    assert default("data.preprocess.scale_scope=clip").receptive_field is None
    plain = default("model.quantizer.noise_feedback=0", "data.preprocess.interp_missing=false")
    assert (plain.receptive_field.before, plain.receptive_field.after) == (own.before, own.after)


# --- what cannot be streamed


def test_what_a_stream_refuses(default):
    tokenizer, rng = default(), np.random.default_rng(3)
    pose = motion(rng, tokenizer.skeleton, 3, 60)
    with pytest.raises(ConfigError, match="another rate than the model's; found 25"):
        tokenizer.stream(25)
    with pytest.raises(ConfigError, match="smoothing"):
        default("data.preprocess.smoothing=true").stream()
    with pytest.raises(ConfigError, match="scale"):
        default("data.preprocess.scale_scope=clip").stream()
    for scale in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="not a size"):
            tokenizer.stream(scale=scale)
    for bad in (pose[:, :5], pose[..., :2], pose.astype(str), pose[None]):
        with pytest.raises(DataError):
            tokenizer.stream().push(bad)
    stream = tokenizer.stream()
    stream.push(pose[:10])
    with pytest.raises(DataError, match="given for some frames only"):
        stream.push(pose[10:], np.ones((50, 20, 1), np.float32))
    with pytest.raises(DataError, match="no whole motion"):
        stream.codes()
    stream.flush()
    assert len(stream.flush()) == 0
    with pytest.raises(DataError, match="the stream has ended"):
        stream.push(pose)


@pytest.mark.parametrize("scope", ["dataset", "frame"])
def test_guesses_that_need_the_whole_clip_are_refused(default, scope):
    tokenizer = default(f"data.preprocess.scale_scope={scope}")
    pose = motion(np.random.default_rng(4), tokenizer.skeleton, 3, 60)
    rootless, boneless = pose.copy(), pose.copy()
    rootless[20:24, 0], boneless[20:24, 9] = np.nan, np.nan
    with pytest.raises(DataError, match="the body's root cannot be streamed; found missing in frame 20"):
        tokenizer.stream().push(rootless)
    stream = tokenizer.stream()
    if scope == "frame":
        with pytest.raises(DataError, match="the body's size cannot be streamed; found missing in frame 20"):
            stream.push(boneless)
    else:
        np.testing.assert_array_equal(
            np.concatenate([stream.push(boneless), stream.flush()]), tokenizer.encode(boneless, fps=30).ids
        )


def test_frames_without_anybody_are_bridged_like_others(default):
    tokenizer = default()
    pose = motion(np.random.default_rng(6), tokenizer.skeleton, 3, 90)
    pose[40:43] = np.nan
    stream = tokenizer.stream()
    said = [stream.push(frame) for frame in pose] + [stream.flush()]
    np.testing.assert_array_equal(np.concatenate(said), tokenizer.encode(pose, fps=30).ids)


def test_an_empty_stream(default):
    stream = default().stream()
    assert stream.push(np.empty((0, 20, 3))).shape == stream.flush().shape == (0, 3)


# --- long clips


def test_a_long_clip_is_worked_off_in_pieces(default):
    """What goes through the network at once does not grow with the clip."""
    tokenizer = default("model.quantizer.beam_width=1")
    clip = Clip(motion(np.random.default_rng(7), tokenizer.skeleton, 3, 20_000), fps=30.0)
    frames, network = [], tokenizer.network
    network.encoder.register_forward_pre_hook(lambda _, args: frames.append(args[0].shape[:2].numel()))
    network.decoder.register_forward_pre_hook(lambda _, args: frames.append(len(args[0]) * args[1]))
    codes = tokenizer.encode(clip)
    assert len(tokenizer.decode(codes)) == 20_000
    assert len(frames) >= 8 and max(frames) < 5_000
    said, _ = streamed(np.random.default_rng(0), tokenizer, replace(clip, pose=clip.pose[:3000]))
    tokens = (3000 - tokenizer.receptive_field.after) // 4 - 1
    np.testing.assert_array_equal(said[:tokens], codes.ids[:tokens])
