"Motion as it comes from trackers, not as one would like it: preprocessing and `prepare` under faults."

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tokenize_lib.core.errors import ConfigError, DataError, TokenizeError
from tokenize_lib.core.files import read_json
from tokenize_lib.pose import prepare as prepare_module
from tokenize_lib.pose.clips import Clip, read_clip, write_clip
from tokenize_lib.pose.config import PoseConfig, PreprocessConfig
from tokenize_lib.pose.prepare import prepare
from tokenize_lib.pose.preprocess import fill_missing, fit_dataset_scale, invert, preprocess_clip, smooth
from tokenize_lib.pose.skeleton import load_skeleton, skeleton_from_parents
from tokenize_lib.pose.synthetic import synthetic_motion

BODY = load_skeleton("synthetic17")
MODES = ("bone_length_mean", "shoulder_width", "torso")


def walk(T=80, dims=3, seed=0, **options):
    return synthetic_motion(1, seed, dims=dims, frames=(T, T), **{"dropout": 0.0, **options}).clips[0]


# --- properties over random masks


@st.composite
def holed(draw):
    "A pose with arbitrary coordinates lost, and the mask of those observed."
    T, J, D = draw(st.integers(1, 14)), draw(st.integers(1, 4)), draw(st.sampled_from((2, 3)))
    number = st.floats(-1e4, 1e4, width=32).filter(lambda v: v != 0)
    pose = draw(npst.arrays(np.float32, (T, J, D), elements=number))
    lost = draw(npst.arrays(bool, (T, J, D)))
    pose[lost] = draw(st.sampled_from((np.nan, np.inf, -np.inf)))
    return pose, ~lost


@settings(deadline=None, max_examples=200)
@given(holed(), st.integers(0, 6))
def test_missing_value_step_never_alters_an_observation(case, max_gap):
    pose, seen = case
    before = pose.copy()
    filled, conf, counts = fill_missing(pose, None, max_gap)
    np.testing.assert_array_equal(filled[seen], pose[seen])
    np.testing.assert_array_equal(pose, before)
    assert not np.isinf(filled).any()
    np.testing.assert_array_equal(conf == 0, np.isnan(filled).any(axis=-1))
    assert counts.nan_values == (~seen).sum() == counts.filled_values + counts.unfilled_values
    assert counts.unfilled_values == np.isnan(filled).sum()
    # a bridged value lies between the two observations it connects
    for series, kept in zip(filled.reshape(len(pose), -1).T, seen.reshape(len(pose), -1).T, strict=True):
        for t in np.flatnonzero(~kept & np.isfinite(series)):
            a, b = np.flatnonzero(kept[:t])[-1], t + np.flatnonzero(kept[t:])[0]
            assert b - a - 1 <= max_gap
            assert min(series[a], series[b]) - 1e-6 <= series[t] <= max(series[a], series[b]) + 1e-6


@settings(deadline=None, max_examples=100)
@given(
    npst.arrays(bool, (9, 17)),
    st.sampled_from(MODES),
    st.sampled_from(("frame", "clip", "dataset")),
    st.booleans(),
    st.sampled_from(("savgol", "lowpass")),
)
def test_any_pattern_of_holes_gives_finite_input_and_the_way_back(lost, mode, scope, smoothing, method):
    clip = walk(9)
    clip.pose[lost] = np.nan
    cfg = PreprocessConfig(scale_mode=mode, scale_scope=scope, smoothing=smoothing, smooth_method=method)
    p = preprocess_clip(clip, cfg, BODY, 0.25)
    assert p.x.shape == (9, 17, 3) and p.x.dtype == p.conf.dtype == np.float32
    assert np.isfinite(p.x).all() and (np.asarray(p.scale) > 0).all()
    assert p.conf.min() >= 0 and p.conf.max() <= 1
    assert (p.x[p.conf == 0] == 0).all()
    if not smoothing:
        np.testing.assert_allclose(invert(p.x, p)[~lost], clip.pose[~lost], atol=2e-6)


# --- single faults


@pytest.mark.parametrize("unit", (0.01, 1.0, 100.0, 1000.0))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scope", ("frame", "clip", "dataset"))
def test_the_unit_of_the_file_does_not_matter(unit, mode, scope):
    clip, cfg = walk(), PreprocessConfig(scale_mode=mode, scale_scope=scope)
    other = replace(clip, pose=clip.pose * np.float32(unit))
    x, y = (preprocess_clip(c, cfg, BODY, fit_dataset_scale([c], cfg, BODY)) for c in (clip, other))
    np.testing.assert_allclose(x.x, y.x, atol=1e-4)
    np.testing.assert_allclose(invert(y.x, y), other.pose, rtol=1e-5, atol=1e-5 * unit)


