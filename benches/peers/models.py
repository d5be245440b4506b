"""The models of the comparisons in PyTorch, written the way a careful PyTorch user would for speed: query, key and value
in one product, `scaled_dot_product_attention`, one head product and one cross-entropy for all exits where the head is
small, one exit at a time where it is a vocabulary wide.

A model's forward pass gives a list, the feature after every block: of the first token, or of all tokens in a GPT.
"""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, gelu, linear, scaled_dot_product_attention


class Block(nn.Module):
    """Attention, then a GELU perceptron four times as wide; the norms before each of them, or after each sum."""

    def __init__(self, width, heads, eps, post_norm=False, causal=False, approximate="none", p=0.0):
        super().__init__()
        self.heads, self.post_norm, self.causal, self.approximate, self.p = heads, post_norm, causal, approximate, p
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, xs, mask):
        batch, tokens, width = xs.shape
        q, k, v = self.qkv(xs).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        p = self.p if self.training else 0.0
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=self.causal)
        return self.drop(self.out(attended.transpose(1, 2).reshape(batch, tokens, width)))

    def perceptron(self, xs):
        return self.drop(self.down(gelu(self.up(xs), approximate=self.approximate)))

    def drop(self, xs):
        return dropout(xs, self.p, self.training) if self.p else xs

    def forward(self, xs, mask=None):
        if self.post_norm:
            xs = self.norm1(xs + self.attend(xs, mask))
            return self.norm2(xs + self.perceptron(xs))
        xs = xs + self.attend(self.norm1(xs), mask)
        return xs + self.perceptron(self.norm2(xs))


class Vit(nn.Module):
    """Pre-norm; a final norm and a head that all exits share."""

    channels, classes, exits_at_once = 3, 10, True

    def __init__(self, width, heads, image, patch, depth=12):
        super().__init__()
        self.image = image
        self.patches = nn.Conv2d(self.channels, width, patch, stride=patch)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 1e-12) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-12), nn.Linear(width, self.classes)

    def inputs(self, batch):
        return (torch.randn(batch, self.channels, self.image, self.image),)

    def labels(self, batch):
        return torch.arange(batch) % self.classes

    def embed(self, pixels):
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(pixels), -1, -1), patches], dim=1) + self.positions

    def forward(self, pixels):
        xs = self.embed(pixels)
        features = []
        for block in self.blocks:
            xs = block(xs)
            features.append(xs[:, 0])
        return features

    def logits(self, features):
        return self.head(self.norm(features))


class Bert(nn.Module):
    """Post-norm, with dropout when it trains; the exits read the `[CLS]` state through one pooler."""

    tokens, vocabulary, classes, p, exits_at_once = 128, 30522, 2, 0.1, True

    def __init__(self, width=384, heads=12, depth=12):
        super().__init__()
        self.words, self.positions = nn.Embedding(self.vocabulary, width), nn.Embedding(512, width)
        self.types = nn.Embedding(2, width)
        for embedding in [self.words, self.positions, self.types]:
            nn.init.normal_(embedding.weight, std=0.02)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, heads, 1e-12, post_norm=True, p=self.p) for _ in range(depth))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, self.classes)

    def inputs(self, batch):
        """Ids, and which of them are not padding: 128, 120, .. 72 tokens, then 128 again."""
        real = self.tokens - 8 * (torch.arange(batch) % 8)
        return torch.randint(self.vocabulary, (batch, self.tokens)), torch.arange(self.tokens) < real[:, None]

    def labels(self, batch):
        return torch.arange(batch) % self.classes

    def forward(self, ids, real):
        # All tokens are of the first type.
        xs = self.words(ids) + (self.positions.weight[: ids.shape[1]] + self.types.weight[0])
        xs = dropout(self.norm(xs), self.p, self.training)
        mask = real[:, None, None, :]
        features = []
        for block in self.blocks:
            xs = block(xs, mask)
            features.append(xs[:, 0])
        return features

    def logits(self, features):
        return self.head(dropout(torch.tanh(self.pooler(features)), self.p, self.training))


class Gpt(nn.Module):
    """Pre-norm and causal; the head is the embedding of the words, the final norm is every exit's."""

    exits_at_once = False  # their logits would be 8 times (batch * tokens, vocabulary)

    def __init__(self, width=256, heads=4, depth=8, tokens=128, vocabulary=4096):
        super().__init__()
        self.tokens, self.vocabulary = tokens, vocabulary
        self.words, self.positions = nn.Embedding(self.vocabulary, width), nn.Embedding(self.tokens, width)
        for embedding in [self.words, self.positions]:
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(width, heads, 1e-5, causal=True, approximate="tanh") for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def inputs(self, batch):
        return (torch.randint(self.vocabulary, (batch, self.tokens)),)

    def labels(self, batch):
        return torch.randint(self.vocabulary, (batch * self.tokens,))

    def forward(self, ids):
        xs = self.words(ids) + self.positions.weight[: ids.shape[1]]
        features = []
        for block in self.blocks:
            xs = block(xs)
            features.append(xs)
        return features

    def logits(self, features):
        return linear(self.norm(features).flatten(0, -2), self.words.weight)


# What makes the model, and how many samples a training step has.
CASES = {
    "vit_192": (partial(Vit, width=192, heads=3, image=32, patch=4), 32),
    "vit_384_65": (partial(Vit, width=384, heads=6, image=32, patch=4), 16),
    "vit_384_197": (partial(Vit, width=384, heads=6, image=224, patch=16), 8),
    "bert_384": (Bert, 8),
    "gpt_256": (Gpt, 8),
    "gpt_256_256": (partial(Gpt, tokens=256), 8),
    "gpt_256_50k": (partial(Gpt, tokens=256, vocabulary=50257), 8),
    "gpt_768": (partial(Gpt, width=768, heads=12, depth=12, tokens=256, vocabulary=50257), 8),
}


class LastExit(nn.Module):
    """The model without early exits: logits of the last one only."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model.logits(self.model(*inputs)[-1])


def standard(model, inputs, labels):
    """Cross-entropy of the last exit."""
    return cross_entropy(model.logits(model(*inputs)[-1]), labels)


def aligned(model, inputs, labels):
    """Equation 3: the exit after block `l` weighs `2 l / (L (L + 1))`."""
    features = model(*inputs)
    depth = len(features)
    weights = torch.arange(1, depth + 1, device=labels.device) * (2 / (depth * (depth + 1)))
    if model.exits_at_once:
        logits = model.logits(torch.stack(features))
        losses = cross_entropy(logits.flatten(0, 1), labels.repeat(depth), reduction="none").view(depth, -1).mean(1)
    else:
        losses = torch.stack([cross_entropy(model.logits(feature), labels) for feature in features])
    return (weights * losses).sum()


OBJECTIVES = {"standard": standard, "aligned": aligned}
