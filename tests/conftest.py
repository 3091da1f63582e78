"""Without a GPU, Triton's kernels run in its interpreter."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, as some libraries do