@pytest.mark.parametrize("scope", ("frame", "clip"))
def test_foreshortened_shoulders_do_not_explode(scope):
    clip = walk(dims=2)
    left, right = (BODY.index(n) for n in BODY.shoulders)
    clip.pose[:, left] = clip.pose[:, right]
    p = preprocess_clip(clip, PreprocessConfig(scale_mode="shoulder_width", scale_scope=scope), BODY)
    assert np.abs(p.x).max() < 20
    assert p.counts.scale_floor_frames == len(clip.pose)
    np.testing.assert_allclose(invert(p.x, p), clip.pose, atol=1e-3)


def test_a_root_lost_for_long_is_bridged_and_counted():
    clip, cfg = walk(100), PreprocessConfig()
    whole = preprocess_clip(clip, cfg, BODY, 0.25)
    clip.pose[20:80, 0] = np.nan
    p = preprocess_clip(clip, cfg, BODY, 0.25)
    assert p.counts.root_filled_frames == 60
    assert np.isfinite(p.root).all()
    np.testing.assert_array_equal(p.x[:20], whole.x[:20])
    assert np.linalg.norm(p.root - whole.root, axis=-1).max() < 0.5
    clip.pose[:, 0] = np.nan
    p = preprocess_clip(clip, cfg, BODY, 0.25)
    assert p.counts.root_filled_frames == 100 and np.abs(p.x).max() < 20


def test_a_hole_touches_its_joint_and_through_smoothing_its_neighbours_in_time():
    clip = walk(60)
    holed = replace(clip, pose=clip.pose.copy())
    holed.pose[30:40, 7] = np.nan
    for cfg, reach in ((PreprocessConfig(), 0), (PreprocessConfig(smoothing=True), 9)):
        a, b = (preprocess_clip(c, cfg, BODY, 0.25) for c in (clip, holed))
        t, j = np.nonzero((np.abs(a.x - b.x) > 1e-6).any(axis=-1))
        assert set(j) == {7}
        assert t.min() >= 30 - reach and t.max() < 40 + reach


@pytest.mark.parametrize("T", (1, 2, 3))
@pytest.mark.parametrize("method", ("savgol", "lowpass"))
def test_clips_shorter_than_the_smoothing_window(T, method):
    clip = walk(T)
    p = preprocess_clip(clip, PreprocessConfig(smoothing=True, smooth_method=method), BODY, 0.25)
    assert p.x.shape == (T, 17, 3) and np.isfinite(p.x).all()
    np.testing.assert_allclose(smooth(clip.pose[:1].astype(float), method), clip.pose[:1])


def test_confidence_zero_at_the_origin_is_missing_and_elsewhere_is_not():
    clip = walk(dims=2)
    clip.pose[10:40, 7], clip.conf[10:40, 7] = 0, 0
    clip.conf[50:60, 8] = 0
    p = preprocess_clip(clip, PreprocessConfig(), BODY)
    assert p.counts.nan_values == 60 and p.counts.unfilled_values == 60
    assert (p.conf[10:40, 7] == 0).all() and (p.conf[50:60, 8] == 0).all()
    assert (p.x[10:40, 7] == 0).all() and (p.x[50:60, 8] != 0).any()
    clip.pose[:], clip.conf[:] = 0, 0
    p = preprocess_clip(clip, PreprocessConfig(), BODY)
    assert not p.x.any() and not p.conf.any()


def test_other_animals_have_no_shoulders():
    mouse = skeleton_from_parents("mouse", ["nose", "neck", "tail_base", "tail_tip"], [1, -1, 1, 2], up=None)
    rng = np.random.default_rng(0)
    clip = Clip((100 * rng.random((50, 4, 2))).astype(np.float32), skeleton=mouse)
    p = preprocess_clip(clip, PreprocessConfig(), mouse)
    np.testing.assert_allclose(invert(p.x, p), clip.pose, atol=1e-4)
    for mode in ("shoulder_width", "torso"):
        with pytest.raises(ConfigError, match="bone_length_mean"):
            preprocess_clip(clip, PreprocessConfig(scale_mode=mode), mouse)


def test_layouts_are_mapped_by_name_after_normalisation():
    clip, order = walk(), np.random.default_rng(1).permutation(17)
    names = [BODY.joints[i] for i in order]
    parents = [-1 if BODY.parents()[i] < 0 else names.index(BODY.joints[BODY.parents()[i]]) for i in order]
    other = replace(clip, pose=clip.pose[:, order], skeleton=skeleton_from_parents("mine", names, parents))
    cfg = PreprocessConfig(root_joint="pelvis")
    np.testing.assert_allclose(
        preprocess_clip(other, cfg, BODY, 0.25).x, preprocess_clip(clip, cfg, BODY, 0.25).x, atol=1e-6
    )
    with pytest.raises(DataError, match="17 joints"):
        preprocess_clip(replace(clip, pose=clip.pose[:, :5]), cfg, BODY, 0.25)
    with pytest.raises(ConfigError, match="pelvis"):
        preprocess_clip(clip, PreprocessConfig(root_joint="hips"), BODY, 0.25)


