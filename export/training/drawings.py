"""Pictures that are no photos, drawn in code: flat and graded colours, noise, textures, screens with text.

Two families of generators share no code: `draw` is trained on, `draw_unseen` is for judging. Every picture
depends on its seed and number alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from ..pictures import How, prepare_all

FITTED, JUDGED, SIDE = 500, 300, 128  # drawings that novelty is fitted on and judged by, and their side
Draw = Callable[[np.random.Generator, int], np.ndarray]


def draw(count: int, size: int, seed: int = 0) -> np.ndarray:
    """(count, size, size, 3) uint8, the kinds in turn."""
    return _drawn(TRAINED, count, size, seed)


def draw_unseen(count: int, size: int, seed: int = 1) -> np.ndarray:
    """As `draw`, from generators that no training sees."""
    return _drawn(UNSEEN, count, size, seed)


def drawings(how: How, unseen: bool = False) -> np.ndarray:
    """(n, H, W, 3) uint8 as the network takes them: those that novelty is fitted on, or, `unseen`, those that
    it is judged by."""
    made = draw_unseen(JUDGED, SIDE) if unseen else draw(FITTED, SIDE)
    return prepare_all(list(made), how)[0]


def _drawn(kinds: tuple[Draw, ...], count: int, size: int, seed: int) -> np.ndarray:
    made = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        picture = kinds[i % len(kinds)](np.random.default_rng((seed, i)), size)
        made[i] = np.clip(picture, 0, 255)
    return made


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, 3).astype(float)


def _between(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two colours blended by a weight (S, S) in 0..1."""
    return _colour(rng) * weight[..., None] + _colour(rng) * (1 - weight[..., None])


