"""Names: every node has one of its own, the same on every run, and debugging text is gone."""

import onnx_ir as ir

from qconvert.graph.passes import name_nodes
from qconvert.graph.patterns import UniqueNames
from tests import models


def test_nodes_get_missing_and_unique_names() -> None:
    model = models.tiny()
    for node, name in zip(model.graph, ["a", "a", None, "", "a"], strict=True):
        node.name = name
    named, said = name_nodes(model)
    names = [node.name for node in named.graph]
    assert names[:2] + names[4:] == ["a", "a_0", "a_1"]
    assert len(set(names)) == 5
    assert all(names)
    assert said
    assert [node.name for node in name_nodes(model)[0].graph] == names


def test_new_name_does_not_collide_with_a_later_node() -> None:
    model = models.tiny()
    for node, name in zip(model.graph, ["a", "a", "a_0", "b", "c"], strict=True):
        node.name = name
    names = [node.name for node in name_nodes(model)[0].graph]
    assert len(set(names)) == 5


def test_exporter_metadata_is_dropped() -> None:
    model = models.tiny()
    model.graph.node(0).metadata_props["pkg.torch.onnx.stack_trace"] = "/home/someone/net.py:3"
    model.graph.node(0).doc_string = "/home/someone"
    named, _ = name_nodes(model)
    assert "someone" not in ir.to_onnx_text(named)
    assert not named.graph.node(0).metadata_props


def test_thousandth_name_of_a_stem_is_short() -> None:
    looks = 0

    class Looked(set[str]):
        def __contains__(self, name: object) -> bool:
            nonlocal looks
            looks += 1
            return super().__contains__(name)

    names = UniqueNames(Looked({"bias", "bias_2"}))
    reserved = [names.reserve("bias") for _ in range(1000)]
    assert reserved[:3] == ["bias_1", "bias_3", "bias_4"]
    assert reserved[-1] == "bias_1001"
    assert len(set(reserved)) == 1000
    assert looks <= 2 * 1000 + 1
