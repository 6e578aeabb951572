"""What PyTorch takes for a step of training of the models that `tritterc train` compiles: the same shapes, batches and arithmetic of quantisation.

    python3 tests/cuda/training_rivals.py [--models nano,125m,350m] [--mode default|max-autotune|eager] [--steps 20]

A step is the forward pass under autocast to bf16, the backward pass, clipping by the global norm and fused AdamW; parameters are f32. Each model runs
in this process behind the others, and its peak is that of the allocator; beside it stands what the device has in use then, with what the allocator holds
back and the driver's. Lines of CSV: model, mode, tokens a step, parameters, tokens/s (median), milliseconds of a step (median), peak bytes, device bytes.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import nn


@dataclass
class Shape:
    vocab: int
    hidden: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    sequences: int
    context: int
    # BitNet b1.58: one scale a matrix, root-mean-square norms before and inside the blocks, and the embedding as the head. Else Tritter's: ternary by
    # the row, with a trained scale, layer norms before attention and behind the feed-forward block, norms of q and k, biases, and a ternary head.
    is_bitnet: bool


MODELS = {
    "nano": Shape(320, 512, 8, 1408, 8, 2, 64, 1024, True),
    "125m": Shape(65536, 768, 12, 3072, 12, 12, 8, 1024, False),
    "350m": Shape(65536, 1024, 24, 4096, 16, 16, 8, 1024, False),
}


def through(real, quantised):
    """The quantised value with the gradient of the real one."""
    return real + (quantised - real).detach()


class Linear(nn.Module):
    def __init__(self, shape, inner, outer):
        super().__init__()
        self.is_bitnet = shape.is_bitnet
        self.weight = nn.Parameter(torch.randn(outer, inner) * inner**-0.5)
        if not self.is_bitnet:
            self.scale = nn.Parameter(torch.full((outer, 1), (1.5 / inner) ** 0.5))
            self.bias = nn.Parameter(torch.zeros(outer))

    def forward(self, x):
        largest = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = through(x, (x * (127 / largest)).round().clamp(-128, 127) * (largest / 127))
        weight = self.weight
        if self.is_bitnet:
            scale = weight.detach().abs().mean().clamp(min=1e-5)
            return functional.linear(x, through(weight, (weight / scale).round().clamp(-1, 1) * scale))
        threshold = 0.7 * weight.detach().abs().mean(1, keepdim=True)
        ternary = through(weight, torch.where(weight.abs() > threshold, weight.sign(), 0.0))
        return functional.linear(x, ternary * self.scale, self.bias)


def norm(shape, width):
    return nn.RMSNorm(width, eps=1e-5) if shape.is_bitnet else nn.LayerNorm(width, eps=1e-5)


def rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, hidden, d = shape, shape.hidden, shape.hidden // shape.heads
        self.norm = norm(shape, hidden)
        self.q = Linear(shape, hidden, shape.heads * d)
        self.k = Linear(shape, hidden, shape.kv_heads * d)
        self.v = Linear(shape, hidden, shape.kv_heads * d)
        self.o = Linear(shape, shape.heads * d, hidden)
        self.gate = Linear(shape, hidden, shape.width)
        self.up = Linear(shape, hidden, shape.width)
        self.down = Linear(shape, shape.width, hidden)
        if shape.is_bitnet:
            self.sub_norm, self.ffn_norm, self.ffn_sub_norm = norm(shape, hidden), norm(shape, hidden), norm(shape, shape.width)
        else:
            self.q_norm, self.k_norm, self.post_norm = norm(shape, d), norm(shape, d), norm(shape, hidden)

    def forward(self, h, cos, sin):
        shape = self.shape
        sequences, context, hidden = h.shape
        x = self.norm(h)
        q, k, v = [
            project(x).view(sequences, context, -1, hidden // shape.heads).transpose(1, 2)
            for project in [self.q, self.k, self.v]
        ]
        if not shape.is_bitnet:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = [part.to(torch.bfloat16) for part in [rotate(q, cos, sin), rotate(k, cos, sin), v]]
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shape.kv_heads != shape.heads)
        mixed = mixed.transpose(1, 2).reshape(sequences, context, -1)
        h = h + self.o(self.sub_norm(mixed) if shape.is_bitnet else mixed)
        x = self.ffn_norm(h) if shape.is_bitnet else h
        inner = functional.relu(self.gate(x)).square() * self.up(x)
        h = h + self.down(self.ffn_sub_norm(inner) if shape.is_bitnet else inner)
        return h if shape.is_bitnet else self.post_norm(h)


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = norm(shape, shape.hidden)
        self.head = None if shape.is_bitnet else Linear(shape, shape.hidden, shape.vocab)
        d = shape.hidden // shape.heads
        angles = torch.arange(shape.context)[:, None] * 500000.0 ** (-torch.arange(0, d, 2) / d)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        h = self.embedding(ids)
        for layer in self.layers:
            h = layer(h, self.cos, self.sin)
        h = self.norm(h)
        logits = functional.linear(h, self.embedding.weight) if self.head is None else self.head(h)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def measure(name, mode, steps):
    shape = MODELS[name]
    torch.manual_seed(1)
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = Model(shape).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(shape.vocab, (shape.sequences, shape.context + 1), device="cuda")
    run = model if mode == "eager" else torch.compile(model, mode=None if mode == "default" else mode)

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss

    begun = time.time()
    for _ in range(3):
        loss = step()
    torch.cuda.synchronize()
    compiled, times = time.time() - begun, []
    for _ in range(steps):
        start = time.time()
        step()
        torch.cuda.synchronize()
        times.append(time.time() - start)
    tokens, median = shape.sequences * shape.context, statistics.median(times)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    peak = torch.cuda.max_memory_allocated()
    free, total = torch.cuda.mem_get_info()
    print(f"{name},{mode},{tokens},{parameters},{tokens / median:.0f},{median * 1e3:.2f},{peak},{total - free}", flush=True)
    print(f"# compiled in {compiled:.0f} s, loss {loss.item():.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--mode", default="default", choices=["default", "max-autotune", "eager"])
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    print("model,mode,tokens,parameters,tokens_per_s,step_ms,peak_bytes,device_bytes")
    for name in args.models.split(","):
        measure(name, args.mode, args.steps)


main()
