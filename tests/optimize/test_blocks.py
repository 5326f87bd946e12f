"""A block is an operator with weights and what follows it; too many blocks are merged."""

from qconvert.optimize.blocks import Block, find_blocks
from qconvert.quantize.placement import Selection
from tests.models import mixed
from tests.quantize.quantized_models import planned


def blocks_of(max_blocks: int = 64) -> tuple[Block, ...]:
    model = mixed()
    return find_blocks(model, planned(model, "cpu"), max_blocks)


def test_operator_with_weights_leads_a_block_with_the_nodes_that_follow() -> None:
    assert {block.name: block.nodes for block in blocks_of()} == {
        "stem": ("stem", "a"),
        "wide": ("wide", "b"),
        "narrow": ("narrow", "sum", "gate", "gated"),
        "side": ("side", "all", "small"),
        "last": ("last", "c", "mean", "flat"),
        "scores": ("scores",),
    }


def test_quantized_nodes_are_in_one_block_each() -> None:
    for max_blocks in (64, 4, 2, 1):
        names = [name for block in blocks_of(max_blocks) for name in block.nodes]
        plan = planned(mixed(), "cpu")
        assert names == [name for name, layer in plan.layers.items() if not layer.left]
        assert len(blocks_of(max_blocks)) == min(max_blocks, 6)


def test_nodes_in_float_follow_the_block_that_they_read() -> None:
    model = mixed()
    plan = planned(model, "cpu", Selection(exclude=("Concat", "MaxPool", "Sigmoid")))
    blocks = {block.name: block for block in find_blocks(model, plan)}
    assert blocks["narrow"].nodes == ("narrow",)
    assert blocks["narrow"].followers == ("sum", "gate", "gated")
    assert blocks["side"].followers == ("all", "small")
    merged = find_blocks(model, plan, max_blocks=1)[0]
    assert set(merged.nodes + merged.followers) == {node.name for node in model.graph}


def test_shares_follow_the_multiplications() -> None:
    shares = {block.name: block.share for block in blocks_of()}
    macs = {"stem": 64 * 16 * 27, "wide": 64 * 16 * 9, "narrow": 64 * 16 * 16,
            "side": 64 * 16 * 16, "last": 16 * 32 * 32, "scores": 24 * 32}  # fmt: skip
    assert shares == {name: count / sum(macs.values()) for name, count in macs.items()}


def test_end_of_a_branch_is_merged_with_the_next_block_last() -> None:
    merged = [block.nodes for block in blocks_of(3)]
    assert merged[0][:4] == ("stem", "a", "wide", "b")
    assert merged[0][-1] == "gated"
    assert merged[1] == ("side", "all", "small")


def test_block_has_the_name_of_its_weight_and_merged_ones_the_common_part() -> None:
    model = mixed()
    names = ["net.1.conv", "net.1.wide", "net.1.last", "net.2.side", "net.2.end", "head"]
    weights = [f"w{number}" for number in range(1, 7)]
    for weight, name in zip(weights, names, strict=True):
        model.graph.initializers[weight].name = f"{name}.weight"
    plan = planned(model, "cpu")
    assert [block.name for block in find_blocks(model, plan)] == names
    assert find_blocks(model, plan, 3)[0].name == "net.1"
    assert [block.name for block in find_blocks(model, plan, 1)] == ["net.1.conv .. head"]
