"""Write README.md from nbs/index.ipynb; pictures that its cells drew go to nbs/images/readme-N.png."""

import base64
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "nbs" / "images"
NOTE = "<!-- Made from nbs/index.ipynb by tools/build_readme.py: edit the notebook. -->"
LOCAL_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)]+)\)")
DIRECTIVE = re.compile(r"^#\|\s*(\S+?):?(?:\s+(\S+))?\s*$\n?", re.M)


def from_root(text):
    """Links and pictures as seen from the repository's root instead of from nbs/."""
    return LOCAL_LINK.sub(
        lambda m: m[1].removeprefix("../") + ")" if m[1].startswith("../") else f"nbs/{m[1]})", text
    )


def output(item, pictures):
    """One output as Markdown: a picture, Markdown, or text, whichever says most."""
    data = item.get("data", {})
    if "image/png" in data:
        name = f"readme-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode(data["image/png"])
        alt = data.get("text/plain", "").strip()
        return f"![{'' if alt.startswith('<') else alt}](nbs/images/{name})"
    if "text/markdown" in data:
        return from_root(data["text/markdown"])
    text = item.get("text", data.get("text/plain", "")).rstrip()
    return f"```\n{text}\n```" if text else ""


def parts(cell, pictures):
    """A cell as pieces of Markdown, obeying its `hide`, `echo` and `output` directives."""
    if cell.cell_type == "markdown":
        return [from_root(cell.source)]
    flags = dict(DIRECTIVE.findall(cell.source))
    code = DIRECTIVE.sub("", cell.source).strip()
    if "hide" in flags or flags.get("include") == "false":
        return []
    shown = [f"```python\n{code}\n```"] if code and flags.get("echo") != "false" else []
    return shown + [output(item, pictures) for item in cell.outputs]


def main():
    notebook, pictures = nbformat.read(ROOT / "nbs" / "index.ipynb", 4), {}
    pieces = [NOTE] + [part for cell in notebook.cells for part in parts(cell, pictures) if part]
    (ROOT / "README.md").write_text("\n\n".join(pieces) + "\n", encoding="utf-8")
    for old in IMAGES.glob("readme-*.png"):
        if old.name not in pictures:
            old.unlink()
    for name, content in pictures.items():
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / name).write_bytes(content)


if __name__ == "__main__":
    main()
