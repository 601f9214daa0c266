"""What entries of a checkpoint must be, declared by their owners: a file may come from anywhere, or have been edited.

A form is a function `form(name, value)` that raises EntryError, one line that names the entry, unless the value is of its kind.
`record` and `each` make forms of forms, so an owner's table of names and forms says all about its part of a checkpoint:

    FORM = record({"frames": whole(), "recent_returns": each(number(), at_most=100)})
    FORM("", state)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

MOST = 2**53  # counts of anything: every whole number up to here is a float64 too
LARGEST = 1e15  # of what is learned or seen: beyond it, squares and sums soon cease to be finite
SHOWN = 40  # characters of a value

Form = Callable[[str, Any], None]
Fits = Callable[[Tensor], Tensor]  # which of a tensor's values can be: bools that broadcast to its shape


class EntryError(ValueError):
    """An entry of a checkpoint that is not what its owner saves; the message is one line and names it."""


def refuse(name: str, value: Any, wanted: str) -> NoReturn:
    """Raises: EntryError."""
    raise EntryError(f"{name} is {shown(value)}, not {wanted}")


def shown(value: Any) -> str:
    """A short look at any value, whatever its size, depth or type."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {_named(value.dtype)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, str):
        return repr(value[:SHOWN])
    return f"a {type(value).__name__}"


