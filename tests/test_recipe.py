"""Recipes: shipped ones are valid, say what they differ in, and do what the papers did."""

import json
import re
import sys

import pytest

from msun_fastai.data.catalog import CATALOG
from msun_fastai.errors import UserError
from msun_fastai.recipe import (
    VERBS,
    Recipe,
    load_recipe,
    parse_assignment,
    presets,
    recipe_folder,
    shipped_recipes,
)
from msun_fastai.recipe_list import HEADER, list_recipes, read_header
from msun_fastai.scales import target_scale, view_scales

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ARCHS = ("resnet50", "densenet121", "vgg16", "mobilenet_v2")
METHODS = ("vanilla", "mst", "msun")
TRANSFER = tuple(name for name in CATALOG if name != "imagenet")
IMAGENET = {f"imagenet-{arch}-{method}": (arch, method) for arch in ARCHS for method in METHODS}
STUDY = {f"study-{method}": method for method in METHODS}
TRANSFERS = {f"{name}-{v}": (name, v) for name in TRANSFER for v in ("finetune", "linear-probe")}
# the papers' other systems: their backbones by recipe, and the methods that are theirs
SAN_ARCHS = ("resnet18", "resnet50", "mobilenet_v2")
SAN_SCALES = [96, 128, 160, 192, 224]
SAN = {
    **{f"imagenet-{arch}-{m}": (arch, m) for arch in SAN_ARCHS for m in ("san", "rsnet")},
    "imagenet-resnet18-san-384": ("resnet18", "san"),
    "imagenet-resnet18-snet-sd": ("resnet18", "snet"),
}
CIFAR = ("cifar10", "cifar100")
SAN_CIFAR = {f"{data}-resnet18-{m}": (data, m) for data in CIFAR for m in ("san", "rsnet")}
SCALENET_IMAGENET = {
    f"imagenet-{arch}-vanilla": arch
    for arch in ("scalenet103_d25", "scalenet54_d4d5s5", "scalenet59_d4d5s6")
}
SCALENET_CIFAR = {
    f"{data}-{arch}": (data, arch)
    for data in CIFAR
    for arch in ("scalenet32_d7", "scalenet44_d10", "scalenet98_d20s5")
}
OTHER_STUDY = {
    "study-san": ("resnet18", "san", None),
    "study-rsnet": ("resnet18", "rsnet", None),
    "study-snet-sd": ("resnet18", "snet", "sd"),
    "study-scalenet": ("scalenet28_d2d2s2_w48", "vanilla", None),
}
OTHERS = {*SAN, *SAN_CIFAR, *SCALENET_IMAGENET, *SCALENET_CIFAR, *OTHER_STUDY}
SHARED = {"paper", "pretrain", "finetune", "linear-probe", "study"}
SHARED |= {"san", "san-mobilenet_v2", "san-cifar", "scalenet", "scalenet-imagenet"}
SHARED |= {"scalenet-cifar"}
RESTING = 7  # shared files that rest on another


def test_every_recipe_is_found():
    assert (len(IMAGENET), len(TRANSFERS), len(STUDY), len(OTHERS)) == (12, 22, 3, 25)
    assert set(shipped_recipes()) == {*IMAGENET, *TRANSFERS, *STUDY, *OTHERS, "demo"}
    assert {file.stem for file in recipe_folder().glob("shared/*.toml")} == SHARED
    everything = {file for file in recipe_folder().rglob("*") if file.is_file()}
    assert len(everything) == len(shipped_recipes()) + len(SHARED) + len(presets())


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name):
    file = shipped_recipes()[name]
    header = file.read_text().split("\n\n")[0]
    for word in HEADER:
        assert f"# {word} " in header, f"{name}: its header lacks {word}"
    recipe = load_recipe(name)
    assert recipe == load_recipe(str(file))
    assert recipe.verb in VERBS
    entries = read_header(file.read_text())
    words = entries["command"].split()
    assert words[words.index("--recipe") + 1] == name
    assert recipe.verb in words


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_choose_what_there_is(name):
    from msun_fastai.choices import check_choices

    check_choices(load_recipe(name), None)


