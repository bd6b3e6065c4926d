#!/bin/sh
# Every form of a request, with curl. Usage: PACA_URL=http://127.0.0.1:8000 sh requests.sh photo.jpg
set -eu
url=${PACA_URL:-http://127.0.0.1:8000}
photo=${1:?usage: requests.sh photo.jpg}
ask() { curl --fail-with-body --silent --show-error --retry 5 "$@"; echo; }

# one photo, three ways
ask --data-binary @"$photo" "$url/classify?top_k=3"
ask -F file=@"$photo" -F top_k=3 "$url/classify"
printf '{"image": "%s", "parameters": {"top_k": 3}}' "$(base64 < "$photo" | tr -d '\n')" |
  ask -H 'Content-Type: application/json' --data-binary @- "$url/classify"

# several photos: one answer each, in order
ask -F file=@"$photo" -F file=@"$photo" "$url/classify"

# why: as JSON, as a picture, as a page
ask --data-binary @"$photo" "$url/explain?top_clusters=3&arrays=f16" > explanation.json
ask --data-binary @"$photo" -H 'Accept: image/png' "$url/explain?colormap=inferno" --output overlay.png
ask --data-binary @"$photo" -H 'Accept: text/html' "$url/explain" --output report.html

# what is loaded
ask "$url/models"
ask "$url/v2/models"
