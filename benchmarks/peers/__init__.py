"""The strongest engines a user could choose instead, one file each, behind one protocol (`base.Engine`)."""

from __future__ import annotations

from benchmarks.harness import EngineSpec

_ORT = "benchmarks.peers.onnxruntime_peer:OnnxRuntimeEngine"
#: An LSTM, which ONNX Runtime can quantize as a layer, too.
_LSTM_PEERS = (
    ("onnxruntime", "int8", _ORT, {"per_channel": True, "expand": False}),
    ("onnxruntime", "int8", _ORT, {"per_channel": False, "expand": False}),
)
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


def peer_specs(model_path: str, threads: int, sequence: int = 1, cell: str = "GRU") -> tuple[EngineSpec, ...]:
    """Every peer for one recurrent ONNX model.

    Parameters
    ----------
    model_path : str
        The ONNX model.
    threads : int
        Threads for each peer.
    sequence : int
        Frames that a call takes; more than one need a model whose only open extent is time.
    cell : str
        The model's kind of recurrent layer, "GRU" or "LSTM".

    Returns
    -------
    tuple of EngineSpec
        In the order of the rows. ONNX Runtime int8 comes twice, exact and fast, and with an LSTM twice more;
        `weight_scales` and `form` tell them apart.
    """
    return tuple(
        EngineSpec(
            engine,
            "dense",
            precision,
            factory,
            {
                "model_path": str(model_path),
                "precision": precision,
                "threads": threads,
                "sequence": sequence,
                **extra,
            },
            sequence,
        )
        for engine, precision, factory, extra in (*_PEERS, *(_LSTM_PEERS if cell == "LSTM" else ()))
    )
