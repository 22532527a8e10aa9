"""The state of a program as a hash: two programs with the same fingerprint go on in the same way.

Rules of this module: what is hashed is everything that can be reached from the roots, so that nobody has to say what
belongs to the state; and what cannot be looked into is refused, never left out. It changes nothing and calls nothing.

What is reached: the attributes and slots of objects, the items of containers in their order, the arguments and the
closures of functions, and of a suspended generator or coroutine where it is, its locals and all that it has on its
stack: iterators half way through, what it awaits. An object that is met again is written as the number of its first
meeting, so that two names for one list are not two lists. What is not reached: modules and their globals, and what the
classes hold; a program whose steps change those has no fingerprint.

More than matters may be told apart (a dict that was filled in another order, a counter that nobody reads): that costs
merging, and proves nothing wrong. States that are told to be the same are the same, but for a collision of 128 bits.
"""

from __future__ import annotations

import enum
import functools
import gc
import hashlib
import itertools
import random
import re
import threading
import types
import weakref
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["fingerprint"]

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)})
# One and the same throughout the process, so that the address tells it.
_FIXED = (type, types.ModuleType, types.CodeType, types.WrapperDescriptorType, types.MethodDescriptorType)
# What stands between a coroutine and what it awaits: while it is awaited, it is no more than what it refers to.
_BETWEEN = frozenset({"FutureIter", "coroutine_wrapper", "async_generator_asend", "async_generator_athrow"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# The flag of types that are written in C, whose instances may hold more than can be seen from Python.
_IMMUTABLE_TYPE = 1 << 8


def fingerprint(*roots: object) -> bytes:
    """Return 16 bytes that are the same for the same state of all that can be reached from `roots`.

    Raises:
        ValueError: something was reached that cannot be looked into, such as an open file.

    """
    writer = _Writer()
    for root in roots:
        writer.write(root)
    return hashlib.blake2b("\n".join(writer.words).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class _Writer:
    """Writes objects as words."""

    __slots__ = ("_alive", "_numbers", "words")

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[int, int] = {}
        # What was made on the way: were it to die, its address could be another's.
        self._alive: list[object] = []

    def write(self, value: object) -> None:
        kind = type(value)
        words, numbers = self.words, self._numbers
        if kind in _ATOMS:
            words.append(f"{kind.__name__} {value!r}")
            return
        number = numbers.setdefault(id(value), len(numbers))
        if number < len(self._alive):
            words.append(f"again {number}")
            return
        self._alive.append(value)
        title, write, slots, has_dict = _HOW.get(kind) or _how(kind)
        words.append(title)
        if write is not None:
            write(self, value)
        if has_dict:
            _write_mapping(self, getattr(value, "__dict__", {}))
        for name in slots:
            content = getattr(value, name, _UNSET)
            if content is not _UNSET:
                words.append(name)
                self.write(content)

    def write_all(self, values: Iterable[object]) -> None:
        values = values if type(values) is tuple else list(values)
        self.words.append(f"{len(values)} of them")
        write = self.write
        for value in values:
            write(value)


_UNSET = object()
_How: TypeAlias = "tuple[str, Callable[[_Writer, Any], None] | None, tuple[str, ...], bool]"
_HOW: dict[type, _How] = {}


def _how(kind: type) -> _How:
    """Return how an object of this type is written: its title, its contents, its slots, and whether it has a dict."""
    write, slots, has_dict = _parts(kind)
    found = _HOW[kind] = (f"{kind.__qualname__} {id(kind)}", write, slots, has_dict)
    return found


def _parts(kind: type) -> tuple[Callable[[_Writer, Any], None] | None, tuple[str, ...], bool]:
    write = next((write for kinds, write in _KINDS if issubclass(kind, kinds)), None)
    if issubclass(kind, (*_FIXED, enum.Enum)):
        return write, (), False
    if write is None:
        if hasattr(kind, "_asyncio_future_blocking"):
            write = _write_future
        elif kind.__name__ in _BETWEEN:
            write = _write_referents
        elif any(base.__flags__ & _IMMUTABLE_TYPE for base in kind.__mro__[:-1]):
            write = _write_reduced
    return write, _slots_of(kind), kind.__dictoffset__ != 0


def _slots_of(kind: type) -> tuple[str, ...]:
    return tuple(
        name
        for base in kind.__mro__
        if not base.__flags__ & _IMMUTABLE_TYPE
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    )


def _write_referents(writer: _Writer, value: object) -> None:
    writer.write_all(gc.get_referents(value))


def _write_fixed(writer: _Writer, value: object) -> None:
    writer.words.append(str(id(value)))


def _write_enum(writer: _Writer, value: enum.Enum) -> None:
    writer.words.append(value.name)


def _write_text(writer: _Writer, value: object) -> None:
    """Write what tells all in its repr, but for the address."""
    writer.words.append(_ADDRESS.sub("", repr(value)))


def _write_atom(writer: _Writer, value: object) -> None:
    """Write the number or the string in an instance of a subclass."""
    base = next(base for base in type(value).__mro__ if base in _ATOMS)
    writer.words.append(base.__repr__(value))  # type: ignore[call-arg] # of the class, not of a subclass


def _write_mapping(writer: _Writer, value: Mapping[Any, object]) -> None:
    writer.write_all(itertools.chain.from_iterable(value.items()))


def _write_function(writer: _Writer, value: types.FunctionType) -> None:
    writer.words.append(str(id(value.__code__)))
    if value.__defaults__ or value.__kwdefaults__ or value.__closure__:
        writer.write_all((value.__defaults__, value.__kwdefaults__, value.__closure__))


def _write_builtin(writer: _Writer, value: types.BuiltinFunctionType) -> None:
    # One of an object's methods is made anew at each access.
    writer.words.append(value.__qualname__)
    writer.write(value.__self__)


def _write_method(writer: _Writer, value: types.MethodType) -> None:
    writer.write_all((value.__func__, value.__self__))


def _write_cell(writer: _Writer, value: types.CellType) -> None:
    try:
        writer.write(value.cell_contents)
    except ValueError:
        writer.words.append("empty")


def _write_suspended(writer: _Writer, value: Any) -> None:  # noqa: ANN401 - one of three kinds
    prefix = {types.GeneratorType: "gi", types.CoroutineType: "cr"}.get(type(value), "ag")
    frame = getattr(value, f"{prefix}_frame")
    if frame is None:
        writer.words.append("ended")
        return
    # Which of the locals are set is written too: those that are not are no referents.
    local = frame.f_locals
    writer.words.append(f"at {frame.f_lasti} with {sorted(local)}")
    # Not the frame itself, nor the copy of the locals, which are there once somebody has asked for them.
    writer.write_all(each for each in gc.get_referents(value) if each is not frame and each is not local)


def _write_future(writer: _Writer, value: Any) -> None:  # noqa: ANN401 - asyncio is not imported here
    if not value.done() or value.cancelled():
        writer.words.append("cancelled" if value.done() else "pending")
    else:
        writer.write_all((value.exception() or value.result(),))


def _write_reduced(writer: _Writer, value: object) -> None:
    """Write what pickling would write. Iterators say in this way how far they are."""
    try:
        reduced = value.__reduce_ex__(2)
    except TypeError:
        msg = f"the state of {value!r} cannot be looked into; a program that holds it is explored with merge=False"
        raise ValueError(msg) from None
    writer.write(reduced)


# The first kind that an object is of says what is written; then come the attributes and slots, if it has any.
_KINDS: tuple[tuple[type | tuple[type, ...], Callable[[_Writer, Any], None]], ...] = (
    (_FIXED, _write_fixed),
    (enum.Enum, _write_enum),
    (types.FunctionType, _write_function),
    (types.BuiltinFunctionType, _write_builtin),
    (types.MethodType, _write_method),
    (types.CellType, _write_cell),
    ((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), _write_suspended),
    ((type(threading.Lock()), type(threading.RLock()), itertools.count), _write_text),
    ((int, float, complex, str, bytes), _write_atom),
    ((tuple, list, deque, array), lambda writer, value: writer.write_all(value)),
    # In the order in which the program would walk it.
    ((set, frozenset), lambda writer, value: writer.write_all(value)),
    (dict, _write_mapping),
    (functools.partial, lambda writer, value: writer.write_all((value.func, value.args, value.keywords))),
    (BaseException, lambda writer, value: writer.write_all((value.args, value.__cause__, value.__context__))),
    (weakref.ref, lambda writer, value: writer.write(value())),
    (random.Random, lambda writer, value: writer.write(value.getstate())),
)
