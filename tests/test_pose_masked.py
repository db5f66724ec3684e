"""Masked token prediction, filling gaps, and joints that nobody saw."""

import shutil

import numpy as np
import pytest
import torch
from tiny import TINY, tiny_motion

from tokenize_lib.core.config import load_config, merge
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.core.run import read_log
from tokenize_lib.pose.config import MaskedPredictionConfig, PoseConfig
from tokenize_lib.pose.context import code_sequences_of, context_folder
from tokenize_lib.pose.dataset import PoseBatches, hide_joints
from tokenize_lib.pose.evaluate import evaluate_tokenizer, measure_hidden
from tokenize_lib.pose.masked import (
    MaskedPredictor,
    code_tensors,
    fill,
    hidden_spans,
    load_predictor,
    masked_terms,
    save_predictor,
)
from tokenize_lib.pose.masked_training import hiding_rounds, train_masked_predictor
from tokenize_lib.pose.preprocess import Processed
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import build_tokenizer, processed, resolve_config, train_tokenizer
from tokenize_lib.quantize.context import ContextConfig, ContextModel
from tokenize_lib.quantize.context_coding import compress

MASKED = {"loss": {"masked_pred": {"enabled": True, "width": 16, "heads": 2}}}


@pytest.fixture(scope="module")
def motion():
    return tiny_motion()


@pytest.fixture(scope="module")
def together(motion, tmp_path_factory):
    """A tokenizer trained with its predictor."""
    out = tmp_path_factory.mktemp("together") / "run"
    return out, train(out, motion, MASKED)


def train(out, data, *settings, **options):
    cfg = resolve_config(data, merge(TINY, merge(*settings) if settings[1:] else (settings or [{}])[0]))
    return train_tokenizer(data, out, cfg, quiet=True, device="cpu", **options)


def turning(n, rng, size=16):
    """Sectors of a circle passed at a constant speed, which one neighbour does not tell."""
    found = []
    for T in rng.integers(12, 40, n):
        at = rng.uniform(0, 1) + rng.uniform(0.02, 0.1) * rng.choice([-1, 1]) * np.arange(T)
        found.append((at % 1 * size).astype(int)[:, None])
    return found


def ring(size=16):
    torch.manual_seed(0)
    predictor = MaskedPredictor(MaskedPredictionConfig(width=32), [size], 2, {"name": "ring", "hash": "1"})
    angle = 2 * torch.pi * torch.arange(size) / size
    predictor.codebook(0).copy_(torch.stack([angle.cos(), angle.sin()], 1))
    return predictor.eval()


# --- what is hidden


@pytest.mark.parametrize(
    "length, share, span", [(1, 0.15, 6), (4, 0.15, 6), (7, 0.5, 3), (40, 0.15, 6), (40, 0.3, 1)]
)
def test_spans_have_their_length_and_share_and_leave_padding_alone(length, share, span):
    torch.manual_seed(0)
    hidden = hidden_spans([length] * 2000 + [50], share, span)[:2000]
    assert not hidden[:, length:].any()
    edges = torch.nn.functional.pad(hidden.int(), (1, 1)).diff(dim=1)
    runs = (edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]
    assert (runs % min(span, length) == 0).all()  # spans may touch, never overlap
    assert hidden[:, :length].float().mean().item() == pytest.approx(share, abs=0.02)


def test_the_same_seed_hides_the_same():
    draws = [hidden_spans([30, 20], 0.3, 4, seeds) for seeds in ([1, 5], [1, 5], [2, 5])]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0][1], draws[2][1])


@pytest.mark.parametrize("length", [1, 5, 6, 41, 200])
def test_every_token_has_its_turn(length):
    assert (hiding_rounds(length, 0.15, 6).sum(0) == 1).all()


def test_nothing_hidden_is_a_loss_of_zero():
    terms = masked_terms(ring(), torch.zeros(1, 1, 1, dtype=torch.long))
    values = [masked_terms(ring(), torch.zeros(1, 1, 1, dtype=torch.long))["mask"].item() for _ in range(8)]
    assert min(values) == 0.0 and terms["mask"].requires_grad
    none = masked_terms(ring(), torch.zeros(0, 9, 1, dtype=torch.long), torch.ones(0, 9, dtype=torch.bool))
    assert none["mask"].item() == 0.0


# --- the predictor


def test_padding_is_not_attended():
    predictor, codes = ring(), torch.randint(0, 16, (1, 20, 1))
    hidden = torch.zeros(1, 20, dtype=torch.bool)
    hidden[:, 3:6] = True
    alone, _ = predictor(codes[:, :12], hidden[:, :12])
    padded, _ = predictor(codes, hidden, torch.arange(20)[None] < 12)
    torch.testing.assert_close(padded[:, :12], alone)


