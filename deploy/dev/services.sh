#!/usr/bin/env bash
# A private set of Postgres, RabbitMQ and Redis for development and tests: own data, own free ports, loopback only.
# It stands beside system services and beside other sets, and it outlives the terminal that started it.
#
#   services.sh [--dir DIR] COMMAND [NAME...]          NAME is postgres, rabbitmq or redis; default: all three
#
#   install [NAME...]   install the Debian packages that are missing
#   start [NAME...]     start what is not running, return when it serves
#   env                 print the addresses, as settings for sluice: SLUICE_POSTGRES__URL=... and so on
#   status [NAME...]    say what runs; succeeds only when all of it does
#   stop [NAME...]      stop cleanly, and keep the data
#   kill NAME...        end it as a crash does: every process at once, with SIGKILL; then start brings it back
#   remove [NAME...]    end it without ceremony and delete its data
#
# DIR holds everything (default: .sluice-dev/services in the repository). Ports are chosen at the first start and kept,
# so that a service comes back after stop or kill where its clients look for it.

# shellcheck disable=SC2317 # What a service can do is called by its name: <service>_start and so on.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=packages.sh
source "$here/packages.sh"

readonly ALL=(postgres rabbitmq redis)
readonly -A PORTS=([postgres]=1 [rabbitmq]=5 [redis]=1)
readonly START_TIMEOUT_S=180 STOP_TIMEOUT_S=60
dir="$here/../../.sluice-dev/services"

say() { echo "services: $*" >&2; }
die() { say "$*" && exit 1; }

# ---------------------------------------------------------------------------------------------------- processes
# A process is known by its pid and its start time, so that a pid used again by a stranger is not taken for ours.

start_time_of() {
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The name, in parentheses, may hold anything; what follows it is the state, the parent, and so on.
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    [[ $1 != [ZX] ]] && echo "${20}"
}

# Prints the pid that FILE names, if that very process still runs.
running() {
    local pid since
    { read -r pid since <"$1"; } 2>/dev/null || return 1
    [[ $(start_time_of "$pid") == "$since" ]] && echo "$pid"
}

# launch PIDFILE LOG WORKDIR COMMAND...: in a session of its own, with nothing of the caller's: no environment, no
# open file. A caller that reads our output to its end would otherwise wait for the daemon.
launch() {
    local pidfile=$1 log=$2 workdir=$3
    shift 3
    (
        cd "$workdir"
        for fd in /proc/self/fd/*; do
            fd=${fd##*/}
            if ((fd > 2 && fd != 255)); then exec {fd}>&-; fi
        done
        exec setsid env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@" \
            </dev/null >>"$log" 2>&1
    ) &
    echo "$! $(start_time_of $!)" >"$pidfile"
}

