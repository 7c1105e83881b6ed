"""`msun-fastai finetune`: train on a dataset or a folder, measure at every size."""

from msun_fastai.cli.training import training_verb

finetune = training_verb(
    "finetune", "Train a classifier on images of mixed sizes and test it at every size."
)
