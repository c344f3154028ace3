"""Other texts of a function: pieces replaced by others, and the slips that people make anywhere."""

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from inspect import getsource, unwrap
from itertools import permutations
from textwrap import dedent
from types import CodeType, FunctionType
from typing import Any

OPERATORS: Mapping[type, str] = {  # that people write in place of one
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/ +",
    ast.Div: "*",
    ast.FloorDiv: "/ %",
    ast.Mod: "//",
    ast.Lt: "<= >",
    ast.LtE: "< >=",
    ast.Gt: ">= <",
    ast.GtE: "> <=",
    ast.Eq: "!=",
}
ALIKE: Mapping[str, str] = {  # of which people take one for another
    "mean": "sum median max",
    "sum": "mean max",
    "median": "mean",
    "max": "mean sum min",
    "min": "max",
    "sqrt": "square",
    "square": "abs",
    "abs": "square",
    "log": "log2 log10 log1p",
    "exp": "exp2 expm1",
    "maximum": "minimum",
    "minimum": "maximum",
    "floor": "rint ceil",
    "rint": "floor ceil",
    "sigmoid": "silu",
    "silu": "sigmoid gelu",
    "cos": "sin",
    "sin": "cos",
    "nan_mean": "nanmax nanmedian nansum",
    "nanmean": "nanmax nanmedian nansum",
    "cumsum": "cumprod",
    "argmax": "argmin",
    "softplus": "sigmoid",
    "softmax": "sigmoid",
}
MEANS = (  # that people take in place of f(a)
    "{f}({a}[1:])",
    "{f}({a}[:-1])",
    "{a}[-1]",
    "np.exp({f}(np.log({a})))",
    "{f}({a} ** 2) ** 0.5",
)
FRACTIONS = ("float", "Fraction", "NotNegative", "Slope")  # in the type of an argument
FACTORS = (
    "2 * {}",
    "{} / 2",
    "10 * {}",
    "{} / 10",
    "{} + 1",
    "{} - 1",
)  # in place of one
LONG = 90  # characters of an expression that is printed whole


def function_at(place: str) -> FunctionType:
    """A function, method or property of refimpl, such as "model.position_tables:Rope.inv_freq"."""
    module, _, name = f"refimpl.{place}".partition(":")
    value: Any = import_module(module)
    for part in name.split("."):
        value = vars(value)[part]
        value = getattr(value, "fget", value)
    function = unwrap(value)
    assert isinstance(function, FunctionType), place
    return function


def statements_on_lines(text: str) -> str:
    """A text with each statement on one line, so that pieces of it do not depend on a formatter.

    Comments inside a statement of several lines are left out.
    """
    lines = text.split("\n")
    for node in reversed([*ast.walk(ast.parse(text))]):
        if not isinstance(node, ast.stmt) or hasattr(node, "body"):
            continue
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        whole = "\n".join(lines[first:last])
        if last - first == 1 or '"""' in whole:
            continue
        words = [x.partition("  #")[0].strip() for x in lines[first:last]]
        joined = re.sub(r"([(\[{]) ", r"\1", " ".join(words))
        joined = re.sub(r",? ([)\]}])", r"\1", joined)
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        lines[first:last] = [indent + joined, *[""] * (last - first - 1)]
    return "\n".join(x for n, x in enumerate(lines) if x or n == 0)


def reworded(function: FunctionType, edits: list[str]) -> CodeType:
    """The code of a function with pieces of its text in place of others, which occur once."""
    body = statements_on_lines(dedent(getsource(function)))
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert body.count(old) == 1, (function.__name__, old)
        body = body.replace(old, new)
    return _code(ast.parse(body), function)


def _code(tree: ast.AST, function: FunctionType) -> CodeType:
    whole = compile(tree, function.__code__.co_filename, "exec")  # type: ignore[call-overload]
    every = (x for x in whole.co_consts if isinstance(x, CodeType))
    return next(x for x in every if x.co_name == function.__name__)


