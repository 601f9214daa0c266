from __future__ import annotations

import os
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from gym_minigrid.minigrid import COLOR_TO_IDX, OBJECT_TO_IDX, Ball, Door, Grid, Key, Wall

from utils_folder import video
from utils_folder.video import GOAL_COLOUR, STRIP_COLOUR, VideoWriter, Window, render

W, H, TILE = 4, 5, 16
AGENT, DIRECTION = (1, 3), 2


@pytest.fixture
def grid() -> Grid:
    grid = Grid(W, H)
    grid.wall_rect(0, 0, W, H)
    grid.set(2, 1, Key("yellow"))
    grid.set(1, 2, Door("blue", is_locked=True))
    grid.set(2, 3, Ball("purple"))
    return grid


@pytest.fixture
def frame(grid) -> np.ndarray:
    frame = grid.encode()
    frame[AGENT] = (OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], DIRECTION)
    return frame


def cell(picture, x, y, left=0):
    return picture[y * TILE : (y + 1) * TILE, left + x * TILE : left + (x + 1) * TILE]


def tile(thing):
    return Grid.render_tile(thing, tile_size=TILE).astype(np.uint8)


def has_goal_colour(part) -> bool:
    return bool((part == GOAL_COLOUR).all(axis=-1).any())


def test_the_grid_is_drawn_as_gym_minigrid_draws_it(grid, frame):
    expected = grid.render(TILE, AGENT, DIRECTION)
    np.testing.assert_array_equal(render(frame, goal=None, tile_size=TILE), expected)


@pytest.mark.parametrize("door", [Door("red", is_open=True), Door("red"), Door("red", is_locked=True)])
def test_a_doors_state_is_seen(grid, door):
    grid.set(1, 2, door)
    picture = render(grid.encode(), goal=None, tile_size=TILE)
    np.testing.assert_array_equal(cell(picture, 1, 2), tile(door))


def test_every_direction_of_the_agent_looks_different(frame):
    pictures = set()
    for direction in range(4):
        frame[AGENT] = (OBJECT_TO_IDX["agent"], COLOR_TO_IDX["red"], direction)
        pictures.add(cell(render(frame, goal=None, tile_size=TILE), *AGENT).tobytes())
    assert len(pictures) == 4


@pytest.mark.parametrize("x, y", [(2, 1), (1, 2), AGENT, (0, 0), (W - 1, H - 1)])
def test_the_goal_is_outlined_at_column_x_row_y_and_only_there(frame, x, y):
    plain = render(frame, goal=None, tile_size=TILE)
    marked = render(frame, goal=x * H + y, tile_size=TILE)
    border = np.ones((TILE, TILE), bool)
    border[2:-2, 2:-2] = False
    assert (cell(marked, x, y)[border] == GOAL_COLOUR).all()
    np.testing.assert_array_equal(cell(marked, x, y)[~border], cell(plain, x, y)[~border])
    cell(marked, x, y)[:] = cell(plain, x, y)
    np.testing.assert_array_equal(marked, plain)


def test_the_goal_colour_is_no_objects_and_drawing_it_spoils_no_tile(frame):
    render(frame, goal=7, tile_size=TILE)
    assert not has_goal_colour(render(frame, goal=None, tile_size=TILE))


def test_of_stacked_frames_the_newest_is_drawn(frame):
    older = np.zeros_like(frame)
    stacked = np.concatenate([older, frame], axis=-1)
    np.testing.assert_array_equal(render(stacked, goal=3, tile_size=TILE), render(frame, goal=3, tile_size=TILE))


@pytest.mark.parametrize("goal", [-1, W * H])
def test_a_goal_off_the_grid_is_refused(frame, goal):
    with pytest.raises(ValueError, match=f"{goal} is no cell"):
        render(frame, goal=goal)


@pytest.mark.parametrize("shape", [(W, H), (W, H, 4), (W, H, 0), (1, W, H, 3)])
def test_a_frame_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="frame must be"):
        render(np.zeros(shape, np.uint8), goal=None)


# Captions


def strip(picture, frame, tile_size):
    return picture[frame.shape[1] * tile_size :]


def test_the_caption_is_below_and_leaves_the_grid_as_it_is(frame):
    captioned = render(frame, goal=8, caption=["step 12", "return 0.00"], tile_size=64)
    plain = render(frame, goal=8, tile_size=64)
    np.testing.assert_array_equal(captioned[: len(plain)], plain)
    assert (strip(captioned, frame, 64) != STRIP_COLOUR).any()


@pytest.mark.parametrize("width, height, tile_size", [(5, 5, 32), (3, 7, 9), (7, 3, 11), (19, 19, 13)])
@pytest.mark.parametrize("texts", [[], ["step 0"], ["step 0", "return 0.00", "goals 0"]])
def test_the_size_is_even_and_the_texts_do_not_change_it(width, height, tile_size, texts):
    frame = np.full((width, height, 3), (OBJECT_TO_IDX["empty"], 0, 0), np.uint8)
    shapes = {render(frame, goal=g, caption=[t + "9" * g for t in texts], tile_size=tile_size).shape for g in (0, 1, 20)}
    assert len(shapes) == 1
    rows, columns, _ = shapes.pop()
    assert rows % 2 == columns % 2 == 0 and rows >= height * tile_size and columns >= width * tile_size


