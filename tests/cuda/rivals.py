"""What PyTorch takes for the work that the rows of `kernels/cuda` do, on the same machine: attention, and linears in bf16.

    python3 tests/cuda/rivals.py [linears] [prefill] [decode] [training]

Times are medians of CUDA graphs, of which each has several calls; inputs of short calls are more than the L2 holds.
"""

import statistics
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

# Outputs and inputs of one layer of a 2B model, as in tests/cuda/src/bench.rs.
LAYER = [(3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)]
LAYERS = 30
COLD_BYTES = 200 << 20
RUNS = 11


def microseconds(calls):
    """Of one of the calls, which are captured as one graph."""
    calls[0]()
    torch.cuda.synchronize()
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(RUNS + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[1:])


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def attention(backend, tokens, keys, heads, kv_heads, width):
    """Scaled dot product attention of the last `tokens` of `keys`, causal."""
    bytes_of_one = 4 * kv_heads * keys * width
    copies = max(1, min(16, COLD_BYTES // bytes_of_one)) if tokens == 1 else 1
    q = random(1, heads, tokens, width)
    caches = [(random(1, kv_heads, keys, width), random(1, kv_heads, keys, width)) for _ in range(copies)]
    is_causal = tokens == keys
    name = f"SDPA {backend.name.lower()} heads={heads}/{kv_heads} hd={width} keys={keys} n={tokens}"
    try:
        with sdpa_kernel(backend):
            calls = [
                lambda k=k, v=v: functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)
                for k, v in caches
            ]
            time = microseconds(calls * (4 if tokens == 1 else 2))
    except RuntimeError as error:
        print(f"{name}: {str(error).splitlines()[0]}")
        return
    if tokens == 1:
        print(f"{name}: {time:.2f} us, {bytes_of_one / time * 1e-6:.2f} TB/s")
    else:
        print(f"{name}: {time:.1f} us, {2e-6 * heads * width * tokens * (tokens + 1) / time:.0f} TFLOP/s")


def linears(tokens):
    """All linears of all layers, one after the other."""
    weights = [[random(m, k) for m, k in LAYER] for _ in range(LAYERS)]
    inputs = {k: random(tokens, k) for _, k in LAYER}

    def layers():
        for layer in weights:
            for weight in layer:
                functional.linear(inputs[weight.shape[1]], weight)

    time = microseconds([layers])
    products = LAYERS * tokens * sum(m * k for m, k in LAYER)
    print(f"cuBLAS bf16 {LAYERS} layers n={tokens}: {time * 1e-3:.3f} ms, {2e-6 * products / time:.0f} TFLOP/s")


def training(backend, sequences, tokens, heads, kv_heads, width):
    """Causal attention of whole sequences and its gradients."""
    q, k, v = (random(sequences, count, tokens, width).requires_grad_() for count in [heads, kv_heads, kv_heads])
    dy = random(sequences, heads, tokens, width)
    name = f"SDPA {backend.name.lower()} {sequences} x {tokens}, heads={heads}/{kv_heads} hd={width}"
    try:
        with sdpa_kernel(backend):
            forward = lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            times = [microseconds_of(forward)]
            out = forward()
            times.append(microseconds_of(lambda: torch.autograd.grad(out, (q, k, v), dy, retain_graph=True)))
    except RuntimeError as error:
        print(f"{name}: {str(error).splitlines()[0]}")
        return
    products = 1e-6 * sequences * heads * width * tokens * (tokens + 1)
    rates = [f"{time:.1f} us, {count * products / time:.0f} TFLOP/s" for time, count in zip(times, [2, 5])]
    print(f"{name}: forward {rates[0]}; backward {rates[1]}")


def microseconds_of(call):
    """Of a call that no graph can have; several of them, so that they follow each other closely."""
    call()
    torch.cuda.synchronize()
    times = []
    for _ in range(RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(5):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / 5)
    return statistics.median(times)


def main():
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    torch.manual_seed(1)
    wanted = sys.argv[1:] or ["linears", "prefill", "decode", "training"]
    for tokens in [512, 2048, 4096] if "linears" in wanted else []:
        linears(tokens)
    for backend in [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]:
        for tokens in [4096, 32768] if "prefill" in wanted else []:
            attention(backend, tokens, tokens, 32, 8, 128)
        for heads, kv_heads in [(20, 5), (32, 8)] if "decode" in wanted else []:
            attention(backend, 1, 131072, heads, kv_heads, 128)
        batches = [(64, 1024, 8, 2, 64), (8, 1024, 12, 12, 64), (8, 1024, 16, 16, 64), (4, 2048, 16, 16, 128)]
        for batch in batches if "training" in wanted else []:
            training(backend, *batch)


main()