def flat(data, above=""):
    """Nested tables as {dotted key: value}."""
    out = {}
    for key, value in data.items():
        inner = isinstance(value, dict)
        out |= flat(value, f"{above}{key}.") if inner else {f"{above}{key}": value}
    return out


def test_no_recipe_repeats_what_it_rests_on():
    files = [*shipped_recipes().values(), *recipe_folder().glob("shared/*.toml")]
    resting = 0
    for file in files:
        raw = tomllib.loads(file.read_text())
        base = raw.pop("base", None)
        if base is None:
            continue
        below = flat(load_recipe(str(file.parent / base)).model_dump(exclude_unset=True))
        again = {key for key, value in flat(raw).items() if key in below and below[key] == value}
        assert not again, f"{file}: {again}"
        resting += 1
    assert resting == len(IMAGENET) + len(TRANSFERS) + len(STUDY) + len(OTHERS) + RESTING
    assert all(file.read_text().startswith("# ") for file in files)


@pytest.mark.parametrize("name", [*IMAGENET, *TRANSFERS])
def test_the_papers_settings(name):
    recipe = load_recipe(name)
    train, data, model = recipe.train, recipe.data, recipe.model
    assert (train.optimizer, train.lr, train.momentum, train.wd) == ("sgd", 0.1, 0.9, 2e-5)
    assert (train.schedule, train.warmup, train.bs, train.precision) == ("cosine", 5, 128, "full")
    assert (model.scales, model.blocks, data.augment) == ([32, 128, 224], 1, "rrc")
    assert recipe.consistency.kind is None
    if name in IMAGENET:
        arch, method = IMAGENET[name]
        assert (recipe.verb, data.dataset, data.resize) == ("pretrain", "imagenet", "crop")
        assert (model.arch, model.method, model.pretrained) == (arch, method, False)
        assert (train.epochs, train.views) == (300 if arch == "mobilenet_v2" else 90, "all")
    else:
        dataset, verb = TRANSFERS[name]
        assert (recipe.verb, data.dataset, train.epochs) == (verb, dataset, 30)
        assert (model.arch, model.method, recipe.probe.protocol) == ("resnet50", "msun", "cached")


@pytest.mark.parametrize("name", [*SAN, *SAN_CIFAR])
def test_the_settings_of_the_san_paper(name):
    recipe = load_recipe(name)
    train, data, model = recipe.train, recipe.data, recipe.model
    lightweight = "mobilenet_v2" in name
    expected = (150, 0.05, 4e-5) if lightweight else (120, 0.1, 1e-4)
    assert (train.epochs, train.lr, train.wd) == expected
    assert (train.optimizer, train.momentum, train.views) == ("sgd", 0.9, "all")
    assert (train.schedule, train.warmup, train.lowest) == ("cosine", 0, 0)
    assert (recipe.verb, data.augment, model.pretrained) == ("pretrain", "rrc", False)
    assert processes(name) * train.bs == 256
    if name in SAN:
        assert (model.arch, model.method) == SAN[name]
        assert (data.dataset, data.resize) == ("imagenet", "crop")
        larger = [192, 224, 256, 320, 384]
        assert model.scales == (larger if name.endswith("384") else SAN_SCALES)
    else:
        assert (data.dataset, model.method) == SAN_CIFAR[name]
        assert (model.arch, model.scales, data.resize) == ("resnet18", [16, 24, 32], "squish")
    assert recipe.consistency.kind == ("sd" if name.endswith("-sd") else None)


