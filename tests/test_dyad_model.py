"""Networks that answer conversations: from dialogues to predictions by the command line, any length in little memory, and bad input."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer.testing

from tokenize_lib.cli.dyad_look import app as look_app
from tokenize_lib.cli.dyad_model import app
from tokenize_lib.cli.dyad_score import app as score_app
from tokenize_lib.core.checkpoint import load_model
from tokenize_lib.core.config import load_config
from tokenize_lib.core.errors import ConfigError
from tokenize_lib.dyad import dim_run, testing
from tokenize_lib.dyad.answer import AnswerConfig, answer
from tokenize_lib.dyad.config import FeatureConfig, MotionVQConfig
from tokenize_lib.dyad.dim import DIM, ROLES, DimConfig
from tokenize_lib.dyad.dim_training import DimRunConfig
from tokenize_lib.dyad.manifest import read_manifest
from tokenize_lib.dyad.motion_vq import MotionVQ
from tokenize_lib.dyad.prepare import prepare_dialogues
from tokenize_lib.dyad.synthetic import synthetic_dialogues

SMALL = ["-o", "model.width=32", "-o", "model.heads=2", "-o", "train.batch_size=2", "-o", "data.window_frames=40", "-o", "features.bands=8", "--quiet"]  # fmt: skip


def tiny_vq(motion_dim=54, seed=0, fps=30.0):
    """A tokenizer that has learnt nothing, whose codes differ from each other."""
    torch.manual_seed(seed)
    vq = MotionVQ(MotionVQConfig(width=64, heads=2, past=4, num_codebooks=2, codebook_size=16, code_dim=8), motion_dim, fps)  # fmt: skip
    for book in vq.books:
        torch.nn.init.normal_(book, std=0.5)
    return vq.eval()


def tiny_dim(motion_dim=54, roles=("both",)):
    """An answering network of random weights."""
    vqs = {role: tiny_vq(motion_dim, seed) for seed, role in enumerate(roles)}
    torch.manual_seed(0)
    return DIM(DimConfig(width=32, heads=2, past=6), vqs, FeatureConfig(), 40).eval()


def run(*arguments, app=app):
    result = typer.testing.CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prepared dialogues of four seconds, and tokenizers."""
    root = tmp_path_factory.mktemp("dyad_model")
    source = synthetic_dialogues(root / "raw", dialogues=5, seconds=4, seed=2, sample_rate=16000)
    prepare_dialogues(source, root / "raw", root / "data", shares=(0.4, 0.2, 0.4), quiet=True)
    for name, vq in {"vq": tiny_vq(), "other": tiny_vq(seed=1), "narrow": tiny_vq(51)}.items():
        vq.save_pretrained(root / name)
    return root


def train(world, out, *more, vq="vq", steps=8):
    flags = ["--data", world / "data", "--vq", world / vq, "--out", out, "-o", f"train.max_steps={steps}"]
    return run("train-s2s", *flags, *SMALL, *more)


@pytest.fixture(scope="module")
def dim(world):
    """A run of the command line."""
    code, said, _ = train(world, world / "dim", "--json", "--seed", 3)
    assert code == 0 and json.loads(said)["steps"] == 8
    return world / "dim"


def test_from_dialogues_to_scores_by_the_command_line(world, dim, tmp_path):
    out = tmp_path / "test"
    code, said, _ = run(
        "test", "--model", dim, "--data", world / "data", "--out", out, "--own-audio-steps", 2
    )
    pairs = read_manifest(world / "data").select("test")
    assert code == 0 and said.count("(120, 54)") == 2 * len(pairs)
    metrics = json.loads((out / "metrics.json").read_text())
    for role in ROLES:
        rows = ["ground truth", "mean", "mirror", "random_segment", "nearest", "ridge", "own_audio",
                "VQ reconstruction", "DIM, mean", "DIM, sample", "DIM, other partner"]  # fmt: skip
        assert list(metrics[role]["methods"]) == rows
        assert metrics[role]["methods"]["ground truth"]["motion54"]["mse"] == 0
        best = metrics[role]["ratios"]["DIM, mean"]["motion51"]["mse_best_baseline"]
        assert best in rows[1:7] and best == min(
            rows[1:7], key=lambda n: metrics[role]["methods"][n]["motion51"]["mse"]
        )
        assert (out / "plots" / f"{role}.png").stat().st_size > 1000
        for pair in pairs:
            assert np.load(out / "predictions" / role / pair.dialog_id / f"{pair.listener_id}.npy").shape == (
                120,
                54,
            )
        flags = ["--pred", out / "predictions" / role, "--data", world / "data", "--json"]
        code, said, _ = run(*flags, app=score_app)
        again = json.loads(said)["motion54"]
        assert code == 0
        for metric, value in metrics[role]["methods"]["DIM, mean"]["motion54"].items():
            assert again[metric] == pytest.approx(value, rel=1e-12), metric


