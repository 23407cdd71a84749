#!/usr/bin/env bash
# Measures Sluice on this machine, beside what the machine can do: builds the release, starts a private set of
# services, runs the benchmark, and stops and removes all it has started.
#
#   bench.sh [run] [ARG...]       the table: the limit, embedded and distributed side by side, with the bars
#   bench.sh limit [ARG...]       the limit alone
#   bench.sh inflight [ARG...]    10,000 jobs in flight at once on one worker process
#   bench.sh scale [ARG...]       dispatching for 1,000 accounts out of 1,000,000 waiting jobs
#   bench.sh lanes [ARG...]       how soon a job starts while 10,000 others wait for an account that is full
#   bench.sh gateway [ARG...]     calls of an SDK through it, beside the same calls without it
#   bench.sh warm --claude PATH   prompts by the Claude CLI, with a process for each and with a kept one
#
# ARGs go to sluice-bench; `bench.sh run --help` lists them. A quick look: bench.sh --repeat 1 --jobs 20000
# SLUICE_BENCH_DIR holds all data while it runs (default: .sluice-dev/bench in the repository); it must be on a disk.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=${SLUICE_BENCH_DIR:-$root/.sluice-dev/bench}
target=${CARGO_TARGET_DIR:-$root/target}
services=("$root/deploy/dev/services.sh" --dir "$dir/services")

command=run
case ${1-} in
    run | limit | inflight | scale | lanes | gateway | warm) command=$1 && shift ;;
    -h | --help) sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
esac

packages=(--package sluice-bench)
if [[ $command != limit ]]; then packages+=(--package sluice); fi
mkdir -p "$dir"
exec {lock}>"$dir/lock"
flock -n "$lock" || { echo "bench: another benchmark runs in $dir" >&2 && exit 1; }
"$root/deploy/dev/packages.sh" compiler
"${services[@]}" install
cargo build --manifest-path "$root/Cargo.toml" --release "${packages[@]}"

bench=
# shellcheck disable=SC2317 # The trap reaches it.
end() {
    # The benchmark stops its own processes before it ends, so it is waited for.
    if [[ $bench ]] && kill -TERM "$bench" 2>/dev/null; then wait "$bench" || true; fi
    "${services[@]}" remove || true
}
trap end EXIT
trap 'exit 130' INT TERM HUP

"${services[@]}" start
while IFS= read -r setting; do
    export "${setting?}"
done < <("${services[@]}" env)

if [[ $command != limit ]]; then set -- --dir "$dir/run" "$@"; fi
"$target/release/sluice-bench" "$command" "$@" &
bench=$!
status=0
wait "$bench" || status=$?
bench=
exit "$status"
