"""Whether what one step gives is what the next one takes, told from their annotations when a chain is made.

All values pass as JSON between steps, so a list may come as a tuple and a class as a mapping of its fields.
"""

import inspect
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

_LISTS = (list, tuple, set, frozenset, Sequence, Iterable, Collection)
_MAPS = (dict, Mapping)


def fits(given: Any, taken: Any) -> bool:
    """Whether every value of the type `given` can be taken where `taken` is wanted."""
    given, taken = _plain(given), _plain(taken)
    if Any in (given, taken) or object in (given, taken) or given == taken:
        return True
    if isinstance(given, TypeVar) or isinstance(taken, TypeVar):
        return True
    if _is_union(given):
        return all(fits(one, taken) for one in get_args(given))
    if _is_union(taken):
        return any(fits(given, one) for one in get_args(taken))
    if get_origin(given) is Literal:
        if get_origin(taken) is Literal:
            return set(get_args(given)) <= set(get_args(taken))
        return all(fits(type(value), taken) for value in get_args(given))
    if get_origin(taken) is Literal:
        return False
    return _fits_plainly(given, taken)


def _fits_plainly(given: Any, taken: Any) -> bool:
    given_class, taken_class = get_origin(given) or given, get_origin(taken) or taken
    if given_class in _LISTS and taken_class in _LISTS:
        inner, wanted = _elements(given), _elements(taken)
        if len(inner) == len(wanted):
            return all(map(fits, inner, wanted))
        # A tuple of fixed length against a list of any: each of its parts must fit.
        one = wanted if len(wanted) == 1 else inner
        return all(fits(a, b) for a in inner for b in wanted) if len(one) == 1 else False
    if given_class in _MAPS and taken_class in _MAPS:
        return all(map(fits, _pair(given), _pair(taken)))
    if given_class in _MAPS or taken_class in _MAPS:
        return has_fields(taken_class) or has_fields(given_class)
    if taken_class is float and given_class is int:
        return True
    try:
        return issubclass(given_class, taken_class)
    except TypeError:
        return False


def element_of(given: Any) -> Any:
    """The type of the items of a list type; None where it is no list."""
    given = _plain(given)
    if given in (Any, object):
        return Any
    if (get_origin(given) or given) not in _LISTS:
        return None
    inner = _elements(given)
    return inner[0] if len(inner) == 1 else Union[tuple(inner)]  # noqa: UP007


def field_of(given: Any, name: str) -> Any:
    """The type of a field of a class or mapping type; Any where nothing is known, None where it has no such field."""
    given = _plain(given)
    kind = get_origin(given) or given
    if kind in _MAPS:
        return _pair(given)[1]
    if not has_fields(kind):
        return Any if given in (Any, object) or _is_union(given) else None
    fields = {key: note for base in reversed(kind.__mro__) for key, note in _annotations(base).items()}
    found = fields.get(name)
    return Any if isinstance(found, str) else found


def shown(annotation: Any) -> str:
    """A type as a person writes it."""
    if annotation is type(None):
        return "None"
    return (
        annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    )


def has_fields(kind: Any) -> bool:
    """Whether it is a class whose values are mappings in JSON."""
    return is_typeddict(kind) or (
        isinstance(kind, type) and (hasattr(kind, "__dataclass_fields__") or hasattr(kind, "model_fields"))
    )


def _annotations(base: type) -> dict[str, Any]:
    return inspect.get_annotations(base)


def _plain(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    return type(None) if annotation is None else annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _elements(annotation: Any) -> tuple[Any, ...]:
    inner = tuple(one for one in get_args(annotation) if one is not Ellipsis)
    return inner or (Any,)


def _pair(annotation: Any) -> tuple[Any, Any]:
    inner = get_args(annotation)
    return (inner[0], inner[1]) if len(inner) == 2 else (Any, Any)
