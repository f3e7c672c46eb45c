#!/bin/sh
# Fills an image as its root: over a base in a writable overlay (overlay.py), or in a
# flat build's %post (flat.py). Constant, POSIX sh only (dash, busybox).
#
# Reads from $KIT, which is mounted read-only and holds no code of the user's except
# post.sh: apt.txt, post.sh, post-build.txt (whether postBuild is to be run), apt.conf,
# environment.sh, layers.txt (markers that must be there) and marker.txt (the one to
# make), these two for overlays only. $KIT/work is scratch, gone after the build; what
# is left there on purpose: before and after (Debian packages), ended (status of what
# was run for post), apt (its lists, which may be there from a build before this).
# Tells what it does by lines that transcript.py reads:
#   @@stage NAME           a stage begins
#   @@run COMMAND          a command begins
#   @@fail STAGE CODE TEXT why it stops
set -eu
umask 022
KIT=/.gc-apptainer-build

stage() { printf '@@stage %s\n' "$1"; }

run() {
    printf '@@run %s\n' "$*"
    "$@"
}

fail() {
    printf '@@fail %s %s %s\n' "$1" "$2" "$3"
    exit 1
}

check_overlay() {
    [ -s "$KIT/marker.txt" ] || return 0
    while IFS= read -r marker; do
        [ -e "$marker" ] || fail resolve overlay-unavailable "layers are not shown here"
    done <"$KIT/layers.txt"
    read -r marker <"$KIT/marker.txt"
    { mkdir -p "${marker%/*}" && : >"$marker"; } 2>/dev/null ||
        fail resolve overlay-unavailable "nothing can be written over a base image here"
}

installed() {
    dpkg-query -W -f '${Status}\t${Package}\t${Version}\t${Architecture}\n' \
        >"$KIT/work/$1" 2>/dev/null || true
}

apt_get() {
    run apt-get -c "$KIT/work/apt/conf" "$@"
}

# debconf asks its questions once more, before anything is unpacked, for which it takes
# a quarter of a second; nobody is there to answer. Only where nothing else is hooked in.
configure_apt() {
    mkdir -p "$KIT/work/apt"
    cat "$KIT/apt.conf" >"$KIT/work/apt/conf"
    hooks=$(apt-config dump DPkg::Pre-Install-Pkgs 2>/dev/null) || return 0
    case $hooks in
    'DPkg::Pre-Install-Pkgs "";
DPkg::Pre-Install-Pkgs:: "/usr/sbin/dpkg-preconfigure --apt || true";')
        echo '#clear DPkg::Pre-Install-Pkgs;' >>"$KIT/work/apt/conf"
        ;;
    esac
}

# What apt makes of the lists it makes when it installs, too.
update() {
    for folder in lists/partial cache/archives/partial log; do
        mkdir -p "$KIT/work/apt/$folder"
    done
    apt_get update -o pkgCacheFile::Generate=false
}

stage_apt() {
    [ -s "$KIT/apt.txt" ] || return 0
    stage apt
    command -v apt-get >/dev/null || fail apt no-apt "the base image has no apt-get"
    set --
    while IFS= read -r package; do
        set -- "$@" "$package"
    done <"$KIT/apt.txt"
    export DEBIAN_FRONTEND=noninteractive
    configure_apt
    if [ -d "$KIT/work/apt/lists" ]; then
        update || rm -rf "$KIT/work/apt/lists" "$KIT/work/apt/cache"
    fi
    [ -d "$KIT/work/apt/lists" ] || update
    apt_get install --no-install-recommends --allow-downgrades -y "$@"
}

# As repo2docker does: the repository's own script, in its directory, run as a program.
post_build() {
    cd /payload || return
    for script in binder/postBuild .binder/postBuild postBuild; do
        [ ! -f "$script" ] || break
    done
    chmod +x "$script" && run "./$script"
}

ended() {
    printf '%s %s\n' "$1" "$2" >"$KIT/work/ended"
    exit "$2"
}

stage_post() {
    [ -s "$KIT/post.sh" ] || [ -s "$KIT/post-build.txt" ] || return 0
    stage post
    if [ -s "$KIT/post-build.txt" ]; then
        post_build || ended postBuild $?
    fi
    cd /
    [ -s "$KIT/post.sh" ] || return 0
    run /bin/sh -eux "$KIT/post.sh" || ended post $?
}

. "$KIT/environment.sh"
check_overlay
installed before
stage_apt
stage_post
installed after