def _axes(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel, turned by a random angle."""
    angle = rng.uniform(0, np.pi)
    v, u = np.mgrid[0:size, 0:size] / size
    return u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)


def _flat(rng: np.random.Generator, size: int) -> np.ndarray:
    shade = rng.choice([np.zeros(3), np.full(3, 255.0), _colour(rng)])
    return np.broadcast_to(shade, (size, size, 3)) + rng.normal(0, rng.choice([0, 2, 6]), (size, size, 3))


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    u, _ = _axes(rng, size)
    return _between((u - u.min()) / np.ptp(u), rng)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = _axes(rng, size)
    wave = np.sin(2 * np.pi * rng.uniform(2, 24) * u)
    if rng.random() < 0.3:
        wave = wave * np.sign(np.sin(2 * np.pi * 8 * v))
    return _between(np.clip(wave * rng.uniform(1, 20) / 2 + 0.5, 0, 1), rng)


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    u, v = _axes(rng, size)
    cells = rng.uniform(3, 20)
    return _between((np.floor(u * cells) + np.floor(v * cells)) % 2, rng)


def _grains(rng: np.random.Generator, size: int) -> np.ndarray:
    """White noise at one or several scales, grey or coloured."""
    channels, total = int(rng.choice([1, 3])), np.zeros((size, size, 1))
    for cell in rng.choice([1, 2, 4, 8, 16, 32], int(rng.integers(1, 4)), replace=False):
        side = -(-size // int(cell))
        noise = np.kron(rng.normal(0, 1, (side, side, channels)), np.ones((int(cell), int(cell), 1)))
        total = total + noise[:size, :size]
    return np.broadcast_to(128 + rng.uniform(15, 70) * total, (size, size, 3))


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    total = np.zeros((size, size))
    for octave in range(1, 6):
        coarse = Image.fromarray(rng.normal(0, 1, (2**octave + 1,) * 2).astype(np.float32))
        total += np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / 1.6**octave
    return _between((total - total.min()) / np.ptp(total), rng)


def _dots(rng: np.random.Generator, size: int) -> np.ndarray:
    image = Image.new("RGB", (size, size), tuple(_colour(rng).astype(int)))
    canvas, shade = ImageDraw.Draw(image), tuple(_colour(rng).astype(int))
    for x, y in rng.uniform(0, size, (int(rng.integers(20, 200)), 2)):
        r = rng.uniform(1, 6)
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=shade)
    return np.asarray(image, float)


def _window(rng: np.random.Generator, size: int) -> np.ndarray:
    """A window with a title bar and lines of text."""
    dark = rng.random() < 0.4
    paper, ink = ((24, 26, 32), (220, 220, 220)) if dark else ((250, 250, 250), (30, 30, 30))
    scale = int(rng.integers(1, 4))
    image = Image.new("RGB", (size * scale, size * scale), paper)
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, size * scale, 14), fill=tuple(_colour(rng).astype(int)))
    for y in range(20, size * scale, int(rng.integers(11, 18))):
        letters = rng.integers(97, 123, int(rng.integers(3, 16 * scale)))
        text = "".join(" " if rng.random() < 0.18 else chr(c) for c in letters)
        canvas.text((4 + 8 * int(rng.integers(0, 4)), y), text, fill=ink)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), float)


def _boxes(rng: np.random.Generator, size: int) -> np.ndarray:
    """A page of panels and buttons."""
    image = Image.new("RGB", (size, size), (245, 245, 245) if rng.random() < 0.6 else (32, 34, 40))
    canvas = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 14))):
        x, y = rng.uniform(0, size, 2)
        width, height = rng.uniform(size / 10, size / 1.5), rng.uniform(size / 16, size / 3)
        fill = tuple(_colour(rng).astype(int))
        canvas.rounded_rectangle((x, y, x + width, y + height), 4, fill=fill, outline=(120, 120, 120))
        canvas.text((x + 4, y + 2), "button menu"[: int(rng.integers(2, 11))], fill=(255, 255, 255))
    return np.asarray(image, float)


TRAINED: tuple[Draw, ...] = (
    _flat, _gradient, _stripes, _checks, _grains, _clouds, _dots, _window, _boxes
)  # fmt: skip


def _rings(rng: np.random.Generator, size: int) -> np.ndarray:
    v, u = np.mgrid[0:size, 0:size] / size - rng.uniform(0, 1, (2, 1, 1))
    return _between(0.5 + 0.5 * np.cos(rng.uniform(20, 150) * np.hypot(u, v)), rng)


def _voronoi(rng: np.random.Generator, size: int) -> np.ndarray:
    centres, shades = rng.uniform(0, size, (int(rng.integers(8, 80)), 2)), rng.integers(0, 256, (80, 3))
    pixels = np.moveaxis(np.mgrid[0:size, 0:size], 0, -1)[:, :, None]
    return shades[np.square(pixels - centres).sum(-1).argmin(-1)].astype(float)


def _spectrum(rng: np.random.Generator, size: int) -> np.ndarray:
    """1/f noise, each channel by itself or all the same."""
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2)) + 1 / size
    white = rng.normal(0, 1, (size, size, int(rng.choice([1, 3]))))
    noise = np.fft.ifft2(np.fft.fft2(white, axes=(0, 1)) / frequency[..., None], axes=(0, 1)).real
    return np.broadcast_to(128 + 50 * noise / noise.std(), (size, size, 3))


def _table(rng: np.random.Generator, size: int) -> np.ndarray:
    """A spreadsheet of numbers."""
    image = Image.new("RGB", (2 * size, 2 * size), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    width, height = int(rng.integers(28, 60)), int(rng.integers(12, 20))
    for y in range(0, 2 * size, height):
        canvas.line((0, y, 2 * size, y), fill=(190, 190, 190))
        for x in range(0, 2 * size, width):
            canvas.line((x, 0, x, 2 * size), fill=(190, 190, 190))
            canvas.text((x + 3, y + 1), str(rng.integers(0, 9999)), fill=(20, 20, 60))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), float)


def _chart(rng: np.random.Generator, size: int) -> np.ndarray:
    """Bars and a line on white or black."""
    dark = rng.random() < 0.3
    image = Image.new("RGB", (size, size), (0, 0, 0) if dark else (255, 255, 255))
    canvas, count = ImageDraw.Draw(image), int(rng.integers(4, 16))
    heights, fill = rng.uniform(0.1, 0.9, count) * size, tuple(_colour(rng).astype(int))
    for i, top in enumerate(heights):
        left = i * size / count
        canvas.rectangle((left + 2, size - top, left + size / count - 2, size), fill=fill)
    points = [(i * size / count, size * rng.uniform(0.1, 0.9)) for i in range(count)]
    canvas.line(points, fill=(200, 40, 40), width=2)
    return np.asarray(image, float)


def _shade(rng: np.random.Generator, size: int) -> np.ndarray:
    """One colour, darker towards a corner, as of a covered lens; black and white among them."""
    v, u = np.mgrid[0:size, 0:size] / size
    colour = rng.choice([np.zeros(3), np.full(3, 255.0), _colour(rng)])
    fall = 1 - rng.uniform(0, 0.3) * np.hypot(u - rng.random(), v - rng.random())
    return colour * fall[..., None]


UNSEEN: tuple[Draw, ...] = (_rings, _voronoi, _spectrum, _table, _chart, _shade)
