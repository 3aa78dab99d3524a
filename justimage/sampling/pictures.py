"""Pictures of samples: grids for the eye, whatever the samples are."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from justimage.data.spec import DataSpec

GAP = 2  # pixels between the samples of a grid
SMALLEST = 56  # pixels; smaller samples are enlarged by a whole factor
CAPTION = 16  # pixels of the line below a sample
INK, PAPER = (40, 40, 40), (255, 255, 255)


def view(x: np.ndarray, colour: bool) -> np.ndarray:
    """Model values (C, *S), shown from -1 to 1 -> (h, w, 3) uint8.

    Three colour channels as they are; others in grey beside each other, more than three of them in rows. Signals as
    curves; of volumes the middle slice along the first axis.
    """
    if x.ndim == 2:
        return np.concatenate([_curve(channel) for channel in x], 0)
    if x.ndim == 4:
        x = x[:, x.shape[1] // 2]
    levels = np.round((np.clip(np.nan_to_num(x), -1, 1) + 1) * 127.5).astype(np.uint8)
    if colour:
        return np.moveaxis(levels, 0, -1)
    columns = len(levels) if len(levels) <= 3 else ceil(len(levels) ** 0.5)
    rows = -(-len(levels) // columns)
    padded = np.pad(levels, [(0, rows * columns - len(levels)), (0, 1), (0, 1)], constant_values=255)  # a white line
    tiles = padded.reshape(rows, columns, *padded.shape[1:]).swapaxes(1, 2)
    mosaic = tiles.reshape(rows * padded.shape[1], columns * padded.shape[2])[:-1, :-1]
    return np.repeat(mosaic[..., None], 3, axis=-1)


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
    captions: Sequence[str] = (),
    raw: bool = True,
) -> Image.Image:
    """Samples (B, C, *S), raw or model values, row by row.

    With titles beside the rows and above the columns, and a caption below each sample, cut to its width.
    """
    values = (spec.encode(samples) if raw else samples).cpu().numpy()
    views = [view(x, colour=spec.channels == ("red", "green", "blue")) for x in values]
    h, w = views[0].shape[:2]
    enlarge = max(1, -(-SMALLEST // max(h, 1)))
    h, w = h * enlarge, w * enlarge
    rows = -(-len(views) // columns)
    font = ImageFont.load_default(size=13)
    left = max((int(font.getlength(title)) + 8 for title in row_titles), default=0)
    top = 18 if column_titles else 0
    step_down, step_right = h + GAP + (CAPTION if captions else 0), w + GAP
    canvas = Image.new("RGB", (left + columns * step_right - GAP, top + rows * step_down - GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for i, pixels in enumerate(views):
        down, right = top + i // columns * step_down, left + i % columns * step_right
        image = Image.fromarray(pixels).resize((w, h), Image.Resampling.NEAREST)
        if captions:
            text = captions[i]
            while text and font.getlength(text) > w:
                text = text[:-1]
            pen.text((right, down + h), text, fill=INK, font=font)
        canvas.paste(image, (right, down))
    for i, title in enumerate(row_titles):
        pen.text((2, top + i * step_down + h // 2 - 8), title, fill=INK, font=font)
    for i, title in enumerate(column_titles):
        pen.text((left + i * step_right + 2, 1), title, fill=INK, font=font)
    return canvas


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
