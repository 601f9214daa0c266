"""Pictures of an episode, drawn from observations: with the teacher's goal and a caption, to a file or to a window."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from gym_minigrid.minigrid import OBJECT_TO_IDX, Grid, WorldObj
from PIL import Image, ImageDraw, ImageFont

GOAL_COLOUR = (0, 255, 255)  # no object of MiniGrid has it
STRIP_COLOUR = (24, 24, 24)
TEXT_COLOUR = (235, 235, 235)
TEXT_SIZE = 14
LINE_HEIGHT = 20
MARGIN = 6
MIN_STRIP_WIDTH = 224  # room for some 30 letters under the narrowest grid

VIDEO_SUFFIXES = (".mp4", ".gif")


def render(frame: np.ndarray, *, goal: int | None, caption: Sequence[str] = (), tile_size: int = 32) -> np.ndarray:
    """Draws the grid as gym-minigrid does, the goal's cell outlined, one line of text below for each caption.

    The picture's size depends on W, H, tile_size and the number of captions alone, so it stays the same through an
    episode; a text too long for its line is written smaller. Height and width are even, as H.264 wants them.

    Args:
        frame: uint8 [W, H, 3], an observation: object, colour, state of each cell; of stacked ones the last is drawn.
        goal: a cell, x*H + y; None draws no goal.
        caption: short texts of one line each.
        tile_size: pixels of a cell's side.
    Returns: uint8 [height, width, 3], RGB.
    Raises: ValueError if frame is no [W, H, 3k] or goal no cell of it.
    """
    if frame.ndim != 3 or frame.shape[2] == 0 or frame.shape[2] % 3:
        raise ValueError(f"frame must be [W, H, 3], not {list(frame.shape)}")
    width, height = frame.shape[:2]
    grid = np.empty((height * tile_size, width * tile_size, 3), np.uint8)
    for x in range(width):
        for y in range(height):
            _cell_of(grid, x, y, tile_size)[:] = _tile(*frame[x, y, -3:].tolist(), tile_size)
    if goal is not None:
        if not 0 <= goal < width * height:
            raise ValueError(f"goal {goal} is no cell of a grid of {width} x {height}")
        _outline(_cell_of(grid, goal // height, goal % height, tile_size))
    return _with_strip(grid, caption)


def _cell_of(grid: np.ndarray, x: int, y: int, tile_size: int) -> np.ndarray:
    return grid[y * tile_size : (y + 1) * tile_size, x * tile_size : (x + 1) * tile_size]


def _tile(kind: int, colour: int, state: int, tile_size: int) -> np.ndarray:
    # MiniGrid keeps the tiles that it has drawn.
    if kind == OBJECT_TO_IDX["agent"]:
        return Grid.render_tile(None, agent_dir=state, tile_size=tile_size)
    return Grid.render_tile(WorldObj.decode(kind, colour, state), tile_size=tile_size)


def _outline(cell: np.ndarray) -> None:
    line = max(2, len(cell) // 10)
    inside = cell[line:-line, line:-line].copy()
    cell[:] = GOAL_COLOUR
    cell[line:-line, line:-line] = inside


def _with_strip(grid: np.ndarray, caption: Sequence[str]) -> np.ndarray:
    rows, columns = grid.shape[:2]
    width = max(columns, MIN_STRIP_WIDTH) if caption else columns
    height = rows + (len(caption) * LINE_HEIGHT + MARGIN if caption else 0)
    left = (width - columns) // 2
    picture = Image.new("RGB", (_even(width), _even(height)), STRIP_COLOUR)
    picture.paste(Image.fromarray(grid), (left, 0))
    draw = ImageDraw.Draw(picture)
    for line, text in enumerate(caption):
        middle = rows + MARGIN // 2 + line * LINE_HEIGHT + LINE_HEIGHT // 2
        draw.text((MARGIN, middle), text, TEXT_COLOUR, _font_for(text, width - 2 * MARGIN), anchor="lm")
    return np.array(picture)


def _even(length: int) -> int:
    return length + length % 2


def _font_for(text: str, width: int) -> ImageFont.FreeTypeFont:
    size = TEXT_SIZE
    while size > 1 and _font(size).getlength(text) > width:
        size -= 1
    return _font(size)


@functools.lru_cache(maxsize=TEXT_SIZE)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


class VideoWriter:
    """Writes pictures to an mp4 that browsers play (H.264, yuv420p), or to a gif; the suffix decides.

    with VideoWriter(path, fps=8) as video:
        video.add(picture)

    The video is made under a temporary name beside `path` and takes its place when the block ends without an error;
    after an error nothing is left, and what was at `path` before stays.

    Args:
        path: ends in .mp4 or .gif; its folder must be there.
        fps: pictures per second.
    Raises: ValueError for another suffix or a missing folder.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 8):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in VIDEO_SUFFIXES:
            raise ValueError(f"cannot write a video to {self.path}: name a file that ends in .mp4 or .gif (--video_path)")
        if not self.path.parent.is_dir():
            raise ValueError(f"no folder {self.path.parent} for the video: make it, or name another (--video_path)")
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.tmp{suffix}")
        self._shape = None
        options = _gif_options(fps) if suffix == ".gif" else _mp4_options(fps)
        self._writer = imageio.get_writer(self._temporary, **options)

    def add(self, picture: np.ndarray) -> None:
        """Appends a picture: uint8 [height, width, 3], both even, all pictures of one size (else ValueError)."""
        if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or picture.shape[0] % 2 or picture.shape[1] % 2:
            raise ValueError(f"a picture must be uint8 [even, even, 3], not {picture.dtype} {list(picture.shape)}")
        self._shape = self._shape or picture.shape
        if picture.shape != self._shape:
            raise ValueError(f"a picture of {list(picture.shape)} cannot follow those of {list(self._shape)}")
        self._writer.append_data(picture)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, error_type, error, trace) -> None:
        try:
            self._writer.close()
            if error_type is None:
                self._finish()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._shape is None:
            raise ValueError(f"no picture was added to the video {self.path}")
        if not self._temporary.is_file() or self._temporary.stat().st_size == 0:
            raise OSError(f"ffmpeg wrote no video to {self.path.parent}: is there room on the disk?")
        os.replace(self._temporary, self.path)


