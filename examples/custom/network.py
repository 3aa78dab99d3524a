"""A network of your own: a plain MLP learns the digits. python examples/custom/network.py [FOLDER]"""

import sys
import tempfile
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

import justimage as ji


@dataclass(frozen=True)
class PlainConfig:
    size: tuple[int, ...] = (28, 28)  # every network says its size and its channels; the rest is yours
    channels: int = 1
    width: int = 512


class Plain(nn.Module):
    Config = PlainConfig  # how a saved configuration is read again

    def __init__(self, config: PlainConfig):
        super().__init__()
        self.config, n, w = config, config.channels * prod(config.size), config.width
        hidden = nn.Linear(n + 1, w), nn.SiLU(), nn.Linear(w, w), nn.SiLU()
        self.layers = nn.Sequential(*hidden, nn.Linear(w, n), nn.Tanh())  # pixels lie between -1 and 1

    def forward(self, z, t, y=None):  # z (B, C, *S), t (B,); without a `condition`, y is None
        return self.layers(torch.cat((z.flatten(1), t[:, None]), 1)).view_as(z)


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
source = ji.open_source("mnist", (28, 28), 1)
recipe = ji.Recipe(PlainConfig(), ji.Training(duration_nimg=12_800, batch_size=128, lr=2e-3, ema_decays=()))
ji.train_run(recipe, source, folder, network=Plain)
digits = ji.load(folder, network=Plain).sample(seeds=range(20))  # from weights and config.json, in any process
ji.grid(digits, source.spec, columns=10).save(f"{folder}/digits.png")
print(f"20 digits drawn from the saved weights: {folder}/digits.png")
