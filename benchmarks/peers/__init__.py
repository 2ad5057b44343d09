"""The strongest engines a user could choose instead, one file each, behind one protocol (`base.Engine`)."""

from __future__ import annotations

from benchmarks.harness import EngineSpec

_ORT = "benchmarks.peers.onnxruntime_peer:OnnxRuntimeEngine"
_PEERS = (
    ("torch", "fp32", "benchmarks.peers.torch_peer:TorchEngine", {}),
    ("torch", "int8", "benchmarks.peers.torch_peer:TorchEngine", {}),
    ("onnxruntime", "fp32", _ORT, {}),
    ("onnxruntime", "int8", _ORT, {"per_channel": True}),
    ("onnxruntime", "int8", _ORT, {"per_channel": False}),
    ("openvino", "fp32", "benchmarks.peers.openvino_peer:OpenVinoEngine", {}),
    ("openvino", "bf16", "benchmarks.peers.openvino_peer:OpenVinoEngine", {}),
    ("openvino", "int8", "benchmarks.peers.openvino_peer:OpenVinoEngine", {}),
)


def peer_specs(model_path: str, threads: int) -> tuple[EngineSpec, ...]:
    """Every peer for one streaming ONNX model.

    Parameters
    ----------
    model_path : str
        The ONNX model.
    threads : int
        Threads for each peer.

    Returns
    -------
    tuple of EngineSpec
        In the order of the rows. ONNX Runtime int8 comes twice, exact and fast; `weight_scales` tells them apart.
    """
    return tuple(
        EngineSpec(
            engine,
            "dense",
            precision,
            factory,
            {"model_path": str(model_path), "precision": precision, "threads": threads, **extra},
        )
        for engine, precision, factory, extra in _PEERS
    )
