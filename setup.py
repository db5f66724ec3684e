"""Packaging for pip: every setting comes from settings.ini, which nbdev reads too."""

import shlex
from configparser import ConfigParser
from pathlib import Path

import setuptools

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
lib = cfg["lib_path"]


def words(key):
    return shlex.split(cfg.get(key, ""))


EXTRAS = ("files", "cluster", "dyad", "hubert", "video", "export", "ray")
extras = {name: words(f"{name}_requirements") for name in EXTRAS}

setuptools.setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=f">={cfg['min_python']}",
    packages=setuptools.find_packages(include=[lib, f"{lib}.*"]),
    package_data={lib: words("package_data")},
    install_requires=words("requirements"),
    extras_require=extras | {"dev": sum(extras.values(), words("dev_requirements"))},
    entry_points={"console_scripts": words("console_scripts"), "nbdev": [f"{lib}={lib}._modidx:d"]},
)
