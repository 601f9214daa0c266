"""The network that represents a state: target and predictor of random network distillation (Burda et al., arXiv 1810.12894).

ICM and RIDE learn such a one, with linear outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.grid import AGENT, CELL_CHANNELS, COLOURS, RELU_GAIN, CellEmbedding, GridConvolutions, initialise
from models.linear import linear

AGENT_DIM = 10  # of the embedding of the agent's cell
SIZE = 128  # of a representation


class RandomNetwork(CellEmbedding):
    """A state's representation, [128]; the distance between predictor's and target's is its novelty.

    Args:
        frame_shape: (W, H, 3k), sides up to 32 cells.
        use_embedding: False feeds raw channel values instead of embeddings of cells and carried object.
        output: "relu", as published, or "linear". ReLUs of the predictor that die while it learns leave it a distance to
            the target that no learning takes away, however well a state is known; without them it falls towards zero.
    Raises: ValueError for a frame shape the convolutions cannot take.
    """

    def __init__(self, frame_shape: tuple[int, int, int], *, use_embedding: bool = True, output: str = "relu"):
        super().__init__(frame_shape, use_embedding)
        self.embed_agent_loc = nn.Embedding(self.num_cells + 1, AGENT_DIM)
        self.feat_extract = GridConvolutions(frame_shape, sum(self.cell_dims), (32,) * 5, 2)
        self.fc = nn.Sequential(nn.Linear(32 + AGENT_DIM + self.carried_dim, 128), nn.ReLU(), nn.Linear(128, SIZE))
        self.activations = ("relu", None if output == "linear" else "relu")
        for layer in (*self.feat_extract.convolutions(), self.fc[0], self.fc[2]):
            initialise(layer, RELU_GAIN)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """float32 [..., 128] of frame uint8 [..., W, H, 3k], carried_obj and carried_col uint8 [...].

        The agent is looked for in the newest frame, the last three channels; where there is none (a partial view), its cell
        is taken to be cell 0.
        """
        leading = inputs["carried_obj"].shape
        frame = inputs["frame"].reshape(-1, *inputs["frame"].shape[-3:])
        features = self.feat_extract(frame, None, self.feat_extract.compose(self.tables()))
        agent = (frame[..., -CELL_CHANNELS] == AGENT).flatten(1).byte().argmax(1)
        carried = inputs["carried_obj"].reshape(-1).int() * COLOURS + inputs["carried_col"].reshape(-1)
        hidden = torch.cat([features, self.embed_agent_loc(agent), F.embedding(carried, self.compose_carried())], dim=1)
        for layer, activation in zip((self.fc[0], self.fc[2]), self.activations):
            hidden = linear(hidden, layer.weight, layer.bias, activation)
        return hidden.unflatten(0, leading)
