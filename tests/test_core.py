"""What the notebooks of `core` do not show: killed processes, full and locked disks, damaged bytes, random input."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from tokenize_lib.core.checkpoint import PretrainedModel
from tokenize_lib.core.compare import collect_metrics, comparison_table
from tokenize_lib.core.config import (
    Config,
    LoggingConfig,
    TrainConfig,
    load_config,
    merge,
    packaged_configs,
    to_yaml,
)
from tokenize_lib.core.errors import ConfigError, DataError, FormatError, TokenizeError
from tokenize_lib.core.files import (
    atomic_folder,
    atomic_write,
    hash_arrays,
    read_json,
    read_npz,
    settled,
    write_json,
    write_npz,
)
from tokenize_lib.core.report import Section, write_report
from tokenize_lib.core.run import Run, read_log, step_seed
from tokenize_lib.core.yaml import dump_yaml, parse_yaml

fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def python(code, *args, **env):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | env)


@contextmanager
def without_permission(folder):
    """Nobody may write into `folder`; root loses its privilege meanwhile, or it could."""
    root = os.geteuid() == 0
    folder.chmod(0o500)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


# --- files


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    code = """
import os, signal, sys
from tokenize_lib.core.files import atomic_write
with atomic_write(sys.argv[1]) as f:
    f.write("new " * 100_000)
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "a.txt").write_text("old")
    assert python(code, tmp_path / "a.txt").returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_process_killed_while_replacing_a_folder_leaves_a_whole_one(tmp_path):
    code = """
import os, signal, sys
from tokenize_lib.core import files
rename, count = os.replace, [int(sys.argv[2])]
def killing(a, b):
    if count[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
    count[0] -= 1
    rename(a, b)
files.os.replace = killing
with files.atomic_folder(sys.argv[1], replaces=["a", "b"]) as d:
    (d / "a").write_text("new")
    (d / "b").write_text("new")
"""
    folder = tmp_path / "model"
    for renames_done in (0, 1):
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder) as d:
            (d / "a").write_text("old")
            (d / "b").write_text("old")
        assert python(code, folder, renames_done).returncode == -signal.SIGKILL
        assert {p.read_text() for p in settled(folder).iterdir()} == {"old"}
        with atomic_folder(folder, replaces=["a", "b"]) as d:
            (d / "a").write_text("next")
        assert [p.name for p in folder.iterdir()] == ["a"]
        assert settled(folder) == folder


def test_a_folder_without_permission_is_a_data_error(tmp_path):
    (tmp_path / "a.json").write_text('{"old": 1}')
    with without_permission(tmp_path):
        for write in (
            lambda: write_json(tmp_path / "a.json", {"new": 1}),
            lambda: write_npz(tmp_path / "a.npz", x=np.zeros(2)),
            lambda: Run.start(tmp_path / "run"),
            lambda: atomic_folder(tmp_path / "model").__enter__(),
        ):
            with pytest.raises(DataError, match="cannot be written"):
                write()
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_a_data_error_and_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the full disk: the same error, at the same place."""
    write_npz(tmp_path / "a.npz", x=np.zeros(2))
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(DataError, match="a.npz: cannot be written"):
            write_npz(tmp_path / "a.npz", x=np.random.default_rng(0).random(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_npz(tmp_path / "a.npz")["x"].shape == (2,)
    assert len(list(tmp_path.iterdir())) == 1


def test_errors_of_the_block_pass_through_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_write(tmp_path / "a.txt"):
        open(tmp_path / "elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_nan_is_refused_and_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "m.json", {"mpjpe": 2.7})
    for bad in (float("nan"), np.float32("inf"), np.array([1.0, np.nan])):
        with pytest.raises(DataError, match="layers.1.*not a finite number"):
            write_json(tmp_path / "m.json", {"layers": [0.0, bad]})
    assert read_json(tmp_path / "m.json") == {"mpjpe": 2.7}


def test_every_truncation_of_json_is_a_format_error(tmp_path):
    text = json.dumps({"a": [1, 2.5, None, "é"], "b": {"c": True}}, ensure_ascii=False).encode()
    for n in range(len(text)):
        (tmp_path / "cut.json").write_bytes(text[:n])
        with pytest.raises(FormatError, match="cut.json"):
            read_json(tmp_path / "cut.json")


@pytest.mark.parametrize("text", ["[NaN]", "[" * 100_000, "\ufeff{}", "{'a': 1}"])
def test_what_is_not_json_is_a_format_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError):
        read_json(tmp_path / "a.json")


POSE = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)


@fuzz
@given(st.data())
def test_a_damaged_npz_is_a_format_error_or_harmless(tmp_path, data):
    file = tmp_path / "clip.npz"
    write_npz(file, pose=POSE)
    whole = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=3)):
        whole[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) - 1, len(whole) // 2, 3, 0]))])
    try:
        found = read_npz(file, required=["pose"])
    except FormatError as e:
        assert "clip.npz" in str(e)
    else:
        np.testing.assert_array_equal(found["pose"], POSE)


def test_an_array_with_a_damaged_header_is_a_format_error(tmp_path):
    """NumPy reads headers of old files with Python's tokenizer, which has an error of its own for brackets left open."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3, 2L, }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as z:
        z.writestr("pose.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(96))
    with pytest.raises(FormatError, match="a.npz: damaged"):
        read_npz(tmp_path / "a.npz")


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.savez(tmp_path / "a.npz", pose=np.array([Bomb()], dtype=object))
    with pytest.raises(FormatError, match="allow_pickle"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


arrays = st.dictionaries(st.text(max_size=3), st.lists(st.integers(-9, 9), max_size=4), max_size=3)


@fuzz
@given(arrays, arrays)
def test_hashes_are_equal_exactly_when_the_arrays_are(a, b):
    a, b = ({k: np.array(v, np.int16) for k, v in d.items()} for d in (a, b))
    same = a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    assert (hash_arrays(a) == hash_arrays(b)) == same


# --- config


class Inner(Config):
    factor_l: int = Field(4, ge=1)
    names: list[str] = Field(default_factory=list)


class Outer(Config):
    inner: Inner = Field(default_factory=Inner)
    stages: list[Inner] = Field(default_factory=list)
    widths: dict[str, int] = Field(default_factory=dict)
    train: TrainConfig = Field(default_factory=TrainConfig)


words = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x, max_size=3),
    max_leaves=6,
)


