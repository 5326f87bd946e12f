"""The search itself: INT8 as it is, each block alone, then sets, until the budget is kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qconvert.feeds import Feeds
from qconvert.measure.mix import By, Gain, Loss, Mix, Step
from qconvert.search.answers import Wanted, judged_by, loss, record
from qconvert.search.blocks import Block
from qconvert.search.front import Climb, Probes, Set, climb, ranked
from qconvert.search.sensitivity import one_by_one
from qconvert.search.subject import Images, Subject
from qconvert.search.trials import Record, Trials

MOST_TIMED = 6

# What is said while it works: a sentence, and how much of how much is done.
Say = Callable[[str, int, int], None]
# Milliseconds of INT8 with these sets lifted, and under None of the float engine.
Clock = Callable[[Sequence[Set]], Mapping[tuple[str, ...] | None, float]]


@dataclass(frozen=True)
class Sample:
    """Images with what FP32 answers; `name` tells them from others in the list of trials."""

    name: str
    images: Images
    wanted: Wanted


@dataclass(frozen=True)
class Goal:
    """What is asked for; `by` is None where the images decide, `rest` is what is lifted to."""

    budget: float
    by: By | None
    rest: str
    max_latency: float | None = None


@dataclass(frozen=True)
class Quest:
    """All that a search needs; `clock` is None where the backend does not run, and says why."""

    subject: Subject
    blocks: tuple[Block, ...]
    search: Sample
    evaluation: Sample
    trials: Trials
    clock: Clock | None = None
    untimed: str = ""


def explore(quest: Quest, goal: Goal, say: Say) -> Mix:
    """Return what came of the search; only trials that are not known are run."""
    by = goal.by or judged_by(quest.evaluation.wanted, goal.budget)
    say("INT8 as it is", 0, 0)
    int8 = replace(_step(quest, (), by), confirmed=_loss(quest, (), by))
    times = quest.clock([()]) if quest.clock is not None else {}
    int8 = replace(int8, ms=times.get(()))
    mix = Mix("int8", "", goal.budget, by, goal.rest, int8, max_latency=goal.max_latency)
    mix = replace(mix, float_ms=times.get(None), untimed=quest.untimed)
    if why := _needless(mix):
        return why
    gains = _gains(quest, say)
    tried = 0

    def look(blocks: Set) -> Step:
        nonlocal tried
        tried += 1
        say(f"{len(blocks)} blocks lifted, set {tried}", 0, 0)
        return _step(quest, blocks, by)

    probes = Probes(look, lambda blocks: _loss(quest, blocks, by), int8.distance)
    found = climb(ranked(quest.blocks, gains), probes, goal.budget)
    return _concluded(_timed(quest, replace(mix, gains=gains), found, say))


def _needless(mix: Mix) -> Mix | None:
    """Return the end of a search that needs no trial."""
    ms, other, confirmed = mix.int8.ms, mix.float_ms, mix.int8.confirmed
    assert confirmed is not None
    if ms is not None and other is not None and other <= ms:
        why = f"{mix.rest} takes {other:.2f} ms and INT8 {ms:.2f}: there is nothing to gain"
        return replace(mix, outcome="float", why=why)
    if ms is not None and mix.max_latency is not None and ms > mix.max_latency:
        why = f"INT8 alone takes {ms:.2f} ms, and what is lifted is slower"
        return replace(mix, outcome="none", why=why)
    if confirmed.pp <= mix.budget:
        return replace(mix, outcome="int8", why="plain INT8 keeps the budget: nothing is lifted")
    return None


def _concluded(mix: Mix) -> Mix:
    chosen = mix.chosen
    if chosen is None:
        why = f"no mix loses as little as {mix.budget:g} points: ship {mix.rest}, or allow more"
        return replace(mix, outcome="none", why=why)
    if chosen.ms is not None and mix.max_latency is not None and chosen.ms > mix.max_latency:
        why = (
            f"the least that keeps the budget takes {chosen.ms:.2f} ms, "
            f"more than the {mix.max_latency:g} asked for"
        )
        return replace(mix, outcome="none", why=why)
    if chosen.ms is not None and mix.float_ms is not None and mix.float_ms <= chosen.ms:
        why = (
            f"the least that keeps the budget takes {chosen.ms:.2f} ms, "
            f"and {mix.rest} alone {mix.float_ms:.2f}"
        )
        return replace(mix, outcome="float", why=why)
    count = len(chosen.lifted)
    blocks = f"{count} blocks" if count > 1 else "one block"
    why = f"{blocks} lifted to {mix.rest}, {100 * chosen.share:.1f} % of the compute"
    return replace(mix, outcome="mixed", why=why)


def _gains(quest: Quest, say: Say) -> tuple[Gain, ...]:
    """Lift each block alone, those whose trial is not known."""
    base = _trial(quest, quest.search, ())
    todo = [each for each in quest.blocks if _key(quest.search, (each,)) not in quest.trials.known]
    answers = one_by_one(quest.subject, todo, quest.search.images)
    for number, (block, got) in enumerate(zip(todo, answers, strict=True), 1):
        quest.trials.put(_key(quest.search, (block,)), record(quest.search.wanted, got))
        say(block.name, len(quest.blocks) - len(todo) + number, len(quest.blocks))
    return tuple(_gain(base, _trial(quest, quest.search, (each,)), each) for each in quest.blocks)


def _gain(base: Record, lifted: Record, block: Block) -> Gain:
    nearer = np.asarray(base["far"]) - np.asarray(lifted["far"])
    half = 1.96 * float(nearer.std(ddof=1)) / math.sqrt(nearer.size) if nearer.size > 1 else 0.0
    return Gain(block.name, len(block.nodes), block.share, float(nearer.mean()), half)


def _step(quest: Quest, blocks: Set, by: By) -> Step:
    told = _trial(quest, quest.search, blocks)
    share = sum(block.share for block in blocks)
    distance = float(np.mean(told["far"]))
    # They are few and have no labels: counting would not tell one set from another.
    found = loss(told, by if quest.search is quest.evaluation else "certainty")
    return Step(tuple(block.name for block in blocks), share, distance, found)


def _loss(quest: Quest, blocks: Set, by: By) -> Loss:
    return loss(_trial(quest, quest.evaluation, blocks), by)


def _trial(quest: Quest, sample: Sample, blocks: Set) -> Record:
    def make() -> Record:
        run = quest.subject.opened(quest.subject.lifted(blocks))
        got: list[Feeds] = [run(feeds) for feeds in sample.images()]
        return record(sample.wanted, got)

    return quest.trials.of(_key(sample, blocks), make)


def _key(sample: Sample, blocks: Set) -> str:
    return f"{sample.name}: " + (", ".join(sorted(block.name for block in blocks)) or "nothing")


def _timed(quest: Quest, mix: Mix, found: Climb, say: Say) -> Mix:
    """Time the set chosen and some on the way to it, in turns with INT8 and the float engine."""
    mix = replace(mix, steps=found.steps, chosen=found.chosen)
    if quest.clock is None or not found.steps:
        return mix
    say("timing", 0, 0)
    by_name = {block.name: block for block in quest.blocks}
    spread = np.linspace(0, len(found.steps) - 1, MOST_TIMED - 1).astype(int)
    picked = list(dict.fromkeys([*(found.steps[at] for at in spread), found.chosen]))
    sets = [tuple(by_name[name] for name in step.lifted) for step in picked if step is not None]
    times = quest.clock([(), *sets])
    return replace(
        mix,
        int8=replace(mix.int8, ms=times[()]),
        float_ms=times[None],
        steps=tuple(replace(step, ms=times.get(step.lifted)) for step in found.steps),
        chosen=found.chosen and replace(found.chosen, ms=times.get(found.chosen.lifted)),
    )
