-- wrk: every request asks for another path below the one given.
local threads = 0

setup = function(thread)
  thread:set("number", threads)
  threads = threads + 1
end

init = function()
  prefix = wrk.path .. os.getenv("BENCH_TAG") .. number .. "-"
  count = 0
end

request = function()
  count = count + 1
  return wrk.format("GET", prefix .. count)
end

done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d\n", summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
