package httpapi_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const tokenEndpoint = "https://auth.example.org/token"

func discoverable(t *testing.T) *fixture {
	t.Helper()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.TokenURL = tokenEndpoint })
	w.jobDoor.Shut() // it needs no dependency
	w.queueDoor.Shut()
	w.objectDoor.Shut()
	return w
}

// C-01 to C-07: without a token, the statement lists the exports of the three levels, those of types under two names, no other
// operation, the types that can be exported, and the token endpoint.
func TestMetadata(t *testing.T) {
	t.Parallel()
	w := discoverable(t)
	golden, err := os.ReadFile("testdata/metadata.json")
	must(t, err)
	var want bytes.Buffer
	must(t, json.Compact(&want, golden))
	searchParameters := regexp.MustCompile(`,"searchParam":\[\{"name":"_id","type":"token"\},\{"name":"_l[^]]*\]`) // TestMetadataIsExact has them
	version := regexp.MustCompile(`"software":\{"name":"Sluice"(,"version":"[^"]+")?\}`)
	for _, headers := range [][]string{nil, {"Accept", "application/fhir+json"}, {"Accept", "application/json"}, {"Accept", "*/*"}} {
		for _, query := range []string{"", "?_format=json"} {
			got := w.ask("GET", "/fhir/metadata"+query, headers...)
			wantHeader(t, got, "Content-Type", "application/fhir+json")
			plain := searchParameters.ReplaceAllString(got.body, "")
			if body := version.ReplaceAllString(plain, `"software":{"name":"Sluice"}`); body != want.String()+"\n" {
				t.Fatalf("%q: %d %s\nwant\n%s", headers, got.code, body, &want)
			}
		}
	}
	wantOutcome(t, w.ask("GET", "/fhir/metadata", "Accept", "application/fhir+xml"), http.StatusNotAcceptable, "not-supported", "Accept")
}

// C-07: the statement lists every type that can be exported, with the search parameters that a kick-off accepts in `_typeFilter`,
// and no other.
func TestMetadataIsExact(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	var statement struct {
		Rest []struct {
			Resource []struct {
				Type          string
				SearchParam   []typefilter.Parameter
				Documentation string
				Interaction   []struct{ Code string }
			}
		}
	}
	must(t, json.Unmarshal([]byte(w.ask("GET", "/fhir/metadata").body), &statement))
	var types []string
	for _, resource := range statement.Rest[0].Resource {
		types = append(types, resource.Type)
		want := typefilter.Parameters(resource.Type)
		if resource.Type == "Group" { // which clients can search (L-07)
			for _, parameter := range want {
				if !strings.Contains(resource.Documentation, parameter.Name) {
					t.Errorf("the documentation of Group lacks %s", parameter.Name)
				}
			}
			want = []typefilter.Parameter{{Name: "_id", Type: "token"}, {Name: "identifier", Type: "token"}, {Name: "name", Type: "string"}}
		}
		if (resource.Interaction != nil) != (resource.Type == "Group") {
			t.Errorf("%s: interactions %q", resource.Type, resource.Interaction)
		}
		if !slices.Equal(resource.SearchParam, want) {
			t.Errorf("%s: %+v, want %+v", resource.Type, resource.SearchParam, want)
		}
	}
	if !slices.Equal(types, fhir.StoredTypes()) {
		t.Errorf("types %q", types)
	}
	for _, path := range []string{"/fhir/Patient", "/fhir/Patient/p1", "/fhir/Observation?code=x"} { // neither search nor read is claimed
		wantOutcome(t, w.ask("GET", path, w.as("alice")...), http.StatusNotFound, "not-found")
	}
}

// B-01: the SMART configuration needs no token and ignores the Accept header.
func TestSMARTConfiguration(t *testing.T) {
	t.Parallel()
	w := discoverable(t)
	for _, headers := range [][]string{nil, {"Accept", "application/json"}, {"Accept", "text/html"}, {"Accept", "application/fhir+json"}} {
		got := w.ask("GET", "/fhir/.well-known/smart-configuration", headers...)
		if got.code != http.StatusOK || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%q: %d %q", headers, got.code, got.header.Get("Content-Type"))
		}
		want, err := json.Marshal(token.SMARTConfiguration(tokenEndpoint, false))
		if err != nil || got.body != string(want)+"\n" || !strings.HasPrefix(got.body, `{"token_endpoint":"`+tokenEndpoint+`",`) {
			t.Errorf("%q: %s", headers, got.body)
		}
	}
	head := w.ask("HEAD", "/fhir/.well-known/smart-configuration")
	if head.code != http.StatusOK || head.body != "" || head.header.Get("Content-Length") == "" {
		t.Errorf("HEAD: %d %q", head.code, head.body)
	}
	wantOutcome(t, w.ask("POST", "/fhir/.well-known/smart-configuration"), http.StatusMethodNotAllowed, "not-supported")

	without := newFixture(t)
	wantOutcome(t, without.ask("GET", "/fhir/.well-known/smart-configuration"), http.StatusNotFound, "not-found")
}
