package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// P-26 to P-29, P-40: the least restrictive value of comma lists and repeats counts, and Provenance is among the types.
func TestAssociatedData(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const latest, relevant = "LatestProvenanceResources", "RelevantProvenanceResources"
	both := []string{"Patient", "Provenance"}
	for query, want := range map[string]export.Associated{
		"=" + latest: latest, "=" + relevant: relevant, "=" + latest + "," + relevant: relevant, "=" + relevant + ",%20" + latest: relevant,
		"=" + latest + "&includeAssociatedData=" + relevant: relevant, "=" + relevant + "&includeAssociatedData=" + latest: relevant,
		"=" + latest + "," + latest: latest,
	} {
		request := w.job(w.kickoff(w.as("alice"), "?_type=Patient&includeAssociatedData"+query)).Request
		if request.Associated != want || !slices.Equal(request.Types, both) || request.Through != nil {
			t.Errorf("%s: %s, %q through %q", query, request.Associated, request.Types, request.Through)
		}
	}
	for _, value := range []string{`"valueCode":"` + relevant + `"`, `"valueString":"` + relevant + `"`, `"valueCoding":{"system":"urn:x","code":"` + relevant + `"}`} {
		request := w.job(w.started(w.post(groupExport, withParameters(`{"name":"includeAssociatedData",`+value+`}`), w.as("alice")...))).Request
		if request.Associated != relevant || !slices.Contains(request.Types, "Provenance") {
			t.Errorf("%s: %+v", value, request)
		}
	}
	// P-17: what the types are read through is without it, since it is written.
	scopes := []string{"system/Practitioner.rs", "system/Provenance.rs", "system/Encounter.rs"}
	request := w.job(w.started(w.ask("GET", groupExport+"?_type=Practitioner&includeAssociatedData="+latest, w.as("alice", scopes...)...))).Request
	if !slices.Equal(request.Types, []string{"Practitioner", "Provenance"}) || !slices.Equal(request.Through, []string{"Encounter"}) {
		t.Errorf("%q through %q", request.Types, request.Through)
	}
	// A token or a grant without Provenance: 403, also when lenient and whatever the types.
	for _, query := range []string{"?includeAssociatedData=" + latest, "?_type=Patient&includeAssociatedData=" + relevant} {
		for name, user := range map[string][]string{"g1": w.as("alice", "system/Patient.rs"), "g2": w.as("carol")} {
			got := w.ask("GET", "/fhir/Group/"+name+"/$export"+query, append(user, "Prefer", "handling=lenient")...)
			wantOutcome(t, got, http.StatusForbidden, "forbidden", "includeAssociatedData", "Provenance")
		}
	}
	// P-29, lenient: unknown values are ignored, and what is left counts.
	for query, want := range map[string]export.Associated{"=_custom": "", "=_custom,x," + latest: latest, "=" + relevant + "&includeAssociatedData=_x": relevant} {
		request := w.job(w.kickoff(w.as("alice"), "?_type=Patient&includeAssociatedData"+query, "Prefer", "handling=lenient")).Request
		if request.Associated != want || len(request.Ignored) != 1 || len(request.Types) != map[bool]int{true: 1, false: 2}[want == ""] {
			t.Errorf("%s: %+v", query, request)
		}
	}
}

// P-37, P-38: the organization by patients is stored. With a parameter that it does not go with, it is refused or ignored.
func TestOrganizedOutput(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	if request := w.job(w.kickoff(w.as("alice"), "?organizeOutputBy=Patient")).Request; request.OrganizedBy != "Patient" {
		t.Errorf("%+v", request)
	}
	const query = "?organizeOutputBy=Patient&includeAssociatedData=LatestProvenanceResources"
	request := w.job(w.kickoff(w.as("alice"), query, "Prefer", "handling=lenient")).Request
	if request.OrganizedBy != "" || request.Associated == "" || len(request.Ignored) != 1 {
		t.Errorf("%+v", request)
	}

	// M-16: the manifest names the organization, and its files have no type. A file has all types, so a token must read them all.
	id := w.kickoff(w.as("alice"), "?organizeOutputBy=Patient&_type=Patient,Condition")
	blocks := w.run(id, content{typ: "Parameters", lines: []string{`{"resourceType":"Parameters"}`, `{"resourceType":"Patient","id":"x"}`}})[0]
	got := w.ask("GET", statusPath(id), w.as("alice")...)
	if !strings.Contains(got.body, `"outputOrganizedBy":"Patient","output":[{"url":"`) || strings.Contains(got.body, `"type"`) {
		t.Errorf("%s", got.body)
	}
	if got := w.ask("GET", filePath(id, blocks), w.as("alice", "system/Patient.rs", "system/Condition.rs")...); got.code != http.StatusOK {
		t.Errorf("%d %s", got.code, got.body)
	}
	for _, scopes := range []string{"system/Patient.rs", "system/Parameters.rs"} {
		wantOutcome(t, w.ask("GET", filePath(id, blocks), w.as("alice", scopes)...), http.StatusForbidden, "forbidden", "Condition")
	}
}

