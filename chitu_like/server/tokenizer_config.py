"""What a checkpoint folder says about its tokenizer beside the vocabulary.

tokenizer_config.json first; special_tokens_map.json, added_tokens.json and the chat template files
fill what it leaves open, as transformers reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
from tokenizers import AddedToken

from chitu_like.core.errors import CheckpointError

MAX_JSON_BYTES = 256 << 20
"""The largest tokenizer.json known is about 35 MB; a file beyond this is not one."""

_T = TypeVar("_T")


class AddedTokenEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A token that is matched in the text before the vocabulary splits it."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False

    def to_added_token(self, *, special: bool) -> AddedToken:
        """The same in the words of the tokenizers library."""
        return AddedToken(
            self.content,
            single_word=self.single_word,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
            normalized=self.normalized,
            special=special,
        )


class NamedTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """One of several chat templates of a model."""

    name: str
    template: str


TokenEntry = AddedTokenEntry | str | None
Templates = str | list[NamedTemplate] | dict[str, str] | None


class SpecialTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The named tokens, as both tokenizer_config.json and special_tokens_map.json spell them."""

    bos_token: TokenEntry = None
    eos_token: TokenEntry | list[str] = None
    unk_token: TokenEntry = None
    pad_token: TokenEntry = None
    additional_special_tokens: list[AddedTokenEntry | str] | None = None


class TokenizerConfig(SpecialTokens, frozen=True, kw_only=True):
    """The fields of tokenizer_config.json that change tokens or text; others are ignored."""

    tokenizer_class: str | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool | None = None
    added_tokens_decoder: dict[int, AddedTokenEntry] = {}
    chat_template: Templates = None

    @classmethod
    def load(cls, folder: Path) -> TokenizerConfig:
        """Read the folder's files; a folder without any of them gives an empty configuration.

        Raises: CheckpointError naming the file that is broken.
        """
        config = read_json(folder / "tokenizer_config.json", cls) or cls()
        named = read_json(folder / "special_tokens_map.json", SpecialTokens) or SpecialTokens()
        missing = {
            name: getattr(named, name)
            for name in SpecialTokens.__struct_fields__
            if getattr(config, name) is None
        }
        ids = read_json(folder / "added_tokens.json", dict[str, int]) or {}
        added = {token_id: AddedTokenEntry(content=text) for text, token_id in ids.items()}
        return msgspec.structs.replace(
            config,
            **missing,
            added_tokens_decoder=added | config.added_tokens_decoder,
            chat_template=_template_file(folder) or config.chat_template,
        )

    def named_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and so on to their text; those the folder does not name are out."""
        texts = {
            "bos_token": _text(self.bos_token),
            "eos_token": next(iter(self.eos_texts()), None),
            "unk_token": _text(self.unk_token),
            "pad_token": _text(self.pad_token),
        }
        return {name: text for name, text in texts.items() if text is not None}

    def eos_texts(self) -> tuple[str, ...]:
        """Texts of the tokens that end an answer."""
        if isinstance(self.eos_token, list):
            return tuple(self.eos_token)
        text = _text(self.eos_token)
        return () if text is None else (text,)

    def special_tokens(self) -> list[AddedToken]:
        """The named and the additional tokens, all special whatever their entry says."""
        named = [self.bos_token, self.unk_token, self.pad_token]
        ends = self.eos_token if isinstance(self.eos_token, list) else [self.eos_token]
        entries: list[TokenEntry] = [*named, *ends, *(self.additional_special_tokens or [])]
        return [_entry(entry).to_added_token(special=True) for entry in entries if entry]

    def default_template(self) -> str | None:
        """The chat template: the only one, or the one named default."""
        templates = self.chat_template
        if isinstance(templates, list):
            templates = {named.name: named.template for named in templates}
        if isinstance(templates, dict):
            only = next(iter(templates.values())) if len(templates) == 1 else None
            return templates.get("default", only)
        return templates


class _TemplateFile(msgspec.Struct, frozen=True):
    """chat_template.json, as processors of multimodal models store it."""

    chat_template: Templates = None


def _template_file(folder: Path) -> Templates:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    stored = read_json(folder / "chat_template.json", _TemplateFile)
    return stored.chat_template if stored else None


def _entry(entry: AddedTokenEntry | str) -> AddedTokenEntry:
    return AddedTokenEntry(content=entry) if isinstance(entry, str) else entry


def _text(entry: TokenEntry) -> str | None:
    return entry.content if isinstance(entry, AddedTokenEntry) else entry


def read_bytes(path: Path) -> bytes:
    """All bytes of a tokenizer file.

    Raises: CheckpointError if it cannot be read or is beyond MAX_JSON_BYTES.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} is over {MAX_JSON_BYTES >> 20} MiB: not a tokenizer file")
    return content


def read_text(path: Path) -> str:
    """The file as text. Raises: CheckpointError if it is not UTF-8."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error


def read_json(path: Path, kind: type[_T]) -> _T | None:
    """The file as `kind`, or None when there is no such file.

    Raises: CheckpointError if it is not JSON or a field has another type.
    """
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is broken: {error}") from error
