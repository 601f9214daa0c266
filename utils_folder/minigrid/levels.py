"""The compiled half of the MiniGrid engine: levels as arrays of numbers, how they are made and how they are played.

An object is one integer, so that picking up, carrying, dropping and unpacking move all that it is at once:

    bits 0-3 kind | 4-6 colour | 7-8 state (doors) | 9 target | 16-... what it contains, in the same way (0: nothing)

The target bit is the object's identity as far as the rules ask for it; it stays with the object wherever it goes.
An empty cell is an object of kind "empty"; kinds, colours and states have gym-minigrid's numbers.

The machine code is kept on disk (`torchbeast/core/compiled.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable

from torchbeast.core.compiled import compiled

# --- Objects --------------------------------------------------------------------------------------------------------

COLOUR_SHIFT, STATE_SHIFT, CONTENTS_SHIFT = 4, 7, 16
KIND_MASK, COLOUR_MASK, STATE_MASK = 0b1111, 0b111, 0b11
TARGET = 1 << 9

# gym-minigrid 1.2.2's numbers, written out: a user's package may have changed its tables by now, and Numba keeps on disk
# what it compiled with them.
EMPTY, WALL, FLOOR, DOOR, KEY, BALL, BOX, GOAL, LAVA, AGENT = range(1, 11)
OPEN, CLOSED, LOCKED = range(3)
RED, GREEN, BLUE, PURPLE, YELLOW, GREY = range(6)

EMPTY_CELL = EMPTY
NOTHING = EMPTY | GREY << COLOUR_SHIFT  # carried by an agent with free hands
WALL_CELL = WALL | GREY << COLOUR_SHIFT
NUM_COLOURS = 6
COLOURS = np.array([BLUE, GREEN, GREY, PURPLE, RED, YELLOW])  # in the order in which gym-minigrid draws them
STEP_X = np.array([1, 0, -1, 0])
STEP_Y = np.array([0, 1, 0, -1])

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
NUM_ACTIONS = 7

# What ends an episode beside goal, lava and time.
NO_RULE, PICK_UP, UNLOCK, FETCH, RED_BLUE, GO_TO_DOOR, GO_TO_OBJECT, MEMORY, PUT_NEAR = range(9)
# Who makes the levels.
MADE_BY_GYM, KEY_CORRIDOR, OBSTRUCTED_MAZE_1D, OBSTRUCTED_MAZE_FULL = range(4)
# What an action leads to.
GOES_ON, FAILED, SUCCEEDED = range(3)

MAX_PLACE_TRIES, MAX_CONNECT_TRIES = 1000, 5000  # RoomGrid.place_in_room, RoomGrid.connect_all


class World(NamedTuple):
    """E games in progress; the arrays from `frame` on are also the output of the engine.

    cells int64 [E, W, H], agent int64 [E, 3] (x, y, direction), places int64 [E, 2, 2] (up to two positions that the
    rule names), carried int64 [E], random_state uint64 [E, 6] (PCG64: state high and low, increment high and low,
    whether half of a draw is left over, that half), frame uint8 [E, W, H, 3], reward float32 [E], done bool [E],
    truncated bool [E], episode_return float32 [E], episode_step int32 [E], carried_obj uint8 [E], carried_col uint8 [E].
    """

    cells: np.ndarray
    agent: np.ndarray
    places: np.ndarray
    carried: np.ndarray
    random_state: np.ndarray
    frame: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    truncated: np.ndarray
    episode_return: np.ndarray
    episode_step: np.ndarray
    carried_obj: np.ndarray
    carried_col: np.ndarray


class Game(NamedTuple):
    """The rules of a game and what its levels are made by; the fields after `maker` are the level makers' own."""

    rule: int
    max_steps: int
    maker: int
    room_size: int = 0
    num_rows: int = 0
    num_cols: int = 0
    object_kind: int = 0
    agent_i: int = 0
    agent_j: int = 0
    key_in_box: int = 0
    blocked: int = 0
    num_quarters: int = 0


class Rooms(NamedTuple):
    """RoomGrid's rooms, room (i, j) at index j * num_cols + i; walls are in the order right, down, left, up.

    passage bool [R, 4]: a door or a gap; door_at int64 [R, 4, 2]: where a door would be, -1 at the border;
    locked bool [R].
    """

    passage: np.ndarray
    door_at: np.ndarray
    locked: np.ndarray


