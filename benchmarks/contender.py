"""A contender in a process of its own, which works when it is told to: python -m benchmarks.contender NAME PARAMS

A process each, since peak memory and the allocator's settings are those of a process. A line on standard input
names the work (see work.py), or `products`; the answer is a line of JSON.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.products import seconds_of_products
from benchmarks.report import peak_bytes
from benchmarks.work import our_work, plain_work, read_params


def main(name: str, params_file: str) -> None:
    params = read_params(Path(params_file), "bf16" if name == "bf16" else "fp32")
    work = plain_work(params) if name == "book" else our_work(params)
    kind = torch.bfloat16 if name == "bf16" else torch.float32
    work["products"] = lambda: {"seconds": seconds_of_products(params, kind)}
    for line in sys.stdin:
        answer = work[line.strip()]()
        answer["peak_bytes"] = peak_bytes()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
