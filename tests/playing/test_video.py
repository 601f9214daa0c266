from __future__ import annotations

import os
import subprocess
import sys

import imageio.v2 as imageio
import numpy as np
import pytest
from gym_minigrid.minigrid import COLOR_TO_IDX, OBJECT_TO_IDX, Ball, Door, Grid, Key, Wall
from PIL import Image

from utils_folder import video
from utils_folder.video import BACKGROUND, BAD, GOOD, TEACHER_COLOUR, Panel, VideoWriter, Window, render

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


def has_teacher_colour(part) -> bool:
    return bool((part == TEACHER_COLOUR).all(axis=-1).any())


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
    assert (cell(marked, x, y)[border] == TEACHER_COLOUR).all()
    np.testing.assert_array_equal(cell(marked, x, y)[~border], cell(plain, x, y)[~border])
    cell(marked, x, y)[:] = cell(plain, x, y)
    np.testing.assert_array_equal(marked, plain)


def test_the_goal_colour_is_no_objects_and_drawing_it_spoils_no_tile(frame):
    render(frame, goal=7, tile_size=TILE)
    assert not has_teacher_colour(render(frame, goal=None, tile_size=TILE))


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


# The teacher's probabilities


def test_the_map_tints_exactly_the_cell_that_the_teacher_prefers(frame):
    """Column 2, row 1, which is another cell if the axes are swapped."""
    probabilities = np.zeros((W, H), np.float32)
    probabilities[2, 1] = 0.9
    plain = render(frame, tile_size=TILE)
    tinted = render(frame, probabilities=probabilities, tile_size=TILE)
    expected = cell(plain, 2, 1) + video.TINT * (np.array(TEACHER_COLOUR) - cell(plain, 2, 1))
    assert np.abs(cell(tinted, 2, 1) - expected).max() <= 0.5
    cell(tinted, 2, 1)[:] = cell(plain, 2, 1)
    np.testing.assert_array_equal(tinted, plain)


def test_the_tint_is_in_proportion_and_what_lies_under_it_is_seen(frame):
    probabilities = np.zeros((W, H), np.float32)
    probabilities[0, 0], probabilities[W - 1, 0] = 0.2, 0.1  # two walls
    picture = render(frame, probabilities=probabilities, tile_size=TILE).astype(float)
    wall, full, half = (cell(picture, x, y)[8, 8] for x, y in ((0, 1), (0, 0), (W - 1, 0)))
    np.testing.assert_allclose(full - wall, video.TINT * (np.array(TEACHER_COLOUR) - wall), atol=1)
    np.testing.assert_allclose(half - wall, (full - wall) / 2, atol=1)
    probabilities[2, 1] = 0.2
    key = cell(render(frame, probabilities=probabilities, tile_size=TILE).astype(int), 2, 1)
    assert np.ptp(key[..., 0]) > 100 and not has_teacher_colour(key)


def test_the_goal_is_outlined_above_the_map(frame):
    picture = render(frame, goal=2 * H + 1, probabilities=np.full((W, H), 0.05), tile_size=TILE)
    assert (cell(picture, 2, 1)[:2] == TEACHER_COLOUR).all()


def test_the_cells_seen_are_lit_as_gym_minigrid_lights_them(grid, frame):
    """Those alone: one of each kind, with and without light."""
    for light in (0, 1):
        seen = (np.arange(W * H).reshape(W, H) + light) % 2 == 0
        expected = grid.render(TILE, AGENT, DIRECTION, highlight_mask=seen)
        np.testing.assert_array_equal(render(frame, seen=seen, tile_size=TILE), expected)


def test_cells_seen_of_another_shape_are_refused(frame):
    with pytest.raises(ValueError, match="seen must be"):
        render(frame, seen=np.ones((H, W), bool))


@pytest.mark.parametrize("shape", [(H, W), (W * H,)])
def test_probabilities_of_another_shape_are_refused(frame, shape):
    with pytest.raises(ValueError, match="probabilities must be"):
        render(frame, probabilities=np.zeros(shape))


