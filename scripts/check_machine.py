"""Before anything is installed: is this Python new enough, and how large is the torch to come?"""

import platform
import shutil
import sys

FLOOR = (3, 11)


def main(torch_index: str) -> int:
    """Print what a user should know first; return 1 where the set-up can't work."""
    if sys.version_info < FLOOR:
        found = platform.python_version()
        print(f"surgery needs Python 3.11 or newer, and this is {found}.")
        print("  fix: make PYTHON=python3.12")
        return 1
    has_gpu = shutil.which("nvidia-smi") is not None
    if platform.system() == "Linux" and not has_gpu and not torch_index:
        print("No NVIDIA GPU here. The default torch brings CUDA libraries, 2.7 GB (torch 2.13.0).")
        print("  The CPU build is 0.2 GB: make TORCH_INDEX=https://download.pytorch.org/whl/cpu")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
