"""Mixed precision for a backend: a search over what calibration and the backend say."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pydantic

from qconvert import __version__, backends, onnx_io
from qconvert.backends.base import Availability
from qconvert.backends.ort import VERSION
from qconvert.measure.machine import machine
from qconvert.measure.mix import Mix
from qconvert.pipeline import requests, sampling
from qconvert.pipeline.graphs import PLAN, Basis, engine_settings, graph_of
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.scoring import Exam
from qconvert.pipeline.step_clock import clock_of
from qconvert.pipeline.variants import Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.quantize import plan as plans
from qconvert.quantize import plan_files
from qconvert.quantize.plan_files import Planned
from qconvert.search.blocks import blocks
from qconvert.search.explore import Goal, Quest, explore
from qconvert.search.subject import Subject
from qconvert.search.trials import open_trials

STEP = "search"
MIX, TRIALS = "mix.json", "trials.jsonl"
SAME_IMAGES = "no `--eval`: what was found is confirmed on the images that it was found on"
FEW = 32
TOO_FEW = (
    "blocks were tried on {} images only: give more with `--images`, a fifth of them is held out "
    "for this"
)

ADAPTER = pydantic.TypeAdapter(Mix)


@dataclass(frozen=True)
class Task:
    """For which backend to search, from what, confirmed on which images."""

    backend: str
    base: Basis
    exam: Exam | None
    available: Availability


@dataclass(frozen=True)
class Found:
    """What a search found; `planned` is the mix with its weights, None where there is none."""

    mix: Mix
    planned: Planned | None


def search(task: Task, shop: Workshop, trials: Path) -> Found:
    """Search, or go on where a killed search was; each trial is a line in the file `trials`."""
    started = time.perf_counter()
    graph = graph_of(Variant(task.backend, "int8"), task.base, shop.store, shop.tell)
    plain = plan_files.load(graph.folder / PLAN)
    scheme = requests.scheme_for(shop.config, backends.wants(task.backend))
    subject = Subject(task.base.ready.model, plain.plan, scheme, plain.weights)

    def make(folder: Path) -> None:
        mix = _explored(task, subject, shop, trials)
        (folder / MIX).write_text(json.dumps(asdict(mix), indent=1), encoding="utf-8")
        if mix.outcome == "mixed" and mix.chosen is not None:
            every = blocks(subject.model, subject.plan)
            lifted = [each for each in every if each.name in mix.chosen.lifted]
            plan_files.save(Planned(subject.lifted(lifted), subject.weights), folder / PLAN)
        shutil.copyfile(trials, folder / TRIALS)

    kept = shop.store.get(STEP, _recipe(task, subject, shop), make)
    if kept.stored:
        trials.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept.path / TRIALS, trials)
    mix = ADAPTER.validate_python(json.loads((kept.path / MIX).read_text(encoding="utf-8")))
    planned = plan_files.load(kept.path / PLAN) if (kept.path / PLAN).is_file() else None
    shop.tell(Progress(STEP, mix.why, time.perf_counter() - started, kept.stored))
    return Found(mix, planned)


def _explored(task: Task, subject: Subject, shop: Workshop, trials: Path) -> Mix:
    shop.tell(Progress(STEP, "what FP32 answers"))
    sample = sampling.for_search(task.base)
    exam = sampling.for_evaluation(task.base, task.exam) if task.exam is not None else sample
    runs = task.available.runs
    if shop.store.fresh:
        trials.unlink(missing_ok=True)
    quest = Quest(
        subject=subject,
        blocks=blocks(subject.model, subject.plan),
        search=sample,
        evaluation=exam,
        trials=open_trials(trials, _subject(task, subject)),
        clock=clock_of(subject, task.backend, task.base, shop) if runs else None,
        untimed="" if runs else task.available.reason,
    )
    chosen, wants = shop.config.search, backends.wants(task.backend)
    rest = shop.config.quantize.rest or wants.build_rest
    goal = Goal(chosen.budget, chosen.by, rest, chosen.max_latency)

    def say(text: str, done: int, total: int) -> None:
        shop.tell(Progress(STEP, text, done=done, total=total))

    notes = [SAME_IMAGES] if task.exam is None else []
    images = len(sample.wanted.labels)
    notes += [TOO_FEW.format(images)] if images < FEW else []
    return replace(explore(quest, goal, say), notes=tuple(notes))


def _subject(task: Task, subject: Subject) -> str:
    """Return what decides every trial, as a hash; what is asked of it is in a trial's own name."""
    decided = [
        onnx_io.fingerprint(subject.model),
        plans.dumps(subject.plan),
        task.base.found.whole.origin.fingerprint if task.base.found is not None else "",
        __version__,
        VERSION,
        version("numpy"),
    ]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


def _recipe(task: Task, subject: Subject, shop: Workshop) -> dict[str, str]:
    exam, runs = task.exam, task.available.runs
    # How engines are built decides how long they take, which is a part of what is found.
    built = [engine_settings(shop.config, task.backend), shop.config.build.profile]
    return {
        "name": f"{task.backend} {shop.config.search.budget:g}",
        "model": onnx_io.fingerprint(subject.model),
        "subject": _subject(task, subject),
        "settings": json.dumps(asdict(shop.config.search), sort_keys=True),
        "exam": exam.digest() if exam is not None else "",
        "bench": json.dumps(asdict(shop.config.bench), sort_keys=True),
        "engines": json.dumps(built, sort_keys=True) if runs else "",
        "machine": json.dumps(machine(), sort_keys=True) if runs else "",
    }
