"""A density of training times of your own: uniform, or any other. python examples/custom/density.py [FOLDER]"""

import sys
import tempfile
from dataclasses import dataclass

import torch

import justimage as ji


@dataclass(frozen=True)
class Uniform:  # a frozen dataclass, so that recipe.json can say which density it was, and with which numbers
    low: float = 0.0
    high: float = 1.0

    def times(self, normals):  # standard normal numbers (B,) -> times (B,); t = 0 is noise, t = 1 data
        return self.low + (self.high - self.low) * torch.special.ndtr(normals)


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
source = ji.open_source("mnist", (28, 28), 1)


def recipe(times: ji.Density) -> ji.Recipe:
    training = ji.Training(duration_nimg=12_800, batch_size=128, lr=2e-3, ema_decays=(), times=times)
    return ji.Recipe(ji.MLPConfig((28, 28), width=512), training, ji.Sampling(guidance=2.0, steps=25))


ji.train_run(recipe(Uniform()), source, folder)
try:  # another density is another run: it does not resume this one
    ji.train_run(recipe(Uniform(high=0.9)), source, folder)
except ValueError as refused:
    print(refused)

model = ji.load(folder)  # how times were drawn is not part of a model
ji.grid(model.sample(range(10)), source.spec, columns=10).save(f"{folder}/digits.png")
