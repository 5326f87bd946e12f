"""AWQ: factors for the channels that products read, by how large their activations are.

    X_c -> X_c / s_c,  W_c -> W_c * s_c        s_c = mean|X_c|^a

(Lin et al. 2023, "Activation-aware Weight Quantization"). Weights of channels with large activations
are multiplied before they are rounded, so that their error is divided after. Each tensor takes the
strength `a` with the least error of the outputs that read it, which the sums X X' tell. Factors are
folded into the operator before, such as LayerNormalization or a product, by the same code as those
of cross-layer equalization, and nothing is added to the graph.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from qconvert.backends.ort import open_cpu
from qconvert.core.scales import FloatArray
from qconvert.core.tensors import Tensors
from qconvert.optimize.partial_execution import PartialExecution
from qconvert.quantize.apply_plan import find_planned_layers
from qconvert.quantize.cross_layer import EqualizationSite, find_sites
from qconvert.quantize.grouped_weights import WeightFormat, choose_scales
from qconvert.quantize.plan import LayerPlan, Plan
from qconvert.quantize.weight_only import PRODUCTS

STRENGTHS = tuple(number / 10 for number in range(1, 10))
# A tensor gets factors only if its readers' error falls to this share.
MAX_ERROR_RATIO = 0.95
# Factors lie this far apart at most.
MAX_RATIO = 1e4


def choose_activation_scales(
    plan: Plan, model: ir.Model, batches: Sequence[Tensors], max_rows: int
) -> dict[str, tuple[float, ...]]:
    """Return factors for the tensors whose readers they bring nearer to their float outputs."""
    layers = find_planned_layers(model.graph, plan)
    sites = [site for site in find_sites(model.graph) if _reads_products(site, layers)]
    execution = PartialExecution(model, open_cpu, batches)
    kind = WeightFormat(plan.weights, plan.group, plan.rest)
    chosen: dict[str, tuple[float, ...]] = {}
    for site in sites:
        name = str(site.tensor.name)
        producer = site.tensor.producer()
        assert producer is not None
        execution.run_to(str(producer.name), name, inclusive=True)
        rows = np.concatenate([batch[name].reshape(-1, site.channels) for batch in execution.live])
        rows = rows[:: max(1, len(rows) // max_rows)]
        gram = rows.T @ rows
        sizes = np.abs(rows).mean(axis=0)
        if not sizes.any():
            continue
        errors = {
            strength: _output_error(site, _factors(sizes, strength), gram, kind)
            for strength in (0.0, *STRENGTHS)
        }
        best = min(errors, key=lambda strength: errors[strength])
        if errors[best] < MAX_ERROR_RATIO * errors[0.0]:
            factors = _factors(sizes, best)
            chosen[name] = tuple(float(f"{factor:.4g}") for factor in factors)
    return chosen


def _reads_products(site: EqualizationSite, layers: Mapping[ir.Node, LayerPlan]) -> bool:
    """Whether all that reads a tensor are products with integer weights; a Clip would cut it."""
    readers = [use.node for use in site.tensor.uses()]
    products = all(node in layers and node.op_type in PRODUCTS for node in readers)
    return products and site.ceiling is None


def _factors(sizes: FloatArray, strength: float) -> FloatArray:
    """Return mean|X|^a around one; channels that are never active count as the smallest."""
    least = max(float(sizes.max()) / MAX_RATIO, float(sizes[sizes > 0].min()))
    factors = np.maximum(sizes, least) ** np.float32(strength)
    scaled: FloatArray = factors / np.sqrt(factors.max() * factors.min())
    return scaled


def _output_error(
    site: EqualizationSite, factors: FloatArray, gram: FloatArray, kind: WeightFormat
) -> float:
    """Return the squared error of all readers' outputs with weights rounded to nearest."""
    error = 0.0
    for reader in site.readers:
        weight = reader.matrix()
        rounded = choose_scales(weight * factors, kind, "minmax").dequantize() / factors
        change = rounded - weight
        error += float(((change @ gram) * change).sum())
    return error
