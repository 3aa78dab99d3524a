"""Pictures of samples: grids for the eye, whatever the samples are."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from justimage.data.spec import DataSpec
from justimage.disk.whole import whole

# All lengths are in pixels.
GAP = 2  # between the samples of a grid
SMALLEST = 56  # height; smaller samples are enlarged by a whole factor
WIDEST = 4096  # width of a grid
CAPTION_LINE = 16  # height of the line below a sample
CAPTION = 120  # a cell is widened for captions up to this width, some 16 letters
MARGIN = 6  # between captions
TITLE = 400  # width of a title beside a row
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
FONT = ImageFont.load_default(size=13)
INK, PAPER = (40, 40, 40), (255, 255, 255)


def view(x: np.ndarray, colour: bool) -> np.ndarray:
    """Model values (C, *S), shown from -1 to 1 -> (h, w, 3) uint8.

    colour: three channels are red, green and blue. Otherwise each is grey, beside the others, more than three of them
    in rows. Signals are shown as curves, volumes as the middle slice along the first axis.
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

    With titles beside the rows and above the columns, and a caption below each sample; long ones are shortened. Rows
    wider than WIDEST pixels are broken into several, and a single sample that is wider is reduced.
    """
    values = (spec.encode(samples) if raw else samples).cpu().numpy()
    views = [view(x, colour=bool(spec.colour)) for x in values]
    titles = [shorten(title, TITLE) for title in row_titles]
    left = max((_width(title) + 8 for title in titles), default=0)
    top = 18 if column_titles else 0
    h, w = _shown_size(*views[0].shape[:2], room=WIDEST - left)
    cell = max([w, *(min(_width(text), CAPTION) + MARGIN for text in (*captions, *column_titles))])
    fits = max(1, (WIDEST - left + GAP) // (cell + GAP))
    pieces = -(-columns // fits)  # how often a row is broken
    across = -(-columns // pieces)
    lines = [
        range(start, min(start + across, row + columns, len(views)))
        for row in range(0, len(views), columns)
        for start in range(row, min(row + columns, len(views)), across)
    ]
    above = [top if i == 0 or pieces > 1 else 0 for i in range(len(lines))]
    step = h + GAP + (CAPTION_LINE if captions else 0)
    canvas = Image.new("RGB", (left + across * (cell + GAP) - GAP, sum(above) + len(lines) * step - GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    down = 0
    for line, room in zip(lines, above, strict=True):
        down += room
        row, column = divmod(line.start, columns)
        if row < len(titles) and column == 0:
            pen.text((2, down + h // 2 - 8), titles[row], fill=INK, font=FONT)
        for place, i in enumerate(line):
            right = left + place * (cell + GAP)
            if room and i % columns < len(column_titles):
                pen.text((right, down - 17), shorten(column_titles[i % columns], cell - MARGIN), fill=INK, font=FONT)
            if captions:
                pen.text((right, down + h), shorten(captions[i], cell - MARGIN), fill=INK, font=FONT)
            canvas.paste(_resize(views[i], h, w), (right, down))
        down += step
    return canvas


def _shown_size(h: int, w: int, room: int) -> tuple[int, int]:
    """Height and width at which a sample is shown: enlarged to SMALLEST, or reduced to the room, by a whole factor."""
    larger = max(1, -(-SMALLEST // max(h, 1)))
    smaller = max(1, -(-w * larger // room))
    return max(1, h * larger // smaller), max(1, w * larger // smaller)


def _resize(pixels: np.ndarray, h: int, w: int) -> Image.Image:
    reduced = h < pixels.shape[0] or w < pixels.shape[1]
    return Image.fromarray(pixels).resize((w, h), Image.Resampling.BOX if reduced else Image.Resampling.NEAREST)


def shorten(text: str, width: int) -> str:
    """The text, or its beginning and an ellipsis, so that it is at most `width` pixels wide; never under 3 letters."""
    if _width(text) <= width:
        return text
    kept = len(text)
    while kept > 3 and _width(text[:kept].rstrip() + ELLIPSIS) > width:
        kept -= 1
    return text[:kept].rstrip() + ELLIPSIS


def _width(text: str) -> int:
    return ceil(FONT.getlength(text))


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG that is whole or absent, making its folder."""
    with whole(path) as beside:
        image.save(beside, format="PNG")
