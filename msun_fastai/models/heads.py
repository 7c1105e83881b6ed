"""The classifiers of a network: found, replaced for other classes, and what they see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.families import find_family
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.saving import SavedModel

ENSEMBLE = "ensemble."  # how the names of an ensemble's weights begin


def classifiers(net: MultiScaleNet) -> list[nn.Linear]:
    """The last linear layer of each head: one for all scales, or one each where heads are private.

    Raises `UserError` for a family that ends in something else, as SqueezeNet in a convolution.
    """
    path = find_family(net.config.arch).classifier
    found = {id(layer): layer for layer in (head.get_submodule(path) for head in net.head)}
    layers = [layer for layer in found.values() if isinstance(layer, nn.Linear)]
    if len(layers) < len(found):
        kind = type(next(iter(found.values()))).__name__
        raise UserError(
            f"arch: the classifier of {net.config.arch} is a {kind}, not a linear layer"
        )
    return layers


def without_classifiers(net: MultiScaleNet) -> dict[str, Tensor]:
    """The state of `net` but for its classifiers: all that its features depend on."""
    path = find_family(net.config.arch).classifier
    own = tuple(f"head.{i}.{path}." for i in range(len(net.head)))
    return {name: value for name, value in net.state_dict().items() if not name.startswith(own)}


def with_classes(
    saved: SavedModel, classes: Sequence[str], ensemble: bool | None = None
) -> MultiScaleNet:
    """A copy of the trained network of `saved` that answers with `classes`, on the same device.

    Its classifiers are new, as the family's builder initialises them, unless these are the classes
    it was trained on, in the same order. ensemble: whether it has one, see `NetConfig`; as before
    where it is None.
    """
    refuse_fitted(saved.model.config)
    old = saved.model
    kept = old.config.ensemble if ensemble is None else ensemble
    config = replace(old.config, n_classes=len(classes), ensemble=kept)
    same = list(classes) == list(saved.classes)
    state = old.state_dict() if same else without_classifiers(old)
    state = {name: value for name, value in state.items() if not name.startswith(ENSEMBLE)}
    net = MultiScaleNet(config, find_family(config.arch).build(config.arch, config.n_classes))
    strange = net.load_state_dict(state, strict=False).unexpected_keys
    missing = without_classifiers(net).keys() - state.keys()
    if strange or any(not name.startswith(ENSEMBLE) for name in missing):
        raise RuntimeError(f"{config.arch}: not the network of its own configuration")
    if kept and old.ensemble is not None and net.ensemble is not None and same:
        net.ensemble.load_state_dict(old.ensemble.state_dict())
    return net.to(next(old.parameters()).device).train(old.training)


def refuse_fitted(config: NetConfig, name: str = "this network") -> None:
    """Raise `UserError` for a network that was fitted to sizes: it has lost its scales."""
    if config.test_size is not None:
        raise UserError(
            f"{name}: is calibrated for {config.test_size} pixels alone; start from its parent"
        )
    if config.test_sizes is not None:
        raise UserError(f"{name}: is calibrated for input sizes; start from its parent")


@contextmanager
def classifier_inputs(net: MultiScaleNet, i: int) -> Iterator[list[Tensor]]:
    """A list to which each pass at the scale of index `i` adds what its classifier saw: (n, d)."""
    heads = classifiers(net)
    seen: list[Tensor] = []
    # a hook, for the layers before it are nested as each family nests them
    layer = heads[i] if len(heads) > 1 else heads[0]
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()


@torch.no_grad()
def penultimate(net: MultiScaleNet, view: Tensor, i: int) -> Tensor:
    """What the classifier of the scale with index `i` sees of a view of that side: (n, d).

    view: (n, 3, side, side), normalised. `net` is put in evaluation mode.
    """
    with classifier_inputs(net, i) as seen:
        net.eval().at_scale(i)(view)
    return seen[0]
