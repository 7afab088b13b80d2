"""Angles against a plain reading of each kind's formula; transformers' own are in test/models."""

import math

import torch

from chitu_like.core.rope_spec import RopeSpec
from chitu_like.layers.rotary import (
    RotaryEmbedding,
    dynamic_frequencies,
    exponents_of,
    inverse_frequencies,
)


def test_dynamic_is_plain_up_to_the_original_length() -> None:
    plain = RopeSpec(kind="default", theta=100.0, rotary_dim=8)
    spec = RopeSpec(
        kind="dynamic",
        theta=100.0,
        rotary_dim=8,
        factor=3.0,
        original_max_position_embeddings=10,
    )
    freq = dynamic_frequencies(spec, exponents_of(spec), torch.tensor([0, 9, 10, 39]))
    torch.testing.assert_close(freq[0], inverse_frequencies(plain))
    torch.testing.assert_close(freq[1], freq[0])
    base = 100.0 * (3.0 * 40 / 10 - 2.0) ** (8 / 6)
    expected = torch.tensor([base ** (-2 * i / 8) for i in range(4)])
    torch.testing.assert_close(freq[3], expected)
    assert (freq[2, 1:] < freq[1, 1:]).all()


def test_a_tokens_angles_do_not_depend_on_its_company() -> None:
    for kind in ("default", "linear", "dynamic", "llama3", "yarn"):
        spec = RopeSpec(
            kind=kind,
            theta=100.0,
            rotary_dim=8,
            factor=2.0,
            original_max_position_embeddings=10,
        )
        rotary = RotaryEmbedding(spec, dtype=torch.float32, device=torch.device("cpu"))
        positions = torch.tensor([25, 0, 11, 9])
        together = rotary(positions)
        for row, position in enumerate(positions):
            alone = rotary(position.view(1))
            assert torch.equal(alone.cos[0], together.cos[row])
            assert torch.equal(alone.sin[0], together.sin[row])


def test_large_positions_keep_their_angle() -> None:
    spec = RopeSpec(kind="default", theta=500000.0, rotary_dim=4)
    rotary = RotaryEmbedding(spec, dtype=torch.float32, device=torch.device("cpu"))
    cos = rotary(torch.tensor([131071])).cos.flatten()
    assert math.isclose(cos[0].item(), math.cos(131071.0), abs_tol=1e-4)
