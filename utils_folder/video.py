"""Pictures of an episode, drawn from observations: the grid, the teacher's goal, a panel beside it; to a file or a window."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import imageio.v2 as imageio
import numpy as np
from gym_minigrid.minigrid import OBJECT_TO_IDX, Grid, WorldObj
from PIL import Image, ImageDraw, ImageFont

from torchbeast.core.run_folder import real, replacing

Colour = tuple[int, int, int]

TEACHER_COLOUR = (0, 255, 255)  # no object of MiniGrid has it
TINT = 0.35  # of the most probable cell; more would hide what is in it
BACKGROUND = (24, 24, 24)
LABEL_COLOUR = (150, 150, 150)
TEXT_COLOUR = (235, 235, 235)
GOOD, BAD = (70, 200, 90), (240, 170, 60)  # badges

GRID_SIZE = 400  # pixels that the longer side of a grid gets, where its cells are then not too small or too large
MIN_TILE, MAX_TILE = 20, 80
PANEL_WIDTH = 260
MARGIN = 12
TEXT_SIZE, SMALLEST_TEXT = 15, 7
LINE_HEIGHT = 22
LABEL_WIDTH = 140  # of a line; the rest is its value's
BAR_LABEL_WIDTH, NUMBER_WIDTH = 72, 44  # before and after a bar
BADGE_HEIGHT = 30
CAPTION_HEIGHT = 28
MAX_BADGES = 2  # the room kept for them

FPS = 5
VIDEO_SUFFIXES = (".mp4", ".gif")


class Panel(NamedTuple):
    """What stands beside a grid. A text too long for its place is written smaller, or cut.

    lines: (label, value), one below the other.
    bars: (label, share in [0, 1]), likewise.
    chosen: index of the bar to be set off; None for none.
    badges: (text, colour), at most MAX_BADGES.
    """

    lines: Sequence[tuple[str, str]] = ()
    bars: Sequence[tuple[str, float]] = ()
    chosen: int | None = None
    badges: Sequence[tuple[str, Colour]] = ()


def render(
    frame: np.ndarray,
    *,
    goal: int | None = None,
    seen: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    panel: Panel | None = None,
    caption: str | None = None,
    tile_size: int | None = None,
) -> np.ndarray:
    """Draws the grid as gym-minigrid does, over it the teacher's probabilities and its goal, and the panel beside it.

    The picture's size depends on W, H, tile_size, the numbers of lines and bars, and whether there is a caption, so it stays
    the same through a video. Height and width are even, as H.264 wants them.

    Args:
        frame: uint8 [W, H, 3], an observation: object, colour, state of each cell; of stacked ones the last is drawn.
        goal: a cell, x*H + y, which is outlined; None draws no goal.
        seen: bool [W, H], the cells that are lit, as gym-minigrid lights what its agent sees; None lights none.
        probabilities: float [W, H], not negative: each cell is tinted in proportion, the largest most. None draws none.
        panel: None draws none.
        caption: a line above all; one too long for the picture's width is written smaller, or cut. None leaves no room for one.
        tile_size: pixels of a cell's side; None chooses by W and H.
    Returns: uint8 [height, width, 3], RGB.
    Raises: ValueError if frame is no [W, H, 3k], probabilities or seen no [W, H], goal no cell of it.
    """
    if frame.ndim != 3 or frame.shape[2] == 0 or frame.shape[2] % 3:
        raise ValueError(f"frame must be [W, H, 3], not {list(frame.shape)}")
    width, height = frame.shape[:2]
    if goal is not None and not 0 <= goal < width * height:
        raise ValueError(f"goal {goal} is no cell of a grid of {width} x {height}")
    for name, cells in (("probabilities", probabilities), ("seen", seen)):
        if cells is not None and cells.shape != (width, height):
            raise ValueError(f"{name} must be {[width, height]}, not {list(cells.shape)}")
    tile_size = tile_size or min(MAX_TILE, max(MIN_TILE, GRID_SIZE // max(width, height)))
    lit = np.zeros((width, height), np.bool_) if seen is None else seen
    grid = np.empty((height * tile_size, width * tile_size, 3), np.uint8)
    for x in range(width):
        for y in range(height):
            _cell_of(grid, x, y, tile_size)[:] = _tile(*frame[x, y, -3:].tolist(), tile_size, lit[x, y])
    if probabilities is not None:
        grid = _tinted(grid, probabilities, tile_size)
    if goal is not None:
        _outline(_cell_of(grid, goal // height, goal % height, tile_size))
    return _compose(grid, panel, caption)


def _cell_of(grid: np.ndarray, x: int, y: int, tile_size: int) -> np.ndarray:
    return grid[y * tile_size : (y + 1) * tile_size, x * tile_size : (x + 1) * tile_size]


def _tile(kind: int, colour: int, state: int, tile_size: int, lit: bool) -> np.ndarray:
    # MiniGrid keeps the tiles that it has drawn.
    if kind == OBJECT_TO_IDX["agent"]:
        return Grid.render_tile(None, agent_dir=state, tile_size=tile_size, highlight=lit)
    return Grid.render_tile(WorldObj.decode(kind, colour, state), tile_size=tile_size, highlight=lit)


def _tinted(grid: np.ndarray, probabilities: np.ndarray, tile_size: int) -> np.ndarray:
    share = TINT * probabilities / max(probabilities.max(), np.finfo(np.float32).tiny)
    # Cells are [x, y], pixels [row, column].
    alpha = np.kron(share.T, np.ones((tile_size, tile_size)))[..., None]
    return np.rint((1 - alpha) * grid + alpha * np.array(TEACHER_COLOUR)).astype(np.uint8)


def _outline(cell: np.ndarray) -> None:
    line = max(2, len(cell) // 10)
    inside = cell[line:-line, line:-line].copy()
    cell[:] = TEACHER_COLOUR
    cell[line:-line, line:-line] = inside


def _compose(grid: np.ndarray, panel: Panel | None, caption: str | None) -> np.ndarray:
    rows, columns = grid.shape[:2]
    top = 0 if caption is None else CAPTION_HEIGHT
    width = columns + (PANEL_WIDTH if panel is not None else 0)
    height = max(rows, _panel_height(panel)) if panel is not None else rows
    picture = Image.new("RGB", (_even(width), _even(top + height)), BACKGROUND)
    picture.paste(Image.fromarray(grid), (0, top + (height - rows) // 2))
    draw = ImageDraw.Draw(picture)
    if caption is not None:
        _write(draw, (MARGIN, top // 2), caption, TEXT_COLOUR, width - 2 * MARGIN, "lm")
    if panel is not None:
        _draw_panel(draw, panel, columns + MARGIN, top, PANEL_WIDTH - 2 * MARGIN)
    return np.array(picture)


def _panel_height(panel: Panel) -> int:
    return 3 * MARGIN + (len(panel.lines) + len(panel.bars)) * LINE_HEIGHT + MAX_BADGES * BADGE_HEIGHT


def _draw_panel(draw: ImageDraw.ImageDraw, panel: Panel, left: int, top: int, width: int) -> None:
    right = left + width
    y = top + MARGIN + LINE_HEIGHT // 2  # the middle of a line
    for label, value in panel.lines:
        _write(draw, (left, y), label, LABEL_COLOUR, LABEL_WIDTH, "lm")
        _write(draw, (right, y), value, TEXT_COLOUR, width - LABEL_WIDTH - 4, "rm")
        y += LINE_HEIGHT
    y += MARGIN
    start, full = left + BAR_LABEL_WIDTH, width - BAR_LABEL_WIDTH - NUMBER_WIDTH
    for index, (label, share) in enumerate(panel.bars):
        colour = TEXT_COLOUR if index == panel.chosen else LABEL_COLOUR
        _write(draw, (left, y), label, colour, BAR_LABEL_WIDTH, "lm")
        draw.rectangle((start, y - 5, start + round(share * full), y + 5), colour)
        _write(draw, (right, y), f"{share:.2f}", colour, NUMBER_WIDTH, "rm")
        y += LINE_HEIGHT
    y += MARGIN - LINE_HEIGHT // 2
    for text, colour in panel.badges[:MAX_BADGES]:
        draw.rounded_rectangle((left, y, right, y + BADGE_HEIGHT - 5), 5, colour)
        _write(draw, ((left + right) // 2, y + (BADGE_HEIGHT - 5) // 2), text, BACKGROUND, width - MARGIN, "mm")
        y += BADGE_HEIGHT


def _even(length: int) -> int:
    return length + length % 2


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: Colour, width: int, anchor: str) -> None:
    """A text too long for its width is written smaller, and where that would be too small to read, it is cut."""
    size = TEXT_SIZE
    while size > SMALLEST_TEXT and _font(size).getlength(text) > width:
        size -= 1
    font = _font(size)
    if font.getlength(text) > width:
        fits = range(len(text), 0, -1)
        text = next((cut for length in fits if font.getlength(cut := text[:length] + "…") <= width), "")
    draw.text(place, text, colour, font, anchor=anchor)


@functools.lru_cache(maxsize=TEXT_SIZE)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


class VideoWriter:
    """Writes pictures to an mp4 that browsers play (H.264, yuv420p), or to a gif; the suffix decides.

    with VideoWriter(path) as video:
        video.add(picture)

    The video is made under a temporary name beside `path` and takes its place when the block ends without an error;
    after an error nothing is left, and what was at `path` before stays.

    Args:
        path: ends in .mp4 or .gif; its folder must be there.
        fps: pictures per second.
    Raises: ValueError for another suffix or a missing folder.
    """

    def __init__(self, path: str | os.PathLike, fps: float = FPS):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in VIDEO_SUFFIXES:
            raise ValueError(f"cannot write a video to {self.path}: name a file that ends in .mp4 or .gif (--video_path)")
        if not self.path.parent.is_dir():
            raise ValueError(f"no folder {self.path.parent} for the video: make it, or name another (--video_path)")
        self._shape = None
        self._fps = fps
        self._make_writer = _GifWriter if suffix == ".gif" else _mp4_writer

    def add(self, picture: np.ndarray, seconds: float = 0) -> None:
        """Appends a picture, to be seen for that long, at least 1/fps.

        It is uint8 [height, width, 3], both even, all pictures of one size (else ValueError).
        """
        if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.shape[0] % 2 or picture.shape[1] % 2:
            raise ValueError(f"a picture must be uint8 [even, even, 3], not {picture.dtype} {list(picture.shape)}")
        self._shape = self._shape or picture.shape
        if picture.shape != self._shape:
            raise ValueError(f"a picture of {list(picture.shape)} cannot follow those of {list(self._shape)}")
        for _ in range(max(1, round(seconds * self._fps))):
            self._writer.append_data(picture)

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(replacing(real(self.path)))
            self._writer = self._make_writer(self._temporary, self._fps)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def _finish(self, error_type, error, trace) -> None:
        self._writer.close()
        if error_type is not None:
            return
        if self._shape is None:
            raise ValueError(f"no picture was added to the video {self.path}")
        if not self._temporary.is_file() or self._temporary.stat().st_size == 0:
            raise OSError(f"ffmpeg wrote no video to {self.path.parent}: is there room on the disk?")


def _mp4_writer(path: Path, fps: float):
    # macro_block_size: imageio would scale the pictures to multiples of 16; H.264 itself needs even sizes only.
    # faststart: the index comes first, so that a browser can begin before it has the whole file.
    return imageio.get_writer(
        path,
        format="FFMPEG",
        fps=fps,
        codec="libx264",
        pixelformat="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],
    )


class _GifWriter:
    """Writes all pictures with one palette of 255 colours: the 256th says "as before", so that what stays takes no room.

    The palette needs all colours, so the pictures wait, compressed, for `close`.
    """

    RED, GREEN, BLUE = 16, 8, 0  # where a colour's parts stand in one number

    def __init__(self, path: Path, fps: float):
        self._path = path
        self._milliseconds = 1000 / fps
        self._pictures: list[tuple[tuple[int, int], bytes]] = []
        self._colours = np.empty(0, np.uint32)

    def append_data(self, picture: np.ndarray) -> None:
        self._pictures.append((picture.shape[1::-1], zlib.compress(picture.tobytes(), level=1)))
        red, green, blue = np.moveaxis(picture.astype(np.uint32), -1, 0)
        self._colours = np.union1d(self._colours, red << self.RED | green << self.GREEN | blue << self.BLUE)

    def close(self) -> None:
        if not self._pictures:
            return
        colours = np.stack([self._colours >> part & 255 for part in (self.RED, self.GREEN, self.BLUE)], axis=-1)
        palette = Image.fromarray(colours.astype(np.uint8)[None]).quantize(255, Image.Quantize.MAXCOVERAGE)
        pictures = (
            Image.frombytes("RGB", size, zlib.decompress(data)).quantize(palette=palette, dither=Image.Dither.NONE)
            for size, data in self._pictures
        )
        next(pictures).save(self._path, save_all=True, append_images=pictures, duration=self._milliseconds, loop=0)


class Window:
    """A window that shows one picture after another; it is seen from the first one on.

    Args:
        title: of the window.
    Raises: RuntimeError where no window can be shown: no display, or Matplotlib has no window toolkit to use.
    """

    def __init__(self, title: str = ""):
        remedy = "on a machine without a screen, use --mode test --record_video instead"
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise RuntimeError(f"--mode test_render needs a display, and there is none; {remedy}")
        import matplotlib.pyplot as plt  # imported late: it is slow, and choosing a backend looks for the display

        try:
            self._figure = plt.figure(title or None)
            interactive = self._figure.canvas.required_interactive_framework is not None
        except ImportError:  # a backend that was asked for by name and does not run here
            interactive = False
        if not interactive:
            raise RuntimeError(
                "--mode test_render: Matplotlib finds no window toolkit that works here (install PyQt6, or Python's "
                f"tkinter); {remedy}"
            )
        self._image = None

    @property
    def closed(self) -> bool:
        """Whether the user has closed the window."""
        import matplotlib.pyplot as plt

        return not plt.fignum_exists(self._figure.number)

    def show(self, picture: np.ndarray, seconds: float = 0) -> None:
        """Shows a picture, uint8 [height, width, 3], for that long, at least 1/FPS; does nothing in a closed window."""
        if self.closed:
            return
        if self._image is None:
            height, width = picture.shape[:2]
            self._figure.set_size_inches(width / self._figure.dpi, height / self._figure.dpi)
            axes = self._figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            self._image = axes.imshow(picture)
            self._figure.show()
        self._image.set_data(picture)
        self._figure.canvas.draw_idle()
        self._figure.canvas.start_event_loop(max(seconds, 1 / FPS))

    def close(self) -> None:
        """Closes the window; a second call does nothing."""
        import matplotlib.pyplot as plt

        plt.close(self._figure)
