"""`make demo`: train mnist-demo on 5,000 real digits, draw every class, and judge the digits.

Writes runs/mnist-demo/samples.png, along-t.png and demo.json. Its last lines are the Frechet distance that training
ended with, and the class agreement.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from sklearn.svm import SVC

import justimage as ji
from justimage.commands.main import main as jit
from justimage.data.array_files import digits
from justimage.execution import device_name
from justimage.sampling.pictures import save

RUN = Path("runs/mnist-demo")
EACH = 50  # digits drawn of each class


def draw_all(model: ji.Denoiser) -> tuple[torch.Tensor, np.ndarray]:
    """EACH digits of each class: raw (10 * EACH, 1, 28, 28), and the classes asked for."""
    labels = [digit for _ in range(EACH) for digit in range(10)]
    batches = ji.generate(model, range(len(labels)), labels, batch_size=125)
    drawn = list(track(batches, description="sampling", total=-(-len(labels) // 125), transient=True))
    return torch.cat([batch.raw for batch in drawn]), np.array(labels)


def along_t(model: ji.Denoiser, digit: int, seed: int, show: int = 11) -> None:
    """One sample on its way from noise to data: above the state z, below the x predicted from it."""
    seen: list[tuple[torch.Tensor, torch.Tensor, float]] = []

    def watch(z: torch.Tensor, t: torch.Tensor, prediction: ji.Prediction) -> None:
        seen.append((z[0], prediction.to("x")[0], float(t)))

    y = {"labels": torch.tensor([digit])}
    drawn = ji.draw(model, y, model.noise_scale * ji.noise([seed], (1, 28, 28)), model.sampling, watch=watch)[0]
    seen.append((drawn, drawn, 1.0))  # where the way ends, both are the digit
    chosen = [seen[i] for i in np.linspace(0, len(seen) - 1, show).round().astype(int)]
    images = torch.stack([z for z, _, _ in chosen] + [x for _, x, _ in chosen])
    assert model.spec is not None
    titles = [f"t = {t:.2f}" for _, _, t in chosen]
    save(ji.grid(images, model.spec, show, column_titles=titles, raw=False), RUN / "along-t.png")


def last_evaluation() -> dict[str, Any]:
    """The last evaluation of the run, as training makes one at its end; a run that has none is evaluated now."""
    results = RUN / "evaluations.jsonl"
    if not results.is_file() and jit(["evaluate", str(RUN), "--count", "500", "--device", "cpu"]):
        raise SystemExit(f"{RUN} cannot be evaluated")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return next((line for line in reversed(lines) if "nimg" in line), lines[-1])  # `jit evaluate` adds some without


def in_words(evaluation: dict[str, Any]) -> str:
    """The Frechet distance, its floor, and what they mean."""
    fd, floor = evaluation["scores"]["fd"], evaluation["scores"]["floor"]
    return (
        f"Frechet distance: {fd['value']:.2f} \N{PLUS-MINUS SIGN} {fd['error']:.2f}, floor {floor['value']:.2f}: how "
        f"far {evaluation['count']} drawn digits, all together, are from the real ones as a classifier sees them, and "
        "how far one half of the real ones is from the other"
    )


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
    measured |= {"processor": device_name(torch.device("cpu")), "threads": torch.get_num_threads(), "seed": 0}
    evaluation = last_evaluation()
    frechet = {name: evaluation["scores"][name] for name in ("fd", "floor")}
    judge_facts = {name: evaluation["features"].get(name) for name in ("name", "held_out_accuracy")}
    measured |= {"frechet_distance": frechet, "features": judge_facts}
    measured |= {"seconds": round(time.monotonic() - began, 1), "training": model.training_summary}
    (RUN / "demo.json").write_text(json.dumps(measured, indent=2) + "\n")
    print(in_words(evaluation))
    print(f"class agreement: {100 * agreement.mean():.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
