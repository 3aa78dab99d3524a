"""`make demo`: train mnist-demo on 5,000 real digits, draw every class, and let a classifier judge the digits.

Writes runs/mnist-demo/samples.png and runs/mnist-demo/along-t.png; its last line is the class agreement.
"""

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from sklearn.svm import SVC

import justimage as ji
from justimage.commands.main import main as jit
from justimage.data.arrays import digits
from justimage.sampling.pictures import save

RUN = Path("runs/mnist-demo")
EACH = 50  # digits drawn of each class


def draw_all(model: ji.Denoiser) -> tuple[torch.Tensor, np.ndarray]:
    """EACH digits of each class: raw (10 * EACH, 1, 28, 28), and the classes asked for."""
    labels = [digit for _ in range(EACH) for digit in range(10)]
    batches = ji.generate(model, range(len(labels)), labels, batch_size=125)
    drawn = list(track(batches, description="sampling", total=-(-len(labels) // 125), transient=True))
    return torch.cat([batch.raw for batch in drawn]), np.array(labels)


def along_t(model: ji.Denoiser, digit: int, seed: int, show: int = 10) -> None:
    """One sample on its way from noise to data: above the state z, below the x predicted from it."""
    seen: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def watch(z: torch.Tensor, t: torch.Tensor, prediction: ji.Prediction) -> None:
        seen.append((z[0], prediction.to("x")[0], float(t)))

    y = {"labels": torch.tensor([digit])}
    ji.draw(model, y, model.noise_scale * ji.noise([seed], (1, 28, 28)), model.sampling, watch=watch)
    chosen = [seen[i] for i in np.linspace(0, len(seen) - 1, show).round().astype(int)]
    images = torch.stack([z for z, _, _ in chosen] + [x for _, x, _ in chosen])
    assert model.spec is not None
    titles = [f"t = {t:.2f}" for _, _, t in chosen]
    save(ji.grid(images, model.spec, show, column_titles=titles, raw=False), RUN / "along-t.png")


def main() -> int:
    """Returns the exit code of the training, 0 if all went well."""
    began = time.monotonic()
    code = jit(["train", "mnist-demo", "--run", str(RUN), "--device", "cpu"])
    if code:
        return code
    model = ji.load(RUN, device="cpu")
    samples, labels = draw_all(model)
    assert model.spec is not None
    save(ji.grid(samples[:100], model.spec, 10, column_titles=[str(i) for i in range(10)]), RUN / "samples.png")
    along_t(model, digit=3, seed=3)
    print(f"wrote {RUN / 'samples.png'} and {RUN / 'along-t.png'}")

    real = digits()
    assert real.y is not None
    judge = SVC(C=10.0).fit(np.asarray(real.x).reshape(len(real), -1) / 255.0, real.y)
    agreement = judge.predict(samples.reshape(len(samples), -1).numpy() / 255.0) == labels
    measured = {"class_agreement": float(agreement.mean()), "digits": len(labels), "torch": torch.__version__}
    measured |= {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "seed": 0}
    measured |= {"seconds": round(time.monotonic() - began, 1), "training": model.training_summary}
    (RUN / "demo.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(f"class agreement: {100 * agreement.mean():.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
