"""The import direction of both packages as data, and the checker that reads every import of a tree against it.

A *room* is a module or a subpackage directly below a package. A module imports only from rooms listed above its own;
rooms that share a line are siblings and never import one another. Imports inside functions and under `TYPE_CHECKING`
count like any other: they tell who knows whom just the same. The package's `__init__` is aside: it may import any of
its rooms, and may be imported from where it stands in the list, by rooms that are users of the package as anyone is.
"""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["RULES", "Rules", "violations"]

ROOT = "__init__"


@attrs.frozen(kw_only=True)
class Rules:
    """What may import what in one package."""

    package: str
    order: tuple[tuple[str, ...], ...]
    """Rooms from the bottom up; the rooms of one line are siblings."""
    strangers: frozenset[tuple[str, str]] = frozenset()
    """(importer, imported) pairs that are refused although the order would allow them."""
    only: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """Rooms that may import these top-level modules and their own room, and nothing else."""
    third_party: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """Top-level modules outside the standard library a room may import; "*" speaks for rooms not named; none: any."""
    reserved: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    """Top-level modules that only these files, or files below these folders, may import."""
    public_only: frozenset[str] = frozenset()
    """Other packages of which only names in `__all__` may be used."""


# What the standard library has that reads no clock, rolls no dice and touches nothing outside the process.
PURE = frozenset(
    {
        "__future__", "abc", "array", "bisect", "collections", "dataclasses", "enum", "fractions", "functools", "heapq",
        "itertools", "math", "numbers", "operator", "types", "typing",
    }
)  # fmt: skip
_FREE: frozenset[str] = frozenset({"*"})

RULES = (
    Rules(
        package="resilience",
        order=(
            ("clock",),
            ("errors",),
            ("outcome",),
            ("machines",),
            ("events",),
            ("parking",),
            ("timers",),
            ("retry_budget",),
            ("attempts",),
            ("streaming",),
            ("counting",),
            ("fusing",),
            ("entering",),
            ("callables",),
            ("describing",),
            ("remains",),
            ("layer",),
            ("picking",),
            ("queueing", "turns", "circuits", "handing"),
            (
                "rate_limiter", "circuit_breaker", "storm_guard", "guarded_deque", "bulkhead", "adaptive_limiter",
                "keyed", "retry", "timeout", "fallback", "hedge",
            ),
            ("coalescing",),
            ("policy",),
            (ROOT,),
            ("telemetry",),
            ("redis",),
            ("testing",),
        ),
        only={"machines": PURE | {"attrs"}},
        third_party={
            "*": frozenset({"anyio", "attrs"}),
            # Which files may is said under `reserved`.
            "parking": frozenset({"anyio", "attrs", "trio"}),
            "timers": frozenset({"anyio", "attrs", "trio"}),
            "telemetry": _FREE,
            "redis": _FREE,
            "testing": _FREE,
        },
        reserved={name: frozenset({"parking.py", "timers.py", "testing/"}) for name in ("asyncio", "trio")},
    ),
    Rules(
        package="webhook_adapter",
        order=(
            ("ids",),
            ("crew",),
            ("model",),
            ("settings",),
            ("keys",),
            ("signing",),
            ("egress",),
            ("lifecycle",),
            ("sender",),
            ("receive",),
            ("store",),
            ("guards",),
            ("recorder",),
            ("dispatcher",),
            ("service",),
            ("event_bus",),
            ("event_handler",),
            (ROOT,),
            ("server",),
            ("client",),
            ("integrations",),
            ("testing",),
            ("demo",),
            ("cli",),
            ("__main__",),
        ),
        strangers=frozenset(
            {
                ("store", "sender"),
                ("testing", ROOT),
                ("testing", "server"),
                ("testing", "client"),
                ("testing", "integrations"),
            }
        ),
        public_only=frozenset({"resilience"}),
    ),
)  # fmt: skip


@attrs.frozen
class _Import:
    """One name taken from one module: `name` is None where the module itself is what is imported."""

    line: int
    module: str
    name: str | None = None


def violations(root: Path, rules: Rules) -> list[str]:
    """List every import in `root/<package>` that `rules` refuse, as "path:line: why"; a missing package has none."""
    package = root / rules.package
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        # The module's dotted name as a tuple; relative imports count from its package.
        parts = (rules.package, *inside.with_suffix("").parts)
        room = inside.parts[0].removesuffix(".py")
        if room != ROOT and _level(rules, room) is None:
            found.append(f"{rules.package}/{inside}:1: {room} is in no line of the import order; give it its place")
            continue
        imports = list(_imports(tree, package=parts[:-1]))
        seen = {
            (item.line, why) for item in imports for why in _judge(root, rules, item, room=room, file=inside.as_posix())
        } | set(_private_attributes(root, rules, tree))
        found += [f"{rules.package}/{inside}:{line}: {why}" for line, why in sorted(seen)]
    return found


