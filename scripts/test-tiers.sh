#!/usr/bin/env bash
# Runs every tier of tests and says how long each took, even if one fails. Usage: test-tiers.sh [CARGO]
set -euo pipefail
cargo=${1:-cargo}

# what is built is in no tier's time
"$cargo" test --no-run
failed=
summary=
tier() {
    local name=$1 begin=$SECONDS
    shift
    "$cargo" test --no-fail-fast "$@" || failed+=" $name"
    summary+="$(printf '%-8s %4d s' "$name" $((SECONDS - begin)))"$'\n'
}
tier units --lib --bins
tier cli --test cli
tier trace --test trace
tier slow --test slow
tier docs --doc
printf '\n%s' "$summary"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
