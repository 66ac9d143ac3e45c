#!/usr/bin/env bash
# The whole service on one machine, in a minute: invents a population, serves it, exports it with the command line,
# checks every file, and compares what came home with what was invented. Leaves no process and no file behind.
# The exit code says whether all of it was right. Usage: scripts/demo.sh [PATIENTS]
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
    echo "The server's last words:" >&2
    tail -n 20 "$log" >&2
  fi
  rm -rf "$dir"
  exit "$code"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n== %s\n' "$*"; }
fail() {
  echo "demo: $*" >&2
  exit 1
}

# alive ends the demo when the server has ended.
alive() { kill -0 "$server" 2>/dev/null || fail "the server ended by itself"; }

# answers HOST PORT PATH: the server says 200. Needs nothing but bash.
answers() {
  local line=
  {
    printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$3" "$1:$2" >&3 &&
      IFS= read -r -t 5 line <&3
  } 3<>"/dev/tcp/$1/$2" || return 1
  [[ $line == "HTTP/1.1 200 "* ]]
} 2>/dev/null

# lines GLOB...: the number of lines of all files that match, 0 when none does.
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

say "Building"
make build
mkdir -m 700 "$state"

say "Inventing $patients patients; no person among them exists"
bin/sluice synth --patients "$patients" --seed 1 --out "$data"

say "Serving them: API, workers, queue and object store in one process"
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

say "Exporting the group of everybody, with tokens of the development issuer"
bin/sluice export --base "$base" --state "$state" --group all --out "$out"

say "Checking every file against the manifest"
bin/sluice verify "$out"

say "Comparing what came home with what was invented"
wrong=0 compared=0
while IFS= read -r type; do
  invented=$(lines "$data/$type.ndjson" "$data/$type.[0-9]*.ndjson")
  exported=$(lines "$out/$type.*ndjson")
  right=no
  case $type in
    Group) # never leaves with patients
      ((exported == 0)) && right=yes
      ;;
    Organization | Location | Practitioner | PractitionerRole | Medication) # those that somebody's record names
      ((exported > 0 && exported <= invented)) && right=yes
      ;;
    *)
      ((exported == invented)) && right=yes
      ;;
  esac
  if [[ $right == no ]]; then
    echo "$type: $invented invented, $exported exported" >&2
    wrong=$((wrong + 1))
  fi
  compared=$((compared + 1))
done < <(find "$data" -maxdepth 1 -name '*.ndjson' | sed -E 's|.*/([A-Za-z]+)\..*|\1|' | sort -u)
((compared > 0)) || fail "nothing was invented"
((wrong == 0)) || fail "$wrong of $compared types differ"
echo "all $compared types are as they should be: every resource of every patient, the shared ones that their records"
echo "name, and no Group"

say "Stopping the server"
stop_server || fail "the server did not stop in order"
echo "done; nothing is left behind"
