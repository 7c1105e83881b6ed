"""Every public name says what it is: shapes, units, errors, and which paper it is from.

The sources are read, not imported: what is checked is what a reader finds.
"""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL = "msun_fastai.all"

# fastai and torch call these by name and say what they are
THEIRS = {
    *("before_iter", "create_batches", "create_item", "do_batch", "do_item"),  # of loaders
    *("reset", "accumulate", "value", "name"),  # of metrics
}
EVENT = re.compile(r"(before|after)_(fit|epoch|train|validate|batch|pred|loss|backward|step)")
ERRORS = {"UserError", "ImageError", "TrainingError"}
# (n, c, h, w), (n,), (n, 3, side, side), (n, c, ...)
SHAPE = re.compile(r"\((?:[a-z]\w*|\d+)(?:, (?:[a-z]\w*|\d+|\.\.\.))*,\)|\([a-z]\w*(?:, [\w.]+)+\)")
# in what a number of such a name is
UNITS = {
    **dict.fromkeys(("size", "sizes", "side", "sides", "scale", "scales"), r"pixels|\bsides?\b"),
    **dict.fromkeys(("budget", "reduced", "share", "max_bad", "fraction"), r"\bshare\b|chance"),
    "cache": "GiB",
    "macs": "costs|multiply-accumulates",
}
# where a paper says what a name computes
SOURCES = {
    "analysis.cka.linear_cka": "Eq. 1",
    "analysis.gradcam.grad_cam": "Eq. 9",
    "callbacks.consistency.EnsembleDistillation": "RS-Nets",
    "callbacks.consistency.ScaleDistillation": "Eq. 3 and 4 of SAN",
    "callbacks.consistency.ScaleInvariance": "Eq. 7 and 8",
    "callbacks.views.MultiScaleViews": "Eq. 8",
    "losses.alignment_loss": "Ours",
    "losses.ensemble_logits": "RS-Nets",
    "losses.ensemble_loss": "RS-Nets",
    "losses.euclidean_distance": "Eq. 7",
    "losses.floored": "Eq. 8",
    "losses.sd_loss": "Eq. 3 of SAN",
    "losses.si_loss": "Eq. 7",
    "models.ensemble.Ensemble": "RS-Nets",
    "models.ideal.ideal_network": "Eq. 5",
    "models.ideal.proxy_network": "Eq. 6",
    "models.metalearners.LinearLearner": "Eq. 2",
    "models.metalearners.encode": "Section 3.1",
    "models.moments.Moments.add": "Chan, Golub and LeVeque",
    "models.net.MultiScaleNet": "Eq. 4",
    "models.subnets.make_subnets": "Section V-B",
    "scales.sweep_sizes": "Section VI-B",
    "scales.thresholds": "Eq. 6",
    "scales.view_scales": "Algorithm 1",
    "views.rescale_view": "Section VI-C",
}


@dataclass(frozen=True)
class Public:
    """A function or a class, where it is defined; cls: of a method, the class that it is of."""

    path: str
    node: ast.AST
    module: ast.Module
    cls: ast.ClassDef | None = None

    @property
    def doc(self):
        return ast.get_docstring(self.node) or ""

    @property
    def is_function(self):
        return isinstance(self.node, ast.FunctionDef)

    @property
    def arguments(self):
        """Names and annotations of what it takes."""
        given = self.node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in every}

    def methods(self):
        """Those of a class that are public and its own."""
        for node in self.node.body:
            own = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
            if own and not EVENT.fullmatch(node.name) and node.name not in THEIRS:
                yield Public(f"{self.path}.{node.name}", node, self.module, self.node)


@cache
def tree(module):
    """The source of a module of ours."""
    file = ROOT.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def defined(module, name):
    """What `name` is, followed from import to import."""
    for node in tree(module).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return Public(f"{module}.{name}".removeprefix("msun_fastai."), node, tree(module))
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and name in (a.asname or a.name for a in node.names):
            return defined(node.module, name)
    raise AssertionError(f"{module} has no {name}")