def test_probabilities_of_zero_tint_nothing(frame):
    picture = render(frame, probabilities=np.zeros((W, H)), tile_size=TILE)
    np.testing.assert_array_equal(picture, render(frame, tile_size=TILE))


# Panel

LINES = [("step", "12"), ("return", "0.00")]
BARS = [("left", 0.25), ("forward", 0.5), ("pickup", 0.0)]


def beside(picture, frame, tile_size):
    return picture[:, frame.shape[0] * tile_size :]


def empty(width, height):
    return np.full((width, height, 3), (OBJECT_TO_IDX["empty"], 0, 0), np.uint8)


def test_the_panel_is_beside_the_grid_and_leaves_it_as_it_is(frame):
    plain = render(frame, goal=8, tile_size=64)
    picture = render(frame, goal=8, panel=Panel(LINES, BARS), tile_size=64)
    above = (len(picture) - len(plain)) // 2
    np.testing.assert_array_equal(picture[above : above + len(plain), : W * 64], plain)
    assert (picture[:above, : W * 64] == BACKGROUND).all() and (beside(picture, frame, 64) != BACKGROUND).any()


def test_a_small_grid_stands_in_the_middle_of_the_panels_height(frame):
    picture = render(frame, panel=Panel(LINES, BARS), tile_size=TILE)
    above = (len(picture) - H * TILE) // 2
    assert above > 0
    np.testing.assert_array_equal(cell(picture[above:], 2, 1), tile(Key("yellow")))
    np.testing.assert_array_equal(cell(picture[above:], 0, 0), tile(Wall()))


@pytest.mark.parametrize("width, height, tile_size", [(5, 5, None), (3, 7, 9), (7, 3, 11), (25, 25, None), (32, 11, None)])
def test_the_size_is_even_and_what_is_said_does_not_change_it(width, height, tile_size):
    frame, shapes = empty(width, height), set()
    for n in (0, 1, 20):
        lines = [(label, value + "9" * n) for label, value in LINES]
        badges = [("goal reached" * n, GOOD)] * min(n, 2)
        panel = Panel(lines, [(label, share / (n + 1)) for label, share in BARS], chosen=n % 3, badges=badges)
        shapes.add(render(frame, goal=n, probabilities=np.ones((width, height)), panel=panel, tile_size=tile_size).shape)
    assert len(shapes) == 1
    rows, columns, _ = shapes.pop()
    assert rows % 2 == columns % 2 == 0 and max(rows, columns) <= 1024


@pytest.mark.parametrize("panel", [None, Panel(LINES, BARS)])
def test_a_caption_stands_above_all_else_and_leaves_it_as_it_is(frame, panel):
    plain = render(frame, goal=8, panel=panel, tile_size=64)
    for words in (1, 12, 60):
        picture = render(frame, goal=8, panel=panel, caption="jump Wide " * words, tile_size=64)
        above = len(picture) - len(plain)
        assert above == video.CAPTION_HEIGHT and picture.shape[1:] == plain.shape[1:]
        np.testing.assert_array_equal(picture[above:], plain)
        ink = (picture[:above] != BACKGROUND).any(axis=-1)
        assert ink.any() and not ink[:2].any() and not ink[-2:].any() and not ink[:, :4].any() and not ink[:, -4:].any()


@pytest.mark.parametrize("width, height", [(3, 3), (5, 5), (25, 25), (3, 32)])
@pytest.mark.parametrize("length", [1, 15, 60])
def test_nothing_is_clipped_and_nothing_overlaps(width, height, length):
    """The full panel of a long text keeps its margins, and its lines stay apart."""
    text = "j" + "W" * length
    panel = Panel([(text, text)] * 8, [(text, 1.0)] * 7, chosen=3, badges=[(text, GOOD), (text, BAD)])
    picture = render(empty(width, height), panel=panel)
    drawn = picture[:, -video.PANEL_WIDTH - picture.shape[1] % 2 :]
    ink = (drawn != BACKGROUND).any(axis=-1)
    assert not ink[:4].any() and not ink[-4:].any() and not ink[:, :4].any() and not ink[:, -4:].any()
    assert np.count_nonzero(np.diff(ink.any(axis=1).astype(int)) == 1) == 8 + 7 + 2
    values = video.MARGIN + video.LABEL_WIDTH
    assert not ink[: 8 * video.LINE_HEIGHT, values - 2 : values].any() or length < 15


