"""Files of other tools: every format in the layout its tool writes, everything that can be wrong with one, and the whole way to tokens."""

import copy
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenize_lib.core.data import load_dataset, local_folder
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.pose.clips import Clip, load_motion, read_clip, write_clip
from tokenize_lib.pose.convert import convert
from tokenize_lib.pose.formats import motion_sources, read_motion_file, sniff
from tokenize_lib.pose.prepare import prepare
from tokenize_lib.pose.recording import cheapest_tree, pair_prices
from tokenize_lib.pose.skeleton import load_skeleton
from tokenize_lib.pose.synthetic import synthetic_motion

T = 12
WALK = synthetic_motion(1, dims=2, frames=(T, T), dropout=0).clips[0].pose  # [T, 17, 2]
PARTS = ["nose", "earl", "earr", "middle", "tailbase"]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- writers, each in the layout of its tool ------------------------------------------------------------------------


def flat(t, joints=25, shift=0.0, conf=0.9, width=3):
    xy = WALK[t][np.arange(joints) % 17] + shift
    return [float(v) for p in xy for v in (*p, *[1.0] * (width - 3), conf)]


def openpose_frame(t, people=1, joints=25):
    return {
        "version": 1.3,
        "people": [
            {
                "person_id": [-1],
                "pose_keypoints_2d": flat(t, joints, 500.0 * n),
                "face_keypoints_2d": [],
                "hand_left_keypoints_2d": [],
                "pose_keypoints_3d": [],
            }
            for n in range(people)
        ],
    }


def openpose(folder, video="walk", frames=range(T), people=lambda t: 1, joints=25):
    folder.mkdir(parents=True, exist_ok=True)
    for t in frames:
        text = json.dumps(openpose_frame(min(t, T - 1), people(t), joints))
        (folder / f"{video}_{t:012}_keypoints.json").write_text(text)
    return folder


def alphapose(joints=17, idx=3):
    return [
        {
            "image_id": f"{t}.jpg",
            "category_id": 1,
            "keypoints": flat(t, joints),
            "score": 2.9,
            "box": [0, 0, 9, 9],
        }
        | ({} if idx is None else {"idx": idx})
        for t in range(T)
    ]


def coco():
    keypoints = [[v for j in range(5) for v in (10.0 + j + t, 20.0 + j * j, j % 3)] for t in range(T)]
    return {
        "info": {},
        "images": [{"id": 900 + t, "file_name": f"horse/{t:05}.jpg", "width": 640} for t in range(T)],
        "annotations": [
            {"id": t, "image_id": 900 + t, "track_id": 1, "keypoints": k} for t, k in enumerate(keypoints)
        ],
        "categories": [
            {"id": 1, "name": "horse", "keypoints": PARTS, "skeleton": [[1, 2], [1, 3], [1, 4], [4, 5]]}
        ],
    }


def mediapipe():
    points = [
        [{"x": float(x), "y": float(y), "z": 0.1, "visibility": 0.9} for x, y in WALK[t][np.arange(33) % 17]]
        for t in range(T)
    ]
    return {"fps": 24, "frames": [{"pose_landmarks": p} for p in points]}


def dlc(path, individuals=None, parts=PARTS, frames=T, coords=("x", "y", "likelihood"), levels=True):
    columns = [(i, p, c) for i in individuals or [""] for p in parts for c in coords]
    head = [["scorer", *["DLC_resnet50_openfieldJun1shuffle1"] * len(columns)]] if levels else []
    head += [["individuals", *(i for i, _, _ in columns)]] if individuals else []
    head += [["bodyparts", *(p for _, p, _ in columns)], ["coords", *(c for _, _, c in columns)]]
    values = np.random.default_rng(0).random((frames, len(columns)))
    values[:, [c != "likelihood" for _, _, c in columns]] *= 300
    path.write_text(
        "\n".join(",".join(map(str, row)) for row in [*head, *([t, *v] for t, v in enumerate(values))]) + "\n"
    )
    return values


def dlc_table_h5(path, values):
    """As pandas' `to_hdf(format="table")`: the names of the columns are a pickle, here one that would leave a trace if anybody ran it."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as f:
        group = f.create_group("df_with_missing")
        group.attrs["pandas_type"] = np.bytes_(b"frame_table")
        trace = path.with_suffix(".trace")
        group.attrs["non_index_axes"] = np.bytes_(f"cposix\nsystem\n(S'touch {trace}'\ntR.".encode())
        rows = np.zeros(len(values), [("index", "i8"), ("values_block_0", "f8", values.shape[1:])])
        rows["index"], rows["values_block_0"] = np.arange(len(values)), values
        group["table"] = rows
    return trace


def dlc_fixed_h5(path, values, parts=PARTS):
    """As pandas' `to_hdf(format="fixed")`."""
    h5py = pytest.importorskip("h5py")
    columns = [("DLC", p, c) for p in parts for c in ("x", "y", "likelihood")]
    with h5py.File(path, "w") as f:
        group = f.create_group("df_with_missing")
        group.attrs["pandas_type"], group.attrs["axis0_variety"] = np.bytes_(b"frame"), np.bytes_(b"multi")
        for n, level in enumerate(zip(*columns, strict=True)):
            words, label = np.unique(np.array(level, "S"), return_inverse=True)
            for axis in ("axis0", "block0_items"):
                group[f"{axis}_level{n}"], group[f"{axis}_label{n}"] = words, label.astype("i1")
        group["axis1"], group["block0_values"] = np.arange(len(values)), values


