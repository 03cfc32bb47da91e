"""One OpenMP runtime in the process: torch's, which cnnfast's kernels run on."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import re, torch, cnnfast, cnnfast.functional as F
torch.set_num_threads(2)
F.conv2d_relu_max_pool2d(torch.randn(8, 1, 28, 28), torch.randn(12, 1, 3, 3), padding=1).sum()
x = torch.randn(8, 12, 14, 14, requires_grad=True)
F.conv2d(x, torch.randn(24, 12, 3, 3)).sum().backward()
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*sorted(path for path in libraries if re.search(r"/lib(gomp|iomp5?|omp)[-.\\w]*\\.so", path)), sep="\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_one_openmp_runtime() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert len(result.stdout.split()) == 1, result.stdout
