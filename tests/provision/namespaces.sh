# shellcheck shell=bash
# What the kernel must allow for Apptainer without privileges: FUSE, user namespaces, sub-ids.

SUBID_COUNT=65536

# Everyone who starts Apptainer in the tests.
apptainer_users() {
  id -un
  ! is_root || echo "$GCA_TEST_USER_NAME"
}

namespaces_ready() { [[ -z $(namespace_problems) ]]; }

# One line per thing that is missing, in the words of a command that mends it.
namespace_problems() {
  local user
  [[ -r /dev/fuse && $(stat -c %a /dev/fuse) == 666 ]] || echo "chmod 0666 /dev/fuse"
  [[ $(cat /proc/sys/user/max_user_namespaces) -gt 0 ]] || echo "sysctl user.max_user_namespaces=15000"
  for user in $(apptainer_users); do
    has_subids "$user" /etc/subuid && has_subids "$user" /etc/subgid ||
      echo "add \"$user:$(next_subid):$SUBID_COUNT\" to /etc/subuid and /etc/subgid"
  done
  user_namespace_works || echo "allow user namespaces ($(namespace_switches))"
  ! have apptainer || [[ -d $(session_folder) ]] || echo "mkdir -p $(session_folder)"
}

has_subids() { grep -qE "^($1|$(id -u "$1" 2>/dev/null || echo "$1")):[0-9]+:[0-9]{5,}$" "$2" 2>/dev/null; }

# The first number after every range given so far.
next_subid() {
  cat /etc/subuid /etc/subgid 2>/dev/null |
    awk -F: 'BEGIN { next_id = 100000 } $2 + $3 > next_id { next_id = $2 + $3 } END { print next_id }'
}

user_namespace_works() {
  local as=()
  if is_root && getent passwd "$GCA_TEST_USER_NAME" >/dev/null; then
    as=(setpriv --reuid "$GCA_TEST_USER_NAME" --regid "$GCA_TEST_USER_NAME" --init-groups)
  fi
  "${as[@]}" unshare --user --map-root-user true 2>/dev/null
}

# Distributions have their own switches for the same thing; name the ones that exist here.
namespace_switches() {
  local found=()
  [[ ! -e /proc/sys/kernel/apparmor_restrict_unprivileged_userns ]] ||
    found+=("sysctl kernel.apparmor_restrict_unprivileged_userns=0")
  [[ ! -e /proc/sys/kernel/unprivileged_userns_clone ]] ||
    found+=("sysctl kernel.unprivileged_userns_clone=1")
  [[ ${#found[@]} -gt 0 ]] || found=("a container or chroot here forbids them")
  echo "${found[*]}"
}

# Apptainer mounts its session there; packages make the folder, unpacked files may not.
session_folder() {
  local folder
  folder=$(apptainer buildcfg 2>/dev/null | sed -n 's/^SESSIONDIR=//p')
  echo "${folder:-/var/lib/apptainer/mnt/session}"
}

namespaces_make() {
  local problems
  chmod 0666 /dev/fuse || advise "No /dev/fuse: load it (modprobe fuse), or start the container with --device /dev/fuse."
  mkdir -p "$(session_folder)"
  local user
  for user in $(apptainer_users); do add_subids "$user"; done
  [[ $(cat /proc/sys/user/max_user_namespaces) -gt 0 ]] || sysctl -w user.max_user_namespaces=15000 || true
  problems=$(namespace_problems | paste -sd';' -)
  [[ -z $problems ]] || advise "The kernel still refuses: $problems"
}

add_subids() {
  local user=$1 first
  first=$(next_subid)
  has_subids "$user" /etc/subuid || echo "$user:$first:$SUBID_COUNT" >>/etc/subuid
  has_subids "$user" /etc/subgid || echo "$user:$first:$SUBID_COUNT" >>/etc/subgid
}