def sleap_h5(path, tracks=2, order=("track", "xy", "node", "frame")):
    h5py = pytest.importorskip("h5py")
    axes, rng = ("track", "frame", "node", "xy"), np.random.default_rng(0)
    pose = 100 * rng.random((tracks, T, len(PARTS), 2))
    pose[0, 3, 1] = np.nan
    with h5py.File(path, "w") as f:
        f["tracks"] = pose.transpose([axes.index(a) for a in order])
        f["point_scores"] = np.full(pose.shape[:3], 0.8).transpose(
            [axes.index(a) for a in order if a != "xy"]
        )
        f["node_names"], f["track_names"] = (
            np.array(PARTS, "S"),
            np.array([f"mouse{n}" for n in range(tracks)], "S"),
        )
        f["edge_inds"] = np.array([[0, 1], [0, 2], [0, 3], [3, 4]]).T
        f["track_occupancy"] = np.ones((T, tracks))
    return pose


def sleap_csv(path):
    header = "track,frame_idx,instance.score," + ",".join(
        f"{p}.{a}" for p in PARTS for a in ("x", "y", "score")
    )
    rows = [
        f"{who},{t},2.5," + ",".join(f"{100 * j + t},{j * j},0.9" for j in range(len(PARTS)))
        for t in range(3, T)
        for who in ("a", "b")
    ]
    path.write_text("\n".join([header, *rows]) + "\n")


def c3d_file(path, lost=((2, 1),)):
    c3d = pytest.importorskip("c3d")
    writer = c3d.Writer(point_rate=120.0, point_scale=-1.0)
    rows, rng = [], np.random.default_rng(0)
    for t in range(T):
        row = np.zeros((len(PARTS), 5), np.float32)
        row[:, :3] = 100 * rng.random((len(PARTS), 3))
        row[[j for frame, j in lost if frame == t], 3:] = -1
        rows.append((row, np.zeros((0, 0))))
    writer.set_point_labels(PARTS)
    writer.set_screen_axis("+X", "+Z")
    writer.add_frames(rows)
    with open(path, "wb") as f, warnings.catch_warnings(action="ignore"):  # there are no analogue channels
        writer.write(f)


BVH = (
    "HIERARCHY\nROOT Hips\n{\nOFFSET 0 0 0\nCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation\n"
    "JOINT Chest\n{\nOFFSET 0 2 0\nCHANNELS 3 Zrotation Xrotation Yrotation\nEnd Site\n{\nOFFSET 0 1 0\n}\n}\n}\n"
    "MOTION\nFrames: 3\nFrame Time: 0.04\n" + "0 90 0 0 0 0 0 0 0\n" * 3
)


def write_all(folder):
    """One file of each kind; clips, frames and joints that must come out of each."""
    folder.mkdir(parents=True, exist_ok=True)
    openpose(folder / "openpose", people=lambda t: 2)
    (folder / "alphapose-results.json").write_text(json.dumps(alphapose()))
    (folder / "coco.json").write_text(json.dumps(coco()))
    (folder / "mediapipe.json").write_text(json.dumps(mediapipe()))
    values = dlc(folder / "dlc.csv")
    dlc_fixed_h5(folder / "dlc_fixed.h5", values)
    sleap_h5(folder / "labels.analysis.h5")
    sleap_csv(folder / "sleap.csv")
    np.save(folder / "000001.npy", np.random.default_rng(0).random((T, 22, 3), dtype=np.float32))
    np.save(folder / "000002.npy", np.random.default_rng(0).random((T, 263), dtype=np.float32) / 100)
    c3d_file(folder / "trial.c3d")
    (folder / "nod.bvh").write_text(BVH)
    write_clip(folder / "own.npz", Clip(WALK, skeleton=load_skeleton("coco17")))
    return {
        "openpose": (2, T, 25, "openpose"),
        "alphapose-results.json": (1, T, 17, "alphapose"),
        "coco.json": (1, T, 5, "coco"),
        "mediapipe.json": (1, T, 33, "mediapipe"),
        "dlc.csv": (1, T, 5, "deeplabcut"),
        "dlc_fixed.h5": (1, T, 5, "deeplabcut"),
        "labels.analysis.h5": (2, T, 5, "sleap"),
        "sleap.csv": (2, T - 3, 5, "sleap"),
        "000001.npy": (1, T, 22, "array"),
        "000002.npy": (1, T, 22, "array"),
        "trial.c3d": (1, T, 5, "c3d"),
        "nod.bvh": (1, 3, 2, "bvh"),
        "own.npz": (1, T, 17, "npz"),
    }


# --- every format ---------------------------------------------------------------------------------------------------


def test_every_format_is_recognised_and_complete(tmp_path):
    expected = write_all(tmp_path)
    for name, (clips, frames, joints, tool) in expected.items():
        found = read_motion_file(tmp_path / name)
        assert sniff(tmp_path / name) == tool
        assert [c.pose.shape[:2] for c in found] == [(frames, joints)] * clips, name
        assert all(c.skeleton is not None and len(c.skeleton) == joints for c in found), name
        assert len({c.id for c in found}) == clips
    motion, other, broken = motion_sources(tmp_path)
    assert (sorted(p.name for p in motion), other, broken) == (sorted(expected), [], [])


