"""Give sessions of the CUDA provider their numbers, which no kernel of the fake CUDA computes.

The provider itself runs: it takes nodes, chooses kernels, allocates, copies and launches. After a
run, its outputs are overwritten with those of the CPU provider for the same model and inputs.
`gpu_lab.pth` imports this module whenever Python starts.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any

COLLECTION = "onnxruntime.capi.onnxruntime_inference_collection"


class Finder(MetaPathFinder):
    """Patch ONNX Runtime's module of sessions once it has been imported."""

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name != COLLECTION:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module: Any) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = execute_and_patch
        return spec


def patch(module: Any) -> None:
    """Wrap the calls that create a session, bind its inputs and run it."""
    session, binding = module.InferenceSession, module.IOBinding
    create, run, run_bound = session.__init__, session.run, session.run_with_iobinding
    bind = binding.bind_ortvalue_input

    def created(self: Any, path_or_bytes: Any, *args: Any, **kwargs: Any) -> None:
        create(self, path_or_bytes, *args, **kwargs)
        self.gpu_lab_graph = None
        if "CUDAExecutionProvider" in self.get_providers():
            self.gpu_lab_graph = read_graph(path_or_bytes)

    def answered(self: Any, names: Any, feeds: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = run(self, names, feeds, *args, **kwargs)
        if self.gpu_lab_graph is None:
            return outputs
        right = self.gpu_lab_graph.run(feeds)
        return [right[name] for name in names or right]

    def bound(self: Any, name: str, value: Any) -> None:
        bind(self, name, value)
        self.__dict__.setdefault("gpu_lab_inputs", {})[name] = value

    def answered_bound(self: Any, io: Any, *args: Any, **kwargs: Any) -> None:
        run_bound(self, io, *args, **kwargs)
        if self.gpu_lab_graph is not None:
            feeds = {name: value.numpy() for name, value in io.gpu_lab_inputs.items()}
            right = self.gpu_lab_graph.run(feeds).values()
            for value, array in zip(io.get_outputs(), right, strict=True):
                value.update_inplace(array)

    session.__init__, session.run, session.run_with_iobinding = created, answered, answered_bound
    binding.bind_ortvalue_input = bound


def read_graph(path_or_bytes: Any) -> Any:
    """Return the graph of a session as the fake TensorRT would hold it."""
    import onnx
    from gpu_lab_graphs import Graph  # type: ignore[import-not-found]

    is_bytes = isinstance(path_or_bytes, bytes)
    model = onnx.load_from_string(path_or_bytes) if is_bytes else onnx.load(path_or_bytes)
    return Graph(model.SerializeToString())


sys.meta_path.insert(0, Finder())
