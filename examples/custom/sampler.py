"""A sampler of your own: the classical Runge-Kutta method on a grid of your own. sampler.py [FOLDER]"""

import sys
import tempfile

import torch

import justimage as ji


def rk4(predict, z, t, t_next):  # one step from z (B, C, *S) at t to t_next, fourth order, four evaluations
    h = t_next - t
    k1 = predict(z, t).to("v")
    k2 = predict(z + h / 2 * k1, t + h / 2).to("v")
    k3 = predict(z + h / 2 * k2, t + h / 2).to("v")
    k4 = predict(z + h * k3, t_next).to("v")
    return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def denser_at_noise(steps):  # -> (steps + 1,) times from 0 to 1
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** 1.5


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
source = ji.open_source("mnist", (28, 28), 1)
training = ji.Training(duration_nimg=12_800, batch_size=128, lr=2e-3, ema_decays=())
ji.train_run(ji.Recipe(ji.MLPConfig((28, 28), width=512), training), source, folder)

model = ji.load(folder)
exact = model.sample(range(10), steps=200, sampler="heun", final="x", raw=False)
for steps in (5, 10, 20):
    drawn = model.sample(range(10), steps=steps, step=rk4, grid=denser_at_noise, final="x", raw=False)
    print(f"{steps:3} steps of rk4: {(drawn - exact).abs().mean():.4f} from 200 steps of Heun's method")
ji.grid(drawn, source.spec, columns=10, raw=False).save(f"{folder}/digits.png")
