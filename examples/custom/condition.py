"""A condition of your own: an angle, a place on a circle. python examples/custom/condition.py [FOLDER]"""

import sys
import tempfile
from dataclasses import replace

import torch

import justimage as ji


class Angle(torch.nn.Linear):  # a linear map from the plane of the circle
    needs = (("angle", "vector", 1, 0),)  # what the data must give: name, kind, features, tokens

    def null(self, count, size, device):  # the value that means "no angle", for guidance
        return {"angle": torch.full((count, 1), torch.nan, device=device)}

    def drop(self, y, draws, rate):  # in training, a share of the samples has none
        return ji.replace_rows(y, self.null(len(draws), (), draws.device), draws < rate)

    def forward(self, y, like):  # what the network gets; no angle is the centre of the circle
        circle = torch.cat((y["angle"].cos(), y["angle"].sin()), 1).nan_to_num()
        return ji.Reach(vector=super().forward(circle))


class AngleJiT(ji.JiT):
    def __init__(self, config: ji.JiTConfig):
        super().__init__(config, condition=Angle(2, config.width))


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
ring, angle, asked = (2 * torch.pi * torch.arange(n) / n for n in (32, 2000, 100))  # bumps on a ring
source = ji.Arrays(torch.exp(torch.cos(ring - angle[:, None, None])).numpy(), given={"angle": angle.numpy()})
source.spec = replace(source.spec, given=(ji.Given("angle", "vector", 1, mean=(0.0,), scale=(1.0,)),))  # in radians
config = ji.JiTConfig((32,), (4,), channels=1, num_classes=0, width=64, depth=3, heads=4, context_tokens=0)
recipe = ji.Recipe(config, ji.Training(duration_nimg=12_800, batch_size=64, lr=2e-3, ema_decays=()))
ji.train_run(recipe, source, folder, network=AngleJiT)
x = ji.load(folder, network=AngleJiT).sample(condition={"angle": asked}, steps=20)[:, 0]
error = (x * torch.exp(1j * (ring - asked[:, None]))).sum(1).angle().abs().mean()
print(f"bumps stand {error:.3f} radians from where they were asked for, on average")
