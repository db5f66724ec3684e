"""Run notebooks in a real kernel and store their outputs; leaves out what nbdev_test leaves out."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from fastcore.script import Param, call_parse
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NbCell, extract_directives

os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")  # figure data only, not 4 MB of plotly.js each
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, with a path of this machine


class Client(NotebookClient):
    """Skips cells marked `eval: false` or with a test flag, and the closing export cell."""

    flags = set(get_config().tst_flags.split())

    def skipped(self, cell):
        if cell.cell_type != "code":
            return True
        directives = extract_directives(NbCell(0, dict(cell)), remove=False)
        off = directives.get("eval:", [""])[0].lower() == "false"
        return off or bool(self.flags & directives.keys()) or "nbdev_export(" in cell.source

    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if self.skipped(cell):
            return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def run(path):
    notebook = nbformat.read(path, 4)
    where = {"metadata": {"path": str(path.parent)}}
    Client(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    nbformat.write(notebook, path)
    return path


@call_parse
def main(
    paths: Param("notebooks (default: all of them)", nargs="*", opt=False) = None,
    n_workers: int = 2,  # processes
):
    """Run notebooks and store their outputs"""
    found = [Path(p) for p in paths] if paths else nbglob(as_path=True)
    with ProcessPoolExecutor(n_workers) as pool:
        try:
            for path in pool.map(run, found):
                print("ran", path, flush=True)
        except CellExecutionError as error:
            sys.exit(str(error))
