"""A single-layer recurrent word model with tied embeddings: its checkpoint, its layer as ONNX, its perplexity."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tvm_dual.errors import ModelError

LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU}
#: Gates of each cell, and PyTorch's order of them in ONNX's.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
#: Positions whose scores are in memory at once: 10,000 words of 512 positions are 20 MB.
_CHUNK = 512


@dataclass(frozen=True, eq=False)
class WordModel:
    """The weights of a trained model.

    Attributes
    ----------
    cell : str
        "LSTM" or "GRU".
    vocab : tuple of str
        Words by number.
    embedding : ndarray, float32, (words, hidden)
        Also the output layer's matrix.
    layer : torch.nn.LSTM or torch.nn.GRU
        Of `hidden` inputs and units, float32.
    bias : ndarray, float32, (words,)
        The output layer's.
    """

    cell: str
    vocab: tuple[str, ...]
    embedding: np.ndarray
    layer: nn.Module
    bias: np.ndarray

    @property
    def hidden(self) -> int:
        """Length of embeddings and states."""
        return self.embedding.shape[1]

    @torch.inference_mode()
    def states(self, words: np.ndarray) -> np.ndarray:
        """Return the layer's outputs for streams of words from state zero, computed by PyTorch in fp32.

        Parameters
        ----------
        words : ndarray, int64, (streams, calls)

        Returns
        -------
        ndarray, float32, (streams, calls, hidden)
        """
        return self.layer(torch.from_numpy(self.embedding[words]))[0].numpy()

    @torch.inference_mode()
    def perplexity(self, states: np.ndarray, targets: np.ndarray) -> float:
        """Return the perplexity of the words that follow states of the layer.

        Parameters
        ----------
        states : ndarray, float32, (..., hidden)
        targets : ndarray, int64, (...)

        Notes
        -----
        ``exp(mean(-log softmax(states @ embedding.T + bias)[target]))``.
        """
        matrix, bias = torch.from_numpy(self.embedding), torch.from_numpy(self.bias)
        rows = torch.from_numpy(np.ascontiguousarray(states, np.float32)).reshape(-1, self.hidden)
        wanted = torch.from_numpy(np.ascontiguousarray(targets)).reshape(-1)
        total = 0.0
        for some, words in zip(rows.split(_CHUNK), wanted.split(_CHUNK), strict=True):
            scores = nn.functional.linear(some, matrix, bias)
            total += float(nn.functional.cross_entropy(scores, words, reduction="sum"))
        return float(np.exp(total / len(rows)))


def load_checkpoint(path: str | Path) -> WordModel:
    """Read what `save_checkpoint` wrote.

    Raises
    ------
    ModelError
        If the file cannot be read, lacks an entry, or an entry has another size, dtype, or NaN.
    """
    if not Path(path).is_file():
        raise ModelError(f"checkpoint '{path}': no such file; train one with examples/word_lm/train.py")
    try:
        # Weights only: a checkpoint cannot run code.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler runs on whatever bytes are there, and stumbles in many ways
        raise ModelError(
            f"checkpoint '{path}': cannot be read as one of PyTorch's ({type(error).__name__}); accepted: a file that "
            "examples/word_lm/train.py wrote"
        ) from error
    return _checked(found, path)


def save_checkpoint(path: str | Path, model: nn.Module, cell: str, vocab: Sequence[str], valid_ppl: float) -> None:
    """Write a model whose parameters are ``emb``, ``rnn`` and ``out.bias``, in fp16; the file appears whole or not.

    Parameters
    ----------
    path : path
    model : torch.nn.Module
    cell : str
    vocab : sequence of str
    valid_ppl : float
        Perplexity on the validation text.
    """
    state = {name: model.get_parameter(name).detach().half() for name in _names()}
    hidden = state["emb.weight"].shape[1]
    write_whole(
        path, {"cell": cell, "hidden": hidden, "vocab": list(vocab), "state": state, "valid_ppl": float(valid_ppl)}
    )


def write_whole(path: str | Path, values: dict) -> None:
    """Save with torch under a temporary name, then rename."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(values, file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def layer_onnx(model: WordModel, time: int | None = None) -> onnx.ModelProto:
    """Return the recurrent layer alone as ONNX: ``x`` float32 (time, 1, hidden) to ``y`` of the same shape.

    Parameters
    ----------
    model : WordModel
    time : int, optional
        Fixed number of steps; open if absent.
    """

    def reordered(array: torch.Tensor) -> np.ndarray:
        blocks = array.detach().split(model.hidden)
        return torch.cat([blocks[gate] for gate in _GATES[model.cell]]).numpy()

    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w, r, *b = (reordered(getattr(model.layer, name)) for name in names)
    constants = {"w": w[None], "r": r[None], "b": np.concatenate(b)[None], "direction": np.array([1])}
    reset = {"linear_before_reset": 1} if model.cell == "GRU" else {}
    nodes = [
        helper.make_node(model.cell, ["x", "w", "r", "b"], ["found"], "layer", hidden_size=model.hidden, **reset),
        helper.make_node("Squeeze", ["found", "direction"], ["y"]),
    ]
    shape = [time or "time", 1, model.hidden]
    graph = helper.make_graph(
        nodes,
        "word_model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _names() -> tuple[str, ...]:
    layer = tuple(f"rnn.{part}_{side}_l0" for part in ("weight", "bias") for side in ("ih", "hh"))
    return ("emb.weight", *layer, "out.bias")


def _checked(found, path) -> WordModel:
    label = f"checkpoint '{path}'"
    wanted = {"cell": str, "hidden": int, "vocab": list, "state": dict}
    for name, kind in wanted.items():
        if not isinstance(found, dict) or not isinstance(found.get(name), kind):
            held = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
            raise ModelError(
                f"{label}: no '{name}' of type {kind.__name__} (it holds {held}); accepted: {list(wanted)}"
            )
    cell, hidden, vocab = found["cell"], found["hidden"], found["vocab"]
    if cell not in LAYERS:
        raise ModelError(f"{label}: cell {cell!r}; accepted: {', '.join(LAYERS)}")
    if not all(isinstance(word, str) for word in vocab) or len(set(vocab)) != len(vocab):
        raise ModelError(f"{label}: vocab; accepted: a list of different words")
    rows = len(_GATES[cell]) * hidden
    shapes = dict.fromkeys(_names(), (rows,))
    shapes |= {"emb.weight": (len(vocab), hidden), "out.bias": (len(vocab),)}
    shapes |= dict.fromkeys(("rnn.weight_ih_l0", "rnn.weight_hh_l0"), (rows, hidden))
    tensors = {name: _tensor(label, name, found["state"].get(name), shape) for name, shape in shapes.items()}
    layer = LAYERS[cell](hidden, hidden, batch_first=True).eval().requires_grad_(False)
    layer.load_state_dict({name.removeprefix("rnn."): t for name, t in tensors.items() if name.startswith("rnn.")})
    return WordModel(cell, tuple(vocab), tensors["emb.weight"].numpy(), layer, tensors["out.bias"].numpy())


def _tensor(label: str, name: str, value, shape: tuple[int, ...]) -> torch.Tensor:
    """Return one weight in fp32, checked."""
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
        is_tensor = isinstance(value, torch.Tensor)
        what = (
            f"{value.dtype} {tuple(value.shape)}" if is_tensor else "missing" if value is None else type(value).__name__
        )
        raise ModelError(f"{label}: {name} is {what}; accepted: floating point {shape}, as cell, hidden and vocab say")
    value = value.detach().float().contiguous()
    if not torch.isfinite(value).all():
        raise ModelError(f"{label}: {name} holds NaN or infinity; accepted: finite weights. The training diverged")
    return value