# Prints the pid and all pids below it.
tree_of() {
    local stat pid parent more=1
    local -A in_tree=([$1]=1) parent_of=()
    for stat in /proc/[0-9]*/stat; do
        pid=${stat#/proc/} pid=${pid%/stat}
        { read -r stat <"$stat"; } 2>/dev/null || continue
        read -r _ parent _ <<<"${stat##*) }"
        parent_of[$pid]=$parent
    done
    while ((more)); do
        more=0
        for pid in "${!parent_of[@]}"; do
            if [[ ! -v in_tree[$pid] && -v in_tree[${parent_of[$pid]}] ]]; then
                in_tree[$pid]=1 more=1
            fi
        done
    done
    echo "${!in_tree[@]}"
}

kill_tree() {
    local pid pids
    # Stopped, it starts no new child while we look.
    if ! kill -STOP "$1" 2>/dev/null; then
        if start_time_of "$1" >/dev/null; then die "no right to end process $1"; fi
        return 0
    fi
    read -ra pids <<<"$(tree_of "$1")"
    kill -KILL "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do
        while start_time_of "$pid" >/dev/null; do sleep 0.01; done
    done
}

# ---------------------------------------------------------------------------------------------------- ports

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Ports that nobody has, below the range from which the kernel takes those of outgoing connections.
choose_ports() {
    local port
    ports=()
    while ((${#ports[@]} < PORTS[$1])); do
        port=$((15000 + SRANDOM % 17000))
        if [[ " ${ports[*]} " != *" $port "* ]] && ! answers "$port"; then ports+=("$port"); fi
    done
}

load_ports() { { read -ra ports <"$dir/$1/ports"; } 2>/dev/null; }

# ---------------------------------------------------------------------------------------------------- postgres
# Postgres refuses to run as root, so that root runs it as the user that the package made.

as_postgres=()
if ((!EUID)); then as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups --); fi

# The place of the data. A repository in a home that only root may enter keeps it elsewhere, behind a link.
postgres_place() {
    local place=$dir/postgres/cluster
    if [[ ! -e $place ]]; then
        mkdir -m 700 "$place"
        if ((!EUID)); then
            id postgres >/dev/null || die "postgres does not run as root, and there is no user 'postgres' to run it"
            chown postgres:postgres "$place"
            if ! "${as_postgres[@]}" test -w "$place" 2>/dev/null; then
                rmdir "$place"
                ln -sfn "$(mktemp -d "/var/tmp/sluice-postgres.XXXXXX")" "$place"
                chown postgres:postgres "$place/"
            fi
        fi
    fi
    realpath "$place"
}

postgres_prepare() {
    local bin place password=$dir/postgres/password
    bin=$(postgres_bin)
    place=$(postgres_place)
    [[ ! -d $place/data ]] || return 0
    (umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$password")
    cd "$place"
    rm -rf new
    "${as_postgres[@]}" "$bin/initdb" --pgdata=new --username=sluice --auth=reject --encoding=UTF8 --locale=C.UTF-8 --no-sync \
        --no-instructions >/dev/null
    printf "ALTER ROLE sluice PASSWORD '%s'\nCREATE DATABASE sluice\n" "$(<"$password")" |
        "${as_postgres[@]}" "$bin/postgres" --single -F -D new postgres >>"$dir/postgres/log" 2>&1
    # Over loopback a plain password costs a client less than SCRAM, which is slow in an unoptimised test build.
    echo 'host all all 127.0.0.1/32 password' >new/pg_hba.conf
    mv new data
}

postgres_launch() {
    local bin place
    bin=$(postgres_bin)
    place=$(postgres_place)
    # The durability of production, since the tests are about that. No socket: its path may be too long, and 127.0.0.1 does.
    launch "$dir/postgres/pid" "$dir/postgres/log" "$place" \
        "${as_postgres[@]}" "$bin/postgres" -D "$place/data" -p "${ports[0]}" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200 \
        -c fsync=on -c synchronous_commit=on -c full_page_writes=on -c timezone=UTC -c log_timezone=UTC
}

postgres_serves() {
    "$(postgres_bin)/pg_isready" -q -h 127.0.0.1 -p "${ports[0]}" -U sluice -d sluice -t 2
}

postgres_end() { kill -INT "$1"; } # Fast shutdown: open connections do not hold it up.

postgres_env() {
    echo "SLUICE_POSTGRES__URL=postgres://sluice:$(<"$dir/postgres/password")@127.0.0.1:${ports[0]}/sluice"
}

# ---------------------------------------------------------------------------------------------------- rabbitmq
# Five ports: AMQP, management, Prometheus, Erlang distribution, and an epmd of its own.

rabbitmq_prepare() {
    local home=$dir/rabbitmq
    mkdir -p "$home/home" "$home/mnesia" "$home/log"
    chmod 700 "$home/home" # Erlang keeps its cookie there.
    echo '[rabbitmq_management,rabbitmq_prometheus].' >"$home/enabled_plugins"
    : >"$home/rabbitmq-env.conf" # Empty, instead of the system's.
    cat >"$home/rabbitmq.conf" <<-CONF
		listeners.tcp.1 = 127.0.0.1:${ports[0]}
		management.tcp.ip = 127.0.0.1
		management.tcp.port = ${ports[1]}
		prometheus.tcp.ip = 127.0.0.1
		prometheus.tcp.port = ${ports[2]}
	CONF
}

rabbitmq_launch() {
    local home=$dir/rabbitmq
    # Started by us, because one that Erlang starts detaches itself, and nobody knows its pid.
    if ! running "$home/epmd.pid" >/dev/null; then
        launch "$home/epmd.pid" "$home/log/epmd" "$home" epmd -port "${ports[4]}" -address 127.0.0.1
        until answers "${ports[4]}"; do
            running "$home/epmd.pid" >/dev/null || return 0 # Then the broker does not start either, and is asked why.
            sleep 0.01
        done
    fi
    launch "$home/pid" "$home/log/start" "$home" \
        HOME="$home/home" \
        RABBITMQ_NODENAME="sluice-${ports[0]}@localhost" \
        RABBITMQ_NODE_PORT="${ports[0]}" \
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
        RABBITMQ_DIST_PORT="${ports[3]}" \
        ERL_EPMD_PORT="${ports[4]}" \
        ERL_EPMD_ADDRESS=127.0.0.1 \
        ERL_CRASH_DUMP="$home/log/erl_crash.dump" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
        RABBITMQ_CONF_ENV_FILE="$home/rabbitmq-env.conf" \
        RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
        RABBITMQ_ADVANCED_CONFIG_FILE="$home/advanced.config" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" \
        RABBITMQ_MNESIA_BASE="$home/mnesia" \
        RABBITMQ_LOG_BASE="$home/log" \
        RABBITMQ_PID_FILE="$home/rabbitmq.pid" \
        "$(rabbitmq_server)"
}

# It greets an AMQP client, and the management plugin knows the user.
rabbitmq_serves() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/${ports[0]}" &&
            printf 'AMQP\000\000\011\001' >&3 &&
            LC_ALL=C IFS= read -r -t 2 -N 1 frame <&3 &&
            [[ $frame == $'\001' ]] &&
            exec 4<>"/dev/tcp/127.0.0.1/${ports[1]}" &&
            printf 'GET /api/whoami HTTP/1.0\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\r\n' >&4 &&
            read -r -t 5 _ status _ <&4 &&
            [[ $status == 200 ]]
    ) 2>/dev/null
}

rabbitmq_end() { kill -TERM "$1"; }

rabbitmq_env() {
    echo "SLUICE_RABBITMQ__URL=amqp://guest:guest@127.0.0.1:${ports[0]}/%2f"
    echo "SLUICE_RABBITMQ__MANAGEMENT_URL=http://127.0.0.1:${ports[1]}"
}

# ---------------------------------------------------------------------------------------------------- redis

redis_prepare() { :; }

redis_launch() {
    launch "$dir/redis/pid" "$dir/redis/log" "$dir/redis" \
        "$(redis_server)" --port "${ports[0]}" --bind 127.0.0.1 --appendonly no --save '' --dir "$dir/redis"
}

redis_serves() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/${ports[0]}" &&
            printf 'PING\r\n' >&3 &&
            read -r -t 2 answer <&3 &&
            [[ $answer == +PONG* ]]
    ) 2>/dev/null
}

