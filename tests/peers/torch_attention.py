#!/usr/bin/env python3
"""torch_attention.py - PyTorch's attention kernels as a peer of `quire bench`.

    quire bench attention --peer 'python3 tests/peers/torch_attention.py'
    quire bench prefill --list model --peer 'python3 tests/peers/torch_attention.py'

The lines that go in and out are described in runner/bench.h (peers). The kernels are those
of scaled_dot_product_attention: flash, cuDNN, efficient and math. Keys and values are dense, not
paged. What this PyTorch or this device cannot run is reported as not available; so is everything
where PyTorch is not installed.

Environment: PEER_DEVICE=cuda|cpu (cuda when there is one).
"""

import json
import os
import sys
import time

KERNELS = ("flash", "cudnn", "efficient", "math")
ROUNDS = 11
COLD_BYTES = 256e6
MAX_COPIES = 8192
MAX_CALLS = 4096
STREAMS = {"q": 1, "k": 2, "v": 3}


def answer(**fields):
    print(json.dumps(fields), flush=True)


def to_signed(x):
    """The 64-bit pattern x as Python's int of a signed tensor element."""
    return x - (1 << 64) if x >= 1 << 63 else x


def shift_right(torch, x, n):
    """A logical shift; torch's is arithmetic on int64."""
    return torch.bitwise_and(x >> n, (1 << (64 - n)) - 1)


def values(torch, stream, shape, dtype, device):
    """Numbers i of a stream: (mix64(stream * 2^40 + i) >> 57) / 32 - 2, row-major. int64 wraps."""
    n = 1
    for size in shape:
        n *= size
    x = torch.arange(n, dtype=torch.int64, device=device) + (STREAMS[stream] << 40)
    x += to_signed(0x9E3779B97F4A7C15)
    x = (x ^ shift_right(torch, x, 30)) * to_signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift_right(torch, x, 27)) * to_signed(0x94D049BB133111EB)
    x = shift_right(torch, x ^ shift_right(torch, x, 31), 57)
    return (x.to(torch.float32) / 32 - 2).to(dtype).reshape(shape)