def _mp4_options(fps: float) -> dict:
    # macro_block_size: imageio would scale the pictures to multiples of 16; H.264 itself needs even sizes only.
    # faststart: the index comes first, so that a browser can begin before it has the whole file.
    return {
        "format": "FFMPEG",
        "fps": fps,
        "codec": "libx264",
        "pixelformat": "yuv420p",
        "macro_block_size": 2,
        "ffmpeg_log_level": "error",
        "output_params": ["-movflags", "+faststart"],
    }


def _gif_options(fps: float) -> dict:
    return {"format": "GIF", "duration": 1000 / fps, "loop": 0}


class Window:
    """A window that shows one picture after another.

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
        self._figure.show()

    @property
    def closed(self) -> bool:
        """Whether the user has closed the window."""
        import matplotlib.pyplot as plt

        return not plt.fignum_exists(self._figure.number)

    def show(self, picture: np.ndarray, seconds: float = 1 / 8) -> None:
        """Shows a picture, uint8 [height, width, 3], and lets that much time pass; does nothing in a closed window."""
        if self.closed:
            return
        if self._image is None:
            height, width = picture.shape[:2]
            self._figure.set_size_inches(width / self._figure.dpi, height / self._figure.dpi)
            axes = self._figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
            self._image = axes.imshow(picture)
        self._image.set_data(picture)
        self._figure.canvas.draw_idle()
        self._figure.canvas.start_event_loop(seconds)

    def close(self) -> None:
        """Closes the window; a second call does nothing."""
        import matplotlib.pyplot as plt

        plt.close(self._figure)