@pytest.mark.parametrize("name", [*SCALENET_IMAGENET, *SCALENET_CIFAR])
def test_the_settings_of_the_scalenet_paper(name):
    recipe = load_recipe(name)
    train, data, model = recipe.train, recipe.data, recipe.model
    assert (train.optimizer, train.lr, train.momentum, train.wd) == ("sgd", 0.1, 0.9, 1e-4)
    assert (train.schedule, train.warmup, recipe.verb) == ("step", 0, "pretrain")
    assert (model.method, model.pretrained) == ("vanilla", False)
    if name in SCALENET_IMAGENET:
        assert (train.epochs, train.milestones) == (100, [30, 60, 90])
        assert (data.dataset, data.augment, data.resize) == ("imagenet", "rrc", "crop")
        assert (model.arch, model.scales) == (SCALENET_IMAGENET[name], [224])
        assert (processes(name), train.bs) == (4, 64)
    else:
        assert (train.epochs, train.milestones) == (300, [240, 270])
        assert (data.dataset, model.arch) == SCALENET_CIFAR[name]
        assert (data.augment, data.carve, model.scales) == ("light", 0.1, [32])
        assert (processes(name), train.bs) == (1, 128)


def processes(name):
    """How many of them the command in a recipe's header starts."""
    words = read_header(shipped_recipes()[name].read_text())["command"].split()
    return int(words[words.index("--nproc-per-node") + 1]) if words[0] == "torchrun" else 1


