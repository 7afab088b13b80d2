"""Timed runs of Hugging Face transformers: the peer that everybody has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from chitu_like.core.errors import PeerError


class TransformersRun:
    """A model of random weights on the CPU, run by transformers' `generate`.

    Args:
        hf_config: the architecture, as config.json spells it.
        dtype: of the weights.
        clock: seconds that never go back.

    Attributes:
        name, version: of transformers.
    """

    name = "transformers"

    def __init__(
        self,
        hf_config: Mapping[str, object],
        dtype: torch.dtype,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        import transformers  # only in the extra "test"

        self.version: str = transformers.__version__
        self._clock = clock
        config = transformers.AutoConfig.for_model(**hf_config)  # type: ignore[arg-type]
        model = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation="sdpa"
        )
        self._model = model.eval()
        self._generation_config = transformers.GenerationConfig

    @torch.inference_mode()
    def seconds(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds to answer all prompts (of one length) with num_tokens tokens each, greedily.

        Raises:
            PeerError: it answered with another number of tokens.
        """
        input_ids = torch.tensor(prompts)  # [batch_size, prompt_len]
        # No end-of-text: every row runs to its length, and no stop check is made.
        generation = self._generation_config(  # type: ignore[no-untyped-call]
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
        )
        start_s = self._clock()
        output = self._model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=generation,
        )
        output = output.tolist()  # as ours: the tokens are there to be used
        elapsed_s = self._clock() - start_s
        new = {len(row) - input_ids.shape[1] for row in output}
        if new != {num_tokens}:
            raise PeerError(f"transformers gave {new} tokens, {num_tokens} were asked for")
        return elapsed_s
