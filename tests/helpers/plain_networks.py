"""The networks as the papers' code computes them: embed, concatenate, permute, convolve.

Slow, obvious, and the reference of the tests.

State-dict keys are those of the networks under test, so weights copy over with load_state_dict.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class PlainCells(nn.Module):
    def __init__(self, use_embedding: bool):
        super().__init__()
        self.use_embedding = use_embedding
        if use_embedding:
            self.embed_object = nn.Embedding(11, 5)
            self.embed_color = nn.Embedding(6, 3)
            self.embed_contains = nn.Embedding(4, 2)

    def cells(self, frame: Tensor) -> Tensor:
        """[N, W, H, 3k] -> [N, W, H, 10k], or the raw values as floats."""
        if not self.use_embedding:
            return frame.float()
        parts = []
        for i in range(0, frame.shape[-1], 3):
            obj, colour, state = frame[..., i].long(), frame[..., i + 1].long(), frame[..., i + 2].long()
            parts += [self.embed_object(obj), self.embed_color(colour), self.embed_contains(state)]
        return torch.cat(parts, dim=-1)

    def carried(self, obj: Tensor, colour: Tensor) -> Tensor:
        """[N], [N] -> [N, 8], or the two numbers."""
        if not self.use_embedding:
            return torch.stack([obj, colour], dim=1).float()
        return torch.cat([self.embed_object(obj.long()), self.embed_color(colour.long())], dim=1)


def to_images(grid: Tensor) -> Tensor:
    """[N, W, H, C] -> [N, C, H, W]."""
    return grid.transpose(1, 3)


def strided_convolutions(channels: int) -> nn.Sequential:
    layers = []
    for size_in in (channels, 32, 32, 32, 32):
        layers += [nn.Conv2d(size_in, 32, 3, stride=2, padding=1), nn.ELU()]
    return nn.Sequential(*layers)


class PlainStudent(PlainCells):
    def __init__(
        self,
        frame_shape,
        num_actions,
        *,
        goal_conditioned,
        goal_dim=10,
        hidden_dim=256,
        use_lstm=False,
        num_lstm_layers=1,
        use_embedding=True,
        intrinsic_value=False,
    ):
        super().__init__(use_embedding)
        width, height, channels = frame_shape
        frames = channels // 3
        if goal_conditioned:
            self.embed_goal = nn.Embedding(width * height + 1, goal_dim)
        self.embed_agent_loc = nn.Embedding(width * height + 1, goal_dim)
        self.feat_extract = strided_convolutions((10 if use_embedding else 3) * frames + goal_conditioned)
        carried_dim = 8 if use_embedding else 2
        self.fc = nn.Sequential(
            nn.Linear(32 + carried_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, hidden_dim), nn.ReLU()
        )
        self.core = nn.LSTM(hidden_dim, hidden_dim, num_lstm_layers) if use_lstm else None
        self.policy = nn.Linear(hidden_dim, num_actions)
        self.baseline = nn.Linear(hidden_dim, 1)
        if intrinsic_value:
            self.intrinsic_baseline = nn.Linear(hidden_dim, 1)
        self.intrinsic_value = intrinsic_value
        self.goal_conditioned = goal_conditioned

    def forward(self, inputs, core_state=()):
        T, B = inputs["frame"].shape[:2]
        frame = inputs["frame"].flatten(0, 1)
        images = to_images(self.cells(frame))
        if self.goal_conditioned:
            goal = torch.zeros(T * B, frame.shape[1], frame.shape[2])
            for n, g in enumerate(inputs["goal"].flatten().tolist()):
                x, y = divmod(g, frame.shape[2])
                if x < frame.shape[1]:
                    goal[n, x, y] = 1.0
            images = torch.cat([images, to_images(goal[..., None])], dim=1)
        features = self.feat_extract(images).flatten(1)
        carried = self.carried(inputs["carried_obj"].flatten(), inputs["carried_col"].flatten())
        hidden = self.fc(torch.cat([features, carried], dim=1))
        if self.core is not None:
            rows = []
            for hidden_t, done_t in zip(hidden.view(T, B, -1), inputs["done"]):
                core_state = tuple(torch.where(done_t[None, :, None], torch.zeros_like(s), s) for s in core_state)
                output, core_state = self.core(hidden_t[None], core_state)
                rows.append(output[0])
            hidden = torch.cat(rows)
        outputs = {"policy_logits": self.policy(hidden).view(T, B, -1), "baseline": self.baseline(hidden).view(T, B)}
        if self.intrinsic_value:
            outputs["intrinsic_baseline"] = self.intrinsic_baseline(hidden).view(T, B)
        return outputs, core_state


class PlainTeacher(PlainCells):
    def __init__(self, frame_shape, *, inner=False, mirrored=False, use_embedding=True):
        super().__init__(use_embedding)
        width, height, channels = frame_shape
        sizes = ((10 if use_embedding else 3) * channels // 3, 16, 16, 16, 1)
        layers = []
        for size_in, size_out in pairwise(sizes):
            layers += [nn.Conv2d(size_in, size_out, 3, stride=1, padding=1), nn.ELU()]
        self.extract_representation = nn.Sequential(*layers)
        self.baseline_teacher = nn.Linear((width - 2) * (height - 2) if inner else width * height, 1)
        self.inner, self.mirrored = inner, mirrored

    def forward(self, frame):
        maps = self.extract_representation(to_images(self.cells(frame)))[:, 0]  # [N, H, W]
        _, height, width = maps.shape
        skip = 1 if self.inner else 0
        columns, rows = range(skip, width - skip), range(skip, height - skip)
        if self.mirrored:
            order = [(x, y) for y in rows for x in columns]
        else:
            order = [(x, y) for x in columns for y in rows]
        logits = torch.stack([maps[:, y, x] for x, y in order], dim=1)
        return logits, self.baseline_teacher(logits)[:, 0]


class PlainRandomNetwork(PlainCells):
    def __init__(self, frame_shape, *, use_embedding=True, output="relu"):
        super().__init__(use_embedding)
        width, height, channels = frame_shape
        self.embed_agent_loc = nn.Embedding(width * height + 1, 10)
        self.feat_extract = strided_convolutions((10 if use_embedding else 3) * channels // 3)
        carried_dim = 8 if use_embedding else 2
        self.fc = nn.Sequential(nn.Linear(32 + 10 + carried_dim, 128), nn.ReLU(), nn.Linear(128, 128))
        if output == "relu":
            self.fc.append(nn.ReLU())

    def forward(self, inputs):
        shape = inputs["carried_obj"].shape
        frame = inputs["frame"].reshape(-1, *inputs["frame"].shape[-3:])
        agent = []
        for newest in frame[..., -3]:
            cells = (newest == 10).nonzero().tolist() or [(0, 0)]  # a partial view shows no agent
            agent.append(cells[0][0] * frame.shape[2] + cells[0][1])
        parts = [
            self.feat_extract(to_images(self.cells(frame))).flatten(1),
            self.embed_agent_loc(torch.tensor(agent)),
            self.carried(inputs["carried_obj"].flatten(), inputs["carried_col"].flatten()),
        ]
        return self.fc(torch.cat(parts, dim=1)).view(*shape, -1)
