"""External clients, run as they are: `vllm bench serve` and AISBench.

Both end with code 0 when the service dies half-way, both count a stream that an error event broke as a success, and
both wait for ever on a dead rank (measured with vLLM 0.32 and AISBench 3.1). So each run is bounded in time, watched
by the service's own supervision, and judged by its result file.
"""
