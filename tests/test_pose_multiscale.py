"""Coarse and fine tokens: two streams that decode together, at every length, and at the bits they say."""

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_motion

from tokenize_lib.core.config import merge
from tokenize_lib.core.errors import ConfigError, FormatError
from tokenize_lib.pose.clips import Clip
from tokenize_lib.pose.context import train_context
from tokenize_lib.pose.evaluate import evaluate_tokenizer
from tokenize_lib.pose.exact import clip_codes, clip_motion, exact_codes
from tokenize_lib.pose.multiscale import MultiScaleTokenizer, join_streams
from tokenize_lib.pose.onnx import export_onnx
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import resolve_config, train_tokenizer
from tokenize_lib.quantize.codes import Codes

TWO = merge(TINY, {"model": {"multi_scale": {"enabled": True, "num_codebooks": 3, "codebook_size": 8}}})


@pytest.fixture(scope="module")
def motion():
    return tiny_motion()


@pytest.fixture(scope="module")
def run(motion, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    return out, train_tokenizer(motion, out, resolve_config(motion, TWO), quiet=True, device="cpu")


@pytest.fixture(scope="module")
def tokenizer(run):
    return PoseTokenizer.from_pretrained(run[0])


def clip_of(motion, T):
    source = max(motion.clips, key=len).pose
    return Clip(source[np.arange(T) % len(source)], fps=30.0, id=f"{T}")


@pytest.mark.parametrize("T", [1, 2, 3, 4, 15, 16, 17, 61, 64])
def test_two_streams_go_through_a_file_and_give_every_length_back(tokenizer, motion, tmp_path, T):
    clip = clip_of(motion, T)
    codes = tokenizer.encode(clip)
    coarse = codes.streams["coarse"]
    assert codes.ids.shape == (-(-T // 4), 2) and coarse.ids.shape == (-(-T // 16), 3)
    assert (codes.factor_l, coarse.factor_l, coarse.codebook_sizes) == (4, 16, (8, 8, 8))
    assert codes.total_bits == -(-T // 4) * 8 + -(-T // 16) * 9
    codes.save(tmp_path / "clip.codes.json")
    back = Codes.load(tmp_path / "clip.codes.json")
    assert back == codes
    np.testing.assert_array_equal(tokenizer.decode(back), tokenizer.decode(codes))
    assert tokenizer.decode(back).shape == clip.pose.shape


def test_codes_do_not_depend_on_padding(tokenizer, motion):
    clips = [tokenizer.preprocess(clip_of(motion, T)) for T in (5, 30, 49)]
    x = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(c.x) for c in clips], batch_first=True)
    conf = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(c.conf) for c in clips], batch_first=True)
    together = exact_codes(tokenizer, x, conf, torch.arange(49) < torch.tensor([5, 30, 49])[:, None])
    for codes, clip in zip(together, clips, strict=True):
        alone = exact_codes(tokenizer, torch.from_numpy(clip.x)[None], torch.from_numpy(clip.conf)[None])[0]
        assert torch.equal(codes[: len(alone)], alone)


def test_the_same_run_twice_and_reading_it_back(run, motion, tmp_path, tokenizer):
    again = train_tokenizer(motion, tmp_path / "again", resolve_config(motion, TWO), quiet=True, device="cpu")
    assert again == run[1]
    assert type(tokenizer) is MultiScaleTokenizer and tokenizer.name == run[1]["tokenizer"]


def test_bits_are_those_of_both_streams(run, motion, tmp_path):
    assert run[1]["bits_per_frame"] == pytest.approx(2 * 4 / 4 + 3 * 3 / 16)
    found = evaluate_tokenizer(run[0], motion, tmp_path / "eval", split="all", quiet=True)
    tokenizer = PoseTokenizer.from_pretrained(run[0])
    spent = sum(c.total_bits for c in tokenizer.encode(motion.clips))
    assert found["bits_per_frame"] == pytest.approx(spent / found["frames"])
    rates = [row["bits_per_frame"] for row in found["rate_distortion"]]
    assert len(rates) == 5 and rates == sorted(rates)


def test_fine_tokens_make_good_what_coarse_ones_leave(tokenizer, motion):
    clip = clip_of(motion, 60)
    codes = tokenizer.encode(clip)
    rough, whole = (np.nanmean(np.abs(tokenizer.decode(codes, n) - clip.pose)) for n in (3, 5))
    assert whole < rough


def test_codes_without_their_coarse_stream_are_refused(tokenizer, motion):
    codes = tokenizer.encode(clip_of(motion, 20))
    codes.streams = {}
    with pytest.raises(FormatError, match="streams.coarse"):
        tokenizer.decode(codes)
    assert join_streams(tokenizer, tokenizer.encode(clip_of(motion, 20))).ids.shape == (5, 5)


def test_pieces_and_company_change_nothing(tokenizer, motion):
    clips = [clip_of(motion, T) for T in (61, 5, 190)]
    together = tokenizer.encode(clips)
    for clip, codes, pose in zip(clips, together, tokenizer.decode(together), strict=True):
        assert codes == tokenizer.encode(clip)
        np.testing.assert_allclose(pose, tokenizer.decode(codes), atol=1e-3)
    seen = tokenizer.eval().preprocess(clips[2])
    with torch.no_grad():
        [whole], [pieces] = (clip_codes(tokenizer, [seen], n) for n in (4096, 8))
        np.testing.assert_array_equal(pieces, whole)
        [x], [y] = (clip_motion(tokenizer, [whole], [190], at_once=n) for n in (4096, 8))
    np.testing.assert_allclose(x, y, atol=1e-4)


def test_a_frame_changes_no_token_that_cannot_see_it(tokenizer, motion):
    """A coarse token speaks for its neighbours' time too."""
    clip, frame, field = clip_of(motion, 600), 301, tokenizer.receptive_field
    other = Clip(clip.pose.copy(), fps=30.0, id=clip.id)
    other.pose[frame, 5:11] += 5.0
    ids = [join_streams(tokenizer, tokenizer.encode(c)).ids for c in (clip, other)]
    differ = np.flatnonzero((ids[0] != ids[1]).any(-1)) * 4
    assert len(differ) and frame - field.after <= differ.min() and differ.max() <= frame + field.before


def test_what_needs_one_scale_says_so(run, tokenizer, motion, tmp_path):
    for refused, what in (
        (tokenizer.stream, "streamed"),
        (tokenizer.decode_stream, "streamed"),
        (lambda: export_onnx(run[0], tmp_path / "onnx"), "written as ONNX"),
        (lambda: train_context(run[0], motion, tmp_path / "context"), "given a context model"),
    ):
        with pytest.raises(ConfigError, match=f"two time scales cannot be {what}"):
            refused()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [4, 2, 6, 10])
def test_coarse_tokens_cover_whole_fine_ones(motion, factor):
    with pytest.raises(ConfigError, match="allowed 8, 12"):
        resolve_config(motion, merge(TWO, {"model": {"multi_scale": {"coarse_factor": factor}}}))


def test_other_factors_train_too(motion, tmp_path):
    settings = merge(
        TWO, {"model": {"multi_scale": {"coarse_factor": 24}, "quantizer": {"noise_feedback": 0.0}}}
    )
    train_tokenizer(motion, tmp_path / "run", resolve_config(motion, settings), quiet=True, device="cpu")
    codes = PoseTokenizer.from_pretrained(tmp_path / "run").encode(clip_of(motion, 50))
    assert codes.streams["coarse"].ids.shape == (3, 3)
