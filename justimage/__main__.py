"""python -m justimage: the command `jit`, also under torchrun and from a plain checkout."""

import sys

from justimage.commands.main import run

sys.exit(run())
