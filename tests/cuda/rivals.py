"""What PyTorch takes for the work that the rows of `kernels/cuda` do, on the same machine: attention, and linears in bf16.

    python3 tests/cuda/rivals.py

Times are medians of CUDA graphs, of which each has several calls; inputs of short calls are more than the L2 holds.
"""

import statistics

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


def main():
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    torch.manual_seed(1)
    for tokens in [512, 2048, 4096]:
        linears(tokens)
    for backend in [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]:
        for tokens in [4096, 32768]:
            attention(backend, tokens, tokens, 32, 8, 128)
        for heads, kv_heads in [(20, 5), (32, 8)]:
            attention(backend, 1, 131072, heads, kv_heads, 128)


main()