def test_bars_are_as_long_as_their_shares_and_the_chosen_one_is_set_off(frame):
    picture = beside(render(frame, panel=Panel([], BARS, chosen=1), tile_size=TILE), frame, TILE)
    first = 2 * video.MARGIN + video.LINE_HEIGHT // 2
    middles = [picture[first + i * video.LINE_HEIGHT] for i in range(3)]
    start = video.MARGIN + video.BAR_LABEL_WIDTH
    full = video.PANEL_WIDTH - 2 * video.MARGIN - video.BAR_LABEL_WIDTH - video.NUMBER_WIDTH
    bars = [row[start : start + full] for row in middles]
    assert [int((bar != BACKGROUND).any(-1).sum()) for bar in bars] == [round(full / 4) + 1, round(full / 2) + 1, 1]
    assert [tuple(bar[0]) for bar in bars] == [video.LABEL_COLOUR, video.TEXT_COLOUR, video.LABEL_COLOUR]


def test_badges_have_their_colours(frame):
    def colours(badges):
        picture = beside(render(frame, panel=Panel(LINES, BARS, badges=badges), tile_size=TILE), frame, TILE)
        return [bool((picture == colour).all(-1).any()) for colour in (TEACHER_COLOUR, GOOD, BAD)]

    assert colours([]) == [False, False, False]
    assert colours([("goal reached", TEACHER_COLOUR)]) == [True, False, False]
    assert colours([("goal reached", TEACHER_COLOUR), ("task solved", GOOD)]) == [True, True, False]
    assert colours([("time is up", BAD)]) == [False, False, True]


# Files


def pictures(frame, count=6):
    return [render(frame, goal=g, panel=Panel([("step", str(g))]), tile_size=TILE) for g in range(5, 5 + count)]


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
    assert [np.abs(one.astype(int) - other).max() < 12 for one, other in zip(found, wanted)] == [True] * len(wanted)


def test_a_picture_is_seen_as_long_as_asked_for(tmp_path, frame):
    one, other = pictures(frame, 2)
    for name in ("a.mp4", "a.gif"):
        with VideoWriter(tmp_path / name, fps=5) as writer:
            writer.add(one)
            writer.add(other, seconds=0.8)
    assert len(read(tmp_path / "a.mp4")[0]) == 1 + 4
    with Image.open(tmp_path / "a.gif") as gif:
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
    assert durations == [200, 800]


def test_a_gif_keeps_a_colour_that_is_in_one_small_place_only(tmp_path):
    """More colours than a gif's palette has, most pixels in a few of them; one odd colour in the last picture."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    wanted = [np.full((64, 64, 3), BACKGROUND, np.uint8) for _ in range(5)]
    for i, picture in enumerate(wanted):
        picture[:16, :16] = (ramp * np.array([1, i % 2, 1 - i % 2])).reshape(16, 16, 3)
    wanted[-1][40:42, 40:42] = (10, 250, 120)
    with VideoWriter(tmp_path / "a.gif") as writer:
        for picture in wanted:
            writer.add(picture)
    found, _ = read(tmp_path / "a.gif")
    assert max(np.abs(one.astype(int) - other).max() for one, other in zip(found, wanted, strict=True)) <= 16


def test_what_does_not_change_takes_no_room_in_a_gif(tmp_path):
    """Noise, of which a point in each of two corners changes."""
    picture = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    sizes = []
    for count in (1, 20):
        with VideoWriter(tmp_path / "a.gif") as writer:
            for i in range(count):
                picture[0, i] = picture[-1, -i - 1] = 255
                writer.add(picture)
        sizes.append((tmp_path / "a.gif").stat().st_size)
    assert sizes[1] < 4 * sizes[0]  # each picture has a copy of the palette


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


@pytest.mark.slow
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