def test_it_beats_what_pairs_can_tell(tmp_path):
    predictor, rng = ring(), np.random.default_rng(0)
    known, unseen = turning(200, rng), turning(40, rng)
    brief = ["train.max_steps=300", "train.optimizer.lr=3e-3", "logging.tensorboard=false"]
    cfg = load_config(PoseConfig, "pose/default", brief)
    found = train_masked_predictor(predictor, known, unseen, tmp_path / "run", cfg, device="cpu", quiet=True)
    assert found["accuracy"][0] > found["order1"][0] + 0.1 > found["majority"][0] + 0.2
    assert found["bits"][0] < found["order1_bits"][0] < found["majority_bits"][0]
    assert {"train/mask", "train/mask_accuracy_1"} <= set().union(*read_log(tmp_path / "run"))
    again = MaskedPredictor.from_pretrained(tmp_path / "run")
    np.testing.assert_array_equal(fill(again, unseen[0], (4, 8)), fill(predictor, unseen[0], (4, 8)))


def test_filling_changes_the_gap_alone_and_is_reproducible():
    predictor, codes = ring(), turning(1, np.random.default_rng(0))[0]
    spoilt = codes.copy()
    spoilt[3:9] = 0
    for temperature in (0.0, 1.0):
        filled = [fill(predictor, c, (3, 9), temperature=temperature, seed=5) for c in (codes, spoilt)]
        np.testing.assert_array_equal(filled[0], filled[1])
        np.testing.assert_array_equal(np.delete(filled[0], range(3, 9), 0), np.delete(codes, range(3, 9), 0))
    drawn = [fill(predictor, codes, (3, 9), temperature=1.0, seed=s) for s in range(4)]
    assert len({d.tobytes() for d in drawn}) > 1
    assert fill(predictor, codes, (0, len(codes))).shape == codes.shape  # nothing to go by


@pytest.mark.parametrize("span", [(5, 5), (-1, 3), (0, 1000), (6, 2)])
def test_a_gap_that_is_none_is_refused(span):
    with pytest.raises(DataError, match="no such tokens"):
        fill(ring(), np.zeros((12, 1), int), span)


def test_codes_that_do_not_fit_are_refused(motion, together):
    with pytest.raises(DataError, match="out of range"):
        code_tensors(ring(), [np.full((4, 1), 16)])
    with pytest.raises(DataError, match="wrong shape"):
        code_tensors(ring(), [np.zeros((4, 2), int)])
    with pytest.raises(DataError, match="no codes"):
        code_tensors(ring(), [])
    codes = PoseTokenizer.from_pretrained(together[0]).encode(motion.clips[0])
    other = load_predictor(together[0])
    other.tokenizer = {"name": "pose_tokenizer", "hash": "f" * 64}
    with pytest.raises(FormatError, match="another tokenizer"):
        fill(other, codes, (0, 1))


# --- together with the tokenizer


def test_training_together_logs_and_keeps_the_predictor(together, motion):
    out, metrics = together
    named = set().union(*read_log(out))
    assert {"train/mask", "train/mask_accuracy_1", "train/mask_accuracy_2", "val/mask_accuracy_1"} <= named
    assert {"accuracy", "order1", "majority"} <= set(metrics["masked"])
    tokenizer, predictor = PoseTokenizer.from_pretrained(out), load_predictor(out)
    assert predictor.tokenizer == tokenizer.name == metrics["tokenizer"]
    for q, book in enumerate(tokenizer.codebooks):
        assert torch.equal(predictor.codebook(q), book)
    codes = tokenizer.encode(max(motion.clips, key=len))
    filled = fill(predictor, codes, (1, 4))
    assert tokenizer.decode(filled).shape == (codes.length, 17, 3)


def test_the_tokenizer_is_the_same_with_and_without_a_predictor_beside_it(together, motion, tmp_path):
    tokenizer, predictor = PoseTokenizer.from_pretrained(together[0]), load_predictor(together[0])
    tokenizer.save_pretrained(tmp_path / "model")
    before = PoseTokenizer.from_pretrained(tmp_path / "model").name
    save_predictor(predictor, tmp_path / "model")
    assert PoseTokenizer.from_pretrained(tmp_path / "model").name == before == tokenizer.name
    predictor.tokenizer = {"name": "pose_tokenizer", "hash": "0" * 64}
    with pytest.raises(FormatError, match="predictor of another tokenizer"):
        save_predictor(predictor, tmp_path / "model")


