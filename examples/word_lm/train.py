"""Train a word model with one LSTM or GRU layer and tied embeddings on the Brown corpus.

    python examples/word_lm/train.py --size small --out small.pt     # minutes on two cores
    python examples/word_lm/train.py --size paper --cell GRU --out gru1500.pt     # hours
    python examples/word_lm/train.py --size paper --cell GRU --embeddings lstm1500.pt --out gru1500.pt     # fewer

The result is what `tvm-dual bench word-lm --checkpoint` takes. An interrupted training goes on where it was last
saved when the same command is given again; `OUT.training` holds it until it is done.
"""

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from benchmarks.corpus import numbers, read_corpus, vocabulary
from benchmarks.word_model import LAYERS, WordModel, load_checkpoint, save_checkpoint, write_whole
from tvm_dual.errors import DataError, ModelError, TvmDualError

#: Words of each stream per step of gradient descent.
LENGTH = 35
CLIP = 0.5


@dataclass(frozen=True)
class Recipe:
    """What decides on the result: a training goes on only under the recipe that it began with."""

    cell: str
    hidden: int
    epochs: int
    words: int
    dropout: float
    rate: float
    candidates: int
    streams: int
    seed: int


SIZES = {
    "small": {"hidden": 200, "epochs": 4, "dropout": 0.2, "rate": 4e-3, "candidates": 1024, "streams": 32},
    "paper": {"hidden": 1500, "epochs": 6, "dropout": 0.5, "rate": 1e-3, "candidates": 0, "streams": 32},
}


class TiedModel(nn.Module):
    """Embedding, one recurrent layer, and the embedding once more as the output layer."""

    def __init__(self, recipe: Recipe, words: int) -> None:
        """Start from random weights."""
        super().__init__()
        self.emb = nn.Embedding(words, recipe.hidden)
        self.rnn = LAYERS[recipe.cell](recipe.hidden, recipe.hidden, batch_first=True)
        self.out = nn.Linear(recipe.hidden, words)
        self.out.weight = self.emb.weight
        self.drop = nn.Dropout(recipe.dropout)
        nn.init.normal_(self.emb.weight, std=1 / math.sqrt(recipe.hidden))
        nn.init.zeros_(self.out.bias)

    def forward(self, words: torch.Tensor, state):
        """Map words (streams, calls) to outputs of the layer (streams, calls, hidden) and the state after them."""
        found, state = self.rnn(self.drop(self.emb(words)), state)
        return self.drop(found), state


