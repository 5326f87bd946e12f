"""A block is an operator with weights and what follows it; where they are many, they are joined."""

from qconvert.optimize.blocks import Block, find_blocks
from tests.models import mixed
from tests.quantize.quantized_models import planned


def found(most: int = 64) -> tuple[Block, ...]:
    model = mixed()
    return find_blocks(model, planned(model, "cpu"), most)


def test_each_operator_with_weights_leads_a_block_with_what_follows_it() -> None:
    assert {block.name: block.nodes for block in found()} == {
        "stem": ("stem", "a"),
        "wide": ("wide", "b"),
        "narrow": ("narrow", "sum", "gate", "gated"),
        "side": ("side", "all", "small"),
        "last": ("last", "c", "mean", "flat"),
        "scores": ("scores",),
    }


def test_all_quantized_nodes_are_in_one_block_each() -> None:
    for most in (64, 4, 2, 1):
        names = [name for block in found(most) for name in block.nodes]
        plan = planned(mixed(), "cpu")
        assert names == [name for name, layer in plan.layers.items() if not layer.left]
        assert len(found(most)) == min(most, 6)


def test_shares_are_those_of_the_multiplications() -> None:
    shares = {block.name: block.share for block in found()}
    macs = {"stem": 64 * 16 * 27, "wide": 64 * 16 * 9, "narrow": 64 * 16 * 16,
            "side": 64 * 16 * 16, "last": 16 * 32 * 32, "scores": 24 * 32}  # fmt: skip
    assert shares == {name: each / sum(macs.values()) for name, each in macs.items()}


def test_the_end_of_a_branch_is_joined_with_what_follows_it_last() -> None:
    joined = [block.nodes for block in found(3)]
    assert joined[0][:4] == ("stem", "a", "wide", "b")
    assert joined[0][-1] == "gated"
    assert joined[1] == ("side", "all", "small")


def test_a_block_is_called_as_its_weights_are_and_joined_ones_by_what_they_share() -> None:
    model = mixed()
    names = ["net.1.conv", "net.1.wide", "net.1.last", "net.2.side", "net.2.end", "head"]
    weights = [f"w{number}" for number in range(1, 7)]
    for weight, name in zip(weights, names, strict=True):
        model.graph.initializers[weight].name = f"{name}.weight"
    plan = planned(model, "cpu")
    assert [block.name for block in find_blocks(model, plan)] == names
    assert find_blocks(model, plan, 3)[0].name == "net.1"
    assert [block.name for block in find_blocks(model, plan, 1)] == ["net.1.conv .. head"]
