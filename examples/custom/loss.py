"""A loss of your own: a pseudo-Huber error in place of the square. python examples/custom/loss.py [FOLDER]"""

import sys
import tempfile
from dataclasses import replace
from functools import partial

import justimage as ji


def pseudo_huber(prediction, x, eps, space, *, c=0.1):  # -> (B,), how far each prediction is from the truth
    """A square near zero, an absolute value far away, so that no sample rules its batch (arXiv 2310.14189)."""
    truth = replace(prediction, value=x)  # the network predicts x; floors on the way to `space` are the same for both
    squares = (prediction.to(space) - truth.to(space)).square().flatten(1).mean(1)
    return (squares + c**2).sqrt() - c


folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
source = ji.open_source("mnist", (28, 28), 1)
training = ji.Training(duration_nimg=12_800, batch_size=128, lr=1e-3, schedule="cosine", ema_decays=())
recipe = ji.Recipe(ji.MLPConfig((28, 28), width=512), training, ji.Sampling(guidance=2.0, steps=25))
ji.train_run(recipe, source, folder, loss=partial(ji.flow_matching, compare=pseudo_huber))

try:
    ji.train_run(recipe, source, folder)
except ValueError as refused:
    print(refused)

model = ji.load(folder)  # a loss is no part of a model
ji.grid(model.sample(range(10)), source.spec, columns=10).save(f"{folder}/digits.png")