@register_jitable
def make_object(kind, colour, state=0, contents=0):
    """The integer of an object (see the module's docstring)."""
    return kind | colour << COLOUR_SHIFT | state << STATE_SHIFT | contents << CONTENTS_SHIFT


@register_jitable
def kind_of(cell):
    return cell & KIND_MASK


@register_jitable
def colour_of(cell):
    return cell >> COLOUR_SHIFT & COLOUR_MASK


@register_jitable
def state_of(cell):
    return cell >> STATE_SHIFT & STATE_MASK


# --- Random numbers: numpy.random.Generator(PCG64).integers, bit for bit --------------------------------------------

MULTIPLIER_HIGH, MULTIPLIER_LOW = np.uint64(2549297995355413924), np.uint64(4865540595714422341)
LOW_HALF, HALF_BITS, ROTATION_SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(58)
ROTATION_MASK, WORD_BITS, ZERO, ONE = np.uint64(63), np.uint64(64), np.uint64(0), np.uint64(1)


@njit
def multiply_high(a, b):
    """The upper 64 bits of the 128-bit product of two uint64."""
    a_low, a_high, b_low, b_high = a & LOW_HALF, a >> HALF_BITS, b & LOW_HALF, b >> HALF_BITS
    middle = a_high * b_low + (a_low * b_low >> HALF_BITS)
    other = a_low * b_high + (middle & LOW_HALF)
    return a_high * b_high + (middle >> HALF_BITS) + (other >> HALF_BITS)


@njit
def next_uint64(stream):
    """PCG64's next number (O'Neill's XSL-RR 128/64); `stream` is one row of World.random_state."""
    high, low, inc_high, inc_low = stream[0], stream[1], stream[2], stream[3]
    new_low = low * MULTIPLIER_LOW + inc_low
    carry = ONE if new_low < inc_low else ZERO
    new_high = multiply_high(low, MULTIPLIER_LOW) + high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH + inc_high + carry
    stream[0], stream[1] = new_high, new_low
    rotation, mixed = new_high >> ROTATION_SHIFT, new_high ^ new_low
    return mixed >> rotation | mixed << (WORD_BITS - rotation & ROTATION_MASK)


@njit
def next_uint32(stream):
    """Half of a 64-bit draw, the lower half first; the other half waits for the next call."""
    if stream[4]:
        stream[4] = ZERO
        return stream[5]
    drawn = next_uint64(stream)
    stream[4], stream[5] = ONE, drawn >> HALF_BITS
    return drawn & LOW_HALF


@njit
def rand_int(stream, low, high):
    """Generator.integers(low, high): Lemire's method (arXiv 1805.10941); a range of one number draws nothing."""
    size = np.uint64(high - low)
    if size == ONE:
        return low
    product = next_uint32(stream) * size
    if product & LOW_HALF < size:
        threshold = (LOW_HALF - (size - ONE)) % size
        while product & LOW_HALF < threshold:
            product = next_uint32(stream) * size
    return low + np.int64(product >> HALF_BITS)


@njit
def rand_colour(stream):
    return COLOURS[rand_int(stream, 0, NUM_COLOURS)]


# --- Levels of rooms (gym_minigrid.roomgrid.RoomGrid): every draw in gym-minigrid's order ---------------------------


@njit
def build_rooms(cells, agent, game, stream):
    """RoomGrid._gen_grid: walls, a place for a door in each inner wall, the agent in the middle. Returns the Rooms."""
    pitch = game.room_size - 1
    for x in range(cells.shape[0]):
        for y in range(cells.shape[1]):
            cells[x, y] = WALL_CELL if x % pitch == 0 or y % pitch == 0 else EMPTY_CELL
    num_rooms = game.num_rows * game.num_cols
    door_at = np.full((num_rooms, 4, 2), -1)
    for j in range(game.num_rows):
        for i in range(game.num_cols):
            room = j * game.num_cols + i
            if i < game.num_cols - 1:
                door_at[room, 0] = (i + 1) * pitch, rand_int(stream, j * pitch + 1, (j + 1) * pitch)
            if j < game.num_rows - 1:
                door_at[room, 1] = rand_int(stream, i * pitch + 1, (i + 1) * pitch), (j + 1) * pitch
            if i > 0:
                door_at[room, 2] = door_at[room - 1, 0]
            if j > 0:
                door_at[room, 3] = door_at[room - game.num_cols, 1]
    agent[0] = game.num_cols // 2 * pitch + game.room_size // 2
    agent[1] = game.num_rows // 2 * pitch + game.room_size // 2
    agent[2] = 0
    return Rooms(np.zeros((num_rooms, 4), np.bool_), door_at, np.zeros(num_rooms, np.bool_))


