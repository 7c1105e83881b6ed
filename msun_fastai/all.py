"""The Python API in one import: fastai's vision names and ours, for notebooks."""

from fastai.vision.all import *  # noqa: F403  a notebook wants fastai's names beside ours

from msun_fastai.callbacks.alignment import aligning
from msun_fastai.callbacks.consistency import (
    EnsembleDistillation,
    ScaleDistillation,
    ScaleInvariance,
)
from msun_fastai.callbacks.views import MultiScaleViews, ScaleAccuracy
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.native import NativeImage
from msun_fastai.data.native_dl import NativeDL, NativeImageBlock
from msun_fastai.interpret import MultiScaleInterpretation
from msun_fastai.learner import Consistency, msun_cbs, msun_learner, save_learner
from msun_fastai.losses import alignment_loss, ensemble_loss, sd_loss, si_loss
from msun_fastai.models.ideal import ideal_network, proxy_network
from msun_fastai.models.moments import recalibrate
from msun_fastai.models.net import MultiScaleNet, MultiScaleOutput, NetConfig
from msun_fastai.models.saving import load_model_folder, save_model_folder
from msun_fastai.models.thin import thin_resnet10
from msun_fastai.models.weights import build_net
from msun_fastai.scales import route, sweep_sizes
