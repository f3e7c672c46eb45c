# shellcheck shell=bash
# System packages. Root installs them; what an ordinary user lacks goes to admin.sh.

COMMON_PACKAGES=(squashfs-tools squashfuse fuse-overlayfs fuse3 fakeroot uidmap e2fsprogs fuse2fs
  skopeo umoci mmdebstrap python3-venv ca-certificates docker-registry git util-linux procps)
TEST_PACKAGES=(rabbitmq-server btrfs-progs)
DNF_PACKAGES=(squashfs-tools squashfuse fuse-overlayfs fuse3 fakeroot shadow-utils e2fsprogs
  skopeo python3 ca-certificates git util-linux procps-ng)

# command:package, for an ordinary user, who may have got them in any way.
COMMON_COMMANDS=(mksquashfs:squashfs-tools squashfuse:squashfuse fuse-overlayfs:fuse-overlayfs
  fusermount3:fuse3 fakeroot:fakeroot newuidmap:uidmap mkfs.ext3:e2fsprogs fuse2fs:fuse2fs git:git)
BASE_COMMANDS=(skopeo:skopeo umoci:umoci mmdebstrap:mmdebstrap docker-registry:docker-registry)

packages_wanted() {
  if have dnf && ! have apt-get; then
    printf '%s\n' "${DNF_PACKAGES[@]}"
  else
    printf '%s\n' "${COMMON_PACKAGES[@]}"
    [[ $PROFILE != test ]] || printf '%s\n' "${TEST_PACKAGES[@]}"
  fi
}

packages_ready() {
  if have dpkg-query; then
    [[ -z $(missing_debs) ]]
  else
    packages_wanted | xargs rpm -q >/dev/null
  fi
}

missing_debs() {
  local package
  for package in $(packages_wanted); do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
      echo "$package"
  done
}

missing_commands() {
  local pair commands=("${COMMON_COMMANDS[@]}")
  base_source_is_hub || commands+=("${BASE_COMMANDS[@]}")
  for pair in "${commands[@]}"; do
    have "${pair%%:*}" || echo "${pair#*:}"
  done
  /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  [[ $PROFILE != test || -d /usr/lib/rabbitmq ]] || echo rabbitmq-server
}

packages_make() {
  if have apt-get; then
    install_debs
  elif have dnf; then
    packages_wanted | xargs dnf install -y
  else
    advise "This system has neither apt nor dnf: install $(packages_wanted | xargs) by hand."
  fi
}

install_debs() {
  export DEBIAN_FRONTEND=noninteractive
  trap restore_policy EXIT
  forbid_daemons
  apt-get -q update
  # shellcheck disable=SC2046  # one word per package
  apt-get -q install -y --no-install-recommends $(missing_debs) ||
    advise "apt-get could not install the packages: check the apt sources, then run this again."
}

# dpkg would start RabbitMQ and the registry on their usual ports; policy-rc.d is how Debian
# lets an admin forbid that. One that is there already is put back as it was.
POLICY=/usr/sbin/policy-rc.d

forbid_daemons() {
  [[ ! -e $POLICY || -e $POLICY.gca-saved ]] || cp -a "$POLICY" "$POLICY.gca-saved"
  printf '#!/bin/sh\nexit 101\n' >"$POLICY"
  chmod 0755 "$POLICY"
}

restore_policy() {
  if [[ -e $POLICY.gca-saved ]]; then
    mv -f "$POLICY.gca-saved" "$POLICY"
  else
    rm -f "$POLICY"
  fi
}
