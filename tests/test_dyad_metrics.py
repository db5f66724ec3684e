"""Scores of a conversation: properties no example shows, whole folders, the command line, and bad input."""

import json
from functools import partial

import numpy as np
import pytest
import typer.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_lib.cli.dyad_score import app
from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.core.files import write_json
from tokenize_lib.dyad import evaluate
from tokenize_lib.dyad.evaluate import (
    clip_name,
    evaluate_folder,
    evaluate_predictions,
    prediction_path,
    read_prediction,
    true_motion,
)
from tokenize_lib.dyad.manifest import Pair, manifest_entries, read_manifest
from tokenize_lib.dyad.metrics import (
    METRICS,
    frechet_distance,
    paired_frechet,
    rpcc,
    rpcc_time,
    score_clip,
    sid,
)


def motion(rng, frames, smooth=9):
    """Coefficients that move, about as slowly as a face does."""
    x = np.cumsum(rng.normal(size=(frames + smooth, 54)), 0)
    x = (x[smooth:] - x[:-smooth]) * np.r_[0.3 / np.sqrt(1 + np.arange(50)), 0.05, [0.03] * 3] / smooth**0.5
    return (x + 0.2 * np.sin(np.arange(54))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A prepared folder: four conversations of different lengths, the last of one frame, and a prediction of each."""
    folder, rng, pairs = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0), []
    for i, frames in enumerate((150, 90, 29, 1)):
        name, ends = f"V00_S{i:04d}_I0", {}
        for end in ("speaker", "listener"):
            who = f"P{i}{end[0]}"
            files = {k: folder / name / f"{who}_{k}.npy" for k in ("motion", "state", "audio", "shape")}
            files["motion"].parent.mkdir(exist_ok=True)
            np.save(files["motion"], motion(rng, frames))
            np.save(files["state"], np.arange(frames) // 20 % 4)
            ends |= {f"{end}_{k}": path for k, path in files.items()} | {f"{end}_id": who}
        pair = Pair(dialog_id=name, fps=30.0, T=frames, **ends)
        pairs += [pair, pair.reversed]
    write_json(folder / "manifest.json", manifest_entries(pairs, folder))
    names = [p.dialog_id for p in pairs[::2]]
    write_json(folder / "splits.json", {"train": names[1:], "val": [], "test": names[:1]})
    for pair in pairs:
        path = prediction_path(folder / "pred", pair)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, true_motion(pair) + 0.05 * rng.normal(size=(pair.T, 54)).astype(np.float32))
    return folder


@pytest.fixture
def pred(corpus, tmp_path):
    """A copy of the predictions, to spoil."""
    for path in (corpus / "pred").glob("*/*.npy"):
        (tmp_path / "pred" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pred" / path.parent.name / path.name).write_bytes(path.read_bytes())
    return tmp_path / "pred"


def call(*arguments):
    return typer.testing.CliRunner(env={"FORCE_COLOR": None}).invoke(app, [str(x) for x in arguments])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(2, 60), st.integers(1, 20))
def test_frechet_distance_is_a_squared_distance(seed, n, m, d):
    """Symmetric, zero for oneself, blind to rotation, shift and order, and its root keeps the triangle."""
    rng = np.random.default_rng(seed)
    x, y, z = (rng.normal(size=(k, d)) @ rng.normal(size=(d, d)) for k in (n, m, n))
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    distance = frechet_distance(x, y)
    assert distance == pytest.approx(frechet_distance(y, x), rel=1e-9)
    assert distance == pytest.approx(frechet_distance(x[::-1] @ q + 3, y @ q + 3), rel=1e-6, abs=1e-8)
    assert frechet_distance(x, x) == 0
    assert distance**0.5 <= frechet_distance(x, z) ** 0.5 + frechet_distance(z, y) ** 0.5 + 1e-9
    assert paired_frechet(x, z, z) >= frechet_distance(x, z) - 1e-9  # a part is never farther than the whole


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 90), st.integers(1, 40))
def test_ranges(seed, frames, k):
    rng = np.random.default_rng(seed)
    gt, pred, other = (motion(rng, frames) for _ in range(3))
    assert 0 <= sid(gt, pred, k, seed) <= np.log2(k) + 1e-12
    assert sid(gt, gt, k, seed) > 0 or k == 1
    assert 0 <= rpcc(gt, pred, other) <= 2 and 0 <= rpcc_time(gt, pred, other) <= 2
    scaled = rpcc_time(3 * gt + 1, 0.5 * pred - 2, other * 7)
    assert scaled == pytest.approx(rpcc_time(gt, pred, other), abs=1e-4)


def test_motion_that_hardly_moves_by_rounding_is_still():
    """The mean of float32 frames, taken and stored again, differs in the last digit; that is no movement."""
    rng = np.random.default_rng(0)
    gt, other = motion(rng, 200), motion(rng, 200)
    still = np.tile(gt.mean(0), (200, 1)).astype(np.float32)
    still[::2] = np.nextafter(still[::2], np.float32(9))
    scores = score_clip(gt, still, other)["whole"]
    assert all(np.isnan(row["rpcc"]) and np.isnan(row["rpcc_time"]) for row in scores.values.values())
    assert "exp: no rpcc: pred does not move" in scores.notes


@pytest.mark.parametrize("frames", [1, 2, 9, 29, 39, 40])
def test_clips_of_any_length_have_every_metric_or_a_word(frames):
    rng = np.random.default_rng(frames)
    gt, pred, other = (motion(rng, frames) for _ in range(3))
    scores = score_clip(gt, pred, other, np.arange(frames) % 4)
    for name, s in scores.items():
        for group, row in s.values.items():
            assert tuple(row) == METRICS and np.isfinite(row["mse"])
            missing = {m for m, v in row.items() if not np.isfinite(v)}
            if name == "whole":
                told = {"sid", "sid_gt"} if any(n.startswith(f"{group}: no sid") for n in s.notes) else set()
                told |= (
                    {"rpcc", "rpcc_time"}
                    if any(n.startswith(f"{group}: no rpcc") for n in s.notes)
                    else set()
                )
                told |= (
                    {"fd", "pfd", "diversity", "diversity_gt"}
                    if any("one frame" in n for n in s.notes)
                    else set()
                )
                assert missing == told


def test_two_evaluations_are_the_same_to_the_last_byte_also_in_processes(corpus, tmp_path):
    pairs = read_manifest(corpus).select()
    for mode in ("clip", "corpus"):
        a, b = (evaluate_folder(corpus / "pred", pairs, mode=mode, jobs=jobs) for jobs in (1, 2))
        assert json.dumps(a.metrics()) == json.dumps(b.metrics())
    assert a.lengths == (150, 150, 90, 90, 29, 29, 1, 1) and not a.failures


def test_a_sample_stands_for_a_corpus(corpus, monkeypatch):
    """What adds up does not depend on it, the poses are those of the truth alone, and it is seeded."""
    pairs = read_manifest(corpus).select()
    full = evaluate_predictions(true_motion, pairs, mode="corpus")
    monkeypatch.setattr(evaluate, "_SAMPLE", 200)
    noisy = partial(read_prediction, folder=corpus / "pred")
    some, same, other = (
        evaluate_predictions(f, pairs, mode="corpus", seed=s)
        for f, s in ((noisy, 0), (noisy, 0), (true_motion, 0))
    )
    whole = evaluate_predictions(noisy, pairs, mode="corpus", seed=1).summary["whole"].values["exp"]
    row = some.summary["whole"].values["exp"]
    assert row == same.summary["whole"].values["exp"]
    assert row["sid_gt"] == other.summary["whole"].values["exp"]["sid_gt"] != whole["sid_gt"]
    assert all(row[m] == whole[m] for m in ("fd", "pfd", "mse", "rpcc", "rpcc_time", "variance"))
    ratio = (
        other.summary["whole"].values["exp"]["diversity"] / full.summary["whole"].values["exp"]["diversity"]
    )
    assert ratio == pytest.approx(1, abs=0.05)


def test_what_is_wrong_with_the_truth_names_its_file(corpus, tmp_path):
    first, second, *_ = read_manifest(corpus).select()
    short = tmp_path / "short.npy"
    np.save(short, true_motion(first)[:100])
    spoilt = Pair(**{**vars(first), "listener_motion": short})
    e = evaluate_predictions(lambda pair: np.zeros((150, 54)), [spoilt, second])
    assert e.lengths == (150,) and e.failures[0][0] == clip_name(first)
    assert "short.npy" in e.failures[0][1] and "100 frames" in e.failures[0][1]
    with pytest.raises(FormatError, match=r"short\.npy"):
        evaluate_predictions(true_motion, [spoilt], strict=True)
    states = tmp_path / "state.npy"
    np.save(states, np.zeros(149))
    with pytest.raises(DataError, match="not states of these frames"):
        evaluate_predictions(true_motion, [Pair(**{**vars(first), "listener_state": states})])


def test_pickled_predictions_are_not_opened(corpus, pred):
    pair = read_manifest(corpus).select("test")[0]
    np.save(prediction_path(pred, pair), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    e = evaluate_folder(pred, read_manifest(corpus).select("test"))
    assert len(e.lengths) == 1 and "not a whole .npy file" in e.failures[0][1]


def test_an_archive_under_the_name_of_an_array_is_listed(corpus, pred):
    bad, _ = read_manifest(corpus).select("test")
    with open(prediction_path(pred, bad), "wb") as f:
        np.savez(f, motion=true_motion(bad))
    done = call("--pred", pred, "--data", corpus, "--json")
    assert done.exit_code == 1 and "found an .npz archive" in done.stderr
    found = json.loads(done.stdout)
    assert (found["clips"], found["not_scored"]) == (1, 1) and bad.listener_id in found["failures"][0]


def test_command_line(corpus, tmp_path):
    done = call("--pred", corpus / "pred", "--data", corpus, "--json", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    assert metrics == json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["clips"], metrics["frames"], metrics["split"], metrics["motion_dim"]) == (
        2,
        300,
        "test",
        54,
    )
    assert metrics["exp"]["mse"] == pytest.approx(0.0025, rel=0.1)
    again = call("--pred", corpus / "pred", "--data", corpus, "--out", tmp_path / "run")
    assert again.exit_code == 2 and "finished run" in again.stderr and not again.stdout
    table = call(
        "--pred", corpus / "pred", "--data", corpus / "manifest.json", "--split", "all", "--mode", "corpus"
    )
    assert (
        table.exit_code == 0 and "8 clips of 1 to 150 frames" in table.stdout and "crosstalk" in table.stdout
    )


def test_command_line_tells_what_is_not_defined(corpus):
    done = call("--pred", corpus / "pred", "--data", corpus, "--split", "all", "--json")
    assert done.exit_code == 0 and "exp: sid is defined in 4 of 8 clips" in done.stderr
    fewer = call(
        "--pred", corpus / "pred", "--data", corpus, "--split", "all", "--json", "--sid-clusters", "exp=20"
    )
    assert "exp: sid is defined in 6 of 8 clips" in fewer.stderr
    assert json.loads(fewer.stdout)["sid_clusters"] == {
        "exp": 20,
        "jaw": 10,
        "neck": 10,
        "motion51": 40,
        "motion54": 40,
    }
    narrow = json.loads(
        call("--pred", corpus / "pred", "--data", corpus, "--motion-dim", "51", "--json").stdout
    )
    assert "neck" not in narrow and "motion54" not in narrow and narrow["motion51"]["fd"] > 0


def test_command_line_lists_bad_files_and_refuses_nonsense(corpus, pred):
    manifest = read_manifest(corpus)
    gone, *_ = manifest.select("test")
    prediction_path(pred, gone).unlink()
    some = call("--pred", pred, "--data", corpus, "--json")
    assert some.exit_code == 1 and f"{gone.listener_id}.npy" in some.stderr
    assert json.loads(some.stdout)["not_scored"] == 1
    for arguments, words in {
        ("--strict",): "cannot be read",
        ("--sid-clusters", "exp"): "GROUP=NUMBER",
        ("--sid-clusters", "face=3"): "no such group",
        ("--motion-dim", "56"): "54 or 51",
        ("--split", "dev"): "no such split",
    }.items():
        done = call("--pred", pred, "--data", corpus, *arguments)
        assert done.exit_code == 2 and words in done.stderr and not done.stdout, (arguments, done.output)
    nothing = call("--pred", pred / "no", "--data", corpus)
    assert nothing.exit_code == 2 and "no such folder" in nothing.stderr
    prediction_path(pred, gone.reversed).unlink()
    none = call("--pred", pred, "--data", corpus)
    assert none.exit_code == 2 and "no clip could be scored" in none.stderr


def test_predictions_without_a_neck_are_scored_without(corpus, pred):
    for pair in read_manifest(corpus).select("test"):
        np.save(prediction_path(pred, pair), true_motion(pair)[:, :51])
    done = call("--pred", pred, "--data", corpus, "--json")
    metrics = json.loads(done.stdout)
    assert done.exit_code == 0 and metrics["motion_dim"] == 51 and metrics["motion51"]["fd"] == 0
    wide = call("--pred", pred, "--data", corpus, "--motion-dim", "54")
    assert wide.exit_code == 2 and "(150, 51)" in wide.stderr
