"""Which files the words on a command line mean."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from msun_fastai.data.folders import image_files
from msun_fastai.errors import UserError


def expand_paths(words: Iterable[str]) -> list[Path]:
    """The files that `words` name, in their order: files as they are, folders and globs expanded.

    A folder gives the image files below it, sorted. A file that does not exist stays in the list,
    to get its own row with the reason; a folder or glob that holds no image is an error.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise UserError(f"{word}: no image files in this folder")
            found += inside
        elif glob.has_magic(word) and not path.exists():
            matches = [Path(p) for p in sorted(glob.glob(word, recursive=True))]
            files = [p for p in matches if p.is_file()]
            # a pattern that meets folders alone means their images
            inside = [f for p in matches if p.is_dir() for f in image_files(p)]
            if not files and not inside:
                raise UserError(f"{word}: matches no image file")
            found += files or list(dict.fromkeys(inside))
        else:
            found.append(path)
    return found