@fuzz
@given(words, values, st.sampled_from(["", "inner.", "train.", "train.optimizer."]))
def test_an_unknown_key_is_named_wherever_it_stands(key, value, place):
    owner = {"": Outer, "inner.": Inner, "train.": TrainConfig, "train.optimizer.": None}[place]
    known = set((owner or TrainConfig.model_fields["optimizer"].annotation).model_fields) | {"base"}
    if key in known:
        return
    nested = {key: value}
    for part in reversed(place.split(".")[:-1]):
        nested = {part: nested}
    with pytest.raises(ConfigError, match="unknown key") as e:
        load_config(Outer, nested)
    assert e.value.field == place + key


@fuzz
@given(st.dictionaries(words | st.sampled_from(list(Outer.model_fields)), values, max_size=4))
def test_random_settings_are_accepted_or_a_config_error(source):
    try:
        cfg = load_config(Outer, source)
    except ConfigError as e:
        assert str(e)
    else:
        assert isinstance(cfg, Outer)


@fuzz
@given(st.text(max_size=40) | st.tuples(words, st.text(max_size=20)).map("=".join))
def test_random_overrides_are_accepted_or_a_config_error(text):
    try:
        load_config(Outer, None, [text])
    except ConfigError as e:
        assert str(e)


@fuzz
@given(st.text(max_size=60))
def test_random_text_is_yaml_or_a_config_error(text):
    try:
        parse_yaml(text)
    except ConfigError as e:
        assert "not valid YAML" in str(e)


@fuzz
@given(
    st.builds(
        TrainConfig,
        amp=st.sampled_from(["off", "fp16", "bf16"]),
        grad_clip_norm=st.none() | st.floats(1e-300, 1e300),
        max_steps=st.none() | st.integers(1, 10**12),
        seed=st.integers(0, 2**40),
    )
)
def test_settings_survive_yaml_to_the_last_digit(cfg):
    assert load_config(TrainConfig, parse_yaml(to_yaml(cfg))) == cfg


@fuzz
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["{!r}", "{:e}", "{:g}", "{:.3E}"]))
def test_numbers_are_read_as_python_reads_them(x, form):
    text = form.format(x)
    assert float(parse_yaml(text)) == float(text)
    assert not isinstance(parse_yaml(text), str)


@fuzz
@given(st.text(max_size=6) | st.from_regex(r"[-+]?[0-9._]{0,3}[eE:]?[-+]?[0-9]{0,2}", fullmatch=True))
def test_text_stays_text_through_yaml(text):
    if all(c.isprintable() for c in text):
        assert parse_yaml(dump_yaml({"a": text, "b": [text]})) == {"a": text, "b": [text]}


