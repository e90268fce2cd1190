"""PRE: learned prompts that a small recurrent network makes of simpler ones."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.methods.coop import CONTEXT, PAPER, TRAINING, CoOp, tower_of
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import linear_start

_DIRECTIONS = ("", "_reverse")


class PRE(CoOp):
    """CoOp with the context `v + BiLSTM(v)`, whose network is trained with it and thrown away.

    After training only the context that the network gave is kept; it serves other classes as CoOp's does.

    Source: PRE: Vision-Language Prompt Learning with Reparameterization Encoder (Pham Minh et al., 2023), equation 5.
    """

    name = "pre"
    summary = "CoOp whose words pass a recurrent network while they are learned"
    equation = "logits = s x.unit(tower(v + BiLSTM(v), name))'"
    hyperparameters = {**CONTEXT, **TRAINING}
    presets = {"paper": {**PAPER, "words": "", "length": 16}}

    def check(self, task: Task) -> None:
        super().check(task)
        if tower_of(task).width % 2:
            raise MethodError(f"{self.name} needs tokens of an even width, half of it for each direction: use coop")

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        context = self.start(prepared, generator)
        hidden, width = context.shape[1] // 2, context.shape[1]
        # As torch starts an LSTM: all of it within 1 / sqrt(hidden).
        draws = {f"{name}{direction}": linear_start((4 * hidden, columns), generator, context) * (columns / hidden)**0.5
                 for direction in _DIRECTIONS
                 for name, columns in (("weight_ih", width), ("weight_hh", hidden))}
        biases = {f"{name}{direction}": linear_start((4 * hidden, hidden), generator, context)[:, 0].clone()
                  for direction in _DIRECTIONS for name in ("bias_ih", "bias_hh")}
        return {"context": context, **draws, **biases}

    def vectors(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        return tower_of(prepared).encode(self.context(parameters), self.position)

    def context(self, parameters: dict[str, Tensor]) -> Tensor:
        """The context (tokens, width) that is encoded."""
        start = parameters["context"]
        if len(parameters) == 1:
            return start
        forward, backward = (lstm(start if not direction else start.flip(0), *(
            parameters[f"{name}{direction}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))
            for direction in _DIRECTIONS)
        return start + torch.cat([forward, backward.flip(0)], dim=1)

    def kept(self, prepared: Task, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"context": self.context(parameters)}


def lstm(tokens: Tensor, inward: Tensor, across: Tensor, inward_bias: Tensor, across_bias: Tensor) -> Tensor:
    """States (n, hidden) of a long short-term memory that reads tokens (n, width); weights as torch's LSTM has them.

    Source: Long Short-Term Memory (Hochreiter and Schmidhuber, 1997), with forget gates.
    """
    state = memory = tokens.new_zeros(across.shape[1])
    states = []
    for entering in tokens @ inward.T + inward_bias:
        gate, forget, value, out = (entering + across @ state + across_bias).chunk(4)
        memory = forget.sigmoid() * memory + gate.sigmoid() * value.tanh()
        state = out.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states)
