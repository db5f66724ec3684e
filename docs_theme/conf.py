"""Sphinx settings of the site; tools/build_docs.py copies this file beside the pages."""

import re
from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.logging import getLogger

project = "tokenize_lib"
author = "The tokenize_lib authors"
copyright = f"2026, {author}"

extensions = ["myst_nb", "sphinx_copybutton"]
nb_execution_mode = "off"  # pages show what the notebooks stored
nb_merge_streams = True
nb_render_markdown_format = "myst"  # outputs may hold tables
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# skipped heading levels, outputs that only Jupyter can show, examples with an ellipsis that is no valid JSON
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "tokenize_lib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', SFMono-Regular, 'Cascadia Code', Menlo, 'DejaVu Sans Mono', monospace"
html_theme_options = {
    "light_css_variables": {
        "font-stack": FONT,
        "font-stack--monospace": MONO,
        "color-brand-primary": "#0b7285",
        "color-brand-content": "#0b7285",
        "color-brand-visited": "#0b7285",
        "color-background-secondary": "#f7f9fa",
        "color-inline-code-background": "#f1f4f5",
    },
    "dark_css_variables": {
        "color-brand-primary": "#66d9e8",
        "color-brand-content": "#66d9e8",
        "color-brand-visited": "#66d9e8",
        "color-background-primary": "#13171a",
        "color-background-secondary": "#181d21",
        "color-inline-code-background": "#20272c",
    },
}


# what docutils does not know, in words that it knows
TEX = {
    r"\\[dt]?frac(\w)(\w)": r"\\frac{\1}{\2}",
    r"\\dots\b": r"\\ldots",
    r"\\bm\b": r"\\boldsymbol",
    r"\\big\b": r"\\bigl",
}


def _mathml(node, block):
    tex = node.astext()
    for pattern, known in TEX.items():
        tex = re.sub(pattern, known, tex)
    try:
        return tex2mathml(tex, as_block=block)
    except MathError as error:
        getLogger(__name__).warning("formula %r: %s", tex, error, location=node)
        return f"<code>{escape(tex)}</code>"


def _inline(self, node):
    self.body.append(" ".join(_mathml(node, False).split()))
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(_mathml(node, True))
    raise nodes.SkipNode


def setup(app):
    """Formulas as MathML, which browsers set themselves: no script, no network."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
