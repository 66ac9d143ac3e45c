package httpapi_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	problems "github.com/pb33f/libopenapi-validator/errors"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const openAPIPath = "/fhir/openapi.json"

// described is the document of the API that a test compares with its answers.
type described struct {
	*fixture
	validator validator.Validator
	paths     map[string]map[string]operation
	responses map[string]response // of the components
	required  map[string]bool     // headers that each answer has for which they are described
	met       map[string]bool     // operations and statuses of which an answer was checked
}

type operation struct {
	OperationID string
	Parameters  []struct {
		Ref string `json:"$ref"`
	}
	Responses map[string]response
}

type response struct {
	Ref     string         `json:"$ref"`
	Headers map[string]any `json:"headers"`
	Content map[string]any `json:"content"`
}

func describe(t *testing.T, w *fixture) *described {
	t.Helper()
	got := w.ask("GET", openAPIPath)
	if got.code != http.StatusOK {
		t.Fatalf("%d %s", got.code, got.body)
	}
	var read struct {
		OpenAPI    string
		Servers    []struct{ URL string }
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Responses map[string]response
			Headers   map[string]struct{ Required bool }
		}
	}
	must(t, json.Unmarshal([]byte(got.body), &read))
	if read.OpenAPI != "3.1.0" || len(read.Servers) != 1 || read.Servers[0].URL != base {
		t.Fatalf("version %s, servers %+v", read.OpenAPI, read.Servers)
	}
	document, err := libopenapi.NewDocument([]byte(got.body))
	must(t, err)
	if _, err := document.BuildV3Model(); err != nil { // references that lead nowhere
		t.Fatal(err)
	}
	checks, errs := validator.NewValidator(document)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if valid, errs := checks.ValidateDocument(); !valid {
		for _, err := range errs {
			t.Errorf("%v %+v", err, err.SchemaValidationErrors)
		}
	}
	d := &described{
		fixture: w, validator: checks, paths: map[string]map[string]operation{}, responses: read.Components.Responses,
		required: map[string]bool{}, met: map[string]bool{},
	}
	for name, header := range read.Components.Headers {
		d.required[name] = header.Required
	}
	for path, item := range read.Paths {
		d.paths[path] = map[string]operation{}
		for method, raw := range item {
			if slices.Contains([]string{"get", "head", "post", "delete"}, method) {
				var read operation
				must(t, json.Unmarshal(raw, &read))
				d.paths[path][strings.ToUpper(method)] = read
			}
		}
	}
	return d
}

// check sends a request to the route and compares the answer with the document: status, headers, media type and body.
func (d *described) check(status int, route, method, target string, headers ...string) {
	d.t.Helper()
	var got reply
	if method == "POST" {
		got = d.post(target, emptyBody, headers...)
	} else {
		got = d.ask(method, target, headers...)
	}
	if got.code != status {
		d.t.Errorf("%s %s: %d, want %d: %s", method, target, got.code, status, got.body)
	}
	d.compare(route, method, target, got)
}

func (d *described) compare(route, method, target string, got reply) {
	d.t.Helper()
	about := method + " " + target + " " + strconv.Itoa(got.code)
	d.met[method+" "+route+" "+strconv.Itoa(got.code)] = true
	found, known := d.paths[route][method].Responses[strconv.Itoa(got.code)]
	if !known {
		d.t.Fatalf("%s is not described", about)
	}
	if name, is := strings.CutPrefix(found.Ref, "#/components/responses/"); is {
		found = d.responses[name]
	}
	for name := range got.header {
		if !slices.Contains([]string{"Date", "Content-Length", "Content-Type", "Connection"}, name) && !hasHeader(found.Headers, name) {
			d.t.Errorf("%s: the header %s is not described", about, name)
		}
	}
	for name := range found.Headers {
		if d.required[name] && got.header.Get(name) == "" {
			d.t.Errorf("%s: the header %s is missing", about, name)
		}
	}
	kind := got.header.Get("Content-Type")
	_, anything := found.Content["*/*"]
	if _, described := found.Content[kind]; !described && !anything && (kind != "" || len(found.Content) > 0) {
		d.t.Errorf("%s: the media type %q is not one of %v", about, kind, slices.Collect(maps.Keys(found.Content)))
	}
	if method == http.MethodHead || strings.Contains(route, "livez") || strings.Contains(route, "readyz") {
		return // the validator wants bodies, and does not know servers of single paths
	}
	for _, err := range d.validate(method, target, got) {
		d.t.Errorf("%s: %v: %+v\n%s", about, err, err.SchemaValidationErrors, got.body)
	}
}

// validate compares the body of an answer with its schema.
func (d *described) validate(method, target string, got reply) []*problems.ValidationError {
	d.t.Helper()
	request, err := http.NewRequestWithContext(d.t.Context(), method, "https://fhir.example.org"+target, nil)
	must(d.t, err)
	_, errs := d.validator.ValidateHttpResponse(request, &http.Response{
		StatusCode: got.code, Header: got.header, Body: io.NopCloser(strings.NewReader(got.body)), Request: request,
	})
	return errs
}