def test_parallel_networks_keep_their_strides():
    """As the SAN paper has them: each network's grid is that of the plain one."""
    from msun_fastai.models.net import NetConfig
    from msun_fastai.models.weights import build_net

    named = load_recipe("imagenet-resnet18-snet-sd").model
    assert named.grids == [scale // 4 for scale in named.scales]
    build_net(NetConfig("resnet18", 2, tuple(named.scales), "snet", grids=tuple(named.grids)))


def test_the_study():
    for name, method in STUDY.items():
        recipe = load_recipe(name)
        data, model = recipe.data, recipe.model
        assert (data.dataset, data.classes, data.limit) == ("tiny_imagenet100", 10, 3000)
        assert (model.arch, model.method, model.scales) == ("resnet18", method, [16, 32, 64])
        assert (recipe.train.epochs, model.pretrained) == (8, False)
    assert load_recipe("study-msun").consistency.kind == "none"
    for name, chosen in OTHER_STUDY.items():
        recipe = load_recipe(name)
        model = recipe.model
        assert (model.arch, model.method, recipe.consistency.kind) == chosen
        assert (recipe.data, recipe.train) == (data, load_recipe("study-msun").train)
        assert (model.scales, model.pretrained) == ([16, 32, 64], False)


# the native sides of each dataset's images, with the scale that they are resized to
ROUTED = {
    "cifar10": {32: 32},
    "cifar100": {32: 32},
    "fashion_mnist": {28: 32},
    "stl10": {96: 128},
    "raf_db": {100: 128},
    "stanford_cars": {43: 32, 80: 32, 81: 128, 176: 128, 177: 224, 7000: 224},
    "caltech101": {176: 128, 200: 224},
    "oxford_flowers102": {500: 224},
    "oxford_pets": {500: 224},
    "fgvc_aircraft": {775: 224},
    "dtd": {300: 224, 640: 224},
}


@pytest.mark.parametrize("name", TRANSFERS)
def test_views_of_the_transfer_datasets(name):
    recipe = load_recipe(name)
    dataset, _ = TRANSFERS[name]
    scales, views = recipe.model.scales, recipe.train.views
    targets = {side: target_scale(side, scales, views) for side in ROUTED[dataset]}
    assert targets == ROUTED[dataset]
    single = dataset in ("cifar10", "cifar100", "fashion_mnist", "stl10", "raf_db")
    assert views == ("native" if single else "down")
    for scale in targets.values():
        seen = (scale,) if single else tuple(s for s in scales if s <= scale)
        assert view_scales(scale, scales, views) == seen


def test_expected_figures_are_the_papers(real_data):
    tables = json.loads((real_data.parent / "paper" / "tables.json").read_text())["msun"]
    rows = {row["name"]: row for row in list_recipes()}
    for name, (arch, method) in IMAGENET.items():
        acc = tables["table2_multiscale_testing"][arch][method]["acc"]
        of_three = " / ".join(f"{acc[i]:.2f}" for i in (0, 6, 12))
        assert rows[name]["expected"].startswith(f"{of_three} % at 32 / 128 / 224"), name
        assert f"{sum(acc) / 13:.2f} % on average" in rows[name]["expected"], name
    columns = tables["table3_transfer"]["columns"]
    for name, (dataset, verb) in TRANSFERS.items():
        table = tables["table3_transfer"][verb.replace("-", "_")]
        figure = table["resnet50"]["msun"][columns.index(dataset)]
        assert rows[name]["expected"] == f"{figure:.2f} %", name


def figures(accuracies):
    return " / ".join(f"{a:.2f}" for a in accuracies)


def test_expected_figures_are_the_san_papers(real_data):
    folder = real_data.parent / "paper"
    tables = json.loads((folder / "tables.json").read_text())["san"]
    expected = {row["name"]: row["expected"] for row in list_recipes()}
    columns = [tables["test_sizes"].index(scale) for scale in SAN_SCALES]

    def own(table):
        """Each scale's accuracy by its own kernels and batch norm, the smallest first."""
        return [row[column] for row, column in zip(reversed(table), columns)]

    at = "% at 96 / 128 / 160 / 192 / 224"
    for arch in ("resnet50", "mobilenet_v2"):
        row = own(tables["table1"][arch]["san"])
        assert expected[f"imagenet-{arch}-san"] == f"{figures(row)} {at}"
    diagonal = tables["table1"]["resnet18"]["san_diagonal"]
    sizes = sorted(diagonal, key=int)
    assert sizes == ["96", "128", "192", "224"]  # 160 is missing
    own_18 = f"{figures(diagonal[size] for size in sizes)} % at {' / '.join(sizes)}; "
    assert expected["imagenet-resnet18-san"].startswith(own_18)
    table4 = tables["table4_resnet18_private_convolutions_with_distillation"]
    assert expected["imagenet-resnet18-snet-sd"] == f"{figures(own(table4))} {at}"
    larger = table6((folder / "san.txt").read_text())
    text = f"{figures(larger.values())} % at {' / '.join(map(str, larger))}"
    assert expected["imagenet-resnet18-san-384"] == text
    for name in SAN_CIFAR:
        assert expected[name] == "none known"


def table6(text):
    """Of SAN's Table 6, which is not among the tables: accuracy by scale, at the scale itself."""
    lines = text[text.index("Table 6. ") :].splitlines()
    rows = [line.split("\t") for line in lines]
    heads = [i for i, row in enumerate(rows) if "setminus" in row[0]]
    sizes = rows[heads[1]][1:]
    of_san = {row[0]: row[1:] for row in rows[heads[1] + 1 : heads[1] + 6]}
    return {int(s): float(row[sizes.index(s)]) for s, row in reversed(of_san.items())}


def test_expected_figures_are_the_rs_nets(real_data):
    design = (real_data.parent / "DESIGN.md").read_text()
    row = r"[\d.]+(?: / [\d.]+){4}"
    at_five = re.search(rf"\| the same at 96/128/160/192/224 \| RS-Nets \| ({row}) \|", design)
    mobile = re.search(rf"\| SAN; RS-Nets \| {row}; ({row}) \|", design)
    expected = {row["name"]: row["expected"] for row in list_recipes()}
    for arch, found in (("resnet50", at_five), ("mobilenet_v2", mobile)):
        text = f"{found[1]} % at 96 / 128 / 160 / 192 / 224"
        assert expected[f"imagenet-{arch}-rsnet"] == text
    small = re.search(rf"RS-Net-like: [^|]*\| ({row}) \|", design)
    assert f"{small[1]} % at 16 / 24 / 32 / 48 / 64" in expected["study-rsnet"]
    assert "not at hand" in expected["imagenet-resnet18-rsnet"]


def test_expected_figures_are_the_scalenet_papers(real_data):
    tables = json.loads((real_data.parent / "paper" / "tables.json").read_text())["scalenet"]
    expected = {row["name"]: row["expected"] for row in list_recipes()}
    errors = {row[0].lower(): row[-1] for row in tables["table2_imagenet"]}
    for name, arch in SCALENET_IMAGENET.items():
        error = errors[arch.split("_")[1]]
        text = f"{100 - error:.2f} % at 320 (an error of {error:.2f} %, on crops of 320 from 350)"
        assert expected[name] == text
    columns = tables["table1_columns"]
    by_depth = {row[1]: dict(zip(columns, row)) for row in tables["table1_cifar_error"]}
    stages = {row[0]: row[-1] for row in tables["table3_one_stage_cifar10"]}
    by_depth[44] = {"cifar10_error": stages["ScaleNet44-D10"]}
    for name, (data, arch) in SCALENET_CIFAR.items():
        depth = int(re.match(r"scalenet(\d+)", arch)[1])
        error = by_depth[depth].get(f"{data}_error")
        if error is None:
            assert expected[name].startswith("none: "), name
        else:
            assert expected[name] == f"{100 - error:.2f} % (an error of {error:.2f} %)"


def test_round_trip(tmp_path):
    recipe = Recipe().with_values({"train.lr": 0.5, "model.scales": [16, 64]}, "test")
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert load_recipe(str(tmp_path / "r.toml")) == recipe


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.epoch", 3, "unknown key 'train.epoch'; did you mean train.epochs"),
        ("trian.epochs", 3, "unknown key 'trian'; did you mean train"),
        ("train.epochs", "many", "train.epochs = 'many'"),
        ("train.epochs", "5", "train.epochs = '5'"),
        ("train.bs", True, "train.bs = True"),
        ("data.stream", "yes", "data.stream = 'yes'"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.lr", -1.0, "greater than 0"),
        ("model.scales", "32", "model.scales"),
        ("baseline.x", 1, "baseline"),
    ],
)
def test_wrong_keys_and_values(key, value, says):
    with pytest.raises(UserError, match=says):
        Recipe().with_values({key: value}, "test")


