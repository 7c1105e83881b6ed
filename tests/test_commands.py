"""Every command in README.md and docs/ is one: parsed by the program's own parser, and run, or
marked with what it needs that a test does not have."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
from commands import NEEDS, PAGES, ROOT, blocks, commands
from PIL import Image

from msun_fastai.cli import main, training
from msun_fastai.cli.app import app
from msun_fastai.cli.methods import base_recipe
from msun_fastai.data.catalog import CATALOG
from msun_fastai.entries import entry_recipes, parse_entry
from msun_fastai.models.families import find_family
from msun_fastai.recipe import load_recipe, presets
from msun_fastai.scales import check_choice, check_routing, parse_sizes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# beside the catalogue's: folders below the data root that the pages speak of
DATASETS = {*CATALOG, "shapes", "digits", "tiny_imagenet100"}
TRAIN = ("pretrain", "finetune", "linear-probe")
PROGRAM = typer.main.get_command(app)


def parsed(words):
    """The verb of a command and the values of its options, as the program itself reads them."""
    command, words, path = PROGRAM, list(words), []
    while words and words[0] in getattr(command, "commands", {}):
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if words and command is PROGRAM:
        assert set(words) <= options_of(command), f"{words[0]} is no verb"
        return None, {}
    return path[0], command.make_context(path[-1], words).params


def options_of(command):
    """The options that a verb has, by all their names."""
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def test_there_are_commands_on_every_kind_of_page():
    pages = {command.page for command in commands()}
    assert {"README.md", "docs/index.md", "docs/evaluation.md", "docs/options/si.md"} <= pages
    assert len([c for c in commands() if c.ours]) > 60


@pytest.mark.parametrize("command", commands(), ids=lambda c: f"{c.page}: {c.text}"[:90])
def test_every_command_is_one(command):
    if command.ours is None:
        check_other(command.text)
        return
    verb, given = parsed(command.ours)
    if given.get("dataset") is not None:
        check_choice("dataset", given["dataset"], DATASETS)
    if given.get("arch") is not None:
        find_family(given["arch"])
    if given.get("sizes") is not None:
        parse_sizes(given["sizes"])
    if given.get("use") is not None:
        check_routing(given["use"])
    if given.get("preset") is not None:
        check_choice("preset", given["preset"], presets())
    named = given.get("recipe")
    if verb in ("recipes", "calibrate") or (named or "").endswith(".toml"):
        return
    if named is not None:
        load_recipe(named)
    if verb in TRAIN and given["resume"] is None:
        training.chosen_recipe(verb, given)
    if verb == "methods":
        entry_recipes(base_recipe(given), [parse_entry(text) for text in given["entries"]])


def check_other(text):
    """A command of another program: what of ours it names is there."""
    words = shlex.split(text)
    if words[0] == "make":
        targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
        assert words[1] in targets
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for name in re.findall(r"\[(.*?)\]", text):
            assert name in extras["optional-dependencies"]
    elif words[0] == "python" and words[1].startswith("exported/"):
        assert (ROOT / "msun_fastai/elsewhere" / words[1].partition("/")[2]).is_file()
    elif words[:3] == ["python", "-m", "build"] or words[0] in ("git", "twine"):
        return
    else:
        assert words[0] == "python", f"whose command is {text!r}?"
        assert (ROOT / words[1]).exists()


def test_what_a_block_needs_is_said_before_it():
    wrong = []
    for block in blocks():
        needs = set().union(*(command.needs for command in block.commands))
        if needs != block.marks:
            first = block.commands[0].text
            wrong.append(f"{block.page}: {first}: <!-- needs: {', '.join(sorted(needs))} -->")
    assert not wrong, "\n".join(wrong)
    assert {mark for block in blocks() for mark in block.marks} == set(NEEDS)


def inline():
    for file in PAGES:
        for words in re.findall(r"(?<!`)`msun-fastai ([^`]+)`(?!`)", file.read_text()):
            yield file.relative_to(ROOT).as_posix(), words


@pytest.mark.parametrize(("page", "text"), sorted(set(inline())))
def test_commands_in_a_line_have_verbs_and_options_that_there_are(page, text):
    verb, *rest = shlex.split(text)
    if verb == "...":
        return
    command = PROGRAM.commands[verb]
    if rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
    given = {word for word in rest if word.startswith("--")}
    assert given <= options_of(command), page


# ---- run ---------------------------------------------------------------------------------------

# trainings are made small: these follow what the page says, and the last of an option counts
SMALL = (
    *("--arch", "thin_resnet10", "--no-pretrained", "--scales", "16,32,64", "--epochs", "1"),
    *("--bs", "8", "--device", "cpu", "--limit", "24", "--set", "data.workers=0"),
    *("--set", "train.report=false"),
)
ONE_OF_EACH = ("--seeds", "1", "--jobs", "1")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, shapes):
    """A folder with all that the pages name: images, runs, a recipe."""
    folder = tmp_path_factory.mktemp("prepared")
    labels = dict(zip(shapes.classes, ("cat", "dog", "horse")))  # by which a page calls them
    for i, sample in enumerate([*shapes.train, *shapes.valid]):
        image = Image.fromarray(sample.image).resize((side := (15, 22, 34, 60)[i % 4], side))
        file = folder / "photos" / labels.get(sample.label, sample.label) / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    for name in ("holiday/1.jpg", "more/new/2.png", "archive/3.jpg", "one.jpg", "photo.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    (folder / "my.toml").write_text('[data]\npath = "photos"\n')
    scratch = tmp_path_factory.mktemp("trained")
    for method, names in {
        "msun": ("RUN", "runs/photos", "runs/msun", "runs/cars", "runs/tiny", "runs/scalenet"),
        "vanilla": ("VANILLA", "runs/vanilla", "runs/other", "runs/mst"),
    }.items():
        words = ["finetune", "--data", str(folder / "photos"), "--method", method, *SMALL]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--run-dir", str(scratch / method)])
        assert ended.value.code == 0
        for name in names:
            shutil.copytree(scratch / method, folder / name)
    return folder


def small(words):
    """The words of a command with what makes a training short."""
    verb = words[0]
    if verb in (*TRAIN, "methods"):
        words = [*words, *SMALL]
    return [*words, *ONE_OF_EACH] if verb == "methods" else words


def runnable(page):
    return [c for c in commands() if c.page == page and not c.needs]


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({c.page for c in commands() if not c.needs}))
def test_commands_run(page, prepared, tmp_path, monkeypatch, run):
    """Those that need nothing run, in the page's order, in a folder with what they name."""
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    for command in runnable(page):
        words = command.ours
        if "| " in command.text or words is None:
            as_typed(command.text, folder, tmp_path)
            continue
        if words[0] in TRAIN and "--run-dir" in words:
            shutil.rmtree(words[words.index("--run-dir") + 1], ignore_errors=True)
        code, _, err = run(*small(words))
        assert code == 0, f"{command.text}: {err}"


def as_typed(text, folder, tmp_path):
    """A line for the shell, which finds `msun-fastai` and `python` to be those of the tests."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, words in {"msun-fastai": "-W ignore -m msun_fastai ", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PATH": path, "PYTHONPATH": paths}
    done = subprocess.run(text, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}: {done.stderr}"