class Training:
    """A model on its way, which can be saved and taken up again at any step."""

    def __init__(self, recipe: Recipe, vocab: list[str], train: np.ndarray) -> None:
        """Begin."""
        torch.manual_seed(recipe.seed)
        self.recipe, self.vocab, self.model = recipe, vocab, TiedModel(recipe, len(vocab))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), recipe.rate, betas=(0.9, 0.99), weight_decay=1e-6)
        self.streams = _streams(train, recipe.streams)
        self.shares = torch.from_numpy(np.bincount(train, minlength=len(vocab)) / len(train)).float()
        self.per_epoch = -(-(self.streams.shape[1] - 1) // LENGTH)
        self.done, self.state, self.loss = 0, None, math.log(len(vocab))

    def start_from(self, trained: WordModel, path: Path) -> None:
        """Take embeddings and output biases of a model of the same words, whose layer may be another."""
        if list(trained.vocab) != self.vocab or trained.hidden != self.recipe.hidden:
            raise ModelError(
                f"--embeddings '{path}': {len(trained.vocab)} words of length {trained.hidden}; accepted: the "
                f"{len(self.vocab)} most frequent words of this corpus, of length {self.recipe.hidden}"
            )
        with torch.no_grad():
            self.model.emb.weight.copy_(torch.from_numpy(trained.embedding))
            self.model.out.bias.copy_(torch.from_numpy(trained.bias))

    @property
    def steps(self) -> int:
        """All steps of the training."""
        return self.recipe.epochs * self.per_epoch

    def step(self) -> None:
        """Learn from the next `LENGTH` words of every stream."""
        place = self.done % self.per_epoch * LENGTH
        if place == 0:
            self.state = None
        words = self.streams[:, place : place + LENGTH + 1]
        # Up in a twentieth of the steps, then down along a cosine.
        part = self.done / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate * min(1.0, 20 * part + 1e-3) * (0.5 + 0.5 * math.cos(math.pi * part))
        self.model.train()
        found, state = self.model(words[:, :-1], self.state)
        loss = self._loss(found.flatten(0, 1), words[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        self.done, self.loss = self.done + 1, 0.99 * self.loss + 0.01 * loss.item()
        if not math.isfinite(self.loss):
            raise ModelError(f"training: the loss is {loss.item()} after {self.done} steps; choose a lower --rate")

    def _loss(self, found: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy over all words, or an estimate over `candidates` of them.

        The estimate is the sampled softmax of Jean et al. (ACL 2015): the target among words drawn by frequency, each
        score lowered by the logarithm of how likely its word was to be drawn.
        """
        count = self.recipe.candidates
        if not count:
            return nn.functional.cross_entropy(self.model.out(found), targets)
        others = torch.unique(torch.multinomial(self.shares, count, replacement=True))
        bias = self.model.out.bias - torch.log(-torch.expm1(count * torch.log1p(-self.shares)) + 1e-12)
        scores = nn.functional.linear(found, self.model.emb.weight[others], bias[others])
        scores = scores.masked_fill(others == targets[:, None], -math.inf)
        own = (found * self.model.emb.weight[targets]).sum(dim=1) + bias[targets]
        scores = torch.cat([own[:, None], scores], dim=1)
        return nn.functional.cross_entropy(scores, torch.zeros_like(targets))

    @torch.inference_mode()
    def perplexity(self, words: np.ndarray) -> float:
        """Return the perplexity of words, in as many streams as are trained on, whose state is carried along."""
        self.model.eval()
        streams, state, total = _streams(words, self.recipe.streams), None, 0.0
        for place in range(0, streams.shape[1] - 1, LENGTH):
            some = streams[:, place : place + LENGTH + 1]
            found, state = self.model(some[:, :-1], state)
            scores = self.model.out(found)
            total += float(nn.functional.cross_entropy(scores.flatten(0, 1), some[:, 1:].flatten(), reduction="sum"))
        return math.exp(total / (streams.shape[0] * (streams.shape[1] - 1)))

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs."""
        values = {"recipe": asdict(self.recipe), "model": self.model.state_dict(), "random": torch.get_rng_state()}
        values |= {"optimizer": self.optimizer.state_dict(), "done": self.done, "state": self.state, "loss": self.loss}
        write_whole(path, values)

    def resume(self, path: Path) -> None:
        """Take up a saved training; refuses one with another recipe."""
        values = torch.load(path, weights_only=True)
        if values["recipe"] != asdict(self.recipe):
            raise ModelError(f"'{path}' was begun as {values['recipe']}; give the same options, or delete it")
        self.model.load_state_dict(values["model"])
        self.optimizer.load_state_dict(values["optimizer"])
        torch.set_rng_state(values["random"])
        self.done, self.state, self.loss = values["done"], values["state"], values["loss"]


def _streams(words: np.ndarray, count: int) -> torch.Tensor:
    """Return words cut into `count` streams, int64 (streams, calls); what is left over is dropped."""
    calls = len(words) // count
    if calls < 2:
        raise DataError(f"corpus: a part has {len(words)} words; accepted: at least {2 * count}")
    return torch.from_numpy(words[: count * calls].reshape(count, calls))


def main() -> int:
    """Train and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--size", choices=SIZES, default="small", help="where the other options come from")
    parser.add_argument("--cell", choices=LAYERS, default="LSTM")
    parser.add_argument("--hidden", type=int, help="length of embeddings and states")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--words", type=int, default=10_000, help="size of the vocabulary")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--rate", type=float, help="highest step size")
    parser.add_argument("--candidates", type=int, help="words that a step's loss is estimated on; 0 takes all")
    parser.add_argument("--streams", type=int, help="parts of the text that are trained on side by side")
    parser.add_argument("--embeddings", type=Path, help="checkpoint to begin with the embeddings of, random if absent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="as many as cores, if absent")
    parser.add_argument("--corpus", type=Path, help="folder or .tgz; what make corpus fetched, if absent")
    parser.add_argument("--save-minutes", type=float, default=5, help="how often the training is saved")
    options = parser.parse_args()
    given = {name: value for name in SIZES[options.size] if (value := getattr(options, name)) is not None}
    recipe = Recipe(
        cell=options.cell, words=options.words, seed=options.seed, **{**SIZES[options.size], **given}
    )  # fmt: skip
    if (
        min(recipe.hidden, recipe.epochs, recipe.candidates + 1, recipe.streams) < 1
        or recipe.words < 2
        or not 0 <= recipe.dropout < 1
        or recipe.rate <= 0
    ):
        parser.error(f"{recipe}: accepted are sizes from 1 on, a dropout below 1 and a positive rate")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        _train(recipe, options.out, options.corpus, options.embeddings, options.save_minutes)
    except TvmDualError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: interrupted; the same command goes on from the last save", file=sys.stderr)
        return 130
    return 0


def _train(recipe: Recipe, out: Path, source: Path | None, embeddings: Path | None, save_minutes: float) -> None:
    if not out.resolve().parent.is_dir():
        raise DataError(f"--out '{out}': its folder does not exist")
    corpus = read_corpus(source)
    vocab = vocabulary(corpus.train, recipe.words)
    train, valid = (numbers(part, vocab) for part in (corpus.train, corpus.valid))
    training, saved = Training(recipe, vocab, train), Path(f"{out}.training")
    if saved.exists():
        training.resume(saved)
        print(f"goes on from step {training.done} of {training.steps}")
    elif embeddings:
        training.start_from(load_checkpoint(embeddings), embeddings)
    start = last = time.monotonic()
    found = None
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Redrawn after steps: a refreshing thread would take turns with them.
    with Progress(*columns, auto_refresh=False) as bars:
        bar = bars.add_task("training", total=training.steps, completed=training.done)
        while training.done < training.steps:
            training.step()
            if training.done % 20 == 0:
                text = (
                    f"epoch {training.done / training.per_epoch:.2f}, training perplexity {math.exp(training.loss):.0f}"
                )
                bars.update(bar, completed=training.done, description=text, refresh=True)
            epoch_ends = training.done % training.per_epoch == 0
            if epoch_ends or time.monotonic() - last > 60 * save_minutes:
                training.save(saved)
                last = time.monotonic()
            if epoch_ends:
                found = training.perplexity(valid)
                bars.print(f"epoch {training.done // training.per_epoch}: validation perplexity {found:.2f}")
    if found is None:  # taken up after the last step
        found = training.perplexity(valid)
    save_checkpoint(out, training.model, recipe.cell, vocab, found)
    saved.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    print(f"wrote {out}: {recipe.cell} {recipe.hidden}, validation perplexity {found:.2f}, {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
