#!/usr/bin/env bash
# Uploads one large batch, lets it run, and reads its results in two parts: shows the times, the largest memory of the
# API process (the bar is 300 MB) and that every result is there, in the order of the lines.
#
#   bench-batch.sh [embedded|distributed] [LINES]      default: embedded 100000
#
# BENCH_BIN names the program (default: target/release/sluice). The distributed mode takes its services from the
# environment (deploy/dev/services.sh env) and uses the database that is named there, which should be an empty one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mode=${1-embedded}
lines=${2-100000}
bin=${BENCH_BIN:-$root/target/release/sluice}
port=${BENCH_PORT:-39171}
mkdir -p "$root/.sluice-dev"
dir=$(mktemp -d "$root/.sluice-dev/bench-batch.XXXXXX")
export SLUICE_HOME=$dir/home SLUICE_CONFIG=$dir/sluice.toml
mkdir -p "$SLUICE_HOME"
started=()
# shellcheck disable=SC2317 # The trap reaches it.
end() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap end EXIT

cat >"$SLUICE_CONFIG" <<TOML
[accounts.bench-1]
provider = "simulated"
max_concurrency = 256
[accounts.bench-2]
provider = "simulated"
max_concurrency = 256
TOML

case $mode in
    embedded)
        "$bin" up --listen "127.0.0.1:$port" >"$dir/up.log" 2>&1 &
        api=$! && started+=("$api")
        ;;
    distributed)
        "$bin" migrate >"$dir/migrate.log" 2>&1
        SLUICE_API__LISTEN=127.0.0.1:$port "$bin" api >"$dir/api.log" 2>&1 &
        api=$! && started+=("$api")
        "$bin" worker >"$dir/worker.log" 2>&1 &
        started+=("$!")
        ;;
    *) echo "bench-batch: unknown mode '$mode'" >&2 && exit 64 ;;
esac
for _ in $(seq 300); do curl -sf "http://127.0.0.1:$port/health/ready" >/dev/null && break || sleep 0.1; done
key=$(cat "$SLUICE_HOME/admin.key")
ask() { curl -sS -H "Authorization: Bearer $key" "$@"; }
field() { python3 -c 'import json,sys; print(json.load(sys.stdin)'"$1"')'; }
peak() { awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$api/status"; }

python3 - "$lines" >"$dir/input.jsonl" <<'PY'
import json, sys
filler = "All work and no play makes a dull prompt. " * 10
for n in range(1, int(sys.argv[1]) + 1):
    print(json.dumps({"prompt": f"{n}: {filler}", "metadata": {"n": str(n)}}))
PY
echo "mode $mode, $lines lines, $(($(stat -c %s "$dir/input.jsonl") / 1048576)) MiB; API at rest: $(peak) MB"
took=$(ask -w '%{time_total}' -o "$dir/batch.json" -H 'Content-Type: application/jsonl' --data-binary "@$dir/input.jsonl" \
    "http://127.0.0.1:$port/api/batches")
url=http://127.0.0.1:$port$(field "['url']" <"$dir/batch.json")
echo "accepted after $took s; largest memory of the API: $(peak) MB"
slowest=0
begun=$(date +%s.%N)
while :; do
    poll=$(ask -w '%{time_total}' -o "$dir/now.json" "$url")
    slowest=$(awk -v a="$slowest" -v b="$poll" 'BEGIN { print (a > b) ? a : b }')
    [[ $(field "['state']" <"$dir/now.json") == ended ]] && break
    sleep 0.5
done
echo "ended $(awk -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }') s later: $(field "['counts']" <"$dir/now.json")"
echo "slowest poll of its progress: $slowest s"
half=$((lines / 2))
# The first download breaks off in the middle.
(ask "$url/results" || true) 2>/dev/null | head -n "$half" >"$dir/results.jsonl"
ask "$url/results?after=$half" >>"$dir/results.jsonl"
python3 - "$dir/results.jsonl" "$lines" <<'PY'
import json, sys
count = 0
for count, text in enumerate(open(sys.argv[1]), 1):
    result = json.loads(text)
    assert result["line"] == count and result["metadata"]["n"] == str(count), result
    assert result["result"]["text"].startswith(f"{count}: "), result
assert count == int(sys.argv[2]), count
print(f"all {count} results are there and in order")
PY
largest=$(peak)
echo "largest memory of the API over all: $largest MB (the bar is 300 MB)"
[[ $largest -lt 300 ]]