def test_the_loss_does_not_reach_the_tokenizer(together, motion, tmp_path):
    """Weightless, the loss leaves every number of the tokenizer as it is without it."""
    plain = train(tmp_path / "plain", motion)
    weightless = train(tmp_path / "weightless", motion, MASKED, {"loss": {"masked_pred": {"w_mask": 0}}})
    for part in ("val", "train"):  # but for the order in which the gradient's norm is summed
        same = {k: pytest.approx(v, rel=1e-4) for k, v in plain[part].items()}
        assert {k: v for k, v in weightless[part].items() if "mask" not in k} == same
    again = train(tmp_path / "again", motion, MASKED)
    assert again == together[1]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"loss": {"masked_pred": {"heads": 3}}}, "allowed divisors of width"),
        ({"model": {"multi_scale": {"enabled": True}}}, "allowed false with multi_scale"),
        ({"model": {"linear_path": False, "downsample": {"space": "joints"}, "encoder": {"token_latent_mode": "per_joint"}}},
         "per_joint"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(motion, change, match):
    with pytest.raises(ConfigError, match=match):
        resolve_config(motion, merge(merge(TINY, MASKED), change))


# --- hidden joints


def test_joint_dropout_hides_from_the_encoder_and_not_from_the_loss(motion):
    cfg = resolve_config(motion, merge(TINY, {"train": {"augment": {"joint_dropout": 0.3}}}))
    torch.manual_seed(0)
    tokenizer = build_tokenizer(cfg, motion, motion.clips)
    lossy, whole = (
        PoseBatches(processed(tokenizer, motion.clips), train, tokenizer.skeleton, steps=10)
        for train in (cfg.train, resolve_config(motion, TINY).train)
    )
    for step in (0, 9):  # the last is of the part without augmentation
        a, b = lossy(step), whole(step)
        assert torch.equal(a.x, b.x) and torch.equal(a.conf, b.conf) and torch.equal(b.shown, b.conf)
        assert torch.equal(a.shown, lossy(step).shown)
        gone = (a.shown == 0) & (a.conf > 0)
        assert 0.15 < gone.float().mean() < 0.45
        moved = a.x + gone[..., None] * 5.0  # where a hidden joint is does not matter to the encoder
        with torch.no_grad():
            tokenizer.eval()
            assert torch.equal(
                tokenizer.network.encode(a.x, a.shown), tokenizer.network.encode(moved, a.shown)
            )


def test_spans_of_hidden_joints_have_their_share():
    for longest in (1, 10, 30):
        gone = hide_joints(60, 5000, 0.3, longest, np.random.default_rng(0))
        assert gone.mean() == pytest.approx(0.3, abs=0.02)


def test_hidden_joints_are_measured_where_they_were(motion, monkeypatch):
    cfg = resolve_config(motion, TINY)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(cfg, motion, motion.clips)
    T, J = 40, len(tokenizer.skeleton)
    x = np.broadcast_to(np.arange(T, dtype=np.float32)[:, None, None], (T, J, 3)).copy()
    conf = np.ones((T, J), np.float32)
    conf[5, 3] = 0  # not visible, but with a position

    def codec(_, clip, num_codebooks=None):
        return np.where(clip.conf[..., None] > 0, clip.x, clip.x + [3.0, 0, 4.0]), None

    monkeypatch.setattr("tokenize_lib.pose.evaluate.reconstruct", codec)
    found = measure_hidden(tokenizer, [Processed(x, conf, scale=2.0)], share=0.2, longest=8, seed=0)
    assert found["mpjpe_hidden"] == pytest.approx(5.0 * 2) == found["annotated_hidden"]
    assert found["mpjpe_seen"] == 0.0 and found["annotated_line"] == pytest.approx(0.0, abs=1e-6)
    assert 0 <= found["mpjpe_line"] < 5 and found["mpjpe_line_coded"] == pytest.approx(found["mpjpe_line"])
    assert 0.1 < found["share"] < 0.3
    assert found == measure_hidden(tokenizer, [Processed(x, conf, scale=2.0)], share=0.2, longest=8, seed=0)


def test_evaluation_reports_hidden_joints_when_asked(together, motion, tmp_path):
    plain = evaluate_tokenizer(together[0], motion, tmp_path / "plain", quiet=True)
    asked = evaluate_tokenizer(together[0], motion, tmp_path / "asked", hide=0.2, quiet=True)
    assert "hidden" not in plain and asked["hidden"]["mpjpe_hidden"] > 0
    assert {k: v for k, v in asked.items() if k != "hidden"} == plain
    assert "Hidden joints" in (tmp_path / "asked" / "report.html").read_text(encoding="utf-8")


def test_evaluation_reports_what_a_context_model_makes_of_the_bits(together, motion, tmp_path):
    shutil.copytree(together[0], tmp_path / "run")
    tokenizer = PoseTokenizer.from_pretrained(tmp_path / "run")
    plain = evaluate_tokenizer(tmp_path / "run", motion, tmp_path / "plain", quiet=True)
    context = ContextModel.for_codebooks(
        tokenizer.codebooks, ContextConfig(width=16, hidden=16), tokenizer.name
    )
    context.save_pretrained(context_folder(tmp_path / "run"))
    found = evaluate_tokenizer(tmp_path / "run", motion, tmp_path / "coded", quiet=True)
    clips = processed(tokenizer, motion.split("test") if motion.splits else motion.clips)
    size = sum(len(compress(context, c)) for clip in clips for c in code_sequences_of(tokenizer, clip))
    assert plain["coded_bits_per_frame"] is None
    assert found == plain | {"coded_bits_per_frame": 8 * size / found["frames"]}
    assert "coded_bits_per_frame" in (tmp_path / "coded" / "report.html").read_text(encoding="utf-8")
    stranger = ContextModel.for_codebooks(tokenizer.codebooks, ContextConfig(), {"name": "t", "hash": "0"})
    shutil.rmtree(context_folder(tmp_path / "run"))
    stranger.save_pretrained(context_folder(tmp_path / "run"))
    with pytest.raises(FormatError, match="another tokenizer"):
        evaluate_tokenizer(tmp_path / "run", motion, tmp_path / "other", quiet=True)