@njit
def neighbour(game, room, wall):
    if wall == 0:
        return room + 1
    if wall == 1:
        return room + game.num_cols
    if wall == 2:
        return room - 1
    return room - game.num_cols


@njit
def open_passage(rooms, game, room, wall):
    rooms.passage[room, wall] = True
    rooms.passage[neighbour(game, room, wall), (wall + 2) % 4] = True


@njit
def add_door(cells, rooms, game, room, wall, colour, locked):
    """RoomGrid.add_door; a room counts as locked if the last door added from its side is."""
    rooms.locked[room] = locked
    x, y = rooms.door_at[room, wall]
    cells[x, y] = make_object(DOOR, colour, LOCKED if locked else CLOSED)
    open_passage(rooms, game, room, wall)


@njit
def find_place(cells, agent, game, room, stream):
    """An empty cell of the room (walls drawn too, and refused) that is neither the agent's nor beside it."""
    left, top = room % game.num_cols * (game.room_size - 1), room // game.num_cols * (game.room_size - 1)
    for _ in range(MAX_PLACE_TRIES + 1):
        x = rand_int(stream, left, left + game.room_size)
        y = rand_int(stream, top, top + game.room_size)
        if cells[x, y] == EMPTY_CELL and abs(x - agent[0]) + abs(y - agent[1]) >= 2:
            return x, y
    raise RecursionError("rejection sampling failed in place_obj")


@njit
def place_object(cells, agent, game, room, thing, stream):
    x, y = find_place(cells, agent, game, room, stream)
    cells[x, y] = thing


@njit
def place_agent(cells, agent, game, room, stream):
    """RoomGrid.place_agent: an empty cell of the room, facing an empty cell or a wall."""
    while True:
        # Out of every cell's way: (-1, -1) is two steps from (0, 0).
        agent[0], agent[1] = -1, -1
        x, y = find_place(cells, agent, game, room, stream)
        agent[0], agent[1], agent[2] = x, y, rand_int(stream, 0, 4)
        front = kind_of(cells[x + STEP_X[agent[2]], y + STEP_Y[agent[2]]])
        if front in (EMPTY, WALL):
            return


@njit
def all_reachable(rooms, game, start):
    """Whether one can walk from room `start` to all others, locked doors or not."""
    reached = np.zeros(len(rooms.locked), np.bool_)
    reached[start] = True
    grown = True
    while grown:
        grown = False
        for room in range(len(reached)):
            for wall in range(4):
                if reached[room] and rooms.passage[room, wall] and not reached[neighbour(game, room, wall)]:
                    reached[neighbour(game, room, wall)] = True
                    grown = True
    return reached.all()


@njit
def connect_all(cells, agent, rooms, game, stream):
    """RoomGrid.connect_all: closed doors at random, none to or from a locked room, until every room can be reached."""
    start = agent[1] // (game.room_size - 1) * game.num_cols + agent[0] // (game.room_size - 1)
    connected = all_reachable(rooms, game, start)
    tries = 0
    while not connected:
        if tries == MAX_CONNECT_TRIES + 1:
            raise RecursionError("connect_all failed")
        tries += 1
        i = rand_int(stream, 0, game.num_cols)
        room = rand_int(stream, 0, game.num_rows) * game.num_cols + i
        wall = rand_int(stream, 0, 4)
        if rooms.door_at[room, wall, 0] < 0 or rooms.passage[room, wall]:
            continue
        if rooms.locked[room] or rooms.locked[neighbour(game, room, wall)]:
            continue
        add_door(cells, rooms, game, room, wall, rand_colour(stream), False)
        connected = all_reachable(rooms, game, start)


