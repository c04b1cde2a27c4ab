#!/usr/bin/env bash
# Unpacks the prebuilt OHIF of npm beside this script, once: without its dependencies, and without what the tests leave alone.
set -euo pipefail
cd "$(dirname "$0")"
version=3.13.2
sha512=WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==
target=ohif-$version
test -e "$target" && exit
making=$(mktemp -d ./making.XXXXXX)
trap 'rm -rf "$making"' EXIT
npm pack --silent --pack-destination "$making" "@ohif/app@$version" > /dev/null
test "$(openssl dgst -sha512 -binary "$making"/*.tgz | base64 -w0)" = "$sha512" || { echo "OHIF $version is not the one that was tried." >&2; exit 1; }
tar -xzf "$making"/*.tgz -C "$making" --exclude='package/dist/ort' --exclude='package/dist/dicom-microscopy-viewer' --exclude='*.map' package/dist package/LICENSE
mv "$making/package" "$target"
