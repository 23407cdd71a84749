#!/usr/bin/env bash
# The main path by curl alone: submit a prompt, wait for its end, print the answer.
#
#   sluice up                # in another terminal
#   examples/curl.sh 'Say hello.'
set -euo pipefail

url=${SLUICE_URL:-http://127.0.0.1:3000}
home=${SLUICE_HOME:-$HOME/.local/share/sluice}
key=${SLUICE_API_KEY:-$(cat "$home/admin.key")}
prompt=${1:-Say hello.}

# The key goes by a file descriptor, so that no other user sees it in the list of processes.
api() { curl --silent --show-error --fail-with-body --config <(echo "header = \"Authorization: Bearer $key\"") "$@"; }

# A job is JSON; python3 quotes the prompt.
job=$(python3 -c 'import json, sys; print(json.dumps({"prompt": sys.argv[1]}))' "$prompt")

# What the API says when it says no is JSON too, with a code and what to do.
refused() { echo "$1" >&2 && exit 1; }

# 202 with a receipt: the job is kept from now on. With the same Idempotency-Key this may be
# repeated: it gives the same job again.
receipt=$(api "$url/api/jobs" --json "$job" --header "Idempotency-Key: \"example-$$-$(date +%s)\"") || refused "$receipt"
id=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])' <<<"$receipt")
echo "job $id" >&2

# The long poll answers as soon as the job has ended; ask again until it has.
while :; do
    view=$(api "$url/api/jobs/$id?wait=30s") || refused "$view"
    state=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])' <<<"$view")
    case $state in
    queued | dispatched | running) ;;
    succeeded)
        python3 -c 'import json, sys; print(json.load(sys.stdin)["result"]["text"])' <<<"$view"
        exit 0
        ;;
    *)
        python3 -c 'import json, sys; print(json.load(sys.stdin).get("error"))' <<<"$view" >&2
        exit 1
        ;;
    esac
done
