"""Fits of steps: DistServe's by hand, ours by making up devices and finding them again."""

import random

import msgspec
import pytest

from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.step_fit import DistServeFit, DistServeStep, FittedStep, StepFit, Terms
from chitu_like.cluster.step_fitting import Measured, fit_steps, residuals
from chitu_like.core.errors import ConfigError

DISTSERVE = DistServeFit(
    prefill=(10.0, 0.1, 1e-4),
    decoding_smallbs=(5.0, 1e-3, 0.1),
    decoding_largebs=(8.0, 1e-3, 0.05),
)


def prompt(*lengths: int) -> BatchShape:
    return BatchShape(
        num_prefill_tokens=sum(lengths),
        prefill_pairs=sum(n * (n + 1) // 2 for n in lengths),
        num_chunks=len(lengths),
    )


def test_distserve_prompts_follow_the_formula() -> None:
    step = DistServeStep(fit=DISTSERVE, pp=2, is_first=False)
    expected_ms = (10 + 0.1 * 300 + 1e-4 * (100**2 + 200**2)) / 2 + 2
    assert step.seconds(prompt(100, 200)) == pytest.approx(expected_ms / 1e3)


@pytest.mark.parametrize(("batch", "base", "each"), [(94, 5.0, 0.1), (95, 8.0, 0.05)])
def test_distserve_decodes_change_coefficients_at_the_threshold(
    batch: int, base: float, each: float
) -> None:
    shape = BatchShape(num_decodes=batch, decode_context=5000)
    inner = DistServeStep(fit=DISTSERVE, pp=4, is_first=False)
    expected_ms = (base + 1e-3 * 5000 + each * batch) / 4
    assert inner.seconds(shape) == pytest.approx(expected_ms / 1e3)
    first = DistServeStep(fit=DISTSERVE, pp=4)
    assert first.seconds(shape) == pytest.approx((expected_ms + 2 + 1e-4 * 5000) / 1e3)


def test_a_line_below_zero_takes_no_time() -> None:
    fit = msgspec.structs.replace(DISTSERVE, decoding_smallbs=(-50.0, 0.0, 1.0))
    step = DistServeStep(fit=fit, is_first=False)
    assert step.seconds(BatchShape(num_decodes=2, decode_context=20)) == 0.0
    assert step.seconds(BatchShape(num_decodes=60, decode_context=20)) == pytest.approx(0.01)


def test_an_empty_batch_costs_nothing() -> None:
    assert DistServeStep(fit=DISTSERVE).seconds(BatchShape()) == 0


def device_s(shape: BatchShape) -> float:
    """A device as they are: weights are read or multiplied with, a launch, attention."""
    tokens = shape.num_prefill_tokens + shape.num_decodes
    body = max(4e-3, tokens * 2e-5) + tokens * 1e-6
    attention = shape.prefill_pairs * 3e-9 + shape.decode_context * 2e-8
    return 1e-3 + body + attention + 2e-4 * shape.num_chunks


def random_shapes(seed: int, count: int) -> list[BatchShape]:
    rng = random.Random(seed)
    shapes = []
    for index in range(count):
        decodes = int(2 ** rng.uniform(0, 8)) if index % 3 else 0
        context = sum(int(2 ** rng.uniform(4, 12)) for _ in range(decodes))
        chunks = [int(2 ** rng.uniform(0, 11)) for _ in range(rng.randint(1, 4))]
        alone = index % 3 == 1
        whole = prompt(*([] if alone else chunks))
        shapes.append(
            BatchShape(
                num_prefill_tokens=whole.num_prefill_tokens,
                prefill_pairs=whole.prefill_pairs,
                num_chunks=whole.num_chunks,
                num_decodes=decodes,
                decode_context=context,
            )
        )
    return shapes


def test_a_made_up_device_is_found_again_on_steps_that_were_not_fitted() -> None:
    rng = random.Random(1)
    noisy = [
        Measured(shape=s, seconds=device_s(s) * rng.uniform(0.98, 1.02))
        for s in random_shapes(2, 300)
    ]
    fit = fit_steps(noisy)
    held_out = [Measured(shape=s, seconds=device_s(s)) for s in random_shapes(3, 300)]
    found = residuals(FittedStep(fit), held_out)
    assert found.count == 300
    assert found.median < 0.03
    assert found.p95 < 0.10


def test_steps_that_something_else_slowed_do_not_spoil_the_fit() -> None:
    rng = random.Random(5)
    points = [
        Measured(shape=s, seconds=device_s(s) * (rng.uniform(1.5, 3) if rng.random() < 0.1 else 1))
        for s in random_shapes(6, 300)
    ]
    held_out = [Measured(shape=s, seconds=device_s(s)) for s in random_shapes(7, 300)]
    found = residuals(FittedStep(fit_steps(points)), held_out)
    assert found.median < 0.03
    assert found.p95 < 0.10


def test_a_stage_takes_its_share() -> None:
    points = [Measured(shape=s, seconds=device_s(s)) for s in random_shapes(2, 200)]
    fit = fit_steps(points, head_layers=2.0)
    shape = points[5].shape
    whole = FittedStep(fit).seconds(shape)
    share = fit.share(10, 4, is_last=True)
    assert share == pytest.approx(0.5)
    assert FittedStep(fit, share=share).seconds(shape) == pytest.approx(whole / 2)
    assert fit.share(10, 6, is_last=False) + share == pytest.approx(1.0)


def test_more_work_never_takes_less_time() -> None:
    fit = fit_steps([Measured(shape=s, seconds=device_s(s)) for s in random_shapes(4, 200)])
    cost = FittedStep(fit)
    times = [cost.seconds(prompt(n)) for n in range(1, 20_000, 97)]
    assert times == sorted(times)


def test_too_few_points_are_refused() -> None:
    points = [Measured(shape=prompt(8), seconds=1.0)] * 7
    with pytest.raises(ConfigError, match="7 steps with chunks were measured: a fit takes 8"):
        fit_steps(points)


def test_a_fit_that_is_no_curve_is_one_line() -> None:
    good = Terms(constant_s=0.1, tokens=((1.0, 0.0),))
    for terms, fault in (
        (Terms(constant_s=0.1, tokens=((2.0, 0.0), (1.0, 0.0))), r"mixed\.tokens: 2 stands before"),
        (Terms(constant_s=0.1, tokens=((1.0, 0.1), (2.0, 0.0))), r"mixed\.tokens: 0\.1 s at 1"),
        (Terms(constant_s=-1, tokens=((1.0, 0.0),)), r"mixed\.constant_s=-1"),
    ):
        fit = StepFit(decodes=good, mixed=terms, most_tokens=1, most_decodes=1)
        with pytest.raises(ConfigError, match=fault):
            FittedStep(fit)