def test_a_test_that_was_interrupted_goes_on(world, dim, tmp_path):
    flags = ["test", "--model", dim, "--data", world / "data", "--out", tmp_path / "t", "--no-baselines", "--json", "--mode", "sample", "--role", "listener"]  # fmt: skip
    code, said, _ = run(*flags)
    first = json.loads(said)
    assert code == 0 and first["frames_per_second"]["listener"] > 0
    assert run(*flags)[0] == 2  # it is finished
    files = sorted((tmp_path / "t/predictions/listener").rglob("*.npy"))
    before = [f.read_bytes() for f in files]
    files[0].unlink()
    (tmp_path / "t/metrics.json").unlink()
    code, said, _ = run(*flags, "--resume")
    assert code == 0 and [f.read_bytes() for f in files] == before
    assert {k: v for k, v in json.loads(said).items() if k != "frames_per_second"} == {
        k: v for k, v in first.items() if k != "frames_per_second"
    }
    (tmp_path / "t/metrics.json").unlink()
    code, said, _ = run(*flags, "--seed", 1, "--resume")  # drawn anew
    assert code == 0 and files[0].read_bytes() != before[0]
    code, said, _ = run(*flags, "--seed", 1, "--force")
    assert code == 0 and json.loads(said)["frames_per_second"]["listener"] > 0


