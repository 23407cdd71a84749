#!/usr/bin/env bash
# Proves the promise of the README on a fresh Debian 12 that has Rust, Node and apt: `make run` serves, a prompt is
# answered, `make test` passes. The Debian is a chroot in DIR; nothing outside of DIR changes, and all that it starts
# ends with it.
#
#   fresh-debian.sh [--worktree] [--only-chroot] DIR [root|user]
#
#   root, user      who does it: root (the default), or a user with sudo
#   --worktree      take the files as they are, instead of the last commit
#   --only-chroot   make the Debian, look whether its tools run, and stop
#
# Needs root, debootstrap and unshare. How this machine reaches the network (mirrors, proxies, certificates,
# registries) is taken over from it. DIR keeps the Debian packed, so that each run starts from a fresh one.
set -euo pipefail

# The README's prerequisites besides Rust and Node, and what this script itself uses.
readonly PACKAGES=ca-certificates,curl,git,make

die() { echo "fresh-debian: $*" >&2 && exit 1; }
step() { echo "== $*" >&2; }

# ---------------------------------------------------------------------------------------------------- inside
# The second half of this file runs inside, as the user, with the repository's clone as working directory.

timed() {
    local from=$SECONDS what=$1
    shift
    step "$what"
    "$@" || die "$what: failed"
    took+=("$(printf '%5d s  %s' $((SECONDS - from)) "$what")")
}

# `make run`, until it serves.
serve() {
    make run >"$log" 2>&1 </dev/null &
    server=$!
    until curl -fs "$url/health/live" >/dev/null; do
        kill -0 "$server" 2>/dev/null || { tail -n 40 "$log" >&2 && return 1; }
        sleep 0.5
    done
}

ask() {
    local key=$HOME/.local/share/sluice/admin.key id job
    local curl=(curl -fsS)
    if [[ -r $key ]]; then curl+=(-H "Authorization: Bearer $(<"$key")"); fi
    id=$("${curl[@]}" "$url/api/jobs" -H 'Content-Type: application/json' -d '{"prompt": "Say hello."}' |
        node -p 'JSON.parse(require("fs").readFileSync(0)).id')
    job=$("${curl[@]}" "$url/api/jobs/$id?wait=30s")
    echo "$job" >&2
    node -e 'process.exit(JSON.parse(process.argv[1]).state === "succeeded" ? 0 : 1)' "$job"
}

inside() {
    url=http://127.0.0.1:$1 log=$HOME/make-run.log took=()
    SLUICE_API__LISTEN=127.0.0.1:$1 timed "make run, until it serves" serve
    timed "a prompt, until its answer" ask
    kill -INT -- "-$server"
    wait "$server" || true
    SLUICE_API__LISTEN=127.0.0.1:$1 timed "make run again, until it serves" serve
    timed "a prompt, until its answer" ask
    kill -INT -- "-$server"
    wait "$server" || true
    timed "make test" make test
    timed "make test again" make test
    printf '%s\n' "As $(id -un):" "${took[@]}"
}

if [[ ${1:-} == --inside ]]; then
    set -m # `make run` gets a process group, so that an interrupt reaches it as Ctrl-C does.
    inside "$2"
    exit
fi

# ---------------------------------------------------------------------------------------------------- outside

worktree='' only_chroot=''
while [[ ${1:-} == --* ]]; do
    case $1 in
        --worktree) worktree=1 ;;
        --only-chroot) only_chroot=1 ;;
        *) die "unknown option $1" ;;
    esac
    shift
done
dir=$(realpath -m "${1:?usage: fresh-debian.sh [--worktree] [--only-chroot] DIR [root|user]}")
who=${2:-root}
case $who in
    root) name=root home=/root ;;
    user) name=dev home=/home/dev ;;
    *) die "who is '$who'? root or user" ;;
esac
((!EUID)) || die "must run as root"
for tool in debootstrap unshare cargo node npm git; do
    command -v "$tool" >/dev/null || die "needs $tool"
done
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
debian=$dir/$who packed=$dir/$who.tar

# The environment of the inside: what says how to reach the network, and no secret.
environment=()
while IFS= read -r -d '' variable; do
    case ${variable%%=*} in
        *TOKEN* | *AUTH* | *PASSWORD* | *SECRET*) ;;
        [Hh][Tt][Tt][Pp]_[Pp][Rr][Oo][Xx][Yy] | [Hh][Tt][Tt][Pp][Ss]_[Pp][Rr][Oo][Xx][Yy] | [Nn][Oo]_[Pp][Rr][Oo][Xx][Yy] | \
            [Aa][Ll][Ll]_[Pp][Rr][Oo][Xx][Yy] | SSL_CERT_FILE | SSL_CERT_DIR | CURL_CA_BUNDLE | GIT_SSL_CAINFO | NODE_EXTRA_CA_CERTS | \
            CARGO_HTTP_* | CARGO_NET_* | CARGO_REGISTRIES_* | CARGO_SOURCE_*)
            environment+=("$variable")
            ;;
    esac
done < <(env -0)
for setting in registry cafile proxy https-proxy noproxy; do
    value=$(npm config get "$setting" 2>/dev/null)
    if [[ -n $value && $value != null && $value != undefined ]]; then environment+=("npm_config_${setting//-/_}=$value"); fi
done

# The file or directory at PATH here, at the same path there.
bring() {
    if [[ -d $1 ]]; then
        mkdir -p "$debian$1"
        cp -rL "$1/." "$debian$1/" 2>/dev/null || true # A certificate directory may hold dead links.
    elif [[ -f $1 ]]; then
        install -D -m 644 "$1" "$debian$1"
    fi
}