@njit
def make_key_corridor(cells, agent, game, stream):
    """KeyCorridorEnv._gen_grid."""
    rooms = build_rooms(cells, agent, game, stream)
    pitch = game.room_size - 1
    for j in range(1, game.num_rows):
        cells[pitch + 1 : 2 * pitch, j * pitch] = EMPTY_CELL
        open_passage(rooms, game, j * game.num_cols + 1, 3)
    locked_room = rand_int(stream, 0, game.num_rows) * game.num_cols + 2
    door_colour = rand_colour(stream)
    add_door(cells, rooms, game, locked_room, 2, door_colour, True)
    target = make_object(game.object_kind, rand_colour(stream)) | TARGET
    place_object(cells, agent, game, locked_room, target, stream)
    key_room = rand_int(stream, 0, game.num_rows) * game.num_cols
    place_object(cells, agent, game, key_room, make_object(KEY, door_colour), stream)
    place_agent(cells, agent, game, game.num_rows // 2 * game.num_cols + 1, stream)
    connect_all(cells, agent, rooms, game, stream)


@njit
def shuffled_colours(stream):
    """MiniGridEnv._rand_subset(COLOR_NAMES, 6): all colours in random order."""
    rest = COLOURS.copy()
    drawn = np.empty_like(rest)
    for n in range(NUM_COLOURS):
        left = NUM_COLOURS - n
        index = rand_int(stream, 0, left)
        drawn[n] = rest[index]
        for later in range(index, left - 1):
            rest[later] = rest[later + 1]
    return drawn


@njit
def add_locked_door(cells, agent, rooms, game, room, wall, colour, stream):
    """ObstructedMazeEnv.add_door with its key in the room, perhaps in a box, and perhaps a ball before the door."""
    add_door(cells, rooms, game, room, wall, colour, True)
    if game.blocked:
        x, y = rooms.door_at[room, wall]
        # Whatever lay there is gone, a key too.
        cells[x - STEP_X[wall], y - STEP_Y[wall]] = make_object(BALL, COLOURS[1])
    key = make_object(KEY, colour)
    place_object(cells, agent, game, room, make_object(BOX, COLOURS[2], 0, key) if game.key_in_box else key, stream)


@njit
def make_obstructed_maze_1d(cells, agent, game, stream):
    """ObstructedMaze_1Dlhb._gen_grid."""
    rooms = build_rooms(cells, agent, game, stream)
    colours = shuffled_colours(stream)
    add_locked_door(cells, agent, rooms, game, 0, 0, colours[0], stream)
    place_object(cells, agent, game, 1, make_object(BALL, COLOURS[0]) | TARGET, stream)
    place_agent(cells, agent, game, 0, stream)


@njit
def make_obstructed_maze_full(cells, agent, game, stream):
    """ObstructedMaze_Full._gen_grid."""
    rooms = build_rooms(cells, agent, game, stream)
    colours = shuffled_colours(stream)
    middle = game.num_cols + 1
    for quarter in range(game.num_quarters):
        add_door(cells, rooms, game, middle, quarter, colours[quarter], False)
        side_room = neighbour(game, middle, quarter)
        for turn in (-1, 1):
            colour = colours[(quarter + turn) % NUM_COLOURS]
            add_locked_door(cells, agent, rooms, game, side_room, (quarter + turn) % 4, colour, stream)
    # The corners follow each other clockwise, as the sides do: (2, 0), (2, 2), (0, 2), (0, 0).
    corner = rand_int(stream, 0, game.num_quarters)
    i, j = 2 if corner < 2 else 0, 2 if corner == 1 or corner == 2 else 0
    place_object(cells, agent, game, j * game.num_cols + i, make_object(BALL, COLOURS[0]) | TARGET, stream)
    place_agent(cells, agent, game, game.agent_j * game.num_cols + game.agent_i, stream)


@njit
def make_level(cells, agent, game, stream):
    if game.maker == KEY_CORRIDOR:
        make_key_corridor(cells, agent, game, stream)
    elif game.maker == OBSTRUCTED_MAZE_1D:
        make_obstructed_maze_1d(cells, agent, game, stream)
    elif game.maker == OBSTRUCTED_MAZE_FULL:
        make_obstructed_maze_full(cells, agent, game, stream)


# --- What is seen ---------------------------------------------------------------------------------------------------


@njit
def show_cell(world, e, x, y):
    cell = world.cells[e, x, y]
    world.frame[e, x, y, 0] = kind_of(cell)
    world.frame[e, x, y, 1] = colour_of(cell)
    world.frame[e, x, y, 2] = state_of(cell)


@njit
def show_agent(world, e):
    x, y, direction = world.agent[e, 0], world.agent[e, 1], world.agent[e, 2]
    world.frame[e, x, y, 0] = AGENT
    world.frame[e, x, y, 1] = RED
    world.frame[e, x, y, 2] = direction
    world.carried_obj[e] = kind_of(world.carried[e])
    world.carried_col[e] = colour_of(world.carried[e])


@compiled
def show_level(world, e):
    """Writes the whole observation of environment e, whose agent has just come with free hands."""
    world.carried[e] = NOTHING
    for x in range(world.cells.shape[1]):
        for y in range(world.cells.shape[2]):
            show_cell(world, e, x, y)
    show_agent(world, e)


# --- Playing ----------------------------------------------------------------------------------------------------------
# Whatever branches here works on plain numbers, and the loop over environments calls nothing that can fail: else Numba
# counts references to all arrays of the World again and again, which takes several times as long as the game.


class Scene(NamedTuple):
    """What one action can change: the agent, the cell that it faces before the action, and what it carries."""

    x: int
    y: int
    direction: int
    front_x: int
    front_y: int
    front: int
    carried: int


@njit
def scene_of(world, e):
    x, y, direction = world.agent[e, 0], world.agent[e, 1], world.agent[e, 2]
    front_x, front_y = x + STEP_X[direction], y + STEP_Y[direction]
    return Scene(x, y, direction, front_x, front_y, world.cells[e, front_x, front_y], world.carried[e])


@njit
def show_scene(world, e, scene, old_x, old_y):
    """Puts a scene into the world and the observation; (old_x, old_y) is where the agent was before."""
    world.agent[e, 0], world.agent[e, 1], world.agent[e, 2] = scene.x, scene.y, scene.direction
    world.cells[e, scene.front_x, scene.front_y] = scene.front
    world.carried[e] = scene.carried
    show_cell(world, e, old_x, old_y)
    show_cell(world, e, scene.front_x, scene.front_y)
    show_agent(world, e)


@njit
def toggled(cell, carried):
    """What an object becomes when it is toggled: Door.toggle, Box.toggle, WorldObj.toggle."""
    kind = kind_of(cell)
    if kind == BOX:
        contents = cell >> CONTENTS_SHIFT
        return contents if contents else EMPTY_CELL
    if kind != DOOR:
        return cell
    state = state_of(cell)
    if state == LOCKED and not (kind_of(carried) == KEY and colour_of(carried) == colour_of(cell)):
        return cell
    new_state = CLOSED if state == OPEN else OPEN
    return cell & ~(STATE_MASK << STATE_SHIFT) | new_state << STATE_SHIFT


@njit
def move(scene, action, rule):
    """MiniGridEnv.step: the scene after the action, and what goal and lava make of it."""
    if rule == MEMORY and action == PICKUP:
        action = TOGGLE
    x, y, direction, front_x, front_y, front, carried = scene
    kind = kind_of(front)
    outcome = GOES_ON
    if action == LEFT:
        direction = (direction + 3) % 4
    elif action == RIGHT:
        direction = (direction + 1) % 4
    elif action == FORWARD:
        if kind in (EMPTY, FLOOR, GOAL, LAVA) or (kind == DOOR and state_of(front) == OPEN):
            x, y = front_x, front_y
        if kind == GOAL:
            outcome = SUCCEEDED
        elif kind == LAVA:
            outcome = FAILED
    elif action == PICKUP:
        if carried == NOTHING and kind in (KEY, BALL, BOX):
            front, carried = EMPTY_CELL, front
    elif action == DROP:
        if carried != NOTHING and kind == EMPTY:
            front, carried = carried, NOTHING
    elif action == TOGGLE:
        front = toggled(front, carried)
    return Scene(x, y, direction, front_x, front_y, front, carried), outcome


@njit
def judge(rule, action, before, after, places, cell_at_place, outcome):
    """What the step functions of gym-minigrid's environments make of an action; else `outcome`, MiniGridEnv's own.

    `places`: x and y of the two positions of World.places; `cell_at_place`: what lies on the first one.
    """
    opened = action == TOGGLE and after.front & TARGET and state_of(after.front) == OPEN
    if rule == PICK_UP:
        if action == PICKUP and after.carried & TARGET:
            return SUCCEEDED
    elif rule == UNLOCK:
        # No other action can have opened the door, and opening it ends the episode: it is the one in front.
        if opened:
            return SUCCEEDED
    elif rule == FETCH:
        if after.carried != NOTHING:
            return SUCCEEDED if after.carried & TARGET else FAILED
    elif rule == RED_BLUE:
        # The target is the blue door, the place is the red one's.
        if opened:
            return SUCCEEDED if state_of(cell_at_place) == OPEN else FAILED
    elif rule == MEMORY:
        if after.x == places[0] and after.y == places[1]:
            return SUCCEEDED
        if after.x == places[2] and after.y == places[3]:
            return FAILED
    elif rule in (GO_TO_DOOR, GO_TO_OBJECT):
        dx, dy = abs(after.x - places[0]), abs(after.y - places[1])
        if action == TOGGLE:
            return FAILED
        if action == DONE:
            return SUCCEEDED if (dx + dy == 1 if rule == GO_TO_DOOR else max(dx, dy) <= 1) else FAILED
    elif rule == PUT_NEAR:
        if action == PICKUP and after.carried != NOTHING and not after.carried & TARGET:
            return FAILED
        if action == DROP and before.carried != NOTHING:
            near = abs(after.front_x - places[0]) <= 1 and abs(after.front_y - places[1]) <= 1
            return SUCCEEDED if after.carried == NOTHING and near else FAILED
    return outcome


@njit
def check(world, actions):
    """Raises: ValueError for an unknown action, IndexError where an agent looks out of the grid (gym-minigrid asserts)."""
    for e in range(len(actions)):
        if not 0 <= actions[e] < NUM_ACTIONS:
            raise ValueError("unknown action")
        direction = world.agent[e, 2]
        front_x, front_y = world.agent[e, 0] + STEP_X[direction], world.agent[e, 1] + STEP_Y[direction]
        if not (0 <= front_x < world.cells.shape[1] and 0 <= front_y < world.cells.shape[2]):
            raise IndexError("an agent looks out of the grid (or initial() has not been called)")


@compiled
def begin_where(world, where, game, seed_state):
    """A new level in every environment where `where` (bool [E]).

    It is made from `seed_state` (uint64 [6]) if that is not empty, else as the environment's own stream goes on.
    """
    for e in np.flatnonzero(where):
        if len(seed_state):
            world.random_state[e] = seed_state
        make_level(world.cells[e], world.agent[e], game, world.random_state[e])
        show_level(world, e)


@compiled
def step_all(world, actions, game):
    """One action (int64 [E]) in every environment, up to the end of its episode; whether an episode has ended."""
    check(world, actions)
    for e in range(len(actions)):
        before = scene_of(world, e)
        after, outcome = move(before, actions[e], game.rule)
        show_scene(world, e, after, before.x, before.y)
        places = (world.places[e, 0, 0], world.places[e, 0, 1], world.places[e, 1, 0], world.places[e, 1, 1])
        cell_at_place = world.cells[e, places[0], places[1]]
        outcome = judge(game.rule, actions[e], before, after, places, cell_at_place, outcome)

        going_on = not world.done[e]
        step = world.episode_step[e] * going_on + 1
        reward = np.float32((outcome == SUCCEEDED) * (1 - 0.9 * (step / game.max_steps)))
        world.episode_step[e] = step
        world.reward[e] = reward
        world.episode_return[e] = world.episode_return[e] * going_on + reward
        world.truncated[e] = (outcome == GOES_ON) & (step >= game.max_steps)
        world.done[e] = (outcome != GOES_ON) | (step >= game.max_steps)
    return world.done.any()
