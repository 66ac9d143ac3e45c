#!/usr/bin/env bash
# demo.sh [PATIENTS]: the whole service on one machine, in a minute. Generates a population, serves it, exports it with the
# command line, verifies every file, and compares the exported resources with the generated ones. It leaves no process and
# no file behind, and exits with 0 when everything matches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

patients=${1:-50}
wait_for=60 # seconds for the server to be ready
dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-demo.XXXXXX")
data=$dir/data state=$dir/state out=$dir/out log=$dir/server.log
server=

stop_server() {
  [[ -n $server ]] || return 0
  kill -TERM "$server" 2>/dev/null || true
  for _ in $(seq 100); do
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$server" 2>/dev/null; then
    kill -KILL "$server" 2>/dev/null || true
  fi
  local code=0
  wait "$server" 2>/dev/null || code=$?
  server=
  return "$code"
}

clean() {
  local code=$?
  trap - EXIT INT TERM
  stop_server || true
  if ((code != 0)) && [[ -s $log ]]; then
    echo "The end of the server's log:" >&2
    tail -n 20 "$log" >&2
  fi
  rm -rf "$dir"
  exit "$code"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n== %s\n' "$*"; }
fail() {
  echo "demo: $*" >&2
  exit 1
}

# alive fails the demo when the server has exited.
alive() { kill -0 "$server" 2>/dev/null || fail "the server has exited"; }

# answers HOST PORT PATH: whether the server responds with 200, without any program but bash.
answers() {
  local line=
  {
    printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$3" "$1:$2" >&3 &&
      IFS= read -r -t 5 line <&3
  } 3<>"/dev/tcp/$1/$2" || return 1
  [[ $line == "HTTP/1.1 200 "* ]]
} 2>/dev/null

# lines GLOB...: the number of lines of all matching files.
lines() {
  local files=() glob
  for glob in "$@"; do
    while IFS= read -r file; do files+=("$file"); done < <(compgen -G "$glob" || true)
  done
  if ((${#files[@]} == 0)); then
    echo 0
  else
    cat "${files[@]}" | wc -l | tr -d ' '
  fi
}

step "Building"
CGO_ENABLED=0 go build -trimpath -o bin/ ./services/standalone ./services/sluice
mkdir -m 700 "$state"

step "Generating $patients synthetic patients"
bin/sluice synth --patients "$patients" --seed 1 --out "$data"

step "Serving them: API, workers, queue and object store in one process"
bin/standalone --data "$data" --state "$state" --addr 127.0.0.1:0 >"$log" 2>&1 &
server=$!
deadline=$((SECONDS + wait_for))
until [[ -s $state/quickstart.json ]]; do
  alive
  ((SECONDS < deadline)) || fail "the server did not serve within $wait_for s"
  sleep 0.1
done
base=$(sed -nE 's/.*"base_url"[[:space:]]*:[[:space:]]*"([^"]+)".*/\1/p' "$state/quickstart.json")
[[ $base =~ ^http://([^/:]+):([0-9]+) ]] || fail "quickstart.json names no base URL"
host=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
until answers "$host" "$port" /readyz; do
  alive
  ((SECONDS < deadline)) || fail "the server was not ready within $wait_for s"
  sleep 0.1
done
echo "ready at $base"

step "Exporting the group of all patients, with tokens of the development issuer"
bin/sluice export --base "$base" --state "$state" --group all --out "$out"

step "Checking every file against the manifest"
bin/sluice verify "$out"

step "Comparing the exported with the generated resources"
wrong=0 compared=0
while IFS= read -r type; do
  generated=$(lines "$data/$type.ndjson" "$data/$type.[0-9]*.ndjson")
  exported=$(lines "$out/$type.*ndjson")
  right=no
  case $type in
    Group) # is never exported
      ((exported == 0)) && right=yes
      ;;
    Organization | Location | Practitioner | PractitionerRole | Medication) # only if a patient's record refers to it
      ((exported > 0 && exported <= generated)) && right=yes
      ;;
    *)
      ((exported == generated)) && right=yes
      ;;
  esac
  if [[ $right == no ]]; then
    echo "$type: $generated generated, $exported exported" >&2
    wrong=$((wrong + 1))
  fi
  compared=$((compared + 1))
done < <(find "$data" -maxdepth 1 -name '*.ndjson' | sed -E 's|.*/([A-Za-z]+)\..*|\1|' | sort -u)
((compared > 0)) || fail "nothing was generated"
((wrong == 0)) || fail "$wrong of $compared types differ"
echo "all $compared types match: every resource of every patient, the resources they refer to, and no Group"

step "Stopping the server"
stop_server || fail "the server did not stop cleanly"
echo "done"