def test_the_rest_of_the_library_takes_them(tmp_path):
    openpose(tmp_path / "in", people=lambda t: 2)
    motion = load_motion(tmp_path / "in")
    assert (motion.ids, motion.skeleton.name) == (["walk_person0", "walk_person1"], "body25")
    for _ in range(2):  # below its own source, where its output must not be read again
        prepare(tmp_path / "in", tmp_path / "in" / "prepared", val_fraction=0, test_fraction=0)
        assert load_motion(tmp_path / "in" / "prepared").ids == motion.ids
    with pytest.raises(DataError, match="several bodies"):
        read_clip(tmp_path / "in")


def test_what_was_not_found_is_missing_and_what_is_doubtful_stays(tmp_path):
    frames = alphapose()
    frames[2]["keypoints"][:3] = [0, 0, 0]
    frames[3]["keypoints"][:3] = [5.0, 6.0, 0.01]
    frames[4]["keypoints"][2] = 5.7  # AlphaPose's confidences reach 6
    del frames[7]  # nobody was found
    (tmp_path / "a.json").write_text(json.dumps(frames))
    (clip,) = read_motion_file(tmp_path / "a.json")
    assert np.isnan(clip.pose[2, 0]).all() and clip.conf[2, 0] == 0
    assert clip.pose[3, 0].tolist() == [5, 6] and clip.conf[3, 0, 0] == np.float32(0.01)
    assert clip.conf[4, 0] == 1 and len(clip) == T and np.isnan(clip.pose[7]).all()
    (clip,) = read_motion_file(tmp_path / "a.json", min_conf=0.5)
    assert np.isnan(clip.pose[3, 0]).all() and clip.conf[3, 0] == 0


@pytest.mark.parametrize(("joints", "name", "kept"), [(17, "coco17", 17), (18, "coco18", 18), (25, "body25", 25), (26, "halpe26", 26),
                                                       (133, "coco17", 17), (136, "halpe26", 26)])  # fmt: skip
def test_the_length_of_a_list_is_its_layout(tmp_path, joints, name, kept):
    (tmp_path / "a.json").write_text(json.dumps(alphapose(joints)))
    (clip,) = read_motion_file(tmp_path / "a.json")
    assert (clip.skeleton, clip.pose.shape[1]) == (load_skeleton(name), kept)


@pytest.mark.parametrize("idx", [3, 3.0, [3], [[3.0]]])
def test_tracks_by_name(tmp_path, idx):
    (tmp_path / "a.json").write_text(json.dumps(alphapose(idx=idx)))
    assert read_motion_file(tmp_path / "a.json")[0].meta["individual"] == "person3"


def test_alphapose_by_image_and_frames_with_a_stride(tmp_path):
    for form, key, part in (("open", "people", "pose_keypoints_2d"), ("cmu", "bodies", "joints")):
        content = {
            f"{5 * t}.jpg": {"version": "AlphaPose v0.3", key: [{part: flat(t, 18)}]} for t in range(T)
        }
        (tmp_path / f"{form}.json").write_text(json.dumps(content))
        (clip,) = read_motion_file(tmp_path / f"{form}.json")
        assert (clip.pose.shape, clip.skeleton.name) == ((T, 18, 2), "coco18")


def test_openpose_in_3d_and_another_layout(tmp_path):
    folder = openpose(tmp_path / "a")
    for t, p in enumerate(sorted(folder.iterdir())):
        p.write_text(
            json.dumps(
                {
                    "people": [
                        {
                            "person_id": [0],
                            "pose_keypoints_2d": flat(t),
                            "pose_keypoints_3d": flat(t, width=4),
                        }
                    ]
                }
            )
        )
    assert read_motion_file(folder)[0].pose.shape == (T, 25, 3)
    (clip,) = read_motion_file(openpose(tmp_path / "b"), skeleton="body25b")
    assert clip.skeleton.name == "body25b"
    (clip,) = read_motion_file(tmp_path / "b", skeleton="coco17")  # fewer joints: mapped by name
    assert clip.pose.shape[1] == 17


def test_a_passer_by_is_a_clip_of_his_own(tmp_path):
    folder = openpose(tmp_path / "a", people=lambda t: 2 if 4 <= t < 7 else 1)
    long, short = read_motion_file(folder)
    assert (len(long), len(short), short.meta["first_frame"]) == (T, 3, 4)
    assert len(convert(folder, tmp_path / "out", min_frames=5).clips) == 1


def test_frames_of_several_videos_in_one_folder(tmp_path):
    openpose(tmp_path / "a", "left")
    openpose(tmp_path / "a", "right")
    assert [c.id for c in read_motion_file(tmp_path / "a")] == ["left", "right"]


def test_deeplabcut_in_its_variants(tmp_path):
    file = tmp_path / "v.csv"
    for levels in (True, False):
        dlc(file, levels=levels)
        assert len(read_motion_file(file)) == 1
        values = dlc(file, ["m1", "m2"], levels=levels)
        a, b = read_motion_file(file)
        assert (a.id, b.id, a.group, b.meta["individual"]) == ("v_m1", "v_m2", "v", "m2")
        np.testing.assert_allclose(b.pose[:, 1], values[:, 18:20], rtol=1e-6)
        np.testing.assert_allclose(b.conf[:, 1, 0], values[:, 20], rtol=1e-6)
    dlc(file, coords=("x", "y", "z"))
    assert read_motion_file(file)[0].pose.shape == (T, 5, 3) and read_motion_file(file)[0].conf is None
    dlc(file, parts=["мышь нос", "мышь хвост", "naïve"])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_motion_file(file)[0].skeleton.joints == ("мышь нос", "мышь хвост", "naïve")