debian_sources() {
    # shellcheck disable=SC2016 # These are apt's variables.
    apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(CODENAME)|$(COMPONENT)' 'Created-By: Packages' |
        sed -n 's/^Debian|\(.*\)|\(bookworm[^|]*\)|\(.*\)$/deb \1 \2 \3/p'
}

pack_debian() {
    local include=$PACKAGES mirror
    if [[ $who == user ]]; then include+=,sudo; fi
    mirror=$(debian_sources | awk '$3 == "bookworm" { print $2; exit }')
    # shellcheck disable=SC2086 # No argument where there is no mirror to take over.
    debootstrap --variant=minbase --include="$include" bookworm "$debian" $mirror >"$dir/debootstrap.log" ||
        { tail -n 5 "$dir/debootstrap.log" >&2 && die "debootstrap failed"; }
    if [[ $who == user ]]; then
        chroot "$debian" useradd --create-home --shell /bin/bash "$name"
        echo "$name ALL=(ALL) NOPASSWD: ALL" >"$debian/etc/sudoers.d/$name"
    fi
    tar -C "$debian" --one-file-system -cf "$packed.new" .
    mv "$packed.new" "$packed"
}

make_debian() {
    mkdir -p "$dir"
    rm -rf --one-file-system "$debian"
    if [[ ! -f $packed ]]; then pack_debian; fi
    mkdir -p "$debian"
    tar -C "$debian" -xpf "$packed"
}

take_over_network() {
    local variable
    if [[ -n $(debian_sources) ]]; then debian_sources >"$debian/etc/apt/sources.list"; fi
    apt-config dump | grep -iE '^Acquire::(https?|Retries|ForceIPv[46])(::| )' >"$debian/etc/apt/apt.conf.d/99as-outside" || true
    cp -L /etc/hosts /etc/resolv.conf "$debian/etc/"
    bring /usr/local/share/ca-certificates
    bring /etc/ssl/certs/ca-certificates.crt
    for variable in "${environment[@]}"; do
        if [[ ${variable#*=} == /* ]]; then bring "${variable#*=}"; fi
    done
    # Cargo's own file may say where its registry is; it is no place for secrets.
    if [[ -f ${CARGO_HOME:-$HOME/.cargo}/config.toml ]]; then
        install -D -m 644 "${CARGO_HOME:-$HOME/.cargo}/config.toml" "$debian$home/.cargo/config.toml"
        chroot "$debian" chown -R "$name:" "$home/.cargo"
    fi
}

bring_node() {
    local npm
    npm=$(dirname "$(dirname "$(realpath "$(command -v npm)")")")
    install -D "$(realpath "$(command -v node)")" "$debian/usr/local/bin/node"
    mkdir -p "$debian/usr/local/lib/node_modules"
    cp -rT "$npm" "$debian/usr/local/lib/node_modules/npm"
    ln -sf ../lib/node_modules/npm/bin/npm-cli.js "$debian/usr/local/bin/npm"
    ln -sf ../lib/node_modules/npm/bin/npx-cli.js "$debian/usr/local/bin/npx"
}

bring_repository() {
    if [[ -n $worktree ]]; then
        mkdir -p "$debian$home/sluice"
        git -C "$repo" ls-files -z --cached --others --exclude-standard --deduplicate |
            tar -C "$repo" --null --files-from=- --ignore-failed-read -cf - 2>/dev/null |
            tar -C "$debian$home/sluice" --no-same-owner -xf -
        chroot "$debian" chown -R "$name:" "$home/sluice"
    else
        git -C "$repo" bundle create --quiet "$debian/tmp/sluice.bundle" HEAD
        chmod 644 "$debian/tmp/sluice.bundle"
        as_user git -c advice.detachedHead=false clone --quiet /tmp/sluice.bundle "$home/sluice"
    fi
}

# Runs a command in the Debian, as the user. It sees its own processes only, and they end with it. Rust is the one
# of this machine, read-only.
as_user() {
    # shellcheck disable=SC2016 # It is expanded inside.
    unshare --mount --pid --fork --kill-child bash -c '
        set -euo pipefail
        debian=$1 rust=$2 name=$3
        shift 3
        mount -t proc proc "$debian/proc"
        mount --rbind /dev "$debian/dev"
        mkdir -p "$debian/opt/rust"
        mount --bind "$rust" "$debian/opt/rust"
        mount -o remount,bind,ro "$debian/opt/rust"
        exec chroot --userspec="$name" --groups="$name" "$debian" "$@"
    ' bash "$debian" "$(rustc --print sysroot)" "$name" \
        /usr/bin/env -i HOME="$home" USER="$name" LOGNAME="$name" LANG=C.UTF-8 TERM=dumb \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/rust/bin "${environment[@]}" "$@" </dev/null
}

free_port() {
    local port
    while port=$((20000 + SRANDOM % 10000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

from=$SECONDS
step "making a Debian in $debian"
make_debian
take_over_network
bring_node
# shellcheck disable=SC2016 # It is expanded inside.
versions=$(as_user bash -c '. /etc/os-release; echo "$PRETTY_NAME, $(cargo --version), node $(node --version), npm $(npm --version)"')
step "ready after $((SECONDS - from)) s: $versions"
if [[ -n $only_chroot ]]; then exit; fi

bring_repository
install -m 755 "${BASH_SOURCE[0]}" "$debian/tmp/fresh-debian.sh"
as_user bash -c "cd ~/sluice && exec /tmp/fresh-debian.sh --inside $(free_port)"
