"""The table of backbones: one row a family. Another family is another row."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torchvision.models import list_models

from msun_fastai.errors import UserError, did_you_mean
from msun_fastai.models import timm_names
from msun_fastai.models.backbones import Family, Paths
from msun_fastai.models.scalenet import scalenet, scalenet_blocks, scalenet_reducers
from msun_fastai.models.scalenet_names import parse_scalenet
from msun_fastai.models.thin import thin_resnet10


def vgg_pools(network: nn.Module) -> list[int]:
    """Where the pools are in a VGG's `features`: they end its five blocks."""
    features = network.get_submodule("features").children()
    return [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]


def vgg_blocks(network: nn.Module) -> Paths:
    """VGG's blocks, each up to and with its pool: 8 networks, 8 lists of numbers."""
    ends = [0, *(i + 1 for i in vgg_pools(network))]
    return tuple(f"features.{a}:{b}" for a, b in pairwise(ends))


def vgg_reducers(network: nn.Module) -> Paths:
    """The pools of VGG's first two blocks, last first."""
    return tuple(f"features.{i}" for i in reversed(vgg_pools(network)[:2]))


RESNET = ("layer1", "layer2", "layer3", "layer4")
INCEPTION_OPTIONS = {"aux_logits": False, "init_weights": True, "transform_input": True}
REGNET_BLOCKS = tuple(f"trunk_output.block{i}" for i in (1, 2, 3, 4))
REGNETS = (
    *("y_400mf", "y_800mf", "y_1_6gf", "y_3_2gf", "y_8gf", "y_16gf", "y_32gf", "y_128gf"),
    *("x_400mf", "x_800mf", "x_1_6gf", "x_3_2gf", "x_8gf", "x_16gf", "x_32gf"),
)
# of the names that the rule makes, the paper's, but for the deepest
SCALENETS = (
    *("scalenet32_d7", "scalenet44_d10", "scalenet98_d20s5", "scalenet124_d30"),
    *("scalenet103_d25", "scalenet68_d8d8", "scalenet38_d3d3s3", "scalenet48_d4d4s4"),
    *("scalenet54_d4d5s5", "scalenet59_d4d5s6"),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="resnet",
        archs=(
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
            *("wide_resnet50_2", "wide_resnet101_2"),
        ),
        blocks=("conv1 bn1 relu maxpool", *RESNET),
        head="avgpool @flatten fc",
        classifier="fc",
    ),
    Family(
        name="thin_resnet",
        archs=("thin_resnet10",),
        blocks=("conv1 bn1 relu maxpool", *RESNET),
        head="avgpool @flatten fc",
        classifier="fc",
        build_plain=lambda arch, n_classes: thin_resnet10(n_classes),
    ),
    Family(
        name="densenet",
        archs=("densenet121", "densenet161", "densenet169", "densenet201"),
        blocks=(
            "features.conv0 features.norm0 features.relu0 features.pool0",
            # a dense block and the transition behind it: the cut that gives the paper's 8.7M
            *(f"features.denseblock{i} features.transition{i}" for i in (1, 2, 3)),
            "features.denseblock4 features.norm5 @relu",
        ),
        head="@pool @flatten classifier",
        classifier="classifier",
    ),
    Family(
        name="vgg",
        archs=tuple(f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")),
        blocks=vgg_blocks,
        head="avgpool @flatten classifier",
        classifier="classifier.6",
        reducers=vgg_reducers,
    ),
    Family(
        name="mobilenet_v2",
        archs=("mobilenet_v2",),
        blocks=("features.0", "features.1:4", "features.4:7", "features.7:14", "features.14:"),
        head="@pool @flatten classifier",
        classifier="classifier.1",
        reducers=("features.0.0", "features.2.conv.1.0"),
    ),
    Family(
        name="mobilenet_v3_large",
        archs=("mobilenet_v3_large",),
        blocks=("features.0", "features.1:4", "features.4:7", "features.7:13", "features.13:"),
        head="avgpool @flatten classifier",
        classifier="classifier.3",
        reducers=("features.0.0", "features.2.block.1.0"),
    ),
    Family(
        name="mobilenet_v3_small",
        archs=("mobilenet_v3_small",),
        blocks=("features.0", "features.1", "features.2:4", "features.4:9", "features.9:"),
        head="avgpool @flatten classifier",
        classifier="classifier.3",
        reducers=("features.0.0", "features.1.block.0.0"),
    ),
    Family(
        name="efficientnet",
        archs=tuple(f"efficientnet_b{i}" for i in range(8)),
        blocks=("features.0", "features.1:3", "features.3", "features.4:6", "features.6:"),
        head="avgpool @flatten classifier",
        classifier="classifier.1",
        reducers=("features.0.0", "features.2.0.block.1.0"),
    ),
    Family(
        name="efficientnet_v2",
        archs=tuple(f"efficientnet_v2_{size}" for size in "sml"),
        blocks=("features.0", "features.1:3", "features.3", "features.4:6", "features.6:"),
        head="avgpool @flatten classifier",
        classifier="classifier.1",
        reducers=("features.0.0", "features.2.0.block.0.0"),
    ),
    Family(
        name="convnext",
        archs=tuple(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
        blocks=("features.0", "features.1", "features.2:4", "features.4:6", "features.6:"),
        head="avgpool classifier",
        classifier="classifier.2",
    ),
    Family(
        name="regnet",
        archs=tuple(f"regnet_{size}" for size in REGNETS),
        blocks=("stem", *REGNET_BLOCKS),
        head="avgpool @flatten fc",
        classifier="fc",
    ),
    # the three of Table I that no subnets fit: convolutions without padding, or a stride of 4 with
    # a kernel of 11, end in nothing on a small grid
    Family(
        name="googlenet",
        archs=("googlenet",),
        blocks=(
            "@inception_input conv1 maxpool1 conv2 conv3 maxpool2",
            "inception3a inception3b maxpool3",
            "inception4a inception4b inception4c inception4d inception4e maxpool4",
            "inception5a inception5b",
        ),
        head="avgpool @flatten dropout fc",
        classifier="fc",
        options=INCEPTION_OPTIONS,
        unused=("aux1.", "aux2."),
        subnets=False,
    ),
    Family(
        name="inception_v3",
        archs=("inception_v3",),
        blocks=(
            "@inception_input Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1",
            "Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2",
            "Mixed_5b Mixed_5c Mixed_5d",
            "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e",
            "Mixed_7a Mixed_7b Mixed_7c",
        ),
        head="avgpool dropout @flatten fc",
        classifier="fc",
        options=INCEPTION_OPTIONS,
        unused=("AuxLogits.",),
        subnets=False,
    ),
    Family(
        name="alexnet",
        archs=("alexnet",),
        blocks=("features.0:3", "features.3:6", "features.6:"),
        head="avgpool @flatten classifier",
        classifier="classifier.6",
        subnets=False,
    ),
    Family(
        name="scalenet",
        archs=SCALENETS,
        blocks=scalenet_blocks,
        head="avgpool @flatten classifier",
        classifier="classifier",
        reducers=scalenet_reducers,
        build_plain=scalenet,
        check_name=parse_scalenet,
    ),
    Family(
        name="timm_resnet",
        timm_module="resnet",
        blocks=("conv1 bn1 act1 maxpool", *RESNET),
        head="global_pool fc",
        classifier="fc",
        build_plain=timm_names.build,
    ),
    Family(
        name="timm_regnet",
        timm_module="regnet",
        blocks=("stem", "s1", "s2", "s3", "s4 final_conv"),
        head="head",
        classifier="head.fc",
        build_plain=timm_names.build,
    ),
    Family(
        name="timm_convnext",
        timm_module="convnext",
        blocks=("stem", "stages.0", "stages.1", "stages.2", "stages.3 norm_pre"),
        head="head",
        classifier="head.fc",
        build_plain=timm_names.build,
    ),
)


def known_archs() -> list[str]:
    """The name of every backbone that can be built without timm."""
    return sorted(arch for family in FAMILIES for arch in family.archs)


def register_family(family: Family) -> Family:
    """Make a row of your own known: `msun_learner`, `build_net` and saved models find its networks.

    It lasts as long as the process, so that a model of it loads where it was registered before;
    the same row again changes nothing. Raises `UserError` for a network that is known already,
    timm's among them, and for a row without names. What is wrong with its blocks shows when a
    network is built.
    """
    global FAMILIES
    if family in FAMILIES:
        return family
    if not family.archs:
        raise UserError(f"family {family.name!r}: archs is empty; name the networks that it is of")
    taken = [arch for arch in family.archs if _is_known(arch)]
    if taken:
        raise UserError(f"family {family.name!r}: {', '.join(taken)} is in the table already")
    FAMILIES = (*FAMILIES, family)
    return family


def _is_known(arch: str) -> bool:
    if any(family.check_name and arch.startswith(family.name) for family in FAMILIES):
        return True  # a naming rule has all names that begin so, those against it, too
    try:
        find_family(arch)
    except UserError:
        return False
    return True


def find_family(arch: str) -> Family:
    """The family of `arch`, or a `UserError` that names what is near.

    A name that both have is torchvision's; one with a tag, such as `resnet50.a1_in1k`, is timm's.
    """
    for family in FAMILIES:
        if arch in family.archs:
            return family
        if family.check_name and arch.startswith(family.name):
            family.check_name(arch)
            return family
    modules = {f.timm_module: f for f in FAMILIES if f.timm_module}
    module = timm_names.module_of(arch, tuple(modules))
    if module is not None:
        timm_names.check_tag(arch)
        return modules[module]
    raise UserError(f"arch: {_unknown(arch, list(modules))}")


def _unknown(arch: str, modules: list[str]) -> str:
    """Why `arch` has no family, and what is near it."""
    near = did_you_mean(arch.lower(), [*known_archs(), *timm_names.names(modules)])
    if near.startswith("known"):
        near = f"families: {', '.join(f.name for f in FAMILIES)}; README lists their networks"
    if arch in list_models():
        what = f"{arch!r} is torchvision's, but no family that is supported has it"
    elif timm_names.has(arch):
        what = f"{arch!r} is timm's, but of its families {', '.join(modules)} alone are supported"
    else:
        what = f"unknown backbone {arch!r}"
    return f"{what}; {near}" + ("" if timm_names.installed() else f"; {timm_names.INSTALL}")