def whole(low: int = 0, high: int = MOST, *, multiple_of: int = 1) -> Form:
    """An int from `low` to `high`."""
    kind = "a whole number" if multiple_of == 1 else f"a multiple of {multiple_of}"

    def check(name: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high or value % multiple_of:
            refuse(name, value, f"{kind} from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Form:
    """A finite int or float from `low` to `high`."""

    def check(name: str, value: Any) -> None:
        finite = (type(value) is int and value.bit_length() < 1024) or (type(value) is float and math.isfinite(value))
        if not finite or not low <= value <= high:
            refuse(name, value, "a finite number" + ("" if low == -math.inf else f" from {low:g} to {high:g}"))

    return check


def anything(name: str, value: Any) -> None:
    """Whatever: it is looked at elsewhere, or not used."""


def text(name: str, value: Any) -> None:
    """A str."""
    if type(value) is not str:
        refuse(name, value, "text")


def just(wanted: Any) -> Form:
    """This value, of its type."""

    def check(name: str, value: Any) -> None:
        if type(value) is not type(wanted) or value != wanted:
            refuse(name, value, shown(wanted))

    return check


def mapping(name: str, value: Any) -> None:
    """A dict of anything: who takes it looks at what is in it."""
    if not isinstance(value, dict):
        refuse(name, value, "a table of entries")


def record(forms: Mapping[Any, Form], *, exact: bool = True, optional: Collection[Any] = ()) -> Form:
    """A dict with these entries, and no others if `exact`; the `optional` ones, younger than some files, may be missing."""

    def check(name: str, value: Any) -> None:
        mapping(name, value)
        if missing := [str(key) for key in forms if key not in value and key not in optional]:
            raise EntryError(f"{name or 'it'} lacks {', '.join(missing)}")
        if exact and (others := [key for key in value if key not in forms]):
            raise EntryError(f"{name} has {len(others)} entries that do not belong there, such as {shown(others[0])}")
        for key in [key for key in forms if key in value]:
            forms[key](f"{name}/{key}" if name else str(key), value[key])

    return check


def each(form: Form, *, count: int | None = None, at_most: int | None = None) -> Form:
    """A list of entries of one form: so many, or any number up to one."""

    def check(name: str, value: Any) -> None:
        wrong = not isinstance(value, list) or (count is not None and len(value) != count)
        if wrong or (at_most is not None and len(value) > at_most):
            number_of = "entries" if count is None else f"{count} entries"
            length = f" of {len(value)}" if isinstance(value, list) else ""
            raise EntryError(f"{name} is {shown(value)}{length}, not a list of {number_of}")
        for i, item in enumerate(value):
            form(f"{name}/{i}", item)

    return check


def some(form: Form) -> Form:
    """A list as `each` takes it, of one entry or more."""

    def check(name: str, value: Any) -> None:
        each(form)(name, value)
        if not value:
            raise EntryError(f"{name} is empty")

    return check


def pair(first: Form, second: Form) -> Form:
    """A list or tuple of two."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            refuse(name, value, "a pair")
        for form, item in zip((first, second), value):
            form(name, item)

    return check


def digits(name: str, value: Any) -> None:
    """A whole number below 2^128 as text."""
    text(name, value)
    if not (value.isascii() and value.isdigit() and len(value) < SHOWN and int(value) < 2**128):
        refuse(name, value, "a number of 128 bits in digits")


def hexadecimal(size: int) -> Form:
    """So many bytes as text, two digits each."""

    def check(name: str, value: Any) -> None:
        text(name, value)
        if len(value) != 2 * size or set(value) - set("0123456789abcdef"):
            refuse(name, value, f"{size} bytes in hexadecimal")

    return check


def tensor(shape: Sequence[int | None], dtype: torch.dtype, fits: Fits | None = None) -> Form:
    """A tensor of this shape (None: any length) and dtype, finite and within LARGEST, all of whose values fit."""

    def check(name: str, value: Any) -> None:
        right = isinstance(value, Tensor) and value.dtype == dtype and value.dim() == len(shape)
        if not right or any(size not in (None, own) for size, own in zip(shape, value.shape)):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            refuse(name, value, f"a tensor [{sizes}] of {_named(dtype)}")
        if dtype.is_floating_point and not value.isfinite().all():
            raise EntryError(f"{name} holds numbers that are not finite (NaN or infinite)")
        if dtype.is_floating_point and (value.abs() > LARGEST).any():
            raise EntryError(f"{name} holds numbers beyond {LARGEST:g}, which no learning leads to")
        if dtype == torch.bool and (value.view(torch.uint8) > 1).any():
            raise EntryError(f"{name} holds bytes that are neither false nor true")
        if fits is not None and value.numel() and not torch.as_tensor(fits(value)).all():
            raise EntryError(f"{name} holds values that cannot stand there (from {value.min()} to {value.max()})")

    return check


def generator(name: str, value: Any) -> None:
    """The state of one of PyTorch's generators on the CPU."""
    tensor(torch.Generator().get_state().shape, torch.uint8)(name, value)
    try:
        torch.Generator().set_state(value)
    except RuntimeError:
        raise EntryError(f"{name} is no state of a generator") from None


def within(low: float, high: float) -> Fits:
    """Values from `low` to `high`; as int64 if they are whole, since bounds may lie beyond the values' own type."""

    def fits(values: Tensor) -> Tensor:
        values = values if values.is_floating_point() else values.long()
        return (values >= low) & (values <= high)

    return fits


def like(
    arrays: Mapping[str, np.ndarray],
    fits: Mapping[str, Fits] | None = None,
    *,
    rows: int | None = None,
    optional: Collection[str] = (),
) -> Form:
    """Tensors of these arrays' names, shapes (with so many `rows`, if given) and types; the `optional` ones may be missing."""
    shapes = {name: array.shape if rows is None else (rows, *array.shape[1:]) for name, array in arrays.items()}
    forms = {name: tensor(shapes[name], dtype_of(array.dtype), (fits or {}).get(name)) for name, array in arrays.items()}
    return record(forms, optional=optional)


def dtype_of(dtype: np.dtype | type | str) -> torch.dtype:
    """PyTorch's name of a NumPy dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def weights(network: nn.Module) -> Form:
    """What `network.state_dict()` gives, finite. The network may lie on the meta device: sizes are all that is asked of it."""
    return record({name: tensor(values.shape, values.dtype) for name, values in network.state_dict().items()})


def load_weights(network: nn.Module, state: Mapping[str, Any], key: str) -> None:
    """state[key] becomes the network's weights. Raises: EntryError unless names, shapes and types are its own, all finite."""
    record({key: weights(network)}, exact=False)("", state)
    network.load_state_dict(state[key])
