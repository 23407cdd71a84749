#!/usr/bin/env bash
# Runs the tests, and does all the set-up that they need. What it starts goes when it ends, however it ends; what a run
# that was itself killed left behind goes at the next one.
#
#   test.sh [all|it|fault|web]  all tests; the end-to-end tests; of those, the ones that kill services and processes;
#                               the tests of the web interface, in Chromium
#   test.sh limits              the test of limits at full size: 3 API and 6 worker processes, 12 accounts, 5 minutes
#   test.sh webhooks            the fault test of webhooks at full size: 10,000 to a receiver that fails 30 % of the time
#
# The tests find in their environment:
#   SLUICE_POSTGRES__URL, SLUICE_RABBITMQ__URL, SLUICE_RABBITMQ__MANAGEMENT_URL, SLUICE_REDIS__URL
#   SLUICE_TEST_SERVICES_SH     the script that manages services
#   SLUICE_TEST_SERVICES_DIR    its --dir for the set above; a sibling directory is a set of a test's own
#   SLUICE_TEST_CLAUDE_BIN      the real Claude CLI
#   SLUICE_TEST_SDK_PYTHON      a Python with the official SDKs of OpenAI and Anthropic
#   SLUICE_TEST_BINARY          sluice itself, where it is not of the same build as the tests
#   SLUICE_HOME                 an empty folder, so that none touches the developer's

# shellcheck disable=SC2317 # Functions are called by traps, and the runner by its name.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
services=$root/deploy/dev/services.sh packages=$root/deploy/dev/packages.sh work=$root/.sluice-dev
from=$SECONDS

# As in .config/nextest.toml.
readonly FAULT='(^|::|_)faults?(::|_|$)'
readonly LIMITS=no_window_is_exceeded_and_nearly_all_of_it_is_used_whatever_is_killed
readonly WEBHOOKS=every_webhook_arrives_though_the_receiver_fails_and_the_api_is_killed
readonly CLAUDE_VERSION=2.1.208

selection=${1:-all}
case $selection in
    all) nextest=() cargo_test=(--tests) ;;
    it) nextest=(-E 'binary(it)') cargo_test=(--test it) ;;
    fault) nextest=(-E "binary(it) & test(/$FAULT/)") cargo_test=(--test it) ;;
    web) nextest=() cargo_test=() ;;
    limits)
        nextest=(--success-output final -E 'binary(it) & test(/^limits::fault::/)') cargo_test=(--test it "limits::fault::$LIMITS")
        ;;
    webhooks)
        nextest=(--success-output final -E "binary(it) & test(=fault::webhooks::$WEBHOOKS)") cargo_test=(--test it "fault::webhooks::$WEBHOOKS")
        ;;
    *) echo "usage: test.sh [all|it|fault|web|limits|webhooks]" >&2 && exit 64 ;;
esac
if [[ -t 1 ]]; then export CARGO_TERM_COLOR=always; fi

# ---------------------------------------------------------------------------------------------------- a run's directory
# Every set of services of a run is a directory directly in it. The run holds the lock in it while it lives.

remove_run() {
    local set
    for set in "$1"/*/; do
        if [[ -d $set ]]; then "$services" --dir "$set" remove 2>/dev/null || true; fi
    done
    rm -rf "$1"
}

remove_stale_runs() {
    local stale
    for stale in "$work"/run.*/; do
        if [[ -d $stale ]] && flock -n "$stale/lock" true; then remove_run "$stale"; fi
    done
}

keep_logs() {
    local service kept=$work/last-failure
    rm -rf "$kept"
    mkdir "$kept"
    for service in postgres rabbitmq redis; do
        cp -r "$run/services/$service/log" "$kept/$service" 2>/dev/null || true
    done
    echo "The logs of the services are in .sluice-dev/last-failure." >&2
}

end_run() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP # A second Ctrl-C does not leave half of it behind.
    if [[ -n ${starting:-} ]]; then kill "$starting" 2>/dev/null || true; fi
    wait
    if ((status)); then keep_logs; fi
    remove_run "$run"
    exit "$status"
}

# ---------------------------------------------------------------------------------------------------- set-up

install_claude() {
    local prefix=$work/claude-cli spec
    claude=$prefix/node_modules/.bin/claude
    [[ $("$claude" --version 2>/dev/null) == "$CLAUDE_VERSION "* ]] && return
    for spec in "@anthropic-ai/claude-code@$CLAUDE_VERSION" @anthropic-ai/claude-code; do
        npm install --prefix "$prefix" --no-audit --no-fund --no-update-notifier --loglevel=error "$spec" >&2 || continue
        "$claude" --version >/dev/null 2>&1 && return
    done
    echo "The Claude CLI could not be installed: the tests that need it will fail." >&2
    claude=
}

# The SDKs of tests/sdk, in a virtual environment that is made anew when they change.
install_sdks() {
    local venv=$work/sdk-venv wanted=tests/sdk/requirements.txt
    sdk_python=$venv/bin/python
    cmp -s "$wanted" "$venv/installed.txt" && "$sdk_python" --version >/dev/null 2>&1 && return
    if rm -rf "$venv" && python3 -m venv "$venv" &&
        "$sdk_python" -m pip --disable-pip-version-check install --quiet --requirement "$wanted" >&2; then
        cp "$wanted" "$venv/installed.txt"
        return
    fi
    echo "The Python SDKs could not be installed: the tests that need them will fail." >&2
    sdk_python=
}

