"""Instructions: a call before each that Python is about to execute, of the files that are watched.

Rules of this module: it knows no schedule. It tells the code and the offset of whatever comes next, unless that is
*quiet*: an instruction that only moves what its thread has already, and drops nothing. Whatever another thread does
before a quiet instruction it might as well do before the next one.

They are seen by `sys.monitoring` where it exists (Python 3.12), else by `sys.settrace`.
"""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import sys
import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    TraceFunction: TypeAlias = Callable[[types.FrameType, str, object], "TraceFunction | None"]
    Told: TypeAlias = Callable[[types.CodeType, int], object]

__all__ = ["Watched", "file_of", "tracing", "watching"]

Watched: TypeAlias = "types.ModuleType | type | Callable[..., object]"
"""What stands for the file that it comes from."""


def file_of(watched: Watched) -> str | None:
    """Return the file that this comes from, or what stands for one; None if there is neither."""
    if isinstance(watched, types.ModuleType):
        return watched.__file__
    try:
        return inspect.getfile(watched)
    except (TypeError, OSError):
        # A class that was typed at a prompt or ran from a page knows no file; its methods do.
        return next((function.__code__.co_filename for function in _functions(watched)), None)


def _functions(found: object) -> Iterator[types.FunctionType]:
    """Yield the function that this is, or those that it is made of."""
    if isinstance(found, functools.partial):
        for inner in (found.func, *found.args):
            yield from _functions(inner)
    elif isinstance(found, types.MethodType):
        yield from _functions(found.__func__)
    elif isinstance(found, type):
        for inner in vars(found).values():
            yield from _functions(inner)
    elif isinstance(found, types.FunctionType):
        yield found


#: They move what the thread has already, and drop nothing that might have a finalizer.
_QUIET = frozenset(
    dis.opmap[name]
    for name in (
        "CACHE", "COPY", "COPY_FREE_VARS", "EXTENDED_ARG", "JUMP_FORWARD", "KW_NAMES", "LOAD_CLOSURE", "LOAD_CONST",
        "LOAD_FAST", "LOAD_FAST_AND_CLEAR", "LOAD_FAST_BORROW", "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "LOAD_FAST_CHECK",
        "LOAD_FAST_LOAD_FAST", "LOAD_SMALL_INT", "MAKE_CELL", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "RESUME",
        "SWAP",
    )
    if name in dis.opmap
)  # fmt: skip


@functools.cache
def _quiet(code: types.CodeType) -> frozenset[int]:
    """Return where in this code nothing is done that another thread could see, or see to."""
    return frozenset(offset for offset in range(0, len(code.co_code), 2) if code.co_code[offset] in _QUIET)


if sys.version_info >= (3, 12):
    _monitoring = sys.monitoring
    _TOOLS = (4, 3)  # the numbers that Python reserves for nobody

    @contextmanager
    def watching(files: frozenset[str], known: Iterable[object], step: Told) -> Iterator[None]:
        """Have every instruction of these files told to `step`, in every thread; `known` may have been made of late."""
        tool = next(number for number in _TOOLS if _monitoring.get_tool(number) is None)
        codes = _codes(files) | _within([each.__code__ for found in known for each in _functions(found)], files)
        event = _monitoring.events.INSTRUCTION

        def instruction(code: types.CodeType, offset: int) -> object:
            if offset in _quiet(code):
                return _monitoring.DISABLE
            step(code, offset)
            return None

        _monitoring.use_tool_id(tool, __name__)
        _monitoring.register_callback(tool, event, instruction)
        for code in codes.values():
            _monitoring.set_local_events(tool, code, event)
        try:
            yield
        finally:
            for code in codes.values():
                _monitoring.set_local_events(tool, code, 0)
            _monitoring.register_callback(tool, event, None)
            _monitoring.free_tool_id(tool)

    @contextmanager
    def tracing(_files: frozenset[str], _step: Told) -> Iterator[None]:
        """Do nothing: what is watched is watched in every thread."""
        yield

    @functools.cache
    def _codes(files: frozenset[str]) -> dict[int, types.CodeType]:
        """Return all code of these files, the first time that they are asked for: functions, and what these contain."""
        functions = [each for each in gc.get_objects() if isinstance(each, types.FunctionType)]
        return _within([each.__code__ for each in functions], files)

    def _within(codes: list[types.CodeType], files: frozenset[str]) -> dict[int, types.CodeType]:
        """Return those of these files, and what they contain, by id: what was read twice is equal, and yet is two."""
        found: dict[int, types.CodeType] = {}
        while codes:
            code = codes.pop()
            if code.co_filename in files and id(code) not in found:
                found[id(code)] = code
                codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        return found

else:

    @contextmanager
    def watching(_files: frozenset[str], _known: Iterable[object], _step: Told) -> Iterator[None]:
        """Do nothing: each thread watches itself."""
        yield

    @contextmanager
    def tracing(files: frozenset[str], step: Told) -> Iterator[None]:
        """Have every instruction of these files in this thread told to `step`."""

        def watch(frame: types.FrameType, _event: str, _argument: object) -> TraceFunction | None:
            code = frame.f_code
            if code.co_filename not in files:
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            quiet = _quiet(code)

            def instruction(frame: types.FrameType, event: str, _argument: object) -> TraceFunction:
                if event == "opcode" and frame.f_lasti not in quiet:
                    step(code, frame.f_lasti)
                return instruction

            return instruction

        kept = sys.gettrace()
        sys.settrace(watch)
        try:
            yield
        finally:
            sys.settrace(kept)
