"""Mistakes derived from refimpl's source: another expression in a function that a step calls."""

import ast
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import getsource, signature, unwrap
from itertools import combinations, permutations
from math import isfinite
from pathlib import Path
from textwrap import dedent
from types import CodeType, FrameType, FunctionType
from typing import Any

import numpy as np

Texts = Iterator[tuple[int, str, str]]
"""Other expressions, and words for them: how unlikely somebody writes them, 0 first."""
_POWERS = "{a} * ({b}) ** 2; {a} * ({b}) ** 0.5; {a} * (1 + {b}); {a} * (1 - {b}); (1 - {a}) * {b}"
OPERATORS: Mapping[type, str] = {  # other expressions of both sides; likely ones stand before |
    ast.Add: "{a}; {b}; {a} - {b} | {a} * (1 + {b}); {b} - {a}", ast.Sub: "{a}; {b} - {a}; -{b}",
    ast.Mult: "{a}; {b}; {a} / {b}; {a} + {b} | " + _POWERS,
    ast.Div: "{a}; {a} * {b}; {b} / {a} | {a} / {b} ** 2; {a} / {b} ** 0.5",
    ast.FloorDiv: "{a}; {a} % {b}; {a} / {b}", ast.Mod: "{a} // {b}; {a}",
    ast.Pow: "{a}; {a} ** -{b} | {a} ** (2 * {b}); {a} ** ({b} / 2)",
    ast.MatMult: "{a}; {b}; {b} @ {a}; {a} @ {b}.swapaxes(-1, -2)",
    ast.BitAnd: "{a}; {b}", ast.BitOr: "{a}; {b}", ast.Lt: "{a} <= {b}; {a} > {b}",
    ast.LtE: "{a} < {b}; {a} >= {b}", ast.Gt: "{a} >= {b}; {a} < {b}",
    ast.GtE: "{a} > {b}; {a} <= {b}", ast.Eq: "{a} != {b}",
}  # fmt: skip
MISTAKES = tomllib.loads((Path(__file__).parent / "mistakes.toml").read_text("utf-8"))
ALIKE: Mapping[str, str] = MISTAKES.pop("functions")  # that people confuse
ASIDE = ("annotation", "returns", "targets", "target")  # fields that are not changed
LONG = 90  # characters of an expression that is printed whole


@dataclass(frozen=True)
class Called:
    """A function that was called: lines that ran, values of its variables and those inside it."""

    function: FunctionType
    lines: set[int] = field(default_factory=set)
    values: dict[str, Any] = field(default_factory=dict)


def called(
    compute: Callable[[], Any], belongs: Callable[[str, str], bool], step: str
) -> list[Called]:
    """The functions that a computation calls, of the modules that belong to it.

    Of a trace point, they are those between the point of the stream before it and the step.
    """
    found: dict[Any, Called] = {}
    reached = False

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        nonlocal reached
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        name = name.partition(".<locals>")[0]
        if frame.f_code.co_name == "observe" and "prefix" in frame.f_locals:
            point = frame.f_locals["name"]
            reached = reached or step == frame.f_locals["prefix"] + point
            if not reached and point in ("resid_mid", "mlp_norm"):
                found.clear()
        if reached or not module.startswith("refimpl.") or not belongs(module, name):
            return None
        one = found.setdefault((module, name), Called(function_named(module, name)))

        def note(frame: FrameType, event: str, _: Any) -> Any:
            one.lines.add(frame.f_lineno)
            if event == "return":
                one.values.update((k, x) for k, x in frame.f_locals.items() if k not in one.values)
            return note

        return note

    old = sys.gettrace(), threading.gettrace()
    sys.settrace(enter)
    threading.settrace(enter)  # signals are computed in others
    try:
        compute()
    finally:
        sys.settrace(old[0])
        threading.settrace(old[1])
    return [x for x in found.values() if isinstance(x.function, FunctionType)]


def function_named(module: str, name: str) -> Any:
    """A function of a module, a method or a property, by its qualified name."""
    value: Any = sys.modules[module]
    for part in name.split("."):
        value = vars(value).get(part)
        for inner in ("fget", "func", "__func__"):
            value = getattr(value, inner, value)
    return unwrap(value) if callable(value) else None


@dataclass(frozen=True)
class Mutant:
    """One change of a function: how unlikely it is, the code that it gives, in words."""

    function: FunctionType
    rank: int
    words: str
    code: Callable[[CodeType], CodeType]


def reworded(function: FunctionType, edits: tuple[str, ...]) -> CodeType:
    """The code of a function with pieces of its text in place of others, which occur once."""
    body = dedent(getsource(function))
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert body.count(old) == 1, (function.__name__, old)
        body = body.replace(old, new)
    return _code(ast.parse(body), function)


