"""The model card: front matter that parses, scores, and code that runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qconvert.core import config_file, onnx_io
from qconvert.core.config import GateConfig
from qconvert.core.errors import UsageError
from qconvert.images.preprocess import PRESETS, Preprocess
from qconvert.report.markdown import render_card
from qconvert.report.model import Report
from qconvert.report.verdict import conclude
from tests import models
from tests.report import reports

IMAGENET = replace(PRESETS["imagenet"], resize=256, crop=224)

FRONT = """\
---
# base_model: OWNER/NAME of the original model
base_model_relation: quantized
library_name: onnx
tags:
- "onnx"
- "int8"
- "cpu"
model-index:
- name: "lite0-cpu-int8"
  results:
  - task:
      type: image-classification
    dataset:
      name: "val"
      type: imagefolder
    metrics:
    - type: accuracy
      name: "accuracy, %"
      value: 88.00
    - type: precision
      name: "precision, %"
      value: 87.60
    - type: recall
      name: "recall, %"
      value: 88.20
    - type: f1
      name: "f1, %"
      value: 87.90
---

# lite0, INT8 for `cpu`
"""


def concluded(preprocess: Preprocess | None = IMAGENET) -> Report:
    settings = {} if preprocess is None else preprocess.to_dict()
    return conclude(replace(reports.measured(), preprocess=settings), GateConfig())


def test_front_matter_has_what_a_hub_reads() -> None:
    assert render_card(concluded()).startswith(FRONT)


def test_fp32_card_is_not_marked_quantized() -> None:
    assert "quantized\n" not in render_card(concluded(), "cpu-fp32").split("---")[1]


def test_card_without_labels_has_no_model_index() -> None:
    assert "model-index" not in render_card(conclude(reports.unlabelled(), GateConfig()))


def test_card_describes_calibration_and_evaluation() -> None:
    card = render_card(concluded())
    assert "58 of 60 operators that could be are quantized to INT8." in card
    assert "Ranges were measured on 200 images of `calib`." in card
    assert "Accuracy was measured on 300 images of `val`." in card
    assert "- Accuracy was measured on 300 images; it may differ on other images." in card
    assert "| cpu-int8 | 88.00 | 87.60 | 88.20 | 87.90 | −0.33 ± 1.12 | 98.50 |" in card


def test_card_counts_labelled_images() -> None:
    accuracy = reports.scored(88.0, -0.3, images=1000, labelled=200)
    card = render_card(conclude(reports.with_int8(accuracy=accuracy), GateConfig()))
    assert "Accuracy was measured on 200 labelled of 1000 images of `val`." in card
    assert (
        "- Accuracy was measured on 200 labelled of 1000 images; it may differ on other images"
        in card
    )


def test_card_has_preprocessing_in_words_and_as_settings(tmp_path: Path) -> None:
    card = render_card(concluded())
    assert (
        "RGB, the shorter side resized to 256 with an antialiased bilinear filter, "
        "224×224 cut from the centre, divided by 255, minus the mean 0.485, 0.456, 0.406, "
        "divided by 0.229, 0.224, 0.225."
    ) in card
    (tmp_path / "qconvert.toml").write_text(code(card, "toml"))
    settings = config_file.load(tmp_path / "qconvert.toml").preprocess
    assert (settings.resize, settings.crop, settings.mean) == (256, 224, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("preprocess", "words"),
    [
        (Preprocess(resize=(320, 224), crop="none", divisor=1.0), "RGB, resized to 320×224"),
        (Preprocess(resize="none", crop="none", colours="gray"), "Gray, divided by 255."),
        (None, "The model takes arrays without preprocessing."),
    ],
)
def test_preprocessing_is_described_in_words(preprocess: Preprocess | None, words: str) -> None:
    assert words in render_card(concluded(preprocess))


def test_example_code_runs(tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "cpu-int8"
    folder.mkdir(parents=True)
    onnx_io.save(models.tiny(), folder / "model.onnx")
    lines = code(render_card(concluded()), "python")
    assert len(lines.splitlines()) == 5
    names: dict[str, Any] = {}
    # Runs in the folder of the run, since every test has its own folder.
    exec(lines, names)
    assert names["outputs"].shape == (1, 5)


def test_engine_without_onnx_file_has_no_example_code() -> None:
    fp32, fp16, int8 = reports.cpu()
    assert int8.engine is not None
    plan = replace(int8, engine=replace(int8.engine, files=("int8.engine",)))
    card = render_card(conclude(reports.report(fp32, fp16, plan), GateConfig()))
    assert "InferenceSession" not in card
    assert "`engines/cpu-int8/int8.engine` is not an ONNX file" in card
    gone = replace(int8, engine=None)
    assert "There is no engine to run." in render_card(reports.report(gone), "cpu-int8")


def test_model_names_are_quoted_in_front_matter() -> None:
    quoted = replace(concluded(), model='runs/a "b": c.onnx')
    front = render_card(quoted).split("---")[1]
    assert json.dumps('a "b": c-cpu-int8') in front


@pytest.mark.parametrize("model", ["runs/lite0.onnx", "lite0.pt2", "timm:lite0", "nets.zoo:lite0"])
def test_model_stem_is_found_in_every_source_syntax(model: str) -> None:
    assert "# lite0, INT8" in render_card(replace(concluded(), model=model))


def test_card_of_an_unknown_variant_is_rejected() -> None:
    with pytest.raises(UsageError, match="no variant `gpu-int8`") as caught:
        render_card(concluded(), "gpu-int8")
    assert "`cpu-int8`" in caught.value.hint
    with pytest.raises(UsageError, match="no best variant"):
        render_card(conclude(reports.unrated(), GateConfig()))
    assert "# lite0, FP16 for `cpu`" in render_card(
        conclude(reports.unrated(), GateConfig()), "cpu-fp16"
    )


def code(card: str, language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)\n```", card, re.DOTALL)
    assert match is not None
    return match[1]
