"""Builds the documents' site: ``python tools/docs/build_site.py``.

Copies the repository's Markdown to ``build/site-source``, adds the pages that are made from the
code, and has zensical build ``build/site``. A link to a file, page or heading that does not exist
is an error.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from site_pages import api_pages, command_page

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["main", "stage"]

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = "build/site-source"
SITE: Final = "build/site"

_ROOTS: Final = ("specs", "tools")
_NOT_PAGES: Final = ("specs/vectors/",)
_LINK: Final = re.compile(r"(!?)\[([^][]*(?:\[[^][]*\][^][]*)*)\]\(([^()\s]+)\)")
_LIGHT: Final = re.compile(r"!\[([^]]*)\]\(([^)]*)-light\.svg\)")


def stage(target: Path) -> None:
    """Write the sources of the site.

    Raises:
        click.ClickException: A page links to a file that does not exist.
    """
    shutil.rmtree(target, ignore_errors=True)
    for page in _pages():
        text = _with_links(page, page.read_text(encoding="utf-8"))
        _write(target, _path_on_site(page.relative_to(ROOT).as_posix()), text)
    shutil.copyfile(ROOT / "specs/.nav.yml", target / ".nav.yml")
    shutil.copyfile(ROOT / "tools/docs/site.css", target / "site.css")
    for path, text in {**api_pages(), "commands.md": command_page()}.items():
        _write(target, path, text)


def _pages() -> Iterator[Path]:
    """Every page of the repository but its README, which the site's front page replaces."""
    yield from (path for path in sorted(ROOT.glob("*.md")) if path.name != "README.md")
    for root in _ROOTS:
        for path in sorted((ROOT / root).rglob("*.md")):
            if not path.relative_to(ROOT).as_posix().startswith(_NOT_PAGES):
                yield path


def _path_on_site(path: str) -> str:
    """The path of a file of the repository on the site."""
    path = path.lower() if "/" not in path else path.removeprefix("specs/")
    return re.sub(r"(^|/)README\.md$", r"\1index.md", path)


def _with_links(page: Path, text: str) -> str:
    """A page with the links of the site. Code and what is not on the site has none."""
    source = page.relative_to(ROOT).as_posix()
    here, there = posixpath.dirname(source), posixpath.dirname(_path_on_site(source))

    def link(match: re.Match[str]) -> str:
        mark, label, to = match.groups()
        if to.startswith(("#", "https:", "http:", "mailto:")):
            return match[0]
        path, hash_sign, anchor = to.partition("#")
        path = posixpath.normpath(posixpath.join(here, path))
        if not (ROOT / path).exists():
            message = f"{source}: no such file: {to}"
            raise click.ClickException(message)
        if mark:
            _copy(ROOT / path)
        elif not path.endswith(".md"):
            return label
        relative = posixpath.relpath(_path_on_site(path), there or ".")
        return f"{mark}[{label}]({relative}{hash_sign}{anchor})"

    blocks = re.split(r"(^```.*?^```$|^(?:    [^\n]*\n?)+)", text, flags=re.MULTILINE | re.DOTALL)
    blocks[::2] = [_LINK.sub(link, block) for block in blocks[::2]]
    text = "".join(blocks)
    # Both pictures; the theme shows the one for its background.
    return _LIGHT.sub(r"![\1](\2-light.svg#only-light)![\1](\2-dark.svg#only-dark)", text)


def _copy(picture: Path) -> None:
    twin = picture.with_name(picture.name.replace("-light.", "-dark."))
    for path in {picture, twin}:
        target = ROOT / SOURCE / _path_on_site(path.relative_to(ROOT).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _write(target: Path, path: str, text: str) -> None:
    file = target / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@click.command(help=__doc__)
def main() -> None:
    """Stage and build."""
    stage(ROOT / SOURCE)
    shutil.rmtree(ROOT / SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)  # noqa: S603 - our own


if __name__ == "__main__":
    main()