def test_empty_cells_are_missing_points(tmp_path):
    dlc(tmp_path / "v.csv")
    lines = (tmp_path / "v.csv").read_text().splitlines()
    lines[5] = ",".join([lines[5].split(",")[0], "", "", "", *lines[5].split(",")[4:]])
    (tmp_path / "v.csv").write_text("\n".join(lines))
    (clip,) = read_motion_file(tmp_path / "v.csv")
    assert np.isnan(clip.pose[2, 0]).all() and clip.conf[2, 0] == 0 and np.isfinite(clip.pose[2, 1]).all()


def test_nothing_in_hdf5_is_unpickled(tmp_path):
    values = dlc(tmp_path / "v.csv")
    trace = dlc_table_h5(tmp_path / "v.h5", values)
    (clip,) = read_motion_file(tmp_path / "v.h5")
    assert clip.skeleton.joints == tuple(PARTS)  # from the table beside it
    (tmp_path / "v.csv").unlink()
    with pytest.raises(FormatError, match="pickled, and are not read.*5 points.*save_as_csv"):
        read_motion_file(tmp_path / "v.h5")
    (named,) = read_motion_file(tmp_path / "v.h5", skeleton={"joints": PARTS})
    np.testing.assert_array_equal(named.pose, clip.pose)
    two = read_motion_file(tmp_path / "v.h5", skeleton={"joints": ["a"], "edges": []})
    assert len(two) == 5  # five animals of one point each, if the user says so
    with pytest.raises(DataError, match="15 columns"):
        read_motion_file(tmp_path / "v.h5", skeleton="coco17")
    assert not trace.exists()


def test_hdf5_beside_another_table_is_refused(tmp_path):
    values = dlc(tmp_path / "v.csv")
    dlc_table_h5(tmp_path / "v.h5", values + 1)
    with pytest.raises(FormatError, match="v.csv: is not the table"):
        read_motion_file(tmp_path / "v.h5")


@pytest.mark.parametrize(
    "order",
    [("track", "xy", "node", "frame"), ("frame", "node", "xy", "track"), ("frame", "track", "node", "xy")],
)
def test_sleap_either_way_round(tmp_path, order):
    pose = sleap_h5(tmp_path / "a.h5", order=order)
    clips = read_motion_file(tmp_path / "a.h5")
    np.testing.assert_allclose(np.stack([c.pose for c in clips]), pose.astype(np.float32))
    assert clips[0].conf[3, 1] == 0 and clips[0].skeleton.edges == ((0, 1), (0, 2), (0, 3), (3, 4))
    assert [c.id for c in clips] == ["a_mouse0", "a_mouse1"]


def test_markers(tmp_path):
    c3d_file(tmp_path / "a.c3d")
    (clip,) = read_motion_file(tmp_path / "a.c3d")
    assert (clip.fps, clip.skeleton.up, clip.skeleton.mirror_pairs) == (120, "z", ((1, 2),))
    assert np.argwhere(np.isnan(clip.pose[..., 0])).tolist() == [[2, 1]]


def test_arrays_and_skeletons(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.random((T, 17, 2)))
    assert read_motion_file(tmp_path / "a.npy", skeleton="coco17")[0].skeleton.name == "coco17"
    assert read_motion_file(tmp_path / "a.npy")[0].meta["edges"] == "inferred"
    with pytest.raises(DataError, match="17 points in the file; expected 25 joints"):
        read_motion_file(tmp_path / "a.npy", skeleton="body25")
    np.save(tmp_path / "b.npy", np.concatenate([500 * rng.random((T, 17, 2)), rng.random((T, 17, 1))], -1))
    (clip,) = read_motion_file(tmp_path / "b.npy", skeleton="coco17")
    assert clip.pose.shape == (T, 17, 2) and clip.conf is not None


@pytest.mark.parametrize("T", [1, 2, 3])
def test_short_recordings(tmp_path, T):
    dlc(tmp_path / "v.csv", frames=T)
    np.save(tmp_path / "f.npy", np.zeros((T, 263), np.float32))
    np.save(tmp_path / "p.npy", np.random.default_rng(0).random((T, 9, 3)))
    openpose(tmp_path / "o", frames=range(T))
    for name in ("v.csv", "f.npy", "p.npy", "o"):
        assert len(read_motion_file(tmp_path / name)[0]) == T


# --- skeletons from movement ----------------------------------------------------------------------------------------


def test_the_edges_of_a_known_body_are_found_again():
    motion = synthetic_motion(30)
    found, true = (
        set(cheapest_tree(pair_prices(motion.clips))),
        {tuple(sorted(e)) for e in motion.skeleton.edges},
    )
    assert len(found & true) >= 13  # of 16: shoulders may hang from the neck instead of the chest


def test_inference_does_not_depend_on_place_size_or_order():
    clips = synthetic_motion(10).clips
    moved = [Clip(3 * c.pose + 7) for c in reversed(clips)]
    assert cheapest_tree(pair_prices(clips)) == cheapest_tree(pair_prices(moved))


