"""A SentencePiece model as a tokenizers.Tokenizer (Llama 1 and 2, Mistral)."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from chitu_like.core.errors import UnsupportedError
from chitu_like.server.converted_tokenizer import ConvertedTokenizer, rebuild_merges
from chitu_like.server.sentencepiece_model import ModelType, PieceType, SentencePieceModel
from chitu_like.server.spelling import SPACE_MARK
from chitu_like.server.tokenizer_config import TokenizerConfig


def from_sentencepiece(model: SentencePieceModel, config: TokenizerConfig) -> ConvertedTokenizer:
    """SentencePiece BPE or unigram, with byte fallback, dummy prefix and its normalisation.

    Raises: UnsupportedError for other kinds; ValueError if the vocabulary contradicts itself.
    """
    if model.whitespace_is_suffix or not model.escapes_whitespaces:
        raise UnsupportedError("spaces at the end of words or unescaped: bring a tokenizer.json")
    backend = tokenizers.Tokenizer(_sentencepiece_algorithm(model))
    steps = _sentencepiece_cleaning(model)
    # After an added token, transformers' legacy mode puts a space again; the newer does not.
    if config.legacy is False:
        scheme = "first" if model.adds_dummy_prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE_MARK, prepend_scheme=scheme, split=False
        )
    else:
        if model.adds_dummy_prefix:
            steps.append(normalizers.Prepend(SPACE_MARK))
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    parts = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.adds_dummy_prefix:
        parts.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(parts)
    backend.add_tokens(_sentencepiece_added_tokens(model))
    texts = [piece.text for piece in model.pieces]
    bos = texts[model.bos_id] if 0 <= model.bos_id < len(texts) else None
    eos = (texts[model.eos_id],) if 0 <= model.eos_id < len(texts) else ()
    return ConvertedTokenizer(
        backend=backend, bos_token=bos, eos_tokens=eos, adds_bos=bos is not None
    )


def _sentencepiece_algorithm(model: SentencePieceModel) -> models.Model:
    vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
    if len(vocab) != len(model.pieces):
        raise ValueError("two pieces have the same text")
    byte_fallback = any(piece.type is PieceType.BYTE for piece in model.pieces)
    unknown = [index for index, p in enumerate(model.pieces) if p.type is PieceType.UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"it has {len(unknown)} unknown pieces instead of one")
    if model.model_type is ModelType.UNIGRAM:
        scored = [(piece.text, piece.score) for piece in model.pieces]
        return models.Unigram(scored, unknown[0], byte_fallback)
    if model.model_type is not ModelType.BPE:
        raise UnsupportedError(f"model type {model.model_type.name}: only BPE and UNIGRAM are read")
    mergeable = [
        (-piece.score, index)
        for index, piece in enumerate(model.pieces)
        if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)
    ]
    ordered = [model.pieces[index].text for _, index in sorted(mergeable)]
    return models.BPE(
        vocab=vocab,
        merges=rebuild_merges(ordered, {text: vocab[text] for text in ordered}),
        unk_token=model.pieces[unknown[0]].text,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )


def _sentencepiece_cleaning(model: SentencePieceModel) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.removes_extra_whitespaces:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return steps


def _sentencepiece_added_tokens(model: SentencePieceModel) -> list[AddedToken]:
    """Control pieces, and user-defined ones without a space, are matched before anything else."""
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    return [
        AddedToken(piece.text, special=piece.type in special, normalized=False)
        for piece in model.pieces
        if piece.type in special
        or (piece.type is PieceType.USER_DEFINED and SPACE_MARK not in piece.text)
    ]