@pytest.mark.parametrize(
    "text", ["yes", "off", "on", "12x", "1:30", "0x10", "2024-01-01", "017", "1.2.3", "1e", "e3"]
)
def test_what_only_resembles_a_number_or_boolean_stays_text(text):
    assert parse_yaml(text) == text


trees = st.recursive(st.integers(0, 3), lambda x: st.dictionaries(st.sampled_from("abc"), x, max_size=3))
roots = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@fuzz
@given(roots, roots)
def test_merge_keeps_both_and_the_second_wins(a, b):
    before = json.dumps([a, b])
    both = merge(a, b)
    assert merge(a, {}) == merge({}, a) == merge(a, a) == a
    assert both.keys() == a.keys() | b.keys()
    assert merge(both, b) == both
    assert json.dumps([a, b]) == before


@pytest.mark.parametrize(
    "override, message",
    {
        "inner.factor_l=0": "inner.factor_l: found 0; allowed at least 1",
        "inner.factor_l=4.5": "inner.factor_l: found 4.5; allowed a whole number",
        "inner.factor_l=true": "inner.factor_l: found True; allowed a whole number",
        "inner.factor_l='4'": "inner.factor_l: found '4'; allowed a whole number",
        "inner.names=[1]": "inner.names.0: found 1; allowed text",
        "stages=[{factor: 2}]": "stages.0.factor: unknown key; allowed factor_l, names. Did you mean factor_l?",
        "widths={a: x}": "widths.a: found 'x'; allowed a whole number",
        "train.optimizer=adamw": "train.optimizer: found 'adamw'; allowed a mapping",
        "train.optimzer.lr=1": "train.optimzer: unknown key",
        "train.amp=true": "train.amp: found True; allowed 'off', 'fp16' or 'bf16'",
        "train.grad_clip_norm=none": "found 'none'; allowed a number or null",
        "train.optimizer.betas=0.9": "train.optimizer.betas: found 0.9; allowed a list",
        "lr": "not an override; found 'lr'; allowed dotted.key=value",
        "a..b=1": "not an override",
        "train.seed=[1": "not valid YAML",
    }.items(),
)
def test_messages(override, message):
    with pytest.raises(ConfigError) as e:
        load_config(Outer, None, [override])
    assert message in str(e.value)
    assert "overrides" in str(e.value)


def test_bases_form_a_chain_and_the_file_at_fault_is_named(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("inner: {factor_l: 2, names: [x, y]}\ntrain: {seed: 1}\n")
    (tmp_path / "sub" / "b.yaml").write_text("base: ../a.yaml\ninner: {names: [z]}\n")
    (tmp_path / "c.yaml").write_text("base: sub/b.yaml\ntrain: {seed: 3}\n")
    cfg = load_config(Outer, tmp_path / "c.yaml", ["train.seed=4", "train.seed=5"])
    assert (cfg.inner.factor_l, cfg.inner.names, cfg.train.seed) == (2, ["z"], 5)

    (tmp_path / "a.yaml").write_text("inner: {factor_l: two}\n")
    with pytest.raises(ConfigError, match="a.yaml: inner.factor_l: found 'two'"):
        load_config(Outer, tmp_path / "c.yaml")
    (tmp_path / "a.yaml").write_text("base: c.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(Outer, tmp_path / "c.yaml")
    (tmp_path / "a.yaml").unlink()
    with pytest.raises(ConfigError, match="a.yaml: cannot be read"):
        load_config(Outer, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "text", ["- 1\n- 2", "just text", "42", "base: [a]", "base: 3", "base: pose/nowhere"]
)
def test_a_file_that_holds_no_settings_is_a_config_error(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(Outer, tmp_path / "a.yaml")


def test_a_binary_file_or_a_folder_is_a_config_error(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.yaml").mkdir()
    for source in (
        tmp_path / "a.yaml",
        tmp_path / "b.yaml",
        str(tmp_path / "none.yaml"),
        "",
        ".",
        "../configs",
        "/",
    ):
        with pytest.raises(ConfigError):
            load_config(Outer, source)


def test_an_unknown_room_has_no_configs():
    assert packaged_configs("nowhere") == []


def test_defaults_of_the_specification():
    train, logging = TrainConfig(), LoggingConfig()
    assert (train.seed, train.batch_size, train.num_workers, train.max_epochs, train.amp) == (
        42,
        16,
        8,
        100,
        "bf16",
    )
    assert (train.optimizer.lr, train.optimizer.weight_decay, train.grad_clip_norm) == (3e-4, 1e-2, 1.0)
    assert (train.scheduler.name, train.scheduler.warmup_steps) == ("cosine", 2000)
    assert (logging.log_every_steps, logging.eval_every_steps, logging.save_every_steps) == (50, 2000, 2000)


# --- runs


def test_force_removes_what_a_run_writes_and_nothing_else(tmp_path):
    run = Run.start(tmp_path / "a", TrainConfig(), seed=1)
    run.finish({"mpjpe": 1.0})
    (run.checkpoints / "last.ckpt").write_text("x")
    (run.path / "prepared").mkdir()
    (run.path / "prepared" / "clip.npz").write_text("data")
    again = Run.start(tmp_path / "a", TrainConfig(), force=True)
    assert not again.is_finished
    assert list(again.checkpoints.iterdir()) == []
    assert (again.path / "prepared" / "clip.npz").read_text() == "data"


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"force": True}])
def test_a_folder_that_is_not_a_run_is_never_touched(tmp_path, how):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "environment.json").write_text('["not ours"]')
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="not those of a run"):
        Run.start(tmp_path, **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_resume_and_force_together_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="exclude each other"):
        Run.start(tmp_path / "a", resume=True, force=True)