def make_inputs(torch, s, device):
    """q, k, v as [batch, heads, length, head_dim], and as many copies of k and v as no cache holds."""
    dtype = getattr(torch, s["dtype"])
    q_shape = (s["batch"], s["q_len"], s["heads"], s["head_dim"])
    kv_shape = (s["batch"], s["kv_len"], s["kv_heads"], s["head_dim"])
    q = values(torch, "q", q_shape, dtype, device).transpose(1, 2).contiguous()
    k = values(torch, "k", kv_shape, dtype, device).transpose(1, 2).contiguous()
    v = values(torch, "v", kv_shape, dtype, device).transpose(1, 2).contiguous()
    copies = 1
    if s["cache"] == "cold":
        kv_bytes = 2 * k.numel() * k.element_size()
        copies = int(min(-(-COLD_BYTES // kv_bytes), MAX_COPIES))
    pairs = [(k, v)] + [(k.clone(), v.clone()) for _ in range(copies - 1)]
    return q, pairs


def backend(torch, kernel):
    """The kernel's place in torch.nn.attention, or None where this version has no such kernel."""
    from torch.nn.attention import SDPBackend

    name = {
        "flash": "FLASH_ATTENTION",
        "cudnn": "CUDNN_ATTENTION",
        "efficient": "EFFICIENT_ATTENTION",
        "math": "MATH",
    }[kernel]
    return getattr(SDPBackend, name, None)


def make_call(torch, s, q, pairs):
    """call(i): attention over copy i. One query after a context sees all of it: no mask is needed;
    a prompt has as many queries as keys, which is what is_causal means. Other lengths have a mask."""
    attend = torch.nn.functional.scaled_dot_product_attention
    options = {"scale": s["scale"]}
    if s["heads"] != s["kv_heads"]:
        options["enable_gqa"] = True
    if s["q_len"] == s["kv_len"]:
        options["is_causal"] = True
    elif s["q_len"] > 1:
        ones = torch.ones(s["q_len"], s["kv_len"], dtype=torch.bool, device=q.device)
        options["attn_mask"] = ones.tril(s["kv_len"] - s["q_len"])

    def call(i):
        k, v = pairs[i % len(pairs)]
        return attend(q, k, v, **options)

    return call


def sync(torch, device):
    if device == "cuda":
        torch.cuda.synchronize()


def record(torch, device, call, n):
    """One replay of n calls: a CUDA graph, or the calls one by one."""

    def run():
        for i in range(n):
            call(i)

    if device != "cuda" or n < 2:
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timed(torch, device, run):
    sync(torch, device)
    began = time.perf_counter()
    run()
    sync(torch, device)
    return time.perf_counter() - began


def quantile(ordered, q):
    at = q * (len(ordered) - 1)
    below = int(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def measure(torch, device, call, copies, seconds):
    """Seconds of one call: median, 10th and 90th percentile over rounds."""
    for i in range(3):
        call(i)
    once = max(timed(torch, device, lambda: call(0)), 1e-9)
    n = int(min(max(seconds / ROUNDS / once, 1), MAX_CALLS))
    if n > 1 and copies <= MAX_CALLS:
        n = max(n, copies)
    run = record(torch, device, call, n)
    run()
    samples = []
    while len(samples) < ROUNDS and (len(samples) < 3 or sum(samples) * n < seconds):
        samples.append(timed(torch, device, run) / n)
    samples.sort()
    return [quantile(samples, q) for q in (0.5, 0.1, 0.9)]


def sampled_rows(s, out):
    """The asked rows of out [batch, heads, q_len, head_dim]; what is no finite number is null."""
    rows = []
    for token, head in s["rows"]:
        row = out[token // s["q_len"], head, token % s["q_len"]].float().tolist()
        rows.append([x if abs(x) < float("inf") else None for x in row])
    return rows


def run_kernel(torch, device, s, kernel, call, copies):
    from torch.nn.attention import sdpa_kernel

    name = "torch " + kernel
    chosen = backend(torch, kernel)
    if chosen is None:
        answer(id=s["id"], kernel=name, available=False, reason="not in torch " + torch.__version__)
        return
    with torch.no_grad(), sdpa_kernel(chosen):
        try:
            out = call(0)
            sync(torch, device)
        except torch.cuda.OutOfMemoryError as error:
            answer(id=s["id"], kernel=name, error=str(error).splitlines()[0])
            return
        except RuntimeError as error:
            reason = str(error).splitlines()[0] or type(error).__name__
            answer(id=s["id"], kernel=name, available=False, reason=reason)
            return
        rows = sampled_rows(s, out)
        del out
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        median, p10, p90 = measure(torch, device, call, copies, s["seconds"])
    fields = {"latency_s": median, "p10_s": p10, "p90_s": p90, "output": rows}
    if device == "cuda":
        fields["memory_bytes"] = torch.cuda.max_memory_allocated()
    answer(id=s["id"], kernel=name, **fields)


def run_shape(torch, device, s):
    q, pairs = make_inputs(torch, s, device)
    call = make_call(torch, s, q, pairs)
    for kernel in KERNELS:
        try:
            run_kernel(torch, device, s, kernel, call, len(pairs))
        except Exception as error:  # one kernel's failure is one row, not the end of the others
            answer(id=s["id"], kernel="torch " + kernel, error=f"{type(error).__name__}: {error}")


def main():
    try:
        import torch
        import torch.nn.attention
    except ImportError as error:
        answer(kernel="torch", available=False, reason=f"PyTorch is not installed ({error})")
        return
    device = os.environ.get("PEER_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    for line in sys.stdin:
        if line.strip():
            s = json.loads(line)
            try:
                run_shape(torch, device, s)
            except Exception as error:  # inputs that do not fit: all rows of this shape fail
                answer(id=s["id"], kernel="torch", error=f"{type(error).__name__}: {error}")
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
