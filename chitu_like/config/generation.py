"""generation_config.json: the sampling a model's makers suggest, and the tokens that end its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chitu_like.core.errors import CheckpointError

FILE_NAME = "generation_config.json"
MAX_FILE_BYTES = 1 << 20
_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What the checkpoint suggests.

    Attributes:
        sampling: fields of SamplingParams; greedy where do_sample is false.
        eos_token_ids: tokens that end a text; empty where the file names none.
    """

    sampling: Mapping[str, int | float] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def read_generation_defaults(folder: str | None) -> GenerationDefaults:
    """Read a checkpoint folder's generation_config.json; nothing is suggested where there is none.

    Raises:
        CheckpointError: the file is no JSON object, or a value has the wrong type.
    """
    path = Path(folder) / FILE_NAME if folder is not None else None
    if path is None or not path.is_file():
        return GenerationDefaults()
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, not a JSON object")
    sampling = {
        name: _number(path, name, content[name]) for name in _NUMBERS if _has(content, name)
    }
    if content.get("do_sample") is False:
        sampling["temperature"] = 0.0  # transformers decodes greedily then, whatever else is said
    return GenerationDefaults(
        sampling=sampling, eos_token_ids=_token_ids(path, content.get("eos_token_id"))
    )


def _has(content: Mapping[str, object], name: str) -> bool:
    return content.get(name) is not None


def _number(path: Path, name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{path}: {name}={value!r} must be a number")
    return value


def _token_ids(path: Path, value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in values:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise CheckpointError(f"{path}: eos_token_id={value!r} must be token ids")
    return tuple(values)