# --- prepare


@pytest.fixture(scope="module")
def hundred():
    return synthetic_motion(100, frames=(5, 12), subjects=10).clips


def folder(path, clips):
    for c in clips:
        write_clip(path / f"{c.id}.npz", c)
    return path


def listing(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_one_bad_file_among_a_hundred(hundred, tmp_path):
    raw = folder(tmp_path / "raw", hundred)
    bad = sorted(raw.glob("*.npz"))[17]
    bad.write_bytes(bad.read_bytes()[:-40])
    report = prepare(raw, tmp_path / "out")
    assert report.n_clips == 99 and report.stats["dims"] == 3
    assert [f for f, _ in report.failures] == [bad.name] and bad.name in report.failures[0][1]
    splits = read_json(tmp_path / "out" / "splits.json")
    assert sorted(sum(splits.values(), [])) == sorted(
        p.stem for p in (tmp_path / "out" / "clips").glob("*.npz")
    )
    assert read_json(tmp_path / "out" / "stats.json")["failures"][0]["file"] == bad.name
    with pytest.raises(TokenizeError, match=bad.name):
        prepare(raw, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict" / "prepared.json").exists()


def test_short_clips_are_kept_and_unusable_ones_listed(tmp_path):
    clips = [replace(walk(T), id=f"t{T}") for T in (1, 2, 3)]
    empty, never = replace(walk(20), id="nothing"), replace(walk(20), id="headless")
    empty.pose[:] = np.nan
    never.pose[:, BODY.index("head")] = np.nan
    none = replace(walk(5), id="no_frames")
    none.pose = none.pose[:0]
    raw = folder(tmp_path / "raw", [*clips, empty, never, none])
    report = prepare(raw, tmp_path / "out")
    assert report.n_clips == 4
    problems = dict(report.failures)
    assert "all NaN" in problems["nothing.npz"] and "T = 0" in problems["no_frames.npz"]
    assert report.stats["never_seen"] == {"clips": 1, "joints": {"head": 1}}
    assert [len(read_clip(tmp_path / "out" / "clips" / f"t{T}.npz")) for T in (1, 2, 3)] == [1, 2, 3]


def test_running_again_does_only_what_is_missing(hundred, tmp_path):
    raw, out = folder(tmp_path / "raw", hundred[:10]), tmp_path / "out"
    assert prepare(raw, out).imported == 10
    before = listing(out)
    assert prepare(raw, out).imported == 0
    assert listing(out) == before
    (out / "clips" / f"{hundred[0].id}.npz").unlink()
    write_clip(raw / f"{hundred[10].id}.npz", hundred[10])
    (raw / f"{hundred[5].id}.npz").unlink()
    report = prepare(raw, out)
    assert (report.imported, report.n_clips) == (2, 10)
    assert not (out / "clips" / f"{hundred[5].id}.npz").exists()
    assert prepare(raw, out, force=True).imported == 10


def test_an_interrupted_run_is_not_taken_for_a_finished_one(hundred, tmp_path, monkeypatch):
    raw, out = folder(tmp_path / "raw", hundred[:10]), tmp_path / "out"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(prepare_module, "measure_clip", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, out)
    assert not (out / "prepared.json").exists()
    assert prepare(raw, out).imported == 0
    assert (out / "prepared.json").exists()


def test_nothing_usable_writes_nothing(hundred, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no motion files|holds no motion"):
        prepare(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(TokenizeError):
        prepare(tmp_path / "not there", tmp_path / "out")
    raw = folder(tmp_path / "raw", [walk(5, dims=2)])
    with pytest.raises(DataError, match="3D"):
        prepare(raw, tmp_path / "out", PoseConfig(data={"dims": 3}))
    with pytest.raises(ConfigError, match="root_joint"):
        prepare(raw, tmp_path / "out", PoseConfig(data={"preprocess": {"root_joint": "nose_tip"}}))
    assert not (tmp_path / "out").exists()


def test_no_write_permission(hundred, tmp_path):
    raw = folder(tmp_path / "raw", hundred[:3])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        prepare(raw, tmp_path / "file" / "out")
    if os.geteuid() == 0:
        pytest.skip("the rest needs a user who is not root")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot be written"):
        prepare(raw, closed / "out")
    assert not list(closed.iterdir())


def test_a_folder_is_not_filled_with_two_sets(hundred, tmp_path):
    prepare(folder(tmp_path / "a", hundred[:3]), tmp_path / "out")
    other = folder(tmp_path / "b", [walk(5, dims=2)])
    with pytest.raises(ConfigError, match="another set"):
        prepare(other, tmp_path / "out")
    assert prepare(other, tmp_path / "out", force=True).n_clips == 1
    assert len(list((tmp_path / "out" / "clips").iterdir())) == 1


def test_equal_names_in_different_folders(hundred, tmp_path):
    for sub, clip in zip(("a", "b"), hundred, strict=False):
        write_clip(tmp_path / "raw" / sub / "take1.npz", replace(clip, id="take1"))
    assert prepare(tmp_path / "raw", tmp_path / "out").n_clips == 2
    assert {read_clip(p).id for p in (tmp_path / "out" / "clips").iterdir()} == {"a_take1", "b_take1"}


def test_processes_do_not_change_the_result(hundred, tmp_path):
    raw = folder(tmp_path / "raw", hundred[:8])
    for jobs in (1, 2):
        prepare(raw, tmp_path / f"out{jobs}", jobs=jobs)
    names = ("stats.json", "splits.json", "prepared.json")
    one, two = ([(tmp_path / f"out{j}" / n).read_text() for n in names] for j in (1, 2))
    assert one == two


def test_the_majority_decides_what_a_folder_holds(hundred, tmp_path):
    odd = replace(walk(9, dims=2), id="aaa", skeleton=None)
    report = prepare(folder(tmp_path / "raw", [odd, *hundred[:9]]), tmp_path / "out")
    assert report.n_clips == 9 and report.stats["dims"] == 3
    assert "3D" in dict(report.failures)["aaa.npz"]


def test_a_set_in_memory_keeps_its_published_split(tmp_path):
    motion = synthetic_motion(36, frames=(5, 12), subjects=6)
    assert prepare(motion, tmp_path / "out").stats["groups_apart"]
    assert read_json(tmp_path / "out" / "splits.json") == motion.splits
    motion.splits = {"train": motion.splits["train"], "test": motion.splits["val"] + motion.splits["test"]}
    prepare(motion, tmp_path / "no_val")
    splits = read_json(tmp_path / "no_val" / "splits.json")
    assert splits["test"] == motion.splits["test"] and splits["val"]
    assert sorted(splits["train"] + splits["val"]) == sorted(motion.splits["train"])


def test_a_bare_array_gets_the_usual_skeleton_and_says_so(tmp_path):
    np.savez((tmp_path / "raw.npz"), pose=walk(12, dims=2).pose)
    report = prepare(tmp_path / "raw.npz", tmp_path / "out")
    assert "coco17" in report.remarks[0]
    np.savez((tmp_path / "odd.npz"), pose=np.ones((4, 5, 2), np.float32))
    with pytest.raises(DataError, match="skeleton"):
        prepare(tmp_path / "odd.npz", tmp_path / "odd")


# --- the published protocol, on real data

DATA = Path(os.environ.get("TOKENIZE_LIB_DATA") or "unset") / "pose"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="$TOKENIZE_LIB_DATA is not set")


@needs_data
def test_bandai_scale_is_the_protocols():
    from tokenize_lib.pose.datasets import load_bandai_namco_1

    motion = load_bandai_namco_1(DATA / "bandai_namco_1")
    assert len(motion.skeleton.bones) == 20
    clips = motion.split("train") + motion.split("val")
    scale = fit_dataset_scale(clips, PreprocessConfig(), motion.skeleton)
    assert len(clips) == 140 and scale == pytest.approx(18.832, abs=1e-3)


@needs_data
def test_penn_scale_is_the_protocols():
    from tokenize_lib.pose.datasets import load_penn_action

    motion = load_penn_action(DATA / "penn_action")
    cfg = PreprocessConfig(scale_mode="torso", scale_scope="clip")
    off = {}
    for clip in motion.clips:
        pos = clip.pose.astype(np.float64)
        hips = pos[:, 7:9].mean(axis=1)
        torso = np.linalg.norm(pos[:, 1:3].mean(axis=1) - hips, axis=-1).mean()
        scale = max(torso, 0.25 * np.linalg.norm(np.ptp(pos, axis=1), axis=-1).mean())
        p = preprocess_clip(clip, cfg, motion.skeleton)
        if abs(p.scale - scale) > 1e-5 * scale:
            off[clip.id] = clip
        else:
            np.testing.assert_allclose(p.x, (pos - hips[:, None]) / scale, rtol=1e-5, atol=1e-5)
    # two clips have one frame in which nobody was annotated: all joints at the origin with visibility 0.
    # The protocol measures that frame as a body of size 0; here it is missing
    assert len(off) == 2
    assert all((c.pose == 0).all(axis=(1, 2)).sum() == 1 for c in off.values())