@pytest.mark.parametrize("length", [1, 20, 35, 60, 150])
def test_no_text_is_clipped_under_a_narrow_grid(frame, length):
    text = "W" * length
    drawn = strip(render(frame, goal=None, caption=["j" + text + "j"] * 3, tile_size=TILE), frame, TILE)
    ink = (drawn != STRIP_COLOUR).any(axis=-1)
    assert ink.any(axis=1).sum() >= 3
    assert not ink[0].any() and not ink[-1].any() and not ink[:, 0].any() and not ink[:, -video.MARGIN // 2 :].any()
    assert video._font_for(text, 212).getlength(text) <= 212


def test_lines_of_text_do_not_touch(frame):
    drawn = strip(render(frame, goal=None, caption=["Ågjpq"] * 3, tile_size=TILE), frame, TILE)
    rows = (drawn != STRIP_COLOUR).any(axis=(1, 2))
    assert np.count_nonzero(np.diff(rows.astype(int)) == 1) >= 3


def test_a_narrow_grid_stands_in_the_middle_of_a_wider_picture(frame):
    picture = render(frame, goal=None, caption=["step 1"], tile_size=TILE)
    left = (video.MIN_STRIP_WIDTH - W * TILE) // 2
    assert picture.shape[1] == video.MIN_STRIP_WIDTH
    np.testing.assert_array_equal(cell(picture, 2, 1, left), tile(Key("yellow")))
    np.testing.assert_array_equal(cell(picture, 0, 0, left), tile(Wall()))
    assert (picture[: H * TILE, :left] == STRIP_COLOUR).all()


# Files


def pictures(frame, count=6):
    return [render(frame, goal=g, caption=[f"step {g}", "return 0.00"], tile_size=TILE) for g in range(5, 5 + count)]


def read(path):
    with imageio.get_reader(path) as reader:
        return [picture[..., :3] for picture in reader], reader.get_meta_data()


def test_an_mp4_is_h264_yuv420p_at_the_pace_asked_for(tmp_path, frame, capfd, recwarn):
    wanted = pictures(frame)
    assert wanted[0].shape[0] % 16 and wanted[0].shape[0] % 2 == 0
    with VideoWriter(tmp_path / "a.mp4", fps=5) as writer:
        for picture in wanted:
            writer.add(picture)
    assert capfd.readouterr() == ("", "") and not list(recwarn)
    found, meta = read(tmp_path / "a.mp4")
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 5
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).mean() < 6
    # The index stands before the data: a browser plays what it has of the file.
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_gif_by_its_suffix(tmp_path, frame):
    wanted = pictures(frame)
    with VideoWriter(str(tmp_path / "a.GIF"), fps=5) as writer:
        for picture in wanted:
            writer.add(picture)
    found, meta = read(tmp_path / "a.GIF")
    assert meta["duration"] == 200 and meta["loop"] == 0
    assert [np.abs(one.astype(int) - other).mean() < 6 for one, other in zip(found, wanted)] == [True] * len(wanted)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_after_an_error_the_old_video_is_there_and_nothing_else(tmp_path, frame, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / name) as writer:
        writer.add(pictures(frame)[0])
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_a_video_without_pictures_is_an_error(tmp_path, name):
    with pytest.raises(ValueError, match="no picture"), VideoWriter(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.avi", "a", ".mp4"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif.*--video_path"):
        VideoWriter(tmp_path / name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*missing.*--video_path"):
        VideoWriter(tmp_path / "missing" / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_unfit_pictures_are_refused(tmp_path, name):
    for unfit in (
        np.zeros((5, 4, 3), np.uint8),
        np.zeros((4, 6, 3)),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((4, 6), np.uint8),
    ):
        with pytest.raises(ValueError, match="a picture must be"), VideoWriter(tmp_path / name) as writer:
            writer.add(unfit)
    with pytest.raises(ValueError, match="cannot follow"), VideoWriter(tmp_path / name) as writer:
        writer.add(np.zeros((4, 6, 3), np.uint8))
        writer.add(np.zeros((6, 4, 3), np.uint8))
    assert not list(tmp_path.iterdir())


# Window


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_without_a_display_the_window_says_so(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(RuntimeError, match=r"needs a display.*--record_video"):
        Window()


@pytest.mark.parametrize("backend", ["agg", "tkagg", ""])
def test_with_no_working_toolkit_the_window_says_so(backend):
    """DISPLAY names no server here, so no toolkit can work; in a process of its own, as Matplotlib decides once."""
    code = "from utils_folder.video import Window\ntry: Window()\nexcept RuntimeError as error: print(error)"
    environment = {key: value for key, value in os.environ.items() if key not in ("MPLBACKEND", "WAYLAND_DISPLAY")}
    environment["DISPLAY"] = ":987"
    if backend:
        environment["MPLBACKEND"] = backend
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "no window toolkit" in done.stdout and done.stdout.count("\n") == 1, done.stderr
