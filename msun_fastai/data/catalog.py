"""The datasets that go by a name, one row each: what is in them, where they are, who made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Entry:
    """A dataset: its repository on the hub, its splits, and what is odd about it.

    hub_id, revision, image, label: the repository, which state of it, and its columns; an empty
    hub_id is a dataset that no hub holds. splits: number of images by the hub's name of the split.
    train, valid, test: which of them are which part; an empty `valid` or `test` has no split of its
    own. classes: their number. sides: native shorter side in pixels, in words. official: the folder
    of the official archives below the data root, in torchvision's layout. trim: pixels cut from the
    bottom of every image. per_class: images a class to train on where there is one split alone, the
    rest being tested on. access: what a user has to do first, where it is not for anybody.
    """

    name: str
    title: str
    hub_id: str
    classes: int
    splits: Mapping[str, int]
    sides: str
    licence: str
    citation: str
    revision: str = "main"
    image: str = "image"
    label: str = "label"
    train: str = "train"
    valid: str = ""
    test: str = "test"
    official: str = ""
    trim: int = 0
    per_class: int = 0
    access: str = ""

    @property
    def size(self) -> int:
        """All images of all splits."""
        return sum(self.splits.values())

    @staticmethod
    def unknown(name: str) -> Entry:
        """A dataset that is not in the catalogue: nothing is expected of it."""
        return Entry(name, name, "", 0, _splits(), "", "", "", test="")


def _splits(**counts: int) -> Mapping[str, int]:
    return MappingProxyType(counts)


ENTRIES = (
    Entry(
        name="cifar10",
        title="CIFAR-10",
        hub_id="uoft-cs/cifar10",
        classes=10,
        splits=_splits(train=50_000, test=10_000),
        sides="32",
        licence="not stated",
        citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        image="img",
        official="cifar-10-batches-py",
    ),
    Entry(
        name="cifar100",
        title="CIFAR-100",
        hub_id="uoft-cs/cifar100",
        classes=100,
        splits=_splits(train=50_000, test=10_000),
        sides="32",
        licence="not stated",
        citation="Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        image="img",
        label="fine_label",
        official="cifar-100-python",
    ),
    Entry(
        name="stl10",
        title="STL-10",
        hub_id="tanganke/stl10",
        classes=10,
        splits=_splits(train=5_000, test=8_000),
        sides="96",
        licence="not stated",
        citation="Coates, Lee, Ng: An Analysis of Single-Layer Networks, AISTATS 2011",
        official="stl10_binary",
    ),
    Entry(
        name="caltech101",
        title="Caltech-101",
        hub_id="flwrlabs/caltech101",
        classes=101,
        splits=_splits(train=8_677),
        sides="about 200",
        licence="CC-BY-4.0",
        citation="Fei-Fei, Fergus, Perona: Learning Generative Visual Models, CVPRW 2004",
        test="",
        per_class=30,  # the usual protocol: there is no official split
        official="caltech101/101_ObjectCategories",
    ),
    Entry(
        name="fashion_mnist",
        title="Fashion-MNIST",
        hub_id="zalando-datasets/fashion_mnist",
        classes=10,
        splits=_splits(train=60_000, test=10_000),
        sides="28, grey",
        licence="MIT",
        citation="Xiao, Rasul, Vollgraf: Fashion-MNIST, arXiv:1708.07747",
        official="FashionMNIST/raw",
    ),
    Entry(
        name="oxford_flowers102",
        title="Oxford 102 Flowers",
        hub_id="Donghyun99/Oxford-Flower-102",
        classes=102,
        splits=_splits(train=1_020, validation=1_020, test=6_149),
        sides="about 500",
        licence="unclear",
        citation="Nilsback, Zisserman: Automated Flower Classification, ICVGIP 2008",
        valid="validation",
        official="flowers-102",
    ),
    Entry(
        name="oxford_pets",
        title="Oxford-IIIT Pets",
        hub_id="timm/oxford-iiit-pet",
        classes=37,
        splits=_splits(train=3_680, test=3_669),
        sides="about 500",
        licence="CC-BY-SA-4.0",
        citation="Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs, CVPR 2012",
        official="oxford-iiit-pet",
    ),
    Entry(
        name="stanford_cars",
        title="Stanford Cars",
        hub_id="tanganke/stanford_cars",
        classes=196,
        # the repository has 7 corrupted splits beside these, which nobody needs to download
        splits=_splits(train=8_144, test=8_041),
        sides="43 to 7,000, very mixed",
        licence="for research",
        citation="Krause, Stark, Deng, Fei-Fei: 3D Object Representations, 3dRR 2013",
        official="stanford_cars",
    ),
    Entry(
        name="fgvc_aircraft",
        title="FGVC Aircraft",
        hub_id="Donghyun99/FGVC-Aircraft",
        classes=100,
        splits=_splits(train=3_334, val=3_333, test=3_333),
        sides="775 to 1,600 wide",
        licence="for non-commercial research",
        citation="Maji, Kannala, Rahtu, Blaschko, Vedaldi: FGVC Aircraft, arXiv:1306.5151",
        valid="val",
        official="fgvc-aircraft-2013b",
        trim=20,  # a banner with the photographer's name
    ),
    Entry(
        name="dtd",
        title="Describable Textures",
        hub_id="mcimpoi/dtd_split_1",  # the first of its ten splits, as in the paper
        classes=47,
        splits=_splits(train=1_880, validation=1_880, test=1_880),
        sides="300 to 640",
        licence="CC-BY-4.0",
        citation="Cimpoi, Maji, Kokkinos, Mohamed, Vedaldi: Describing Textures, CVPR 2014",
        valid="validation",
        official="dtd/dtd",
    ),
    Entry(
        name="raf_db",
        title="RAF-DB (basic)",
        hub_id="",
        classes=7,
        splits=_splits(train=12_271, test=3_068),
        sides="100, aligned faces",
        licence="academic, not to be passed on",
        citation="Li, Deng, Du: Reliable Crowdsourcing for Expression Recognition, CVPR 2017",
        official="raf_db/basic",
        access="ask its authors by e-mail and unpack "
        "basic/Image/aligned and basic/EmoLabel into DIR/raf_db",
    ),
    Entry(
        name="imagenet",
        title="ImageNet (ILSVRC 2012)",
        hub_id="ILSVRC/imagenet-1k",
        classes=1000,
        splits=_splits(train=1_281_167, validation=50_000),
        sides="about 375",
        licence="non-commercial",
        citation="Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
        valid="validation",
        test="",  # its labels are not public
        official="imagenet",
        access="accept its terms on the hub and log in with `hf auth login`, or put class folders "
        "into DIR/imagenet/train and DIR/imagenet/val",
    ),
)
CATALOG: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}
# what needs no files: drawn by the code, or part of scikit-learn
EMBEDDED = ("digits", "shapes")


def known_datasets() -> list[str]:
    """Every name that `--dataset` takes without a data root of its own."""
    return sorted([*CATALOG, *EMBEDDED])
