#!/usr/bin/env bash
# citations.sh: checks that every citation of docs/spec/ resolves (spec 4, K-14, pitfalls 8, 9, conformance 14.1), and that
# every test named in docs/spec/ and docs/security.md exists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=('*.go' '*.lua' '*.sql' '*.md' '*.sh' '*.yaml' '*.proto')
numbers='[0-9]+((-|, | and )[0-9]+)*'
code=0

declare -A known
while IFS= read -r id; do
	known[$id]=1
done < <(
	sed -nE 's/^## ([0-9]+)\. .*/spec \1/p' docs/spec/contract.md
	sed -nE 's/^\| ([A-Z]-[0-9]+) \|.*/row \1/p; s/^### (14\.[0-9]+) .*/conformance \1/p' docs/spec/conformance.md
	sed -nE 's/^\| ([0-9]+) \|.*/pitfall \1/p' docs/spec/pitfalls.md
)

# resolve KIND PATTERN: each number or id in what matches the pattern is a KIND of docs/spec/.
resolve() {
	local file line text id
	while IFS=: read -r file line text; do
		while [[ $text =~ ([A-Z]-[0-9]+|[0-9.]+)(.*) ]]; do
			id=${BASH_REMATCH[1]} text=${BASH_REMATCH[2]}
			if [ -z "${known["$1 $id"]:-}" ]; then
				echo "$file:$line: $1 $id is not in docs/spec/"
				code=1
			fi
		done
	done < <(git grep -noE "$2" -- "${files[@]}")
}
resolve spec "\bspec $numbers"
resolve pitfall "\bpitfalls? $numbers"
resolve conformance '\bconformance [0-9]+\.[0-9]+'
resolve row '\b[ABCDFKLMPQSTZ]-[0-9]{2}\b'

while IFS= read -r name; do
	known[$name]=1
done < <(git grep -hoE '^func (Test|Fuzz|Benchmark)\w+' -- '*_test.go' | cut -d' ' -f2)
while IFS=: read -r file name; do
	if [ -z "${known[$name]:-}" ]; then
		echo "$file: there is no $name"
		code=1
	fi
done < <(grep -HoE '\b(Test|Fuzz|Benchmark)[A-Z0-9][A-Za-z0-9_]+' docs/spec/*.md docs/security.md | sort -u)

exit "$code"