// page is a manifest, or a page of one.
type page struct {
	TransactionTime        string
	Output, Deleted, Error []struct{ Type, URL string }
	Link                   []struct{ Relation, URL string }
}

// P-39, M-16: with allowPartialManifests a manifest lists at most 1000 files a page. The pages together are the whole one,
// each is signed, never changes, and none else exists. Without the parameter there is one manifest without a link.
func TestPagesOfAManifest(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	keys := w.ask("GET", jwksPath)
	manifest := func(query string, files int) export.JobID {
		id := w.kickoff(alice, query)
		w.plan(id)
		var list bytes.Buffer
		for i := range files {
			file := export.File{Name: "Patient." + strconv.Itoa(i), Type: "Patient", Error: i%10 == 3, Deleted: i%10 == 4, Count: 1}
			must(t, json.NewEncoder(&list).Encode(file))
		}
		w.seal(id, list.Bytes())
		return id
	}
	const partial = "?_type=Patient&_since=2026-01-01T00:00:00Z&allowPartialManifests=true"
	for _, test := range []struct {
		query        string
		files, pages int
	}{
		{partial, 0, 1}, {partial, 1, 1}, {partial, 1000, 1}, {partial, 1001, 2}, {partial, 2500, 3},
		{strings.Replace(partial, "true", "false", 1), 2500, 1}, {"?_type=Patient&_since=2026-01-01T00:00:00Z", 2500, 1},
	} {
		id := manifest(test.query, test.files)
		seen, pages, next := map[string]bool{}, 0, statusPath(id)
		for next != "" {
			got := w.ask("GET", next, alice...)
			var read page
			must(t, json.Unmarshal([]byte(got.body), &read))
			must(t, verify(t, got, keys.body))
			if again := w.ask("GET", next, alice...); again.body != got.body || got.code != http.StatusOK {
				t.Errorf("%d, and a page changed", got.code)
			}
			head := w.ask("HEAD", next, alice...)
			if head.body = got.body; head.code != http.StatusOK || verify(t, head, keys.body) != nil {
				t.Errorf("HEAD: %d", head.code)
			}
			items := slices.Concat(read.Output, read.Deleted, read.Error)
			for _, item := range items {
				seen[item.URL] = true
			}
			if pages++; read.TransactionTime == "" || len(items) > 1000 && test.pages > 1 {
				t.Errorf("%q, %d items", read.TransactionTime, len(items))
			}
			next = ""
			if strings.Contains(got.body, `"link"`) {
				want := fmt.Sprintf("%s/exports/%s?page=%d", base, id, pages+1)
				if len(read.Link) != 1 || read.Link[0].Relation != "next" || read.Link[0].URL != want {
					t.Fatalf("link %+v, want %s", read.Link, want)
				}
				next = strings.TrimPrefix(want, "https://fhir.example.org")
			}
		}
		if pages != test.pages || len(seen) != test.files {
			t.Errorf("%s: %d files on %d pages, want %d on %d", test.query, len(seen), pages, test.files, test.pages)
		}
	}

	id := manifest(partial, 1500)
	if w.ask("GET", statusPath(id)+"?page=1", alice...).body != w.ask("GET", statusPath(id), alice...).body {
		t.Error("the first page is not the manifest")
	}
	for _, number := range []string{"3", "4", "2147483647"} {
		wantSame(t, map[string]reply{
			number: w.ask("GET", statusPath(id)+"?page="+number, alice...), "unknown job": w.ask("GET", statusPath(export.NewJobID()), alice...),
		})
	}
	for _, number := range []string{"", "0", "-1", "x", "1.5", "2147483648", "9999999999999999999999"} {
		wantOutcome(t, w.ask("GET", statusPath(id)+"?page="+number, alice...), http.StatusBadRequest, "invalid", "page")
	}
	// Another subject gets the 404 of an unknown job, and a narrower token the 403, for every page.
	for _, number := range []string{"1", "2", "3", "x"} {
		wantSame(t, map[string]reply{
			number: w.ask("GET", statusPath(id)+"?page="+number, w.as("bob")...), "unknown job": w.ask("GET", statusPath(export.NewJobID()), alice...),
		})
		got := w.ask("GET", statusPath(id)+"?page="+number, w.as("alice", "system/Condition.rs")...)
		wantOutcome(t, got, http.StatusForbidden, "forbidden", "Patient")
	}
	w.objectDoor.Shut()
	wantOutcome(t, w.ask("GET", statusPath(id)+"?page=2", alice...), http.StatusServiceUnavailable, "transient")
}