@pytest.mark.parametrize("what", ["one point", "two points", "never together", "all still", "one frame"])
def test_any_points_get_a_connected_skeleton(tmp_path, what):
    rng = np.random.default_rng(0)
    x = {"one point": 9 * rng.random((T, 1, 2)), "two points": rng.random((T, 2, 3)), "never together": 9 * rng.random((T, 4, 2)),
         "all still": np.broadcast_to(rng.random((4, 2)), (T, 4, 2)).copy(), "one frame": rng.random((1, 6, 3))}[what]  # fmt: skip
    if what == "never together":
        x[::2, :2], x[1::2, 2:] = np.nan, np.nan
    names = [f"p{n}" for n in range(x.shape[1])]
    columns = [(n, a) for n in names for a in "xyz"[: x.shape[2]]]
    rows = [["bodyparts", *(n for n, _ in columns)], ["coords", *(a for _, a in columns)]]
    rows += [[t, *("" if np.isnan(v) else v for v in f.ravel())] for t, f in enumerate(x)]
    (tmp_path / "v.csv").write_text("\n".join(",".join(map(str, r)) for r in rows))
    (clip,) = read_motion_file(tmp_path / "v.csv")
    assert len(clip.skeleton) == len(names) and len(clip.skeleton.edges) == len(names) - 1


def test_one_set_has_one_skeleton_and_one_root(tmp_path):
    for n, seed in enumerate((3, 4, 5)):
        motion = synthetic_motion(1, seed=seed, dims=2, frames=(20 + 10 * n, 20 + 10 * n))
        names = motion.skeleton.joints
        head = [["bodyparts", *(j for j in names for _ in "xy")], ["coords", *["x", "y"] * len(names)]]
        rows = [
            [t, *("" if np.isnan(v) else v for v in f.ravel())] for t, f in enumerate(motion.clips[0].pose)
        ]
        (tmp_path / f"v{n}.csv").write_text("\n".join(",".join(map(str, r)) for r in head + rows))
    assert len({c.skeleton for c in load_motion(tmp_path).clips}) == 1
    report = convert(tmp_path, tmp_path / "out")
    assert report.inferred and len({read_clip(p).skeleton for p in (tmp_path / "out").glob("*.npz")}) == 1
    assert read_clip(tmp_path / "out" / "v0.npz").skeleton == load_skeleton(
        tmp_path / "out" / "skeleton.json"
    )


def test_the_models_root_holds_for_the_same_joints():
    from tokenize_lib.pose.config import PreprocessConfig
    from tokenize_lib.pose.preprocess import preprocess_clip

    model, own = ({"joints": ["a", "b", "c"], "edges": [[0, 1], [1, 2]], "root_joint": r} for r in ("b", "c"))
    clip = Clip(np.random.default_rng(0).random((5, 3, 2)), skeleton=load_skeleton(own))
    x = preprocess_clip(clip, PreprocessConfig(), load_skeleton(model)).x
    assert np.abs(x[:, 1]).max() < 1e-6 < 0.1 < np.abs(x[:, 2]).max()


# --- broken files ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=4),
    lambda x: (
        st.lists(x, max_size=4)
        | st.dictionaries(st.sampled_from(["people", "keypoints", "image_id", "x", "y", "id"]), x, max_size=3)
    ),
    max_leaves=6,
)
CONTENTS = {
    "openpose": lambda: [openpose_frame(t, 2) for t in range(3)],
    "alphapose": lambda: alphapose()[:3],
    "alphapose by image": lambda: {f"{t}.jpg": {"bodies": [{"joints": flat(t, 18)}]} for t in range(3)},
    "coco": coco,
    "mediapipe": lambda: {"frames": mediapipe()["frames"][:3]},
}


def places(x, at=()):
    """Every place in nested lists and dictionaries."""
    yield at
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ():
        yield from places(v, (*at, k))


def read_or_refuse(path, **how):
    """Clips, or an error of this library that names the file; anything else fails the test."""
    try:
        clips = read_motion_file(path, **how)
    except (DataError, FormatError) as e:
        assert path.stem in str(e)
        return None
    assert clips and all(np.isfinite(c.pose).any() for c in clips)
    return clips


@pytest.mark.parametrize("kind", CONTENTS)
@QUICK
@given(data=st.data())
def test_changed_json_is_read_or_refused(tmp_path, kind, data):
    content = copy.deepcopy(CONTENTS[kind]())
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([p for p in places(content) if p]))
        node = content
        for k in above:
            node = node[k]
        action = data.draw(st.sampled_from(["replace", "remove", "repeat"]))
        if action == "replace":
            node[last] = data.draw(JSON)
        elif action == "remove":
            del node[last]
        elif isinstance(node, list):
            node.insert(last, copy.deepcopy(node[last]))
        if not any(p for p in places(content)):
            break
    (tmp_path / "walk.json").write_text(json.dumps(content))
    read_or_refuse(tmp_path / "walk.json")
    read_or_refuse(tmp_path / "walk.json", format=kind.partition(" ")[0])


@QUICK
@given(content=JSON, tool=st.sampled_from(["openpose", "alphapose", "coco", "mediapipe", None]))
def test_any_json_is_refused_by_name(tmp_path, content, tool):
    (tmp_path / "walk.json").write_text(json.dumps(content))
    read_or_refuse(tmp_path / "walk.json", format=tool)


