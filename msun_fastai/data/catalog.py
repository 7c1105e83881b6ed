"""The datasets that go by a name, one row each: where they are, what their columns are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A dataset repository on the hub, and how it is read.

    `valid` is the split that training is watched on: the dataset's validation split where it has
    one, else its test split. An empty `hub_id` is a dataset that no hub holds.
    """

    name: str
    hub_id: str
    classes: int
    image: str = "image"
    label: str = "label"
    train: str = "train"
    valid: str = "test"


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("cifar10", "uoft-cs/cifar10", 10, image="img"),
        Entry("cifar100", "uoft-cs/cifar100", 100, image="img", label="fine_label"),
        Entry("stl10", "tanganke/stl10", 10),
        Entry("caltech101", "flwrlabs/caltech101", 101),
        Entry("fashion_mnist", "zalando-datasets/fashion_mnist", 10),
        Entry("oxford_flowers102", "Donghyun99/Oxford-Flower-102", 102, valid="validation"),
        Entry("oxford_pets", "timm/oxford-iiit-pet", 37),
        Entry("stanford_cars", "tanganke/stanford_cars", 196),
        Entry("fgvc_aircraft", "Donghyun99/FGVC-Aircraft", 100, valid="val"),
        Entry("dtd", "mcimpoi/dtd_split_1", 47, valid="validation"),
        Entry("imagenet", "ILSVRC/imagenet-1k", 1000, valid="validation"),
    )
}
EMBEDDED = ("shapes",)  # drawn by the code, no files


def known_datasets() -> list[str]:
    """Every name that `--dataset` takes without a data root of its own."""
    return sorted([*CATALOG, *EMBEDDED])