func hasHeader(headers map[string]any, wanted string) bool {
	for name := range headers {
		if http.CanonicalHeaderKey(name) == wanted {
			return true
		}
	}
	return false
}

// The document is valid OpenAPI 3.1, is served without a token, and has the routes of the router and no others.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	d := describe(t, w)
	routed := map[string]bool{}
	parameter := regexp.MustCompile(`:([a-z]+)`)
	for _, route := range w.handler.(*gin.Engine).Routes() {
		path := parameter.ReplaceAllString(strings.TrimPrefix(route.Path, "/fhir"), "{$1}")
		routed[route.Method+" "+path] = true
		if d.paths[path][route.Method].OperationID == "" {
			t.Errorf("%s %s is not described", route.Method, path)
		}
	}
	ids := map[string]bool{}
	for path, methods := range d.paths {
		for method, described := range methods {
			if !routed[method+" "+path] {
				t.Errorf("%s %s is described and not served", method, path)
			}
			if ids[described.OperationID] {
				t.Errorf("two operations are %s", described.OperationID)
			}
			ids[described.OperationID] = true
		}
	}
	// What is described of a search is supported; that of kick-offs is from the table by which they are read.
	for _, ref := range d.paths["/Group"]["GET"].Parameters {
		name := ref.Ref[strings.LastIndexByte(ref.Ref, '/')+1:]
		if got := w.ask("GET", "/fhir/Group?"+name+"=1", w.as("alice")...); got.code != http.StatusOK {
			t.Errorf("%s: %d %s", name, got.code, got.body)
		}
	}
}

// Another base URL is that of the servers, with a path and without.
func TestOpenAPIServers(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.BaseURL = &url.URL{Scheme: "http", Host: "localhost:8080"} })
	got := w.ask("GET", "/openapi.json")
	if !strings.Contains(got.body, `"servers":[{"url":"http://localhost:8080"}]`) {
		t.Errorf("%d %s", got.code, got.body)
	}
	wantHeader(t, w.ask("HEAD", "/openapi.json"), "Content-Type", "application/json", "Content-Length", strconv.Itoa(len(got.body)))
}

