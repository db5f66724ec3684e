"""Build the Sphinx sources of the site, _build/src, from the notebooks."""

import json
import re
import shutil
from importlib import import_module
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import nbformat
import plotly
from execnb.nbio import nb2str, read_nb
from fastcore.script import call_parse
from nbdev import processors
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor

from tokenize_lib.showdoc_table import TableRenderer

CONFIG = get_config()
ROOT = CONFIG.config_path
SITE = CONFIG.doc_host + CONFIG.doc_baseurl + "/"
PLOTLY = "application/vnd.plotly.v1+json"

# Reading order of the navigation; a folder that is not named here follows under its own name.
ROOMS = {
    "core": "Core",
    "quantize": "Quantisers",
    "pose": "Pose",
    "cluster": "Cluster",
    "dyad": "Dyad",
    "hsi": "Hyperspectral",
    "face": "Face",
    "cli": "Command line",
    "experiments": "Experiments",
    "tutorials": "Tutorials",
    "guides": "Guides",
    "": "This site",
}

DIRECTIVE = re.compile(r"^\s*#\|.*\n?", re.M)
OWN_LINK = re.compile(re.escape(SITE) + r"([\w/]+)\.html(?:#([\w.]+))?")
# nbdev links every known name in backticks, so that the length `L` would lead to fastcore's list class
FOREIGN_LINK = re.compile(
    r"\[(`[^`]+`)\]\(https://(?:[\w-]+\.fast\.ai|fastai\.github\.io|answerdotai\.github\.io)[^)]*\)"
)
PAGE_LINK = re.compile(r"(?<=\]\()([\w./-]+)\.ipynb")


class Pages(processors.FilterDefaults):
    """nbdev's processing of a notebook for documentation, as far as this site wants it."""

    def base_procs(self):
        names = "add_show_docs strip_ansi hide_line filter_stream_ rm_export clean_magics hide_ add_links"
        return [getattr(processors, name) for name in names.split()]


def page_name(path):
    """The page of a notebook: its path without the number that orders the folder."""
    return path.with_name(re.sub(r"^\d+[a-z]?_", "", path.name)).as_posix()


def anchor(name):
    """Where a name's entry is: a method's is that of its class, a private name has none."""
    return f"#{name.split('.')[0]}" if name and not name.startswith("_") else ""


def links(text, up):
    """Markdown whose links to names and notebooks lead to pages of the site."""
    text = FOREIGN_LINK.sub(r"\1", text)
    text = OWN_LINK.sub(lambda m: f"{up}{m[1]}.ipynb{anchor(m[2])}", text)
    text = re.sub(r"\]\((?:\.\./)+CONTRIBUTING\.md\)", f"]({up}guides/contributing.md)", text)
    return PAGE_LINK.sub(lambda m: page_name(Path(m[1])) + ".ipynb", text)


def summary(text):
    """A notebook's first cell, with the sentence that is quoted under its title as the page's summary."""
    return re.sub(r"\A(# .+\n+)> (.+)", r"\1{.summary}\n\2", text)


def figure(data, number, up):
    """A plotly figure as HTML; the first one of a page loads the site's only copy of plotly.js."""
    spec = json.dumps(data).replace("</", "<\\/")
    load = f'<script src="{up}_static/plotly.min.js"></script>' if number == 0 else ""
    draw = f"const f={spec};Plotly.newPlot('plotly-{number}',f.data,f.layout,{{responsive:true}})"
    return f'{load}<div id="plotly-{number}" class="plotly-figure"></div><script>{{{draw}}}</script>'


def api_entries(run, module, up):
    """The entries that a run of `show_doc(name)` cells stands for, in the order of the module."""
    names = [re.search(r"^show_doc\(([\w.]+)", cell.source, re.M)[1] for cell in run]
    order = list(vars(module))
    for name in sorted(names, key=lambda name: order.index(name.split(".")[0])):
        text = TableRenderer(attrgetter(name)(module), name=name)._repr_markdown_()
        # marks for the style sheet
        text = text.replace("```python", "{.signature}\n```python", 1)
        text = re.sub(r"^(?=\| (?:Parameter|Method) \|)", "{.api}\n", text, flags=re.M)
        yield nbformat.v4.new_markdown_cell(links(text, up))


def code_cell(cell, figures, up):
    """A code cell without directives, or nothing when only directives were in it."""
    if re.search(r"#\|\s*echo:\s*false", cell.source):
        cell.metadata.setdefault("tags", []).append("remove-input")
    cell.source = DIRECTIVE.sub("", cell.source).strip()
    for output in cell.outputs:
        if PLOTLY in output.get("data", {}):
            output.data = {"text/html": figure(output.data[PLOTLY], len(figures), up)}
            figures.append(output)
    return [cell] if cell.source else []


def is_entry(cell):
    """Did nbdev put this cell in for a function or class?"""
    return cell.cell_type == "code" and re.search(r"^show_doc\(", cell.source, re.M) is not None


def convert(source, target, up):
    """Write one notebook as a page; `up` leads from the page to the site's root."""
    module = re.search(
        r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in read_nb(source).cells), re.M
    )
    module = import_module(f"{CONFIG.lib_name}.{module[1]}") if module else None
    processed = NBProcessor(source, procs=Pages().procs())
    processed.process()
    cells, figures = [], []
    for entries, run in groupby(nbformat.reads(nb2str(processed.nb), 4).cells, is_entry):
        if entries:
            cells += api_entries(run, module, up)
            continue
        for cell in run:
            if cell.cell_type == "markdown":
                cell.source = links(cell.source if cells else summary(cell.source), up)
            cells += code_cell(cell, figures, up) if cell.cell_type == "code" else [cell]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def navigation(pages):
    """One hidden table of contents per folder, in reading order."""
    folders = {page.rpartition("/")[0] for page in pages}
    for folder in [*ROOMS, *sorted(folders - ROOMS.keys())]:
        inside = [page for page in pages if page.rpartition("/")[0] == folder and page != "index"]
        if inside:
            caption = ROOMS.get(folder, folder.capitalize())
            toc = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *inside, "```"]
            yield nbformat.v4.new_markdown_cell("\n".join(toc))


@call_parse
def main():
    """Build the sources of the site in _build/src"""
    out = ROOT / "_build" / "src"
    shutil.rmtree(ROOT / "_build", ignore_errors=True)
    sources = sorted(nbglob(CONFIG.nbs_path, as_path=True))
    pages = [page_name(path.relative_to(CONFIG.nbs_path).with_suffix("")) for path in sources]
    for source, page in zip(sources, pages, strict=True):
        convert(source, out / f"{page}.ipynb", "../" * page.count("/"))

    (out / "guides").mkdir(exist_ok=True)
    shutil.copy(ROOT / "CONTRIBUTING.md", out / "guides" / "contributing.md")
    pages.append("guides/contributing")
    index = nbformat.read(out / "index.ipynb", 4)
    index.cells += navigation(pages)
    nbformat.write(index, out / "index.ipynb")

    if (ROOT / "nbs" / "images").is_dir():
        shutil.copytree(ROOT / "nbs" / "images", out / "images")
    shutil.copytree(ROOT / "docs_theme" / "static", out / "_static")
    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", out / "_static")
    shutil.copy(ROOT / "docs_theme" / "conf.py", out)
