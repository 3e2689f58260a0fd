"""Small changes to a program, by which one sees whether its tests notice anything (DeMillo et al. 1978)."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_COUNTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A program with one change, at a line of the original, and what the change is."""

    line: int
    change: str
    code: str


def mutants_of(code: str, most: int = 12) -> list[Mutant]:
    """Programs that differ from this one in one place inside of a function, spread over it."""
    tree = ast.parse(code)
    inside = {id(node) for function in _functions(tree) for node in ast.walk(function)}
    made: list[Mutant] = []
    original = ast.dump(tree)
    places = [place for place, node in enumerate(ast.walk(tree)) if id(node) in inside]
    for place in places:
        changed = copy.deepcopy(tree)
        node = list(ast.walk(changed))[place]
        change = _change(node)
        if change and ast.dump(changed) != original:
            line = getattr(node, "lineno", 0)
            made.append(Mutant(line, change, ast.unparse(ast.fix_missing_locations(changed))))
    if len(made) <= most:
        return made
    return [made[number * len(made) // most] for number in range(most)]


def _functions(tree: ast.Module) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _change(node: ast.AST) -> str:
    """Change a node in place; what was changed, or nothing."""
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARED:
            node.ops = [_COMPARED[type(operator)]()]
            return f"{_name(operator)} -> {_name(node.ops[0])}"
        case ast.BinOp(op=operator) if type(operator) in _COUNTED:
            node.op = _COUNTED[type(operator)]()
            return f"{_name(operator)} -> {_name(node.op)}"
        case ast.BoolOp(op=ast.And()):
            node.op = ast.Or()
            return "and -> or"
        case ast.BoolOp(op=ast.Or()):
            node.op = ast.And()
            return "or -> and"
        case ast.Return(value=value) if value is not None and not _is_none(value):
            node.value = ast.Constant(None)
            return "returns None"
        case ast.Constant(value=bool() as value):
            node.value = not value
            return f"{value} -> {not value}"
        case ast.Constant(value=int() as value):
            node.value = value + 1
            return f"{value} -> {value + 1}"
        case ast.Raise():
            node.exc, node.cause = ast.Call(ast.Name("MemoryError", ast.Load()), [], []), None
            return "raises another error"
    return ""


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _name(operator: ast.AST) -> str:
    return type(operator).__name__
