package httpapi_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const tokenEndpoint = "https://auth.example.org/token"

func discoverable(t *testing.T) *fixture {
	t.Helper()
	w := newFixture(t, func(cfg *httpapi.Config) {
		smart := token.SMARTConfiguration(tokenEndpoint, false)
		cfg.SMART = &smart
	})
	w.jobDoor.Shut() // it is answered whatever is down
	w.queueDoor.Shut()
	w.objectDoor.Shut()
	return w
}

// C-01 to C-06: without a token, the statement names what this server does, and nothing else.
func TestMetadata(t *testing.T) {
	t.Parallel()
	w := discoverable(t)
	for _, headers := range [][]string{nil, {"Accept", "application/fhir+json"}, {"Accept", "application/json"}, {"Accept", "*/*"}} {
		for _, query := range []string{"", "?_format=json"} {
			got := w.ask("GET", "/fhir/metadata"+query, headers...)
			if got.code != http.StatusOK || got.header.Get("Content-Type") != "application/fhir+json" { // C-01
				t.Fatalf("%q: %d %q", headers, got.code, got.header.Get("Content-Type"))
			}
		}
	}
	wantOutcome(t, w.ask("GET", "/fhir/metadata", "Accept", "application/fhir+xml"), http.StatusNotAcceptable, "not-supported", "Accept")

	var statement struct {
		ResourceType, FHIRVersion, Kind, Status, Date string
		Format, Instantiates                          []string
		REST                                          []struct {
			Mode     string
			Security struct {
				Extension []struct {
					URL       string
					Extension []struct{ URL, ValueURI string }
				}
			}
			Operation []any
			Resource  []struct {
				Type      string
				Operation []struct{ Name, Definition string }
			}
		}
	}
	must(t, json.Unmarshal([]byte(w.ask("GET", "/fhir/metadata").body), &statement))
	if statement.ResourceType != "CapabilityStatement" || statement.FHIRVersion != "4.0.1" || statement.Kind != "instance" ||
		statement.Status != "active" || statement.Date == "" || len(statement.REST) != 1 || statement.REST[0].Mode != "server" {
		t.Errorf("C-01: %+v", statement)
	}
	if !slices.Contains(statement.Instantiates, "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data") {
		t.Errorf("C-02: %q", statement.Instantiates)
	}
	rest := statement.REST[0]
	var types []string
	for _, resource := range rest.Resource {
		types = append(types, resource.Type)
		if resource.Type != "Group" {
			if len(resource.Operation) > 0 {
				t.Errorf("C-03: %s has an operation, and there is none", resource.Type)
			}
			continue
		}
		var names []string
		for _, operation := range resource.Operation {
			names = append(names, operation.Name)
			if operation.Definition != "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export" {
				t.Errorf("C-04: definition %s", operation.Definition)
			}
		}
		if !slices.Equal(names, []string{"export", "group-export"}) { // C-03, C-04
			t.Errorf("C-04: operations %q", names)
		}
	}
	if len(rest.Operation) > 0 {
		t.Error("C-03: the server has an operation at system level, and there is none")
	}
	endpoints := rest.Security.Extension
	if len(endpoints) != 1 || endpoints[0].URL != "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris" ||
		len(endpoints[0].Extension) != 1 || endpoints[0].Extension[0].URL != "token" || endpoints[0].Extension[0].ValueURI != tokenEndpoint {
		t.Errorf("C-05: %+v", endpoints)
	}
	if !slices.Equal(types, append([]string{"Group"}, fhir.ExportableTypes()...)) {
		t.Errorf("C-06: %q", types)
	}
}

// B-01: the SMART configuration needs no token, and comes whatever the client accepts.
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
