package httpapi_test

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// attach completes an export of DocumentReference with one pack of the contents, and returns the paths of the attachments.
func (w *fixture) attach(id export.JobID, contentType string, contents ...string) []string {
	w.t.Helper()
	const typ, unit = "DocumentReference", export.UnitID("DocumentReference-00000")
	w.plan(id, typ)
	lease := w.claim(id, unit, export.KindExport)
	pack := export.Pack{Name: export.PackName(unit, lease.Fence, typ, 0), Type: typ, Count: int64(len(contents))}
	var text string
	var paths []string
	for _, content := range contents {
		digest := hex.EncodeToString(sum(content))
		header, err := export.Attachment{ContentType: contentType, Size: int64(len(content)), SHA256: digest}.Encode()
		w.must(err)
		path := export.AttachmentPath(id, export.AttachmentName(pack.Name, int64(len(text))))
		paths = append(paths, "/fhir"+path)
		text += string(header) + content
	}
	pack.Stored = w.put(export.PackKey(id, pack.Name), []byte(text)).Size
	line := content{typ: typ, lines: []string{`{"resourceType":"DocumentReference","id":"d"}`}}
	w.must(w.jobs.Commit(w.t.Context(), lease, jobstore.Commit{
		Result: export.Result{Files: []export.File{w.write(id, unit, line)}, Attachments: []export.Pack{pack}},
		Next:   export.Unit{ID: export.SealUnit, Kind: export.KindSeal},
	}))
	return paths
}

func TestAttachments(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "?_type=DocumentReference")
	contents := []string{"<script>first</script>", strings.Repeat("second ", 100_000), "third"}
	paths := w.attach(id, "text/html; charset=utf-8", contents...)
	wantOutcome(t, w.ask("GET", paths[0], w.as("alice")...), http.StatusNotFound, "forbidden", "not available") // it still runs
	w.seal(id, nil)
	for i, path := range paths {
		want := contents[i]
		etag := `"` + hex.EncodeToString(sum(want)) + `"`
		headers := []string{
			"Content-Type", "text/html; charset=utf-8", "Content-Disposition", "attachment", "X-Content-Type-Options", "nosniff",
			"Cache-Control", "no-store", "Content-Length", strconv.Itoa(len(want)), "Etag", etag, "Accept-Ranges", "bytes",
			"Content-Encoding", "", "Repr-Digest", "sha-256=:" + base64.StdEncoding.EncodeToString(sum(want)) + ":",
		}
		got := w.ask("GET", path, w.as("alice")...)
		if got.code != http.StatusOK || got.body != want {
			t.Fatalf("%s: %d, %d bytes", path, got.code, len(got.body))
		}
		wantHeader(t, got, headers...)
		head := w.ask("HEAD", path, w.as("alice")...)
		if head.code != http.StatusOK || head.body != "" {
			t.Errorf("HEAD: %d %q", head.code, head.body)
		}
		wantHeader(t, head, headers...)
		ask := func(headers ...string) reply { return w.ask("GET", path, append(w.as("alice"), headers...)...) }
		if got := ask("Range", "bytes=1-3"); got.code != http.StatusPartialContent || got.body != want[1:4] {
			t.Errorf("a range: %d %q", got.code, got.body)
		}
		if got := ask("Range", "bytes=-4"); got.code != http.StatusPartialContent || got.body != want[len(want)-4:] {
			t.Errorf("the end: %d %q", got.code, got.body)
		}
		if got := ask("Range", "bytes=9999999-"); got.code != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("a range after the end: %d", got.code)
		}
		if got := ask("If-None-Match", etag); got.code != http.StatusNotModified || got.body != "" {
			t.Errorf("the same: %d %q", got.code, got.body)
		}
		if got := ask("Range", "bytes=1-3", "If-Range", `"x"`); got.code != http.StatusOK || got.body != want {
			t.Errorf("a range of another one: %d, %d bytes", got.code, len(got.body))
		}
	}
	if got := w.ask("GET", paths[0]); got.code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", got.code)
	}
	// The scope is that of the resource: it needs no scope of Binary.
	if got := w.ask("GET", paths[2], w.as("alice", "system/DocumentReference.read")...); got.body != contents[2] {
		t.Errorf("with the scope of the resource alone: %d %s", got.code, got.body)
	}
	if got := w.ask("DELETE", statusPath(id), w.as("alice")...); got.code != http.StatusAccepted {
		t.Errorf("DELETE: %d", got.code)
	}
	wantOutcome(t, w.ask("GET", paths[0], w.as("alice")...), http.StatusNotFound, "forbidden", "not available")
}

func TestIsolationOfAttachments(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id, other := w.kickoff(w.as("alice"), "?_type=DocumentReference"), w.kickoff(w.as("bob"), "?_type=DocumentReference")
	path, foreign := w.attach(id, "text/plain", "first", "second")[0], w.attach(other, "text/plain", "of bob")[0]
	w.seal(id, nil)
	w.seal(other, nil)
	never := strings.Replace(path, string(id), string(export.NewJobID()), 1)
	for _, headers := range [][]string{w.as("bob"), w.of(issuerTwo, "alice"), w.as("dave"), w.as("bob", "system/Patient.read")} {
		for _, method := range []string{"GET", "HEAD"} {
			want, got := w.ask(method, never, headers...), w.ask(method, path, headers...)
			if got.code != http.StatusNotFound || got.body != want.body || plainHeader(got.header) != plainHeader(want.header) {
				t.Errorf("%s: %+v differs from that of an unknown job: %+v", method, got, want)
			}
		}
	}
	for _, scopes := range [][]string{{"system/Patient.read"}, {"system/Binary.read"}} {
		got := w.ask("GET", path, w.as("alice", scopes...)...)
		wantOutcome(t, got, http.StatusForbidden, "forbidden", "DocumentReference")
		wantHeader(t, got, "ETag", "", "Content-Disposition", "", "Repr-Digest", "")
	}
	// A name that no line has: other offsets, fences, types, the pack of the other job.
	name := path[strings.LastIndexByte(path, '/')+1:]
	parts := strings.Split(name, ".")
	change := func(at int, text string) string {
		changed := slices.Clone(parts)
		changed[at] = text
		return strings.TrimSuffix(path, name) + strings.Join(changed, ".")
	}
	for _, odd := range []string{
		change(4, "1"), change(4, "-1"), change(4, "99999999"), change(4, "00"), change(3, "1"), change(2, "2"), change(0, "Patient"),
		change(1, "seal"), change(1, ""), change(0, "..%2f"), path + ".0", strings.TrimSuffix(path, name) + "x",
		strings.Replace(foreign, string(other), string(export.NewJobID()), 1),
	} {
		if got := w.ask("GET", odd, w.as("alice")...); got.code != http.StatusNotFound {
			t.Errorf("%s: %d %s", odd, got.code, got.body)
		}
	}
}
