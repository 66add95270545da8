"""MkDocs hooks: README.md is the site's home page, and links may lead out of docs/, as they do in the repository."""

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)
IMAGES = {".png", ".svg"}

log = logging.getLogger("mkdocs.hooks.links")


def on_files(files: Files, config: Any) -> Files:
    """Add the home page and the figures of the default run, which stay in the place where DVC writes them."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8")))
    for path in sorted((ROOT / "data/plots").glob("*.png")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links that are right in the repository to be right in the site. A missing file is a warning."""
    here = ROOT if page.file.src_uri == "index.md" else DOCS / Path(page.file.src_uri).parent

    def rewritten(match: re.Match[str]) -> str:
        target = urlsplit(match["target"])
        if target.scheme or not target.path:
            return match[0]
        path = Path(os.path.normpath(here / target.path))
        if not path.exists():
            log.warning("%s: %s does not exist", page.file.src_uri, match["target"])
            return match[0]
        anchor = f"#{target.fragment}" if target.fragment else ""
        if (uri := _page_of(path)) is not None:
            base = Path(page.file.src_uri).parent
            return f"{match['image']}[{match['text']}]({os.path.relpath(uri, base)}{anchor})"
        if not config["repo_url"]:
            return match["text"]
        name = path.relative_to(ROOT).as_posix()
        return f"[{match['text']}]({config['repo_url'].rstrip('/')}/blob/main/{name}{anchor})"

    parts = CODE.split(markdown)  # odd ones are code
    return "".join(part if index % 2 else LINK.sub(rewritten, part) for index, part in enumerate(parts))


def _page_of(path: Path) -> str | None:
    """Where the site has a file of the repository; None if it has not."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    if path.is_relative_to(ROOT / "data/plots") and path.suffix in IMAGES:
        return path.relative_to(ROOT).as_posix()
    return None