def _code(tree: ast.AST, function: FunctionType) -> CodeType:
    whole = compile(tree, function.__code__.co_filename, "exec")  # type: ignore[call-overload]
    every = (x for x in whole.co_consts if isinstance(x, CodeType))
    return next(x for x in every if x.co_name == function.__name__)


class SyntaxTree:
    """A function's syntax tree, in which one place at a time is replaced.

    A factor, a term or a function is left out (rank 0); an operator or a function is another one,
    an argument has another value or is exchanged with its like, a condition is always true (1);
    variables, numbers, slices and orders are others (2 and 3).

    Args:
        one: The function, what of it ran, and the values of its variables.
        numbers: The model's numbers by name, which are tried in place of others.
        narrow: Whether arrays are rounded to 16 bits, too.
    """

    def __init__(self, one: Called, numbers: Mapping[str, float], narrow: bool) -> None:
        self.function, self.values = one.function, one.values
        self.numbers, self.narrow = numbers, narrow
        self.tree = ast.parse(dedent(getsource(one.function)))
        self.body = self.tree.body[0]
        assert isinstance(self.body, ast.FunctionDef)
        self.body.decorator_list, before = [], one.function.__code__.co_firstlineno - 1
        self.lines = {x - before for x in one.lines}

    def mutants(self) -> Iterator[Mutant]:
        """All changes of the function: of its arguments, its statements, its expressions."""
        for rank, text, words in self._of_arguments():
            yield self._mutant(rank, words, self.body, "body", 0, 0, text)
        for parent, key, i, node in [*self._places(self.body)]:
            if isinstance(node, ast.stmt):
                for rank, text, words in self._of_statement(node):
                    yield self._mutant(rank, words, parent, key, i, i + 1, text)
            elif isinstance(node, ast.expr) and not isinstance(parent, ast.FormattedValue):
                right = ast.unparse(node)
                function = isinstance(parent, ast.Call) and parent.func is node
                for rank, text, words in () if function else self._of_expression(node):
                    with suppress(SyntaxError):
                        text = ast.unparse(ast.parse(text))
                        if text != right:
                            words = words or f"`{_short(right)}` is `{_short(text)}`"
                            yield self._mutant(rank, words, parent, key, i, i + 1, text)

    def _mutant(
        self, rank: int, words: str, parent: Any, key: str, i: int, end: int, text: str
    ) -> Mutant:
        def code(_: CodeType) -> CodeType:
            right, new = getattr(parent, key), ast.parse(text).body
            if isinstance(right, list) and isinstance(right[0], ast.stmt):
                other: Any = [*right[:i], *new, *right[end:]]
            else:
                value = new[0].value  # type: ignore[attr-defined]
                other = value if i < 0 else [*right[:i], value, *right[end:]]
            setattr(parent, key, other)
            try:
                return _code(self.tree, self.function)
            finally:
                setattr(parent, key, right)

        return Mutant(self.function, rank, f"{words} in {self.function.__name__}", code)

    def _places(self, node: ast.AST) -> Iterator[tuple[ast.AST, str, int, ast.AST]]:
        """Where what ran stands: the node above, its field and the index there."""
        for key, value in ast.iter_fields(node):
            if key in ASIDE or (node is self.body and key == "args"):
                continue
            for index, child in enumerate(value) if isinstance(value, list) else [(-1, value)]:
                if isinstance(child, ast.stmt):
                    lines = range(child.lineno, (child.end_lineno or child.lineno) + 1)
                    if isinstance(child, ast.Assert | ast.While) or self.lines.isdisjoint(lines):
                        continue
                if isinstance(child, ast.AST):
                    yield node, key, index, child
                    yield from self._places(child)

    def _of_arguments(self) -> Texts:
        """Each argument edited, and swapped with its like, before all other statements."""
        names = [x for x in signature(self.function).parameters if x in self.values]
        for a in names:
            value = self.values[a]
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                yield 2, f"{a} = -{a}", f"{a} is negated"
                yield 2, f"{a} = {a}.swapaxes(-1, -2)", f"{a} is transposed"
            elif type(value) in (int, float):
                for words, other in numbers_like(value, self.numbers).items():
                    yield 1, f"{a} = {other!r}", f"{a} is {words}"
            elif isinstance(value, bool):
                yield 1, f"{a} = not {a}", f"{a} is {not value}"
        for a, b in combinations(names, 2):
            if _alike(self.values[a], self.values[b]):
                yield 1, f"{a}, {b} = {b}, {a}", f"{a} and {b} are swapped"

    def _of_statement(self, node: ast.stmt) -> Texts:
        """Statements left out, or with other targets or conditions."""
        text = _short(ast.unparse(node))
        if isinstance(node, ast.AugAssign):
            yield 0, "pass", f"`{text}` is left out"
        if isinstance(node, ast.If) and not any(isinstance(x, ast.Raise) for x in node.body):
            test, (yes, no) = ast.unparse(node.test), (
                ast.unparse(ast.Module(x, [])) for x in (node.body, node.orelse))  # fmt: skip
            yield 1, yes, f"`{test}` is always true"
            yield 1, no or "pass", f"`{test}` is never true"
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            written = {x.id for x in ast.walk(target) if isinstance(x, ast.Name)}
            read = {x.id for x in ast.walk(node.value) if isinstance(x, ast.Name)}
            if written <= read:
                yield 0, "pass", f"`{text}` is left out"
            if isinstance(target, ast.Tuple) and len(target.elts) <= 3:
                names = [ast.unparse(x) for x in target.elts]
                for new in [", ".join(x) for x in permutations(names)][1:]:
                    words = f"`{', '.join(names)}` are `{new}`"
                    yield 1, f"{new} = {ast.unparse(node.value)}", words

    def _of_expression(self, node: ast.expr) -> Texts:
        """Other expressions in place of one."""
        match node:
            case ast.BinOp(left=a, op=op, right=b) | ast.Compare(left=a, ops=[op], comparators=[b]):
                likely, _, others = OPERATORS.get(type(op), "").partition(" | ")
                sides = {
                    "a": f"({ast.unparse(a)})",
                    "b": f"({ast.unparse(b)})",
                }
                for i, text in enumerate(x for x in likely.split("; ") if x):
                    yield min(i, 1), text.format(**sides), ""
                for text in (x for x in others.split("; ") if x):
                    yield 2, text.format(**sides), ""
                if isinstance(op, ast.FloorDiv) and isinstance(b, ast.BinOp):
                    yield 0, f"{sides['a']} % ({ast.unparse(b.right)})", ""
                for dtype in ("float16", "bfloat16") if self.narrow else ():
                    new = f"({ast.unparse(node)}).astype('{dtype}').astype('float32')"
                    yield 1, new, f"`{_short(ast.unparse(node))}` is rounded to {dtype}"
                if isinstance(op, ast.operator):
                    yield from _regrouped(sides["a"], op, b)
            case ast.UnaryOp(operand=a):
                yield 0, ast.unparse(a), ""
            case ast.BoolOp(values=every):
                yield from ((2, ast.unparse(x), "") for x in every)
            case ast.IfExp(test=test, body=a, orelse=b):
                yield 1, ast.unparse(a), f"`{ast.unparse(test)}` is always true"
                yield 1, ast.unparse(b), f"`{ast.unparse(test)}` is never true"
            case ast.Call():
                yield from self._of_call(node)
            case ast.Subscript(value=x, slice=ast.Slice(lower=a, upper=b)) if a or b:
                name, first, last = (ast.unparse(y) if y else "" for y in (x, a, b))
                end = first or last
                for other in (f"{last}:{first}", ":", f"-({end}):", f":-({end})"):
                    yield 2, f"{name}[{other}]", ""
            case ast.Tuple() if len(node.elts) <= 4:
                names = [ast.unparse(x) for x in node.elts]
                for i, j in combinations(range(len(names)), 2):
                    turned = [*names]
                    turned[i], turned[j] = names[j], names[i]
                    yield 2, f"({', '.join(turned)})", ""
            case ast.Constant(value=bool() as value):
                yield 2, f"{not value}", ""
            case ast.Constant(value=int() | float() as value):
                for words, number in numbers_like(value, self.numbers).items():
                    yield 2, repr(number), f"`{value}` is {words}"
            case ast.Name() | ast.Attribute():
                yield from self._of_name(node)

    def _of_call(self, node: ast.Call) -> Texts:
        """A function left out, another one, with other arguments, or in another order."""
        f, name = ast.unparse(node.func), ast.unparse(node.func).rpartition(".")[2]
        args, short = [ast.unparse(x) for x in node.args], _short(ast.unparse(node))
        more = [ast.unparse(x) for x in node.keywords]

        def call(function: str, args: list[str], more: list[str] = more) -> str:
            return f"{function}({', '.join([*args, *more])})"

        for i, x in enumerate(args):
            if not x.startswith("*") and not isinstance(node.args[i], ast.GeneratorExp):
                yield min(i, 1), x, f"`{short}` is its argument `{_short(x)}` alone"
        for i in range(len(args) - 1):
            yield 2, call(f, [*args[:i], args[i + 1], args[i], *args[i + 2 :]]), ""
        owner = self.function.__globals__.get(f.rpartition(".")[0].split(".")[0])
        for other in ALIKE.get(name, "").split():
            there = hasattr(owner, other) or (owner is None and "." in f)
            new = f"{f.rpartition('.')[0]}.{other}" if there else f"__import__('numpy').{other}"
            yield 1, call(new, args), f"`{other}` is taken in place of `{name}` in `{short}`"
        if isinstance(node.func, ast.Attribute) and owner is None and not args:
            yield 0, ast.unparse(node.func.value), ""  # x.sum() is x
        for i, x in enumerate(more):
            rest = [*more[:i], *more[i + 1 :]]
            for value in ("0", "-1", "-2", "1", "None") if x.startswith("axis=") else ():
                words = f"the axis of `{short}` is {value}"
                yield 1, call(f, args, [*rest, f"axis={value}"]), words
        if node.args:
            first, rest = node.args[0], args[1:]
            if isinstance(first, ast.BinOp):  # f(a + b) is f(a) + b, or a + f(b)
                a, sign, b = ast.unparse(first.left), _sign(first.op), ast.unparse(first.right)
                yield 1, f"{call(f, [a, *rest])} {sign} ({b})", ""
                yield 1, f"({a}) {sign} {call(f, [b, *rest])}", ""
            yield 2, call(f, [call(f, args), *rest]), f"`{f}` is applied twice"
        for other in {ast.unparse(x.func) for x in ast.walk(self.body) if isinstance(x, ast.Call)}:
            yield 3, call(other, args), ""

    def _of_name(self, node: ast.Name | ast.Attribute) -> Texts:
        """Another variable, or fact, of the same kind; another number; fewer bits."""
        text = ast.unparse(node)
        if isinstance(node, ast.Name):
            value, every, before = self._value(text), self.values, ""
        else:
            holder, before = self._value(ast.unparse(node.value)), f"{ast.unparse(node.value)}."
            value, every = getattr(holder, node.attr, None), getattr(holder, "__dict__", {})
        for name, other in every.items():
            if _alike(value, other):
                yield 2, before + name, ""
        if type(value) in (int, float):
            for words, x in numbers_like(value, self.numbers).items():
                rank = 1 if text.isupper() else 3 - ("(" in words)  # constants are like arguments
                yield rank, repr(x), f"`{text}` is {words}"
        if self.narrow and isinstance(value, np.ndarray) and value.dtype.kind == "f":
            for dtype in ("float16", "bfloat16"):
                new = f"{text}.astype('{dtype}').astype({text}.dtype)"
                yield 1, new, f"`{text}` is rounded to {dtype}"

    def _value(self, name: str) -> Any:
        return self.values.get(name, self.function.__globals__.get(name))


