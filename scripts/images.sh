#!/usr/bin/env bash
# images.sh [FLAG...]: builds the images sluice:TAG and sluice-minio:TAG of this commit, and prints what they are. The same
# commit and base image give the same images. The flags are those of docker build, such as --no-cache.
#
# VERSION is what `sluice --version` prints, with the commit; the default is (devel). The default of TAG is VERSION, or
# local. The bills of materials are in the images, and in bin/. GOPROXY, GOSUMDB, GONOSUMDB, BUILD_NETWORK: .env.example.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

flags=("$@")
# The arguments of builds.
export GOPROXY=${GOPROXY:-} GOSUMDB=${GOSUMDB:-} GONOSUMDB=${GONOSUMDB:-} VERSION=${VERSION:-} REVISION=''
tag=${TAG:-${VERSION:-local}}
created=$(date +%s)
if git rev-parse --verify --quiet HEAD >/dev/null; then
	REVISION=$(git describe --always --dirty --abbrev=40 --exclude='*')
	created=$(git log -1 --format=%ct)
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-images.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p bin
GOWORK=off go -C tools/image build -o "$dir/image" .

# image NAME TARGET DESCRIPTION
image() {
	local label=org.opencontainers.image built
	echo "== Building $1:$tag: minutes the first time, later seconds"
	DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1 docker build --file services/Dockerfile --target "$2" \
		--tag "$1:$tag" --network "${BUILD_NETWORK:-default}" "${flags[@]}" \
		--build-arg GOPROXY --build-arg GOSUMDB --build-arg GONOSUMDB --build-arg VERSION --build-arg REVISION \
		--label "$label.title=$1" --label "$label.description=$3" --label "$label.version=${VERSION:-devel}" \
		--label "$label.revision=${REVISION:-unknown}" --label "$label.created=$(date --utc --date "@$created" +%FT%TZ)" \
		--label "$label.source=https://github.com/sluice-fhir/sluice" .
	built=$(docker image inspect --format '{{.Id}}' "$1:$tag")
	docker save --output "$dir/built.tar" "$1:$tag"
	"$dir/image" "$dir/built.tar" "$dir/made.tar" "$1:$tag" "$created" "bin/$1.spdx.json"
	docker load --quiet --input "$dir/made.tar" >/dev/null
	docker image rm "$built" >/dev/null 2>&1 || true # it lost its name, unless it is the same or has another one
	rm "$dir"/*.tar
}
image sluice sluice "FHIR R4 Bulk Data export"
image sluice-minio minio "MinIO, an S3 object store, for Sluice"

for name in sluice sluice-minio; do
	echo "$name:$tag $(docker image inspect --format '{{.Id}}, {{.Size}} bytes' "$name:$tag"), bin/$name.spdx.json"
done
