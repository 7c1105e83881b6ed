"""`msun-fastai pretrain`: train from random weights, as the paper does on ImageNet."""

from msun_fastai.cli.training import training_verb

pretrain = training_verb(
    "pretrain",
    "Train a network from random weights with the paper's settings, for others to start from.\n\n"
    "In several processes: torchrun --nproc-per-node N -m msun_fastai pretrain ...",
)
