-- The load for wrk: bodies of a file, one per line, in turn over all connections; a JSON line at the end.
-- wrk -t1 -c32 -d20s --timeout 120s -s wrk.lua http://127.0.0.1:7997/embeddings -- bodies.jsonl
local prepared = {}
local turn = 0

function init(args)
  local headers = { ["Content-Type"] = "application/json" }
  for body in io.lines(args[1]) do
    prepared[#prepared + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  turn = turn % #prepared + 1
  return prepared[turn]
end

function done(summary, latency, requests)
  local e = summary.errors
  print(string.format(
    '{"requests": %d, "seconds": %.6f, "failed": %d, "p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f}',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