// The answers of each operation are those of the document.
func TestAnswersAreDescribed(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.TokenURL = "https://auth.example.org/token" })
	d := describe(t, w)
	alice, narrow := w.as("alice"), w.as("alice", "system/Condition.rs")
	with := func(user []string, headers ...string) []string { return slices.Concat(user, headers) }
	long := strings.Repeat("x", 9000)

	for route, target := range map[string]string{
		"/$export": "/fhir/$export", "/Patient/$export": patientExport, "/Group/{group}/$export": groupExport,
	} {
		for _, method := range []string{"GET", "POST"} {
			d.check(202, route, method, target, alice...)
			d.check(400, route, method, target+"?_foo=1", alice...)
			d.check(401, route, method, target)
			d.check(403, route, method, target+"?_type=Patient", narrow...)
			d.check(406, route, method, target, with(alice, "Accept", "text/html")...)
			d.check(414, route, method, target+"?x="+long, alice...)
		}
		d.compare(route, "POST", target, w.ask("POST", target, with(alice, "Content-Type", "text/plain", bodyKey, "x")...))
		d.compare(route, "POST", target, w.post(target, strings.Repeat(" ", 1<<20+1), alice...))
	}
	d.check(404, "/Group/{group}/$export", "GET", "/fhir/Group/g9/$export", alice...)

	const group, groups = "/Group/{group}", "/Group"
	d.check(200, group, "GET", "/fhir/Group/g1", alice...)
	d.check(401, group, "GET", "/fhir/Group/g1")
	d.check(403, group, "GET", "/fhir/Group/g1", narrow...)
	d.check(404, group, "GET", "/fhir/Group/g9", alice...)
	d.check(200, groups, "GET", "/fhir/Group?_count=1", alice...)
	d.check(200, groups, "GET", "/fhir/Group?_id=none", alice...)
	d.check(400, groups, "GET", "/fhir/Group?_count=0", alice...)

	const status, file = "/exports/{job}", "/exports/{job}/files/{name}"
	id := w.kickoff(alice, "?_type=Patient&allowPartialManifests=true")
	for _, method := range []string{"GET", "HEAD"} {
		d.check(202, status, method, statusPath(id), alice...)
	}
	files := w.run(id, patients(3), report())
	failed := w.kickoff(alice, "")
	w.fail(failed, "why")
	for _, method := range []string{"GET", "HEAD"} {
		d.check(200, status, method, statusPath(id), alice...)
		d.check(400, status, method, statusPath(id)+"?page=x", alice...)
		d.check(401, status, method, statusPath(id))
		d.check(403, status, method, statusPath(id), narrow...)
		d.check(404, status, method, statusPath(id), w.as("bob")...)
		d.check(500, status, method, statusPath(failed), alice...)

		target := filePath(id, files[0])
		d.check(200, file, method, target, alice...)
		d.check(200, file, method, target, with(alice, "Accept-Encoding", "gzip")...)
		d.check(304, file, method, target, with(alice, "If-None-Match", "*")...)
		d.check(401, file, method, target)
		d.check(403, file, method, target, narrow...)
		d.check(404, file, method, target, w.as("bob")...)
		d.check(406, file, method, target, with(alice, "Accept-Encoding", "identity;q=0, gzip;q=0")...)
		d.check(412, file, method, target, with(alice, "If-Match", `"x"`)...)
	}
	// Polls whose status is not that of the export (S-19).
	apart := with(alice, "Prefer", "respond-async, separate-export-status")
	d.check(202, "/Group/{group}/$export", "GET", groupExport, apart...)
	done := w.kickoff(alice, "", "Prefer", "respond-async, separate-export-status")
	w.run(done, patients(1))
	failed = w.kickoff(alice, "", "Prefer", "respond-async, separate-export-status")
	w.fail(failed, "why")
	for _, id := range []export.JobID{done, failed} {
		d.check(200, status, "GET", statusPath(id), alice...)
	}
	// The schemas are strict: an answer that differs is found.
	for _, change := range []string{`"output":`, `"count":3`, `"sha256":"`, `"transactionTime":"`} {
		got := w.ask("GET", statusPath(id), alice...)
		changed := got
		changed.body = strings.Replace(got.body, change, strings.Replace(change, `"`, `"x`, 1), 1)
		if changed.body == got.body || len(d.validate("GET", statusPath(id), changed)) == 0 {
			t.Errorf("a manifest without %s is accepted", change)
		}
	}
	const attachment = "/exports/{job}/attachments/{name}"
	documents := w.kickoff(alice, "?_type=DocumentReference")
	attached := w.attach(documents, "text/plain", "some text")[0]
	w.seal(documents, nil)
	for _, method := range []string{"GET", "HEAD"} {
		d.check(200, attachment, method, attached, alice...)
		d.check(304, attachment, method, attached, with(alice, "If-None-Match", "*")...)
		d.check(401, attachment, method, attached)
		d.check(403, attachment, method, attached, narrow...)
		d.check(404, attachment, method, attached, w.as("bob")...)
		d.check(412, attachment, method, attached, with(alice, "If-Match", `"x"`)...)
	}
	d.check(206, attachment, "GET", attached, with(alice, "Range", "bytes=0-3")...)
	d.check(416, attachment, "GET", attached, with(alice, "Range", "bytes=99-")...)
	d.check(206, file, "GET", filePath(id, files[0]), with(alice, "Range", "bytes=0-9")...)
	d.check(416, file, "GET", filePath(id, files[0]), with(alice, "Range", "bytes=99999999-")...)
	d.check(404, status, "DELETE", statusPath(export.NewJobID()), alice...)
	d.check(401, status, "DELETE", statusPath(id))
	d.check(202, status, "DELETE", statusPath(failed), alice...)

	for _, method := range []string{"GET", "HEAD"} {
		for _, route := range []string{"/metadata", "/.well-known/smart-configuration", "/.well-known/jwks.json", "/openapi.json"} {
			d.check(200, route, method, "/fhir"+route)
			d.check(414, route, method, "/fhir"+route+"?"+long)
		}
		d.check(406, "/metadata", method, "/fhir/metadata", "Accept", "text/html")
		d.check(200, "/livez", method, "/livez")
		d.check(200, "/readyz", method, "/readyz")
	}

	// Outages and limits.
	w.objectDoor.Shut()
	d.check(503, status, "GET", statusPath(id), alice...)
	d.check(503, file, "GET", filePath(id, files[0]), alice...)
	w.jobDoor.Shut()
	d.check(503, status, "DELETE", statusPath(id), alice...)
	d.check(503, "/$export", "GET", "/fhir/$export", alice...)
	d.check(503, group, "GET", "/fhir/Group/g1", alice...)
	for path, methods := range d.paths {
		for method := range methods {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(d.met)), func(met string) bool { return strings.HasPrefix(met, method+" "+path+" 2") }) {
				t.Errorf("no success of %s %s was checked", method, path)
			}
		}
	}

	limited := describe(t, newFixture(t, func(cfg *httpapi.Config) { cfg.JobLimit, cfg.StatusLimit = 1, 1 }))
	running := limited.kickoff(limited.as("alice"), "")
	limited.check(202, status, "GET", statusPath(running), limited.as("alice")...)
	limited.check(429, status, "GET", statusPath(running), limited.as("alice")...)
	limited.check(429, "/$export", "GET", "/fhir/$export", limited.as("alice")...)
	limited.check(404, "/.well-known/smart-configuration", "GET", "/fhir/.well-known/smart-configuration")
}
