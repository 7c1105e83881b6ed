"""The house: imports run downward only, and what must stay light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import msun_fastai

PACKAGE = Path(msun_fastai.__file__).parent
# from the ground up; a module may import those of lower floors, and of its own floor where allowed
FLOORS = [
    ("errors", "__init__", "elsewhere"),
    ("scales", "files", "memory", "inline"),
    (
        *("views", "losses", "recipe", "devices", "processes", "schedules", "checkpoints"),
        *("plots", "rowfiles"),
    ),
    ("smoke", "recipe_list", "stopping", "progress"),
    ("jobs", "standings"),
    ("data",),
    ("models",),
    ("callbacks",),
    ("inference", "flops"),
    ("predict",),
    ("features", "sized", "bootstrap", "calibration", "predict_files"),
    ("answers",),
    ("learner", "evaluate", "probe", "runfolder", "paper"),
    ("analysis", "routed", "labelled", "training", "compare", "fits", "export"),
    ("measure", "figures", "choices", "routing", "card", "explain"),
    ("report", "interpret", "entries", "hub", "webapp"),
    ("all", "run"),
    ("plan", "lineup"),
    ("cli",),
    ("__main__",),
]
FASTAI_FREE = (
    "errors",
    "scales",
    "files",
    "memory",
    "inline",
    "stopping",
    "jobs",
    "standings",
    "checkpoints",
    "plots",
    "rowfiles",
    "progress",
    "processes",
    "views",
    "losses",
    "recipe",
    "smoke",
    "recipe_list",
    "models",
    "predict",
    "predict_files",
    "inference",
    "features",
    "probe",
    "bootstrap",
    "sized",
    "calibration",
    "answers",
    "analysis",
    "evaluate",
    "routed",
    "routing",
    "card",
    "compare",
    "explain",
    "fits",
    "hub",
    "labelled",
    "figures",
    "report",
    "webapp",
    "flops",
    "paper",
    "export",
)


def modules():
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 30
    for file in found:
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield file, parts


def floor(part):
    levels = [i for i, names in enumerate(FLOORS) if part in names]
    assert levels, f"{part} has no floor in the house"
    return levels[0]


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "msun_fastai":
            for alias in node.names:
                yield f"msun_fastai.{alias.name}", []
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def test_imports_run_downward_only():
    checked = 0
    for file, parts in modules():
        for module, _ in imported(file):
            if not module.startswith("msun_fastai"):
                continue
            target = [*module.split("."), "__init__"][1]
            target = "__init__" if target == "__version__" else target
            checked += 1
            same_room = target == parts[0]
            assert same_room or floor(target) < floor(parts[0]), f"{file} imports {module}"
    assert checked > 60


def test_the_pure_floors_know_no_fastai():
    for file, parts in modules():
        if parts[0] in FASTAI_FREE or parts in (("data", "images"), ("data", "resize")):
            names = [m for m, _ in imported(file)]
            assert not any(n.split(".")[0] in ("fastai", "fastcore") for n in names), file


def test_no_star_imports_in_the_library():
    for file, parts in modules():
        stars = [m for m, names in imported(file) if "*" in names]
        assert stars == (["fastai.vision.all"] if parts == ("all",) else []), file


def loads(statement):
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_the_package_loads_no_torch():
    assert not loads("import msun_fastai") & {"torch", "fastai", "numpy", "PIL", "typer"}


def test_the_command_line_loads_no_torch():
    heavy = {"torch", "fastai", "numpy", "PIL", "pandas", "pydantic", "datasets"}
    assert not loads("import msun_fastai.cli.app") & heavy


def test_describing_data_loads_no_torch():
    assert not loads("import msun_fastai.data.describe") & {"torch", "fastai"}


def test_everything_public_says_what_it_is():
    for file, _ in modules():
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), f"{file} says nothing of itself"
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}: {node.name}"
