"""Reading motion: everything that can be wrong with a file, a folder, a data set, and what must still work."""

import http.server
import importlib
import os
import shutil
import threading
import warnings

import numpy as np
import pytest

from tokenize_lib.core.data import dataset_info, fetch, list_datasets, load_dataset, local_folder
from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.core.files import write_json
from tokenize_lib.pose.bvh import read_bvh
from tokenize_lib.pose.clips import Clip, check_clip, load_motion, read_clip, write_clip
from tokenize_lib.pose.datasets import load_bandai_namco_1
from tokenize_lib.pose.skeleton import list_skeletons, load_skeleton

COCO = load_skeleton("coco17")


def pose(T=6, J=17, D=2, seed=0):
    return np.random.default_rng(seed).random((T, J, D), dtype=np.float32)


def conf(T=6, J=17, value=1.0):
    return np.full((T, J, 1), value, np.float32)


def real(name):
    "The folder of a real data set, or skip."
    if "TOKENIZE_LIB_DATA" not in os.environ or local_folder(name) is None:
        pytest.skip(f"{name} is not here: set TOKENIZE_LIB_DATA to a folder that holds it")
    return local_folder(name)


# --- one file -------------------------------------------------------------------------------------------------------

BAD_ARRAYS = {
    "missing pose": (dict(keypoints=pose()), "pose: missing; found only keypoints"),
    "rank 2": (dict(pose=np.zeros((6, 34))), "wrong rank"),
    "rank 4": (dict(pose=np.zeros((2, 6, 17, 2))), "Several people"),
    "D = 1": (dict(pose=np.zeros((6, 17, 1))), "wrong D"),
    "D = 4": (dict(pose=np.zeros((6, 17, 4))), "wrong D"),
    "text": (dict(pose=pose().astype(str)), "not real numbers"),
    "truth values": (dict(pose=np.ones((6, 17, 2), bool)), "not real numbers"),
    "complex": (dict(pose=pose().astype(np.complex64)), "not real numbers"),
    "objects": (dict(pose=np.array([[["a"]]], dtype=object)), "Object arrays"),
    "J": (dict(pose=pose(J=18)), "J does not match the skeleton; found 18 joints; expected 17 joints"),
    "all NaN": (dict(pose=np.full((6, 17, 2), np.nan)), "all NaN"),
    "all infinite": (dict(pose=np.full((6, 17, 2), np.inf)), "all NaN"),
    "T = 0": (dict(pose=np.zeros((0, 17, 2))), "T = 0"),
    "3D": (dict(pose=pose(D=3)), "3D data where 2D is asked for"),
    "conf without its last axis": (dict(pose=pose(), conf=np.ones((6, 17))), r"conf\[..., None\]"),
    "conf of other frames": (dict(pose=pose(), conf=conf(5)), "conf: wrong shape"),
    "conf in percent": (dict(pose=pose(), conf=conf(value=87)), "conf: outside its range; found 87"),
    "conf negative": (dict(pose=pose(), conf=conf(value=-0.1)), "conf: outside its range"),
    "conf NaN": (dict(pose=pose(), conf=conf(value=np.nan)), "conf: outside its range"),
    "conf as text": (dict(pose=pose(), conf=conf().astype(str)), "conf: not real numbers"),
    "fps of zero": (dict(pose=pose(), fps=0), "fps: not a frame rate"),
    "fps as text": (dict(pose=pose(), fps="25"), "fps: not a frame rate"),
    "one fps per frame": (dict(pose=pose(), fps=np.full(6, 25)), "fps: not a single value"),
    "one label per frame": (dict(pose=pose(), label=np.array(["a", "b"])), "label: not a single value"),
    "times of other frames": (dict(pose=pose(), timestamps=np.arange(7)), "timestamps: not one time a frame"),
    "meta that is not JSON": (dict(pose=pose(), meta="{"), "meta: not what it should be"),
    "a skeleton that is none": (dict(pose=pose(), skeleton="[]"), "skeleton: not what it should be"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_by_name(tmp_path, case):
    arrays, message = BAD_ARRAYS[case]
    np.savez(tmp_path / "walk.npz", **arrays)
    with pytest.raises((DataError, FormatError), match=message) as e:
        read_clip(tmp_path / "walk.npz", COCO, dims=2)
    assert "walk.npz" in str(e.value)


def test_what_is_no_archive_is_refused(tmp_path):
    write_clip(tmp_path / "good.npz", Clip(pose()))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "text.npz").write_text("pose")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "array.npy", pose())
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("text.npz", "empty.npz", "array.npz", "missing.npz"):
        with pytest.raises(FormatError, match=name):
            read_clip(tmp_path / name)
    for cut in range(1, len(whole), max(1, len(whole) // 23)):  # a transfer may break anywhere
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(FormatError, match="cut.npz"):
            read_clip(tmp_path / "cut.npz")


def test_damage_inside_an_archive_is_noticed(tmp_path):
    write_clip(tmp_path / "a.npz", Clip(pose(T=50)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(FormatError):
        read_clip(tmp_path / "a.npz")


@pytest.mark.parametrize("T", [1, 2, 3])
def test_short_clips_are_clips(tmp_path, T):
    write_clip(tmp_path / "a.npz", Clip(pose(T), conf(T)))
    assert read_clip(tmp_path / "a.npz", COCO, 2).pose.shape == (T, 17, 2)


def test_a_joint_missing_in_every_frame_is_not_an_error():
    x = pose()
    x[:, 4] = np.nan
    clip = check_clip(Clip(x), COCO, 2)
    assert np.isnan(clip.pose[:, 4]).all() and np.isfinite(clip.pose[:, :4]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, ">f4"])
def test_any_real_number_is_converted(dtype):
    clip = check_clip(Clip((pose() * 200).astype(dtype)))
    assert clip.pose.dtype == np.float32 and clip.pose.dtype.isnative and clip.pose.flags["C_CONTIGUOUS"]


def test_a_clip_comes_back_as_it_was(tmp_path):
    x = pose(seed=1)
    x[2, 3] = np.nan
    clip = Clip(x, conf(), 29.97, "ä b", "wave", "anna", np.arange(6) / 30, {"video": "x.mp4"}, COCO)
    write_clip(tmp_path / "a.npz", clip)
    back = read_clip(tmp_path / "a.npz")
    np.testing.assert_array_equal(back.pose, x)
    np.testing.assert_array_equal(back.timestamps, clip.timestamps)
    for name in ("fps", "id", "label", "group", "meta", "skeleton"):
        assert getattr(back, name) == getattr(clip, name)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a\\b", "a\x00b", "."])
def test_an_id_cannot_leave_its_folder(name, tmp_path):
    i = check_clip(Clip(pose(), id=name)).id
    assert (tmp_path / f"{i}.npz").resolve().parent == tmp_path.resolve() and not i.startswith(".")


# --- a folder -------------------------------------------------------------------------------------------------------


def test_one_bad_file_among_a_hundred(tmp_path):
    for n in range(100):
        write_clip(tmp_path / f"{n:03}.npz", Clip(pose(seed=n)))
    (tmp_path / "000.npz").write_bytes(b"PK\x03\x04")  # the first one: the majority decides, not the order
    motion = load_motion(tmp_path, "coco17")
    assert len(motion) == 99
    assert [file for file, _ in motion.failures] == ["000.npz"]
    with pytest.raises(FormatError, match="000.npz"):
        load_motion(tmp_path, "coco17", strict=True)


def test_files_that_do_not_belong_are_left_out(tmp_path):
    for n, x in enumerate([pose(J=18), pose(), pose(), pose(D=3), pose()]):
        np.savez(tmp_path / f"{n}.npz", pose=x)
    motion = load_motion(tmp_path, "coco17")
    assert motion.ids == ["1", "2", "4"]
    assert [file for file, _ in motion.failures] == ["0.npz", "3.npz"]
    with pytest.raises(DataError, match="18 joints"):
        load_motion(tmp_path, "coco17", strict=True)


def test_folders_without_motion(tmp_path):
    with pytest.raises(DataError, match="holds no motion files; found nothing"):
        load_motion(tmp_path)
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "._a.npz").write_bytes(b"a file manager's leftovers")
    with pytest.raises(DataError, match="found 1 .csv"):
        load_motion(tmp_path)
    with pytest.raises(DataError, match="neither a path nor a data set"):
        load_motion(tmp_path / "nowhere")
    (tmp_path / "a.npz").write_text("x")
    with pytest.raises(DataError, match="not one of 1 files could be read"):
        load_motion(tmp_path)


def test_what_the_joints_are_is_never_guessed_in_silence(tmp_path):
    np.savez(tmp_path / "a.npz", pose=pose())
    with pytest.warns(UserWarning, match="taking them for 'coco17'"):
        assert load_motion(tmp_path).skeleton == COCO
    np.savez(tmp_path / "a.npz", pose=pose(J=7))
    with pytest.raises(DataError, match="7 joints in 2D.*Pass a skeleton"):
        load_motion(tmp_path)
    chain = {"joints": list("abcdefg"), "edges": [[i, i + 1] for i in range(6)], "root_joint": "a"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_motion(tmp_path, chain).skeleton.joints == tuple("abcdefg")
        write_json(tmp_path / "skeleton.json", chain)
        assert load_motion(tmp_path).skeleton.joints == tuple("abcdefg")
        write_clip(tmp_path / "b" / "b.npz", Clip(pose(), skeleton=COCO))
        assert load_motion(tmp_path / "b").skeleton == COCO
        assert load_motion(tmp_path / "b" / "b.npz").ids == ["b"]


def test_a_set_can_be_read_for_another_skeleton(tmp_path):
    body25 = load_skeleton("body25")
    write_clip(tmp_path / "a.npz", Clip(pose(J=25), skeleton=body25))
    motion = load_motion(tmp_path, "coco17")
    assert motion.skeleton == COCO and motion.clips[0].skeleton == body25
    with pytest.raises(DataError, match="no joint for"):
        load_motion(tmp_path, "smpl24", strict=True)


def test_same_names_in_different_folders_stay_apart(tmp_path):
    for who in ("anna", "ben"):
        write_clip(tmp_path / who / "walk.npz", Clip(pose(), skeleton=COCO))
    assert load_motion(tmp_path).ids == ["anna_walk", "ben_walk"]


def test_splits_beside_the_clips_are_read_and_checked(tmp_path):
    for n in "abc":
        write_clip(tmp_path / f"{n}.npz", Clip(pose(), skeleton=COCO))
    write_json(tmp_path / "splits.json", {"train": ["a", "b"], "test": ["c"]})
    motion = load_motion(tmp_path)
    assert [c.id for c in motion.split("train")] == ["a", "b"]
    with pytest.raises(DataError, match="found val; expected train, test"):
        motion.split("val")
    write_json(tmp_path / "splits.json", {"train": ["a", "b"], "test": ["a"]})
    with pytest.raises(DataError, match="two sides"):
        load_motion(tmp_path)
    write_json(tmp_path / "splits.json", ["a"])
    with pytest.raises(FormatError, match="not splits"):
        load_motion(tmp_path)


def test_a_prepared_folder_of_another_version_is_refused(tmp_path):
    write_clip(tmp_path / "clips" / "a.npz", Clip(pose(), skeleton=COCO))
    for info in ({"format": "tokenize_lib.prepared_motion", "version": 99}, {"format": "other"}, []):
        write_json(tmp_path / "prepared.json", info)
        with pytest.raises(FormatError, match="prepared.json"):
            load_motion(tmp_path)


# --- skeletons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_skeletons())
def test_packaged_skeletons_are_symmetric(name):
    s = load_skeleton(name)
    order = s.mirror_order()
    for kind in ("edges", "bones"):
        pairs = {frozenset(p) for p in getattr(s, kind)}
        assert {frozenset(int(order[i]) for i in p) for p in pairs} == pairs
        assert len(pairs) == len(getattr(s, kind))
    assert {order[s.index(n)] for n in s.root_joint} == {s.index(n) for n in s.root_joint}
    assert order[s.index(s.shoulders[0])] == s.index(s.shoulders[1])
    assert {frozenset(p) for p in s.bones} <= {frozenset(p) for p in s.edges}
    assert all(n in s.upper_body for n in s.shoulders)
    assert sum(p == -1 for p in s.parents()) == len(s.root_joint)


# --- BVH ------------------------------------------------------------------------------------------------------------

HEAD = """HIERARCHY
ROOT Hips
{
OFFSET 0 0 0
CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
JOINT Chest
{
OFFSET 0 2 0
CHANNELS 3 Yrotation Zrotation Xrotation
End Site
{
OFFSET 0 1 0
}
}
}
MOTION
Frames: %d
Frame Time: 0.04
"""


def test_bvh_rotations_multiply_in_the_order_listed(tmp_path):
    (tmp_path / "a.bvh").write_text(HEAD % 1 + "1 2 3 90 90 0 0 0 0\n")
    # R_z(90) R_x(90) takes y to z, and z stays under R_z; in the other order it would end at -x
    np.testing.assert_allclose(read_bvh(tmp_path / "a.bvh").pose, [[[1, 2, 3], [1, 2, 5]]], atol=1e-6)


def test_bvh_without_frames_and_with_too_few_numbers(tmp_path):
    (tmp_path / "a.bvh").write_text(HEAD % 0)
    with pytest.raises(DataError, match="T = 0"):
        read_clip(tmp_path / "a.bvh")
    (tmp_path / "a.bvh").write_text(HEAD % 2 + "1 2 3 90 90 0 0 0 0\n1 2 3")
    with pytest.raises(FormatError, match="12 numbers where 2 frames of 9 channels"):
        read_clip(tmp_path / "a.bvh")


def test_a_folder_of_bvh_needs_no_skeleton(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.bvh").write_text(HEAD % 2 + "1 2 3 90 90 0 0 0 0\n" * 2)
    (tmp_path / "3.BVH").write_text("cut")
    motion = load_motion(tmp_path)
    assert (len(motion), motion.fps, motion.skeleton.joints) == (3, 25.0, ("Hips", "Chest"))
    assert [file for file, _ in motion.failures] == ["3.BVH"]


# --- data sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_datasets())
def test_registered_loaders_exist(name):
    info = dataset_info(name)
    module, _, function = info.loader.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert info.licence and info.source and info.title
    assert all(len(f.sha256) == 64 for variant in info.variants for f in variant)


def test_bandai_has_all_its_recordings_registered():
    files = dataset_info("bandai_namco_1").variants[1]
    assert len(files) == 174 and all(f.url.endswith(f.path.removeprefix("bvh/")) for f in files)


def test_a_set_nobody_can_download_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZE_LIB_DATA", str(tmp_path))
    monkeypatch.setenv("TOKENIZE_LIB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="pose2d.npz into .*pose/penn_action.*github.com"):
        load_dataset("penn_action")


def test_an_altered_file_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZE_LIB_DATA", str(tmp_path))
    monkeypatch.setenv("TOKENIZE_LIB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pose" / "penn_action"
    folder.mkdir(parents=True)
    np.savez(folder / "pose2d.npz", pos=pose())
    with pytest.raises(DataError, match="not the registered file"):
        load_motion("penn_action")
    assert sorted(p.name for p in folder.iterdir()) == ["pose2d.npz"]  # nothing is written beside the data


def test_a_mirror_with_something_else_is_refused(tmp_path, monkeypatch):
    class Portal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("TOKENIZE_LIB_DATA", raising=False)
    monkeypatch.setenv("TOKENIZE_LIB_CACHE", str(tmp_path))
    try:
        with pytest.raises(DataError, match="not the registered file"):
            fetch("penn_action", base_url=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_bandai_recordings_and_positions_are_the_same_motion(tmp_path):
    folder = real("bandai_namco_1")
    motion = load_bandai_namco_1(folder)
    by_id = {c.id: c for c in motion.clips}
    if not (folder / "bvh").is_dir():
        pytest.skip("no recordings beside joints.npz")
    (tmp_path / "bvh").mkdir()
    for file in (folder / "bvh").iterdir():
        shutil.copy(file, tmp_path / "bvh")
    raw = load_bandai_namco_1(tmp_path)
    assert len(raw) >= 10 and raw.skeleton == motion.skeleton
    for a in raw.clips:
        b = by_id[a.id]
        assert (a.label, a.group, a.fps, a.pose.shape) == (b.label, b.group, b.fps, b.pose.shape)
        assert np.abs(a.pose - b.pose).max() < 0.05  # cm


def test_bandai_follows_the_protocol():
    real("bandai_namco_1")
    motion = load_motion("bandai_namco_1")
    assert {k: len(v) for k, v in motion.splits.items()} == {"train": 126, "val": 14, "test": 34}
    assert sum(len(c) for c in motion.split("test")) == 6199
    assert motion.splits["test"] == sorted(motion.ids)[4::5]
    assert len({i for ids in motion.splits.values() for i in ids}) == 174
    x = np.concatenate([c.pose for c in motion.split("train") + motion.split("val")]).astype(np.float64)
    length = np.mean([np.linalg.norm(x[:, i] - x[:, j], axis=-1).mean() for i, j in motion.skeleton.bones])
    assert abs(length - 18.832) < 5e-4


def test_bandai_2_and_penn_load():
    for name, sizes, dims in (
        ("bandai_namco_2", {"train": 2090, "val": 232, "test": 580}, 3),
        ("penn_action", {"train": 1133, "val": 125, "test": 1068}, 2),
    ):
        real(name)
        motion = load_motion(name)
        assert {k: len(v) for k, v in motion.splits.items()} == sizes
        assert motion.dims == dims and not motion.failures
    visible = np.mean(np.concatenate([c.conf.ravel() for c in motion.clips]))
    assert abs(visible - 0.78) < 0.01  # 22 % are hidden


def test_generated_sets_are_seeded():
    a, b, other = (
        load_motion("synthetic_3d", seed=1),
        load_motion("synthetic_3d", seed=1),
        load_motion("synthetic_3d", seed=2),
    )
    np.testing.assert_array_equal(a.clips[0].pose, b.clips[0].pose)
    assert not np.array_equal(a.clips[0].pose, other.clips[0].pose)