def test_assignments():
    assert parse_assignment("train.lr=1e-3") == ("train.lr", 0.001)
    assert parse_assignment("model.scales=[16, 32]") == ("model.scales", [16, 32])
    assert parse_assignment("train.views=native") == ("train.views", "native")
    assert parse_assignment("model.pretrained=false") == ("model.pretrained", False)
    with pytest.raises(UserError, match="write key=value"):
        parse_assignment("train.lr")


def test_files_that_are_no_recipes(tmp_path):
    file = tmp_path / "r.toml"
    for text, says in (("= x", "not TOML"), ("[train]\nspeed = 1", "unknown key 'train.speed'")):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            load_recipe(str(file))
    with pytest.raises(UserError, match="no such file"):
        load_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(UserError, match="did you mean demo"):
        load_recipe("demos")


def test_recipes_that_rest_on_others(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "low.toml").write_text("[train]\nlr = 0.5\nbs = 7\n[model]\nscales = [16, 32]\n")
    (tmp_path / "sub" / "mid.toml").write_text('base = "../low.toml"\n[train]\nbs = 8\n')
    (tmp_path / "top.toml").write_text('base = "sub/mid.toml"\n[model]\nscales = [64]\n')
    recipe = load_recipe(str(tmp_path / "top.toml"))
    assert (recipe.train.lr, recipe.train.bs, recipe.model.scales) == (0.5, 8, [64])
    assert recipe.train.model_fields_set == {"lr", "bs"}
    assert "base" not in tomllib.loads(recipe.to_toml())


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (None, "top.toml: base .*low.toml: no such file"),
        ("= x", "low.toml: not TOML"),
        ('base = "top.toml"', "low.toml: base top.toml: rests on itself"),
        ('base = "low.toml"', "low.toml: base low.toml: rests on itself"),
        ("base = 3", "low.toml: base = 3: name a recipe's file"),
        ("base = ['a.toml']", "name a recipe's file"),
        ("[train]\nspeed = 1", "unknown key 'train.speed'"),
    ],
)
def test_bases_that_are_wrong(tmp_path, low, says):
    (tmp_path / "top.toml").write_text('base = "low.toml"\n')
    if low is not None:
        (tmp_path / "low.toml").write_text(low)
    with pytest.raises(UserError, match=says) as error:
        load_recipe(str(tmp_path / "top.toml"))
    assert "\n" not in str(error.value)


