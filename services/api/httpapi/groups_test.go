package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const groupsAccess = `
- {issuer: "https://one.example.org", subject: alice, types: all, groups: all, patients: all}
- {issuer: "https://one.example.org", subject: bob, types: [Patient], groups: [diabetes, none], patients: {except: [p1]}}
- {issuer: "https://one.example.org", subject: carol, types: all, groups: all, patients: all, levels: [patient, system]}
`

// withGroups returns a fixture with named groups. The grants: alice all groups, bob one of them without one patient, carol
// none at the group level.
func withGroups(t *testing.T) *fixture {
	t.Helper()
	w := newFixture(t)
	spoil(t, w.users.dir, "access.yaml", groupsAccess)
	spoil(t, w.users.dir, "Group.ndjson", `{"resourceType":"Group","id":"plain","member":[{"entity":{"reference":"Patient/p1"}}]}
{"resourceType":"Group","id":"diabetes","name":"Diabetes, type 2","quantity":2,"identifier":[{"use":"official","system":"urn:s","value":"a|b"},`+
		`{"value":"c,d"}],"member":[{"entity":{"reference":"Patient/p1"}}]}
{"resourceType":"Group","id":"asthma","name":"Ästhma","identifier":[{"system":"urn:s","value":"2"},{"system":"urn:t","value":"a|b"}]}
{"resourceType":"Group","id":"past","active":false,"name":"Diabetes before"}
{"resourceType":"Group","id":"unreadable","name":"Diabetes?","member":7}
`)
	return w
}

// L-07: a Group has no members, and a subject whose grant excludes patients does not see their number. A group outside the
// grant is answered as an unknown one.
func TestReadGroup(t *testing.T) {
	t.Parallel()
	w := withGroups(t)
	const diabetes = `{"resourceType":"Group","id":"diabetes","identifier":[{"system":"urn:s","value":"a|b"},{"value":"c,d"}],` +
		`"active":true,"type":"person","actual":true,"name":"Diabetes, type 2"`
	for _, test := range []struct{ subject, id, want string }{
		{"alice", "diabetes", diabetes + `,"quantity":2}`},
		{"bob", "diabetes", diabetes + "}"},
		{"alice", "plain", `{"resourceType":"Group","id":"plain","active":true,"type":"person","actual":true}`},
	} {
		for _, query := range []string{"", "?_format=json"} {
			got := w.ask("GET", "/fhir/Group/"+test.id+query, w.as(test.subject, "system/Group.r")...)
			wantHeader(t, got, "Content-Type", "application/fhir+json", "Cache-Control", "no-store")
			if got.code != http.StatusOK || got.body != test.want+"\n" {
				t.Errorf("%s reads %s: %d %s", test.subject, test.id, got.code, got.body)
			}
		}
	}
	unknown := w.ask("GET", "/fhir/Group/unknown", w.as("alice")...)
	wantOutcome(t, unknown, http.StatusNotFound, "not-found", "no such Group")
	for _, test := range []struct{ subject, id string }{
		{"alice", "past"}, {"alice", "a_b"}, {"alice", "%24export"}, {"bob", "plain"}, {"bob", "none"}, {"carol", "plain"},
		{"nobody", "plain"}, {"bob", "unreadable"},
	} {
		got := w.ask("GET", "/fhir/Group/"+test.id, w.as(test.subject)...)
		if got.code != unknown.code || got.body != unknown.body || plainHeader(got.header) != plainHeader(unknown.header) {
			t.Errorf("%s reads %s: %d %s %q", test.subject, test.id, got.code, got.body, plainHeader(got.header))
		}
	}
	wantOutcome(t, w.ask("GET", "/fhir/Group/unreadable", w.as("alice")...), http.StatusInternalServerError, "exception", "cannot be read")
	for _, path := range []string{"/fhir/Group/plain", "/fhir/Group/unknown", "/fhir/Group"} {
		for _, scope := range []string{"system/Patient.rs", "system/Group.s", "patient/Group.rs"} {
			wantOutcome(t, w.ask("GET", path, w.as("alice", scope)...), http.StatusForbidden, "forbidden", "Group")
		}
		wantOutcome(t, w.ask("GET", path), http.StatusUnauthorized, "")
		xml := append(w.as("alice"), "Accept", "application/fhir+xml")
		wantOutcome(t, w.ask("GET", path, xml...), http.StatusNotAcceptable, "not-supported", "Accept")
		wantOutcome(t, w.ask("DELETE", path, w.as("alice")...), http.StatusMethodNotAllowed, "not-supported", "GET")
	}
}

