"""A user's file, read by a type checker only (test_custom.py): the public API as it is meant to be written."""

from pathlib import Path

import numpy as np
import torch

import justimage as ji


def everything(folder: Path) -> None:
    """Load, sample, generate, train, and the mathematics."""
    model: ji.Denoiser = ji.load(folder, weights="raw", device="cpu", dtype=torch.float32)
    images: torch.Tensor = model.sample(labels=["cat", 3], seeds=[0, 1], steps=20, guidance=2.0, interval=(0.1, 1.0))
    model.sample(
        condition={"depth": np.zeros((1, 2))}, sampling=ji.Sampling(steps=3), step=ji.heun, grid=ji.linear_grid
    )
    model.sample(labels=0, **ji.PRESETS["fast"])
    model.sample(sampler="dpm++2m", shift=3.0)
    model.sample(grid=ji.shifted(3.0))
    for batch in ji.generate(model, range(10), [0] * 10, batch_size=5, sampler="ab2"):
        print(batch.raw.shape, batch.seeds, batch.labels)
    assert model.spec is not None
    ji.grid(images, model.spec, 2).save("grid.png")
    ji.swap_weights(model, folder, ji.weight_sets(folder)[0])

    source = ji.open_source("photos", (32, 32), 3, ji.DataOptions(on_error="skip"))
    config = ji.JiTConfig.variant("XS/8", size=32, num_classes=len(source.spec.classes))
    trained = ji.Denoiser(ji.JiT(config), spec=source.spec)
    training = ji.Training(duration_nimg=64_000, batch_size=128, lr=1e-3, times=ji.LogitNormal(mean=-0.4))
    state: ji.TrainingState = ji.build(trained, training)
    for tick in ji.train(state, source, ji.flow_matching(trained, training), training, tick_nimg=1_280):
        print(tick.nimg, tick.loss, tick.terms)
    trained.save_pretrained(folder)
    ji.train_run(ji.Recipe(config, training), source, folder, sinks=[lambda tick: print(tick.loss)])
    ji.train_run(ji.RECIPES["cifar10"], source, folder, minutes=1)

    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    eps = ji.noise([0, 1], (3, 8, 8))
    prediction: ji.Prediction = trained(ji.diffuse(x, eps, t), t)
    loss: torch.Tensor = ji.denoising_loss(prediction, x, eps, "v")
    print(loss, prediction.to("eps"), ji.draw(trained, None, eps, ji.Sampling()))
