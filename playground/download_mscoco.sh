#!/usr/bin/env bash
# Gets MSCOCO val2017 with its captions:  bash playground/download_mscoco.sh
# and pictures for Karpathy's splits:     bash playground/download_mscoco.sh val2014 train2014
# Run again, it goes on where it was stopped. What may be set in the environment:
#   MSCOCO_FOLDER      where to put it (default: playground/data/mscoco)
#   MSCOCO_URL         where to get it (default: http://images.cocodataset.org)
#   MSCOCO_CHECKSUMS   a file in md5sum's form, for archives from another place
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=download_checks.sh
source "$here/download_checks.sh"

folder=${MSCOCO_FOLDER:-$here/data/mscoco}
url=${MSCOCO_URL:-http://images.cocodataset.org}
checksums="442b8da7639aecaf257c1dceb8ba8c80  val2017.zip
a3d79f5ed8d289b7a7554ce06a5782b3  val2014.zip
0da8cfa0e090c266b78f30e2d2874f1a  train2014.zip
f4bbac642086de4f52a3fdda2de5fa2c  annotations_trainval2017.zip"
[ -z "${MSCOCO_CHECKSUMS:-}" ] || checksums=$(cat "$MSCOCO_CHECKSUMS")

# is_right FILE: it has its checksum
is_right() {
  [ -f "$1" ] && grep -q "^$(md5sum <"$1" | cut -d ' ' -f 1)  $(basename "$1")\$" <<<"$checksums"
}

# get PATH MEGABYTES: an archive into the folder, going on with a part of it
get() {
  local archive=$folder/${1##*/}
  if is_right "$archive"; then
    return
  fi
  need_space "$folder" "$2"
  if [ -s "$archive" ]; then
    curl --fail --location --retry 3 --continue-at - --output "$archive" "$url/$1" || true # checked below
    if is_right "$archive"; then
      return
    fi
    echo "$archive is damaged; getting it again"
    rm -f "$archive"
  fi
  curl --fail --location --retry 3 --output "$archive" "$url/$1" || fail "$url/$1 cannot be had; try again, it goes on"
  is_right "$archive" || fail "$archive has another checksum than the one known; remove it and try again"
}

[ $# -gt 0 ] || set -- val2017
for part in "$@"; do
  case $part in
  val2017 | val2014 | train2014) ;;
  *) fail "got $part, expected val2017, val2014 or train2014" ;;
  esac
done
need_tool curl "apt install curl"
need_tool unzip "apt install unzip"
need_tool md5sum "apt install coreutils"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
staging=$folder/.unpacking

for part in "$@"; do
  if [ -d "$folder/$part" ]; then
    echo "$folder/$part: $(count_pictures "$folder/$part") pictures are there already"
    continue
  fi
  case $part in
  val2017) get zips/val2017.zip 1000 ;;
  val2014) get zips/val2014.zip 7000 ;;
  train2014) get zips/train2014.zip 14000 ;;
  esac
  unpack "$folder/$part.zip" "$staging"
  [ -d "$staging/$part" ] || fail "$folder/$part.zip holds no folder $part"
  mv "$staging/$part" "$folder/$part"
  rm -rf "$staging" "$folder/$part.zip"
  echo "$folder/$part: $(count_pictures "$folder/$part") pictures"
done

captions=annotations/captions_val2017.json
if [ -d "$folder/val2017" ] && [ ! -f "$folder/$captions" ] && [ ! -f "$folder/images_captions.csv" ]; then
  get annotations/annotations_trainval2017.zip 300
  unpack "$folder/annotations_trainval2017.zip" "$staging"
  [ -f "$staging/$captions" ] || fail "$folder/annotations_trainval2017.zip holds no $captions"
  mkdir -p "$folder/annotations"
  mv "$staging/$captions" "$folder/$captions"
  rm -rf "$staging" "$folder/annotations_trainval2017.zip"
fi
[ -d "$folder/val2017" ] || exit 0
check_dataset mscoco "$folder"
