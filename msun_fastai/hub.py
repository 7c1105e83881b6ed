"""Models on the Hugging Face hub: `MSUN.from_pretrained`, `save_pretrained`, and pushing a run."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from torch import nn

from msun_fastai.card import PICTURE, model_card, plain_card
from msun_fastai.errors import UserError
from msun_fastai.files import write_text
from msun_fastai.models.saving import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SavedModel,
    find_model_folder,
    load_model_folder,
    save_model_folder,
)
from msun_fastai.predict import Prediction, Predictor

CARD = "README.md"


class MSUN(nn.Module, PyTorchModelHubMixin):
    """A trained network with its classes and preprocessing, for images of any size.

    >>> model = MSUN.from_pretrained("runs/cars")              # doctest: +SKIP
    >>> model.predict("photo.jpg").label                       # doctest: +SKIP
    """

    def __init__(self, saved: SavedModel):
        super().__init__()
        self.model = saved.model
        self.classes, self.preprocessing = saved.classes, saved.preprocessing
        self.eval()

    @property
    def saved(self) -> SavedModel:
        """What a model folder holds."""
        return SavedModel(self.model, self.classes, self.preprocessing)

    def forward(self, *views: torch.Tensor) -> Any:
        """Logits (n, classes) of normalised images (n, 3, side, side); see `MultiScaleNet`."""
        return self.model(*views)

    def predict(self, source: Any, top: int = 5) -> Prediction:
        """One image of any size: a path, bytes, Pillow image, array or tensor.

        Raises `ImageError`.
        """
        return Predictor(self.saved, workers=1).predict_one(source, top)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> MSUN:
        """The model in a folder (a run's, a model's, one that `save_pretrained` wrote), or the one
        of a repository on the hub.

        Two files are fetched, `config.json` and `model.safetensors`, and checked before they are
        used, as every model folder is; no code in them is run. Raises `UserError`.
        """
        name = str(pretrained_model_name_or_path)
        if Path(name).is_dir():
            return cls(load_model_folder(name, device))
        options: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        with _hub_errors(name):
            files = [hf_hub_download(name, file, **options) for file in (CONFIG_FILE, WEIGHTS_FILE)]
        return cls(load_model_folder(Path(files[0]).parent, device))

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model_folder(save_directory, self.saved)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card that says what the network is; `push` writes one of the whole run."""
        return ModelCard(plain_card(self.saved, kwargs.get("repo_id", "FOLDER")))


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What the hub answers, as errors of one line."""
    try:
        yield
    except (HFValidationError, OfflineModeIsEnabled, HTTPError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # its messages come with the address and advice for its own command
        told = next((line.strip() for line in lines if re.search(r"\w", line)), lines[0])
        raise UserError(f"hub {name}: {told}") from error


def write_repository(run: Path | str, name: str, folder: Path, license: str | None = None) -> Path:
    """What `push` uploads for `run`, in `folder`: the model folder's two files, the card of the
    repository `name`, and the picture in it. Raises `UserError`."""
    with _hub_errors(name):
        validate_repo_id(name)
    model_folder = find_model_folder(run)
    saved = load_model_folder(model_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(model_folder / file, folder / file)
    picture = Path(run) / "report" / PICTURE
    if picture.is_file():
        shutil.copyfile(picture, folder / PICTURE)
    write_text(folder / CARD, model_card(run, saved, name, license))
    return folder


def push(
    run: Path | str,
    name: str,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload the model of `run` with its card to the repository `name` on the hub, which is made if
    it is not there; returns the address of the commit. Raises `UserError`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_repository(run, name, Path(scratch), license)
        with _hub_errors(name):
            api = HfApi(token=token)
            made = api.create_repo(name, private=private, exist_ok=True).repo_id
            return api.upload_folder(
                repo_id=made,
                folder_path=folder,
                revision=revision,
                commit_message="Model and card from msun-fastai",
            )
