"""Clients of a server that is started for them: `python serving.py --model FOLDER --server tunesmith --clients 4`.

Each client asks its questions one after the other, streamed; clients come one by one, at random (exponential) intervals of a fixed seed. Every question
begins with the same system prompt, as a service's do.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from rows import MOST, messages
from transformers import AutoTokenizer

QUESTIONS = 8
"""Of all clients together, or one each if there are more."""
INTERVAL = 0.3
"""Mean seconds between the clients' arrivals."""
PATIENCE = 90
HERE = Path(__file__).parent


def command(server: str, model: str, port: int) -> list[str]:
    """What starts a server."""
    ours = [sys.executable, str(HERE / "ours_server.py"), "--model", model, "--port", str(port)]
    theirs = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu", "--dtype", "bfloat16", "--port", str(port)]  # fmt: skip
    return {
        "tunesmith": ours,
        "one at a time": [*ours, "--batch", "1"],
        "transformers": theirs,
        "transformers continuous": [*theirs, "--continuous-batching"],
    }[server]


async def ask(client: httpx.AsyncClient, model: str, talk: list[dict[str, Any]]) -> tuple[float, float, str]:
    """Seconds to the first words and to the end, and the answer."""
    body = {"model": model, "messages": talk, "max_tokens": MOST, "temperature": 0.0, "stream": True}
    start, first, text = time.perf_counter(), 0.0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {(await response.aread()).decode()[:500]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:]).get("choices") or [{}]
            piece = (choices[0].get("delta") or {}).get("content")
            if piece:
                first = first or time.perf_counter() - start
                text += piece
    end = time.perf_counter() - start
    return first or end, end, text


async def measure(model: str, port: int, clients: int) -> dict[str, Any]:
    """Ask, and count."""
    talks = [talk[:-1] for talk in messages()]
    count = max(1, QUESTIONS // clients)
    draw = random.Random(0)
    arrivals = [0.0]
    while len(arrivals) < clients:
        arrivals.append(arrivals[-1] + draw.expovariate(1 / INTERVAL))
    found: list[tuple[float, float, str]] = []
    headers = {"Authorization": "Bearer a-token-for-benchmarks"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120) as http:
        for talk in talks[-2:]:
            await ask(http, model, talk)  # warm

        async def one(number: int) -> None:
            await asyncio.sleep(arrivals[number])
            for question in range(count):
                found.append(await ask(http, model, talks[number * count + question]))

        start = time.perf_counter()
        await asyncio.gather(*map(one, range(clients)))
        seconds = time.perf_counter() - start
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = [len(tokenizer(text, add_special_tokens=False).input_ids) for _, _, text in found]
    firsts = sorted(first for first, _, _ in found)
    pace = [(end - first) / max(1, made - 1) for (first, end, _), made in zip(found, tokens, strict=True)]
    return {
        "tokens_per_second": sum(tokens) / seconds,
        "first_token_milliseconds": 1000 * statistics.median(firsts),
        "first_token_milliseconds_worst": 1000 * firsts[-1],
        "milliseconds_per_token_of_a_stream": 1000 * statistics.median(pace),
        "requests": len(found),
        "new_tokens": sum(tokens),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number: int = found.getsockname()[1]
        return number


def ready(server: "subprocess.Popen[bytes]", port: int) -> None:
    """Wait until the server listens and answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"the server did not come up within {PATIENCE} s")


def main() -> None:
    """Start, measure, stop, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--clients", type=int, required=True)
    given = parser.parse_args()
    port = free_port()
    server = subprocess.Popen(command(given.server, given.model, port), stdout=subprocess.DEVNULL)
    try:
        ready(server, port)
        found = asyncio.run(measure(given.model, port, given.clients))
        status = Path(f"/proc/{server.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        print("RESULT " + json.dumps({**found, "peak_rss_mb": int(peak.split()[1]) // 1024}), flush=True)
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main()
