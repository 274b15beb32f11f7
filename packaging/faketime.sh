#!/usr/bin/env bash
# The path of Debian's libfaketime, for the tests that move the clock: the installed one, or one unpacked into .build/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_in() { { find "$1" -name libfaketime.so.1 -path '*/faketime/*' 2>/dev/null || true; } | head -n 1; }

found=$(find_in /usr/lib)
if [ -z "$found" ]; then
    found=$(find_in "$PWD/.build/faketime")
fi
if [ -z "$found" ]; then
    mkdir -p .build/faketime
    (cd .build/faketime && { apt-get download -qq libfaketime || { apt-get update -qq && apt-get download -qq libfaketime; }; } >&2 &&
        dpkg -x libfaketime_*.deb .)
    found=$(find_in "$PWD/.build/faketime")
fi
[ -n "$found" ] || { echo "libfaketime cannot be had: apt install libfaketime" >&2; exit 1; }
echo "$found"
