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
recipe = ji.Recipe(
    ji.JiTConfig((28, 28), (14, 14), channels=1, num_classes=0, width=128, depth=3, heads=4, context_tokens=0),
    ji.Training(duration_nimg=12_800, batch_size=64, lr=3e-3, schedule="cosine", clip_norm=1.0, ema_decays=()),
    ji.Sampling(steps=20, guidance=2.0, final="x"),
)
ji.train_run(recipe, source, folder, loss=partial(ji.flow_matching, compare=pseudo_huber))

model = ji.load(folder)  # a loss is not part of a model
ji.grid(model.sample(labels=range(10)), source.spec, columns=10).save(f"{folder}/digits.png")
print(f"the digits from 0 to 9, drawn from the saved weights: {folder}/digits.png")

try:  # the same folder with another loss would be another run
    ji.train_run(recipe, source, folder)
except ValueError as refusal:
    print(refusal)
