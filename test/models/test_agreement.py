"""In bfloat16 the most probable tokens are those of transformers, position by position."""

from pathlib import Path

import pytest
import torch
from models.run_model import PagedModel

from chitu_like.core.model_spec import ModelSpec

FOLDER = Path(__file__).resolve().parents[2] / "chitu_like/assets/tiny-chat"
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What is the capital of France?",
    "Count from one to ten.",
    "Tell me a story about a cat.",
    "What is two plus two?",
    "Why is the sky blue?",
    "Write a short poem.",
)
NUM_TOKENS = 260  # of each answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("sdpa", "cpu"),
        pytest.param("sdpa", "cuda", marks=pytest.mark.gpu),
        pytest.param("triton", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_bfloat16_agrees_with_transformers(backend: str, device: str) -> None:
    """Teacher forced on over 2000 positions of what the embedded model itself writes."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    truth = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()
    truth = truth.to(device)
    model = PagedModel(
        ModelSpec.from_folder(FOLDER),
        {name: weight.cpu() for name, weight in truth.state_dict().items()},
        backend=backend,
        block_size=16,
        num_blocks=25 * len(QUESTIONS),
        dtype=torch.bfloat16,
        device=torch.device(device),
    )
    agreed: list[torch.Tensor] = []
    for request, question in enumerate(QUESTIONS):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"].to(device)
        with torch.no_grad():
            tokens = truth.generate(
                prompt, max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None
            )
            expected = truth(tokens).logits[0].argmax(-1).cpu()
        (logits,) = model.step([(request, tokens[0].tolist())])
        agreed.append(logits.argmax(-1) == expected)
    agreement = torch.cat(agreed).double()
    assert len(agreement) > 2000
    assert agreement.mean() >= 0.99
