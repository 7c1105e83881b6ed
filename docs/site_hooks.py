"""What mkdocs does beyond its pages: links out of docs/, and nothing from another site.

The pages in docs/ are read on GitHub, too, and link to files beside docs/ as one does there:
`../CONTRIBUTING.md`, `../benchmarks/sweep.py`. Those files are no pages of the site. Before it is
built each of them that a page links to becomes one, Markdown as it is, code as a listing; pictures
and JSON are copied. The links, which are relative to the file that holds them, are written anew,
relative to where the page is on the site. So one link serves both readers, and `mkdocs build
--strict` warns of one whose target is not there.

The notebooks in nbs/ are pages, too, with the outputs that are committed.

benchmarks/RESULTS.md is written by a study of many hours. Where it is absent its page says how it
comes about, and links to a section of it go to that page.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
RESULTS = "benchmarks/RESULTS.md"
# files beside docs/ that are pages of the site's navigation
PAGES = {
    "README.md": "readme.md",
    RESULTS: "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PAGES |= {
    f"nbs/{file.name}": f"notebooks/{file.stem}.md" for file in sorted(ROOT.glob("nbs/*.ipynb"))
}
LATER = """# Results

The study of the papers' claims is not part of this copy. `python benchmarks/reduced_study` trains
what it needs, and writes this page.
"""
COPIED = (".png", ".svg", ".jpg", ".json")  # as they are; the study's JSON would be a long page
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "sh"}

LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?(\))")
# a fenced block, or code in a line: what looks like a link there is none
CODE = re.compile(r"^ *(```|~~~).*?^ *\1 *$|(`+)(?!`).*?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(?:https?:)?//[^\s\">]*"
    r"|<link(?=[^>]*\srel=\"?(?:stylesheet|preload|preconnect|icon))[^>]*\shref=\"?(?:https?:)?//[^\s\">]*"
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the navigation that are not in docs/, and all that pages link to."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text() if (ROOT / source).is_file() else LATER
        if source.endswith(".ipynb"):
            text = notebook_page(json.loads(text))
        files.append(File.generated(config, page, content=text))
    todo = [file.src_uri for file in files.documentation_pages()]
    for page in todo:
        text = files.get_file_from_path(page).content_string
        for target in sorted(linked(text, source_of(page))):
            uri = page_of(target)
            if files.get_file_from_path(uri) is None and (ROOT / target).is_file():
                files.append(made(config, target, uri))
                if target.endswith(".md"):
                    todo.append(uri)
    return files


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, code, and what the code gave; pictures are in the page."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        parts += [shown(output) for output in cell["outputs"]]
    return "\n\n".join(filter(None, parts))


def shown(output: dict[str, Any]) -> str:
    """One output of a cell, the richest form of it that a page can show."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        picture = "".join(data["image/png"]).strip()
        return f'<img alt="figure" src="data:image/png;base64,{picture}">'
    table = "".join(data.get("text/html", ""))
    if "<table" in table:
        # a blank line would end the block of HTML; a table's own style is not the site's
        table = re.sub(r"<style.*?</style>", "", table, flags=re.DOTALL)
        table = re.sub(r"<table[^>]*>", "<table>", table)
        return re.sub(r"\n\s*\n?", "\n", table)
    if table.strip() or "".join(data.get("text/plain", "")).startswith("<IPython"):
        return ""  # a bar that is gone
    text = "".join(data.get("text/plain", "")).strip("\n")
    return f"```text\n{text}\n```" if text else ""


def made(config: Any, target: str, uri: str) -> File:
    """The file of the site, at `uri`, from the file `target` of the repository."""
    if target.endswith(COPIED):
        return File.generated(config, uri, abs_src_path=str(ROOT / target))
    text = (ROOT / target).read_text()
    if not target.endswith(".md"):
        text = f"# {target}\n\n````{LANGUAGES.get(Path(target).suffix, '')}\n{text}````\n"
    return File.generated(config, uri, content=text)


def source_of(page: str) -> str:
    """The path in the repository of what is the page `page` of the site."""
    inverse = {ours: source for source, ours in PAGES.items()}
    if page in inverse:
        return inverse[page]
    return page.removeprefix("files/") if page.startswith("files/") else f"docs/{page}"


def page_of(target: str) -> str:
    """The path on the site of the repository's file `target`."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in PAGES:
        return PAGES[target]
    return f"files/{target}" + ("" if target.endswith((".md", *COPIED)) else ".md")


def resolved(link: str, source: str) -> str | None:
    """The path in the repository that `link` in `source` leads to, None if it leads elsewhere."""
    if not link or ":" in link or link.startswith("/"):
        return None
    return normpath(join(dirname(source), link))


def linked(text: str, source: str) -> set[str]:
    """The paths in the repository that a page links to."""
    found = {resolved(match[2], source) for match in LINK.finditer(CODE.sub("", text))}
    return {target for target in found if target is not None}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links as they have to be on the site."""
    uri = page.file.src_uri
    source = source_of(uri)

    def again(match: re.Match[str]) -> str:
        target = resolved(match[2], source)
        if target is None:
            return match[0]
        anchor = match[3] or ""
        if target == RESULTS and not (ROOT / RESULTS).is_file():
            anchor = ""
        to = page_of(target)
        return f"{match[1]}{relpath(to, dirname(uri) or '.')}{anchor}{match[4]}"

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(again, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(again, markdown[end:])])


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Raise for a page that loads anything from another site: it has to work without a network."""
    found = LOADED.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri}: loads from another site: {found[0]}")
    return output


def on_post_build(config: Any) -> None:
    """The same for style sheets."""
    for sheet in Path(config.site_dir).rglob("*.css"):
        found = re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]*", sheet.read_text())
        if found:
            name = os.fspath(sheet.relative_to(config.site_dir))
            raise PluginError(f"{name}: loads from another site: {found[0]}")