redis_end() { kill -TERM "$1"; }

redis_env() { echo "SLUICE_REDIS__URL=redis://127.0.0.1:${ports[0]}/"; }

# ---------------------------------------------------------------------------------------------------- commands

log_of() {
    if [[ $1 == rabbitmq ]]; then echo "$dir/rabbitmq/log"; else echo "$dir/$1/log"; fi
}

since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f s", to - from }'; }

# Waits until it serves; fails when its process has ended or the time is over.
until_serves() {
    local deadline=$((SECONDS + START_TIMEOUT_S))
    until "$1_serves"; do
        if ! running "$dir/$1/pid" >/dev/null; then return 1; fi
        if ((SECONDS > deadline)); then die "$1: does not serve after $START_TIMEOUT_S s; see $(log_of "$1")"; fi
        sleep 0.05
    done
    # Not a stranger on our port.
    running "$dir/$1/pid" >/dev/null
}

end_epmd() {
    local pid
    if pid=$(running "$dir/rabbitmq/epmd.pid"); then kill_tree "$pid"; fi
}

# One at a time starts or stops a service; the lock is given back when this process ends.
take_lock() {
    local lock
    exec {lock}>"$dir/$1/lock"
    flock "$lock"
}

start() {
    local name=$1 from=$EPOCHREALTIME ports=()
    "$(server_of "$name")" >/dev/null || die "$name is not installed; try: deploy/dev/services.sh install $name"
    mkdir -p "$dir/$name"
    take_lock "$name"

    if running "$dir/$name/pid" >/dev/null; then
        load_ports "$name"
        until_serves "$name" || die "$name: ended while we waited for it; see $(log_of "$name")"
        say "$name: already runs on port ${ports[0]}"
        return
    fi

    # Ports of a service that has never served may turn out to be taken, by a set that started at the same moment.
    for _ in 1 2 3; do
        if ! load_ports "$name"; then choose_ports "$name"; fi
        "${name}_prepare"
        "${name}_launch"
        if until_serves "$name"; then
            echo "${ports[*]}" >"$dir/$name/ports"
            say "$name: serves on port ${ports[0]} after $(since "$from")"
            return
        fi
        if [[ $name == rabbitmq ]]; then end_epmd; fi
        if [[ -e $dir/$name/ports ]]; then break; fi
    done
    die "$name: ended while it started; see $(log_of "$name")"
}

