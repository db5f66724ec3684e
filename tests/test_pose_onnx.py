"""Exported graphs give the model's codes and poses, for every length, alone and in a batch, and need no PyTorch."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer.testing

from tokenize_lib.cli.main import app
from tokenize_lib.core.config import merge
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.pose.clips import Clip, write_clip
from tokenize_lib.pose.synthetic import synthetic_motion
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import build_tokenizer, processed, resolve_config

for package in ("onnx", "onnxscript", "onnxslim", "onnxruntime"):
    pytest.importorskip(package, reason="needs pip install 'tokenize_lib[export]'")

from tokenize_lib.pose.onnx import TOLERANCE, build_graphs, compare, export_onnx, random_clips
from tokenize_lib.pose.onnx_runtime import OnnxPoseTokenizer

SMALL = {
    "model": {
        "d_model": 32,
        "encoder": {"latent_dilations": [1]},
        "quantizer": {"codebook_size": 64, "code_dim": 8},
    }
}
PER_JOINT = merge(SMALL, {"model": {
    "linear_path": False, "downsample": {"factor_l": 8, "space": "joints"},
    "encoder": {"token_latent_mode": "per_joint", "latent_dilations": []},
    "quantizer": {"codebook_size": 8, "noise_feedback": 0, "beam_width": 1, "refine_rounds": 0},
    "decoder": {"upsample_mode": "upsample_conv"},
}})  # fmt: skip


def tokenizer_of(settings, motion, folder):
    """Untrained, but with latents and codebooks that have something to say."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(resolve_config(motion, settings), motion, motion.clips)
    seen = processed(tokenizer, motion.clips)
    tokenizer.network.fit([s.x for s in seen], [s.conf for s in seen])
    torch.nn.init.normal_(tokenizer.network.encoder.to_code.weight, std=0.3)
    torch.nn.init.normal_(tokenizer.network.decoder.head.weight, std=0.3)
    for layer in tokenizer.quantizer.layers:
        layer.embed.normal_(std=0.5)
    tokenizer.save_pretrained(folder)
    return PoseTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def motion():
    return synthetic_motion(8, seed=5, frames=(20, 60), dropout=0)


@pytest.fixture(scope="module")
def exported(motion, tmp_path_factory):
    """A tokenizer, its graphs' folder, and what the export said."""
    folder = tmp_path_factory.mktemp("onnx")
    tokenizer = tokenizer_of(SMALL, motion, folder / "model")
    return tokenizer, folder / "graphs", export_onnx(folder / "model", folder / "graphs", motion.clips)


def test_codes_are_equal_and_poses_close_on_random_and_given_clips(exported, motion):
    about = exported[2]
    assert about["parity"]["clips"] > len(motion.clips)
    assert about["parity"]["tokens"] > 500
    assert about["parity"]["codes_differ"] == 0
    assert about["parity"]["max_error"] < TOLERANCE


def test_tokens_per_joint_and_another_factor_export_too(motion, tmp_path):
    tokenizer = tokenizer_of(PER_JOINT, motion, tmp_path)
    found = compare(tokenizer, build_graphs(tokenizer), random_clips(tokenizer, long=6))
    assert found["codes_differ"] == 0 and found["max_error"] < TOLERANCE


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8, 9, 61])
def test_every_length_comes_back(exported, T):
    tokenizer, folder, _ = exported
    pose = np.random.default_rng(T).normal(size=(T, 17, 3)).cumsum(0).astype(np.float32)
    tok, clip = OnnxPoseTokenizer(folder, threads=1), Clip(pose, fps=30.0, id="x")
    codes = tok.encode(clip)
    assert codes == tokenizer.encode(clip)
    assert tok.decode(codes).shape == pose.shape
    np.testing.assert_allclose(tok.decode(codes), tokenizer.decode(codes), atol=1e-4)


def test_raw_clips_with_gaps_confidence_and_another_rate(exported, motion):
    tokenizer, folder, _ = exported
    tok, pose = OnnxPoseTokenizer(folder), motion.clips[0].pose.copy()
    pose[5:9, 3] = np.nan
    conf = np.ones((*pose.shape[:2], 1), np.float32)
    conf[10:12, 4] = 0
    for clip in (Clip(pose, fps=30.0), Clip(pose, conf, 30.0), Clip(pose, conf, 25.0), Clip(pose)):
        codes = tokenizer.encode(clip)
        assert tok.encode(clip) == codes
        np.testing.assert_allclose(tok.decode(codes), tokenizer.decode(codes), atol=1e-4)
    several = tok.encode(motion.clips[:3])
    assert several == tokenizer.encode(motion.clips[:3]) and len(tok.decode(several)) == 3