type foundGroups struct {
	ResourceType, Type string
	Total              *int
	Link               []struct{ Relation, URL string }
	Entry              []struct {
		FullURL  string
		Resource struct {
			ID       string
			Quantity int
			Member   json.RawMessage
		}
		Search struct{ Mode string }
	}
}

// search returns the ids in the answer, and the link to the next page, without the base URL.
func (w *fixture) search(subject, query string) (found foundGroups, ids []string, next string) {
	w.t.Helper()
	got := w.ask("GET", "/fhir/Group"+query, w.as(subject)...)
	if got.code != http.StatusOK || strings.Contains(got.body, "member") || strings.Contains(got.body, "p1") {
		w.t.Fatalf("%s: %d %s", query, got.code, got.body)
	}
	w.must(json.Unmarshal([]byte(got.body), &found))
	if found.ResourceType != "Bundle" || found.Type != "searchset" || found.Link[0].Relation != "self" {
		w.t.Errorf("%s: %s", query, got.body)
	}
	for _, entry := range found.Entry {
		if entry.FullURL != base+"/Group/"+entry.Resource.ID || entry.Search.Mode != "match" {
			w.t.Errorf("%s: %+v", query, entry)
		}
		ids = append(ids, entry.Resource.ID)
	}
	if len(found.Link) > 1 {
		next = strings.TrimPrefix(found.Link[1].URL, base+"/Group")
	}
	return found, ids, next
}

// L-07: a search finds the groups that the grant includes.
func TestSearchGroups(t *testing.T) {
	t.Parallel()
	w := withGroups(t)
	for _, test := range []struct {
		subject, query string
		want           []string
	}{
		{"alice", "", []string{"asthma", "diabetes", "plain"}},
		{"bob", "", []string{"diabetes"}},
		{"carol", "", nil},
		{"nobody", "", nil},
		{"alice", "?name=diab", []string{"diabetes"}},
		{"alice", "?name=DIABETES%5C%2C", []string{"diabetes"}},
		{"alice", "?name=type", nil},
		{"alice", "?name=Ä", []string{"asthma"}},
		{"alice", "?name=ä,d", []string{"asthma", "diabetes"}},
		{"alice", "?name=d&name=x", nil},
		{"alice", "?name=d&name=diab&_format=json", []string{"diabetes"}},
		{"alice", "?identifier=2", []string{"asthma"}},
		{"alice", "?identifier=a%5C%7Cb", []string{"asthma", "diabetes"}},
		{"alice", "?identifier=urn:s|a%5C%7Cb", []string{"diabetes"}},
		{"alice", "?identifier=urn:t|a|b", []string{"asthma"}},
		{"alice", "?identifier=urn:s|", []string{"asthma", "diabetes"}},
		{"alice", "?identifier=|c%5C,d", []string{"diabetes"}},
		{"alice", "?identifier=|2", nil},
		{"alice", "?identifier=urn:S|2", nil},
		{"alice", "?identifier=urn:s|2,|c%5C,d", []string{"asthma", "diabetes"}},
		{"alice", "?identifier=urn:s|2&identifier=urn:t|", []string{"asthma"}},
		{"alice", "?identifier=urn:s|&name=ä", []string{"asthma"}},
		{"alice", "?_id=plain,past,unreadable,a_b,diabetes", []string{"diabetes", "plain"}},
		{"alice", "?_id=plain,diabetes&_id=plain,asthma", []string{"plain"}},
		{"alice", "?_id=plain&_id=diabetes", nil},
		{"alice", "?_id=a%00", nil},
		{"bob", "?_id=plain,diabetes", []string{"diabetes"}},
		{"bob", "?name=ä", nil},
	} {
		found, ids, next := w.search(test.subject, strings.ReplaceAll(test.query, "ä", url.QueryEscape("ä")))
		if !slices.Equal(ids, test.want) || next != "" || found.Total == nil || *found.Total != len(ids) {
			t.Errorf("%s, %s: found %q, next %q, want %q", test.subject, test.query, ids, next, test.want)
		}
	}
	if found, _, _ := w.search("alice", "?_id=diabetes"); found.Entry[0].Resource.Quantity != 2 {
		t.Errorf("found %+v", found.Entry)
	}
	if found, _, _ := w.search("bob", "?_id=diabetes"); found.Entry[0].Resource.Quantity != 0 {
		t.Errorf("found %+v", found.Entry)
	}
	for query, word := range map[string]string{
		"?nonsense=20391": "nonsense", "?name:exact=20391": "name:exact", "?identifier:not=20391": "identifier:not", "?member=20391": "member",
		"?_count=0": "_count", "?_count=x20391": "_count", "?_count=-1": "_count", "?name=": "name", "?name=a,,b": "name",
		"?identifier=": "identifier", "?identifier=|": "identifier", "?_id=": "_id", "?after=a/20391": "after", "?20391%20x=1": "unknown",
		"?name=%zz": "percent-encoding", "?_sort=name": "_sort", "?_include=x": "_include", "?_has:x:y:z=20391": "_has:x:y:z",
	} {
		got := w.ask("GET", "/fhir/Group"+query, w.as("alice")...)
		wantOutcome(t, got, http.StatusBadRequest, "", word)
		if strings.Contains(got.body, "20391") {
			t.Errorf("%s: %s repeats the value", query, got.body)
		}
	}
}

