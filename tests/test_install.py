"""The installed package: found from anywhere, light to import, complete as a wheel."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = "torch numpy scipy pydantic yaml pooch matplotlib plotly lightning rich typer fastcore nbdev".split()


def python(code, cwd, *, interpreter=sys.executable):
    """What `code` prints as JSON in a fresh interpreter that knows nothing of the repository's folder."""
    done = subprocess.run(
        [interpreter, "-I", "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_brings_nothing_heavy(tmp_path):
    code = f"import json, sys, tokenize_lib; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert python(code, tmp_path) == []


def test_help_does_not_import_the_numerics(tmp_path):
    code = """
import json, sys
from tokenize_lib.cli.main import run
sys.argv = ["tokenize-lib", "--help"]
try:
    run()
except SystemExit as stop:
    assert not stop.code, stop.code
print(json.dumps([m for m in ("torch", "lightning", "scipy", "matplotlib", "plotly") if m in sys.modules]))
"""
    assert python(code, tmp_path) == []


def test_packaged_configs_are_found_from_any_folder(tmp_path):
    code = """
import json
from tokenize_lib.core.config import packaged_configs
from tokenize_lib.pose.skeleton import list_skeletons, load_skeleton
print(json.dumps([packaged_configs("pose"), [load_skeleton(n).name for n in list_skeletons()]]))
"""
    configs, skeletons = python(code, tmp_path)
    assert "pose/seed" in configs
    assert len(skeletons) >= 8


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip would build, made without the network."""
    out = tmp_path_factory.mktemp("wheel")
    code = (
        "import sys; from setuptools import build_meta; sys.argv = ['setup.py']; "
        f"print(build_meta.build_wheel({str(out)!r}))"
    )
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "tokenize_lib").symlink_to(ROOT / "tokenize_lib", target_is_directory=True)
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_module_and_data_file(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "tokenize_lib"
    wanted = {
        p
        for p in package.rglob("*")
        if p.suffix in {".py", ".yaml", ".json"} and "__pycache__" not in p.parts
    }
    assert (
        sorted(p.relative_to(ROOT).as_posix() for p in wanted if p.relative_to(ROOT).as_posix() not in inside)
        == []
    )


def test_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    # the packages that it needs, from the environment of the tests
    (site / "borrowed.pth").write_text(str(Path(pytest.__file__).parents[1]))
    code = """
import json, tokenize_lib
from tokenize_lib.core.config import packaged_configs
print(json.dumps([tokenize_lib.__file__, packaged_configs("pose")]))
"""
    file, configs = python(code, tmp_path, interpreter=tmp_path / "env" / "bin" / "python")
    assert Path(file).is_relative_to(site)
    assert "pose/seed" in configs
