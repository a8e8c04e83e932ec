# shellcheck shell=bash
# Read by the download scripts: one line for what is wrong, checks of tools and space, and careful unpacking.

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# need_tool TOOL HOW_TO_INSTALL
need_tool() {
  command -v "$1" >/dev/null || fail "$1 is not installed: $2"
}

# need_space FOLDER MEGABYTES
need_space() {
  local free
  free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$2" ] || fail "$1 has $free MB free, needed $2 MB; free some, or name another folder"
}

# is_whole ARCHIVE: every file in it has its checksum
is_whole() {
  unzip -tqq "$1" >/dev/null 2>&1
}

# unpack ARCHIVE FOLDER: into a new folder, after a look at the names: an archive may hold none that lead out of
# the folder, no links, and not more than fits.
unpack() {
  local names bytes
  names=$(unzip -Z1 "$1")
  if grep -Eq '(^|[/\\])\.\.([/\\]|$)|^[/\\]|^[A-Za-z]:' <<<"$names"; then
    fail "$1 holds names that lead out of its folder; nothing was unpacked. Where does it come from?"
  fi
  if grep -q '^l' <<<"$(unzip -Z -s "$1")"; then
    fail "$1 holds links; nothing was unpacked. Where does it come from?"
  fi
  bytes=$(unzip -Zt "$1" | awk '{ print $3 }')
  rm -rf "$2"
  mkdir -p "$2"
  need_space "$2" $((bytes / 1000000 + 100))
  unzip -qq "$1" -d "$2"
  [ -z "$(find "$2" -type l)" ] || fail "$1 held links; look into $2"
}

# count_pictures FOLDER: directly in it; 0 if it is not there
count_pictures() {
  if [ -d "$1" ]; then
    find "$1/" -maxdepth 1 -type f -iname '*.jpg' | wc -l | tr -d ' '
  else
    echo 0
  fi
}

# check_dataset NAME FOLDER: lets the reader say what came of it
check_dataset() {
  local project python
  project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  python=${PYTHON:-$project/.venv/bin/python}
  [ -x "$python" ] || python=python3
  (cd "$project" && "$python" -m "playground.$1" --root "$2")
}
