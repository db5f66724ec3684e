"""The published protocol on the published recordings: the same clips, frames, scale and zero-bit error as anybody's."""

import os

import numpy as np
import pytest

from tokenize_lib.core.data import load_dataset, local_folder
from tokenize_lib.pose.metrics import Reconstruction
from tokenize_lib.pose.preprocess import fit_dataset_scale, preprocess_clip
from tokenize_lib.pose.train import resolve_config


def real(name):
    "A real data set, or skip."
    if "TOKENIZE_LIB_DATA" not in os.environ or local_folder(name) is None:
        pytest.skip(f"{name} is not here: set TOKENIZE_LIB_DATA to a folder that holds it")
    return load_dataset(name)


@pytest.fixture(scope="module")
def bandai():
    return real("bandai_namco_1")


def test_every_fifth_clip_by_name_is_a_test_clip(bandai):
    test = bandai.split("test")
    assert [c.id for c in test] == sorted(bandai.ids)[4::5]
    assert (len(test), sum(map(len, test))) == (34, 6199)
    assert len(bandai.split("train")) + len(bandai.split("val")) == 140
    assert len(set(bandai.ids)) == 174
    assert {c.fps for c in bandai.clips} == {30.0}


def test_the_scale_is_that_of_all_that_is_not_test(bandai):
    cfg = resolve_config(bandai).data.preprocess
    scale = fit_dataset_scale(bandai.split("train") + bandai.split("val"), cfg, bandai.skeleton)
    assert scale == pytest.approx(18.832, abs=5e-4)


def test_the_mean_pose_scores_what_the_protocol_says(bandai):
    """Zero bits: 11.02 cm, over all test frames and the 20 joints that are not the root."""
    cfg = resolve_config(bandai).data.preprocess
    train, test = bandai.split("train") + bandai.split("val"), bandai.split("test")
    scale = fit_dataset_scale(train, cfg, bandai.skeleton)
    seen = [[preprocess_clip(c, cfg, bandai.skeleton, scale) for c in clips] for clips in (train, test)]
    mean = np.concatenate([s.x for s in seen[0]]).mean(0, dtype=np.float64)
    found = Reconstruction(bandai.skeleton, cfg)
    assert (found.counted.sum(), bandai.skeleton.joints[int(np.flatnonzero(~found.counted)[0])]) == (
        20,
        "Hips",
    )
    errors = []
    for clip, s in zip(test, seen[1], strict=True):
        found.add(clip.id, s.x, np.broadcast_to(mean, s.x.shape), s.conf, s.scale)
        centred = clip.pose[:, found.counted] - clip.pose[:, ~found.counted]
        errors.append(np.linalg.norm(centred - mean[found.counted] * scale, axis=-1))
    by_hand = np.concatenate(errors).mean(dtype=np.float64)
    assert found.compute()["mpjpe"] == pytest.approx(by_hand, rel=1e-5)
    assert found.compute()["mpjpe"] == pytest.approx(11.02, abs=5e-3)


def test_penn_action_is_split_and_scaled_as_published():
    penn = real("penn_action")
    cfg = resolve_config(penn).data.preprocess
    assert [len(penn.split(s)) for s in ("train", "val", "test")] == [1133, 125, 1068]
    for clip in penn.split("test")[::50]:
        shoulders, hips = clip.pose[:, 1:3].mean(1), clip.pose[:, 7:9].mean(1)
        box = np.linalg.norm(np.ptp(clip.pose, axis=1), axis=-1).mean()
        scale = max(np.linalg.norm(shoulders - hips, axis=-1).mean(), 0.25 * box)
        seen = preprocess_clip(clip, cfg, penn.skeleton)
        where = seen.conf > 0
        expected = (clip.pose - hips[:, None]) / scale
        assert seen.scale == pytest.approx(scale, rel=0.02)
        np.testing.assert_allclose(seen.x[where], expected[where], rtol=0.05, atol=0.05)
