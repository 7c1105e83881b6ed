"""The commands that README.md, CONTRIBUTING.md and the pages in docs/ show, and what they need."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(r"(?:^ *<!-- needs: (.*?) -->\n)?^( *)```(?:sh|bash)\n(.*?)^ *```", re.M | re.S)
# what a command cannot have in a test, by the words that tell it
NEEDS = {
    "network": r"^pip install|datasets prepare|fastai push (?!.*--out)|data\.stream=true",
    "gpu": r"--nproc-per-node 8",
    "data": r"--data-root (?!\.)",
    "minutes": r"^make|--smoke|^python benchmarks",
    "browser": r"^msun-fastai app",
    "unfinished run": r"--resume| \.\.\. ",
    "release": r"^git|^python -m|^twine",
}


@dataclass(frozen=True)
class Command:
    """A line of a block, whole, without its comment. needs: what keeps a test from running it."""

    page: str
    text: str

    @property
    def needs(self):
        return {name for name, pattern in NEEDS.items() if re.search(pattern, self.text)}

    @property
    def ours(self):
        """The words after `msun-fastai`, or None where it is another program's command."""
        words = shlex.split(self.text.rpartition("| ")[2])
        if words[0] == "msun-fastai":
            words = words[1:]
        elif words[0] == "torchrun":
            words = words[words.index("msun_fastai") + 1 :]
        else:
            return None
        return [word for word in words if word != "..."]


@dataclass(frozen=True)
class Block:
    """A block of commands. marks: what the comment before it says that some of them need."""

    page: str
    marks: frozenset[str]
    commands: tuple[Command, ...]


def blocks():
    """All blocks, page by page."""
    for file in PAGES:
        page = file.relative_to(ROOT).as_posix()
        for marks, _, text in BLOCK.findall(file.read_text(encoding="utf-8")):
            lines = re.sub(r"\\\n\s*", "", text).splitlines()
            whole = [re.sub(r"\s+#.*|^#.*", "", line).strip() for line in lines]
            commands = tuple(Command(page, line) for line in whole if line)
            yield Block(page, frozenset(filter(None, marks.split(", "))), commands)


def commands():
    """All commands, page by page."""
    return [command for block in blocks() for command in block.commands]