def numbers_like(value: float, numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers that people write in place of one, by words: of the model, and near it."""
    kind, near = type(value), [0, 1, 2, 3, -1, value + 1, value - 1, value * 2, value / 2, -value]
    found = {f"{k} ({x:.4g})": kind(x) for k, x in numbers.items() if type(x) is kind}
    if kind is float:
        near += [value**2, abs(value) ** 0.5, 1 / (value or 1), 10 * value, value / 10, 10, 0.5]
        near += [1e-5, 1e-6, 1e-8, 1e4, 5e5, 1e6]
    found |= {f"{kind(x):.4g}": kind(x) for x in near if isfinite(x)}
    return {k: x for k, x in found.items() if x != value}


def _alike(a: Any, b: Any) -> bool:
    """Whether one variable may be taken for another."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a is not b and (a.shape, a.dtype) == (b.shape, b.dtype)
    return type(a) is type(b) and type(a) in (int, float) and a != b


def _regrouped(a: str, op: ast.operator, b: ast.expr) -> Texts:
    """``a + b c`` as ``(a + b) c``, and ``a + f(b)`` as ``f(a + b)``."""
    if isinstance(b, ast.BinOp) and type(b.op) is not type(op):
        left, right = ast.unparse(b.left), ast.unparse(b.right)
        yield 2, f"({a} {_sign(op)} ({left})) {_sign(b.op)} ({right})", ""
    if isinstance(b, ast.Call) and b.args:
        rest = [ast.unparse(x) for x in (*b.args[1:], *b.keywords)]
        first = f"{a} {_sign(op)} ({ast.unparse(b.args[0])})"
        yield 2, f"{ast.unparse(b.func)}({', '.join([first, *rest])})", ""


def _sign(op: ast.operator) -> str:
    return ast.unparse(ast.BinOp(ast.Name("_"), op, ast.Name("_"))).strip("_ ")


def _short(text: str) -> str:
    return text if len(text) <= LONG else f"{text[: LONG // 2]} ... {text[-LONG // 2 :]}"
