"""One block lifted at a time gives what lifting it and running the whole network gives."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from qconvert.core.tensors import Tensors
from qconvert.graph.patterns import constant_array
from qconvert.optimize import sensitivity
from qconvert.optimize.blocks import find_blocks
from qconvert.optimize.sensitivity import (
    CachedPrefix,
    SearchModel,
    cache_batches,
    run_single_blocks,
)
from qconvert.quantize import rounded_weights
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.rounded_weights import RoundedWeight
from tests.models import floats, mixed
from tests.quantize.quantized_models import planned, scheme


def subject(backend: str) -> SearchModel:
    model = mixed()
    return SearchModel(model, planned(model, backend), scheme(backend))


def images() -> Iterator[Tensors]:
    for seed in range(3):
        yield {"image": floats(4, 3, 16, 16, seed=seed)}


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("most", [10**9, 20_000, 0])
def test_with_and_without_shared_work_the_answers_are_the_same(backend: str, most: int) -> None:
    whole = subject(backend)
    every = find_blocks(whole.model, whole.plan)
    assert len(every) == 6
    for block, got in zip(every, run_single_blocks(whole, every, images, most), strict=True):
        run = whole.open_segment(whole.restore_float([block]))
        for feeds, answer in zip(images(), got, strict=True):
            np.testing.assert_allclose(answer["scores"], run(feeds)["scores"], atol=1e-5)


def test_what_comes_before_a_block_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    answers = sensitivity._run_from

    def watched(whole: SearchModel, plan: object, prefix: CachedPrefix) -> list[Tensors]:
        starts.append(prefix.at)
        return answers(whole, plan, prefix)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity, "_run_from", watched)
    whole = subject("cpu")
    every = find_blocks(whole.model, whole.plan)
    list(run_single_blocks(whole, every, images))
    assert starts == [
        sensitivity.find_first_change(whole, whole.restore_float([block])) for block in every
    ]
    assert starts == sorted(starts)
    assert starts[-1] > len(whole.model.graph) / 2


def test_learned_weights_stay_in_what_is_not_lifted_and_go_from_what_is() -> None:
    plain = subject("cpu")
    weights = {
        name: RoundedWeight(np.ones((16, 16, 1, 1), np.int8), np.full(16, 0.01, np.float32), None)
        for name in ("narrow", "side")
    }
    taught = replace(plain, plan=rounded_weights.with_digest(plain.plan, weights), weights=weights)
    every = {block.name: block for block in find_blocks(plain.model, plain.plan)}
    made = {name: taught.restore_float([block]) for name, block in every.items()}
    for name, plan in made.items():
        held = {node.name: node for node in apply_plan(taught.model, plan, weights).graph}
        for other in weights:
            before = constant_array(held[other].inputs[1])
            assert (before is not None) == (other == name)
    (alone,) = run_single_blocks(taught, [every["narrow"]], images)
    whole = taught.open_segment(made["narrow"])
    for feeds, answer in zip(images(), alone, strict=True):
        np.testing.assert_allclose(answer["scores"], whole(feeds)["scores"], atol=1e-5)


def test_images_are_kept_in_memory_unless_they_are_too_many() -> None:
    reads = 0

    def counted() -> Iterator[tuple[Tensors, None]]:
        nonlocal reads
        reads += 1
        yield from ((feeds, None) for feeds in images())

    kept = cache_batches(counted)
    assert [len(list(kept())) for _ in range(3)] == [3, 3, 3]
    assert reads == 1
    again = cache_batches(counted, most=1)
    assert len(list(again())) == 3
    assert reads == 3
