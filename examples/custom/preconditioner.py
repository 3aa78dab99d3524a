"""A pre-conditioner of your own: x = c_skip z + c_out net. python examples/custom/preconditioner.py [FOLDER]"""

import sys
import tempfile

import torch

import justimage as ji


def wiener(t, noise_scale):  # t (B, 1, ..., 1) -> (c_skip, c_out)
    """The best linear guess of data with standard deviation 0.5, and the error that is left of it for the network."""
    signal, noise = 0.25 * t.square(), (noise_scale * (1 - t)).square()
    return 0.25 * t / (signal + noise), 0.5 * noise.sqrt() / (signal + noise).sqrt()


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
source = ji.open_source("mnist", (28, 28), 1)
training = ji.Training(duration_nimg=12_800, batch_size=128, lr=2e-3, ema_decays=())
recipe = ji.Recipe(ji.MLPConfig((28, 28), width=512), training, ji.Sampling(guidance=2.0, steps=25))
state = ji.train_run(recipe, source, folder, preconditioner=wiener)

try:  # it is part of what the weights mean: they record its name, and are not read without the function
    ji.load(folder)
except ValueError as refused:
    print(refused)
model = ji.load(folder, preconditioner=wiener)
z, t = torch.randn(1, 1, 28, 28), torch.ones(1)
assert torch.allclose(model(z, t).to("x"), z)  # at t = 1 the state is the data, whatever the network says
ji.grid(model.sample(range(10)), source.spec, columns=10).save(f"{folder}/digits.png")
