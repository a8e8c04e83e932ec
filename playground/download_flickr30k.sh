#!/usr/bin/env bash
# Gets Flickr30k from Kaggle:  bash playground/download_flickr30k.sh
# Run again, it goes on where it was stopped. What may be set in the environment:
#   FLICKR30K_DATASET    eeshawn/flickr30k (default) or hsankesara/flickr-image-dataset
#   FLICKR30K_FOLDER     where to put it (default: playground/data/flickr30k)
#   FLICKR30K_PICTURES   how many pictures to expect (default: 31783)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=download_checks.sh
source "$here/download_checks.sh"

dataset=${FLICKR30K_DATASET:-eeshawn/flickr30k}
folder=${FLICKR30K_FOLDER:-$here/data/flickr30k}
expected=${FLICKR30K_PICTURES:-31783}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
pictures=$folder/flickr30k_images
archive=$folder/${dataset##*/}.zip # Kaggle names the file after the part behind the slash
staging=$folder/.unpacking

there=$(count_pictures "$pictures")
if [ "$there" -eq "$expected" ]; then
  echo "$pictures: $there pictures are there already"
  check_dataset flickr30k "$folder"
  exit
fi
[ ! -e "$pictures" ] || fail "$pictures holds $there pictures, expected $expected; move it away, then run this again"

need_tool unzip "apt install unzip"
if ! { [ -f "$archive" ] && is_whole "$archive"; }; then
  need_tool kaggle "pip install kaggle"
  home=${KAGGLE_CONFIG_DIR:-$HOME/.kaggle}
  if [ -z "${KAGGLE_API_TOKEN:-}" ] && [ -z "${KAGGLE_USERNAME:+${KAGGLE_KEY:-}}" ] &&
    [ ! -f "$home/kaggle.json" ] && [ ! -f "$home/access_token" ] && [ ! -f "$HOME/.config/kaggle/kaggle.json" ]; then
    fail "no Kaggle credentials: make a token at https://www.kaggle.com/settings and save it as $home/kaggle.json"
  fi
  need_space "$folder" 5000
  kaggle datasets download -d "$dataset" -p "$folder" # goes on with a part of the file
  if ! is_whole "$archive"; then
    echo "$archive is damaged; getting it again"
    kaggle datasets download -d "$dataset" -p "$folder" --force
    is_whole "$archive" || fail "$archive is damaged or missing after a second download; try again later"
  fi
fi

unpack "$archive" "$staging"
# The packings differ in how deep the pictures lie: the folder with the most of them is theirs.
found=$(find "$staging" -type f -iname '*.jpg' | sed 's|/[^/]*$||' | sort | uniq -c | sort -k1,1nr -k2 |
  sed -nE '1s/^ *[0-9]+ //p')
[ -n "$found" ] || fail "$archive holds no pictures, expected $expected"
there=$(count_pictures "$found")
[ "$there" -eq "$expected" ] || fail "$archive holds $there pictures, expected $expected; it was unpacked into $staging"
for name in images_captions.csv results.csv captions.txt; do
  captions=$(find "$staging" -type f -name "$name" | sort | sed -n 1p)
  if [ -n "$captions" ]; then
    mv "$captions" "$folder/$name"
    break
  fi
done
mv "$found" "$pictures" # last: it being there means that all is
rm -rf "$staging" "$archive"
echo "$pictures: $there pictures"
check_dataset flickr30k "$folder"
