"""What the documentation's site has beside the pages of docs/ (a hook of MkDocs; see mkdocs.yml).

- README.md, SECURITY.md, CONTRIBUTING.md and CHANGELOG.md become pages, and what a page links
  outside of docs/ is served as a file. Links between them are made to fit.
- python.md is made from the docstrings of all public names.
- The decisions are a part of the navigation.

`python tools/docs_site.py FOLDER VERSION` builds a version below FOLDER, and lists it in
versions.json for the selector on each page.
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = "fuploader_dagster"
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
"""Pages outside of docs/, and what they are called on the site."""
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    titles = [(path, _title(path)) for path in sorted((ROOT / "docs/decisions").glob("*.md"))]
    decisions = [{title: f"decisions/{path.name}"} for path, title in titles]
    config.nav[-1]["How it works"].append({"Decisions": decisions})
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File  # noqa: PLC0415  the rest runs without it

    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=_linked(text, source)))
    files.append(File.generated(config, "python.md", content=_python()))
    for path in sorted(_linked_files()):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.generated_by is not None:
        return markdown
    return _linked(markdown, f"docs/{page.file.src_uri}")


def _linked(text: str, source: str) -> str:
    """A page's text with links to where things are on the site; folders of code are not there."""
    here = posixpath.dirname(_on_site(source)) or "."

    def link(match: re.Match[str]) -> str:
        said, target, anchor = match[1], _target(source, match[2]), match[3] or ""
        if (ROOT / target).is_dir():
            pages = sorted((ROOT / target).glob("*.md")) if target.startswith("docs/") else []
            if not pages:
                return said
            target = pages[0].relative_to(ROOT).as_posix()
        return f"[{said}]({posixpath.relpath(_on_site(target), here)}{anchor})"

    return _LINK.sub(link, text)


def _target(source: str, link: str) -> str:
    """What a link in this page leads to, from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _on_site(path: str) -> str:
    return PAGES.get(path, path.removeprefix("docs/"))


def _linked_files() -> set[str]:
    """Files outside of docs/ that pages link and that are none."""
    found: set[str] = set()
    for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / page for page in PAGES)]:
        source = path.relative_to(ROOT).as_posix()
        targets = {_target(source, link) for _, link, _ in _LINK.findall(path.read_text("utf-8"))}
        found |= {one for one in targets if not one.startswith("docs/") and (ROOT / one).is_file()}
    return found - set(PAGES)


def _python() -> str:
    """The page of all public names, by the modules that they are in."""
    modules: dict[str, list[str]] = {}
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            modules.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    modules.pop(f"{PACKAGE}._moved", None)
    text = [
        "# Python",
        "",
        f"What a project may import from `{PACKAGE}`, by the modules that have it. Names in",
        "`errors` and `testing` are imported from there ([compatibility](compatibility.md)).",
    ]
    modules |= {f"{PACKAGE}.errors": [], f"{PACKAGE}.testing": []}
    for module, names in sorted(modules.items()):
        text += ["", f"## {module.removeprefix(f'{PACKAGE}.')}", "", f"::: {module}"]
        text += ["    options:", "      show_root_heading: false"]
        text += [f"      members: {json.dumps(names)}"] if names else []
    return "\n".join(text) + "\n"


def _title(path: Path) -> str:
    return path.read_text("utf-8").splitlines()[0].removeprefix("# ")


def main() -> None:
    folder, version = Path(sys.argv[1]), sys.argv[2]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--site-dir", str(folder / version)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    listed = folder / "versions.json"
    known = json.loads(listed.read_text()) if listed.exists() else []
    others = [
        one for one in known if one["version"] != version and (folder / one["version"]).is_dir()
    ]
    listed.write_text(json.dumps([{"version": version, "title": version, "aliases": []}, *others]))


if __name__ == "__main__":
    main()
