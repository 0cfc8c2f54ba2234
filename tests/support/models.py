"""Small PyTorch models as users write them, of plain ``torch.nn``.

Those that work in place take ``inplace=False`` for a twin of the same weights that does not: its
outputs stay what they were, so that ``torch.autograd.grad`` has gradients of them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """As in torchvision: one ReLU used twice, and a residual sum in place."""

    def __init__(self, inside, out, stride, inplace):
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or inside != out:
            conv = nn.Conv2d(inside, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        if self.inplace:
            out += identity
        else:
            out = out + identity
        return self.relu(out)


class ResNet18(nn.Module):
    def __init__(self, inplace=True, width=4, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [width, 2 * width, 4 * width, 8 * width]
        inside = width
        for number, out in enumerate(widths, 1):
            first = BasicBlock(inside, out, 1 if number == 1 else 2, inplace)
            setattr(self, f"layer{number}", nn.Sequential(first, BasicBlock(out, out, 1, inplace)))
            inside = out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inside, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class EncoderBlock(nn.Module):
    """A pre-norm block of attention and an MLP."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """The root owns a class token and position embeddings."""

    def __init__(self, width=16, depth=3, classes=5):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, 2) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def transformer(norm_first, depth=12, width=16):
    layer = nn.TransformerEncoderLayer(
        width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


class LanguageModel(nn.Module):
    """The embedding's weight is the output's, too."""

    def __init__(self, words=20, width=8):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.out = nn.Linear(width, words)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(self.lstm(self.embedding(tokens))[0])


class UNet(nn.Module):
    """Skips are concatenated; ReLUs and one sum work in place."""

    def __init__(self, inplace=True, width=4):
        super().__init__()
        self.inplace = inplace
        self.down1 = self.double(2, width)
        self.down2 = self.double(width, 2 * width)
        self.middle = self.double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.merge2 = self.double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge1 = self.double(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def double(self, inside, out):
        return nn.Sequential(
            nn.Conv2d(inside, out, 3, padding=1),
            nn.GroupNorm(2, out),
            nn.ReLU(inplace=self.inplace),
            nn.Conv2d(out, out, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=self.inplace),
        )

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        low = self.middle(F.max_pool2d(second, 2))
        up = self.merge2(torch.cat([second, self.up2(low)], 1))
        up = self.up1(up)
        if self.inplace:
            up *= 2
        else:
            up = up * 2
        return self.out(self.merge1(torch.cat([first, up], 1)))


class SharedNet(nn.Module):
    """One embedding under two names, one block used three times, once for another stream."""

    def __init__(self, words=12, width=8):
        super().__init__()
        self.source = nn.Embedding(words, width, sparse=False)
        self.target = self.source
        self.block = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.again = self.block
        self.cross = nn.MultiheadAttention(width, 2, batch_first=True)
        self.out = nn.Linear(width, words)

    def forward(self, tokens):
        memory = self.block(self.block(self.source(tokens)))
        x = self.again(self.target(tokens.flip(1)))
        mixed, _ = self.cross(x, memory, memory, need_weights=False)
        return self.out(x + mixed)


class Mixture(nn.Module):
    """Of four experts the second gets no token, and the last is not even called.

    With ``empty`` the second is called with an empty batch.
    """

    def __init__(self, empty=False, width=8):
        super().__init__()
        self.empty = empty
        self.gate = nn.Linear(width, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(4)
        )
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        weights = self.gate(x).softmax(-1)
        chosen = torch.tensor([0, 2])[torch.arange(len(x)) % 2]
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts[:3]):
            mine = (chosen == number).nonzero()[:, 0]
            if len(mine) or self.empty:
                y = y.index_add(0, mine, expert(x[mine]) * weights[mine, number, None])
        return self.out(y)


@dataclass
class Output:
    hidden: torch.Tensor
    states: dict
    count: int


class Splits(nn.Module):
    """Returns a dataclass with a dictionary of tuples in it, whole numbers among them."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, x, *, mask):
        x = (x * mask) @ self.weight
        states = {"both": (x.sin(), x.cos()), "index": x.argmax(-1)}
        return Output(x.tanh(), states, 3)


class Pair(nn.Module):
    """Returns a tuple of three, of which the last is not read."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, given):
        x = given["x"] * self.gain
        return self.a(x), [self.b(x)], self.c(x)


class Containers(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.splits, self.pair = Splits(width), Pair(width)
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        found = self.splits(self.inner(x), mask=torch.ones(x.shape[-1]))
        one, (other,), _ = self.pair({"x": found.hidden + found.states["both"][0], "y": None})
        return one * other + found.states["both"][1]


class Normalizations(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.batch, self.group = nn.BatchNorm1d(width), nn.GroupNorm(2, width)
        self.instance = nn.InstanceNorm1d(width, affine=True)
        self.layer, self.rms = nn.LayerNorm(width), nn.RMSNorm(width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.prelu = nn.PReLU()

    def forward(self, x):
        x = self.prelu(self.group(self.conv1(self.batch(x))))
        x = self.instance(self.conv2(x)).transpose(1, 2)
        _, last = self.gru(self.rms(self.layer(x)))
        return last[0]
