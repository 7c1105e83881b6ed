"""Which device to compute on, in which precision, and how one says that its memory is full."""

from __future__ import annotations

import torch

from msun_fastai.errors import UserError
from msun_fastai.scales import check_choice

PRECISIONS = ("full", "bf16", "fp16")
DTYPES = {"full": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def check_precision(precision: str, device: torch.device) -> str:
    """`precision` where `device` has it, else a `UserError` that names what it has."""
    check_choice("precision", precision, PRECISIONS)
    if device.type == "cpu" and precision == "fp16":
        raise UserError("precision fp16: not on the CPU; it takes full and bf16")
    if device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("precision bf16: not on this GPU; it takes full and fp16")
    return precision


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a tensor found no room: PyTorch's own error, or its CPU allocator's."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
