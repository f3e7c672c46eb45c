# shellcheck shell=bash
# What this machine's own apt configuration says: mirrors, keyring, options.
# No mirror is ever named in our files, so that sites with their own mirror just work.

# shellcheck disable=SC2034  # read by apptainer.sh
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# Lines "URI SUITE" of every enabled source, both file formats: apt parses them for us, and this
# question, unlike others, needs no downloaded package lists.
apt_sources() {
  apt-get update --print-uris | sed -nE "s,^'([^' ]+)/+dists/([^' ]+)/InRelease'.*,\\1 \\2,p"
}

# The mirror that carries this machine's own Debian release.
debian_mirror() {
  local codename
  codename=$(. /etc/os-release && echo "${ID:-}:${VERSION_CODENAME:-}")
  [[ ${codename%%:*} == debian ]] || return 1
  apt_sources | awk -v suite="${codename#*:}" '$2 == suite { print $1; exit }'
}

# The mirror of security updates, where one is configured.
security_mirror() { apt_sources | awk '$2 ~ /-security$/ { print $1; exit }'; }

# sources_for SUITE: one-line apt sources for another release from the configured mirrors.
sources_for() {
  local suite=$1 mirror security
  mirror=$(debian_mirror) || return 1
  security=$(security_mirror)
  echo "deb $mirror $suite main"
  [[ -z $security || $suite == sid ]] || echo "deb $security $suite-security main"
}

# The machine's apt settings for reaching its mirrors, as lines for an apt.conf.
apt_network_options() {
  apt-config dump Acquire | grep -E '^Acquire::(Check-Valid-Until|Check-Date|Retries|https?::Proxy) ' || true
}
