"""Which device to compute on."""

from __future__ import annotations

import torch

from msun_fastai.errors import UserError


def pick_device(name: str | None) -> torch.device:
    """The device called `name`, or the accelerator if there is one, else the CPU.

    Raises `UserError` for a device that is not there or that nobody has heard of.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"device {name!r}: not to be used here ({first})") from error
    return device
