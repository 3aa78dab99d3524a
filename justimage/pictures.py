"""Pictures of samples: grids for the eye, whatever the samples are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from justimage.data.spec import DataSpec

GAP = 2  # pixels between the samples of a grid
SMALLEST = 56  # pixels; smaller samples are enlarged by a whole factor
INK, PAPER = (40, 40, 40), (255, 255, 255)


def view(x: np.ndarray, colour: bool) -> np.ndarray:
    """Model values (C, *S), shown from -1 to 1 -> (h, w, 3) uint8.

    Three colour channels as they are; other channels beside each other in grey. Signals as curves; of volumes the
    middle slice along the first axis.
    """
    if x.ndim == 2:
        return np.concatenate([_curve(channel) for channel in x], 0)
    if x.ndim == 4:
        x = x[:, x.shape[1] // 2]
    levels = np.round((np.clip(np.nan_to_num(x), -1, 1) + 1) * 127.5).astype(np.uint8)
    if colour:
        return np.moveaxis(levels, 0, -1)
    row = np.concatenate(list(levels), axis=1)
    return np.repeat(row[..., None], 3, axis=-1)


def _curve(values: np.ndarray, height: int = 64) -> np.ndarray:
    image = Image.new("RGB", (max(len(values), 96), height), PAPER)
    across = np.linspace(0, image.width - 1, len(values))
    up = (1 - np.clip(np.nan_to_num(values), -2, 2) / 2) * (height - 1) / 2
    ImageDraw.Draw(image).line(list(zip(across.tolist(), up.tolist(), strict=True)), fill=INK)
    return np.asarray(image)


def grid(
    samples: Tensor,
    spec: DataSpec,
    columns: int,
    *,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    raw: bool = True,
) -> Image.Image:
    """Samples (B, C, *S), raw or model values, row by row, with titles beside the rows and above the columns."""
    values = (spec.encode(samples) if raw else samples).cpu().numpy()
    views = [view(x, colour=spec.channels == ("red", "green", "blue")) for x in values]
    h, w = views[0].shape[:2]
    enlarge = max(1, -(-SMALLEST // max(h, 1)))
    h, w = h * enlarge, w * enlarge
    rows = -(-len(views) // columns)
    font = ImageFont.load_default(size=13)
    left = max((int(font.getlength(title)) + 8 for title in row_titles), default=0)
    top = 18 if column_titles else 0
    canvas = Image.new("RGB", (left + columns * (w + GAP) - GAP, top + rows * (h + GAP) - GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for i, pixels in enumerate(views):
        row, column = divmod(i, columns)
        image = Image.fromarray(pixels).resize((w, h), Image.Resampling.NEAREST)
        canvas.paste(image, (left + column * (w + GAP), top + row * (h + GAP)))
    for i, title in enumerate(row_titles):
        pen.text((2, top + i * (h + GAP) + h // 2 - 8), title, fill=INK, font=font)
    for i, title in enumerate(column_titles):
        pen.text((left + i * (w + GAP) + 2, 1), title, fill=INK, font=font)
    return canvas


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