def slips(function: FunctionType) -> Iterator[tuple[str, CodeType]]:
    """A function's code with one expression or statement replaced each time, and words for it.

    A term, a factor, a function or a statement is left out, a condition always holds, results are
    taken in another order, or an operator, a function or an axis is another one.
    """
    tree = ast.parse(dedent(getsource(function)))
    body = tree.body[0]
    assert isinstance(body, ast.FunctionDef)
    body.decorator_list, right = [], body.body
    for argument in body.args.args:
        kind = ast.unparse(argument.annotation) if argument.annotation else ""
        if any(x in kind for x in FRACTIONS):
            for other in (x.format(argument.arg) for x in FACTORS):
                body.body = [*ast.parse(f"{argument.arg} = {other}").body, *right]
                yield (
                    f"`{argument.arg}` is `{other}` in {body.name}",
                    _code(tree, function),
                )
    body.body = right
    for parent in [
        x for x in ast.walk(body) if not isinstance(x, ast.arguments | ast.arg)
    ]:
        for key, right in ast.iter_fields(parent):
            if key in ("annotation", "returns"):
                continue
            for i, node in enumerate(right if isinstance(right, list) else [right]):
                for words, text in _others(node):
                    new: list[Any] = ast.parse(text).body
                    new = new if isinstance(node, ast.stmt) else [new[0].value]
                    several = isinstance(right, list)
                    setattr(
                        parent,
                        key,
                        [*right[:i], *new, *right[i + 1 :]] if several else new[0],
                    )
                    with suppress(SyntaxError):
                        yield f"{words} in {function.__name__}", _code(tree, function)
                    setattr(parent, key, right)


def _others(node: Any) -> Iterator[tuple[str, str]]:
    """Words for, and texts of, what people write in place of an expression, or a statement."""
    match node:
        case ast.AugAssign():
            yield f"`{_short(node)}` is left out", "pass"
        case ast.If(test=test) if not any(isinstance(x, ast.Raise) for x in node.body):
            for how, body in (("always", node.body), ("never", node.orelse)):
                text = "\n".join(map(ast.unparse, body)) or "pass"
                yield f"`{_short(test)}` is {how} true", text
        case ast.Assign(targets=[ast.Tuple(elts=every)]) if len(every) <= 3:
            names = [ast.unparse(x) for x in every]
            for order in [*permutations(names)][1:]:
                new = ", ".join(order)
                yield (
                    f"`{', '.join(names)}` are `{new}`",
                    f"{new} = {ast.unparse(node.value)}",
                )
        case ast.expr():
            for text in _expressions(node):
                yield f"`{_short(node)}` is `{_short(ast.parse(text))}`", text


def _expressions(node: ast.expr) -> Iterator[str]:
    match node:
        case (
            ast.BinOp(left=a, op=op, right=b)
            | ast.Compare(left=a, ops=[op], comparators=[b])
        ):
            sides = ast.unparse(a), ast.unparse(b)
            yield from sides if isinstance(node, ast.BinOp) else ()
            for other in OPERATORS.get(type(op), "").split():
                yield f"({sides[0]}) {other} ({sides[1]})"
        case ast.UnaryOp(operand=a):
            yield ast.unparse(a)
        case ast.IfExp(body=a, orelse=b):
            yield from (ast.unparse(a), ast.unparse(b))
        case ast.Call(func=f):
            args, name = [ast.unparse(x) for x in node.args], ast.unparse(f)
            yield from (x for x in args if not x.startswith("*") and " for " not in x)
            if isinstance(f, ast.Attribute) and not args:  # x.sum() is x
                yield ast.unparse(f.value)
            owner, _, last = name.rpartition(".")
            for another in ALIKE.get(last, "").split():
                new = (
                    f"{owner or 'np'}.{another}"
                    if owner or name == "nan_mean"
                    else another
                )
                yield new + ast.unparse(node).removeprefix(name)
            for text in (
                MEANS if last in ("mean", "nan_mean") and len(args) == 1 else ()
            ):
                yield text.format(f=name, a=args[0])
            for x in node.keywords:
                for axis in ("0", "-1", "-2", "None") if x.arg == "axis" else ():
                    yield ast.unparse(node).replace(ast.unparse(x), f"axis={axis}")


def _short(node: ast.AST) -> str:
    text = ast.unparse(node)
    return (
        text if len(text) <= LONG else f"{text[: LONG // 2]} ... {text[-LONG // 2 :]}"
    )
