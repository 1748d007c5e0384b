#!/usr/bin/env bash
# Install those servers and tools of the tests that are missing, and those named as arguments
# (program:package).
# Nothing is started here: the tests start private instances on free ports.
set -euo pipefail

# Each program, and the Debian package that has it.
needed=(
    rabbitmq-server:rabbitmq-server
    redis-server:redis-server
    zstd:zstd
    bsdtar:libarchive-tools
    strace:strace
    openssl:openssl
    mkfs.ext2:e2fsprogs
    mount:mount
    ceph-mon:ceph-mon
    ceph-osd:ceph-osd
    radosgw:radosgw
    ceph-authtool:ceph-common
    mariadbd:mariadb-server
    initdb:postgresql
    setpriv:util-linux
    systemd-analyze:systemd
    promtool:prometheus
    "$@"
)

PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
for folder in /usr/lib/postgresql/*/bin; do  # Debian keeps the programs of each version apart
    PATH=$PATH:$folder
done
packages=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
done
[[ ${#packages[@]} -gt 0 ]] || exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
    as_root=(sudo -n)
    if ! sudo -n true 2>/dev/null; then
        echo "The tests need ${packages[*]}, and installing them needs root or sudo without a password." >&2
        echo "Ask someone who may to run: apt-get install ${packages[*]}" >&2
        exit 1
    fi
fi
if ! command -v apt-get >/dev/null; then
    echo "The tests need what Debian calls ${packages[*]}, and there is no apt-get here." >&2
    echo "Install them with this system's package manager, then run this again." >&2
    exit 1
fi

log=$(mktemp)
cleanup=("$log")
trap '"${as_root[@]}" rm -f "${cleanup[@]}"' EXIT

# Debian starts a server as soon as it is installed, on its well-known port, unless a policy says no.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    cleanup+=("$policy")
    "${as_root[@]}" chmod 755 "$policy"
fi

install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --quiet --no-install-recommends "${packages[@]}"
}
update() {
    "${as_root[@]}" apt-get update --quiet
}
echo "Installing ${packages[*]} for the tests"
# If the first try fails, the package lists are missing or old.
if ! install >"$log" 2>&1 && ! { update && install; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "The tests need ${packages[*]}, and apt-get could not install them (see its messages above)." >&2
    exit 1
fi
