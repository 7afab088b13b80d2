"""Text to token ids and back, for any checkpoint folder: the one owner of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import tokenizers
from tokenizers import processors

from chitu_like.core.errors import CheckpointError, RequestError
from chitu_like.server.converted_tokenizer import ConvertedTokenizer
from chitu_like.server.spelling import SentencePieceSpelling, spelling_of
from chitu_like.server.tokenizer_config import TokenizerConfig, read_text
from chitu_like.server.tokenizer_convert import convert
from chitu_like.server.tokenizer_files import require_tokenizer_files


class Tokenizer:
    """A model's vocabulary and rules. Immutable once loaded: safe to share between threads.

    Decoding joins the exact bytes of the tokens and reads them as UTF-8, so that a text made token
    by token (IncrementalDetokenizer) is the text made at once. It equals transformers' decode but
    in this: broken bytes of a SentencePiece vocabulary become one U+FFFD per broken sequence
    wherever they stand (transformers turns a whole run of byte tokens into U+FFFD, which could
    never be streamed), and clean_up_tokenization_spaces, which alters English text, is not done.

    Attributes:
        vocab_size: one more than the largest token id; the model's head may be padded beyond it.
        bos_token_id: None when the model has no such token.
        eos_token_ids: as the tokenizer's files say; generation_config.json may name more.
        special_tokens: bos_token, eos_token, ... to their text, for the chat template.
        chat_template: Jinja source, None when the folder has none.
        drops_leading_space: decoding takes away the space that encoding put in front of the text.
    """

    def __init__(self, converted: ConvertedTokenizer, config: TokenizerConfig) -> None:
        backend = converted.backend
        self._backend = backend
        self._spelling = spelling_of(backend)
        backend.no_truncation()
        backend.no_padding()
        _add_tokens(backend, config)
        named = config.named_tokens()
        eos_texts = config.eos_texts() or converted.eos_tokens
        defaults = {"bos_token": converted.bos_token, "eos_token": next(iter(eos_texts), None)}
        self.special_tokens = {k: v for k, v in defaults.items() if v is not None} | named
        self.bos_token_id = self._optional_id(self.special_tokens.get("bos_token"))
        ids = [self._optional_id(text) for text in eos_texts]
        self.eos_token_ids = tuple(token_id for token_id in ids if token_id is not None)
        self.chat_template = config.default_template() or converted.chat_template
        self.drops_leading_space = self._spelling.drops_leading_space
        self._set_template(converted, config)

        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._known_bytes = {
            i: self._added_token_bytes(token.content) for i, token in added.items()
        }
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self._longest_piece = max(map(len, vocabulary), default=1)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Load from a checkpoint folder: tokenizer.json, else the older files, converted.

        Raises:
            CheckpointError: there is no tokenizer or a file is broken, naming it.
            UnsupportedError: the tokenizer is of a kind we cannot read.
        """
        config = TokenizerConfig.load(folder)
        files = require_tokenizer_files(folder)
        path = files[0]
        if path.name == "tokenizer.json":
            try:
                backend = tokenizers.Tokenizer.from_str(read_text(path))
            except CheckpointError:
                raise
            except Exception as error:  # the library raises nothing narrower
                raise CheckpointError(f"{path} is broken: {error}") from error
            # As in transformers 5: the template inside tokenizer.json is the truth about BOS and EOS.
            config = msgspec.structs.replace(config, add_bos_token=None, add_eos_token=None)
            return cls(ConvertedTokenizer(backend=backend), config)
        return cls(convert(files, config), config)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens spelled out in the text become their ids.

        Takes linear time, about a second for 2 MB, and lets other threads run meanwhile.

        Args:
            text: any Unicode text.
            add_special_tokens: put the BOS (or what the model wants) around; off for text that
                a chat template made, which has them.
        Raises: RequestError if the text holds half of a surrogate pair, which no byte can spell.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise RequestError("the text is not valid Unicode: a surrogate stands alone") from error

    def fewest_tokens(self, text: str) -> int:
        """A floor under len(encode(text)), at no cost: refuse a hopelessly long text with it.

        Exact as a floor for text without combining characters (NFC may shorten those).
        """
        return -(-len(text) // self._longest_piece)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence; bytes that are not UTF-8 become U+FFFD."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        content = b"".join(self.token_bytes(i) for i in token_ids if i not in skipped)
        if self.drops_leading_space:
            content = content.removeprefix(b" ")
        return content.decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """Text of one token alone; U+FFFD for bytes that are only part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token; none for an id without a piece (padding of the head)."""
        content = self._known_bytes.get(token_id)
        if content is None:
            if not 0 <= token_id < self.vocab_size:
                return b""
            piece = self._backend.id_to_token(token_id)
            content = b"" if piece is None else self._spelling.to_bytes(piece)
            self._known_bytes[token_id] = content  # texts keep to a small part of a vocabulary
        return content

    def is_special(self, token_id: int) -> bool:
        """Whether the token marks structure (BOS, end of turn, ...) and is not text."""
        return token_id in self._special_ids

    def _optional_id(self, text: str | None) -> int | None:
        token_id: int | None = None if text is None else self._backend.token_to_id(text)
        return token_id

    def _added_token_bytes(self, content: str) -> bytes:
        """An added token stands for itself, but SentencePiece reads its space mark everywhere."""
        if isinstance(self._spelling, SentencePieceSpelling):
            return self._spelling.to_bytes(content)
        return content.encode()

    def _set_template(self, converted: ConvertedTokenizer, config: TokenizerConfig) -> None:
        """Put BOS and EOS around a text as add_bos_token and add_eos_token say."""
        explicit = config.add_bos_token is not None or config.add_eos_token is not None
        if not explicit and not converted.adds_bos:
            return
        adds_bos = converted.adds_bos if config.add_bos_token is None else config.add_bos_token
        bos = self.special_tokens.get("bos_token") if adds_bos else None
        eos = self.special_tokens.get("eos_token") if config.add_eos_token else None
        used = {text: self._optional_id(text) for text in (bos, eos) if text}
        self._backend.post_processor = processors.TemplateProcessing(
            single=[text for text in (bos, "$A", eos) if text],
            special_tokens=list(used.items()),
        )


def _add_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
    """Add what tokenizer_config.json lists beside the vocabulary.

    Raises: CheckpointError if a token cannot get the id that the file gives it.
    """
    entries = sorted(config.added_tokens_decoder.items())
    backend.add_tokens([entry.to_added_token(special=entry.special) for _, entry in entries])
    for token_id, entry in entries:
        if (actual := backend.token_to_id(entry.content)) != token_id:
            raise CheckpointError(
                f"tokenizer_config.json gives {entry.content!r} the id {token_id}, the vocabulary "
                f"gives it {actual}: the files are of different models"
            )
    known = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    named = [token for token in config.special_tokens() if token.content not in known]
    backend.add_special_tokens(named)
