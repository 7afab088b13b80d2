"""chitu_like: an inference engine for large language models.

`from chitu_like import LLM, SamplingParams` is the Python interface. Importing the package itself
costs nothing: torch is loaded only when `LLM` is asked for, so the control wing, the command
line's help and the front-end process start in milliseconds.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chitu_like.core.sampling_params import SamplingParams
    from chitu_like.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name at its first use (PEP 562)."""
    if name == "LLM":
        from chitu_like.openmp import wait_without_spinning

        wait_without_spinning()  # the import brings torch
        from chitu_like.llm import LLM

        return LLM
    if name == "SamplingParams":
        from chitu_like.core.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name the lazy attributes too, for completion in a shell."""
    return sorted({*globals(), *__all__})
