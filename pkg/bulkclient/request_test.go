package bulkclient

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// TestKickOffRequest covers L-01 to L-03 and the types of P-40, as the client sends them.
func TestKickOffRequest(t *testing.T) {
	filters := []string{"Observation?code=http://loinc.org|1-2,3-4&status=final", "Patient?gender=male"}
	all := Request{
		Level: export.PatientLevel, Types: []string{"Patient", "Observation"}, Since: "2026-01-02T03:04:05+01:00",
		Elements: []string{"id", "Patient.name"}, TypeFilters: filters, Lenient: true, Until: "2026-02-02T03:04:05Z",
		Associated: export.RelevantProvenance, OrganizeBy: "Patient",
	}
	post := all
	post.Post = true
	for name, test := range map[string]struct {
		request      Request
		ig           bool
		path, prefer string
		query        url.Values
		body         string // "": a GET
	}{
		"group":   {request: Request{Group: "g"}, path: "/fhir/Group/g/$export"},
		"patient": {request: Request{Level: export.PatientLevel}, ig: true, path: "/fhir/Patient/$export", prefer: "respond-async"},
		"system":  {request: Request{Level: export.SystemLevel}, path: "/fhir/$export"},
		"every parameter": {request: all, ig: true, path: "/fhir/Patient/$export", prefer: "respond-async, handling=lenient",
			query: url.Values{
				"_type": {"Patient,Observation"}, "_since": {"2026-01-02T03:04:05+01:00"}, "_elements": {"id,Patient.name"},
				"_typeFilter": filters, "_until": {"2026-02-02T03:04:05Z"}, "organizeOutputBy": {"Patient"},
				"includeAssociatedData": {"RelevantProvenanceResources"},
			}},
		"every parameter by POST": {request: post, path: "/fhir/Patient/$export", prefer: "handling=lenient",
			body: `{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient,Observation"},` +
				`{"name":"_since","valueInstant":"2026-01-02T03:04:05+01:00"},` +
				`{"name":"_until","valueInstant":"2026-02-02T03:04:05Z"},{"name":"_elements","valueString":"id,Patient.name"},` +
				`{"name":"_typeFilter","valueString":"Observation?code=http://loinc.org|1-2,3-4\u0026status=final"},` +
				`{"name":"_typeFilter","valueString":"Patient?gender=male"},` +
				`{"name":"includeAssociatedData","valueString":"RelevantProvenanceResources"},` +
				`{"name":"organizeOutputBy","valueString":"Patient"}]}`},
		"patients": {request: Request{Group: "g", Patients: []string{"a", "b"}}, path: "/fhir/Group/g/$export",
			body: `{"resourceType":"Parameters","parameter":[{"name":"patient","valueReference":{"reference":"Patient/a"}},` +
				`{"name":"patient","valueReference":{"reference":"Patient/b"}}]}`},
		"nothing by POST": {request: Request{Level: export.SystemLevel, Post: true}, path: "/fhir/$export",
			body: `{"resourceType":"Parameters"}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			c, _ := newClient(t, s, func(cfg *Config) { cfg.IG = test.ig })
			job, err := c.KickOff(t.Context(), test.request)
			must(t, err)
			got, method, contentType := s.seen[0], http.MethodGet, ""
			if test.body != "" {
				method, contentType = http.MethodPost, "application/fhir+json"
			}
			if got.Method != method || got.URL.Path != test.path || got.URL.Query().Encode() != test.query.Encode() ||
				s.bodies[0] != test.body {
				t.Errorf("%s %s %q\ngot  %s\nwant %s", got.Method, got.URL.Path, got.URL.Query(), s.bodies[0], test.body)
			}
			if got.Header.Get("Prefer") != test.prefer || got.Header.Get("Content-Type") != contentType ||
				got.Header.Get("Accept") != "application/fhir+json" {
				t.Errorf("header %v", got.Header)
			}
			if job.IG != test.ig {
				t.Errorf("job %+v", job)
			}
		})
	}
	s := newFakeServer(t)
	c, _ := newClient(t, s, nil)
	if _, err := c.KickOff(t.Context(), Request{Level: "practice"}); err == nil || len(s.seen) != 0 {
		t.Errorf("an unknown level: %v, %d requests", err, len(s.seen))
	}
}

// TestPostIsRepeated: each attempt of a kick-off has the whole body, and the preference that a server asks for is added.
func TestPostIsRepeated(t *testing.T) {
	s := newFakeServer(t)
	s.kickOffs, s.outcome = []int{503, 400}, "Prefer must be respond-async"
	c, _ := newClient(t, s, nil)
	job, err := c.KickOff(t.Context(), Request{Group: "g", Patients: []string{"a"}, Lenient: true})
	must(t, err)
	if !job.IG || len(s.bodies) != 3 || s.bodies[0] == "" || s.bodies[1] != s.bodies[0] || s.bodies[2] != s.bodies[0] {
		t.Errorf("%+v, bodies %q", job, s.bodies)
	}
	if got := s.seen[2].Header.Get("Prefer"); got != "respond-async, handling=lenient" {
		t.Errorf("Prefer: %s", got)
	}
}

// TestPostIsNotRedirected: as a GET it would lose its patients, and export those of the whole group.
func TestPostIsNotRedirected(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := newFakeServer(t)
		inner := s.Config.Handler
		s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/fhir/Group/g/$export" {
				http.Redirect(w, r, "/fhir/Group/h/$export", status)
				return
			}
			inner.ServeHTTP(w, r)
		})
		c, _ := newClient(t, s, nil)
		_, err := c.KickOff(t.Context(), Request{Group: "g", Patients: []string{"a"}})
		if err == nil || !strings.Contains(err.Error(), "redirects a POST") || len(s.seen) != 0 {
			t.Errorf("%d: %v, then %q", status, err, s.requests())
		}
	}
}

// TestFolderOfAnotherRequest: a folder continues the request that it was begun with, whatever the order of its lists, and
// no other. It does not keep the ids of patients.
func TestFolderOfAnotherRequest(t *testing.T) {
	s := newFakeServer(t)
	file := s.add(ListOutput, "Patient", "p.ndjson", 5)
	file.refuse = []int{500}
	c, _ := newClient(t, s, nil)
	opts := Options{Dir: t.TempDir()}
	begun := func() Request {
		return Request{
			Group: "g", Types: []string{"Patient", "Device"}, Since: "2026-01-02T03:04:05Z", Elements: []string{"name", "id"},
			TypeFilters: []string{"Patient?gender=male", "Device?status=active"}, Patients: []string{"secret-2", "secret-1"},
			Lenient: true, Until: "2026-01-03T03:04:05Z", Associated: export.LatestProvenance, OrganizeBy: "Patient",
		}
	}
	var refused *ServerError
	if _, err := c.Export(t.Context(), begun(), opts); !errors.As(err, &refused) {
		t.Fatal(err)
	}
	opts.Resume = true
	others := map[string]func(*Request){
		"level":         func(r *Request) { r.Level = export.PatientLevel },
		"group":         func(r *Request) { r.Group = "h" },
		"types":         func(r *Request) { r.Types = r.Types[:1] },
		"since":         func(r *Request) { r.Since = "" },
		"until":         func(r *Request) { r.Until = "" },
		"provenance":    func(r *Request) { r.Associated = export.RelevantProvenance },
		"order":         func(r *Request) { r.OrganizeBy = "" },
		"elements":      func(r *Request) { r.Elements = append(r.Elements, "gender") },
		"filters":       func(r *Request) { r.TypeFilters = nil },
		"patients":      func(r *Request) { r.Patients[0] = "secret-3" },
		"fewer":         func(r *Request) { r.Patients = r.Patients[:1] },
		"every patient": func(r *Request) { r.Patients = nil },
		"handling":      func(r *Request) { r.Lenient = false },
	}
	mustDiffer := func() {
		t.Helper()
		for name, change := range others {
			other := begun()
			change(&other)
			if _, err := c.Export(t.Context(), other, opts); !errors.Is(err, ErrFolder) || strings.Contains(err.Error(), "secret") {
				t.Errorf("another %s: %v", name, err)
			}
		}
	}
	mustDiffer()
	same := begun()
	for _, list := range [][]string{same.Types, same.Elements, same.TypeFilters, same.Patients} {
		slices.Reverse(list)
	}
	same.Elements, same.Level, same.Post = append(same.Elements, "id"), export.GroupLevel, true
	report, err := c.Export(t.Context(), same, opts)
	must(t, err)
	if n := s.countOf("POST /fhir/Group/g/$export"); n != 1 {
		t.Errorf("%d kick-offs", n)
	}
	mustDiffer() // finished
	again, err := Verify(t.Context(), opts.Dir, nil)
	must(t, err)
	for _, r := range []Report{report, again} {
		if r.Patients != 2 || r.Request.Level != export.GroupLevel || !r.Request.sameAs(begun().sorted()) {
			t.Errorf("report of the request %+v of %d patients", r.Request, r.Patients)
		}
	}
	for _, name := range names(t, opts.Dir) {
		text, err := os.ReadFile(filepath.Join(opts.Dir, name))
		must(t, err)
		if strings.Contains(string(text), "secret-") {
			t.Errorf("%s has the id of a patient in the request", name)
		}
	}
}
