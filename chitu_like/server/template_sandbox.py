"""The Jinja environment chat templates run in: what transformers provides, within bounds.

A template is a program that came with the weights. It may read no attribute of a Python object,
change no value it is given, take a bounded number of steps and make values of a bounded size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
"""Loop rounds of one rendering: about a second; real templates take a few for each message."""
_STEPS_OF_A_CALL = 10  # a macro call takes about 10 us, an empty loop round 1 us
MAX_SIZE = 1 << 24
"""Longest text or list and largest whole number that a template may make."""

_HUGE_WIDTH = re.compile(r"%[^a-zA-Z%]*([0-9]{6}|\*)|\{[^{}]*[0-9]{6}|\{[^{}]+\{")
_STEPS_LEFT = "steps left"  # not an identifier: a template cannot name it


def compile_template(source: str) -> Template:
    """Compile once; render_template as often as wanted, from any thread.

    Raises: jinja2.TemplateError if the source is not a template.
    """
    return _BoundedEnvironment().from_string(source)


def render_template(template: Template, variables: Mapping[str, object]) -> str:
    """Text that the template writes.

    Raises: whatever the template raises; jinja2.exceptions.SecurityError beyond the bounds.
    """
    taken: list[str] = []
    size = 0
    for part in template.generate({**variables, _STEPS_LEFT: [MAX_STEPS]}):
        size += len(part)
        _check_size(size)
        taken.append(part)
    return "".join(taken)


class _BoundingGenerator(CodeGenerator):
    """Compiles a step count into every loop and macro, and a length check into every `~`."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, _count_steps(1))
        super().visit_For(node, frame)

    def visit_Macro(self, node: nodes.Macro, frame: Frame) -> None:
        node.body.insert(0, _count_steps(_STEPS_OF_A_CALL))
        super().visit_Macro(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.bounded(")
        super().visit_Concat(node, frame)
        self.write(")")


def _count_steps(steps: int) -> nodes.ExprStmt:
    """A direct call; a Call node would pass the sandbox's checks, several times slower."""
    return nodes.ExprStmt(nodes.EnvironmentAttribute(f"count_steps(context, {steps})"))


class _Generation(Extension):
    """{% generation %} marks the assistant's words for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with what transformers adds to it, and bounds on loops and on the size of values."""

    code_generator_class = _BoundingGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        for name in ("center", "indent"):
            self.filters[name] = _with_small_widths(self.filters[name])
        self.filters["format"] = _format
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def count_steps(self, context: Context, steps: int) -> None:
        """Take some of this rendering's steps; every loop round and macro call comes here."""
        steps_left = context.parent[_STEPS_LEFT]
        steps_left[0] -= steps
        if steps_left[0] < 0:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")

    def bounded(self, text: str) -> str:
        """Return `text` unless it is too long."""
        _check_size(len(text))
        return text

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """Do +, *, ** and % only where the result is small enough to hold."""
        if operator == "*":
            _check_size(_size(left) * _size(right))
        elif operator == "**":
            # Twice the bits is twice the exponent: a bound that needs no power.
            _check_size(_size(left) ** min(_size(right), 64))
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        elif isinstance(left, str):
            _check_format(left)
        result: object = super().call_binop(context, operator, left, right)
        return result

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """Guard str.format, whose widths stand in the text it is called on."""
        wrapped = super().wrap_str_format(value)
        owner = getattr(value, "__self__", None)
        if wrapped is not None and isinstance(owner, str):
            _check_format(owner)
        return wrapped

    def call(
        __self,
        __context: Context,
        __obj: Callable[..., object],
        *args: object,
        **kwargs: object,
    ) -> object:
        """Call what the template calls, but no text method with a huge width."""
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_widths([*args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)


def _size(value: object) -> int:
    """What a value weighs in arithmetic: a sequence its length, a whole number itself."""
    if isinstance(value, (str, list, tuple)):
        return len(value)
    return abs(value) if isinstance(value, int) else 1


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a text, list or number beyond {MAX_SIZE}")


def _check_widths(arguments: Iterable[object]) -> None:
    """Refuse the numbers that, taken as a width, blow a text up."""
    for argument in arguments:
        if isinstance(argument, int):
            _check_size(abs(argument))


def _check_format(text: str) -> None:
    """Refuse a format text with a huge width, or with one that comes from an argument."""
    if _HUGE_WIDTH.search(text):
        raise SecurityError("a format asks for a huge width")


def _with_small_widths(function: Callable[..., str]) -> Callable[..., str]:
    @wraps(function)
    def checked(*args: object, **kwargs: object) -> str:
        _check_widths([*args, *kwargs.values()])
        return function(*args, **kwargs)

    return checked


def _format(text: str, *args: object, **kwargs: object) -> str:
    """Jinja's own format filter, on checked formats."""
    _check_format(str(text))
    return do_format(text, *args, **kwargs)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands; Jinja's own filter escapes what HTML would misread."""
    _check_widths([indent])
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