TABLES = {"dlc": lambda p: dlc(p, ["m1", "m2"]), "sleap": sleap_csv}


@pytest.mark.parametrize("kind", TABLES)
@QUICK
@given(data=st.data())
def test_changed_tables_are_read_or_refused(tmp_path, kind, data):
    file = tmp_path / "walk.csv"
    TABLES[kind](file)
    rows = [line.split(",") for line in file.read_text().splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        r = data.draw(st.integers(0, len(rows) - 1))
        action = data.draw(st.sampled_from(["cell", "short", "long", "gone", "twice"]))
        if action == "cell" and rows[r]:
            rows[r][data.draw(st.integers(0, len(rows[r]) - 1))] = data.draw(
                st.sampled_from(["", "x", "nan", "-1", "1e400", "0", '"', "m1", "x;y", "\0"])
            )
        elif action in ("short", "long"):
            rows[r] = rows[r][:-1] if action == "short" else [*rows[r], "7"]
        elif action == "gone" and len(rows) > 1:
            del rows[r]
        elif action == "twice":
            rows.insert(r, list(rows[r]))
    file.write_text("\n".join(map(",".join, rows)))
    read_or_refuse(file)


BINARY = {
    "v.h5": lambda p: dlc_fixed_h5(p, np.random.default_rng(0).random((T, 15))),
    "s.h5": sleap_h5,
    "a.npy": lambda p: np.save(p, np.zeros((T, 22, 3))),
    "m.c3d": c3d_file,
    "n.bvh": lambda p: p.write_text(BVH),
    "d.csv": dlc,
    "z.npz": lambda p: write_clip(p, Clip(WALK, skeleton=load_skeleton("coco17"))),
}


@pytest.mark.parametrize("name", BINARY)
def test_files_cut_anywhere_are_refused(tmp_path, name):
    file = tmp_path / name
    BINARY[name](file)
    whole = file.read_bytes()
    for cut in [0, 1, 5, *range(9, len(whole), max(1, len(whole) // 40)), len(whole) - 1]:
        file.write_bytes(whole[:cut])
        read_or_refuse(file)


@pytest.mark.parametrize("name", ["m.c3d", "a.npy", "n.bvh", "d.csv"])
def test_files_with_flipped_bytes_are_read_or_refused(tmp_path, name):
    file, rng = tmp_path / name, np.random.default_rng(0)
    BINARY[name](file)
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(40):
        changed = whole.copy()
        at = rng.integers(0, min(len(whole), 700), 4)
        changed[at] ^= rng.integers(1, 256, 4).astype(np.uint8)
        file.write_bytes(changed.tobytes())
        read_or_refuse(file)


@pytest.mark.parametrize(("change", "problem"), [
    (lambda f: f.__delitem__("tracks"), "not a motion file"),
    (lambda f: f.__delitem__("point_scores"), None),
    (lambda f: (f.__delitem__("point_scores"), f.__setitem__("point_scores", np.zeros((2, 2, 2)))), "point_scores: does not fit"),
    (lambda f: (f.__delitem__("edge_inds"), f.__setitem__("edge_inds", np.array([[0, 99]]))), "edge_inds: not pairs of nodes"),
    (lambda f: (f.__delitem__("node_names"), f.__setitem__("node_names", np.array(["a"], "S"))), "tracks: not tracks"),
    (lambda f: (f.__delitem__("tracks"), f.__setitem__("tracks", np.zeros((2, 2)))), "tracks: not tracks"),
])  # fmt: skip
def test_sleap_files_that_contradict_themselves(tmp_path, change, problem):
    sleap_h5(tmp_path / "a.h5")
    import h5py

    with h5py.File(tmp_path / "a.h5", "r+") as f:
        change(f)
    if problem is None:
        assert read_motion_file(tmp_path / "a.h5")
    else:
        with pytest.raises(FormatError, match=problem):
            read_motion_file(tmp_path / "a.h5")


BVH_PROBLEMS = {
    "no frames": (BVH.replace("Frames: 3", "Frames: 0").partition("0 90 0")[0], "T = 0"),
    "a second root": (BVH.replace("MOTION", BVH[10 : BVH.index("MOTION")] + "MOTION"), "a second ROOT"),
    "fewer frames than announced": (BVH.replace("Frames: 3", "Frames: 4"), "27 numbers where 4 frames"),
    "negative frames": (BVH.replace("Frames: 3", "Frames: -3"), "where -3 frames"),
    "no frame time": (BVH.replace("Frame Time: 0.04\n", ""), "frame time"),
    "no motion": (BVH.partition("MOTION")[0], "no HIERARCHY and MOTION"),
    "an open brace": (BVH.replace("}\n}\nMOTION", "}\nMOTION"), "the hierarchy is not closed"),
    "only NaN": (BVH.replace("0 90 0 0 0 0 0 0 0", "nan " * 9), "all NaN"),
    "nothing": ("", "no HIERARCHY and MOTION"),
}


@pytest.mark.parametrize("case", BVH_PROBLEMS)
def test_bvh_problems_are_named(tmp_path, case):
    text, problem = BVH_PROBLEMS[case]
    (tmp_path / "nod.bvh").write_text(text)
    with pytest.raises((DataError, FormatError), match=problem):
        read_motion_file(tmp_path / "nod.bvh")


def test_bvh_as_windows_writes_it(tmp_path):
    (tmp_path / "unix.bvh").write_text(BVH)
    (tmp_path / "dos.bvh").write_bytes(
        b"\xef\xbb\xbf" + BVH.replace("\n", "\r\n").replace("  ", "\t").encode() + b"\r\n\r\n"
    )
    unix, dos = (read_motion_file(tmp_path / f"{n}.bvh")[0] for n in ("unix", "dos"))
    np.testing.assert_array_equal(unix.pose, dos.pose)
    assert unix.skeleton.joints == ("Hips", "Chest")  # the end site is no joint


# --- convert --------------------------------------------------------------------------------------------------------


def test_convert_keeps_what_goes_together_and_lists_the_rest(tmp_path):
    write_all(tmp_path / "in")
    (tmp_path / "in" / "labels.csv").write_text("file,from,to\na,1,2\n")
    (tmp_path / "in" / "cut.json").write_text('{"people": [')
    report = convert(tmp_path / "in", tmp_path / "out")
    assert {c.source for c in report.clips} == {
        "coco.json",
        "dlc.csv",
        "dlc_fixed.h5",
        "labels.analysis.h5",
        "sleap.csv",
    }  # five joints in 2D
    assert report.skipped == ["labels.csv"] and "cut.json" in dict(report.failures)
    assert all("another layout" in m for f, m in report.failures if f != "cut.json")
    assert len(load_motion(tmp_path / "out")) == len(report.clips) == 7
    with pytest.raises(FormatError, match="cut.json"):
        convert(tmp_path / "in", tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_convert_gives_the_same_on_any_number_of_processes(tmp_path):
    for n in range(4):
        dlc(tmp_path / f"v{n}.csv", ["m1", "m2"], frames=20 + n)
    reports = [
        convert(tmp_path, tmp_path / f"out{jobs}", format="deeplabcut", jobs=jobs, quiet=True)
        for jobs in (1, 2)
    ]
    assert reports[0].clips == reports[1].clips and reports[0].notes == reports[1].notes
    for p in (tmp_path / "out1").iterdir():
        if p.suffix == ".npz":
            one, two = read_clip(p), read_clip(tmp_path / "out2" / p.name)
            np.testing.assert_array_equal(one.pose, two.pose)
            assert one.skeleton == two.skeleton


def test_convert_drops_and_maps(tmp_path):
    dlc(tmp_path / "v.csv")
    report = convert(tmp_path / "v.csv", tmp_path / "a", drop=["earl", "earr"], fps=30)
    assert (report.skeleton.joints, report.clips[0].fps) == (("nose", "middle", "tailbase"), 30)
    with pytest.raises(DataError, match="no such points; found ear"):
        convert(tmp_path / "v.csv", tmp_path / "b", drop=["ear"])
    with pytest.raises(DataError, match="no joint for"):
        convert(tmp_path / "v.csv", tmp_path / "b", map_to="coco17")
    with pytest.raises(ConfigError, match="no such format"):
        convert(tmp_path / "v.csv", tmp_path / "b", format="dlc")
    with pytest.raises(DataError, match="too short"):
        convert(tmp_path / "v.csv", tmp_path / "b", min_frames=100)
    own = {"name": "mouse", "joints": ["tailbase", "nose"], "edges": [["nose", "tailbase"]]}
    (tmp_path / "mouse.json").write_text(json.dumps(own))
    report = convert(tmp_path / "v.csv", tmp_path / "c", skeleton=tmp_path / "mouse.json")
    whole, part = read_motion_file(tmp_path / "v.csv")[0], read_clip(tmp_path / "c" / "v.npz")
    np.testing.assert_array_equal(part.pose, whole.pose[:, [4, 0]])
    assert not report.inferred and (tmp_path / "c" / "skeleton.json").is_file()


def test_the_verb_and_its_exit_codes(tmp_path):
    from typer.testing import CliRunner

    from tokenize_lib.cli.main import app

    run = CliRunner().invoke
    (tmp_path / "in").mkdir()
    dlc(tmp_path / "in" / "v.csv")
    done = run(app, ["pose", "convert", f"{tmp_path}/in", f"{tmp_path}/a", "--fps", "30", "--json"])
    result = json.loads(done.stdout)
    assert (
        done.exit_code == 0
        and result["edges_inferred"]
        and result["clips"][0]["fps"] == 30
        and result["frames"] == T
    )
    (tmp_path / "in" / "cut.npy").write_bytes(b"\x93NUMPY")
    done = run(app, ["pose", "convert", f"{tmp_path}/in", f"{tmp_path}/b"])
    assert done.exit_code == 1 and "cut.npy" in done.stderr and "inferred" in done.stdout
    for wrong in ([f"{tmp_path}/none", f"{tmp_path}/c"], [f"{tmp_path}/in", f"{tmp_path}/a"], [f"{tmp_path}/in", f"{tmp_path}/c", "--strict"],
                  [f"{tmp_path}/in", f"{tmp_path}/c", "--skeleton", "horse"], [f"{tmp_path}/in/cut.npy", f"{tmp_path}/c"]):  # fmt: skip
        done = run(app, ["pose", "convert", *wrong])
        assert (done.exit_code, done.stdout) == (2, "") and "Traceback" not in done.stderr
    assert not (tmp_path / "c").exists()


def test_missing_packages_are_told(tmp_path, monkeypatch):
    sleap_h5(tmp_path / "a.h5")
    c3d_file(tmp_path / "b.c3d")
    for package, file in (("h5py", "a.h5"), ("c3d", "b.c3d")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(DataError, match=r"pip install 'tokenize_lib\[files\]'"):
            read_motion_file(tmp_path / file)


# --- a mouse is a skeleton too --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mouse():
    root = os.environ.get("TOKENIZE_LIB_DATA")
    folder = Path(root or "nowhere", "pose", "mouse_dlc")
    if not folder.is_dir():
        pytest.skip("mouse_dlc is not here: set TOKENIZE_LIB_DATA to a folder that holds it")
    return folder


def test_real_mice(mouse, tmp_path):
    shapes = {
        "deepof_multi.csv": [(98, 14, 2)] * 2,
        "vame_cropped_video.csv": [(750, 6, 2)],
        "dlcanalyzer_EPM_15.csv": [(962, 25, 2)],
    }
    for name, expected in shapes.items():
        clips = read_motion_file(mouse / name)
        assert [c.pose.shape for c in clips] == expected
        assert all(
            np.isfinite(c.pose).all() and 0.8 < c.conf.mean() < 1 for c in clips
        )  # doubtful points are kept
    joints = ["Nose", "Left_ear", "Right_ear", "Left_fhip", "Right_fhip", "Left_bhip", "Right_bhip", "Spine_1", "Center", "Spine_2",
              "Tail_base", "Tail_1", "Tail_2", "Tail_tip"]  # fmt: skip
    with pytest.raises(FormatError, match="14 points of x, y, likelihood"):
        read_motion_file(mouse / "deepof_square_arena.h5")
    (clip,) = read_motion_file(mouse / "deepof_square_arena.h5", skeleton={"joints": joints})
    assert (clip.pose.shape, clip.skeleton.root_joint) == ((451, 14, 2), ("Center",))
    chain = {
        ("Spine_1", "Center"),
        ("Center", "Spine_2"),
        ("Spine_2", "Tail_base"),
        ("Tail_base", "Tail_1"),
        ("Tail_1", "Tail_2"),
        ("Tail_2", "Tail_tip"),
    }
    assert chain <= {(joints[i], joints[j]) for i, j in clip.skeleton.edges}
    assert sniff(mouse / "dlcanalyzer_EPM_labels.csv") is None


def test_a_mouse_becomes_tokens_and_comes_back(tmp_path):
    """The whole way with the command line's defaults, on a body without hips and shoulders."""
    from typer.testing import CliRunner

    from tokenize_lib.cli.main import app

    rng, frames = np.random.default_rng(0), 80
    place = np.array([[9.0, 0], [6, 2], [6, -2], [0, 0], [-7, 0]])
    (tmp_path / "videos").mkdir()
    for n in range(6):
        where = np.cumsum(rng.normal(0, 2, (frames, 2)), 0)[:, None] + 200
        x = (
            place
            + where
            + rng.normal(0, 0.1, (frames, 5, 2))
            + (np.arange(5) == 4)[:, None] * rng.normal(0, 1, (frames, 1, 2))
        )
        rows = [
            ["scorer", *["DLC"] * 15],
            ["bodyparts", *(p for p in PARTS for _ in "xyl")],
            ["coords", *["x", "y", "likelihood"] * 5],
        ]
        rows += [[t, *np.c_[f, np.full(5, 0.99)].ravel()] for t, f in enumerate(x)]
        (tmp_path / "videos" / f"v{n}.csv").write_text("\n".join(",".join(map(str, r)) for r in rows))
    steps = [
        ["convert", "videos", "clips", "--fps", "30"],
        ["prepare", "--data", "clips", "--out", "prepared"],
        ["train", "--data", "prepared", "--out", "run", "-o", "train.max_steps=2", "-o", "model.quantizer.codebook_size=16", "-o", "model.quantizer.settle_rounds=0"],
        ["encode", "--model", "run", "--data", "videos", "--out", "codes"],  # the raw files, with the model's skeleton
        ["decode", "--model", "run", "--data", "codes", "--out", "back"],
    ]  # fmt: skip
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for words in steps:
            done = CliRunner().invoke(app, ["pose", *words, *(["--quiet"] if words[0] != "prepare" else [])])
            assert done.exit_code == 0, (words, done.stdout[-500:], done.stderr[-500:])
    finally:
        os.chdir(here)
    for n in range(6):
        clip, back = read_clip(tmp_path / "clips" / f"v{n}.npz"), read_clip(tmp_path / "back" / f"v{n}.npz")
        assert (
            clip.pose.shape == back.pose.shape
            and np.isfinite(back.pose).all()
            and back.skeleton.joints == tuple(PARTS)
        )


def test_real_bones_are_found_again():
    if "TOKENIZE_LIB_DATA" not in os.environ or local_folder("bandai_namco_1") is None:
        pytest.skip("bandai_namco_1 is not here: set TOKENIZE_LIB_DATA to a folder that holds it")
    motion = load_dataset("bandai_namco_1")
    found = set(cheapest_tree(pair_prices(motion.clips[:40])))
    assert len(found & {tuple(sorted(e)) for e in motion.skeleton.edges}) >= 17  # of 20
