"""What a model's files say beside its weights. No torch: the front end is started with it at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chitu_like.config.architecture import read_model_spec
from chitu_like.config.generation import read_generation_defaults
from chitu_like.config.parallel import check_layout
from chitu_like.config.preprocessed import check_preprocessed
from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import CheckpointError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layout import layer_partition_of
from chitu_like.server.chat_template import ChatTemplate
from chitu_like.server.tokenizer import Tokenizer
from chitu_like.server.tokenizer_files import find_tokenizer_files, require_tokenizer_files


@dataclass(frozen=True, kw_only=True)
class Text:
    """What turns text into token ids and back.

    Attributes:
        tokenizer: of the checkpoint.
        chat_template: None where the checkpoint has none.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What the files of a model say; read before any weight.

    Attributes:
        spec: its shape.
        tokenizer_dir: folder of its tokenizer; None: token ids in and out.
        eos_token_ids: tokens that end its text, empty where no file names them.
        sampling_defaults: fields of SamplingParams that its makers suggest.
    """

    spec: ModelSpec
    tokenizer_dir: Path | None
    eos_token_ids: list[int]
    sampling_defaults: dict[str, int | float]


def read_model_files(config: ServeConfig) -> ModelFiles:
    """Read everything about the model but its weights and its tokenizer.

    Raises:
        ChituError: a file is missing, broken or contradicts the configuration.
    """
    spec = read_model_spec(config.models)
    # Before any rank waits for another: all of them refuse alike, and the first says why.
    check_layout(config, spec)
    check_preprocessed(config, spec, layer_partition_of(config, spec))
    defaults = read_generation_defaults(config.models.ckpt_dir)
    eos_token_ids = defaults.eos_token_ids or spec.eos_token_ids
    return ModelFiles(
        spec=spec,
        tokenizer_dir=_tokenizer_dir(config),
        eos_token_ids=list(eos_token_ids),
        sampling_defaults=dict(defaults.sampling),
    )


def load_text(folder: Path | None) -> Text | None:
    """The tokenizer and chat template of a folder.

    Raises:
        CheckpointError: the folder's files are broken.
    """
    if folder is None:
        return None
    tokenizer = Tokenizer.load(folder)
    source = tokenizer.chat_template
    template = ChatTemplate(source, tokenizer.special_tokens) if source is not None else None
    return Text(tokenizer=tokenizer, chat_template=template)


def _tokenizer_dir(config: ServeConfig) -> Path | None:
    """The tokenizer's folder; None where weights are made up and no tokenizer is asked for."""
    models = config.models
    folder = models.tokenizer_dir
    is_made_up = models.load_format != "auto" and models.tokenizer_path is None
    if folder is None or (is_made_up and find_tokenizer_files(Path(folder)) is None):
        return None
    if not Path(folder).is_dir():
        raise CheckpointError(f"models.tokenizer_path={folder} is no folder")
    require_tokenizer_files(Path(folder))
    return Path(folder)
