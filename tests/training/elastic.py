"""The command line on a tiny network, as torchrun starts it; each process leaves its number."""

import os
from pathlib import Path

import pytest
import torch
from tiny import use_tiny

from alexnet_lib import cli
from alexnet_lib.training import distributed

if __name__ == "__main__":
    torch.set_num_threads(1)
    attempt, rank = (os.environ[name] for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    Path(f"attempt {attempt} rank {rank}").write_text(str(os.getpid()))
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        if waiting := os.environ.get("WAIT_SECONDS"):
            patch.setattr(distributed, "WAIT_SECONDS", float(waiting))
        cli.main()