# The public libraries that verify webhooks, where the tests look for them.
install_verifiers() {
    local prefix=$work/verifiers from=$root/tests/verifiers
    mkdir -p "$prefix"
    cmp -s "$from/package-lock.json" "$prefix/package-lock.json" && [[ -d $prefix/node_modules && -d $prefix/venv ]] && return
    cp "$from"/package*.json "$prefix"
    if npm ci --prefix "$prefix" --no-audit --no-fund --no-update-notifier --loglevel=error >&2 \
        && python3 -m venv "$prefix/venv" && "$prefix/venv/bin/pip" install --quiet -r "$from/requirements.txt" >&2; then
        return
    fi
    rm -rf "$prefix"
    echo "The libraries that verify webhooks could not be installed: the tests that need them will fail." >&2
}

set_environment() {
    local variable line
    for variable in "${!SLUICE_@}"; do unset "$variable"; done
    while IFS= read -r line; do export "${line?}"; done < <("$services" --dir "$run/services" env)
    export SLUICE_TEST_SERVICES_SH=$services SLUICE_TEST_SERVICES_DIR=$run/services SLUICE_HOME=$run/home
    if [[ -n $sdk_python ]]; then export SLUICE_TEST_SDK_PYTHON=$sdk_python; fi
    if [[ -n $claude ]]; then export SLUICE_TEST_CLAUDE_BIN=$claude; fi
    if [[ $selection == limits ]]; then
        export SLUICE_TEST_SIZE=full SLUICE_TEST_BINARY=${CARGO_TARGET_DIR:-$root/target}/release/sluice
    fi
    if [[ $selection == webhooks ]]; then export SLUICE_TEST_SIZE=full; fi
    # A proxy that the machine uses for the network must not get what goes to a loopback address.
    export NO_PROXY="127.0.0.1,localhost${NO_PROXY:+,$NO_PROXY}"
    # No test may spend what is in the developer's environment.
    unset ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN OPENAI_API_KEY CLAUDE_CODE_OAUTH_TOKEN
}

# ---------------------------------------------------------------------------------------------------- the tests

with_nextest() {
    cargo nextest run --workspace --no-fail-fast "${nextest[@]}"
}

# It runs the tests of a binary at the same time, so that the fault tests, which start services each, go apart.
with_cargo_test() {
    local status=0 list name faults=() skips=()
    list=$(cargo test --quiet --workspace --test it -- --list --format terse) || return
    while IFS= read -r name; do
        faults+=("$name") skips+=(--skip "$name")
    done < <(sed -n 's/: test$//p' <<<"$list" | grep -E "$FAULT")
    if [[ $selection != fault ]]; then
        cargo test --workspace --no-fail-fast "${cargo_test[@]}" -- --exact "${skips[@]}" || status=$?
    fi
    if ((${#faults[@]})); then
        cargo test --workspace --no-fail-fast --test it -- --test-threads=1 --exact "${faults[@]}" || status=$?
    fi
    return "$status"
}

# They start servers of their own, in the embedded mode.
in_browser() {
    local chromium
    cargo build --bin sluice || return
    chromium=$(command -v chromium) || return
    (cd web && SLUICE_TEST_CHROMIUM=$chromium npm test)
}

# Keeps what is shown, to count in it.
shown() { "$@" 2>&1 | tee -ai "$run/output"; }

totals() {
    sed 's/\x1b\[[0-9;]*m//g' "$run/output" | awk -v seconds="$((SECONDS - from))" '
        / Summary \[|^test result:|^ +[0-9]+ (passed|failed|flaky|did not run|skipped)/ {
            for (i = 1; i < NF; i++) {
                what = $(i + 1)
                if (what ~ /^passed/) passed += $i
                else if (what ~ /^(failed|timed)/) failed += $i
                else if (what ~ /^(skipped|ignored)/) skipped += $i
            }
        }
        END { printf "Tests: %d passed, %d failed, %d not run, in %d s.\n", passed, failed, skipped, seconds }'
}

if [[ $selection == web ]]; then
    "$packages" compiler chromium
    in_browser
    exit
fi
"$packages" compiler postgres rabbitmq redis python
if [[ $selection == all ]]; then "$packages" chromium; fi

mkdir -p "$work"
remove_stale_runs
run=$(mktemp -d "$work/run.XXXXXX")
chmod 755 "$run" # Postgres may run as another user than this.
exec {lock}>"$run/lock"
flock "$lock"
trap end_run EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The services come up while the tests are compiled.
"$services" --dir "$run/services" start {lock}>&- &
starting=$!
install_claude
install_sdks
install_verifiers
if cargo nextest --version >/dev/null 2>&1; then
    runner=with_nextest
    cargo nextest run --workspace --no-run
else
    runner=with_cargo_test
    cargo test --workspace --no-run
fi
if [[ $selection == limits ]]; then cargo build --release --bin sluice; fi
wait "$starting"
starting=
set_environment

status=0
shown "$runner" || status=$?
if [[ $selection == all ]]; then
    shown cargo test --workspace --doc || status=$?
    shown in_browser || status=$?
fi
totals
exit "$status"
