#!/usr/bin/env bash
# Finds the programs that development needs, and installs the Debian packages of those that are missing.
#
#   packages.sh NAME...     install what is missing of: compiler postgres rabbitmq redis python chromium
#
# Sourced by the other scripts here, it only defines the functions that find things.
set -euo pipefail

# The directory of the newest Postgres server programs. Debian keeps them off PATH, one directory a version.
postgres_bin() {
    local dirs dir
    mapfile -t dirs < <(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV)
    dir=$(dirname "$(command -v postgres || echo /)")
    for dir in "${dirs[@]}" "$dir"; do
        if [[ -x $dir/postgres && -x $dir/initdb && -x $dir/pg_isready ]]; then
            echo "$dir"
            return
        fi
    done
    return 1
}

# The broker's own start script. The one on PATH in Debian switches to the system's user, configuration and data.
rabbitmq_server() {
    local file=/usr/lib/rabbitmq/bin/rabbitmq-server
    [[ -x $file ]] && command -v erl epmd >/dev/null && echo "$file"
}

redis_server() { command -v redis-server; }

chromium_browser() { command -v chromium; }

# One that can make virtual environments with pip in them, which Debian packages apart.
python_with_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

c_compiler() { command -v cc && printf '#include <stdlib.h>\n' | cc -E - -o /dev/null 2>/dev/null; }

packages_of() {
    case $1 in
        compiler) c_compiler >/dev/null || echo gcc libc6-dev ;;
        postgres) postgres_bin >/dev/null || echo postgresql ;;
        rabbitmq) rabbitmq_server >/dev/null || echo rabbitmq-server ;;
        redis) redis_server >/dev/null || echo redis-server ;;
        python) python_with_venv >/dev/null 2>&1 || echo python3 python3-venv ;;
        # With a font for the pages that are in Chinese.
        chromium) chromium_browser >/dev/null || echo chromium fonts-wqy-microhei ;;
        *) echo "packages.sh: unknown name '$1'" >&2 && return 64 ;;
    esac
}

# Keeps the package scripts from starting system services, unless this machine has its own rule about that.
# It is a file for the length of the installation, because that is the one switch that Debian has.
# shellcheck disable=SC2016 # It is expanded by the shell that runs as root.
readonly INSTALL='
set -e
rule=/usr/sbin/policy-rc.d
if [ ! -e "$rule" ]; then
    trap "rm -f $rule" EXIT
    trap "exit 130" INT TERM HUP
    printf "#!/bin/sh\nexit 101\n" >"$rule"
    chmod 755 "$rule"
fi
apt-get -qq update
said=$(apt-get -qq install --no-install-recommends "$@" 2>&1) || { printf "%s\n" "$said"; exit 1; }
'

install_missing() {
    local name of packages=()
    for name in "$@"; do
        of=$(packages_of "$name")
        # shellcheck disable=SC2206 # A list of package names, split on purpose.
        packages+=($of)
    done
    ((${#packages[@]})) || return 0

    local by_hand="apt-get update && apt-get install --no-install-recommends ${packages[*]}"
    local as_root=()
    if ! command -v apt-get >/dev/null; then
        echo "Missing here, and there is no apt-get to install it. On Debian or Ubuntu it would be: $by_hand" >&2
        return 1
    elif ((EUID)); then
        # Without a terminal, sudo must not ask for a password.
        if [[ -t 0 ]]; then as_root=(sudo); else as_root=(sudo -n); fi
        if ! command -v sudo >/dev/null || ! "${as_root[@]}" true; then
            printf '%s\n' "Missing packages, and no right to install them. An administrator must run this:" "    $by_hand" >&2
            return 1
        fi
    fi

    echo "installing: ${packages[*]}" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c "$INSTALL" sh "${packages[@]}" >&2 </dev/null
    for name in "$@"; do
        of=$(packages_of "$name")
        if [[ -n $of ]]; then echo "$of: installed, but what is needed of it is still not there" >&2 && return 1; fi
    done
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    install_missing "$@"
fi
