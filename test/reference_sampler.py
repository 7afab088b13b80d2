"""What a token should be, by plain Python over one row: the truth for the sampler's tests."""

from __future__ import annotations

import math

from chitu_like.core.batch import SamplingRow

WORD = 0xFFFFFFFF


def reference_mix(x: int, key: int = 0) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x + key & WORD
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def reference_uniform(seed: int, position: int, token_id: int) -> float:
    low, high = seed & WORD, seed >> 32
    key0 = reference_mix(reference_mix(low, high) + position & WORD)
    key1 = reference_mix(reference_mix(high ^ 0x9E3779B9, low) ^ key0)
    bits = reference_mix(reference_mix(token_id) ^ key0, key1)
    return ((bits >> 9) + 0.5) * 2.0**-23


def kept_tokens(scores: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    if top_k:
        order = order[:top_k]
    weights = [math.exp(scores[token] - scores[order[0]]) for token in order]
    before, nucleus = 0.0, []
    for token, weight in zip(order, weights, strict=True):
        if top_p < 1 and nucleus and before >= top_p * sum(weights):
            break
        nucleus.append(token)
        before += weight
    last = scores[nucleus[-1]]
    if min_p:
        last = max(last, scores[order[0]] + math.log(min_p))
    return {token for token, score in enumerate(scores) if score >= last}


def edited_logits(
    logits: list[float], prompt: list[int], output: list[int], row: SamplingRow
) -> list[float]:
    edited = list(logits)
    bias = dict(row.logit_bias)
    for token in range(len(edited)):
        if token in prompt or token in output:
            penalty = row.repetition_penalty
            edited[token] *= 1 / penalty if edited[token] > 0 else penalty
        edited[token] -= row.frequency_penalty * output.count(token)
        edited[token] -= row.presence_penalty * (token in output)
        edited[token] += bias.get(token, 0.0)
        if len(output) < row.min_tokens and token in row.stop_ids:
            edited[token] = -math.inf
    return edited


def reference_token(
    logits: list[float], prompt: list[int], output: list[int], row: SamplingRow
) -> int:
    edited = edited_logits(logits, prompt, output, row)
    if row.temperature == 0:
        return edited.index(max(edited))
    scores = [logit / row.temperature for logit in edited]
    drawn = {
        token: scores[token] - math.log(-math.log(reference_uniform(row.seed, len(output), token)))
        for token in kept_tokens(scores, row.top_k, row.top_p, row.min_p)
    }
    return max(drawn, key=lambda token: drawn[token])