// Pages are bounded, and their links lead to every group once.
func TestPagesOfGroups(t *testing.T) {
	t.Parallel()
	w := withGroups(t)
	var lines strings.Builder
	var all []string
	for n := range 250 {
		id := fmt.Sprintf("g%03d", n)
		fmt.Fprintf(&lines, `{"resourceType":"Group","id":%q,"name":"N%d"}`+"\n", id, n%2)
		all = append(all, id)
	}
	spoil(t, w.users.dir, "Group.ndjson", lines.String())
	for query, pages := range map[string]int{"": 3, "?_count=1000": 3, "?_count=25": 10, "?_count=50&name=n": 5} {
		var got []string
		n, next := 0, query
		for ; n == 0 || next != ""; n++ {
			var found foundGroups
			var ids []string
			found, ids, next = w.search("alice", next)
			if found.Total != nil {
				t.Errorf("%s: page %d has the total %d", query, n+1, *found.Total)
			}
			got = append(got, ids...)
		}
		if n != pages || !slices.Equal(got, all) {
			t.Errorf("%s: %d groups on %d pages, want %d on %d", query, len(got), n, len(all), pages)
		}
	}
	if _, ids, next := w.search("alice", "?_count=2&name=n1&after=g246"); !slices.Equal(ids, []string{"g247", "g249"}) || next != "" {
		t.Errorf("the last page has %q, next %q", ids, next)
	}
}

// Reads and searches of groups are limited together.
func TestGroupLimit(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.StatusLimit = 2 })
	for _, path := range []string{"/fhir/Group/g1", "/fhir/Group"} {
		if got := w.ask("GET", path, w.as("alice")...); got.code != http.StatusOK {
			t.Errorf("%s: %d", path, got.code)
		}
	}
	wantOutcome(t, w.ask("GET", "/fhir/Group/g1", w.as("alice")...), http.StatusTooManyRequests, "throttled", "2 a minute")
	if got := w.ask("GET", "/fhir/Group", w.as("bob")...); got.code != http.StatusOK {
		t.Errorf("another subject: %d", got.code)
	}
}

// Reads and searches of groups are in the audit log, without their parameters.
func TestGroupsOnRecord(t *testing.T) {
	t.Parallel()
	w := withGroups(t)
	alice := w.as("alice")
	w.ask("GET", "/fhir/Group/plain", alice...)
	w.ask("GET", "/fhir/Group?name=20391", alice...)
	w.ask("GET", "/fhir/Group/unknown20391", alice...)
	w.ask("GET", "/fhir/Group?nonsense=20391", alice...)
	w.ask("GET", "/fhir/Group/plain")
	want := []string{"read 0 200", "search 0 200", "read 4 404", "search 4 400", "denied 4 401"}
	var got []string
	for _, event := range w.record() {
		got = append(got, event["action"]+" "+event["outcome"]+" "+event["status"])
	}
	if !slices.Equal(got, want) || strings.Contains(string(w.text()), "20391") || !strings.Contains(string(w.text()), `"name":"Group/plain"`) {
		t.Errorf("recorded %q, want %q:\n%s", got, want, w.text())
	}
}
