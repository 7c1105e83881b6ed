"""Memory that tensors free stays in the process, where it is ours alone."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
{call}
def step():
    for _ in range(10):
        torch.ones(12_000_000)  # 48 MB: above what malloc keeps by itself
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call, **environment):
    out = subprocess.run(
        [sys.executable, "-c", CODE.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", **environment},
    )
    return int(out.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone has the option")
def test_pages_are_faulted_in_once():
    keep = "from msun_fastai.memory import keep_freed_memory; print(end='' if {} else 'no')"
    usual = faults("")
    assert usual > 1000
    assert faults(keep.format("keep_freed_memory()")) < usual / 100
    left_alone = faults(keep.format("not keep_freed_memory()"), MALLOC_TRIM_THRESHOLD_="131072")
    assert left_alone > 1000