server_of() { if [[ $1 == postgres ]]; then echo postgres_bin; else echo "${1}_server"; fi; }

stop() {
    local name=$1 from=$EPOCHREALTIME pid deadline=$((SECONDS + STOP_TIMEOUT_S))
    [[ -d $dir/$name ]] || return 0
    take_lock "$name"
    if pid=$(running "$dir/$name/pid"); then
        "${name}_end" "$pid"
        while running "$dir/$name/pid" >/dev/null; do
            if ((SECONDS > deadline)); then
                say "$name: still runs after $STOP_TIMEOUT_S s, so it is killed"
                kill_tree "$pid"
            fi
            sleep 0.02
        done
        say "$name: stopped after $(since "$from")"
    fi
    if [[ $name == rabbitmq ]]; then end_epmd; fi
    rm -f "$dir/$name/pid"
}

kill_hard() {
    local name=$1 pid
    # A fault test that hits nothing would prove nothing.
    pid=$(running "$dir/$name/pid") || die "$name: does not run, so there is nothing to kill"
    kill_tree "$pid"
    if [[ $name == rabbitmq ]]; then end_epmd; fi
    # Postgres takes a dead process that nobody has reaped yet for a living one, and would not start. All are dead.
    if [[ $name == postgres ]]; then rm -f "$dir/postgres/cluster/data/postmaster.pid"; fi
    rm -f "$dir/$name/pid"
    say "$name: killed"
}

remove() {
    local name=$1 pid place
    # Where no service of ours has been, nothing is deleted.
    [[ -e $dir/$name/lock ]] || return 0
    take_lock "$name"
    if pid=$(running "$dir/$name/pid"); then
        if [[ $name == postgres ]]; then
            # An immediate shutdown, not SIGKILL: only so does it give its shared memory back.
            kill -QUIT "$pid"
            while running "$dir/$name/pid" >/dev/null; do sleep 0.02; done
        else
            kill_tree "$pid"
        fi
    fi
    if [[ $name == rabbitmq ]]; then end_epmd; fi
    if [[ $name == postgres && -L $dir/$name/cluster ]]; then
        place=$(realpath "$dir/$name/cluster")
        rm -rf "$place"
    fi
    rm -rf "${dir:?}/$name"
    say "$name: removed"
}

status() {
    local name pid ports all_run=0
    for name in "$@"; do
        if ! load_ports "$name"; then
            echo "$name: never started" && all_run=1
        elif pid=$(running "$dir/$name/pid"); then
            echo "$name: runs as process $pid on port ${ports[0]}"
        else
            echo "$name: stopped" && all_run=1
        fi
    done
    return "$all_run"
}

print_env() {
    local name ports
    for name in "${ALL[@]}"; do
        if load_ports "$name"; then "${name}_env"; fi
    done
}

# Runs FUNCTION once for each name, all at the same time; fails if one of them does.
each() {
    local function=$1 name pid pids=() failed=0
    shift
    trap 'kill "${pids[@]}" 2>/dev/null || true; exit 130' INT TERM
    for name in "$@"; do
        "$function" "$name" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    return "$failed"
}

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

main() {
    local words=() command names
    while (($#)); do
        case $1 in
            --dir) dir=${2:?--dir needs a directory} && shift ;;
            --dir=*) dir=${1#--dir=} ;;
            -h | --help) words+=(help) ;;
            *) words+=("$1") ;;
        esac
        shift
    done
    command=${words[0]:-help}
    names=("${words[@]:1}")
    ((${#names[@]})) || [[ $command == kill ]] || names=("${ALL[@]}")
    for name in "${names[@]}"; do
        [[ " ${ALL[*]} " == *" $name "* ]] || die "unknown service '$name'; there are ${ALL[*]}"
    done
    [[ -r /proc/self/stat ]] || die "needs Linux; elsewhere, use compose.yml"
    umask 022
    dir=$(realpath -m "$dir")

    case $command in
        install) install_missing "${names[@]}" ;;
        start) mkdir -p "$dir" && each start "${names[@]}" ;;
        env) print_env ;;
        status) status "${names[@]}" ;;
        stop) each stop "${names[@]}" ;;
        kill) ((${#names[@]})) || die "kill: which service?" && each kill_hard "${names[@]}" ;;
        remove)
            each remove "${names[@]}"
            if [[ -d $dir ]]; then rmdir --ignore-fail-on-non-empty "$dir"; fi
            ;;
        help) usage ;;
        *) usage >&2 && exit 64 ;;
    esac
}

main "$@"
exit
