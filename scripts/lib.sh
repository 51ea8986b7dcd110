# shellcheck shell=bash
# What scripts/run and scripts/test share. Sourced, not run.

# Everything that can be made again is kept here, outside the clone.
cache="${ARTIFACTAPI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/artifactapi}"
mkdir -p "$cache"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"

say() { printf '\n== %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root, and there is no sudo: $*"
  fi
}

# install_missing COMMAND=PACKAGES...: installs by apt-get what provides the commands that are not there.
install_missing() {
  local pair wanted=() missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null && continue
    missing+=("${pair%%=*}")
    # shellcheck disable=SC2206 # several packages may provide one command
    wanted+=(${pair#*=})
  done
  [ "${#wanted[@]}" = 0 ] && return
  command -v apt-get >/dev/null || die "please install: ${missing[*]} (this machine has no apt-get)"
  say "installing ${wanted[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${wanted[@]}" >/dev/null
  hash -r
  for pair in "${missing[@]}"; do
    command -v "$pair" >/dev/null || die "apt-get installed ${wanted[*]}, but $pair is still missing"
  done
}

# What the build needs beside Rust: a C compiler and cmake.
install_build_tools() {
  command -v cargo >/dev/null || die "cargo is missing: install Rust first (https://rustup.rs)"
  install_missing cc=build-essential cmake=cmake
}