def test_a_file_in_the_place_of_a_run_is_a_data_error(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        Run.start(tmp_path / "a")


def test_resume_starts_where_nothing_is_and_mends_what_a_dead_process_left(tmp_path):
    run = Run.start(tmp_path / "a", TrainConfig(), seed=1, resume=True)
    run.log(step=1)
    with open(run.path / "log.jsonl", "a") as f:
        f.write('{"step": 2, "lo')
    (run.path / ".metrics.json.ab12.tmp").write_text("{")
    (run.path / ".best.ab12.tmp").mkdir()
    environment = (run.path / "environment.json").read_bytes()

    run = Run.start(tmp_path / "a", TrainConfig(), seed=1, resume=True)
    run.log(step=2)
    assert [r["step"] for r in read_log(run.path) if "step" in r] == [1, 2]
    assert not list(run.path.glob(".*"))
    assert (run.path / "environment.json").read_bytes() == environment
    with pytest.raises(ConfigError, match="an unfinished run"):
        Run.start(tmp_path / "a")


def test_a_start_killed_at_any_write_can_be_resumed(tmp_path):
    code = """
import os, signal, sys
from tokenize_lib.core import files, run
from tokenize_lib.core.config import TrainConfig
rename, count = os.replace, [int(sys.argv[2])]
def killing(a, b):
    if count[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
    count[0] -= 1
    rename(a, b)
files.os.replace = killing
run.Run.start(sys.argv[1], TrainConfig(), resume=True)
"""
    killed = [python(code, tmp_path / "a", writes).returncode for writes in (0, 1, 99)]
    assert killed == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert load_config(TrainConfig, tmp_path / "a" / "config.yaml") == TrainConfig()


def test_every_truncation_of_a_log_gives_its_first_lines(tmp_path):
    rows = [{"step": i, "loss": 0.5} for i in range(3)]
    text = "".join(json.dumps(r) + "\n" for r in rows).encode()
    for n in range(len(text) + 1):
        (tmp_path / "log.jsonl").write_bytes(text[:n])
        found = read_log(tmp_path)
        assert found == rows[: len(found)]
        assert len(found) >= text[:n].count(b"\n")


def test_a_loss_that_is_nan_is_logged(tmp_path):
    run = Run.start(tmp_path / "a")
    run.log(loss=float("nan"), terms={"pos": np.float32("inf")})
    assert {k: v for k, v in read_log(run.path)[-1].items() if k != "time"} == {
        "loss": "nan",
        "terms": {"pos": "inf"},
    }


def test_say_speaks_on_standard_error_only(tmp_path, capfd):
    run = Run.start(tmp_path / "a")
    run.say("codebook [2] is dead")
    out, err = capfd.readouterr()
    assert out == "" and "codebook [2] is dead" in err
    run.quiet = True
    run.say("nothing")
    assert capfd.readouterr().err == ""
    assert [r["message"] for r in read_log(run.path) if r.get("event") == "say"] == [
        "codebook [2] is dead",
        "nothing",
    ]


def test_step_seeds_do_not_depend_on_the_process():
    code = "from tokenize_lib.core.run import step_seed; print(step_seed(42, 3, 700))"
    assert {int(python(code, PYTHONHASHSEED=s).stdout) for s in ("1", "2")} == {step_seed(42, 3, 700)}


# --- checkpoints


class Tiny(PretrainedModel, torch.nn.Module):
    model_name = "tiny"

    def __init__(self, dim=4, dtype="float32"):
        super().__init__()
        self.config = {"dim": dim, "dtype": dtype}
        self.weight = torch.nn.Parameter(torch.randn(dim, dim).to(getattr(torch, dtype)))
        self.register_buffer("initialised", torch.tensor(True))
        self.register_buffer("empty", torch.zeros(0, 3))

    def to_config(self):
        return dict(self.config)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_model_comes_back_bit_by_bit(tmp_path, dtype):
    model = Tiny(dtype=dtype)
    model.save_pretrained(tmp_path / "m")
    back = Tiny.from_pretrained(tmp_path / "m")
    assert back.content_hash() == model.content_hash() == read_json(tmp_path / "m" / "config.json")["hash"]
    for k, v in model.state_dict().items():
        assert torch.equal(v, back.state_dict()[k]) and v.dtype == back.state_dict()[k].dtype


@fuzz
@given(st.data())
def test_a_damaged_model_is_a_format_error_or_harmless(tmp_path, data):
    torch.manual_seed(0)
    model = Tiny()
    model.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    whole = bytearray(file.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) - 1, 8, 0]))])
    try:
        back = Tiny.from_pretrained(tmp_path / "m")
    except FormatError as e:
        assert str(tmp_path) in str(e)
    else:
        assert back.content_hash() == model.content_hash()
    finally:
        shutil.rmtree(tmp_path / "m")


