"""From a recipe's data section to its images."""

from __future__ import annotations

from msun_fastai.data.samples import Source
from msun_fastai.data.sources import data_root, source_from_name, source_from_path
from msun_fastai.data.stream import StreamSource, stream_source
from msun_fastai.errors import UserError
from msun_fastai.recipe import DataSection, Recipe


def load_source(recipe: Recipe) -> Source | StreamSource:
    """The recipe's data, limited as it says. Raises `UserError`."""
    data = recipe.data
    seed = recipe.train.seed if data.seed is None else data.seed
    if (data.dataset is None) == (data.path is None):
        raise UserError("name the data: either --dataset NAME or --data PATH")
    if data.stream:
        return _load_stream(data)
    if data.hub_id or data.revision:
        raise UserError(
            "data.hub_id, data.revision: for data.stream; `msun-fastai datasets prepare` takes "
            "--hub-id and --revision"
        )
    if data.dataset is not None:
        source = source_from_name(data.dataset, data.root, seed)
    else:
        columns = data.model_dump(include={"path_column", "label_column", "split_column"})
        source = source_from_path(str(data.path), data.valid_fraction, seed, columns)
    if data.classes is not None:
        source = source.of_classes(data.classes)
    if data.carve is not None:
        source = source.carved(data.carve, seed)
    return source.limited(data.limit, seed)


def _load_stream(data: DataSection) -> Source | StreamSource:
    if data.dataset is None:
        raise UserError("data.stream: streams a dataset by name; name it with --dataset")
    if data.classes is not None:
        raise UserError("data.classes: a stream is read as it is; choose one of them")
    if data.carve is not None:
        raise UserError("data.carve: nothing can be carved out of a stream; choose one of them")
    if data.cache and data.limit is None:
        raise UserError("data.cache: a stream keeps nothing in memory; choose one of them")
    source = stream_source(data.dataset, data_root(data.root), data.hub_id, data.revision)
    return source if data.limit is None else source.first(data.limit)
