"""The floors of the house, read from the source and held at run time."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tokenize_lib"
FLOOR = {"core": 1, "quantize": 2, "pose": 3, "cluster": 3, "dyad": 3, "hsi": 3, "face": 3, "cli": 4}
HEAVY = set("lightning pytorch_lightning wandb plotly transformers umap hdbscan sklearn ray dask".split())
# what encode() must never pull in: it needs torch, numpy, pydantic and safetensors alone
FORBIDDEN = "lightning wandb plotly transformers scipy matplotlib yaml rich typer fastcore".split()
ABOUT = {
    f"tokenize_lib.core.{m}": {"lightning"} for m in ("loggers", "training")
}  # modules about a heavy library

FILES = {
    ".".join(["tokenize_lib", *p.relative_to(PACKAGE).with_suffix("").parts]): p
    for p in sorted(PACKAGE.rglob("*.py"))
    if p.name not in ("__init__.py", "_modidx.py")
}


def room(module: str) -> str:
    return f"{module}..".split(".")[1]


def imported(module: str, at_import_time: bool) -> set[str]:
    """Modules that a module imports; names imported from a package count as its submodules."""

    def statements(node):
        for child in ast.iter_child_nodes(node):
            if not (
                at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            ):
                yield child
                yield from statements(child)

    names = set()
    for node in statements(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            names |= {source} | {f"{source}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("module", FILES)
def test_a_room_imports_only_from_floors_below(module):
    own = room(module)
    others = {room(m) for m in imported(module, at_import_time=False) if m.startswith("tokenize_lib.")}
    wrong = {r for r in others & FLOOR.keys() - {own} if FLOOR[r] >= FLOOR.get(own, 0)}
    assert not wrong, f"{module} imports from {sorted(wrong)}"


@pytest.mark.parametrize("module", FILES)
def test_nothing_heavy_is_imported_at_import_time(module):
    top = {m.split(".")[0] for m in imported(module, at_import_time=True)}
    assert not top & HEAVY - ABOUT.get(module, set())


def test_modules_do_not_import_in_circles():
    graph = {m: imported(m, at_import_time=True) & FILES.keys() for m in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_the_encode_path_needs_torch_numpy_pydantic_and_safetensors_alone(tmp_path):
    code = (
        "import json, sys, tokenize_lib.pose.tokenizer; "
        f"print(json.dumps([m for m in {FORBIDDEN} if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
