"""`msun-fastai linear-probe`: how good a network's features are on other images."""

from msun_fastai.cli.training import PROTOCOL, training_verb

linear_probe = training_verb(
    "linear-probe",
    "Train a linear classifier on the features of a network that stays as it is.",
    PROTOCOL,
)