def in_one_import():
    """What `from msun_fastai.all import *` has of ours."""
    for node in tree(ALL).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("msun_fastai"):
            yield from (defined(node.module, alias.name) for alias in node.names)


def documented():
    """What the pages of the API show."""
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for path in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.M):
            yield defined(*path.rsplit(".", 1))


def everything():
    """All public names, with the methods of classes."""
    found = {public.path: public for public in (*in_one_import(), *documented())}
    for public in list(found.values()):
        if not public.is_function:
            found |= {method.path: method for method in public.methods()}
    return [found[path] for path in sorted(found)]


PUBLIC = everything()
FUNCTIONS = [public for public in PUBLIC if public.is_function]


def names(public):
    return public.path


def test_names_are_found():
    assert len(PUBLIC) > 100
    assert {"losses.si_loss", "models.net.MultiScaleNet.forward"} <= {p.path for p in PUBLIC}


def test_all_that_one_import_gives_is_on_a_page():
    shown = {public.path for public in documented()}
    assert not [public.path for public in in_one_import() if public.path not in shown]


def test_modules_that_the_pages_import_from_are_on_a_page():
    shown = {public.path for public in documented()}
    imported = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        lines = re.findall(r"^from (msun_fastai\S*) import ([^*\n#]+)", page.read_text(), re.M)
        imported |= {(module, name.strip()) for module, some in lines for name in some.split(",")}
    assert imported
    assert {defined(*one).path for one in imported} <= shown


@pytest.mark.parametrize("public", PUBLIC, ids=names)
def test_it_says_what_it_is(public):
    assert public.doc
    assert public.doc.split("\n\n")[0].rstrip()[-1] in ".:;`"  # a sentence, or what goes on below


def raised(node):
    """The names of our errors that are raised in it, or in the checks that it calls."""
    for part in ast.walk(node):
        if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
            yield ast.unparse(part.exc.func)
        if isinstance(part, ast.Call) and ast.unparse(part.func).startswith("check_"):
            yield "UserError"


@pytest.mark.parametrize("public", PUBLIC, ids=names)
def test_it_names_the_errors_that_it_raises(public):
    body = [public.node]
    if not public.is_function:  # what making one raises stands in the class's docstring
        made = ("__init__", "__post_init__")
        body = [part for part in public.node.body if getattr(part, "name", "") in made]
    found = {name for part in body for name in raised(part)} & ERRORS
    assert not [name for name in found if name not in public.doc]


@pytest.mark.parametrize("public", FUNCTIONS, ids=names)
def test_it_says_the_shapes_of_what_it_takes_and_gives(public):
    returns = ast.unparse(public.node.returns) if public.node.returns else ""
    hints = " ".join(
        hint for hint in (*public.arguments.values(), returns) if not hint.startswith("dict")
    )
    if re.search(r"\b(Tensor|ndarray)\b", hints):
        assert SHAPE.search(public.doc) or "scalar" in public.doc


@pytest.mark.parametrize("public", FUNCTIONS, ids=names)
def test_it_says_in_what_its_numbers_are(public):
    """In its own docstring, in its class's, or once for all in its module's."""
    near = [public.node, public.module, *([public.cls] if public.cls else [])]
    said = "\n".join(ast.get_docstring(node) or "" for node in near)
    missing = [
        name
        for name in public.arguments
        if name in UNITS and not re.search(UNITS[name], said) and f"{name}: see" not in said
    ]
    assert not missing


@pytest.mark.parametrize(("path", "source"), SOURCES.items())
def test_it_names_where_the_paper_has_it(path, source):
    module, *inside = path.rsplit(".", 2) if path.count(".") == 3 else path.rsplit(".", 1)
    public = defined(f"msun_fastai.{module}", inside[0])
    if inside[1:]:
        public = next(m for m in public.methods() if m.node.name == inside[1])
    said = f"{ast.get_docstring(public.module)} {public.doc}"
    assert source in " ".join(said.split())