def _level(rules: Rules, room: str) -> int | None:
    return next((level for level, rooms in enumerate(rules.order) if room in rooms), None)


def _imports(tree: ast.Module, *, package: tuple[str, ...]) -> Iterator[_Import]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield _Import(node.lineno, alias.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else ()
                source = ".".join((*base, *([module] if module else [])))
                for alias in names:
                    yield _Import(node.lineno, source, alias.name)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield _Import(node.lineno, module)
            case _:
                pass


def _judge(root: Path, rules: Rules, item: _Import, *, room: str, file: str) -> Iterator[str]:
    top, *below = item.module.split(".")
    where = rules.reserved.get(top)
    if where is not None and not any(file == place or (place[-1] == "/" and file.startswith(place)) for place in where):
        yield f"{top} may be imported only in {', '.join(sorted(where))}"
    if top == rules.package:
        for target in _rooms(rules, below, item.name):
            yield from _judge_room(rules, room, target)
        return
    if top in rules.public_only:
        yield from _judge_public(root, item)
    only = rules.only.get(room)
    if only is not None and top not in only:
        yield f"{room} may import {', '.join(sorted(only))} and nothing else, not {top}"
    allowed = rules.third_party.get(room, rules.third_party.get("*", _FREE))
    if top not in sys.stdlib_module_names and "*" not in allowed and top not in allowed:
        yield f"{room} may import {', '.join(sorted(allowed))} and the standard library, not {top}"


def _rooms(rules: Rules, below: list[str], name: str | None) -> Iterator[str]:
    """Yield the room that an import of the own package reaches into."""
    if below:
        yield below[0]
    elif name is not None and _level(rules, name) is not None:
        yield name
    else:
        yield ROOT


def _judge_room(rules: Rules, importer: str, imported: str) -> Iterator[str]:
    if importer in {imported, ROOT}:
        return
    own, other = _level(rules, importer), _level(rules, imported)
    if other is None:
        yield f"{importer} imports {imported}, which is in no line of the import order"
    elif importer in rules.only:
        yield f"{importer} imports nothing else of {rules.package}, not {imported}"
    elif own is not None and other == own:
        yield f"{importer} and {imported} are siblings and never import one another"
    elif own is not None and other > own:
        yield f"{importer} imports {imported}, which is listed below it"
    elif (importer, imported) in rules.strangers:
        yield f"{importer} and {imported} do not know each other"


def _judge_public(root: Path, item: _Import) -> Iterator[str]:
    hidden = next((part for part in (*item.module.split("."), item.name or "") if part.startswith("_")), None)
    if hidden is not None:
        yield f"{hidden} is private to {item.module.split('.')[0]}"
    elif item.name is not None:
        names = _public_names(root, item.module)
        if names is not None and item.name not in names:
            yield f"{item.name} is not a public name of {item.module}"


def _public_names(root: Path, module: str) -> frozenset[str] | None:
    """Return the names in a module's `__all__` and its public submodules; None for a module not written yet."""
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return None
    names = {child.stem for child in path.iterdir() if not child.stem.startswith("_")} if path.is_dir() else set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() | ast.Tuple() as value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.List() | ast.Tuple() as value)
            ):
                names |= {entry.value for entry in value.elts if isinstance(entry, ast.Constant)}  # type: ignore[misc]
            case _:
                pass
    return frozenset(names)


def _private_attributes(root: Path, rules: Rules, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield uses such as `resilience.clock.hidden` of modules of other packages that are bound to a name."""
    modules = dict(_bound_modules(root, rules, tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (module := _module_of(node.value, modules)) is not None:
            for why in _judge_public(root, _Import(node.lineno, module, node.attr)):
                yield node.lineno, why


def _bound_modules(root: Path, rules: Rules, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (name in this file, dotted name of the module of another package that it stands for)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                if top in rules.public_only:
                    yield (alias.asname, alias.name) if alias.asname else (top, top)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in rules.public_only:
            for alias in node.names:
                below = root.joinpath(*node.module.split("."), alias.name)
                if below.is_dir() or below.with_suffix(".py").exists():
                    yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _module_of(node: ast.expr, modules: Mapping[str, str]) -> str | None:
    match node:
        case ast.Name(id=name):
            return modules.get(name)
        case ast.Attribute(value=value, attr=attr):
            outer = _module_of(value, modules)
            return None if outer is None else f"{outer}.{attr}"
        case _:
            return None