def test_first_layers_decode_alone(exported, motion):
    tokenizer, folder, _ = exported
    codes, tok = tokenizer.encode(motion.clips[0]), OnnxPoseTokenizer(folder)
    for n in (1, 2):
        np.testing.assert_allclose(tok.decode(codes, n), tokenizer.decode(codes, n), atol=1e-4)
    with pytest.raises((ConfigError, DataError), match="num_codebooks"):
        tok.decode(codes, 4)


def test_foreign_codes_and_foreign_motion_are_refused(exported, motion):
    _, folder, _ = exported
    tok = OnnxPoseTokenizer(folder)
    with pytest.raises(FormatError, match="another tokenizer"):
        tok.decode(
            replace(tok.encode(motion.clips[0]), tokenizer={"name": "pose_tokenizer", "hash": "0" * 64})
        )
    with pytest.raises(DataError, match="pose"):
        tok.encode(np.zeros((5, 3, 3), np.float32))


def test_graphs_say_what_they_are(exported):
    tokenizer, folder, _ = exported
    facts = OnnxPoseTokenizer(folder).facts
    assert facts["tokenizer"] == tokenizer.name
    assert facts["skeleton"] == tokenizer.skeleton.to_dict()
    assert facts["settings"] == tokenizer.config.model_dump(mode="json")
    assert (facts["fps"], facts["factor_l"], facts["codebook_sizes"]) == (30.0, 4, [64, 64, 64])


def test_no_pytorch_is_needed(exported, tmp_path):
    code = (
        "import sys, numpy as np; from tokenize_lib.pose.onnx_runtime import OnnxPoseTokenizer; "
        f"tok = OnnxPoseTokenizer({str(exported[1])!r}); codes = tok.encode(np.zeros((9, 17, 3), np.float32)); "
        "print(tok.decode(codes).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(9, 17, 3) False"


def test_a_graph_that_differs_is_not_written(exported, motion, tmp_path, monkeypatch):
    tokenizer, folder, _ = exported
    graphs = {f.name: f.read_bytes() for f in folder.iterdir()}
    tokenizer.save_pretrained(tmp_path / "model")
    changed = PoseTokenizer.from_pretrained(tmp_path / "model")
    changed.quantizer.layers[0].embed += 0.2
    changed.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("tokenize_lib.pose.onnx.build_graphs", lambda tokenizer: graphs)
    with pytest.raises(ConfigError, match="do not compute what the model does"):
        export_onnx(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "torn", "foreign", "mixed"])
def test_damaged_exports_are_refused(exported, tmp_path, damage):
    import onnx

    folder = tmp_path / "graphs"
    folder.mkdir()
    for f in exported[1].iterdir():
        (folder / f.name).write_bytes(f.read_bytes())
    decoder = folder / "decoder.onnx"
    if damage == "missing":
        decoder.unlink()
    elif damage == "torn":
        decoder.write_bytes(decoder.read_bytes()[:1000])
    else:
        graph = onnx.load(decoder)
        props = {p.key: p.value for p in graph.metadata_props}
        other = json.dumps({"name": "pose_tokenizer", "hash": "1" * 64})
        onnx.helper.set_model_props(graph, {} if damage == "foreign" else props | {"tokenizer": other})
        onnx.save(graph, decoder)
    with pytest.raises(FormatError, match="decoder.onnx"):
        OnnxPoseTokenizer(folder)


def test_command_line(exported, motion, tmp_path, monkeypatch):
    tokenizer, graphs = exported[0], {f.name: f.read_bytes() for f in exported[1].iterdir()}
    monkeypatch.setattr(
        "tokenize_lib.pose.onnx.build_graphs", lambda tokenizer: graphs
    )  # which takes its time
    tokenizer.save_pretrained(tmp_path / "model")
    for c in motion.clips[:2]:
        write_clip(tmp_path / "clips" / f"{c.id}.npz", replace(c, skeleton=motion.skeleton))
    run, out = typer.testing.CliRunner(), tmp_path / "graphs"
    command = ["pose", "export", "--model", str(tmp_path / "model"), "--out", str(out), "--onnx"]
    done = run.invoke(app, [*command, "--data", str(tmp_path / "clips"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parity"]["codes_differ"] == 0
    assert sorted(f.name for f in out.iterdir()) == ["decoder.onnx", "encoder.onnx"]
    assert run.invoke(app, command).exit_code == 2  # not over an export that is there
