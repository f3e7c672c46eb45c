#!/bin/sh
# Fills an image. Runs inside a build, as the build's root, started by the %post
# section that plan.py writes; constant, POSIX sh only (dash, busybox).
#
# Reads from $KIT, which is mounted read-only and holds no code of the user's except
# post.sh: apt.txt, requirements.txt, post.sh, python.txt (expected version), apt.conf,
# site.env (NAME=value lines), uv (the host's program). $KIT/work is scratch, gone
# after the build. Tells what it does by lines that builder.py reads:
#   @@stage NAME           a stage begins
#   @@run COMMAND          a command begins
#   @@fail STAGE CODE TEXT why it stops
set -eu
umask 022
KIT=/.gc-apptainer

stage() { printf '@@stage %s\n' "$1"; }

run() {
    printf '@@run %s\n' "$*"
    "$@"
}

fail() {
    printf '@@fail %s %s %s\n' "$1" "$2" "$3"
    exit 1
}

# Values reach the environment as they are; no shell ever evaluates them.
load_environment() {
    while IFS= read -r line; do
        export "${line?}"
    done <"$KIT/site.env"
}

find_python() {
    PYTHON=$(command -v python3 || command -v python || true)
}

# $1: what to do where there is no Python
check_python() {
    find_python
    [ -s "$KIT/python.txt" ] || return 0
    read -r wanted <"$KIT/python.txt"
    if [ -z "$PYTHON" ]; then
        [ "$1" = tolerate ] || fail pip no-python "the base image has no Python, $wanted is asked for"
        return 0
    fi
    found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ "$found" = "$wanted" ] ||
        fail pip python-mismatch "the base image has Python $found ($PYTHON), $wanted is asked for"
}

apt_get() {
    run apt-get -c "$KIT/apt.conf" "$@"
}

stage_apt() {
    [ -s "$KIT/apt.txt" ] || return 0
    stage apt
    command -v apt-get >/dev/null || fail apt no-apt "the base image has no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    set --
    while IFS= read -r package; do
        set -- "$@" "$package"
    done <"$KIT/apt.txt"
    apt_get update
    apt_get install --no-install-recommends -y "$@"
    apt_get clean
    rm -rf /var/lib/apt/lists/*
}

stage_pip() {
    [ -s "$KIT/requirements.txt" ] || return 0
    stage pip
    [ -n "$PYTHON" ] || fail pip no-python "the base image has no Python to install packages for"
    if "$KIT/uv" --version >/dev/null 2>&1; then
        run "$KIT/uv" pip install --python "$PYTHON" --break-system-packages \
            --compile-bytecode ${PIP_NO_INDEX:+--no-index} -r "$KIT/requirements.txt"
    elif "$PYTHON" -m pip --version >/dev/null 2>&1; then
        run "$PYTHON" -m pip install -r "$KIT/requirements.txt"
    else
        fail pip no-pip "uv does not run in the base image, and its Python has no pip"
    fi
}

stage_post() {
    [ -s "$KIT/post.sh" ] || return 0
    stage post
    cd /
    run /bin/sh -eux "$KIT/post.sh"
}

load_environment
check_python tolerate
stage_apt
check_python demand
stage_pip
stage_post
