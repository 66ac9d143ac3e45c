package httpapi_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const (
	jwksPath = "/fhir/.well-known/jwks.json"
	header   = "X-JWS-Signature"
)

// verify checks the signature of an answer.
func verify(t *testing.T, got reply, jwks string) error {
	t.Helper()
	_, err := token.VerifyDetached(got.header.Get(header), []byte(jwks), token.ManifestType, strings.NewReader(got.body))
	return err
}

// M-14, ADR-0016: every answer with a manifest has a detached JWS over its bytes, which never change, by a key of the
// published set; keys of earlier answers stay published.
func TestManifestSignature(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	id := w.kickoff(alice, "?_type=Patient")
	w.run(id, patients(2), report())
	first := w.ask("GET", statusPath(id), alice...)
	keys := w.ask("GET", jwksPath)
	if keys.code != http.StatusOK || strings.Contains(keys.body, `"d":`) {
		t.Fatalf("%d %s", keys.code, keys.body)
	}
	wantHeader(t, keys, "Content-Type", "application/jwk-set+json", "Cache-Control", "public, max-age=300")
	must(t, verify(t, first, keys.body))
	if head := w.ask("HEAD", statusPath(id), alice...); head.header.Get(header) == "" {
		t.Error("HEAD has no signature")
	} else if head.body = first.body; verify(t, head, keys.body) != nil {
		t.Error("the signature of HEAD is not that of the manifest")
	}
	tampered := first
	tampered.body = strings.Replace(first.body, `"count":2`, `"count":3`, 1)
	if tampered.body == first.body || verify(t, tampered, keys.body) == nil {
		t.Error("a changed count is accepted")
	}

	// A week later another key signs the same bytes, on another replica too.
	for range 2 * 24 * 4 {
		w.clock.Advance(time.Hour)
		must(t, w.deps.Keys.Refresh(t.Context()))
	}
	later := w.kickoff(w.as("alice"), "?_type=Patient")
	w.run(later, patients(2), report())
	second, now := w.ask("GET", statusPath(later), w.as("alice")...), w.ask("GET", jwksPath)
	must(t, verify(t, second, now.body))
	must(t, verify(t, first, now.body))
	if verify(t, second, keys.body) == nil {
		t.Error("the key has not changed")
	}
	// A running export has no signature.
	running := w.kickoff(w.as("alice"), "?_type=Patient")
	wantHeader(t, w.ask("GET", statusPath(running), w.as("alice")...), header, "")
}

// M-14: the numbers of the seal are in the manifest, with null for those that are not known. A job that an earlier version
// sealed has none.
func TestManifestNumbers(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "?_type=Patient,Condition")
	w.plan(id)
	lease := w.claim(id, export.SealUnit, export.KindSeal)
	key, three, none := export.ManifestKey(id, lease.Fence), int64(3), int64(0)
	stored := w.put(key, nil)
	must(t, w.jobs.Commit(t.Context(), lease, jobstore.Commit{Seal: &jobstore.Seal{
		Manifest: key, Digest: stored.SHA256, Finished: w.clock.Now(), Expires: w.clock.Now().Add(retention),
		Resources: []export.Numbers{
			{Type: "Condition", Written: 2, Failed: 1}, {Type: "Patient", Expected: &three, Written: 3, LeftOut: &none},
		},
	}}))
	got := w.ask("GET", statusPath(id), w.as("alice")...)
	var manifest map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(got.body), &manifest))
	if want := `{"resources":[` +
		`{"type":"Condition","expected":null,"written":2,"filtered":0,"withheld":0,"leftOut":null,"failed":1},` +
		`{"type":"Patient","expected":3,"written":3,"filtered":0,"withheld":0,"leftOut":0,"failed":0}]}`; string(manifest["extension"]) != want {
		t.Errorf("%s\nwant %s", manifest["extension"], want)
	}
}

// Without keys no manifest is served unsigned, and nothing else is affected.
func TestManifestWithoutKeys(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "?_type=Patient")
	file := w.run(id, patients(1))[0]
	must(t, w.redis().Set(t.Context(), "sluice:signing", "spoilt", 0).Err())
	if w.deps.Keys.Refresh(t.Context()) == nil {
		t.Fatal("a spoilt ring is accepted")
	}
	for _, got := range []reply{w.ask("GET", statusPath(id), w.as("alice")...), w.ask("GET", jwksPath)} {
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	}
	if got := w.ask("GET", filePath(id, file), w.as("alice")...); got.code != http.StatusOK {
		t.Errorf("a file: %d", got.code)
	}
}