def test_a_base_may_turn_a_section_into_a_value_no_more_than_a_recipe(tmp_path):
    (tmp_path / "low.toml").write_text("train = 3\n")
    (tmp_path / "top.toml").write_text('base = "low.toml"\n')
    with pytest.raises(UserError, match="train = 3"):
        load_recipe(str(tmp_path / "top.toml"))


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("imagenet-resnet50-musn", "imagenet-resnet50-msun"),
        ("cifar10-fine-tune", "cifar10-finetune"),
        ("study-msu", "study-msun"),
    ],
)
def test_did_you_mean(wrong, near):
    with pytest.raises(UserError, match=f"did you mean {near}"):
        load_recipe(wrong)


def test_header_entries():
    text = "# Paper and all.\n# paper     Table\n# command   a \\\n#           b\n\n# expected  1\n"
    assert read_header(text) == {"paper": "Table", "command": "a b"}
    assert read_header("verb = 1\n# paper  x") == {}
    assert read_header("") == {}


def test_listing_on_the_command_line(run, tmp_path):
    code, out, err = run("recipes")
    assert (code, err) == (0, "")
    assert all(name in out for name in shipped_recipes())
    code, out, _ = run("recipes", "--json", "-")
    rows = json.loads(out)
    assert (code, [row["name"] for row in rows]) == (0, list(shipped_recipes()))
    row = next(row for row in rows if row["name"] == "imagenet-vgg16-mst")
    keys = ("verb", "dataset", "arch", "method", "achieved")
    assert [row[key] for key in keys] == ["pretrain", "imagenet", "vgg16", "mst", "not run"]
    assert row["expected"].startswith("49.96 / ")
    assert all(all(row[word] for word in HEADER) for row in rows)
    code, _, _ = run("recipes", "--json", tmp_path / "r.json")
    assert (code, json.loads((tmp_path / "r.json").read_text())) == (0, rows)


def test_a_recipe_in_full(run):
    code, out, _ = run("recipes", "show", "cifar10-linear-probe")
    assert code == 0
    shown = tomllib.loads(out)
    assert (shown["verb"], shown["train"]["momentum"], shown["train"]["views"]) == (
        "linear-probe",
        0.9,
        "native",
    )
    assert Recipe.model_validate(shown) == load_recipe("cifar10-linear-probe")
    code, _, err = run("recipes", "show", "cifar11-linear-probe")
    assert (code, "did you mean cifar1" in err) == (2, True)


def test_a_file_is_checked(run, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[data]\ndataset = "shapes"\n')
    code, out, _ = run("recipes", "check", file)
    assert (code, out.strip()) == (0, f"{file}: a recipe for `finetune`: shapes, resnet50, msun")
    for text, says in (
        ("[train]\nlrr = 1", "unknown key 'train.lrr'; did you mean train.lr"),
        ('[train]\nviews = "nativ"', "views: unknown value 'nativ'; did you mean native"),
        ('[model]\nmethod = "msum"', "did you mean msun"),
        ("[model]\nscales = [64, 32]", "not ascending"),
    ):
        file.write_text(text)
        code, out, err = run("recipes", "check", file)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{file}: " in err
        assert says in err
    code, _, err = run("recipes", "check", tmp_path / "absent.toml")
    assert (code, "no such file" in err) == (2, True)