def test_a_model_with_a_setting_json_cannot_hold_writes_nothing(tmp_path):
    model = Tiny()
    model.config["dim"] = float("nan")
    with pytest.raises(DataError, match="config.dim: not a finite number"):
        model.save_pretrained(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_the_identity_of_a_model_outlives_a_new_setting(tmp_path):
    """A later version adds a field to the settings: the same weights are still the same tokenizer."""
    model = Tiny()
    model.save_pretrained(tmp_path / "m")

    class Later(Tiny):
        def to_config(self):
            return self.config | {"added_later": None}

        @classmethod
        def from_config(cls, config):
            return cls(config["dim"], config["dtype"])

    assert Later.from_pretrained(tmp_path / "m").content_hash() == model.content_hash()


def test_a_class_without_its_three_parts_cannot_be_built():
    class Half(PretrainedModel, torch.nn.Module):
        model_name = "half"

    with pytest.raises(TypeError, match="abstract"):
        Half()


# --- comparisons and reports


@pytest.mark.parametrize("text", ['{"mpjpe": NaN}', '{"mpjpe": 3.', "[1]", ""])
def test_a_broken_run_is_listed_and_the_rest_compared(tmp_path, text):
    for i in range(3):
        Run.start(tmp_path / f"r{i}", TrainConfig(seed=i)).finish({"mpjpe": float(i)})
    (tmp_path / "r1" / "metrics.json").write_text(text)
    (tmp_path / "r2" / "config.yaml").write_text("seed: [")
    rows = collect_metrics([tmp_path / "r0", tmp_path / "r1", tmp_path / "r2" / "metrics.json"])
    assert [row["run"] for row in rows] == ["r0", "r1", "r2"]
    assert ["problem" in row for row in rows] == [False, True, True]
    for fmt in ("markdown", "csv", "html"):
        assert "r1" in comparison_table(tmp_path, fmt)


def test_an_evaluation_has_the_settings_of_its_run(tmp_path):
    for l in (2, 4):
        run = Run.start(tmp_path / f"l{l}", TrainConfig(batch_size=l))
        write_json(run.path / "eval" / "metrics.json", {"mpjpe": l / 2})
    rows = collect_metrics([tmp_path / "l2" / "eval", tmp_path / "l4" / "eval"])
    assert [(r["run"], r["batch_size"], r["mpjpe"]) for r in rows] == [
        ("l2/eval", 2, 1.0),
        ("l4/eval", 4, 2.0),
    ]


def test_a_metric_and_a_setting_of_one_name_keep_apart(tmp_path):
    for seed in (0, 1):
        Run.start(tmp_path / f"s{seed}", Outer(train=TrainConfig(seed=seed))).finish({"seed": 7})
    assert [(r["train.seed"], r["seed"]) for r in collect_metrics(tmp_path)] == [(0, 7), (1, 7)]


def test_markup_in_data_stays_text(tmp_path):
    write_report(tmp_path / "r.html", "<script>", [Section("<b>", "a <i> b", [{"<u>": "<s>|"}])])
    page = (tmp_path / "r.html").read_text()
    assert not any(tag in page for tag in ("<script>", "<b>", "<i>", "<u>", "<s>"))


def test_all_errors_are_value_errors_a_caller_can_catch():
    assert {e.__base__ for e in (DataError, ConfigError, FormatError)} == {TokenizeError}
    assert issubclass(TokenizeError, ValueError)