def test_resumed_training_ends_with_the_same_weights(world, dim, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:  # between the fourth step and the end
        from tokenize_lib.dyad.dim_training import DimTraining

        steps, real = [], DimTraining.loss_terms

        def dies(self, batch):
            steps.append(1)
            return killed() if len(steps) == 6 else real(self, batch)

        m.setattr(DimTraining, "loss_terms", dies)
        saving = ["-o", "logging.save_every_steps=2", "-o", "logging.eval_every_steps=2"]
        assert train(world, tmp_path / "a", "--seed", 3, *saving)[0] == 130
    assert not (tmp_path / "a/metrics.json").exists()
    assert train(world, tmp_path / "a", "--seed", 3, "--resume", *saving)[0] == 0
    assert train(world, tmp_path / "b", "--seed", 3, *saving)[0] == 0
    a, b = (load_model(tmp_path / name) for name in "ab")
    assert a.content_hash() == b.content_hash()
    assert (tmp_path / "a/metrics.json").read_text() == (tmp_path / "b/metrics.json").read_text()


def test_a_tokenizer_for_each_role(world, tmp_path):
    code, said, _ = train(world, tmp_path / "run", "--listener-vq", world / "other", "--json", steps=2)
    assert code == 0
    model = load_model(tmp_path / "run")
    for role, name in (("speaker", "vq"), ("listener", "other")):
        assert model.vq(role).content_hash() == MotionVQ.from_pretrained(world / name).content_hash()
    pairs = read_manifest(world / "data").select("test")
    tested = testing.test_model(model, pairs[:1], tmp_path / "t", beside=testing.Beside(swapped=False))
    assert [list(s.values()) for s in tested.shapes.values()] == [[(120, 54)]] * 2
    made = {role: t.predictors["VQ reconstruction"](pairs[0], role) for role, t in tested.roles.items()}
    for role, vq in (("speaker", tiny_vq()), ("listener", tiny_vq(seed=1))):
        own = np.load(getattr(pairs[0], f"{role}_motion"))
        assert np.allclose(made[role], vq.decode(vq.encode(own)), atol=1e-5)


def test_motion_without_a_neck(world, tmp_path):
    assert train(world, tmp_path / "run", vq="narrow", steps=2)[0] == 0
    assert load_config(DimRunConfig, tmp_path / "run/config.yaml").data.motion_dim == 51
    flags = [
        "--model",
        tmp_path / "run",
        "--data",
        world / "data",
        "--out",
        tmp_path / "t",
        "--no-baselines",
    ]
    code, said, _ = run("test", *flags, "--role", "listener", "--best-of", 2)
    assert code == 0 and said.count("(120, 51)") == 4 and "motion54" not in said
    assert "best of 2 (sees the truth)" in said


@pytest.mark.parametrize("motion_dim", [54, 51])
@pytest.mark.parametrize("frames", [1, 29, 149, 150, 151, 5460])
def test_as_many_frames_as_the_conversation_has(frames, motion_dim):
    model, rng = tiny_dim(motion_dim), np.random.default_rng(0)
    heard, seen = (rng.standard_normal((frames, n), np.float32) for n in (40, motion_dim))
    for role in ROLES:
        for mode in ("mean", "sample")[: 1 if frames > 200 else 2]:
            found = answer(model, role, heard, seen, AnswerConfig(mode=mode))
            assert (
                found.shape == (frames, motion_dim) and found.dtype == np.float32 and np.isfinite(found).all()
            )


def test_a_single_frame_can_be_tested(world, dim, tmp_path):
    from dataclasses import replace

    pairs = [
        replace(p, T=n)
        for n, p in zip((1, 29), read_manifest(world / "data").select("test")[::2], strict=True)
    ]
    tested = testing.test_model(load_model(dim), pairs, tmp_path / "t")
    for t in tested.roles.values():
        assert sorted(t.saved.shapes.values()) == [(1, 54), (29, 54)]
        assert t.rows()[0]["mse"] == 0


MEASURE = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_dyad_model import tiny_dim
from tokenize_lib.dyad.answer import answer
frames, folder = int(sys.argv[2]), sys.argv[3]
model = tiny_dim()
heard, seen = (np.load(f"{folder}/{n}.npy", mmap_mode="r")[:frames] for n in ("heard", "seen"))
answer(model, "listener", heard[:512], seen[:512])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = answer(model, "listener", heard, seen)
assert found.shape == (frames, 54)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_half_an_hour_needs_hardly_more_memory_than_three_minutes(tmp_path):
    rng = np.random.default_rng(0)
    for name, width in (("heard", 40), ("seen", 54)):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((54_000, width), np.float32))
    peaks = []
    for frames in (5460, 54_000):
        words = [sys.executable, "-c", MEASURE, os.path.dirname(__file__), str(frames), str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(tuple(map(int, done.stdout.split())))
    assert peaks[1][1] <= 1.5 * peaks[0][1]
    files = 54_000 * (40 + 54 + 54) * 4 / 1024  # KiB: what was read and what was made
    assert peaks[1][1] - peaks[1][0] < 1.5 * files, peaks


def test_what_does_not_fit_is_said_in_one_line(world, dim, tmp_path):
    out = tmp_path / "x"
    code, _, said = run("test", "--model", world / "vq", "--data", world / "data", "--out", out)
    assert code == 2 and "dyad train-s2s" in said and not out.exists()
    code, _, said = run("test", "--model", dim, "--data", tmp_path, "--out", out)
    assert code == 2 and "manifest.json" in said
    code, _, said = train(world, out, "-o", "data.motion_dim=51")
    assert code == 2 and "other motion" in said and not out.exists()
    tiny_vq(fps=25.0).save_pretrained(world / "slow")
    code, _, said = train(world, out, vq="slow")
    assert code == 2 and "25.0" in said and not out.exists()
    with pytest.raises(ConfigError, match="do not fit together"):
        DIM(DimConfig(), {"speaker": tiny_vq(54), "listener": tiny_vq(51)}, FeatureConfig(), 40)
    assert dim_run.resolve_dim_config(tiny_vq(51)).data.motion_dim == 51


def test_a_damaged_conversation_is_named_and_the_rest_tested(world, dim, tmp_path):
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    pair = read_manifest(tmp_path / "data").select("test")[0]
    x = np.load(pair.speaker_motion)
    x[7] = np.nan
    np.save(pair.speaker_motion, x)
    flags = [
        "--model",
        dim,
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "t",
        "--no-baselines",
        "--role",
        "listener",
    ]
    code, said, notes = run("test", *flags)
    assert code == 1 and pair.dialog_id in notes and said.count("(120, 54)") >= 2
    assert run("test", *flags, "--force", "--strict")[0] == 2


@pytest.fixture
def two_rates(world, tmp_path):
    """The same conversations, one of each side of the split said to be at 25 frames a second."""
    import shutil

    shutil.copytree(world / "data", tmp_path / "data")
    manifest = read_manifest(world / "data")
    other = {manifest.splits[side][0] for side in ("train", "test")}
    entries = json.loads((tmp_path / "data/manifest.json").read_text())
    changed = [e | ({"fps": 25.0} if e["dialog_id"] in other else {}) for e in entries]
    (tmp_path / "data/manifest.json").write_text(json.dumps(changed))
    return tmp_path / "data"


def test_conversations_at_another_rate_are_left_out_of_a_test(dim, two_rates, tmp_path):
    flags = ["test", "--model", dim, "--data", two_rates, "--role", "listener", "--own-audio-steps", 2]
    code, said, notes = run(*flags, "--out", tmp_path / "t", "--json")
    assert code == 0 and "test: 2 of 4 pairs are left out, not at 30 fps" in notes
    assert "train: 2 of 4 pairs are left out" in notes
    metrics = json.loads(said)["listener"]["methods"]
    assert metrics["ridge"]["clips"] == 2 and "DIM, other partner" not in metrics
    # and why numbers and a row are not there
    assert "there is only one dialogue" in notes
    assert re.search(r"listener role, .*mean.*: motion54: rpcc is defined in 0 of 2 clips", notes), notes
    splits = json.loads((two_rates / "splits.json").read_text())
    splits["test"], splits["val"] = splits["test"][:1], splits["val"] + splits["test"][1:]
    (two_rates / "splits.json").write_text(json.dumps(splits))
    code, _, notes = run(*flags, "--out", tmp_path / "none")
    assert code == 2 and "found 25" in notes and not (tmp_path / "none").exists()
    splits["test"], splits["train"] = splits["train"][1:], splits["train"][:1]
    (two_rates / "splits.json").write_text(json.dumps(splits))
    code, _, notes = run(*flags, "--out", tmp_path / "none")
    assert code == 2 and "train, fps" in notes and "--no-baselines" in notes
    code, _, notes = run(*flags, "--out", tmp_path / "some", "--no-baselines", "--quiet")
    assert code == 0 and not notes


def test_a_taken_folder_is_seen_before_the_baselines_learn(world, dim, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    monkeypatch.setattr(testing, "fit_baselines", lambda *_, **__: pytest.fail("they learn"))
    for out, words in ((tmp_path / "mine", "not those of a run"), (dim, "holds a finished run")):
        code, _, said = run("test", "--model", dim, "--data", world / "data", "--out", out)
        assert code == 2 and words in said, said
    assert (tmp_path / "mine/letter.txt").read_text() == "dear" and (dim / "best").is_dir()


def test_predictions_of_a_test_are_of_a_role(world, dim, tmp_path):
    flags = ["--model", dim, "--data", world / "data", "--out", tmp_path / "t", "--no-baselines", "--quiet"]
    assert run("test", *flags)[0] == 0
    said = tmp_path / "t/predictions"
    for verb, more in ((score_app, []), (look_app, ["--out", tmp_path / "x.html"])):
        code, _, words = run("--pred", said, "--data", world / "data", *more, app=verb)
        assert code == 2 and f"Name the role, too: {said / 'listener'} or {said / 'speaker'}" in words, words
