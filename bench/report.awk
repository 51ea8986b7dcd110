# The results of bench/run as a table. Columns of the input, separated by tabs: row, what is compared (requests or
# bytes), round, server, requests/s, bytes/s, CPU in microseconds per request, p50 and p99 in microseconds, peak memory
# in kilobytes, errors.

BEGIN {
  FS = "\t"
  target["1 KB from the cache"] = "0.9"
  target["100 KB from the cache"] = "0.7"
  target["10 MB from the cache"] = target["100 MB from the cache"] = "1.0"
}

!($1 in unit) { rows[++count] = $1; unit[$1] = $2 }

{
  speed[$1, $4, $3] = $2 == "bytes" ? $6 : $5
  cpu[$1, $4, $3] = $7
  p50[$1, $4, $3] = $8
  p99[$1, $4, $3] = $9
  memory[$1, $4, $3] = $10
  errors[$1, $4] += $11
  if ($3 > rounds) rounds = $3
}

# Of the values of a row and server over all rounds; of those divided by another server's in the same round, if given.
function median(values, row, server, other,   n, i, j, v, list) {
  n = 0
  for (i = 1; i <= rounds; i++) {
    if (!((row, server, i) in values)) continue
    v = values[row, server, i]
    if (other != "") {
      if (!((row, other, i) in values) || values[row, other, i] == 0) continue
      v /= values[row, other, i]
    }
    for (j = n++; j > 0 && list[j] > v; j--) list[j + 1] = list[j]
    list[j + 1] = v
  }
  if (n == 0) return -1
  return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}

function faster(row) {
  return median(speed, row, "nginx") >= median(speed, row, "nginx-copying") ? "nginx" : "nginx-copying"
}

function rate(row, server,   v) {
  v = median(speed, row, server)
  if (v < 0) return "missing"
  return unit[row] == "bytes" ? sprintf("%.0f MB/s", v / 1e6) : sprintf("%.0f/s", v)
}

function time(v) { return v < 0 ? "missing" : v < 1000 ? sprintf("%.0f µs", v) : sprintf("%.1f ms", v / 1000) }

function pair(values, row, peer) { return time(median(values, row, peer)) " / " time(median(values, row, "artifactapi")) }

function quotient(v) { return v < 0 ? "missing" : sprintf("%.2f", v) }

END {
  print "| | faster nginx | artifactapi | ratio | target | CPU per request, nginx / artifactapi | p50 | p99 | peak memory |"
  print "|---|---|---|---|---|---|---|---|---|"
  for (r = 1; r <= count; r++) {
    row = rows[r]
    peer = faster(row)
    goal = row in target ? target[row] : row ~ /rewritten/ ? "as a plain file" : "none"
    printf "| %s | %s%s | %s | %s | %s | %s (%s) | %s | %s | %.0f / %.0f MB |\n", row, rate(row, peer),
      peer == "nginx-copying" ? " (copying)" : "", rate(row, "artifactapi"),
      quotient(median(speed, row, "artifactapi", peer)), goal, pair(cpu, row, peer),
      quotient(median(cpu, row, "artifactapi", peer)), pair(p50, row, peer), pair(p99, row, peer),
      median(memory, row, peer) / 1024, median(memory, row, "artifactapi") / 1024
    for (server in list) delete list[server]
    split("nginx nginx-copying artifactapi", list, " ")
    for (i = 1; i <= 3; i++)
      if (errors[row, list[i]] > 0) notes = notes sprintf("- %s, %s: %d errors\n", row, list[i], errors[row, list[i]])
  }
  if (notes != "") printf "\nErrors that wrk saw:\n%s", notes
}
